"""What measuring costs: snapshots against the optimiser steps of the same trials."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks import bare
from benchmarks.demo import FILE
from benchmarks.figures import Figure, Report


def measure(*, quick: bool) -> Report:
    """Both are timed inside the same trial, so a busy machine slows both."""
    overrides = ["base.steps=600"] if quick else []
    runs = [
        bare.run(FILE, overrides, trials=2 if quick else 4, rows=True)
        for _ in range(1 if quick else 3)
    ]
    trials = [trial for run in runs for trial in run.trials.values()]
    return Report(
        "snapshots",
        quick,
        [
            Figure(
                "snapshots / optimiser steps of the same trial",
                "%",
                [100 * trial.snapshots / trial.training for trial in trials],
                most=3.0,
            ),
            Figure(
                "evaluations / optimiser steps of the same trial",
                "%",
                [100 * trial.evaluation / trial.training for trial in trials],
            ),
            Figure("snapshots of one trial", "ms", [1000 * trial.snapshots for trial in trials]),
            Figure("optimiser steps of one trial", "s", [trial.training for trial in trials]),
        ],
        raw={"bare": list(map(asdict, runs))},
    )
