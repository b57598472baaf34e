"""A real MLflow server with passwords on a real PostgreSQL database, and sweeps tracked to it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.mlflow_database import store_uri
from orchestrator.store import Store
from orchestrator.tracking import project
from tests.browser import chromium
from tests.orchestrator.test_resume import Sandbox
from tests.orchestrator.test_tracking import content, until
from tests.postgres import Postgres, postgres
from tests.servers import Started, running_sweep, sweep_server

__all__ = ["postgres"]  # a fixture

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of MLflow's own dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FILE = """
name: toy
task: {task}
base: {{steps: {steps}, width: 8, lr: 1e-3}}
grid: {{weight_decay: [0.0, 1.0]}}
seeds: {seeds}
snapshots: {{log_spaced: 8}}
evaluations: {{every: 50}}
tracking: {{uri: "{uri}", experiment: {experiment}}}
"""


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("server") / "mlflow-server"
    with sweep_server(folder, "--store", postgres.create("runs")) as started:
        yield started


@pytest.mark.slow
def test_a_sweep_is_complete_in_postgresql_and_equal_to_what_sqlite_holds(
    tmp_path: Path,
    server: Started,
    postgres: Postgres,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every run with every point, parameter, tag and artifact; projecting again changes no row."""
    settings = {"task": "faulty_task.py:Faulty", "steps": 400, "seeds": 2}
    file = FILE.format(**settings, uri=server.uri, experiment="complete")
    sandbox = Sandbox(tmp_path / "s", file.replace("{", "{{").replace("}", "}}"))
    with monkeypatch.context() as patch:
        for name, value in server.credentials.items():
            patch.setenv(name, value)

        done = sandbox.sweep("run", "toy.yaml", "--in-process")
        rows = postgres.row_counts("runs")
        store = Store.open(sandbox.root)
        again = project(store, uri=server.uri, experiment="complete")

        on_server = content(store, server.uri, "complete")
    project(store)
    assert done.returncode == 0, done.stderr
    assert "tracking:" not in done.stderr
    assert on_server == content(store)
    assert len(on_server) == 1 + 4 + 2
    assert [artifact for artifact in on_server[0][8] if artifact.startswith("plots/")]
    assert (again.written, again.unchanged, again.removed) == (0, 7, 0)
    assert postgres.row_counts("runs") == rows
    assert rows["runs"] == 7


@pytest.mark.slow
def test_the_ui_shows_a_sweep_that_is_running_and_that_it_has_ended(
    tmp_path: Path, server: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a browser, with the password, while the sweep is running in the background."""
    from mlflow import MlflowClient

    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)
    client = MlflowClient(tracking_uri=server.uri)
    token = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
    settings = {"task": "held_task.py:Held", "steps": 4000, "seeds": 1}
    file = FILE.format(**settings, uri=server.uri, experiment="live")

    def with_curves() -> dict[str, str]:
        """Name -> id of the runs that have any."""
        experiment = client.get_experiment_by_name("live")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        return {run.info.run_name: run.info.run_id for run in runs if run.data.metrics}

    with (
        running_sweep(tmp_path / "s", file, **server.credentials) as sweep,
        chromium(tmp_path, {"Authorization": f"Basic {token}"}) as browser,
    ):
        [(name, run_id)] = until(with_curves).items()
        experiment_id = client.get_experiment_by_name("live").experiment_id
        page = f"{server.uri}/#/experiments/{experiment_id}/runs"

        browser.open(f"{page}?workflowType=machine_learning")
        runs = browser.until(lambda text: "2 matching runs" in text and "\ntoy\n" in text)
        browser.screenshot(tmp_path / "runs.png")
        browser.open(f"{page}/{run_id}")
        during = browser.until(lambda text: "\nStatus\n" in text and "train/loss" in text)
        browser.screenshot(tmp_path / "during.png")
        still_running = sweep.poll() is None
        (tmp_path / "s" / "go").touch()
        code = sweep.wait(120)
        browser.open(f"{page}/{run_id}")
        after = browser.until(lambda text: "\nStatus\n" in text and "train/loss" in text)
        browser.screenshot(tmp_path / "after.png")

    assert (still_running, code) == (True, 0)
    assert name == "weight_decay=0.0 seed=0"
    assert "\nExperiments\nlive\n" in runs
    assert f"\n{name}\n" in during
    assert "\nStatus\nRunning\n" in during
    assert "\nStatus\nFinished\n" in after


# --- databases that do not work -------------------------------------------------------------------


def refusal(uri: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        store_uri(uri, folder)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_wrong_password_of_the_database_is_refused_and_not_shown(
    postgres: Postgres, tmp_path: Path
) -> None:
    right = postgres.create("guarded", "right")

    told = refusal(right.replace("right", "wr0ng"), tmp_path)

    place = f"postgresql://***@127.0.0.1:{postgres.port}/guarded"
    server = f'connection to server at "127.0.0.1", port {postgres.port} failed'
    assert told == (
        f"cannot open the database {place}: {server}: FATAL: password authentication failed for "
        'user "guarded". Correct user name and password in --store, or set PGPASSWORD or ~/.pgpass.'
    )
    assert store_uri(right, tmp_path) == right.replace("postgresql:", "postgresql+psycopg2:")


def test_a_database_that_does_not_exist_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    uri = postgres.create("there")

    told = refusal(f"{uri.rpartition('/')[0]}/nowhere", tmp_path)

    assert told.endswith(
        'FATAL: database "nowhere" does not exist. Create it first: CREATE DATABASE, '
        "CREATE ROLE ... LOGIN PASSWORD."
    )


def test_a_user_who_may_not_create_tables_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    """Since PostgreSQL 15 that is every user but the database's owner."""
    postgres.create("owner")
    guest = f"{postgres.create('guest').rpartition('/')[0]}/owner"
    postgres.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC", "owner")

    told = refusal(guest, tmp_path)

    assert told == (
        "the user guest may not create tables in "
        f"postgresql://***@127.0.0.1:{postgres.port}/owner. As its owner or as a superuser: "
        'GRANT CREATE ON SCHEMA public TO "guest"'
    )
