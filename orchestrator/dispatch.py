"""The loop of one driver run: place -> collect -> commit, until every trial has a result."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Protocol

from orchestrator import planning, summaries
from orchestrator.errors import UserError
from orchestrator.execution import Ended, Event, Executor, Lost, Started
from orchestrator.planning import MAX_LOST
from orchestrator.schemas import RESULTS
from orchestrator.session import Session
from orchestrator.sweep import Sweep, Trial
from orchestrator.trial import Assignment, Progress

COMMIT_SECONDS = 0.5
COMMIT_ROWS = 1000
"""A commit segment is closed after this long or this many rows: one fsync covers many trials."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Outcome:
    """How a driver run ended.

    Attributes:
        total: trials in scope of this run.
        statuses: status -> trials, of everything in scope that has a result or has failed.
        failed: (trial, error kind, last line of the error) of trials that failed in this run.
        interrupted: the first Ctrl-C was received; running trials are at a checkpoint.
        seconds: wall time of this run.
        tracking: what is missing from the tracker and what to do about it; empty if nothing.
    """

    total: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    failed: list[tuple[Trial, str, str]] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0
    tracking: str = ""

    @property
    def exit_code(self) -> int:
        """0 every trial has a result, 1 some failed, 130 interrupted."""
        if self.interrupted:
            return 130
        return 1 if self.statuses["failed"] else 0


class Observer(Protocol):
    """Watches a driver run: the live display, or nobody."""

    def begin(self, total: int, done: int, failed: int) -> None:
        """Of `total` trials `done` have a result and `failed` are not run again unless asked."""

    def event(self, event: Event) -> None:
        """Something happened to a trial."""

    def message(self, text: str) -> None:
        """One line for the user."""


class Projector(Protocol):
    """Copies results to a tracker without ever holding up the driver."""

    def start(self) -> None:
        """Begin in the background."""

    def progress(
        self, trial: Trial, step: int, scalars: Sequence[Any], started_at: datetime
    ) -> None:
        """Scalars of a running trial, whose attempt began at `started_at`."""

    def committed(self, trial_ids: Sequence[str]) -> None:
        """These trials have new rows in the store."""

    def close(self) -> Any:
        """Finish; returns an object with `complete` and `message`."""


