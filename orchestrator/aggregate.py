"""Statistics over seeds: pure functions of the `trials` and `scalars` tables.

The unit of inference is the trial. A mean is taken over the seeds of one configuration at one step
for one subject and metric, and over nothing else: never over matrices, never over configurations.
Only completed trials enter it. Diverged and pruned ones end early by nature; they are counted
beside the mean, because leaving them out silently would flatter the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import stats

from orchestrator.comparable import Rows, completed_rows, level_order, starts_of
from orchestrator.errors import IncomparableTrialsError as IncomparableTrialsError  # also from here
from orchestrator.fits import Floats, Ints
from orchestrator.schemas import GENERALISES_BELOW, RESULTS

OVER_SEEDS = pa.schema(
    [
        ("config_id", pa.string()),
        ("step", pa.int64()),
        ("subject", pa.string()),
        ("metric", pa.string()),
        ("n", pa.int64()),
        ("mean", pa.float64()),
        ("sd", pa.float64()),
        ("lower", pa.float64()),
        ("upper", pa.float64()),
        ("n_flagged", pa.int64()),
        ("n_diverged", pa.int64()),
        ("n_pruned", pa.int64()),
    ]
)
NORMALISED_RANK = "effective_rank/normalised"


def over_seeds(trials: pa.Table, scalars: pa.Table) -> pa.Table:
    """Mean, spread and 95 % Student-t interval over seeds.

    Args:
        trials: columns trial_id, config_id, seed, status.
        scalars: the table `scalars` of docs/results.md.

    Returns:
        A table of schema `OVER_SEEDS`, one row per (config_id, step, subject, metric) that
        completed trials recorded, sorted by config_id, subject, metric, step. `sd` (ddof = 1) and
        the interval are null below n = 2. Flagged rows keep their value and are counted in
        `n_flagged`; a NaN among the values makes the mean NaN. `n_diverged` and `n_pruned` count
        the trials of the configuration that are left out, the same at every step. A configuration
        without a completed trial has no rows here; `final_table` lists it.

    Raises:
        IncomparableTrialsError: see `comparable.completed_rows`.
    """
    rows = completed_rows(trials, scalars)
    config = rows.config[rows.trial]
    starts = starts_of(config, rows.of_series, rows.step)
    n, mean, sd = moments(rows.value, starts)
    lower, upper = t_interval(mean, sd, n)
    alone = n < 2
    left_out = [count_of(trials, status) for status in ("diverged", "pruned")]
    return pa.table(
        [
            rows.config_id_of(config[starts]),
            rows.step[starts],
            *rows.names_of(rows.of_series[starts]),
            n,
            mean,
            pa.array(sd, mask=alone),
            pa.array(lower, mask=alone),
            pa.array(upper, mask=alone),
            sums(rows.flagged.astype(np.int64), starts),
            *(
                np.array([count.get(c, 0) for c in rows.config_ids], np.int64)[config[starts]]
                for count in left_out
            ),
        ],
        schema=OVER_SEEDS,
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds; `sd` and the 95 % Student-t interval are None below n = 2."""

    n: int
    mean: float
    sd: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True)
class FinalRow:
    """One configuration at the end of a sweep.

    Attributes:
        config_id: the configuration.
        parameters: name -> value, of the parameters asked for.
        n_completed: completed trials, likewise `n_diverged`, `n_pruned`.
        n_generalised: trials that generalised, None if no validation error is judged.
        n_judged: out of how many: completed and diverged ones (which did not generalise). Pruned
            ones were never let to show it and are not judged.
        val: metric of the task -> its value on the split val at the last step; empty without a
            completed trial.
        ranks: subject -> normalised effective rank at the last step.
    """

    config_id: str
    parameters: Mapping[str, Any]
    n_completed: int
    n_diverged: int
    n_pruned: int
    n_generalised: int | None
    n_judged: int | None
    val: Mapping[str, Estimate]
    ranks: Mapping[str, Estimate]


