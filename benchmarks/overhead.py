"""What a trial costs beside its training, and where that goes."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import bare, parts, real
from benchmarks.figures import OUT, Figure, Report
from orchestrator import files

FILE = "benchmarks/tiny.yaml"
TINY_MS = 15.0


def measure(*, quick: bool) -> Report:
    """Bare runs before, between and after the real ones: each is compared with its neighbours."""
    overrides = ["seeds=40"] if quick else []
    repeats = 1 if quick else 3
    bares, reals, fsyncs = [bare.run(FILE, overrides)], [], []
    for _ in range(repeats):
        fsyncs.append(fsync_latency())
        reals.append(real.run(FILE, overrides))
        bares.append(bare.run(FILE, overrides))
    beside = [
        (before.seconds_per_trial + after.seconds_per_trial) / 2
        for before, after in itertools.pairwise(bares)
    ]
    split = parts.run(FILE, overrides, trials=20 if quick else 100)
    return Report(
        "overhead",
        quick,
        [
            Figure(
                "a trial through Ray, less a bare one",
                "ms",
                [1000 * (run.seconds_per_trial - b) for run, b in zip(reals, beside, strict=True)],
                most=TINY_MS,
                noise=1000 * bare.noise(bares),
            ),
            Figure(
                "one durable file of 4 KB: write, fsync, link, fsync of the folder", "ms", fsyncs
            ),
            Figure("a bare trial", "ms", [1000 * run.seconds_per_trial for run in bares]),
            Figure(
                "of the overhead, inside `run_group`",
                "ms",
                [1000 * (run.inside - b) for run, b in zip(reals, beside, strict=True)],
            ),
            Figure(
                "of the overhead, between a slot's trials (Ray, driver, commits)",
                "ms",
                [1000 * (run.seconds_per_trial - run.inside) for run in reals],
            ),
            *(Figure(f"`run_group` alone: {what}", "ms", [ms]) for what, ms in split.items()),
        ],
        raw={"bare": list(map(asdict, bares)), "sweep run": list(map(asdict, reals))},
    )


def fsync_latency(repeats: int = 50) -> float:
    """Median milliseconds of `files.publish` of 4 KB on the disk that the stores are on."""
    OUT.mkdir(parents=True, exist_ok=True)
    taken = []
    with tempfile.TemporaryDirectory(dir=OUT) as folder:
        for number in range(repeats):
            before = time.perf_counter()
            files.publish(Path(folder) / str(number), bytes(4096))
            taken.append(time.perf_counter() - before)
    return 1000 * statistics.median(taken)
