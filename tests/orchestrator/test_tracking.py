"""MLflow is real here: SQLite databases, and a server that is killed in mid-sweep."""

from __future__ import annotations

import http.server
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import files, plots
from orchestrator.errors import TrackingError
from orchestrator.expansion import Trial
from orchestrator.fields import Tracking
from orchestrator.mlflow_access import (
    LockedError,
    embedded_uri,
    only_projector,
    public,
    set_aside_if_moved,
)
from orchestrator.schemas import commit_table, seal
from orchestrator.store import Store
from orchestrator.tracking import Projection, Tracker, check, connect, project
from spectral import ScalarRow
from tests.stores import START, FakeTrial, build_store, commit_row

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of MLflow's own dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
AXES = ("weight_decay",)
SWEEP: Any = SimpleNamespace(axes=AXES, tracking=Tracking())


def fakes(*seeds: int) -> list[FakeTrial]:
    return [FakeTrial(seed, {"weight_decay": d, "lr": 0.1}) for seed in seeds for d in (0.0, 1.0)]


def pending(root: Path, trials: Sequence[FakeTrial]) -> Store:
    """A store whose file names these trials, none of which has a commit."""
    return build_store(root, [replace(trial, status="running") for trial in trials])


def commit(store: Store, *trials: FakeTrial) -> list[str]:
    """Commit these trials in a segment of their own."""
    rows = [commit_row(store.root, trial) for trial in trials]
    number = len(list((store.root / "trials").iterdir())) + 1
    path = store.root / "trials" / f"000001-{number:06d}.arrow"
    files.publish(path, seal(commit_table(rows)))
    return [trial.trial_id for trial in trials]


def as_trial(fake: FakeTrial) -> Trial:
    steps = tuple(fake.steps)
    return Trial(
        fake.trial_id, fake.config_id, fake.seed, "t", "t", fake.params, steps, steps, ("ranks",)
    )


def show(
    tracker: Tracker, fake: FakeTrial, rows: Store, started_at: datetime | None = START
) -> None:
    """Feed a tracker what a worker would tell of a trial, taken from a store that has its rows."""
    steps: dict[int, list[ScalarRow]] = defaultdict(list)
    chosen = rows.outcomes().to_pylist()
    [place] = [i for i, row in enumerate(chosen) if row["trial_id"] == fake.trial_id]
    for row in rows.scan("scalars", rows.outcomes().slice(place, 1)).to_pylist():
        del row["trial_id"]
        steps[row.pop("step")].append(ScalarRow(**row))
    for step, scalars in steps.items():
        tracker.progress(as_trial(fake), step, scalars, started_at)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> Any:
    """Poll until something is true; fails after a time that no machine should need."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found


def content(store: Store, uri: str | None = None, experiment: str | None = None) -> Any:
    """Everything that MLflow shows of a store, without ids and paths, ready to be compared."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri or embedded_uri(store.root))
    found = client.get_experiment_by_name(experiment or store.root.name)
    runs = client.search_runs([found.experiment_id], max_results=1000)
    names = {run.info.run_id: run.info.run_name for run in runs}
    shown = []
    for run in runs:
        tags = {k: v.replace(str(store.root), "ROOT") for k, v in run.data.tags.items()}
        tags.pop("spectral_sweeps.content")
        parent = names.get(tags.pop("mlflow.parentRunId", ""))
        points = {
            key: sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(*of))
            for key in run.data.metrics
            for of in [(run.info.run_id, key)]
        }
        artifacts = sorted(
            e.path
            for f in (None, "plots", "tables")
            for e in client.list_artifacts(run.info.run_id, f)
        )
        info = run.info
        shown.append(
            (
                *(info.run_name, parent, info.status, info.start_time, info.end_time),
                *(dict(run.data.params), tags, points, artifacts),
            )
        )
    return sorted(shown, key=lambda one: one[0])


