"""The same tiny trials under `sweep run` and under Ray Tune: time, MLflow, the driver's memory."""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import bare, real, tune_rival
from benchmarks.bare import Bare
from benchmarks.figures import Figure, Report
from benchmarks.overhead import FILE, TINY_MS
from benchmarks.real import STORAGE, Real
from benchmarks.tune_rival import Tuned
from orchestrator.curves import curve_key
from orchestrator.store import Store

TUNE = {
    "defaults": "Tune's defaults",
    "reuse": "Tune with `reuse_actors=True`",
    "best": "Tune at its best",
}
DEFAULT_TRIALS = 30
"""Under Tune's defaults, at several seconds a trial: what is compared is the time per trial."""
TIMES_FASTER = 20.0

TRACKED_TRIALS = 40
SHORTEST = ("base.steps=1", "snapshots.at=[1]")
"""The shortest trial there is: one step, with a snapshot before and one after it."""
MEMORY_FROM, MEMORY_TO = 2_000, 12_000

Run = Real | Tuned


def measure(*, quick: bool) -> Report:
    """What a trial costs under each system.

    Raises:
        SystemExit: a package is missing that Tune writes its logs with.
    """
    return _report("orchestration", quick, _trials)


def measure_tracking(*, quick: bool) -> Report:
    """How soon MLflow is complete; raises as `measure` does."""
    return _report("tracking", quick, _mlflow)


def measure_memory(*, quick: bool) -> Report:
    """What the driver keeps of each finished trial; raises as `measure` does."""
    return _report("memory", quick, _memory)


def _report(
    name: str, quick: bool, figures: Callable[[dict[str, Any], bool], list[Figure]]
) -> Report:
    if importlib.util.find_spec("tensorboardX") is None:
        raise SystemExit(
            "Tune without tensorboardX is not Tune with its defaults: "
            "pip install -c constraints.txt -e '.[bench]'"
        )
    raw: dict[str, Any] = {}
    found = figures(raw, quick)
    shutil.rmtree(tune_rival.STORAGE)  # a folder for each of thousands of trials
    return Report(name, quick, found, raw=raw)


def _trials(raw: dict[str, Any], quick: bool) -> list[Figure]:
    """Bare runs before, between and after the others: each is compared with its neighbours."""
    trials = 40 if quick else 200
    seeds = [f"seeds={trials}"]
    bares: list[Bare] = [bare.run(FILE, seeds)]
    ours: list[Real] = []
    tuned: dict[str, list[Tuned]] = {variant: [] for variant in TUNE}
    for _ in range(1 if quick else 5):
        ours.append(real.run(FILE, seeds))
        losses = _losses()
        for variant, runs in tuned.items():
            few = (6 if quick else DEFAULT_TRIALS) if variant == "defaults" else trials
            runs.append(tune_rival.run(FILE, seeds, variant=variant, trials=few))
            _same(losses, runs[-1])
        bares.append(bare.run(FILE, seeds))
    raw |= {"bare": _raw(bares), "sweep run": _raw(ours)}
    raw |= {f"tune {variant}": _raw(runs) for variant, runs in tuned.items()}

    beside = [
        (before.seconds_per_trial + after.seconds_per_trial) / 2
        for before, after in itertools.pairwise(bares)
    ]
    noise = bare.noise(bares)

    def over(runs: Sequence[Run]) -> list[float]:
        pairs = zip(runs, beside, strict=True)
        return [1000 * (run.seconds_per_trial - base) for run, base in pairs]

    def ratios(runs: Sequence[Run]) -> list[float]:
        pairs = zip(runs, ours, strict=True)
        return [run.seconds_per_trial / own.seconds_per_trial for run, own in pairs]

    own = median(run.seconds_per_trial for run in ours)
    times = ratios(tuned["defaults"])
    # An overhead that is smaller than the noise is not known: the ratio to it would be anything.
    smallest = max(median(over(ours)), 1000 * noise)
    return [
        Figure(
            "a trial under `sweep run`, less a bare one",
            "ms",
            over(ours),
            most=TINY_MS,
            noise=1000 * noise,
        ),
        Figure(
            "seconds per trial, Tune's defaults / `sweep run`",
            "",
            times,
            least=TIMES_FASTER,
            noise=median(times) * noise / own,
        ),
        *(
            Figure(f"seconds per trial, {TUNE[variant]} / `sweep run`", "", ratios(tuned[variant]))
            for variant in ("reuse", "best")
        ),
        Figure("a bare trial", "s", [run.seconds_per_trial for run in bares]),
        Figure("a trial under `sweep run`", "s", [run.seconds_per_trial for run in ours]),
        *(
            Figure(f"a trial under {TUNE[variant]}", "s", [run.seconds_per_trial for run in runs])
            for variant, runs in tuned.items()
        ),
        *(
            Figure(f"a trial under {TUNE[variant]}, less a bare one", "ms", over(runs))
            for variant, runs in tuned.items()
        ),
        Figure(
            "overhead over bare, Tune's defaults / the larger of `sweep run`'s and the noise",
            "",
            [median(over(tuned["defaults"])) / smallest],
        ),
        Figure("`sweep run`, from the command to the first trial", "s", _starts(ours)),
        Figure(f"{TUNE['best']}, from the command to the first trial", "s", _starts(tuned["best"])),
        Figure(f"`sweep run`, the whole command, {trials} trials", "s", [r.command for r in ours]),
        *(
            Figure(
                f"{TUNE[variant]}, the whole command, {len(runs[0].attempts)} trials",
                "s",
                [run.command for run in runs],
            )
            for variant, runs in tuned.items()
        ),
    ]


