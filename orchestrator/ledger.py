"""The runs of one store in MLflow, and how they become what the store says they should be.

Runs are found by their tags and carry a fingerprint of what they should hold, set last: a run with
the right fingerprint is skipped, any other is completed, or deleted and written anew if it shows a
point that the store does not justify. So a projection may die at any moment, and the next one
leaves what an uninterrupted one would have left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator import findings
from orchestrator.curves import Point, summary_points, trial_points
from orchestrator.mlflow_access import public
from orchestrator.projection import FINGERPRINT, NOTE, PARENT, PREFIX, Plan, Run

if TYPE_CHECKING:
    from orchestrator.tracking import Experiment, Known

BATCH = 800
"""Points in one request: with 100 parameters and 100 tags that makes MLflow's limit of 1,000."""
READ_TRIALS = 50
"""Trials whose rows are in memory at once."""


@dataclass(frozen=True)
class Projection:
    """What a projection did.

    Attributes:
        uri: where to, without credentials.
        experiment: its name; likewise `experiment_id`.
        written: runs that were created, completed or rewritten.
        unchanged: runs that were right already.
        removed: runs that the store does not justify any more.
    """

    uri: str
    experiment: str
    experiment_id: str
    written: int
    unchanged: int
    removed: int

    def __str__(self) -> str:
        removed = f", {self.removed} removed" if self.removed else ""
        return (
            f"MLflow experiment {self.experiment!r} at {self.uri} is up to date: "
            f"{self.written} runs written, {self.unchanged} unchanged{removed}"
        )


