"""`sweep ui` beside a sweep that is not tracked here: it follows the store by itself."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator import mlflow_follow, mlflow_place
from orchestrator.files import DriverLock
from orchestrator.mlflow_access import only_projector
from orchestrator.mlflow_follow import Follower, Foreign
from orchestrator.mlflow_place import Place, beside, local
from orchestrator.store import Store
from orchestrator.tracking import connect, project
from tests.orchestrator.test_mlflow_service import is_alive
from tests.orchestrator.test_tracking import (
    commit,
    content,
    content_of_running,
    database,
    fakes,
    fresh,
    pending,
    row_counts,
    until,
    without_plots,
)
from tests.servers import SWEEP, clean_environment, descendants, free_port, running_sweep
from tests.stores import commit_row

__all__ = ["database", "fresh", "without_plots"]  # fixtures

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of MLflow's own dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def look(follower: Follower) -> None:
    """Until nothing is left to be done."""
    while not follower._settled:
        assert follower.look() == ""


@pytest.mark.usefixtures("without_plots")
def test_what_others_commit_appears(fresh: Callable[..., Store]) -> None:
    """And in the end the database is what a projection after the fact would have left."""
    store, other = fresh("a", fakes(0, 1), pending), fresh("b", fakes(0, 1))
    follower = Follower(store, beside(store.root))
    look(follower)
    assert content_of_running(store) == [("demo", "KILLED")]

    commit(store, *fakes(0))
    assert follower.look() == ""
    commit(store, *fakes(1))
    assert follower.look() == ""
    look(follower)

    project(other)
    assert content(store) == content(other)


@pytest.mark.usefixtures("without_plots")
def test_a_running_trial_is_shown_while_its_driver_lives(fresh: Callable[..., Store]) -> None:
    """With the rows that it has published; when the driver ends all is as if it had never been."""
    trials = fakes(0)
    store, other = fresh("a", trials, pending), fresh("b", trials)
    driver = DriverLock(store.root / "epochs" / "driver.lock")
    driver.acquire()
    follower = Follower(store, beside(store.root))
    try:
        look(follower)
        shown = content_of_running(store)
        counted = row_counts(store)["metrics"]
        commit(store, trials[0])
        look_once_more(follower)
        half = content_of_running(store)
    finally:
        driver.release()
    commit(store, trials[1])
    look_once_more(follower)

    assert sorted(shown) == [
        ("demo", "RUNNING"),
        ("weight_decay=0.0 seed=0", "RUNNING"),
        ("weight_decay=1.0 seed=0", "RUNNING"),
    ]
    assert counted == 2 * 4 * 6  # trials, steps, curves
    assert sorted(half) == [
        ("demo", "RUNNING"),
        ("weight_decay=0.0 seed=0", "FINISHED"),
        ("weight_decay=1.0 seed=0", "RUNNING"),
    ]
    project(other)
    assert content(store) == content(other)


def look_once_more(follower: Follower) -> None:
    assert follower.look() == ""
    look(follower)


@pytest.mark.usefixtures("without_plots")
def test_new_rows_of_a_running_trial_are_added(fresh: Callable[..., Store]) -> None:
    [trial, _] = fakes(0)
    early = replace(trial, status="running", steps=(0, 1))
    store = fresh("a", [early, fakes(0)[1]], pending)
    driver = DriverLock(store.root / "epochs" / "driver.lock")
    driver.acquire()
    follower = Follower(store, beside(store.root))
    try:
        look(follower)
        commit_row(store.root, replace(trial, status="running", steps=(10, 100)))
        look_once_more(follower)
    finally:
        driver.release()

    ledger = connect(store)
    run_id = ledger.runs["trial", trial.trial_id].run_id
    history = ledger.client.get_metric_history(run_id, "train/loss")
    assert sorted(point.step for point in history) == [0, 1, 10, 100]


@pytest.mark.usefixtures("without_plots")
def test_a_driver_whose_heart_stands_still_is_thought_dead(
    fresh: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, on a machine whose processes cannot be seen from here."""
    store = fresh("a", fakes(0), pending)
    lock = store.root / "epochs" / "driver.lock"
    lock.write_text('{"beat": "1.7", "ended": false, "host": "elsewhere", "pid": 1}')
    follower = Follower(store, beside(store.root))
    look(follower)
    during = dict(content_of_running(store))

    monkeypatch.setattr(mlflow_follow, "SILENCE_SECONDS", 0.0)
    look_once_more(follower)

    assert set(during.values()) == {"RUNNING"}
    assert set(dict(content_of_running(store)).values()) == {"KILLED"}


