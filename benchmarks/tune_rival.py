"""The rival that users compare with: the trials of a sweep file under Ray Tune.

`run(file, ...)` starts this module as a program of its own: Ray and Tune never live in the
benchmark's process. Tune's workers train `bare.Trajectory`, the body of our trials, and hand each
snapshot's scalars to Tune, which writes what it writes by itself; there is no store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.bare import REPOSITORY, Measured, Trajectory, environment_of_a_worker
from benchmarks.figures import OUT
from benchmarks.real import Attempt, assign_slots, last_write, slot_spans
from benchmarks.resident import Resident, watch

Report = dict[str, float]
"""What one result says: name -> value."""

STORAGE = OUT / "tune"
"""Beside our own stores, on the same disk."""

SETTINGS = {
    "defaults": {},
    "reuse": {},
    # Documented in Ray's "Environment variables used by Ray Tune". Results of a trial travel
    # together (class trainables only), and nothing is written but what the driver must keep.
    "best": {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_GLOBAL_CHECKPOINT_S": "3600",
        "TUNE_RESULT_BUFFER_LENGTH": "1000",
        "TUNE_RESULT_BUFFER_MIN_TIME_S": "60",
    },
}
"""Environment variables of each variant.

- defaults: a function that reports, `Tuner(function).fit()`;
- reuse: the same with `reuse_actors=True`;
- best: a class trainable with `reset_config`, `reuse_actors=True` and every documented setting
  that made this body faster.
