"""Trends: fitted summaries over steps, over seeds and across configurations.

Everything is a pure function of the `trials` and `scalars` tables. Only completed trials enter;
diverged and pruned ones are counted. Four kinds of rows (schema `TRENDS`):

* `trajectory`: one trial, descriptive only. Points along a trajectory are not independent, so there
  are no p-values and no intervals.
* `seeds`: mean, sd and 95 % t interval over the seeds of one configuration.
* `paired`: the effect of a level of one parameter, from pairs of trials with the same seed that
  differ in this parameter alone. One row per configuration, never pooled over configurations.
* `across`: Spearman's rho of the final value against one parameter over all trials.

p-values are not corrected for the number of metrics and matrices tested: whoever picks the smallest
of m of them should multiply it by m.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.aggregate import count_of, moments, sums, t_interval
from orchestrator.comparable import Rows, completed_rows, level_of, starts_of
from orchestrator.errors import IncomparableTrialsError
from orchestrator.fits import (
    Floats,
    Ints,
    kendall_tau,
    largest_drop,
    spearman_in_blocks,
    theil_sen,
)
from orchestrator.schemas import RESULTS

TRENDS = pa.schema(
    [
        ("kind", pa.string()),
        ("config_id", pa.string()),
        ("trial_id", pa.string()),
        ("parameter", pa.string()),
        ("contrast", pa.string()),
        ("subject", pa.string()),
        ("metric", pa.string()),
        ("statistic", pa.string()),
        ("value", pa.float64()),
        ("lower", pa.float64()),
        ("upper", pa.float64()),
        ("n", pa.int64()),
        ("method", pa.string()),
    ]
)
MAX_POINTS = 200  # of one trajectory, for the statistics that look at every pair of points


def fit(trials: pa.Table, scalars: pa.Table, parameters: Sequence[str]) -> pa.Table:
    """Every trend of a sweep.

    Args:
        trials: columns trial_id, config_id, seed, status and one per parameter.
        scalars: the table `scalars` of docs/results.md.
        parameters: *every* swept parameter, whatever its type. Those that are not numbers or have a
            single level get no trends of their own, but still tell configurations apart.

    Returns:
        A table of schema `TRENDS`; null where a statistic is not defined. Statistics per kind:

        trajectory: `initial`, `final` (first and last recorded value; n counts recorded steps),
            `num_flagged`, and over the finite points (n counts them) `largest_drop`,
            `largest_drop_step`, `slope`, `kendall_tau`.
        seeds: `initial/mean`, `initial/sd`, the same for `final` and `slope`. Also, without subject
            and metric, `num_diverged` and `num_pruned` (n counts the configuration's trials).
        paired: `final/mean_difference`, level minus reference, the smallest level being the
            reference; n counts pairs; config_id is the configuration of the level.
        across: `spearman`, `spearman/p` (two-sided), `spearman/smallest_p` (the smallest p that any
            arrangement of these values could have had). n counts trials.

    Raises:
        IncomparableTrialsError: see `comparable.completed_rows`; also if two trials of one seed are
            equal in all of `parameters` but belong to different configurations.
    """
    rows = completed_rows(trials, scalars)
    trajectories = _Trajectories(rows)
    tables = [
        *trajectories.tables(),
        *_seeds(trajectories),
        *_counts(rows, trials),
        *_effects(trajectories, parameters),
    ]
    return pa.concat_tables(tables)


class _Trajectories:
    """One series per (trial, subject, metric), with its descriptive statistics as arrays."""

    def __init__(self, rows: Rows) -> None:
        order, starts = rows.by_trajectory()
        step, value = rows.step[order], rows.value[order]
        self.rows = rows
        self.trial, self.series = rows.trial[order][starts], rows.of_series[order][starts]
        self.length = np.diff(starts, append=step.size)
        self.initial, self.final = value[starts], value[starts + self.length - 1]
        self.num_flagged = sums(rows.flagged[order].astype(np.float64), starts)
        self.num_finite = np.zeros(starts.size, np.int64)
        self.fitted = {
            name: np.full(starts.size, np.nan)
            for name in ("largest_drop", "largest_drop_step", "slope", "kendall_tau")
        }
        self._describe(np.repeat(np.arange(starts.size), self.length), step, value)

    def _describe(self, owner: Ints, step: Ints, value: Floats) -> None:
        finite = np.isfinite(value)
        owner, step, value = owner[finite], step[finite], value[finite]
        starts = starts_of(owner)
        ends = starts + np.diff(starts, append=owner.size)
        alike: dict[bytes, list[int]] = {}  # series recorded at the same steps are fitted together
        for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
            alike.setdefault(step[start:end].tobytes(), []).append(index)
        for key, indices in alike.items():
            steps = np.frombuffer(key, np.int64)
            values = value[starts[indices][:, None] + np.arange(steps.size)]
            mine = owner[starts[indices]]
            kept = np.arange(steps.size)
            if steps.size > MAX_POINTS:
                kept = np.round(np.linspace(0, steps.size - 1, MAX_POINTS)).astype(np.int64)
            drop, at = largest_drop(steps, values)
            self.num_finite[mine] = steps.size
            self.fitted["largest_drop"][mine] = drop
            self.fitted["largest_drop_step"][mine] = at
            self.fitted["slope"][mine] = theil_sen(np.log10(steps[kept] + 1.0), values[:, kept])
            self.fitted["kendall_tau"][mine] = kendall_tau(values[:, kept])

    def tables(self) -> list[pa.Table]:
        drop = "largest decrease between consecutive recorded steps"
        pairs = f"at most {MAX_POINTS} points, evenly thinned"
        recorded, finite, fitted = self.length, self.num_finite, self.fitted
        statistics = [
            ("initial", self.initial, recorded, "value at the first recorded step"),
            ("final", self.final, recorded, "value at the last recorded step"),
            ("num_flagged", self.num_flagged, recorded, "count of flagged rows"),
            ("largest_drop", fitted["largest_drop"], finite, drop),
            ("largest_drop_step", fitted["largest_drop_step"], finite, f"{drop}: the later step"),
            ("slope", fitted["slope"], finite, f"Theil-Sen against log10(step + 1), {pairs}"),
            ("kendall_tau", fitted["kendall_tau"], finite, f"Kendall tau-b against step, {pairs}"),
        ]
        trials = self.rows.trials.select(["trial_id", "config_id"]).take(pa.array(self.trial))
        labels = dict(zip(trials.column_names, trials.columns, strict=True))
        return [
            _table(self.rows, "trajectory", name, method, n, (value,), self.series, **labels)
            for name, value, n, method in statistics
        ]

    def finals(self) -> Floats:
        """(T, S) final value of each completed trial in each series, NaN if none or not finite."""
        matrix = np.full((self.rows.trials.num_rows, len(self.rows.series)), np.nan)
        matrix[self.trial, self.series] = np.where(np.isfinite(self.final), self.final, np.nan)
        return matrix


def _seeds(trajectories: _Trajectories) -> list[pa.Table]:
    rows, all_configs = trajectories.rows, trajectories.rows.config[trajectories.trial]
    tables = []
    for name, values in (
        ("initial", trajectories.initial),
        ("final", trajectories.final),
        ("slope", trajectories.fitted["slope"]),
    ):
        order = np.lexsort((trajectories.trial, trajectories.series, all_configs))
        order = order[np.isfinite(values[order])]
        config, series = all_configs[order], trajectories.series[order]
        starts = starts_of(config, series)
        n, mean, sd = moments(values[order], starts)
        config_ids = rows.config_id_of(config[starts])
        for statistic, method, estimate in (
            ("mean", "mean over seeds, 95 % Student-t interval", (mean, *t_interval(mean, sd, n))),
            ("sd", "standard deviation over seeds, ddof = 1", (sd,)),
        ):
            of, statistic = series[starts], f"{name}/{statistic}"
            tables.append(
                _table(rows, "seeds", statistic, method, n, estimate, of, config_id=config_ids)
            )
    return tables


def _counts(rows: Rows, trials: pa.Table) -> list[pa.Table]:
    """How many trials each configuration lost to divergence and pruning."""
    counts = {status: count_of(trials, status) for status in RESULTS}
    config_ids = sorted(set().union(*counts.values()))
    n = np.array([sum(count.get(c, 0) for count in counts.values()) for c in config_ids], np.int64)
    method = "count of trials, left out of every other statistic"
    tables = []
    for status in ("diverged", "pruned"):
        lost = np.array([counts[status].get(c, 0) for c in config_ids], np.float64)
        labels = {"config_id": pa.array(config_ids, pa.string())}
        tables.append(_table(rows, "seeds", f"num_{status}", method, n, (lost,), **labels))
    return tables


def _effects(trajectories: _Trajectories, parameters: Sequence[str]) -> list[pa.Table]:
    """Paired effects and Spearman's rho of every numeric parameter with at least two levels."""
    rows, finals = trajectories.rows, trajectories.finals()
    columns = {name: rows.trials.column(name) for name in parameters}
    values = {name: [level_of(v) for v in column.to_pylist()] for name, column in columns.items()}
    seeds = rows.trials.column("seed").to_pylist()
    if values:
        _require_told_apart(rows, seeds, values)
    tables = []
    for name, column in columns.items():
        kind = column.type
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
        chosen = np.flatnonzero([level is not None for level in values[name]])
        if not numeric or len({values[name][t] for t in chosen}) < 2:
            continue
        levels = [values[name][t] for t in chosen]
        others = [other for key, other in values.items() if key != name]
        seed_blocks = _codes([seeds[t] for t in chosen])
        blocks = _codes([(seeds[t], *(other[t] for other in others)) for t in chosen])
        tables += _paired(rows, name, chosen, levels, blocks, finals[chosen])
        inside = "equal seed and other parameters" if others else "equal seed"
        if np.bincount(blocks).max() == 1:  # parameters that move together: no two differ in one
            blocks, inside = seed_blocks, "equal seed"
        tables += _across(rows, name, np.array(levels, np.float64), blocks, finals[chosen], inside)
    return tables


def _across(
    rows: Rows, parameter: str, levels: Floats, blocks: Ints, finals: Floats, inside: str
) -> list[pa.Table]:
    tables = []
    present = np.isfinite(finals)
    for mask in np.unique(present, axis=1).T:  # series of the same trials share permutations
        series = np.flatnonzero((present == mask[:, None]).all(axis=0))
        if np.unique(levels[mask]).size < 2:
            continue
        found = spearman_in_blocks(levels[mask], finals[np.ix_(mask, series)], blocks[mask])
        how = "all" if found.exact else "the observed and random"
        method = f"{how} permutations inside blocks of {inside}: {found.num_permutations:,}"
        n = np.full(series.size, mask.sum())
        for statistic, value in (
            ("spearman", found.rho),
            ("spearman/p", found.p),
            ("spearman/smallest_p", found.smallest_p),
        ):
            of = {"parameter": parameter}
            tables.append(_table(rows, "across", statistic, method, n, (value,), series, **of))
    return tables


def _paired(
    rows: Rows, parameter: str, chosen: Ints, levels: list[Any], blocks: Ints, finals: Floats
) -> list[pa.Table]:
    reference = min(levels)
    at_reference = {blocks[i]: i for i, level in enumerate(levels) if level == reference}
    pairs: dict[tuple[Any, int], list[tuple[int, int]]] = {}
    for i, level in enumerate(levels):
        if level != reference and blocks[i] in at_reference:
            config = int(rows.config[chosen[i]])
            pairs.setdefault((level, config), []).append((i, at_reference[blocks[i]]))
    tables = []
    for (level, config), both in sorted(pairs.items()):
        difference = finals[[i for i, _ in both]] - finals[[j for _, j in both]]  # (pairs, S)
        of_series, pair = np.nonzero(np.isfinite(difference.T))
        starts = starts_of(of_series)
        n, mean, sd = moments(difference[pair, of_series], starts)
        labels = {
            "config_id": rows.config_ids[config],
            "parameter": parameter,
            "contrast": f"{level!r} vs {reference!r}",
        }
        method = "pairs of equal seed and other parameters, 95 % Student-t interval"
        estimate = (mean, *t_interval(mean, sd, n))
        statistic, series = "final/mean_difference", of_series[starts]
        tables.append(_table(rows, "paired", statistic, method, n, estimate, series, **labels))
    return tables


def _table(
    rows: Rows,
    kind: str,
    statistic: str,
    method: str,
    n: Ints,
    estimate: tuple[Floats, ...],
    series: Ints | None = None,
    **labels: Any,
) -> pa.Table:
    """Rows of schema `TRENDS` from an estimate (value, or value, lower, upper); NaN becomes null.

    Labels are columns, or one string for all rows.
    """
    labels |= {"kind": kind, "statistic": statistic, "method": method, "n": n}
    if series is not None:
        labels["subject"], labels["metric"] = rows.names_of(series)
    for name, numbers in zip(("value", "lower", "upper"), estimate, strict=False):
        labels[name] = pa.array(numbers, pa.float64(), mask=np.isnan(numbers))
    columns = []
    for field in TRENDS:
        column = labels.get(field.name)
        if column is None or isinstance(column, str):
            column = pa.repeat(pa.scalar(column, field.type), len(n))
        columns.append(column)
    return pa.table(columns, schema=TRENDS)


def _codes(keys: Sequence[Hashable]) -> Ints:
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)


def _require_told_apart(rows: Rows, seeds: list[int], values: dict[str, list[Any]]) -> None:
    first: dict[Hashable, int] = {}
    for trial, key in enumerate(zip(seeds, *values.values(), strict=True)):
        other = first.setdefault(key, trial)
        if other != trial:
            trial_ids = [rows.trials.column("trial_id")[t].as_py() for t in (other, trial)]
            raise IncomparableTrialsError(
                f"trials {trial_ids[0]} and {trial_ids[1]} have the same seed and are equal in"
                f" {', '.join(values)}, yet are different configurations: name"
                " every swept parameter"
            )
