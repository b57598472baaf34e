"""Project a store into MLflow, idempotently; the only importer of mlflow, and only on first use.

Runs are found by their tags and carry a fingerprint of what they should hold, set last: a run with
the right fingerprint is skipped, any other is completed, or deleted and written anew if it shows a
point that the store does not justify. So a projection may die at any moment, and the next one
leaves what an uninterrupted one would have left. Nothing here may cost a result: see
`orchestrator.tracker` for how a driver is kept free of MLflow's troubles.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator import findings, projection
from orchestrator.curves import Point, milliseconds, summary_points, timestamp, trial_points
from orchestrator.errors import TrackingError
from orchestrator.mlflow_access import (
    embedded_uri,
    explained,
    has_server,
    only_projector,
    public,
    refuse_folders,
    refuse_unwritable,
    set_aside_if_moved,
)
from orchestrator.mlflow_server import serve
from orchestrator.projection import FINGERPRINT, NOTE, PARENT, PREFIX, Run
from orchestrator.store import Store
from orchestrator.tracker import Tracker, TrackingOutcome

__all__ = ["Projection", "Tracker", "TrackingOutcome", "check", "embedded_uri", "project", "serve"]

_QUIET = {
    # Retries are ours: MLflow's would sleep for minutes while an outage costs nothing.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # what goes wrong is raised too, and told once
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_BATCH = 1000  # metrics, parameters and tags together in one request; at most 100 of the latter two
_BATCH_POINTS = 800
_READ_TRIALS = 50  # whose rows are in memory at once


def check(uri: str) -> None:
    """Make sure that runs can be written to a tracking URI; takes seconds, at most about 15.

    Raises:
        TrackingError: it does not answer, refuses, or is of a kind that does not work.
    """
    refuse_folders(uri)
    if uri.startswith("sqlite:"):
        refuse_unwritable(uri)
        return
    with explained(uri):
        _client(uri).search_experiments(max_results=1)


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


def project(store: Store, *, uri: str | None = None, experiment: str | None = None) -> Projection:
    """Bring MLflow up to date with a store; a second time changes nothing.

    Args:
        store: what to show.
        uri: the tracking server; None: the SQLite database in the results folder.
        experiment: its name; None: the sweep's name.

    Raises:
        TrackingError: the server refuses, or another process projects this store right now. What
            was written so far is kept; the same call continues.
        DamageError: the store is damaged.
    """
    with only_projector(store):
        with explained(uri or embedded_uri(store.root)):
            ledger = Ledger(store, uri, experiment)
            return ledger.synchronise()


# --- the runs of one store in one experiment ----------------------------------------------------


@dataclass
class _Known:
    """A run as it is in MLflow.

    Attributes:
        shown: its points; None if that is not known and must be read back.
    """

    run_id: str
    start: int
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    keys: frozenset[str] = frozenset()
    shown: set[Point] | None = field(default_factory=set)


class Ledger:
    """The runs of one store in one MLflow experiment; used by one thread of one process.

    Raises:
        TrackingError: for URIs that do not work. Beyond that, whatever MLflow raises.
    """

    def __init__(self, store: Store, uri: str | None, experiment: str | None) -> None:
        self.store = store
        self.uri = uri or embedded_uri(store.root)
        refuse_folders(self.uri)
        if self.uri.startswith("sqlite:"):
            refuse_unwritable(self.uri)
        self.created = milliseconds(store.created_at())
        self.store_id = projection.store_id(store)
        self.experiment = experiment or store.sweeps()[-1].name
        folder = store.root.resolve() / "mlflow-artifacts"
        if uri is None:
            set_aside_if_moved(store.root / "mlflow.db", self.experiment, folder.as_uri())
        self.client = _client(self.uri)
        self.experiment_id = self._find_experiment(folder)
        self.removed = 0
        self.runs: dict[tuple[str, str], _Known] = {}
        self._find_runs()

    def _find_experiment(self, folder: Path) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is None:
            # Without a server MLflow would put artifacts into ./mlruns of the working directory.
            own = None if has_server(self.uri) else folder.as_uri()
            try:
                return str(
                    self.client.create_experiment(
                        self.experiment,
                        artifact_location=own,
                        # Otherwise the UI asks what kind of experiment this is.
                        tags={"mlflow.experimentKind": "custom_model_development"},
                    )
                )
            except MlflowException:
                found = self.client.get_experiment_by_name(self.experiment)
                if found is None:  # not because another process was faster
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {self.experiment!r} at {public(self.uri)} was deleted. "
                f"Restore it (mlflow experiments restore -x {found.experiment_id}) or name "
                "another one in the sweep file (tracking: {experiment: ...})."
            )
        return str(found.experiment_id)

    def _find_runs(self) -> None:
        query = f"tags.`{PREFIX}store_id` = '{self.store_id}'"
        token: str | None = None
        found: list[Any] = []
        while True:
            page = self.client.search_runs([self.experiment_id], query, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        # A request that was answered too late was made twice: keep the run that is complete.
        found.sort(key=lambda run: (FINGERPRINT not in run.data.tags, run.info.run_id))
        for run in found:
            tags = dict(run.data.tags)
            names = {"sweep": "store_id", "trial": "trial_id", "summary": "config_id"}
            kind = tags.get(f"{PREFIX}kind", "")
            key = (kind, tags.get(PREFIX + names.get(kind, ""), ""))
            if not all(key) or key in self.runs:
                self._delete(run.info.run_id)
                continue
            self.runs[key] = _Known(
                run.info.run_id,
                run.info.start_time,
                run.info.status,
                dict(run.data.params),
                tags,
                frozenset(run.data.metrics),
                shown=None if run.data.metrics else set(),
            )

    def _delete(self, run_id: str) -> None:
        self.client.delete_run(run_id)
        self.removed += 1

    def forget(self, kind: str, key: str) -> None:
        """Delete a run if there is one."""
        if known := self.runs.pop((kind, key), None):
            self._delete(known.run_id)

    def parent(self) -> _Known:
        """The sweep's own run, created if need be."""
        known = self.runs.get(("sweep", self.store_id))
        if known is None:
            record = self.store.sweeps()[-1]
            tags = {f"{PREFIX}store_id": self.store_id, f"{PREFIX}kind": "sweep"}
            known = self._create("sweep", self.store_id, record.name, self.created, {}, tags)
        return known

    def _create(
        self,
        kind: str,
        key: str,
        name: str,
        start: int,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> _Known:
        tags = dict(tags)
        if kind != "sweep":
            tags[PARENT] = self.parent().run_id
        run = self.client.create_run(self.experiment_id, start_time=start, tags=tags, run_name=name)
        known = _Known(run.info.run_id, start, "RUNNING", {}, dict(run.data.tags) | tags)
        self.runs[kind, key] = known
        self._send(known, (), params, {})
        return known

    def _send(
        self,
        known: _Known,
        points: Sequence[Point],
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        """Points, parameters and tags that are not there yet, in as few requests as possible."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(p.key, p.value, timestamp(self.created, p.step), p.step) for p in points]
        new = [Param(k, v) for k, v in params.items() if k not in known.params]
        changed = [RunTag(k, v) for k, v in tags.items() if known.tags.get(k) != v]
        while metrics or new or changed:
            last = len(metrics) <= _BATCH_POINTS and len(new) <= 100
            self.client.log_batch(
                known.run_id,
                metrics=metrics[:_BATCH_POINTS],
                params=new[:100],
                tags=changed if last else (),  # the fingerprint may be among them: at the very end
            )
            metrics, new = metrics[_BATCH_POINTS:], new[100:]
            changed = [] if last else changed
        known.params.update(params)
        known.tags.update(tags)
        known.keys |= {point.key for point in points}
        if known.shown is not None:
            known.shown.update(points)

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
        known = self.runs.get(("trial", key))
        if known is not None and FINGERPRINT in known.tags:  # an earlier result that is run again
            self.forget("trial", key)
            known = None
        if known is None:
            known = self._create("trial", key, name, start, params, tags)
        elif known.status != "RUNNING":
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"
        self._send(known, points, {}, {})

    def reopen(self) -> None:
        """The sweep's own run is running again."""
        known = self.parent()
        self._share_views(self.store.sweeps()[-1].axes)
        self._unfinish(known)
        if known.status != "RUNNING":
            self.client.update_run(known.run_id, status="RUNNING")
            known.status = "RUNNING"

    # --- as the store says ---

    def synchronise(self, only: frozenset[str] | None = None) -> Projection:
        """Make every run what the store says it should be.

        Args:
            only: trials that have new commits; the sweep's own run and the summaries then wait.
                None: everything, and runs that the store does not justify are removed.
        """
        plan = projection.plan(self.store)
        if plan is None:
            return self._projection(0, 0)
        parent = self.parent()
        trials = [run for run in plan.trials if only is None or run.key in only]
        stale = [run for run in trials if not self._is_right(run)]
        for start in range(0, len(stale), _READ_TRIALS):
            batch = stale[start : start + _READ_TRIALS]
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
                self._share_views(plan.record.axes)
                self._attach(parent.run_id, files)
                self._write(plan.sweep, (), note)
                written += 1
        return self._projection(written, total - written)

    def _projection(self, written: int, unchanged: int) -> Projection:
        return Projection(
            public(self.uri), self.experiment, self.experiment_id, written, unchanged, self.removed
        )

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
            known = self._create(run.kind, run.key, run.name, run.start, {}, run.tags)
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
        early, late = missing[:-_BATCH_POINTS], missing[-_BATCH_POINTS:]
        if early:
            self._send(known, early, run.params, {})
        self.client.set_terminated(known.run_id, run.status, run.end)
        known.status = run.status
        self._send(known, late, run.params, {**tags, FINGERPRINT: run.fingerprint})
        known.shown = None  # can be read back; not worth the memory

    def _extends(self, known: _Known, run: Run, points: Sequence[Point]) -> bool:
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

    def _unfinish(self, known: _Known) -> None:
        """Take the fingerprint away before anything is changed."""
        if FINGERPRINT in known.tags:
            self.client.delete_tag(known.run_id, FINGERPRINT)
            del known.tags[FINGERPRINT]

    def _clear(self, plan: projection.Plan) -> None:
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

    def _share_views(self, axes: Sequence[str]) -> None:
        """What the links of `sweep ui` open, see `mlflow_server.links`.

        This is the UI's own format for shared views; should it change, the links open the plain
        list. Nesting is shown only if nothing is filtered and the order is that of creation.
        """
        columns = [f"params.`{name}`" for name in (*axes, "seed")]
        columns += [f"metrics.`{key}`" for key in ("train/loss", "val/loss", "val/error")]
        nested = {"selectedColumns": columns, "runsHiddenMode": "FIRST_20_RUNS"}
        flat = {
            **nested,
            "searchFilter": f"tags.`{PREFIX}store_id` = '{self.store_id}' and "
            f"tags.`{PREFIX}kind` != 'sweep'",
            "orderByKey": "tags.`mlflow.runName`",
            "orderByAsc": True,
        }
        for name, view in (("runs", nested), ("curves", flat)):
            tag = f"mlflow.sharedViewState.{self.store_id}-{name}"
            self.client.set_experiment_tag(self.experiment_id, tag, json.dumps(view))

    def _attach(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Make these the run's artifacts, and no others."""
        stale = [path for path in self._artifacts(run_id, None) if path not in files]
        if stale:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            uri = self.client.get_run(run_id).info.artifact_uri
            repository = get_artifact_repository(uri, tracking_uri=self.uri)
            for path in stale:
                repository.delete_artifacts(path)
        with tempfile.TemporaryDirectory(prefix="spectral-sweeps-") as folder:
            for path, content in files.items():
                target = Path(folder) / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            self.client.log_artifacts(run_id, folder)

    def _artifacts(self, run_id: str, folder: str | None) -> Iterator[str]:
        for entry in self.client.list_artifacts(run_id, folder):
            if entry.is_dir:
                yield from self._artifacts(run_id, entry.path)
            else:
                yield entry.path


def _client(uri: str) -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # A caller who had imported mlflow before is spared the story of how tables are created.
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)