@pytest.mark.usefixtures("without_plots")
def test_a_look_at_an_unchanged_store_reads_nothing(
    fresh: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    follower = Follower(store := fresh("a", fakes(0)), beside(store.root))
    look(follower)
    reads: list[Store] = []

    def counted(store: Store) -> Any:
        reads.append(store)
        return make(store)

    make = mlflow_follow.make_plan
    monkeypatch.setattr(mlflow_follow, "make_plan", counted)
    for _ in range(3):
        follower.look()

    assert reads == []
    (store.root / "trials" / "something").touch()
    follower.look()
    assert reads == [store]


@pytest.mark.usefixtures("without_plots")
def test_whoever_else_projects_comes_first(fresh: Callable[..., Store]) -> None:
    """While another holds the lock nothing is written; when it is free the follower takes over."""
    store, other = fresh("a", fakes(0)), fresh("b", fakes(0))
    follower = Follower(store, beside(store.root))
    before = row_counts(store)

    with only_projector(store):
        assert follower.look() == ""
        during = row_counts(store)
    look(follower)

    project(other)
    assert during == before
    assert content(store) == content(other)


@pytest.mark.usefixtures("without_plots")
def test_runs_that_another_process_wrote_meanwhile_are_not_written_twice(
    fresh: Callable[..., Store],
) -> None:
    store, other = fresh("a", fakes(0, 1), pending), fresh("b", fakes(0, 1))
    follower = Follower(store, beside(store.root))
    look(follower)
    commit(store, *fakes(0), *fakes(1))
    project(store)
    lock = beside(store.root).lock
    lock.write_bytes(b'{"pid": 1, "host": "elsewhere"}'.ljust(512))  # as if not by this process
    rows = row_counts(store)

    look_once_more(follower)

    project(other)
    assert row_counts(store) == rows
    assert content(store) == content(other)


@pytest.mark.usefixtures("without_plots")
def test_trouble_is_told_once_and_tried_again(fresh: Callable[..., Store]) -> None:
    store = fresh("a", fakes(0))
    follower = Follower(store, beside(store.root))
    [segment] = (store.root / "trials").iterdir()
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-1])

    first, second = follower.look(), follower.look()

    assert first.startswith(f"not up to date: {segment} is damaged: ")
    assert second == ""
    segment.write_bytes(whole)
    look(follower)
    assert len(content(store)) == 3


# --- where the database lies ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "lustre", "fuse.sshfs", "9p"])
def test_on_a_network_file_system_the_database_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(mlflow_place, "filesystem", lambda path, mounts: kind)

    found = local(tmp_path, "0123")

    assert found.folder == tmp_path / "cache" / "spectral-sweeps" / "0123"
    assert found.folder.is_dir()
    assert found.why == f"{tmp_path} lies on a network file system ({kind})"


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuseblk", ""])
def test_elsewhere_it_is_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(mlflow_place, "filesystem", lambda path, mounts: kind)

    assert local(tmp_path, "0123") == beside(tmp_path)


def test_results_of_somebody_else_are_shown_without_writing_to_them(
    fresh: Callable[..., Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even plots, which the sweep's own run is then without."""
    store = fresh("a", fakes(0, 1))
    (store.root / "mlflow.db").rename(tmp_path / "mlflow.db")
    place = Place(tmp_path, f"{store.root} cannot be written to")
    before = sorted(path for path in store.root.rglob("*"))

    follower = Follower(store, place)
    look(follower)

    assert isinstance(follower.store, Foreign)
    assert sorted(path for path in store.root.rglob("*")) == before
    ledger = connect(store, place=place)
    note = ledger.parent().tags["mlflow.note.content"]
    assert note.endswith(f"No plots and no tables: {store.root} cannot be written to.\n")
    assert len(ledger.runs) == 7


# --- the command ----------------------------------------------------------------------------------

FILE = """
name: toy
task: held_task.py:Held
base: {steps: 2000, width: 8, lr: 1e-3}
grid: {weight_decay: [0.0, 1.0]}
snapshots: {log_spaced: 8}
evaluations: {every: 50}
tracking: none
"""


@pytest.mark.slow
def test_the_ui_follows_a_sweep_that_is_not_tracked(tmp_path: Path) -> None:
    """A run is there while its trial trains and finished after it; a SIGKILL leaves nothing.

    Where other machines can reach it, it says what they can do.
    """
    from mlflow import MlflowClient

    port = free_port()
    uri = f"http://127.0.0.1:{port}"

    def statuses() -> dict[str, str]:
        experiment = MlflowClient(uri).get_experiment_by_name("toy")
        runs = MlflowClient(uri).search_runs([experiment.experiment_id])
        return {run.info.run_name: run.info.status for run in runs if run.data.metrics}

    with running_sweep(tmp_path / "s", FILE) as sweep:
        root = tmp_path / "s" / "results" / "toy"
        until(lambda: list(root.glob("scalars/*.arrow")))
        ui = subprocess.Popen(
            [SWEEP, "ui", str(root), "--host", "0.0.0.0", "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        try:
            assert ui.stdout is not None
            said = [ui.stdout.readline(), ui.stdout.readline()]
            until(lambda: statuses() == {"weight_decay=0.0 seed=0": "RUNNING"})
            still_running = sweep.poll() is None
            (tmp_path / "s" / "go").touch()
            assert sweep.wait(120) == 0
            until(lambda: list(statuses().values()) == ["FINISHED"] * 2)
            below = descendants(ui.pid)
        finally:
            ui.send_signal(signal.SIGKILL)
            told = ui.communicate(timeout=60)[1]

    assert "\nNo password: whoever reaches this port can change and delete everything.\n" in told
    assert said[0].startswith(f"runs:   {uri}/#/experiments/1/runs?")
    assert still_running
    assert len(below) >= 2
    until(lambda: not any(is_alive(pid) for pid in below))
