"""`python -m benchmarks [name...] [--quick] [--write]`."""

from __future__ import annotations

import argparse
import time
from datetime import UTC, datetime

from benchmarks import (
    bounds,
    demo,
    figures,
    orchestration,
    overhead,
    page,
    snapshots,
    spectra,
    storage,
    tasks,
)

MEASURE = {
    "demo": demo.measure,
    "overhead": overhead.measure,
    "tasks": tasks.measure,
    "snapshots": snapshots.measure,
    "spectra": spectra.measure,
    "bounds": bounds.measure,
    "storage": storage.measure,
    "orchestration": orchestration.measure,
    "tracking": orchestration.measure_tracking,
    "memory": orchestration.measure_memory,
}


def main() -> None:
    """Measure, print the tables, and with --write make docs/benchmarks.md of them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure every speed claim of docs/benchmarks.md."
    )
    parser.add_argument(
        "names", nargs="*", metavar="name", help=f"{', '.join(MEASURE)} (default: all)"
    )
    parser.add_argument("--quick", action="store_true", help="fewer steps and trials, one repeat")
    parser.add_argument(
        "--write", action="store_true", help="write the page, from this and earlier runs"
    )
    given = parser.parse_args()
    for name in given.names:
        if name not in MEASURE:
            parser.error(f"unknown benchmark {name!r}; there are {', '.join(MEASURE)}")
    for name in given.names or MEASURE:
        before, began = figures.others(), time.monotonic()
        print(f"{name}: measuring ...", flush=True)
        report = MEASURE[name](quick=given.quick)
        report.machine = figures.machine()
        report.others = (before, figures.others())
        report.measured_at = datetime.now(UTC).date().isoformat()
        written = report.write()
        print(page.section(report))
        print(f"{name}: {time.monotonic() - began:.0f} s, {written}\n", flush=True)
    if given.write:
        print(f"written: {page.write(list(MEASURE))}")


if __name__ == "__main__":
    main()
