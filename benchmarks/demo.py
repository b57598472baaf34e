"""How much of a slot's time is training: the demo through Ray, with tracking, against bare."""

from __future__ import annotations

from dataclasses import asdict
from statistics import mean

from benchmarks import bare, real
from benchmarks.figures import Figure, Report

FILE = "sweeps/grokking.yaml"


def measure(*, quick: bool) -> Report:
    """Bare runs before, between and after the real ones: each is compared with its neighbours."""
    overrides = ["base.steps=600", "seeds=2"] if quick else []
    repeats = 1 if quick else 3
    bares, reals = [bare.run(FILE, overrides)], []
    for _ in range(repeats):
        reals.append(real.run(FILE, overrides))
        bares.append(bare.run(FILE, overrides))
    efficiencies = [
        run.efficiency(
            {
                trial_id: (timed.total + after.trials[trial_id].total) / 2
                for trial_id, timed in before.trials.items()
            }
        )
        for run, before, after in zip(reals, bares[:-1], bares[1:], strict=True)
    ]
    # What a fresh process still has to do when its first trial begins: build it, measure step 0.
    first_step = mean(process[0].first_step for run in bares for process in run.processes)
    lags = [run.tracking_lag for run in reals if run.tracking_lag is not None]
    return Report(
        "demo",
        quick,
        [
            Figure(
                "per slot, bare time / (last end - first start), the worse slot",
                "",
                [min(each) for each in efficiencies],
                least=0.85,
                noise=bare.noise(bares) / mean(run.seconds_per_trial for run in reals),
            ),
            Figure("the same, the better slot", "", [max(each) for each in efficiencies]),
            Figure("bare, per trial", "s", [run.seconds_per_trial for run in bares]),
            Figure("`sweep run`, per trial of a slot", "s", [r.seconds_per_trial for r in reals]),
            Figure(
                "`sweep run`, from the command to the first optimiser step",
                "s",
                [run.first_start + first_step for run in reals],
            ),
            Figure("MLflow complete, after the last commit", "s", lags),
            Figure("`sweep run`, the whole command", "s", [run.command for run in reals]),
        ],
        raw={"bare": list(map(asdict, bares)), "sweep run": list(map(asdict, reals))},
    )
