"""The newcomer's path, shortened: the demo's own file through Ray, with MLflow, then questions."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DECAYS = (0.0, 0.3, 1.0)


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("sweep")), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """`sweep run sweeps/grokking.yaml`, with 60 steps instead of 3,000."""
    folder = tmp_path_factory.mktemp("demo")
    done = sweep(folder, "run", str(ROOT / "sweeps" / "grokking.yaml"), "--set", "base.steps=60")
    return folder, done


pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow]


def test_the_demo_ends_with_its_findings_and_what_to_do_next(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """A table per weight decay, the folder, and the commands that query and watch."""
    folder, done = demo

    assert done.returncode == 0, done.stderr
    assert "[9/9] " in done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["weight_decay"] * 3 in lines
    assert [str(decay) for decay in DECAYS] in lines
    assert ["completed", "3", "3", "3"] in lines
    assert any(line[:2] == ["validation", "error"] and line.count("±") == 3 for line in lines)
    assert sum("±" in line and line[0].startswith("layers.0.") for line in lines) == 7
    root = folder / "results" / "grokking"
    assert f"results: {root}\n" in done.stdout
    assert f"watch:   sweep ui {root}\n" in done.stdout


def test_the_demo_answers_a_question_in_sql(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """One row per weight decay; decay has begun to lower the rank after 60 steps."""
    folder, _ = demo
    sql = (
        "SELECT weight_decay, count(*) AS n, avg(value) AS rank FROM scalars JOIN trials "
        "USING (trial_id) WHERE metric = 'effective_rank/normalised' AND step = 60 "
        "AND subject = 'layers.0.attention.in_proj' GROUP BY 1 ORDER BY 1"
    )

    done = sweep(folder, "query", "results/grokking", sql, "--format", "csv")

    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(float(row["weight_decay"]), int(row["n"])) for row in rows] == [
        (decay, 3) for decay in DECAYS
    ]
    ranks = [float(row["rank"]) for row in rows]
    assert 1 > ranks[0] > ranks[1] > ranks[2] > 0


def test_the_demo_is_complete_in_mlflow_and_stays_as_it_is(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """A run for the sweep, 9 nested for trials, 3 summaries; tracking again changes no row."""
    folder, _ = demo
    path = folder / "results" / "grokking" / "mlflow.db"

    def rows() -> dict[str, int]:
        with sqlite3.connect(path) as database:
            tables = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            names = [name for (name,) in tables.fetchall()]
            counts = ((n, database.execute(f'SELECT count(*) FROM "{n}"')) for n in names)
            return {name: cursor.fetchone()[0] for name, cursor in counts}

    before = rows()
    again = sweep(folder, "track", "results/grokking")

    assert again.returncode == 0, again.stderr
    assert before["runs"] == 13
    assert before["metrics"] > 9 * 12
    assert rows() == before
    assert not (folder / "mlruns").exists()


def test_the_demo_can_be_checked_exported_and_asked_for_its_state(
    demo: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """`verify`, `status`, `plan` and `export` agree that nine trials are there."""
    folder, _ = demo
    file = str(ROOT / "sweeps" / "grokking.yaml")

    verified = sweep(folder, "verify", "results/grokking", "--json")
    state = sweep(folder, "status", "results/grokking", "--json")
    planned = sweep(folder, "plan", file, "--set", "base.steps=60", "--json")
    exported = sweep(folder, "export", "results/grokking", str(tmp_path / "out"))

    assert (verified.returncode, json.loads(verified.stdout)["damage"]) == (0, [])
    assert json.loads(state.stdout)["completed"] == 9
    plan = json.loads(planned.stdout)
    assert (plan["trials"], plan["committed"], plan["remaining"]) == (9, 9, 0)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "out" / "trials.parquet").is_file()


def test_every_sweep_file_of_the_repository_loads() -> None:
    """What stands in sweeps/ is valid, and named after its file."""
    from orchestrator import load

    paths = sorted((ROOT / "sweeps").glob("*.yaml"))

    assert paths
    for path in paths:
        loaded = load(path)
        assert loaded.name == path.stem
        assert loaded.num_trials == sum(1 for _ in loaded.trials())


def test_a_task_of_ones_own_runs_by_its_path(tmp_path: Path) -> None:
    """The 40-line example, copied out of the repository."""
    code = (ROOT / "examples" / "my_task.py").read_text()
    assert len(code.splitlines()) <= 40
    (tmp_path / "my_task.py").write_text(code)
    (tmp_path / "waves.yaml").write_text(
        "name: waves\ntask: my_task.py:Waves\nbase: {steps: 50}\n"
        "grid: {weight_decay: [0.0, 0.1]}\ntracking: none\n"
    )

    done = sweep(tmp_path, "run", "waves.yaml", "--in-process")

    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["waves"]