def row_counts(store: Store) -> dict[str, int]:
    connection = sqlite3.connect(store.root / "mlflow.db")
    tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    counts = {t: connection.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for (t,) in tables}
    connection.close()
    return counts


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database: creating its tables takes seconds, so it is done once and copied."""
    store = build_store(tmp_path_factory.mktemp("database") / "empty", [FakeTrial()])
    ledger = connect(store)
    ledger.client.delete_experiment(ledger.experiment.id)
    return store.root / "mlflow.db"


@pytest.fixture
def fresh(tmp_path: Path, database: Path) -> Callable[..., Store]:
    """Makes stores that have an MLflow database without runs."""

    def make(folder: str, trials: Sequence[FakeTrial], build: Any = build_store) -> Store:
        store: Store = build(tmp_path / folder / "demo", trials)
        shutil.copy(database, store.root / "mlflow.db")
        return store

    return make


@pytest.fixture
def without_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes seconds and is tested elsewhere."""
    monkeypatch.setattr(plots, "sweep_figures", lambda *_: {})


@pytest.fixture
def lock_free_store(tmp_path: Path) -> Store:
    return build_store(tmp_path / "demo", [FakeTrial()])


# --- projection -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_plots")
def test_runs_are_nested_below_the_sweep(fresh: Callable[..., Store]) -> None:
    store = fresh("a", fakes(0, 1))

    result = project(store)

    assert (result.written, result.unchanged, result.removed) == (7, 0, 0)
    shown = [(one[0], one[1], one[2]) for one in content(store)]
    assert shown == [
        ("demo", None, "FINISHED"),
        ("weight_decay=0.0 mean of 2", "demo", "FINISHED"),
        ("weight_decay=0.0 seed=0", "demo", "FINISHED"),
        ("weight_decay=0.0 seed=1", "demo", "FINISHED"),
        ("weight_decay=1.0 mean of 2", "demo", "FINISHED"),
        ("weight_decay=1.0 seed=0", "demo", "FINISHED"),
        ("weight_decay=1.0 seed=1", "demo", "FINISHED"),
    ]


@pytest.mark.usefixtures("without_plots")
def test_a_second_projection_changes_no_row(fresh: Callable[..., Store]) -> None:
    """Of any table of the database."""
    store = fresh("a", fakes(0, 1))
    project(store)
    before = row_counts(store)

    again = project(store)

    assert row_counts(store) == before
    assert str(again) == (
        f"MLflow experiment 'demo' at sqlite:///{store.root}/mlflow.db is up to date: "
        "0 runs written, 7 unchanged"
    )


class Killed(BaseException):
    """Stands for a SIGKILL: no handler of ours catches it."""


