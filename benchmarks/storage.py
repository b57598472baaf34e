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

REFERENCE = 31.2e9
"""Bytes of one VGG trial of the reference: 20.0 GB of checkpoints and 11.2 GB of evaluations,
computed from shapes and counts."""


def main() -> None:
    """Run the trial and print bytes by folder, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storage")
    parser.add_argument("--snapshots", type=int, default=169)
    given = parser.parse_args()
    last = given.snapshots - 1
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
        sweep = str(Path(sys.executable).with_name("sweep"))
        file = ["sweeps/image_classification.yaml"]
        for override in overrides:
            file += ["--set", override]
        run = [sweep, "run", *file, "--in-process"]
        subprocess.run(run, cwd=REPOSITORY, env=environment_of_a_worker(), check=True)
        root = Path(folder) / "image_classification"
        sizes = {
            table: sum(file.stat().st_size for file in (root / table).rglob("*") if file.is_file())
            for table in ("scalars", "spectra", "trials", "factors")
            if (root / table).is_dir()
        }
        plan = subprocess.run(
            [sweep, "plan", *file, "--json"],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        )
    total = sum(sizes.values())
    report = {
        "snapshots": given.snapshots,
        "bytes": sizes,
        "total": total,
        "reference / ours": REFERENCE / total,
        "scratch while it runs": json.loads(plan.stdout).get("scratch_bytes"),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
