"""Real sweeps, killed for real, run again: the tables equal an undisturbed run's, bit for bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import checkpoints, parse
from orchestrator.store import Store
from tests.stores import canonical

TASK = Path(__file__).parents[1] / "faulty_task.py"
SWEEP = """
name: toy
task: {task}:Faulty
base: {{steps: 6000, width: 8, lr: 1e-3}}
grid: {{weight_decay: [0.0, 1.0]}}
seeds: 2
snapshots: {{every: 500}}
evaluations: {{every: 50}}
checkpoint_seconds: 0.3
tracking: none
"""

SHORT = SWEEP.replace("seeds: 2", "seeds: 1")
"""Two trials, of some seconds each: long enough to be killed at a chosen moment."""


class Sandbox:
    """A folder with a sweep file, a faults folder and the means to run `sweep` in it."""

    def __init__(self, folder: Path, sweep: str = SWEEP) -> None:
        folder.mkdir()
        self.folder = folder
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.root = folder / "results" / "toy"
        shutil.copy(TASK, folder / "faulty_task.py")
        (folder / "toy.yaml").write_text(sweep.format(task="faulty_task.py"))

    def sweep(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "FAULTS": str(self.faults), "STORE": str(self.root)}
        command = [str(Path(sys.executable).with_name("sweep")), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=environ, capture_output=True, text=True, timeout=240
        )

    def copy(self, folder: Path) -> Sandbox:
        """Another one that is as this one is now."""
        made = Sandbox(folder)
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return made

    def order(self, fault: str) -> None:
        (self.faults / fault).touch()

    def struck(self, fault: str) -> bool:
        return (self.faults / f"done-{fault}").exists()

    def start_steps(self) -> list[int]:
        """The first step of every attempt so far, in ascending order."""
        return sorted(int(path.name.split("-")[1]) for path in self.faults.glob("start-*"))

    def tables(self) -> dict[str, list[str]]:
        return canonical(Store.open(self.root))

    def orphans(self) -> set[str]:
        """Shards on disk that no counted commit names."""
        store = Store.open(self.root)
        named = {s["path"] for row in store.outcomes("all")["shards"].to_pylist() for s in row}
        on_disk = {
            str(path.relative_to(self.root))
            for table in ("scalars", "spectra")
            for path in (self.root / table).glob("*.arrow")
        }
        return on_disk - named


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The tables of the same sweep, never killed, in one process without Ray."""
    sandbox = Sandbox(tmp_path_factory.mktemp("undisturbed") / "s")
    done = sandbox.sweep("run", "toy.yaml", "--in-process")
    assert done.returncode == 0, done.stderr
    tables = sandbox.tables()
    assert len(tables["trials"]) == 4
    # 121 evaluations of 2 losses; 13 snapshots of 2 matrices with 24 metrics
    assert len(tables["scalars"]) == 4 * (121 * 2 + 13 * 2 * 24)
    return tables


@pytest.fixture(scope="module")
def undisturbed_short(undisturbed: dict[str, list[str]]) -> dict[str, list[str]]:
    """Likewise of `SHORT`, whose trials are the first seed's."""
    short = parse(SHORT.format(task=TASK.name), base=TASK.parent)
    own = [repr(trial.trial_id) for trial in short.trials()]
    tables = {
        name: [row for row in rows if any(trial_id in row for trial_id in own)]
        for name, rows in undisturbed.items()
    }
    assert len(tables["trials"]) == 2
    return tables


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """`--in-process`, where driver and worker are one and die together; to be copied."""
    sandbox = Sandbox(tmp_path_factory.mktemp("killed") / "s", SHORT)
    sandbox.order("kill-worker")
    assert sandbox.sweep("run", "toy.yaml", "--in-process").returncode == -signal.SIGKILL
    return sandbox


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(
    tmp_path: Path, undisturbed_short: dict[str, list[str]]
) -> None:
    """SIGKILL between checkpoints after a shard was published: resumed at a step > 0, equal."""
    sandbox = Sandbox(tmp_path / "s", SHORT)
    sandbox.order("kill-worker")

    done = sandbox.sweep("run", "toy.yaml", "--workers", "1")

    assert done.returncode == 0, done.stderr
    assert sandbox.struck("kill-worker")
    starts = sandbox.start_steps()
    assert starts[:2] == [0, 0]
    assert len(starts) == 3
    assert starts[2] > 0
    commits = Store.open(sandbox.root).commits()
    assert sorted(commits["status"].to_pylist()) == ["completed"] * 2 + ["lost"]
    assert sandbox.orphans()
    assert sandbox.tables() == undisturbed_short


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_driver_is_continued_by_the_next(
    tmp_path: Path, undisturbed_short: dict[str, list[str]]
) -> None:
    """SIGKILL of the driver; the same command again resumes at once, from the checkpoints."""
    sandbox = Sandbox(tmp_path / "s", SHORT)
    sandbox.order("kill-driver")

    killed = sandbox.sweep("run", "toy.yaml")
    again = sandbox.sweep("run", "toy.yaml")

    assert killed.returncode == -signal.SIGKILL
    assert sandbox.struck("kill-driver")
    assert again.returncode == 0, again.stderr
    assert any(step > 0 for step in sandbox.start_steps())
    assert len(Store.open(sandbox.root).epochs()) == 2
    assert sandbox.tables() == undisturbed_short


@pytest.mark.slow
def test_a_killed_process_without_ray_resumes_too(
    tmp_path: Path, killed: Sandbox, undisturbed_short: dict[str, list[str]]
) -> None:
    """Shards that a checkpoint names become results; the tables are those of a quiet run."""
    sandbox = killed.copy(tmp_path / "s")
    orphans = sandbox.orphans()

    again = sandbox.sweep("run", "toy.yaml", "--in-process")

    assert again.returncode == 0, again.stderr
    assert orphans & sandbox.orphans()  # those that a checkpoint names are results by now
    assert max(sandbox.start_steps()) > 0
    assert sandbox.tables() == undisturbed_short


@pytest.mark.ray
@pytest.mark.slow
def test_ctrl_c_checkpoints_and_the_next_run_continues(
    tmp_path: Path, undisturbed: dict[str, list[str]]
) -> None:
    """The first Ctrl-C stops at checkpoints with exit code 130 and prints what resumes.

    Of four trials, so that some are left however long the signal takes.
    """
    sandbox = Sandbox(tmp_path / "s")
    sandbox.order("interrupt-driver")

    stopped = sandbox.sweep("run", "toy.yaml")
    held = [path.name for path in (sandbox.root / "checkpoints").iterdir()]
    headers = [checkpoints.newest_header(sandbox.root, trial_id) for trial_id in held]
    again = sandbox.sweep("run", "toy.yaml")

    assert stopped.returncode == 130, stopped.stderr
    assert "stopped. To resume: sweep run toy.yaml\n" in stopped.stderr
    assert held
    assert all(header is not None and header.step > 0 for header in headers)
    assert again.returncode == 0, again.stderr
    assert sandbox.tables() == undisturbed


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, killed: Sandbox, undisturbed_short: dict[str, list[str]]
) -> None:
    """If both checkpoints of a trial are damaged it starts over, and the tables are the same."""
    sandbox = killed.copy(tmp_path / "s")
    [folder] = (sandbox.root / "checkpoints").iterdir()
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])

    again = sandbox.sweep("run", "toy.yaml", "--in-process")

    assert again.returncode == 0, again.stderr
    assert sandbox.tables() == undisturbed_short
