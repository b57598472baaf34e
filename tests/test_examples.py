"""The examples of recording run as they stand, each in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from orchestrator import Results

ROOT = Path(__file__).parents[1]
NEEDS = {"loop": "torch", "lightning": "lightning", "transformers": "transformers"}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, subprocess.Popen[str]]]:
    """Started together, because each spends most of its time importing."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    found = {}
    for name, package in NEEDS.items():
        if find_spec(package) is None:
            continue
        folder = tmp_path_factory.mktemp(name)
        found[name] = (
            folder,
            subprocess.Popen(
                [sys.executable, str(ROOT / "examples" / f"record_{name}.py")],
                cwd=folder,
                env={**os.environ, **offline, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ),
        )
    return found


@pytest.mark.parametrize(
    ("name", "folder", "trials", "matrices", "snapshots", "losses"),
    [
        ("loop", "recorded", 4, 3, 11, {"train": 11, "val": 11}),
        ("lightning", "lightning", 1, 2, 6, {"train": 5, "val": 5}),
        ("transformers", "transformers", 1, 10, 5, {"train": 4, "val": 2}),
    ],
)
def test_an_example_of_recording_writes_results(
    running: dict[str, tuple[Path, subprocess.Popen[str]]],
    name: str,
    folder: str,
    trials: int,
    matrices: int,
    snapshots: int,
    losses: dict[str, int],
) -> None:
    """Every matrix at every snapshot, and the losses at every step that the example says."""
    if name not in running:
        pytest.skip(f"{NEEDS[name]} is not installed")
    where, process = running[name]
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said

    results = Results.open(where / "results" / folder)
    assert results.trials()["status"].to_pylist() == ["completed"] * trials
    ranks = results.scalars(metric="effective_rank")
    assert len(set(ranks["subject"].to_pylist())) == matrices
    assert ranks.num_rows == trials * matrices * snapshots
    for split, steps in losses.items():
        assert results.scalars(metric="loss", subject=split).num_rows == trials * steps
