"""A task of somebody else's package: built, installed with pip, found by its entry point."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import new_task
from orchestrator.results import Results

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "somebodys-tasks"
version = "3.1"

[project.entry-points."spectral_sweeps.tasks"]
ripples = "somebodys.ripples:Ripples"
broken = "somebodys.nowhere:Broken"

[tool.setuptools]
packages = ["somebodys"]
"""
FILE = """
name: theirs
task: ripples
base: {width: 4, points: 8, steps: 2}
grid: {noise_level: [0.0, 0.2]}
tracking: none
"""
# One process for all commands: importing torch is what takes time.
COMMANDS = """
import sys
from orchestrator import cli
for words in (["tasks"], ["plan", "theirs.yaml"], ["run", "theirs.yaml", "--in-process"]):
    print("=== sweep", *words, flush=True)
    cli.app(words, standalone_mode=False)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed distribution in it; its task is that of `sweep new-task`."""
    folder = tmp_path_factory.mktemp("somebody")
    source, target = folder / "source", folder / "site"
    (source / "somebodys").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "somebodys" / "__init__.py").touch()
    text = new_task.renamed("my_task.py", "ripples")
    (source / "somebodys" / "ripples.py").write_text(text)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *offline, str(source)], check=True)
    return target


def test_an_installed_task_is_listed_planned_and_run(installed: Path, tmp_path: Path) -> None:
    """By its name alone; a broken one beside it is named and harms nobody."""
    (tmp_path / "theirs.yaml").write_text(FILE)
    environ = {**os.environ, "PYTHONPATH": str(installed), "COLUMNS": "200"}

    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    listed, planned, _ = done.stdout.split("=== sweep ")[1:]
    lines = [line.strip() for line in listed.splitlines()]
    at = lines.index("somebodys.ripples:Ripples")
    assert lines[at - 1].startswith("ripples ")
    at = lines.index("somebodys.nowhere:Broken")
    assert lines[at - 1].split(maxsplit=1)[1].startswith("cannot be used: task 'broken' cannot be")
    assert ["task", "Ripples"] in [line.split() for line in planned.splitlines()]
    trials = Results.open(tmp_path / "results" / "theirs").trials()
    assert trials["status"].to_pylist() == ["completed"] * 2
    assert sorted(trials["noise_level"].to_pylist()) == [0.0, 0.2]
