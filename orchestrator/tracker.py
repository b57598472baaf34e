"""The driver's side of tracking: a thread that shows a sweep in MLflow and cannot hold it up.

The driver only ever puts points into a bounded queue; when it is full they are dropped. The thread
sends them about once a second, completes a run from the store when its trial is committed, and ends
with a full projection. An exception of MLflow or of the network costs what was on its way: the
thread forgets what it knew of the server, waits, looks again, and the store brings the rest.
"""

from __future__ import annotations

import contextlib
import queue
import shlex
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.curves import Point, Series, choose, milliseconds, points_of, thin
from orchestrator.errors import SpectralSweepsError
from orchestrator.ledger import Ledger
from orchestrator.mlflow_access import LockedError, embedded_uri, explain, only_projector, public
from orchestrator.projection import MAX_RUNS, label, params_of, trial_tags
from orchestrator.projection import plan as make_plan
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.sweep import Sweep, Trial

CYCLE_SECONDS = 0.5
"""Points of this long travel together."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds to wait after a first failure, doubled with each further one up to the longest."""
SHARE = 0.1
"""At most this part of the time goes into reading the trials table: it grows with the sweep."""


@dataclass(frozen=True)
class TrackingOutcome:
    """How tracking ended.

    Attributes:
        complete: MLflow shows what the store holds.
        message: empty if complete; else what happened and the command that completes it.
    """

    complete: bool
    message: str = ""


class _Progress(NamedTuple):
    trial: Trial
    step: int
    scalars: Sequence[Any]  # ScalarRow
    started: int  # milliseconds since 1970


@dataclass
class _Live:
    """What was seen of a running trial: which curves it has, and which steps of them are shown."""

    series: set[Series]
    evaluations: frozenset[int]
    snapshots: frozenset[int]


