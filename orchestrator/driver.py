"""run_sweep(): propose -> place -> collect -> commit -> project; resumes by reading the store.

The driver is the only one that commits. Running the same file again is resuming: trials that have
a result are skipped, those with a checkpoint continue from it, lost ones are dispatched again.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Protocol

import tasks
from orchestrator import environment, planning, summaries
from orchestrator.errors import SweepError, UserError
from orchestrator.execution import Ended, Event, Executor, InProcess, Lost, Started
from orchestrator.schemas import RESULTS
from orchestrator.session import Session, check_owner
from orchestrator.store import Store
from orchestrator.sweep import Sweep, Trial
from orchestrator.trial import Assignment, Context, Progress

COMMIT_SECONDS = 0.5
COMMIT_ROWS = 1000
"""A commit segment is closed after this long or this many rows: one fsync covers many trials."""
MAX_LOST = 3
"""A trial whose worker died this often is failed: it probably kills its workers itself."""


@dataclass(frozen=True)
class Options:
    """What the command line adds to a sweep file.

    Attributes:
        only: run these trials and no others.
        retry_failed: dispatch failed trials again.
        keep: accept results and checkpoints of another version of the task's source.
        rerun: run these trials again; their results so far no longer count.
        rerun_changed: likewise every trial whose result another version of that source made.
        in_process: no Ray; one trial after another in this process, exceptions unwrapped.
        workers: upper limit of trials at once; None: as many as fit the machine.
    """

    only: Sequence[Trial] | None = None
    retry_failed: bool = False
    keep: bool = False
    rerun: Sequence[Trial] = ()
    rerun_changed: bool = False
    in_process: bool = False
    workers: int | None = None


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


def run_sweep(
    sweep: Sweep,
    options: Options | None = None,
    *,
    observer: Observer | None = None,
    projector: Callable[[Store], Projector] | None = None,
    executor: Callable[[Context, int], Executor] | None = None,
) -> Outcome:
    """Run every trial of a sweep that has no result yet.

    Args:
        sweep: a validated sweep file.
        options: see `Options`.
        observer: is told what happens; None: nobody.
        projector: makes the tracker's projector once the store is open; None: no tracking.
        executor: makes the executor from the context and the number of trials to run; None: Ray,
            or this process with `options.in_process`.

    Returns:
        Counts, failures, and how it ended.

    Raises:
        UserError: something is wrong before the launch; nothing was launched.
        StoreError: the storage refused midway; what was committed is kept.
        ClusterError: Ray refused; what was committed is kept.
    """
    options = options or Options()
    observer = observer or _Nobody()
    device, gpus, workers = planning.placement(sweep, limit=options.workers)
    check_owner(sweep)
    source_hash = tasks.source_hash(sweep.task_class)
    rerun = planning.check_source(
        sweep, source_hash, keep=options.keep, rerun_changed=options.rerun_changed
    )
    rerun |= {trial.trial_id for trial in options.rerun}
    if options.only is not None:
        named = {trial.trial_id for trial in options.only}
        if {trial.trial_id for trial in options.rerun} - named:
            raise SweepError("--rerun", ["it names trials that --only leaves out"])
        rerun &= named
    began = time.monotonic()
    with Session.claim(sweep, rerun=rerun) as session:
        facts = {**environment.git_facts(sweep.base), "task_source": source_hash}
        context = Context(
            root=str(session.store.root),
            epoch=session.epoch,
            threads=sweep.resources.cpus,
            device=device,
            checkpoint_seconds=sweep.checkpoint_seconds,
            source_hash=source_hash,
            keep=options.keep,
            live=projector is not None,
            facts=json.dumps(facts, sort_keys=True),
        )
        run = _Run(sweep, options, session, observer)
        tracker = projector(session.store) if projector else None
        run.tracker = tracker
        try:
            pool: Executor | None = None
            if run.remaining:
                count = min(workers, run.remaining)
                if executor is not None:
                    pool = executor(context, count)
                elif options.in_process:
                    pool = InProcess(context)
                else:
                    from orchestrator.cluster import RayPool

                    pool = RayPool(context, cpus=sweep.resources.cpus, gpus=gpus, workers=count)
            if tracker is not None:
                tracker.start()  # not before: while Ray starts, the working directory is another
            if pool is not None:
                try:
                    run.drive(pool)
                finally:
                    pool.shutdown()
            if not run.outcome.interrupted:
                run.summarise()
        finally:
            run.flush_quietly()
            if tracker is not None:
                closed = tracker.close()
                run.outcome.tracking = "" if closed.complete else closed.message
        run.outcome.seconds = time.monotonic() - began
        return run.outcome


class _Run:
    """The loop of one driver run, and what it knows of each trial."""

    def __init__(
        self, sweep: Sweep, options: Options, session: Session, observer: Observer
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
        session.discard_checkpoints(history.results)  # left by a kill between commit and removal
        scope = list(options.only) if options.only is not None else None
        self._attempts = history.attempts
        self._lost = history.lost
        self._queue: list[Trial] = []  # lost trials to dispatch again, before new ones
        done = history.results
        skip = done if options.retry_failed else {**history.failed, **done}
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
        with self._interrupt_handler(executor):
            try:
                while True:
                    self._place(executor)
                    if not self._running:
                        break
                    executor.poll(self._handle, COMMIT_SECONDS)
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

    def _place(self, executor: Executor) -> None:
        room = 0 if self._interrupts else executor.room()
        while room > 0:
            trial = self._queue.pop(0) if self._queue else next(self._pending, None)
            if trial is None:
                return
            self._attempts[trial.trial_id] += 1
            assignment = Assignment((trial,), (self._attempts[trial.trial_id],))
            self._running[assignment.trial_ids] = assignment
            executor.submit(assignment)
            room -= 1

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
            case Lost(assignment=assignment, reason=reason):
                self._running.pop(assignment.trial_ids, None)
                for trial, attempt in zip(assignment.trials, assignment.attempts, strict=True):
                    self._count_lost(trial, attempt, reason)
            case Started():
                pass
        self.observer.event(event)

    def _count_lost(self, trial: Trial, attempt: int, reason: str) -> None:
        self._lost[trial.trial_id] += 1
        lost = self._lost[trial.trial_id]
        row = {
            "trial_id": trial.trial_id,
            "config_id": trial.config_id,
            "seed": trial.seed,
            "params": json.dumps(dict(trial.params), sort_keys=True),
            "status": "lost",
            "error_kind": "WorkerLost",
            "error": reason,
            "attempt": attempt,
            "ended_at": datetime.now(UTC),
        }
        self._add(row)
        if lost < MAX_LOST:
            self.observer.message(f"worker lost under {self._label(trial)}; trying again")
            self._queue.append(trial)
            return
        reason = f"the worker died {lost} times under this trial, the last time: {reason}"
        self._add({**row, "status": "failed", "error": reason})
        self.outcome.statuses["failed"] += 1
        self.outcome.failed.append((trial, "WorkerLost", reason))

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
        self.session.discard_checkpoints(finished)
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
            self.observer.message(
                "stopping: running trials are writing checkpoints (Ctrl-C again ends them now)"
            )
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


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Nobody:
    """An observer that looks away."""

    def begin(self, total: int, done: int, failed: int) -> None:
        pass

    def event(self, event: Event) -> None:
        pass

    def message(self, text: str) -> None:
        pass
