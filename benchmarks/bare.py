"""The rival: the body of a trial with its snapshots, and no store, no Ray, no driver, no tracking.

`run(file)` trains a sweep's trials in several processes at once, one thread each, which is how the
workers of `sweep run` train them. Run as a program, this module is one of those processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Timed:
    """Seconds of one bare trial; what is in none of the parts is building the model."""

    trial_id: str
    total: float
    first_step: float  # from the beginning to the first optimiser step
    training: float  # optimiser steps
    evaluation: float
    snapshots: float


@dataclass(frozen=True)
class Bare:
    """One run over all trials: for each process its trials, and first start to last end."""

    processes: list[list[Timed]]
    spans: list[float]

    @property
    def trials(self) -> dict[str, Timed]:
        return {trial.trial_id: trial for process in self.processes for trial in process}

    @property
    def seconds_per_trial(self) -> float:
        return sum(self.spans) / len(self.trials)


def noise(runs: Sequence[Bare]) -> float:
    """Half the range of the seconds per trial of equal runs: what this machine cannot resolve."""
    seconds = [run.seconds_per_trial for run in runs]
    return (max(seconds) - min(seconds)) / 2


def run(
    file: str,
    overrides: Sequence[str] = (),
    *,
    processes: int = 2,
    trials: int | None = None,
    rows: bool = False,
) -> Bare:
    """Train the sweep's trials, dealt out in turn.

    Args:
        file: the sweep file, relative to the repository.
        overrides: as `sweep run --set` takes them.
        processes: how many at once.
        trials: only so many of the first ones; None: all.
        rows: snapshots include the conversion of their rows into the buffer of a shard.
    """
    children = []
    for index in range(processes):
        command = [sys.executable, "-m", "benchmarks.bare", file, f"--part={index}/{processes}"]
        command += [f"--set={override}" for override in overrides]
        command += [f"--trials={trials}"] if trials is not None else []
        command += ["--rows"] if rows else []
        children.append(
            subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=environment_of_a_worker(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    for child in children:  # all imports are done everywhere before anyone begins
        assert child.stdout is not None
        if child.stdout.readline() != "ready\n":
            raise RuntimeError("a bare process did not start")
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    answers = [json.loads(child.communicate()[0]) for child in children]
    timed = [[Timed(**trial) for trial in answer["trials"]] for answer in answers]
    return Bare(timed, [answer["span"] for answer in answers])


def environment_of_a_worker() -> dict[str, str]:
    """This process's environment variables, with those that a worker of `sweep run` gets."""
    from orchestrator.cluster import worker_environment

    return {**os.environ, **worker_environment(1)}


def answer(module: str, *asked: str, environment: Mapping[str, str]) -> Any:
    """The JSON that one of our modules, run as a program, prints last."""
    done = subprocess.run(
        [sys.executable, "-m", module, *asked],
        cwd=REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """One process: load everything, say "ready", wait for a line, train, print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--trials", type=int)
    parser.add_argument("--rows", action="store_true")
    given = parser.parse_args()
    index, _, count = given.part.partition("/")

    import torch

    from orchestrator.sweep import load

    torch.set_num_threads(1)
    chosen = list(load(given.file, given.set).trials())[: given.trials]
    own = chosen[int(index) :: int(count)]
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    timed = [asdict(_train(trial, rows=given.rows)) for trial in own]
    print(json.dumps({"trials": timed, "span": time.perf_counter() - began}))


def _train(trial, *, rows: bool) -> Timed:  # type: ignore[no-untyped-def]
    """One trial to its end; nobody wants what was measured, but with `rows` a shard's buffer."""
    from orchestrator.rows import Buffer

    buffer, adding = Buffer(), 0.0
    trajectory = Trajectory(trial)
    for measured in trajectory:
        if rows and measured.snapshot is not None:
            before = time.perf_counter()
            buffer.scalars(trial.trial_id, measured.step, measured.snapshot.scalars)
            buffer.spectra(trial.trial_id, measured.step, measured.snapshot.spectra)
            adding += time.perf_counter() - before
    timed = trajectory.timed
    return replace(timed, total=timed.total + adding, snapshots=timed.snapshots + adding)


class Measured(NamedTuple):
    """What a trial knows of itself at one step."""

    step: int
    evaluation: dict[tuple[str, str], float]  # (split, metric) -> value
    snapshot: Any  # spectral.Snapshot, or None where there is only an evaluation


class Trajectory:
    """What `orchestrator.trial.run_group` does, less everything that is not the trial's body.

    Iterating trains the trial and yields at each step at which something was measured; `timed`
    holds the seconds, without those that the caller took in between.
    """

    timed: Timed

    def __init__(self, trial) -> None:  # type: ignore[no-untyped-def]
        self.trial = trial

    def __iter__(self) -> Iterator[Measured]:
        from spectral import take_snapshot
        from tasks import resolve
        from tasks.training import evaluate, make_streams, start, train_step

        trial, clock = self.trial, time.perf_counter
        began = clock()
        task_class = resolve(trial.task)
        config = task_class.Config(**trial.params)
        task = task_class([config])
        streams = make_streams([config], [trial.seed])
        model, state = start(task, streams)
        views = [view for view in task.views(model) if not view.on_demand]
        evaluations, snapshots = frozenset(trial.evaluations), frozenset(trial.snapshots)
        snapshot_state = None
        first_step = training = evaluation = measuring = elsewhere = 0.0
        while True:
            step = state.step
            values: dict[tuple[str, str], float] = {}
            snapshot = None
            if step in evaluations:
                before = clock()
                found = evaluate(task, model, state, streams)
                values = {key: float(value[0]) for key, value in found.items()}
                evaluation += clock() - before
            if step in snapshots:
                before = clock()
                [snapshot], snapshot_state = take_snapshot(
                    views, state.parameters, trial.measure.groups, snapshot_state
                )
                measuring += clock() - before
            if step in evaluations or step in snapshots:
                before = clock()
                yield Measured(step, values, snapshot)
                elsewhere += clock() - before
            if step >= config.steps:
                break
            before = clock()
            first_step = first_step or before - began
            train_step(task, model, state, streams)
            training += clock() - before
        total = clock() - began - elsewhere
        self.timed = Timed(trial.trial_id, total, first_step, training, evaluation, measuring)


if __name__ == "__main__":
    main()