@pytest.mark.parametrize("calls", [0, 2, 5])
@pytest.mark.usefixtures("without_plots")
def test_an_interrupted_projection_is_completed_by_the_next(
    fresh: Callable[..., Store], monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Killed before its n-th batch of a run that exists already."""
    from mlflow import MlflowClient

    store, other = fresh("a", fakes(0, 1)), fresh("b", fakes(0, 1))
    left = calls
    log_batch = MlflowClient.log_batch

    def dying(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if left == 0:
            raise Killed
        left -= 1
        return log_batch(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_batch", dying)
        with pytest.raises(Killed):
            project(store)

    project(store)
    project(other)

    assert content(store) == content(other)


@pytest.mark.usefixtures("without_plots")
def test_more_trials_leave_what_a_fresh_projection_would(fresh: Callable[..., Store]) -> None:
    """Summaries are replaced, counts updated, and nothing is there twice."""
    store, other = fresh("a", fakes(0, 1, 2), pending), fresh("b", fakes(0, 1, 2))
    commit(store, *fakes(0), *fakes(1))
    project(store)
    commit(store, *fakes(2))

    result = project(store)

    project(other)
    assert content(store) == content(other)
    assert (result.written, result.removed) == (5, 2)


@pytest.mark.usefixtures("without_plots")
def test_a_run_that_was_tampered_with_is_not_duplicated(fresh: Callable[..., Store]) -> None:
    """Runs made twice by a request that timed out, and runs of trials no file names any more."""
    store, other = fresh("a", fakes(0)), fresh("b", fakes(0))
    project(store)
    ledger = connect(store)
    twin = ledger.runs["trial", fakes(0)[0].trial_id]
    tags = {k: v for k, v in twin.tags.items() if k != "spectral_sweeps.content"}
    ledger.client.create_run(ledger.experiment.id, tags=tags)
    foreign = {**twin.tags, "spectral_sweeps.trial_id": "0" * 16}
    ledger.client.create_run(ledger.experiment.id, tags=foreign)

    result = project(store)

    project(other)
    assert content(store) == content(other)
    assert result.removed == 2


@pytest.mark.usefixtures("without_plots")
def test_a_deleted_parent_is_made_anew(fresh: Callable[..., Store]) -> None:
    store, other = fresh("a", fakes(0)), fresh("b", fakes(0))
    project(store)
    ledger = connect(store)
    ledger.client.delete_run(ledger.parent().run_id)

    result = project(store)

    project(other)
    assert content(store) == content(other)
    assert result.written == 1


@pytest.mark.usefixtures("without_plots")
def test_the_database_of_a_moved_folder_is_set_aside(fresh: Callable[..., Store]) -> None:
    """Artifacts have absolute places in MLflow; one that is where it says is left alone."""
    store = fresh("a", fakes(0))
    project(store)
    path = store.root / "mlflow.db"

    set_aside_if_moved(path, "demo", (store.root / "mlflow-artifacts").as_uri())
    assert path.exists()
    set_aside_if_moved(path, "demo", "file:///elsewhere/demo/mlflow-artifacts")
    assert not path.exists()
    assert path.with_name("mlflow.db.moved").exists()


def test_only_one_process_projects_a_store(lock_free_store: Store) -> None:
    with only_projector(lock_free_store), pytest.raises(LockedError) as caught:
        project(lock_free_store)

    assert str(caught.value) == (
        f"the MLflow runs of {lock_free_store.root} are being written by process {os.getpid()} on "
        f"host {socket.gethostname()}: a running sweep keeps them up to date itself. Wait until it "
        "ends, then run the same command again."
    )


def test_a_store_without_a_driver_run_is_refused(lock_free_store: Store) -> None:
    """A driver that died between accepting the file and claiming its epoch leaves this."""
    for path in (lock_free_store.root / "epochs").glob("*.json"):
        path.unlink()

    with pytest.raises(TrackingError) as caught:
        project(lock_free_store)

    assert str(caught.value) == (
        f"{lock_free_store.root} has nothing to show: no sweep was started in it yet."
    )


def test_an_experiment_that_was_deleted_is_left_alone(fresh: Callable[..., Store]) -> None:
    store = fresh("a", fakes(0))
    ledger = connect(store, None, "gone")
    ledger.client.delete_experiment(ledger.experiment.id)

    with pytest.raises(TrackingError) as caught:
        project(store, experiment="gone")

    assert str(caught.value) == (
        f"the MLflow experiment 'gone' at sqlite:///{store.root}/mlflow.db was deleted. Restore it "
        f"(mlflow experiments restore -x {ledger.experiment.id}) or name another one in the sweep "
        "file (tracking: {experiment: ...})."
    )


# --- while a sweep runs ---------------------------------------------------------------------------


def test_progress_never_blocks(lock_free_store: Store) -> None:
    """Nobody takes anything out of the queue here: what does not fit is dropped."""
    tracker = Tracker(lock_free_store, SWEEP, capacity=2)

    for step in range(10):
        tracker.progress(as_trial(FakeTrial()), step, [])
    tracker.committed(["0" * 16])

    assert tracker.close().complete


@pytest.mark.usefixtures("without_plots")
def test_a_metric_can_be_read_while_its_trial_runs(fresh: Callable[..., Store]) -> None:
    """And after the commit, which has other rows, the run is as the store says."""
    trial = FakeTrial(0, {"weight_decay": 0.0, "lr": 0.1})
    store, other = fresh("a", [trial], pending), fresh("b", [trial])
    ledger = connect(store)
    tracker = Tracker(store, SWEEP)
    tracker.start()
    wrong = ScalarRow("train", "loss", 123.0, None, None, "evaluation", None)

    tracker.progress(as_trial(trial), 10, [wrong], START)

    query = f"tags.`spectral_sweeps.trial_id` = '{trial.trial_id}'"
    found = until(lambda: ledger.client.search_runs([ledger.experiment.id], query))
    until(lambda: ledger.client.get_metric_history(found[0].info.run_id, "train/loss"))
    assert found[0].info.status == "RUNNING"
    assert found[0].info.run_name == "weight_decay=0.0 seed=0"
    run = ledger.client.get_run(found[0].info.run_id)
    assert run.data.params == {"weight_decay": "0.0", "lr": "0.1", "seed": "0"}
    tracker.committed(commit(store, trial))
    assert tracker.close().complete
    project(other)
    assert content(store) == content(other)
    assert ledger.client.get_run(found[0].info.run_id).info.lifecycle_stage == "deleted"


@pytest.mark.usefixtures("without_plots")
def test_a_run_that_was_shown_rightly_is_completed_not_rewritten(
    fresh: Callable[..., Store],
) -> None:
    trial = fakes(0)[0]
    store, other = fresh("a", [trial], pending), fresh("b", [trial])
    project(other)
    tracker = Tracker(store, SWEEP)
    tracker.start()

    show(tracker, trial, other)
    until(lambda: row_counts(store)["metrics"] == row_counts(other)["metrics"])
    tracker.committed(commit(store, trial))

    assert tracker.close().complete
    assert content(store) == content(other)
    counts = row_counts(store), row_counts(other)
    assert counts[0] == counts[1]


@pytest.mark.usefixtures("without_plots")
def test_a_trial_that_was_stopped_is_shown_as_such(fresh: Callable[..., Store]) -> None:
    """Ctrl-C: no commit yet; its curves stay, and the run goes on when the sweep is resumed."""
    trials = fakes(0)
    store, other = fresh("a", trials, pending), fresh("b", trials)
    tracker = Tracker(store, SWEEP)
    tracker.start()
    show(tracker, trials[0], other)
    assert tracker.close().complete
    stopped = {one[0]: one for one in content_of_running(store)}
    assert stopped["weight_decay=0.0 seed=0"][1] == "KILLED"
    assert stopped["demo"][1] == "KILLED"

    resumed = Tracker(store, SWEEP)
    resumed.start()
    for trial in trials:
        show(resumed, trial, other)
    resumed.committed(commit(store, *trials))

    assert resumed.close().complete
    project(other)
    assert content(store) == content(other)


def content_of_running(store: Store) -> list[tuple[str, str]]:
    ledger = connect(store)
    runs = ledger.client.search_runs([ledger.experiment.id])
    return [(run.info.run_name, run.info.status) for run in runs]


class Server:
    """A real `mlflow server` with a database of its own, on a port that it keeps."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder = folder
        shutil.copy(database, folder / "server.db")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--port", str(self.port)]
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(self._healthy)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path, database: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    found = Server(tmp_path / "server", database)
    found.start()
    yield found
    found.kill()


@pytest.mark.usefixtures("without_plots")
def test_an_outage_costs_nothing_but_a_projection(
    fresh: Callable[..., Store], server: Server
) -> None:
    """A server that is killed in mid-sweep ends up equal to a database that was never away."""
    trials = fakes(0, 1)
    store, never_down = fresh("a", trials, pending), fresh("b", trials, pending)
    rows = fresh("c", trials)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    trackers = [Tracker(store, SWEEP, server.uri), Tracker(never_down, SWEEP)]
    for tracker in trackers:
        tracker.start()

    def everywhere(*some: FakeTrial) -> None:
        for tracker, of in zip(trackers, (store, never_down), strict=True):
            for trial in some:
                # Without a start the run is written anew when its trial is committed.
                show(tracker, trial, rows, START if tracker is trackers[1] else None)
            tracker.committed(commit(of, *some))

    def finished() -> bool:
        experiment = client.get_experiment_by_name("demo")
        query = "attributes.status = 'FINISHED'"
        return experiment is not None and bool(
            client.search_runs([experiment.experiment_id], query)
        )

    everywhere(trials[0])
    until(finished)
    for tracker in trackers:
        show(tracker, trials[1], rows)
    server.kill()
    everywhere(*trials[1:])

    outcomes = [tracker.close() for tracker in trackers]
    assert [outcome.complete for outcome in outcomes] == [False, True]
    assert outcomes[0].message == (
        f"the MLflow server at {server.uri} does not answer: connection refused. Start it, or "
        "correct the tracking uri. No result is lost: they are in the store. To bring MLflow up "
        f"to date: sweep track {store.root} --uri {server.uri}"
    )
    server.start()
    result = project(store, uri=server.uri)
    assert result.written >= 6
    assert content(store, server.uri) == content(never_down)
    again = project(store, uri=server.uri)
    assert (again.written, again.unchanged, again.removed) == (0, 7, 0)


# --- the UI ---------------------------------------------------------------------------------------


@pytest.fixture
def launch_ui(tmp_path: Path) -> Iterator[Callable[[Store, int], subprocess.Popen[str]]]:
    """Runs `serve` in a process of its own, as `sweep ui` does, over SSH."""
    started: list[subprocess.Popen[str]] = []
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def launch(store: Store, port: int) -> subprocess.Popen[str]:
        script = (
            "import sys; from orchestrator.store import Store\n"
            "from orchestrator.tracking import serve\n"
            "assert 'mlflow' not in sys.modules, 'imported before it is needed'\n"
            f"serve(Store.open({str(store.root)!r}), host='127.0.0.1', port={port})\n"
        )
        # What a tracker of this process may have set must not make that one quiet.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
        ssh = {"SSH_CONNECTION": "198.51.100.1 5 198.51.100.2 22", "USER": "ada"}
        path = os.pathsep.join(filter(None, sys.path))
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=elsewhere,
            env={**environment, **ssh, "PYTHONPATH": path},
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        process.terminate()  # ends its server too
        process.communicate(timeout=60)


@pytest.mark.usefixtures("without_plots")
def test_the_ui_serves_while_runs_are_written_and_leaves_nothing_behind(
    tmp_path: Path, launch_ui: Callable[[Store, int], subprocess.Popen[str]]
) -> None:
    """The database is created without a word and nothing is written elsewhere; what is committed
    meanwhile appears by itself; Ctrl-C ends every process.
    """
    store = pending(tmp_path / "a" / "demo", fakes(0, 1, 2))
    commit(store, *fakes(0))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        ui = launch_ui(store, busy)
        assert ui.stdout is not None
        said = [ui.stdout.readline() for _ in range(4)]
    match = re.search(r"http://127\.0\.0\.1:(\d+)/#/experiments/(\d+)/runs\?", said[0])
    assert match is not None, said
    port, experiment = int(match[1]), match[2]
    assert busy < port < busy + 50
    assert said[3] == f"  ssh -N -L {port}:127.0.0.1:{port} ada@198.51.100.2\n"
    children = Path(f"/proc/{ui.pid}/task/{ui.pid}/children").read_text().split()
    answers: list[int] = []
    stop = threading.Event()

    def read() -> None:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"http://127.0.0.1:{port}")
        while not stop.is_set():
            answers.append(len(client.search_runs([experiment])))

    reader = threading.Thread(target=read)
    reader.start()
    commit(store, *fakes(1), *fakes(2))
    until(lambda: answers and answers[-1] == 9)
    stop.set()
    reader.join()
    ui.send_signal(signal.SIGINT)
    out, err = ui.communicate(timeout=60)

    result = project(store)  # Ctrl-C may have come before the last of them was complete
    assert (result.written + result.unchanged, result.removed) == (9, 0)
    assert (ui.returncode, out) == (0, "")
    first, *others = err.splitlines()
    assert first.endswith("is up to date: 3 runs written, 0 unchanged")
    assert others == ["Ctrl-C ends it."]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert children
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