def final_table(
    trials: pa.Table,
    scalars: pa.Table,
    parameters: Sequence[str] = (),
    *,
    threshold: float | None = GENERALISES_BELOW,
) -> list[FinalRow]:
    """The table printed at the end of a sweep: one row per configuration, sorted by `parameters`.

    A completed trial *generalised* if the minimum of its validation error over the last tenth of
    its steps (recorded steps >= 0.9 of its last one) is below `threshold`, a fraction in [0, 1];
    None: trials are not judged.

    Raises:
        IncomparableTrialsError: see `comparable.completed_rows`.
    """
    is_rank = pc.equal(scalars["metric"], NORMALISED_RANK)
    pruned_model = pc.match_substring(scalars["metric"], "/kept_")
    val = pc.and_not(pc.equal(scalars["subject"], "val"), pc.or_(pruned_model, is_rank))
    known = pc.is_in(scalars["trial_id"], value_set=trials["trial_id"])
    error = pc.and_(pc.and_(val, pc.equal(scalars["metric"], "error")), known)
    judged = threshold is not None and bool(pc.any(error).as_py())
    scalars = scalars.filter(pc.or_(val, is_rank))
    generalised = dict[str, int]()
    if threshold is not None and judged:
        generalised = _generalised(completed_rows(trials, scalars), threshold)

    last: dict[str, dict[tuple[str, str], Estimate]] = {}
    for row in over_seeds(trials, scalars).to_pylist():  # steps ascend: the last one stays
        estimate = Estimate(**{name: row[name] for name in ("n", "mean", "sd", "lower", "upper")})
        last.setdefault(row["config_id"], {})[row["subject"], row["metric"]] = estimate

    counts = [count_of(trials, status) for status in RESULTS]
    values: dict[str, dict[str, Any]] = {}
    for row in trials.select(["config_id", *parameters]).to_pylist():
        values.setdefault(row.pop("config_id"), row)
    table = []
    for config_id in sorted(values, key=lambda c: (*map(level_order, values[c].values()), c)):
        completed, diverged, pruned = (count.get(config_id, 0) for count in counts)
        if completed + diverged + pruned == 0:
            continue
        ends = last.get(config_id, {})
        table.append(
            FinalRow(
                config_id=config_id,
                parameters=values[config_id],
                n_completed=completed,
                n_diverged=diverged,
                n_pruned=pruned,
                n_generalised=generalised.get(config_id, 0) if judged else None,
                n_judged=completed + diverged if judged else None,
                val={m: end for (_, m), end in ends.items() if m != NORMALISED_RANK},
                ranks={s: end for (s, metric), end in ends.items() if metric == NORMALISED_RANK},
            )
        )
    return table


def val_metrics(rows: Sequence[FinalRow]) -> list[str]:
    """The metrics on val of some configurations: error rates first, the loss last."""
    names = dict.fromkeys(name for row in rows for name in row.val)
    return sorted(names, key=lambda name: (name == "loss", name != "error", name))


def t_interval(mean: Floats, sd: Floats, n: Ints, level: float = 0.95) -> tuple[Floats, Floats]:
    """Student-t interval of a mean: mean -+ t_{(1 + level) / 2, n - 1} sd / sqrt(n).

    Covers `level` exactly if the values are independent and normal; NaN where n < 2. (The
    percentile bootstrap, the usual alternative, covers only 75 % at n = 3.)
    """
    sizes, index = np.unique(n, return_inverse=True)  # one quantile per n: ppf is slow
    quantiles = np.array([stats.t.ppf((1 + level) / 2, k - 1) if k > 1 else np.nan for k in sizes])
    with np.errstate(invalid="ignore", divide="ignore"):
        half = quantiles[index] * sd / np.sqrt(n) if n.size else np.zeros(0)
        return mean - half, mean + half


def moments(values: Floats, starts: Ints) -> tuple[Ints, Floats, Floats]:
    """n, mean and sd (ddof = 1, NaN below n = 2) of consecutive runs of `values`."""
    n = np.diff(starts, append=values.size)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):  # inf and NaN are results
        mean = sums(values, starts) / n
        sd = np.sqrt(sums((values - np.repeat(mean, n)) ** 2, starts) / (n - 1))
    return n, mean, np.where(n < 2, np.nan, sd)


def sums(values: NDArray[Any], starts: Ints) -> NDArray[Any]:
    """The sum of each consecutive run of `values`."""
    return np.add.reduceat(values, starts) if starts.size else values[:0]


def count_of(trials: pa.Table, status: str) -> dict[str, int]:
    """config_id -> number of its trials with this status; only configurations that have any."""
    config_ids = trials.filter(pc.equal(trials.column("status"), status)).column("config_id")
    return {count["values"]: count["counts"] for count in pc.value_counts(config_ids).to_pylist()}


def _generalised(rows: Rows, threshold: float) -> dict[str, int]:
    """config_id -> number of completed trials that generalised."""
    if ("val", "error") not in rows.series:  # every trial diverged
        return {}
    is_error = rows.of_series == rows.series.index(("val", "error"))
    trial, step, value = rows.trial[is_error], rows.step[is_error], rows.value[is_error]
    last = np.zeros(rows.trials.num_rows, np.int64)
    np.maximum.at(last, trial, step)
    late = (10 * step >= 9 * last[trial]) & (value < threshold)  # NaN is below nothing
    config = rows.config[np.unique(trial[late])]
    return {rows.config_ids[c]: int(np.sum(config == c)) for c in np.unique(config)}
