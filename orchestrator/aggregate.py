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

from orchestrator.errors import UserError

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

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class IncomparableTrialsError(UserError, ValueError):
    """Trials that must not be averaged: unequal steps, a seed twice, or a row twice."""


@dataclass(frozen=True)
class Rows:
    """The scalar rows of completed trials as integer codes, checked, in a canonical order.

    Attributes:
        trials: the completed trials (T of them), ordered by config_id and seed, all columns kept.
        config_ids: configurations with a completed trial, sorted.
        config: (T,) index into `config_ids`.
        series: the (subject, metric) pairs that occur, sorted.
        trial: (R,) index into `trials`, as all that follow one entry per row.
        of_series: (R,) index into `series`.
        step: (R,) optimiser steps.
        value: (R,) NaN where the table has null.
        flagged: (R,) whether the row carries any flag.

    Rows are sorted by (config, series, step, seed), so results do not depend on the input's order.
    """

    trials: pa.Table
    config_ids: list[str]
    config: Ints
    series: list[tuple[str, str]]
    trial: Ints
    of_series: Ints
    step: Ints
    value: Floats
    flagged: NDArray[np.bool_]


def completed_rows(trials: pa.Table, scalars: pa.Table) -> Rows:
    """The rows of the completed trials in `trials`; rows of trials that are not there are ignored.

    Raises:
        IncomparableTrialsError: two completed trials of a configuration have the same seed (they
            are no independent repetitions), or recorded a metric at different steps, or a trial has
            two rows for one step.
    """
    done = trials.filter(pc.equal(trials.column("status"), "completed"))
    done = done.sort_by([("config_id", "ascending"), ("seed", "ascending")])
    config, config_ids = encode(done.column("config_id"))
    _require_distinct_seeds(done)

    position = pc.index_in(scalars.column("trial_id"), value_set=done.column("trial_id"))
    scalars = scalars.filter(pc.is_valid(position))
    trial = pc.drop_null(position).to_numpy().astype(np.int64)
    of_subject, subjects = encode(scalars.column("subject"))
    of_metric, metrics = encode(scalars.column("metric"))
    pairs, of_series = np.unique(of_subject * len(metrics) + of_metric, return_inverse=True)
    series = [(subjects[pair // len(metrics)], metrics[pair % len(metrics)]) for pair in pairs]
    step = scalars.column("step").to_numpy().astype(np.int64)
    span = int(step.max(initial=0)) + 1
    key = ((config[trial] * len(series) + of_series) * span + step) * done.num_rows + trial
    order = np.argsort(key, kind="stable")
    rows = Rows(
        trials=done,
        config_ids=config_ids,
        config=config,
        series=series,
        trial=trial[order],
        of_series=of_series[order],
        step=step[order],
        value=scalars.column("value").cast(pa.float64()).to_numpy()[order],
        flagged=pc.is_valid(scalars.column("flag")).to_numpy()[order],
    )
    key = key[order]
    _require_distinct_rows(rows, key)
    _require_equal_steps(rows, starts_of(key // max(done.num_rows, 1)))
    return rows


def over_seeds(trials: pa.Table, scalars: pa.Table) -> pa.Table:
    """Mean, spread and 95 % Student-t interval over seeds.

    Args:
        trials: columns trial_id, config_id, seed, status.
        scalars: the table of design section 6.

    Returns:
        A table of schema `OVER_SEEDS`, one row per (config_id, step, subject, metric) that
        completed trials recorded, sorted by config_id, subject, metric, step. `sd` (ddof = 1) and
        the interval are null below n = 2. Flagged rows keep their value and are counted in
        `n_flagged`; a NaN among the values makes the mean NaN. `n_diverged` and `n_pruned` count
        the trials of the configuration that are left out, the same at every step. A configuration
        without a completed trial has no rows here; `final_table` lists it.

    Raises:
        IncomparableTrialsError: see `completed_rows`.
    """
    rows = completed_rows(trials, scalars)
    config = rows.config[rows.trial]
    starts = starts_of(config, rows.of_series, rows.step)
    n, mean, sd = moments(rows.value, starts)
    lower, upper = t_interval(mean, sd, n)
    alone = n < 2
    of_series = rows.of_series[starts]
    config_ids = pa.array(rows.config_ids, pa.string()).take(pa.array(config[starts]))
    left_out = {status: _count(trials, status) for status in ("diverged", "pruned")}
    return pa.table(
        [
            config_ids,
            rows.step[starts],
            pa.array([pair[0] for pair in rows.series], pa.string()).take(pa.array(of_series)),
            pa.array([pair[1] for pair in rows.series], pa.string()).take(pa.array(of_series)),
            n,
            mean,
            pa.array(sd, mask=alone),
            pa.array(lower, mask=alone),
            pa.array(upper, mask=alone),
            sums(rows.flagged.astype(np.int64), starts),
            *(
                np.array([count.get(c, 0) for c in rows.config_ids], np.int64)[config[starts]]
                for count in left_out.values()
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
        n_generalised: trials that generalised, None if the task has no validation error.
        n_judged: out of how many: completed and diverged ones (which did not generalise). Pruned
            ones were never let to show it and are not judged.
        val_error: at the last step; None without a validation error or a completed trial.
        ranks: subject -> normalised effective rank at the last step.
    """

    config_id: str
    parameters: Mapping[str, Any]
    n_completed: int
    n_diverged: int
    n_pruned: int
    n_generalised: int | None
    n_judged: int | None
    val_error: Estimate | None
    ranks: Mapping[str, Estimate]


def final_table(
    trials: pa.Table,
    scalars: pa.Table,
    parameters: Sequence[str] = (),
    *,
    threshold: float = 0.05,
) -> list[FinalRow]:
    """The table printed at the end of a sweep: one row per configuration, sorted by `parameters`.

    A completed trial *generalised* if the minimum of its validation error over the last tenth of
    its steps (recorded steps >= 0.9 of its last one) is below `threshold`, a fraction in [0, 1].

    Raises:
        IncomparableTrialsError: see `completed_rows`.
    """
    val = pc.and_(pc.equal(scalars.column("subject"), "val"), pc.equal(scalars["metric"], "error"))
    known = pc.is_in(scalars.column("trial_id"), value_set=trials.column("trial_id"))
    has_error = bool(pc.any(pc.and_(val, known)).as_py())
    scalars = scalars.filter(pc.or_(val, pc.equal(scalars.column("metric"), NORMALISED_RANK)))
    generalised = _generalised(completed_rows(trials, scalars), threshold) if has_error else {}

    last: dict[str, dict[tuple[str, str], Estimate]] = {}
    for row in over_seeds(trials, scalars).to_pylist():  # steps ascend: the last one stays
        estimate = Estimate(**{name: row[name] for name in ("n", "mean", "sd", "lower", "upper")})
        last.setdefault(row["config_id"], {})[row["subject"], row["metric"]] = estimate

    counts = {status: _count(trials, status) for status in ("completed", "diverged", "pruned")}
    values: dict[str, dict[str, Any]] = {}
    for row in trials.select(["config_id", *parameters]).to_pylist():
        values.setdefault(row.pop("config_id"), row)
    table = []
    for config_id in sorted(values, key=lambda c: (*map(_sort_key, values[c].values()), c)):
        completed, diverged, pruned = (count.get(config_id, 0) for count in counts.values())
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
                n_generalised=generalised.get(config_id, 0) if has_error else None,
                n_judged=completed + diverged if has_error else None,
                val_error=ends.get(("val", "error")),
                ranks={s: end for (s, metric), end in ends.items() if metric == NORMALISED_RANK},
            )
        )
    return table


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


def starts_of(*keys: Ints) -> Ints:
    """Where each run of equal keys begins, for rows that are sorted by these keys."""
    changed = np.zeros(max(keys[0].size - 1, 0), np.bool_)
    for key in keys:
        changed |= key[1:] != key[:-1]
    return np.flatnonzero(np.concatenate([[keys[0].size > 0], changed])).astype(np.int64)


def encode(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """(codes, labels): the distinct strings of a column in sorted order, and each row's index."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    labels = encoded.dictionary.to_pylist()
    rank = {label: code for code, label in enumerate(sorted(labels))}
    recode = np.array([rank[label] for label in labels], np.int64)
    return recode[encoded.indices.to_numpy(zero_copy_only=False)], sorted(labels)


def _count(trials: pa.Table, status: str) -> dict[str, int]:
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


def _sort_key(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return 0, float(value), ""
    return 1, 0.0, str(value)


def _require_distinct_seeds(done: pa.Table) -> None:
    seen: dict[tuple[str, int], str] = {}
    for row in done.select(["config_id", "seed", "trial_id"]).to_pylist():
        first = seen.setdefault((row["config_id"], row["seed"]), row["trial_id"])
        if first != row["trial_id"]:
            raise IncomparableTrialsError(
                f"trials {first} and {row['trial_id']} are the same configuration"
                f" {row['config_id']} with the same seed {row['seed']}: not two independent"
                " repetitions. Select the trials of one version of the sweep file."
            )


def _require_distinct_rows(rows: Rows, key: Ints) -> None:
    twice = np.flatnonzero(key[1:] == key[:-1])
    if twice.size:
        row = twice[0]
        trial_id = rows.trials.column("trial_id")[int(rows.trial[row])].as_py()
        subject, metric = rows.series[rows.of_series[row]]
        raise IncomparableTrialsError(
            f"trial {trial_id} has two rows of {subject} {metric} at step {rows.step[row]}"
        )


def _require_equal_steps(rows: Rows, starts: Ints) -> None:
    """Every (config, series, step) must hold a row of every completed trial of that config."""
    members = np.bincount(rows.config, minlength=len(rows.config_ids))
    wrong = np.diff(starts, append=rows.step.size) != members[rows.config[rows.trial[starts]]]
    lines = []
    first = starts[wrong]
    pairs = np.stack([rows.config[rows.trial[first]], rows.of_series[first]], axis=1)
    for config, series in np.unique(pairs, axis=0):
        mine = (rows.config[rows.trial] == config) & (rows.of_series == series)
        steps = np.unique(rows.step[mine])
        for trial in np.flatnonzero(rows.config == config):
            lacking = np.setdiff1d(steps, rows.step[mine & (rows.trial == trial)])
            if lacking.size:
                row = rows.trials.slice(int(trial), 1).to_pylist()[0]
                lines.append(
                    f"  configuration {row['config_id']}, trial {row['trial_id']} (seed"
                    f" {row['seed']}): lacks {' '.join(rows.series[series])} at {lacking.size} of"
                    f" {steps.size} steps, the first is {lacking[0]}"
                )
    if lines:
        raise IncomparableTrialsError(
            "completed trials of one configuration were recorded at unequal steps, so there is no"
            " mean over its seeds:\n"
            + "\n".join([*lines[:20], *([f"  … and {len(lines) - 20} more"] * (len(lines) > 20))])
            + "\nSelect the trials of one version of the sweep file."
        )
