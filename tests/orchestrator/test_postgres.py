"""A real MLflow server with passwords on a real PostgreSQL database, and sweeps tracked to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.store import Store
from orchestrator.tracking import project
from tests.orchestrator.test_resume import Sandbox
from tests.orchestrator.test_tracking import content
from tests.postgres import Postgres, postgres
from tests.servers import Started, sweep_server

__all__ = ["postgres"]  # a fixture

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of MLflow's own dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
FILE = """
name: toy
task: {{task}}:Faulty
base: {{{{steps: {steps}, width: 8, lr: 1e-3}}}}
grid: {{{{weight_decay: [0.0, 1.0]}}}}
seeds: 2
snapshots: {{{{log_spaced: 8}}}}
evaluations: {{{{every: 50}}}}
tracking: {{{{uri: "{uri}", experiment: {experiment}}}}}
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
    file = FILE.format(steps=400, uri=server.uri, experiment="complete")
    sandbox = Sandbox(tmp_path / "s", file)
    with monkeypatch.context() as patch:
        for name, value in server.credentials.items():
            patch.setenv(name, value)

        done = sandbox.sweep("run", "toy.yaml", "--in-process")
        rows = postgres.row_counts("runs")
        again = sandbox.sweep("track", "results/toy")

        store = Store.open(sandbox.root)
        on_server = content(store, server.uri, "complete")
    project(store)
    assert (done.returncode, again.returncode) == (0, 0), done.stderr + again.stderr
    assert "tracking:" not in done.stderr
    assert on_server == content(store)
    assert len(on_server) == 1 + 4 + 2
    assert [artifact for artifact in on_server[0][8] if artifact.startswith("plots/")]
    assert "0 runs written, 7 unchanged" in again.stdout
    assert postgres.row_counts("runs") == rows
    assert rows["runs"] == 7
