"""Where `run_group` spends what a bare trial does not: its own calls, timed in one process."""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bare import answer, environment_of_a_worker
from benchmarks.real import empty_storage


def run(file: str, overrides: Sequence[str], *, trials: int) -> dict[str, float]:
    """Milliseconds per trial of each part, by name."""
    asked = [file, f"--trials={trials}", *(f"--set={override}" for override in overrides)]
    found: dict[str, float] = answer(
        "benchmarks.parts", *asked, environment=environment_of_a_worker()
    )
    return found


def main() -> None:
    """Run trials through `run_group` with clocks around its parts; print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--trials", type=int, required=True)
    given = parser.parse_args()

    import os

    import tasks
    from orchestrator import checkpoints, environment, rows, trial
    from orchestrator.sweep import load

    seconds: defaultdict[str, float] = defaultdict(float)

    def clock(owner: Any, name: str, part: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(call)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            before = time.perf_counter()
            try:
                return call(*arguments, **keywords)
            finally:
                seconds[part] += time.perf_counter() - before

        setattr(owner, name, timed)

    clock(rows.Buffer, "publish", "publish the shards")
    clock(os, "fsync", "fsync, within publish")
    clock(rows.Buffer, "scalars", "keep the rows")
    clock(rows.Buffer, "spectra", "keep the rows")
    clock(environment, "record", "environment record")
    clock(checkpoints, "newest_valid", "look for a checkpoint")
    clock(trial, "resolve", "resolve the task")

    sweep = load(given.file, given.set)
    context = trial.Context(
        root=str(empty_storage() / sweep.name),
        epoch=1,
        threads=1,
        device="cpu",
        checkpoint_seconds=sweep.checkpoint_seconds,
        source_hash=tasks.source_hash(sweep.task_class),
    )
    Path(context.root).mkdir(parents=True)
    own = list(sweep.trials())[: given.trials + 1]
    for index, one in enumerate(own):
        if index == 1:  # what the first trial warms up is not the others' cost
            seconds.clear()
        result = trial.run_group(trial.Assignment((one,), (1,)), context)
        if result.error is not None:
            raise result.error
    print(json.dumps({part: 1000 * total / given.trials for part, total in seconds.items()}))


if __name__ == "__main__":
    main()