class Ledger:
    """Knows every run of a store; used by one thread of one process, and alone.

    Everything may raise whatever MLflow raises; what the ledger knows is of no use after that.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.client = experiment.client
        self.store = experiment.store
        self.store_id = experiment.store_id
        self.removed = 0
        self.runs: dict[tuple[str, str], Known] = {}
        for key, known in experiment.find():
            if all(key) and key not in self.runs:
                self.runs[key] = known
            else:  # a request that was answered too late was made twice
                self._delete(known.run_id)

    def _delete(self, run_id: str) -> None:
        self.client.delete_run(run_id)
        self.removed += 1

    def forget(self, kind: str, key: str) -> None:
        """Delete a run if there is one."""
        if known := self.runs.pop((kind, key), None):
            self._delete(known.run_id)

    def parent(self) -> Known:
        """The sweep's own run, created if need be."""
        known = self.runs.get(("sweep", self.store_id))
        if known is None:
            record = self.store.sweeps()[-1]
            tags = {f"{PREFIX}store_id": self.store_id, f"{PREFIX}kind": "sweep"}
            known = self.experiment.create(record.name, self.experiment.created, tags)
            self.runs["sweep", self.store_id] = known
            self.experiment.share_views(record.axes)
        return known

    def _create(self, kind: str, key: str, name: str, start: int, tags: Mapping[str, str]) -> Known:
        if kind == "sweep":
            return self.parent()
        tags = {**tags, PARENT: self.parent().run_id}
        known = self.runs[kind, key] = self.experiment.create(name, start, tags)
        return known

    # --- while a trial trains ---

    def show(
        self,
        key: str,
        name: str,
        start: int,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        points: Sequence[Point],
    ) -> None:
        """Points of a trial that is still running; its run is created with the first ones."""
        self._reopen()
        known = self.runs.get(("trial", key))
        if known is not None and FINGERPRINT in known.tags:  # an earlier result that is run again
            self.forget("trial", key)
            known = None
        if known is None:
            known = self._create("trial", key, name, start, tags)
        elif known.status != "RUNNING":
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"
        self.experiment.send(known, points, params, {})

    def _reopen(self) -> None:
        """The sweep's own run is running again."""
        known = self.parent()
        if known.status != "RUNNING" or FINGERPRINT in known.tags:
            self._unfinish(known)
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"

    # --- as the store says ---

    def synchronise(self, plan: Plan, only: frozenset[str] | None = None) -> Projection:
        """Make every run what the store says it should be.

        Args:
            plan: what the store says.
            only: trials that have new commits; the sweep's own run and the summaries then wait.
                None: everything, and runs that the store does not justify are removed.
        """
        parent = self.parent()
        if only is not None:
            self._reopen()
        trials = [run for run in plan.trials if only is None or run.key in only]
        stale = [run for run in trials if not self._is_right(run)]
        for start in range(0, len(stale), READ_TRIALS):
            batch = stale[start : start + READ_TRIALS]
            found = trial_points(self.store, plan.table.take([plan.rows[run.key] for run in batch]))
            for run in batch:
                self._write(run, found[run.key])
        written, total = len(stale), len(trials)
        if only is None:
            for run in plan.summaries:
                if not self._is_right(run):
                    members = plan.table.take(plan.members[run.key])
                    self._write(run, summary_points(self.store, members))
                    written += 1
            total += len(plan.summaries) + 1
            self._clear(plan)
            if not self._is_right(plan.sweep):
                note, files = findings.collect(self.store, plan)
                self._unfinish(parent)
                self.experiment.attach(parent.run_id, files)
                self._write(plan.sweep, (), note)
                written += 1
        return self._projection(written, total - written)

    def _projection(self, written: int, unchanged: int) -> Projection:
        to = self.experiment
        return Projection(public(to.uri), to.name, to.id, written, unchanged, self.removed)

    def _is_right(self, run: Run) -> bool:
        known = self.runs.get((run.kind, run.key))
        if known is None or known.tags.get(FINGERPRINT) != run.fingerprint:
            return False
        parent = self.parent()
        if run.kind != "sweep" and known.tags.get(PARENT) != parent.run_id:
            self.client.set_tag(known.run_id, PARENT, parent.run_id)  # the parent was deleted
            known.tags[PARENT] = parent.run_id
        return True

    def _write(self, run: Run, points: Sequence[Point], note: str | None = None) -> None:
        known = self.runs.get((run.kind, run.key))
        if known is not None and not self._extends(known, run, points):
            self.forget(run.kind, run.key)
            known = None
        if known is None:
            known = self._create(run.kind, run.key, run.name, run.start, run.tags)
        self._unfinish(known)
        if known.tags.get("mlflow.runName") != run.name:
            self.client.update_run(known.run_id, name=run.name)
            known.tags["mlflow.runName"] = run.name
        tags = {**run.tags, **({NOTE: note} if note is not None else {})}
        if run.kind != "sweep":
            tags[PARENT] = self.parent().run_id
        for tag in [t for t in known.tags if t.startswith(PREFIX) or t == NOTE]:
            if tag not in tags:
                self.client.delete_tag(known.run_id, tag)
                del known.tags[tag]
        shown = known.shown or set()
        missing = [point for point in points if point not in shown]
        early, late = missing[:-BATCH], missing[-BATCH:]
        if early:
            self.experiment.send(known, early, run.params, {})
        self.client.set_terminated(known.run_id, run.status, run.end)
        known.status = run.status
        self.experiment.send(known, late, run.params, {**tags, FINGERPRINT: run.fingerprint})
        known.shown = None  # can be read back; not worth the memory

    def _extends(self, known: Known, run: Run, points: Sequence[Point]) -> bool:
        """Whether a run becomes `run` by adding to it: points and parameters cannot be changed."""
        if known.start != run.start or any(run.params.get(k) != v for k, v in known.params.items()):
            return False
        wanted = set(points)
        if known.shown is None:
            if known.keys - {point.key for point in points}:
                return False
            known.shown = {
                Point(key, metric.step, metric.value)
                for key in known.keys
                for metric in self.client.get_metric_history(known.run_id, key)
            }
        return known.shown <= wanted

    def _unfinish(self, known: Known) -> None:
        """Take the fingerprint away before anything is changed."""
        if FINGERPRINT in known.tags:
            self.client.delete_tag(known.run_id, FINGERPRINT)
            del known.tags[FINGERPRINT]

    def _clear(self, plan: Plan) -> None:
        """Remove runs without a reason to be; end those that nobody is working on."""
        justified = {(run.kind, run.key) for run in (plan.sweep, *plan.trials, *plan.summaries)}
        named = set(plan.record.trial_ids)
        for kind, key in [one for one in self.runs if one not in justified]:
            known = self.runs[kind, key]
            if kind != "trial" or key not in named or FINGERPRINT in known.tags:
                self.forget(kind, key)
            elif known.status == "RUNNING":  # stopped before its first commit: it will go on
                self.client.set_terminated(known.run_id, "KILLED")
                known.status = "KILLED"