class Tracker:
    """Shows a sweep while it runs; `close` leaves MLflow equal to the store, or says what to do."""

    def __init__(
        self, store: Store, sweep: Sweep, uri: str | None = None, *, capacity: int = 10_000
    ) -> None:
        """Nothing is imported, read or sent before `start`.

        Args:
            store: the driver's; the thread reads it through an object of its own.
            sweep: the file that is being run; gives the experiment's name and the labels.
            uri: the tracking server; None: the SQLite database in the results folder.
            capacity: progress messages waiting at most; further ones are dropped.
        """
        self._store = Store(store.root)
        self._uri = uri
        self._experiment = sweep.tracking.experiment
        self._axes = sweep.axes
        self._queue: queue.Queue[_Progress] = queue.Queue(capacity)
        self._lock = threading.Lock()
        self._committed: set[str] = set()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._outcome = TrackingOutcome(True)

        # Below: the thread's own.
        self._held = contextlib.ExitStack()
        self._ledger: Ledger | None = None
        self._live: dict[str, _Live] = {}
        self._ended: set[str] = set()  # trials whose runs are as the store says
        self._own: frozenset[str] = frozenset()  # trials that get a run of their own
        self._locked = False
        self._next_read = 0.0

    # --- called by the driver: never blocks, never raises ---

    def start(self) -> None:
        """Begin in the background; MLflow is imported there."""
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)
        self._thread.start()

    def progress(
        self,
        trial: Trial,
        step: int,
        scalars: Sequence[Any],
        started_at: datetime | None = None,
    ) -> None:
        """Scalars of a running trial, dropped if too many are waiting.

        Args:
            trial: whose.
            step: at which they were measured.
            scalars: `spectral.ScalarRow`s.
            started_at: when this attempt began, as its commit row will say. MLflow cannot correct a
                run's start later: without it the run is written anew when the trial is committed.
        """
        started = milliseconds(started_at or datetime.now(UTC))
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(_Progress(trial, step, scalars, started))

    def committed(self, trial_ids: Sequence[str]) -> None:
        """These trials have new rows in the store."""
        with self._lock:
            self._committed.update(trial_ids)

    def close(self) -> TrackingOutcome:
        """Send what is waiting, then bring MLflow up to date with the store.

        A server that does not answer holds this up for its timeout (10 s) twice at most.
        """
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        return self._outcome

    # --- the thread ---

    def _run(self) -> None:
        failures = 0
        pause = 0.0
        with self._held:
            while not self._closing.wait(pause):
                try:
                    self._cycle()
                    failures = 0
                except Exception as error:  # whatever it is, results are not at stake: look again
                    self._give_up(error)
                    failures += 1
                backoff = FIRST_PAUSE * 2 ** (failures - 1) if failures else CYCLE_SECONDS
                pause = min(backoff, LONGEST_PAUSE)
            self._finish(attempts=1 if failures else 2)

    def _give_up(self, error: Exception) -> None:
        """Forget the server: after an error nobody knows what it has."""
        self._ledger = None
        known: SpectralSweepsError | None = explain(
            self._uri or embedded_uri(self._store.root), error
        )
        if known is None and isinstance(error, SpectralSweepsError):
            known = error
        why = str(known) if known is not None else f"tracking failed: {error!r}."
        self._outcome = TrackingOutcome(False, self._advice(why))

    def _advice(self, why: str) -> str:
        command = ["sweep", "track", str(self._store.root)]
        if self._uri is not None:
            command += ["--uri", public(self._uri)]
        return (
            f"{why} No result is lost: they are in the store. "
            f"To bring MLflow up to date: {shlex.join(command)}"
        )

    def _connected(self) -> Ledger:
        if self._ledger is None:
            from orchestrator.tracking import connect

            if not self._locked:  # held until the thread ends
                self._held.enter_context(only_projector(self._store))
                self._locked = True
            self._ledger = connect(self._store, self._uri, self._experiment)
            self._own = frozenset(self._store.sweeps()[-1].trial_ids[:MAX_RUNS])
        return self._ledger

    def _cycle(self) -> None:
        ledger = self._connected()
        # First: what is in here was committed after its last progress had entered the queue.
        committed = self._take_committed() if time.monotonic() >= self._next_read else frozenset()
        try:
            self._show(ledger, self._drain())
            if committed & self._own:
                began = time.monotonic()
                plan = make_plan(self._store)
                self._next_read = began + (time.monotonic() - began) / SHARE
                ledger.synchronise(plan, committed & self._own)
                for trial_id in committed & plan.rows.keys():  # not those whose worker was lost
                    self._live.pop(trial_id, None)
                    self._ended.add(trial_id)
        except BaseException:
            self.committed(list(committed))  # again, once the server is back
            raise

    def _take_committed(self) -> frozenset[str]:
        with self._lock:
            taken, self._committed = frozenset(self._committed), set()
        return taken

    def _drain(self) -> list[_Progress]:
        drained: list[_Progress] = []
        with contextlib.suppress(queue.Empty):
            while len(drained) < self._queue.maxsize:
                drained.append(self._queue.get_nowait())
        return drained

    def _show(self, ledger: Ledger, messages: Sequence[_Progress]) -> None:
        points: dict[str, list[Point]] = defaultdict(list)
        newest: dict[str, _Progress] = {}
        for message in messages:
            trial_id = message.trial.trial_id
            if trial_id not in self._own or trial_id in self._ended:
                continue
            newest[trial_id] = message
            points[trial_id] += self._points(message)
        for trial_id, message in newest.items():
            trial = message.trial
            ledger.show(
                trial_id,
                label(trial.params, self._axes, trial.seed),
                message.started,
                params_of(trial.params, trial.seed),
                trial_tags(ledger.store_id, trial_id, trial.config_id),
                points[trial_id],
            )

    def _points(self, message: _Progress) -> list[Point]:
        trial = message.trial
        live = self._live.get(trial.trial_id)
        if live is None:
            live = _Live(set(), thin(trial.evaluations), thin(trial.snapshots))
            self._live[trial.trial_id] = live
        values = {(row.subject, row.metric): row.value for row in message.scalars}
        live.series |= values.keys()
        steps = live.evaluations, live.snapshots
        return points_of(values, choose(live.series), message.step, *steps)

    def _finish(self, attempts: int) -> None:
        for _ in range(attempts):
            try:
                self._show(self._connected(), self._drain())
                self._connected().synchronise(make_plan(self._store))
            except Exception as error:  # as above
                self._give_up(error)
                if isinstance(error, LockedError):
                    return
                time.sleep(FIRST_PAUSE)
            else:
                self._outcome = TrackingOutcome(True)
                return