def _losses() -> dict[str, float]:
    """Trial -> its last validation loss, from the store that `real.run` has left."""
    [root] = STORAGE.iterdir()
    store = Store.open(root)
    rows = store.scan("scalars", store.outcomes(), subjects=["val"], metrics=["loss"])
    columns = (rows[name].to_pylist() for name in ("trial_id", "step", "value"))
    found: dict[str, tuple[int, float]] = {}
    for trial_id, step, value in zip(*columns, strict=True):
        found[trial_id] = max(found.get(trial_id, (-1, 0.0)), (step, value))
    return {trial_id: value for trial_id, (_, value) in found.items()}


def _same(losses: dict[str, float], run: Tuned) -> None:
    """Both systems have trained the same trials, to the last bit.

    Raises:
        RuntimeError: they have not, so that their times must not be compared.
    """
    for trial_id, loss in run.losses.items():
        if losses.get(trial_id) != loss:
            raise RuntimeError(
                f"trial {trial_id} ends with loss {losses.get(trial_id)} under `sweep run` and "
                f"with {loss} under Tune"
            )


def _starts(runs: Sequence[Run]) -> list[float]:
    return [run.first_start for run in runs]


def _mlflow(raw: dict[str, Any], quick: bool) -> list[Figure]:
    """Tracking on, in both: SQLite, the same curves of every trial."""
    trials = 10 if quick else TRACKED_TRIALS
    overrides = [f"seeds={trials}", "tracking={}"]
    ours: list[Real] = []
    tuned: list[Tuned] = []
    points: dict[str, list[float]] = {"ours": [], "tune": []}
    database = tune_rival.STORAGE / "mlflow.db"
    for _ in range(1 if quick else 5):
        ours.append(real.run(FILE, overrides))
        [root] = STORAGE.iterdir()
        points["ours"].append(_points(root / "mlflow.db", trials, tags="trial_id") / trials)
        tuned.append(
            tune_rival.run(FILE, overrides, variant="reuse", trials=trials, database=database)
        )
        points["tune"].append(_points(database, trials, tags="trial_name") / trials)
    raw |= {"tracked, sweep run": _raw(ours), "tracked, tune": _raw(tuned)}
    name = f"{TUNE['reuse']} and its MLflow callback"
    systems: list[tuple[str, Sequence[Run], str]] = [
        ("`sweep run`", ours, "ours"),
        (name, tuned, "tune"),
    ]
    return [
        *(
            Figure(
                f"MLflow complete, after the last trial's end, {system}",
                "s",
                [_tracked(run) - max(a.ended for a in run.attempts) for run in runs],
            )
            for system, runs, _ in systems
        ),
        *(
            Figure(
                f"{trials} trials, from the first one's start until MLflow is complete, {system}",
                "s",
                [_tracked(run) - min(a.started for a in run.attempts) for run in runs],
            )
            for system, runs, _ in systems
        ),
        *(
            Figure(f"metric values in MLflow, per trial, {system}", "values", points[key])
            for system, _, key in systems
        ),
    ]


def _tracked(run: Run) -> float:
    assert run.tracked is not None
    return run.tracked


def _points(database: Path, trials: int, *, tags: str) -> int:
    """Metric values in MLflow's database, in which every trial must be complete.

    Raises:
        RuntimeError: a trial's run is missing or unfinished, or lacks a value of its losses.
    """
    connection = sqlite3.connect(database)
    try:
        finished = connection.execute(
            "SELECT count(*) FROM runs JOIN tags USING (run_uuid) "
            "WHERE tags.key LIKE ? AND status = 'FINISHED'",
            (f"%{tags}",),
        ).fetchone()[0]
        losses = connection.execute(
            "SELECT count(*) FROM metrics JOIN tags USING (run_uuid) "
            "WHERE tags.key LIKE ? AND metrics.key = ?",
            (f"%{tags}", curve_key("val", "loss")),
        ).fetchone()[0]
        every: int = connection.execute("SELECT count(*) FROM metrics").fetchone()[0]
    finally:
        connection.close()
    if (finished, losses) != (trials, 10 * trials):
        raise RuntimeError(
            f"{database}: {finished} finished runs of {trials} trials, {losses} validation losses"
        )
    return every


def _memory(raw: dict[str, Any], quick: bool) -> list[Figure]:
    """The driver's memory per finished trial, over thousands of the shortest trials."""
    first, last = (100, 600) if quick else (MEMORY_FROM, MEMORY_TO)
    overrides = [f"seeds={last}", *SHORTEST]
    ours: Run = real.run(FILE, overrides, watched=True)
    tuned: Run = tune_rival.run(FILE, overrides, variant="best", trials=last, watched=True)
    slopes, others = [], []
    for system, run in (("`sweep run`", ours), (TUNE["best"], tuned)):
        ended = sorted(attempt.ended for attempt in run.attempts)
        assert run.resident is not None
        slope = run.resident.slope(ended, first, last)
        what = f"the driver's memory per finished trial, {first:,} to {last:,}, {system}"
        slopes.append(Figure(what, "KiB", [slope]))
        most = max(run.resident.kilobytes) / 1024
        what = f"the driver's memory at its largest, summaries included, {system}"
        rate = (last - first) / (ended[-1] - ended[first - 1])
        others.append(Figure(what, "MiB", [most]))
        others.append(Figure(f"these shortest trials, {system}", "trials/s", [rate]))
        raw[f"memory, {system}"] = {"resident": asdict(run.resident), "ended": ended}
    return [*slopes, *others]


def _raw(runs: Sequence[Bare | Run]) -> list[dict[str, Any]]:
    return [asdict(run) for run in runs]
