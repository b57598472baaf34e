"""MLflow: the only module that imports it, and only on first use, because that takes seconds.

    check("http://tracking.example.org:5000")     # before a launch: is it there, does it let us in?
    project(store)                                # after it: bring MLflow up to date

Nothing here may cost a result: `orchestrator.tracker` keeps a driver free of MLflow's troubles,
`orchestrator.ledger` decides which runs are written.
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
from urllib.parse import urlsplit

from orchestrator import projection
from orchestrator.curves import Point, milliseconds, timestamp
from orchestrator.errors import TrackingError
from orchestrator.ledger import BATCH, Ledger, Projection
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
from orchestrator.mlflow_place import Place, beside
from orchestrator.mlflow_server import serve
from orchestrator.projection import FINGERPRINT, PREFIX
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


def project(
    store: Store,
    *,
    uri: str | None = None,
    experiment: str | None = None,
    place: Place | None = None,
) -> Projection:
    """Bring MLflow up to date with a store; a second time changes nothing.

    Args:
        store: what to show.
        uri: the tracking server; None: the SQLite database at `place`.
        experiment: its name; None: the sweep's name.
        place: where local files lie; None: in the results folder.

    Raises:
        TrackingError: the server refuses, or another process projects this store right now. What
            was written so far is kept; the same call continues.
        DamageError: the store is damaged.
    """
    place = place or beside(store.root)
    with only_projector(store, place):
        with explained(uri or place.uri):
            ledger = connect(store, uri, experiment, place)
            return ledger.synchronise(projection.plan(store))


def connect(
    store: Store,
    uri: str | None = None,
    experiment: str | None = None,
    place: Place | None = None,
) -> Ledger:
    """The runs of a store as they are in MLflow now; the experiment is created if need be.

    Raises:
        TrackingError: the URI does not work. Beyond that, whatever MLflow raises.
    """
    return Ledger(Experiment(store, uri, experiment, place or beside(store.root)))


@dataclass
class Known:
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


class Experiment:
    """The MLflow experiment that holds a store's runs, and what one can do to them.

    Attributes:
        uri: of the tracking server or database.
        name: of the experiment; likewise `id`.
        created: when the store was created, in milliseconds since 1970.
        store_id: see `projection.store_id`.
        client: an `mlflow.MlflowClient`.
    """

    def __init__(self, store: Store, uri: str | None, name: str | None, place: Place) -> None:
        self.store = store
        self.uri = uri or place.uri
        refuse_folders(self.uri)
        if self.uri.startswith("sqlite:"):
            refuse_unwritable(self.uri)
        if not store.epochs():
            raise TrackingError(
                f"{store.root} has nothing to show: no sweep was started in it yet."
            )
        self.created = milliseconds(store.created_at())
        self.store_id = projection.store_id(store)
        self.name = name or store.sweeps()[-1].name
        folder = place.artifacts.resolve()
        if uri is None:
            set_aside_if_moved(place.database, self.name, folder.as_uri())
        self.client = _client(self.uri)
        self.id = self._find_id(folder)

    def _find_id(self, folder: Path) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.name)
        if found is None:
            # Without a server MLflow would put artifacts into ./mlruns of the working directory.
            own = None if has_server(self.uri) else folder.as_uri()
            try:
                return str(
                    self.client.create_experiment(
                        self.name,
                        artifact_location=own,
                        # Otherwise the UI asks what kind of experiment this is.
                        tags={"mlflow.experimentKind": "custom_model_development"},
                    )
                )
            except MlflowException:
                found = self.client.get_experiment_by_name(self.name)
                if found is None:  # not because another process was faster
                    raise
        if found.lifecycle_stage == "deleted":
            raise TrackingError(
                f"the MLflow experiment {self.name!r} at {public(self.uri)} was deleted. "
                f"Restore it (mlflow experiments restore -x {found.experiment_id}) or name "
                "another one in the sweep file (tracking: {experiment: ...})."
            )
        return str(found.experiment_id)

    def find(self) -> list[tuple[tuple[str, str], Known]]:
        """(kind, key) and state of every run of the store, complete ones first."""
        query = f"tags.`{PREFIX}store_id` = '{self.store_id}'"
        token: str | None = None
        found: list[Any] = []
        while True:
            page = self.client.search_runs([self.id], query, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        found.sort(key=lambda run: (FINGERPRINT not in run.data.tags, run.info.run_id))
        return [(_key(run.data.tags), _known(run)) for run in found]

    def create(self, name: str, start: int, tags: Mapping[str, str]) -> Known:
        """A new run, running."""
        run = self.client.create_run(self.id, start_time=start, tags=tags, run_name=name)
        return _known(run)

    def send(
        self,
        known: Known,
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
            last = len(metrics) <= BATCH and len(new) <= 100
            self.client.log_batch(
                known.run_id,
                metrics=metrics[:BATCH],
                params=new[:100],
                tags=changed if last else (),  # the fingerprint may be among them: at the very end
            )
            metrics, new = metrics[BATCH:], new[100:]
            changed = [] if last else changed
        known.params.update(params)
        known.tags.update(tags)
        known.keys |= {point.key for point in points}
        if known.shown is not None:
            known.shown.update(points)

    def share_views(self, axes: Sequence[str]) -> None:
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
            self.client.set_experiment_tag(self.id, tag, json.dumps(view))

    def attach(self, run_id: str, files: Mapping[str, bytes]) -> None:
        """Make these the run's artifacts, and no others."""
        place = self.client.get_run(run_id).info.artifact_uri
        if has_server(self.uri) and urlsplit(place).scheme in ("", "file"):
            return  # a server that takes none: this would be a folder of its disk, not of ours
        stale = [path for path in self._artifacts(run_id, None) if path not in files]
        if stale:
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            repository = get_artifact_repository(place, tracking_uri=self.uri)
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


def _key(tags: Mapping[str, str]) -> tuple[str, str]:
    names = {"sweep": "store_id", "trial": "trial_id", "summary": "config_id"}
    kind = tags.get(f"{PREFIX}kind", "")
    return kind, tags.get(PREFIX + names.get(kind, ""), "")


def _known(run: Any) -> Known:
    return Known(
        run_id=run.info.run_id,
        start=run.info.start_time,
        status=run.info.status,
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        keys=frozenset(run.data.metrics),
        shown=None if run.data.metrics else set(),
    )


def _client(uri: str) -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    # A caller who had imported mlflow before is spared the story of how tables are created.
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)