# --- URIs that do not work ------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "./mlruns"])
def test_a_folder_is_refused(uri: str) -> None:
    with pytest.raises(TrackingError) as caught:
        check(uri)

    assert str(caught.value) == (
        f"tracking uri {uri!r} is a folder: MLflow's file store cannot be used. Leave the uri out "
        "(an SQLite database in the results folder), or give http://HOST:PORT of a server or "
        "sqlite:////absolute/path/mlflow.db."
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_database_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(TrackingError, match="is not a folder one may write to"):
        check(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_database_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(TrackingError) as caught:
        check(f"sqlite:///{tmp_path}/file/mlflow.db")

    assert str(caught.value) == (
        f"cannot write {tmp_path}/file/mlflow.db: {tmp_path}/file is not a folder one may write "
        "to. Change its permissions, or give another tracking uri; `tracking: none` switches it "
        "off."
    )


def test_a_server_that_is_not_there_is_refused() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # taken but not listening: connections are refused
        uri = f"http://ada:secret@127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(TrackingError) as caught:
            check(uri)

    assert str(caught.value) == (
        f"the MLflow server at {public(uri)} does not answer: connection refused. Start it, or "
        "correct the tracking uri."
    )
    assert "secret" not in str(caught.value)


REFUSALS = [
    (
        401,
        "You are not authenticated. Please see https://www.mlflow.org",
        "the MLflow server at {uri} wants a user name and a password: set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the sweep is started. "
        "`sweep server` says where both are when it starts.",
    ),
    (
        403,
        "Permission denied",
        "the MLflow server at {uri} knows this user but does not let it do that: give it "
        "permission to edit the experiment.",
    ),
    (
        403,
        "Invalid Host header - possible DNS rebinding attack detected",
        "the MLflow server at {uri} refuses the host name it is called by (its guard against DNS "
        "rebinding). Start it with `sweep server --allow-host 127.0.0.1` (of `mlflow server` "
        'itself: --allowed-hosts "{host}").',
    ),
    (
        404,
        "<html>not MLflow</html>",
        "MLflow at {uri} refuses: API request to endpoint /api/2.0/mlflow/experiments/search "
        "failed with error code 404 != 200. Response body: '<html>not MLflow</html>'",
    ),
]


@pytest.mark.parametrize(("status", "body", "message"), REFUSALS)
def test_a_server_that_refuses_is_explained(status: int, body: str, message: str) -> None:
    """With the status and body that MLflow's own server answers with."""

    class Refuse(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refuse) as refusing:
        thread = threading.Thread(target=refusing.serve_forever)
        thread.start()
        host = f"127.0.0.1:{refusing.server_port}"
        try:
            with pytest.raises(TrackingError) as caught:
                check(f"http://{host}")
        finally:
            refusing.shutdown()
            thread.join()

    assert str(caught.value) == message.format(uri=f"http://{host}", host=host)


def test_credentials_are_never_shown() -> None:
    assert public("https://ada:secret@example.org:5000/x") == "https://***@example.org:5000/x"
    assert public("postgresql://db/runs?user=ada&password=secret&sslmode=require") == (
        "postgresql://db/runs?user=ada&password=***&sslmode=require"
    )
    assert public("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"


def test_the_result_counts_what_was_removed() -> None:
    assert str(Projection("http://h", "e", "1", 2, 3, 4)) == (
        "MLflow experiment 'e' at http://h is up to date: 2 runs written, 3 unchanged, 4 removed"
    )
