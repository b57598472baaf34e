"""docs/reproduction.md: what the small twins show of the paper's findings, whichever way they fall.

    python -m benchmarks.reproduction              run what has no results yet, then write the page
    python -m benchmarks.reproduction --only-page  from the results that are there

Every number on the page is computed here from the results folders; no sentence says what they show.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import reproduction_page
from benchmarks.bare import REPOSITORY

TWINS = (
    "modular_addition_grokking_small",
    "modular_addition_decay_small",
    "modular_addition_most_data_small",
    "modular_addition_slingshot_small",
    "image_classification_small",
    "image_generation_small",
    "speech_recognition_small",
    "language_modeling_small",
    "image_classification_decay_small",
    "image_generation_decay_small",
    "speech_recognition_decay_small",
    "language_modeling_decay_small",
    "random_labels_small",
)
RESULTS = REPOSITORY / "results" / "reproduction"


def run(name: str) -> float:
    """Run one sweep as a user would; the seconds it took, start-up included."""
    began = time.monotonic()
    sweep = str(Path(sys.executable).with_name("sweep"))
    command = [sweep, "run", f"sweeps/{name}.yaml", "--set", f"storage={RESULTS}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=os.environ, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    return time.monotonic() - began


def main() -> None:
    """Run the twins, one after the other, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproduction")
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(TWINS))
    parser.add_argument("--only-page", action="store_true", help="run nothing")
    given = parser.parse_args()
    for name in given.names:
        if name not in TWINS:
            parser.error(f"unknown twin {name!r}; there are {', '.join(TWINS)}")
    if not given.only_page:
        for name in given.names or TWINS:
            seconds = run(name)
            print(f"{name}: {seconds:.0f} s", flush=True)
    print(f"written: {reproduction_page.write(RESULTS, TWINS)}")


if __name__ == "__main__":
    main()
