"""`sweep run` as a user calls it, in a process of its own, timed from the store it leaves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import mean

from benchmarks.bare import REPOSITORY
from benchmarks.resident import Resident, watch
from orchestrator.store import Store

STORAGE = REPOSITORY / "benchmarks" / "out" / "stores"
"""Beside the figures: on the disk of the repository, not on a temporary one in memory."""


@dataclass(frozen=True)
class Attempt:
    """One row of the trials table, in seconds since 1970."""

    trial_id: str
    started: float
    ended: float


@dataclass(frozen=True)
class Real:
    """One `sweep run` into an empty storage folder.

    Attributes:
        slots: the attempts of each worker, one after another.
        first_start: seconds from the command to the start of the first trial.
        command: seconds from the command to its end.
        tracking_lag: seconds from the last commit to the last write to MLflow's database; None
            without tracking.
        tracked: that write, in seconds since 1970; None likewise.
        resident: memory of the driver's process over time; None unless asked for.
    """

    slots: list[list[Attempt]]
    first_start: float
    command: float
    tracking_lag: float | None
    tracked: float | None = None
    resident: Resident | None = None

    @property
    def spans(self) -> list[float]:
        """For each slot, last end - first start."""
        return slot_spans(self.slots)

    @property
    def seconds_per_trial(self) -> float:
        """Of a slot: spans / trials, both summed over the slots."""
        return sum(self.spans) / sum(map(len, self.slots))

    @property
    def attempts(self) -> list[Attempt]:
        return [attempt for slot in self.slots for attempt in slot]

    @property
    def inside(self) -> float:
        """Mean of ended_at - started_at: what happens within `run_group`."""
        return mean(attempt.ended - attempt.started for attempt in self.attempts)

    def efficiency(self, bare_seconds: Mapping[str, float]) -> list[float]:
        """For each slot: bare seconds of its trials / (last end - first start)."""
        return [
            sum(bare_seconds[attempt.trial_id] for attempt in slot) / span
            for slot, span in zip(self.slots, self.spans, strict=True)
        ]


def run(
    file: str, overrides: Sequence[str] = (), *, workers: int = 2, watched: bool = False
) -> Real:
    """Run a sweep from nothing; its store is left for inspection until the next run.

    Args:
        file: the sweep file, relative to the repository.
        overrides: as `sweep run --set` takes them.
        workers: how many at once.
        watched: note the driver's memory while it runs.

    Raises:
        RuntimeError: the command failed; the message holds what it printed.
    """
    command = [sys.executable, "-m", "benchmarks.real", "run", file, f"--workers={workers}"]
    for override in (*overrides, f"storage={empty_storage()}"):
        command += ["--set", override]
    with tempfile.TemporaryFile() as said:
        called = time.time()
        child = subprocess.Popen(command, cwd=REPOSITORY, stdout=said, stderr=subprocess.STDOUT)
        try:
            resident = watch(child.pid, child.poll) if watched else None
            status = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
        seconds = time.time() - called
        if status != 0:
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise RuntimeError(f"{' '.join(command)} failed:\n{text[-20_000:]}")
    [root] = STORAGE.iterdir()
    attempts = _attempts(Store.open(root))
    return Real(
        slots=assign_slots(attempts, workers),
        first_start=min(attempt.started for attempt in attempts) - called,
        command=seconds,
        tracking_lag=_tracking_lag(root),
        tracked=last_write(root / "mlflow.db"),
        resident=resident,
    )


def empty_storage() -> Path:
    """The storage folder with nothing in it."""
    shutil.rmtree(STORAGE, ignore_errors=True)
    STORAGE.mkdir(parents=True)
    return STORAGE


def _attempts(store: Store) -> list[Attempt]:
    columns = (store.commits()[name].to_pylist() for name in ("trial_id", "started_at", "ended_at"))
    rows: list[tuple[str, datetime, datetime]] = list(zip(*columns, strict=True))
    return [Attempt(trial_id, a.timestamp(), b.timestamp()) for trial_id, a, b in rows]


def assign_slots(attempts: Sequence[Attempt], count: int) -> list[list[Attempt]]:
    """Which worker ran what: the trials of one never overlap, and the longest idle is next."""
    slots: list[list[Attempt]] = [[] for _ in range(count)]
    for attempt in sorted(attempts, key=lambda attempt: attempt.started):
        free = [slot for slot in slots if not slot or slot[-1].ended <= attempt.started]
        min(free, key=lambda slot: slot[-1].ended if slot else 0.0).append(attempt)
    return [slot for slot in slots if slot]


def slot_spans(slots: Sequence[Sequence[Attempt]]) -> list[float]:
    """For each slot, last end - first start."""
    return [slot[-1].ended - slot[0].started for slot in slots]


def _tracking_lag(root: Path) -> float | None:
    written = last_write(root / "mlflow.db")
    committed = [path.stat().st_mtime for path in (root / "trials").glob("*.arrow")]
    return max(0.0, written - max(committed)) if written is not None else None


def last_write(database: Path) -> float | None:
    """When an SQLite database was last written to, seconds since 1970; None: there is none."""
    written = [path.stat().st_mtime for path in database.parent.glob(f"{database.name}*")]
    return max(written, default=None)


if __name__ == "__main__":  # the `sweep` command of this very interpreter
    from orchestrator.cli import main

    main()
