"""Bytes of one trial of `sweeps/image_classification.yaml`, beside the files of the reference.

    python -m benchmarks.storage [--snapshots N]

The trial has the model of the paper's size, its groups of measurements and its number of snapshots,
but a step between two of them instead of 352: what a snapshot takes does not depend on that. It is
trained on digits with batches of four.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.bare import REPOSITORY, environment_of_a_worker
from benchmarks.figures import Figure, Report

SNAPSHOTS = 169
"""Of the full sweep file."""

REFERENCE = 31.2e9
"""Bytes of one VGG trial of the reference: 20.0 GB of checkpoints and 11.2 GB of evaluations,
computed from shapes and counts."""

TIMES_SMALLER = 500
"""The claim: the reference's bytes are at least so many times ours."""


def measure(*, quick: bool) -> Report:
    """One trial; a quick one of 9 snapshots, which says nothing of all 169 beside the reference."""
    snapshots = 9 if quick else SNAPSHOTS
    sizes = bytes_of_a_trial(snapshots)
    total = sum(sizes.values())
    figures = [
        Figure(f"results of a trial of {snapshots} snapshots", "MB", [total / 1e6]),
        Figure("results, per snapshot", "kB", [total / snapshots / 1e3]),
        Figure("scratch of a trial of 169 snapshots while it runs", "GB", [scratch() / 1e9]),
    ]
    if not quick:
        ratio = [REFERENCE / total]
        figures.insert(
            0, Figure("files of the reference / results", "", ratio, least=TIMES_SMALLER)
        )
    return Report("storage", quick, figures, raw=dict(sizes))


def bytes_of_a_trial(snapshots: int) -> dict[str, int]:
    """Bytes per folder of the results of one trial, which is trained and measured for it."""
    last = snapshots - 1
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            "seeds=1",
            "base.data=digits",
            "base.batch_size=4",
            "base.schedule=constant",
            "base.milestones=[]",
            f"base.steps={last}",
            "snapshots={every: 1}",
            f"measure.pruned={{at: [{last}]}}",
            "tracking=none",
            f"storage={folder}",
        ]
        asked = [part for override in overrides for part in ("--set", override)]
        _sweep("run", *asked, "--in-process")
        root = Path(folder) / "image_classification"
        return {
            table: sum(file.stat().st_size for file in (root / table).rglob("*") if file.is_file())
            for table in ("scalars", "spectra", "trials", "factors")
            if (root / table).is_dir()
        }


def scratch() -> int:
    """Bytes of singular vectors that a trial of the full sweep file keeps until it ends."""
    planned: dict[str, int] = json.loads(_sweep("plan", "--json", capture=True))
    return planned["scratch_bytes"]


def _sweep(command: str, *asked: str, capture: bool = False) -> str:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("sweep")),
            command,
            "sweeps/image_classification.yaml",
            *asked,
        ],
        cwd=REPOSITORY,
        env=environment_of_a_worker(),
        check=True,
        stdout=subprocess.PIPE if capture else None,
        text=True,
    )
    return done.stdout or ""


def main() -> None:
    """Run the trial and print bytes by folder, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage")
    parser.add_argument("--snapshots", type=int, default=SNAPSHOTS)
    given = parser.parse_args()
    sizes = bytes_of_a_trial(given.snapshots)
    total = sum(sizes.values())
    report = {
        "snapshots": given.snapshots,
        "bytes": sizes,
        "total": total,
        "reference / ours": REFERENCE / total,
        "scratch while it runs": scratch(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