class Dispatch:
    """The loop of one driver run, and what it knows of each trial.

    Args:
        sweep: whose trials are run.
        session: the claimed store.
        observer: is told what happens.
        only: these trials and no others.
        retry_failed: dispatch failed trials again.
    """

    def __init__(
        self,
        sweep: Sweep,
        session: Session,
        observer: Observer,
        *,
        only: Sequence[Trial] | None,
        retry_failed: bool,
    ) -> None:
        self.sweep = sweep
        self.session = session
        self.observer = observer
        self.tracker: Projector | None = None
        self.outcome = Outcome()
        self._error: BaseException | None = None
        self._rows: list[dict[str, Any]] = []  # to be committed with the next segment
        self._oldest_row = 0.0
        self._running: dict[tuple[str, ...], Assignment] = {}
        self._interrupts = 0

        history = planning.history(session.store)
        session.discard_working_files(history.results)  # left by a kill between commit and removal
        scope = list(only) if only is not None else None
        self._attempts = history.attempts
        self._lost = history.lost
        self._queue: list[Trial] = []  # lost trials to dispatch again, before new ones
        done = history.results
        skip = done if retry_failed else {**history.failed, **done}
        self.outcome.total = len(scope) if scope is not None else sweep.num_trials
        self.outcome.statuses.update(
            skip[trial.trial_id] for trial in self._trials(scope) if trial.trial_id in skip
        )
        self.remaining = self.outcome.total - sum(self.outcome.statuses.values())
        self._pending = (t for t in self._trials(scope) if t.trial_id not in skip)
        failed = self.outcome.statuses["failed"]
        observer.begin(self.outcome.total, sum(self.outcome.statuses.values()) - failed, failed)

    def _trials(self, scope: Sequence[Trial] | None) -> Iterator[Trial]:
        return iter(scope) if scope is not None else self.sweep.trials()

    def drive(self, executor: Executor) -> None:
        """Run what remains; returns when every trial has a result, has failed, or was stopped."""
        with self._interrupt_handler(executor):
            try:
                while True:
                    waiting = self._place(executor)
                    if not waiting and not self._running:
                        break
                    executor.poll(self._handle, COMMIT_SECONDS, waiting=waiting)
                    if self._error is not None:
                        break
                    if self._rows and time.monotonic() - self._oldest_row >= COMMIT_SECONDS:
                        self.flush()
            except KeyboardInterrupt:  # the second Ctrl-C
                pass
        self.outcome.interrupted = self._interrupts > 0
        self.flush()
        if self._error is not None:
            raise self._error  # --in-process: the exception itself, for a debugger

    def _place(self, executor: Executor) -> bool:
        """Fill the free places; whether trials wait for more of them."""
        if self._interrupts:
            return False
        room = executor.room()
        while (trial := self._next()) is not None:
            if room <= 0:
                self._queue.insert(0, trial)
                return True
            self._attempts[trial.trial_id] += 1
            assignment = Assignment((trial,), (self._attempts[trial.trial_id],))
            self._running[assignment.trial_ids] = assignment
            executor.submit(assignment)
            room -= 1
        return False

    def _next(self) -> Trial | None:
        return self._queue.pop(0) if self._queue else next(self._pending, None)

    def _handle(self, event: Event) -> None:
        match event:
            case Progress(trial, step, scalars, started_at):
                if self.tracker is not None:
                    self.tracker.progress(trial, step, scalars, started_at)
            case Ended(assignment=assignment, result=result):
                self._running.pop(assignment.trial_ids, None)
                for trial, row in zip(assignment.trials, result.rows, strict=False):
                    self._add(row)
                    self.outcome.statuses[row["status"]] += 1
                    if row["status"] == "failed":
                        last = row["error"].strip().splitlines()[-1]
                        self.outcome.failed.append((trial, row["error_kind"], last))
                self._error = result.error
            case Lost(assignment=assignment) if self._interrupts:
                self._running.pop(assignment.trial_ids, None)  # ended by us, not by the trial
            case Lost(assignment=assignment, begun=False):
                self._running.pop(assignment.trial_ids, None)
                self._queue += assignment.trials  # it has lost nothing but its place
            case Lost(assignment=assignment, reason=reason, node=node):
                self._running.pop(assignment.trial_ids, None)
                kind = "NodeLost" if node else "WorkerLost"
                for trial, attempt in zip(assignment.trials, assignment.attempts, strict=True):
                    self._count_lost(trial, attempt, kind, reason)
            case Started():
                pass
        self.observer.event(event)

    def _count_lost(self, trial: Trial, attempt: int, kind: str, reason: str) -> None:
        self._lost[trial.trial_id, kind] += 1
        lost = self._lost[trial.trial_id, kind]
        row = {
            "trial_id": trial.trial_id,
            "config_id": trial.config_id,
            "seed": trial.seed,
            "params": json.dumps(dict(trial.params), sort_keys=True),
            "status": "lost",
            "error_kind": kind,
            "error": reason,
            "attempt": attempt,
            "ended_at": datetime.now(UTC),
        }
        self._add(row)
        what = "node" if kind == "NodeLost" else "worker"
        if lost < MAX_LOST[kind]:
            self.observer.message(f"{what} lost under {self._label(trial)}; trying again")
            self._queue.append(trial)
            return
        reason = f"the {what} died {lost} times under this trial, the last time: {reason}"
        self._add({**row, "status": "failed", "error": reason})
        self.outcome.statuses["failed"] += 1
        self.outcome.failed.append((trial, kind, reason))

    def _label(self, trial: Trial) -> str:
        return trial.label(self.sweep.axes)

    def _add(self, row: dict[str, Any]) -> None:
        if not self._rows:
            self._oldest_row = time.monotonic()
        self._rows.append(row)
        if len(self._rows) >= COMMIT_ROWS:
            self.flush()

    def flush(self) -> None:
        """Commit what is waiting, then clean up and tell the tracker."""
        rows, self._rows = self._rows, []
        try:
            self.session.commit(rows)
        except BaseException:
            self._rows = rows  # not committed: a later flush may still succeed
            raise
        finished = [row["trial_id"] for row in rows if row["status"] in RESULTS]
        self.session.discard_working_files(finished)
        if self.tracker is not None and rows:
            self.tracker.committed([row["trial_id"] for row in rows])

    def summarise(self) -> None:
        """Write trends and plots, if anything has changed since they were written."""
        try:
            summaries.ensure(self.session.store)
        except Exception as error:  # a projection: the results are complete without it
            why = str(error) if isinstance(error, UserError) else repr(error)
            root = self.session.store.root
            self.observer.message(f"no trends and plots: {why} (again: sweep track {root})")

    def flush_quietly(self) -> None:
        """Commit what is waiting while another error is on its way to the user."""
        with contextlib.suppress(Exception):
            self.flush()

    @contextlib.contextmanager
    def _interrupt_handler(self, executor: Executor) -> Iterator[None]:
        """First Ctrl-C or SIGTERM: checkpoint and stop. Second: end the workers now."""

        def interrupt(number: int, frame: FrameType | None) -> None:
            self._interrupts += 1
            if self._interrupts > 1:
                raise KeyboardInterrupt  # the one exception that Ray lets through from a handler
            again = " (Ctrl-C again ends them now)" if sys.stdin and sys.stdin.isatty() else ""
            self.observer.message(f"stopping: running trials are writing checkpoints{again}")
            executor.stop()

        if threading.current_thread() is not threading.main_thread():
            yield  # signals belong to the main thread; an embedding program handles its own
            return
        before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