"""


@dataclass(frozen=True)
class Tuned:
    """One `Tuner.fit()` with storage of its own.

    Attributes:
        losses: trial -> its last validation loss.

    The others are as in `real.Real`; a trial's times are from inside its body.
    """

    slots: list[list[Attempt]]
    first_start: float
    command: float
    losses: dict[str, float]
    tracked: float | None = None
    resident: Resident | None = None

    @property
    def seconds_per_trial(self) -> float:
        """Of a slot: (last end - first start) / trials, both summed over the slots."""
        return sum(slot_spans(self.slots)) / sum(map(len, self.slots))

    @property
    def attempts(self) -> list[Attempt]:
        return [attempt for slot in self.slots for attempt in slot]


def run(
    file: str,
    overrides: Sequence[str] = (),
    *,
    variant: str,
    trials: int,
    workers: int = 2,
    database: Path | None = None,
    watched: bool = False,
) -> Tuned:
    """Train a sweep's first trials under Tune, from nothing.

    Args:
        file: the sweep file, relative to the repository; its trials must differ by the seed only.
        overrides: as `sweep run --set` takes them.
        variant: a key of `SETTINGS`.
        trials: so many of the first ones.
        workers: how many at once.
        database: MLflow's, for `MLflowLoggerCallback`, a new file; None: no tracking. Reported are
            then the curves that our tracker shows and no others.
        watched: note the driver's memory while it runs.

    Raises:
        RuntimeError: the program failed; the message holds what it printed.
    """
    shutil.rmtree(STORAGE, ignore_errors=True)
    STORAGE.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks.tune_rival", file]
    command += [f"--variant={variant}", f"--trials={trials}", f"--workers={workers}"]
    command += [f"--set={override}" for override in overrides]
    command += [f"--database={database}"] if database is not None else []
    # Ray's own files under a short path, because its sockets' names must be.
    with (
        tempfile.TemporaryDirectory(prefix="tune-", ignore_cleanup_errors=True) as temporary,
        tempfile.TemporaryFile() as said,
    ):
        called = time.time()
        child = subprocess.Popen(
            [*command, f"--temporary={temporary}"],
            cwd=REPOSITORY,
            # Inherited by Tune's workers: the same threads, the same reproducible MKL, the same
            # memory allocator as under `sweep run`, without the cost of a runtime environment.
            env={**environment_of_a_worker(), **SETTINGS[variant]},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            resident = watch(child.pid, child.poll) if watched else None
            status = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait()
            raise
        seconds = time.time() - called
        if status != 0:
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)} failed:\n{text[-3000:]}")
    lines = [
        json.loads(line)
        for path in STORAGE.glob("times-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    attempts = [Attempt(line["trial"], line["started"], line["ended"]) for line in lines]
    if len(attempts) != trials:
        raise RuntimeError(f"{trials} trials were asked for, {len(attempts)} ended")
    return Tuned(
        slots=assign_slots(attempts, workers),
        first_start=min(attempt.started for attempt in attempts) - called,
        command=seconds,
        losses={line["trial"]: line["loss"] for line in lines},
        tracked=last_write(database) if database is not None else None,
        resident=resident,
    )


def main() -> None:
    """One `Tuner.fit()`; what it made is read from its files."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--variant", choices=SETTINGS, required=True)
    parser.add_argument("--trials", type=int, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--temporary", required=True)
    parser.add_argument("--database")
    given = parser.parse_args()

    import ray
    from ray import tune

    from orchestrator.sweep import load

    trials = list(load(given.file, given.set).trials())[: given.trials]
    seeds = {trial.seed: trial.trial_id for trial in trials}
    if len(seeds) != given.trials or len({trial.config_id for trial in trials}) != 1:
        raise ValueError(f"{given.file}: not {given.trials} trials that differ by the seed only")

    ray.init(
        address="local",
        num_cpus=given.workers,
        include_dashboard=False,
        object_store_memory=100 * 1024**2,
        _temp_dir=given.temporary,
    )
    best = given.variant == "best"
    callbacks = None
    if given.database is not None:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        uri = f"sqlite:///{given.database}"
        callbacks = [MLflowLoggerCallback(tracking_uri=uri, experiment_name="tune")]
    body = (_as_class if best else _as_function)(
        trials[0], seeds, str(STORAGE), curves if given.database else scalars
    )
    results = tune.Tuner(
        tune.with_resources(body, {"cpu": 1}),
        param_space={"seed": tune.grid_search(list(seeds))},
        tune_config=tune.TuneConfig(reuse_actors=given.variant != "defaults"),
        run_config=tune.RunConfig(
            name="tiny",
            storage_path=str(STORAGE),
            callbacks=callbacks,
            failure_config=tune.FailureConfig(fail_fast=True),
            # A class trainable's last checkpoint, which a function does not write either.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            **({"verbose": 0} if best else {}),
        ),
    ).fit()
    if results.num_errors:
        raise SystemExit(f"{results.num_errors} trials failed: {results.errors[0]}")
    ray.shutdown()


def _as_function(
    first: Any, seeds: dict[int, str], folder: str, chosen: Callable[[Measured], Report]
) -> Any:
    """The form of Ray's first example: a function that reports."""

    def body(config: dict[str, Any]) -> None:
        import torch
        from ray import tune

        torch.set_num_threads(1)
        trial = replace(first, seed=config["seed"], trial_id=seeds[config["seed"]])
        started = time.time()
        for measured in Trajectory(trial):
            tune.report(chosen(measured))
        note(folder, trial.trial_id, started, measured)

    return body


def _as_class(
    first: Any, seeds: dict[int, str], folder: str, chosen: Callable[[Measured], Report]
) -> Any:
    """The form that Tune is fastest with: no second thread, and it can send results together."""
    from ray import tune

    class Body(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import torch

            torch.set_num_threads(1)
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            seed = new_config["seed"]
            self.trial = replace(first, seed=seed, trial_id=seeds[seed])
            self.measuring: Any = None
            return True

        def step(self) -> dict[str, Any]:
            if self.measuring is None:
                self.started = time.time()
                self.measuring = iter(Trajectory(self.trial))
            measured = next(self.measuring)
            done = measured.step == self.trial.snapshots[-1]
            if done:
                next(self.measuring, None)
                note(folder, self.trial.trial_id, self.started, measured)
            return {**chosen(measured), "done": done}

    return Body


def scalars(measured: Measured) -> Report:
    """What a user would report: the same scalars that our store gets."""
    return {"step": measured.step} | {"/".join(one): value for one, value in _all(measured).items()}


def curves(measured: Measured) -> Report:
    """Of these, what our tracker shows, under the same names."""
    from orchestrator.curves import choose

    found = _all(measured)
    return {key: found[one] for one, key in choose(found).items()}


def _all(measured: Measured) -> dict[tuple[str, str], float]:
    rows = measured.snapshot.scalars if measured.snapshot is not None else ()
    return measured.evaluation | {(row.subject, row.metric): row.value for row in rows}


def note(folder: str, trial_id: str, started: float, last: Measured) -> None:
    """Leave a trial's times where the benchmark finds them, past everything that Tune does."""
    line = {
        "trial": trial_id,
        "started": started,
        "ended": time.time(),
        "loss": last.evaluation[("val", "loss")],
    }
    with (Path(folder) / f"times-{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
