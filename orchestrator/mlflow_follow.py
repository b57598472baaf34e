"""Keeps a local MLflow database equal to a store that others are writing to.

For `sweep ui` beside a sweep that is not tracked here: one that runs on a cluster, or with
`tracking: none`. A look is cheap while nothing has changed. Whoever else projects the same database
comes first: the lock is held during a look only, and what was known is forgotten if another process
held it in between.

    follower = Follower(store, place)
    while ...:
        follower.look()         # about every `follower.pause` seconds
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from orchestrator.columns import still_running
from orchestrator.curves import milliseconds, trial_points
from orchestrator.errors import SpectralSweepsError, UserError
from orchestrator.files import HEARTBEAT_SECONDS
from orchestrator.mlflow_access import LockedError, explain, only_projector
from orchestrator.mlflow_place import Place, beside
from orchestrator.projection import MAX_RUNS, Plan, label, params_of, trial_tags
from orchestrator.projection import plan as make_plan
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.ledger import Ledger

LOOK_SECONDS = 2.0
"""Between two looks at a store that is quickly read."""
LONGEST_PAUSE = 60.0
SHARE = 0.1
"""At most this part of the time goes into reading: it grows with the sweep."""
SILENCE_SECONDS = 5 * HEARTBEAT_SECONDS
"""A driver whose heartbeat stands still for this long, by our clock, is thought dead."""
_FOLDERS = ("epochs", "sweep", "trials", "scalars", "checkpoints")


class Foreign(Store):
    """A store that this user may only read: what is derived from it is not written beside it."""

    def replace(self, relative: str, payload: bytes) -> None:
        """Refuse, as a reason why there are no plots.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.root} cannot be written to.")


class Follower:
    """Looks at a store again and again; used by one thread.

    Attributes:
        store: what is followed.
        pause: seconds to wait before the next look.
    """

    def __init__(self, store: Store, place: Place) -> None:
        """Nothing is read before the first look.

        Args:
            store: as it was opened.
            place: where its database lies.
        """
        foreign = place != beside(store.root) and "cannot be written" in place.why
        self.store = Foreign(store.root) if foreign else store
        self.pause = LOOK_SECONDS
        self._place = place
        self._ledger: Ledger | None = None
        self._state: object = None  # of the store, at the last look
        self._settled = False
        self._beat: tuple[str, float] = ("", 0.0)  # and when it was first seen
        self._shown: dict[tuple[str, str], int] = {}  # (trial, key) -> the last step shown
        self._problem = ""

    def look(self) -> str:
        """Bring the database up to date if the store has changed.

        Returns:
            What went wrong, once for each thing that does; else nothing. It is tried again.
        """
        try:
            alive = self._alive()
            state = (alive, *map(self._changed_at, _FOLDERS))
            # Once more after a change: time stamps of folders are too coarse to tell two changes
            # apart that follow each other closely.
            if state == self._state and self._settled:
                return ""
            self._project(alive)
            self._settled = state == self._state
            self._state = state
            self._problem = ""
        except LockedError:
            self._forget()
        except Exception as error:  # a projection: the results are not at stake
            self._forget()
            self.pause = min(2 * self.pause, LONGEST_PAUSE)
            known = explain(self._place.uri, error)
            own = isinstance(error, SpectralSweepsError)
            told = f"not up to date: {error if own else known or repr(error)}"
            if told != self._problem:
                self._problem = told
                return told
        return ""

    def _forget(self) -> None:
        self._ledger, self._state = None, None
        self._shown.clear()

    def _changed_at(self, folder: str) -> int:
        try:
            return (self.store.root / folder).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def _alive(self) -> bool:
        """Whether a driver is at work on the store, here or elsewhere."""
        try:
            facts = json.loads((self.store.root / "epochs" / "driver.lock").read_bytes())
            beat = "" if facts["ended"] else str(facts["beat"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError):
            beat = self._beat[0]  # it is being rewritten
        if beat != self._beat[0]:
            self._beat = (beat, time.monotonic())
        return bool(beat) and time.monotonic() - self._beat[1] < SILENCE_SECONDS

    def _project(self, alive: bool) -> None:
        from orchestrator.tracking import connect

        with only_projector(self.store, self._place) as ours:
            if self._ledger is None or not ours:
                self._forget()
                self._ledger = connect(self.store, place=self._place)
            began = time.monotonic()
            plan = make_plan(self.store)
            running = self._running(plan) if alive else None
            self.pause = max(LOOK_SECONDS, (time.monotonic() - began) / SHARE)
            if running is None:
                self._ledger.synchronise(plan)  # with summaries and plots
                return
            ended = frozenset(plan.rows.keys() - set(running["trial_id"].to_pylist()))
            self._ledger.synchronise(plan, ended)
            self._show(self._ledger, plan, running)

    def _running(self, plan: Plan) -> pa.Table:
        """Rows of attempts that are under way, of trials that get a run of their own."""
        running = still_running(self.store.running(), self.store.commits())
        own = set(plan.record.trial_ids[:MAX_RUNS])
        params, ids = running["params"].to_pylist(), running["trial_id"].to_pylist()
        keep = [p is not None and i in own for p, i in zip(params, ids, strict=True)]
        return running.filter(pa.array(keep, pa.bool_()))

    def _show(self, ledger: Ledger, plan: Plan, running: pa.Table) -> None:
        points = trial_points(self.store, running)
        # Nothing tells when an attempt began before it is committed: its run is then written anew.
        now = milliseconds(datetime.now(UTC))
        for row in running.to_pylist():
            trial_id, params = row["trial_id"], json.loads(row["params"])
            new = [p for p in points[trial_id] if p.step > self._shown.get((trial_id, p.key), -1)]
            if new or ("trial", trial_id) not in ledger.runs:
                ledger.show(
                    trial_id,
                    label(params, plan.record.axes, row["seed"]),
                    now,
                    params_of(params, row["seed"]),
                    trial_tags(ledger.store_id, trial_id, row["config_id"]),
                    new,
                )
            for point in new:
                self._shown[trial_id, point.key] = point.step
