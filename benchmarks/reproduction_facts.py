"""The facts of docs/reproduction.md, each a count or a range over trials, from a results folder."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import reproduction_counts as counts
from benchmarks.reproduction_counts import Count, Table, median_range, short
from orchestrator import Results

RANK = "effective_rank/normalised"
PART = re.compile(r"\[|\.attention\.(query|key|value)$")
WHOLE = f"NOT regexp_matches(subject, '{PART.pattern}')"
"""Matrices as the paper counts them: no heads, thirds of in_proj or halves of columns."""
SETTLED = (0.5, 0.9)
"""Agreement with the final vectors from which on they count as settled."""
LEARNED = 0.02
"""Error below which a set counts as fitted."""
LOSSES = {"full": "loss", "top": "loss/kept_top_0.5", "bottom": "loss/kept_bottom_0.5"}


def ends(results: Results, metric: str, level: str = "0", where: str = "true") -> list[dict]:  # type: ignore[type-arg]
    """Per completed trial and whole subject: level, seed, first and last value, last flag.

    A value that is null at the last step (vectors that are not determined) is null here.
    """
    return results.sql(
        f"""
        SELECT trial_id, subject, {level} AS level, any_value(seed) AS seed,
               arg_min_null(value, step) AS first, arg_max_null(value, step) AS last,
               arg_max(coalesce(flag, ''), step) AS flag
        FROM scalars JOIN trials USING (trial_id)
        WHERE metric = '{metric}' AND status = 'completed' AND {WHOLE} AND ({where})
        GROUP BY trial_id, subject, level ORDER BY subject, level, seed
        """
    ).to_pylist()


def single(results: Results) -> set[str]:
    """Matrices with one singular value: their rank is 1 whatever happens, so no count has them."""
    found = results.sql(
        "SELECT subject FROM scalars WHERE metric = 'effective_rank' "
        "GROUP BY subject HAVING max(value) < 1 + 1e-9"
    )
    return set(found["subject"].to_pylist())


def first_and_last(results: Results) -> dict[str, list[tuple[float, float]]]:
    """Matrix -> of each trial, the rank at step 0 and at the end."""
    alone = single(results)
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in ends(results, RANK):
        if row["subject"] not in alone:
            found[row["subject"]].append((row["first"], row["last"]))
    return found


def rank_falls(results: Results) -> Table:
    """B1: in how many trials does each matrix end with a lower effective rank than it began."""
    rows = [
        (
            f"`{subject}`",
            median_range(first for first, _ in own),
            median_range(last for _, last in own),
            str(Count.of(last < first for first, last in own)),
        )
        for subject, own in first_and_last(results).items()
    ]
    return Table(("matrix", "rank at step 0", "rank at the end", "fell in"), rows)


def fell(results: Results) -> tuple[Count, Count, int]:
    """Matrices that fell in every trial, (matrix, seed) pairs that fell, trials."""
    by_subject = first_and_last(results)
    held = {s: [last < first for first, last in own] for s, own in by_subject.items()}
    pairs = Count.of(case for own in held.values() for case in own)
    return Count.of(map(all, held.values())), pairs, max(map(len, held.values()), default=0)


def losses(results: Results, split: str, where: str = "true") -> dict[int, dict[str, float]]:
    """Seed -> losses at the end of the full model and of those that keep half of the directions."""
    found: dict[int, dict[str, float]] = defaultdict(dict)
    for name, metric in LOSSES.items():
        for row in ends(results, metric, where=f"subject = '{split}' AND ({where})"):
            found[row["seed"]][name] = row["last"]
    return {seed: own for seed, own in found.items() if len(own) == len(LOSSES)}


def pruned(results: Results, where: str = "true") -> Table:
    """B2: losses of the full model and of those that keep the top or the bottom half."""
    rows = []
    for split in ("train", "val"):
        own = losses(results, split, where).values()
        rows.append((split, *(median_range(one[name] for one in own) for name in LOSSES)))
    return Table(("split", "full model", "top half kept", "bottom half kept"), rows)


def settling(results: Results) -> dict[float, dict[str, int]]:
    """B5: level -> how many (matrix, seed) pairs settle in which order, see `counts.order`."""
    by_series: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = defaultdict(list)
    for row in results.spectra(quantity="agreement/final").to_pylist():
        if not PART.search(row["subject"]):
            values = np.asarray(row["values"], dtype=float)
            by_series[row["trial_id"], row["subject"]].append((row["step"], values))
    found = {}
    for level in SETTLED:
        orders = dict.fromkeys(("earlier", "together", "later", "neither"), 0)
        for series in by_series.values():
            if len(series[0][1]) >= 20:  # of fewer, the leading and the last ten overlap
                orders[counts.order(sorted(series, key=lambda at: at[0]), level)] += 1
        found[level] = orders
    return found


def settling_table(results: Results) -> Table:
    """B5, as a table."""
    header = ("level", "leading ten first", "at one snapshot", "last ten first", "neither")
    found = settling(results).items()
    return Table(header, [(f"{at:g}", *map(str, orders.values())) for at, orders in found])


@dataclass(frozen=True)
class ByLevel:
    """A metric at the end for each value of a parameter."""

    levels: list[Any]
    values: dict[str, dict[tuple[Any, int], float]]  # subject -> (level, seed) -> value
    hidden: Mapping[tuple[str, Any], int]  # (subject, level) -> collapsed matrices, not in values

    def count(self, first: Any, other: Any) -> Count:
        """(subject, seed) pairs whose value is lower at one level than at the first."""
        return counts.total(counts.lower(own, first, other) for own in self.values.values())

    def table(self, what: str, marks: Mapping[Any, str], rising: Any = None) -> Table:
        """Subject by level, and seeds in which every level is below the one before.

        Or, with `rising`, seeds in which that level is above the first.
        """
        rows = []
        for subject, own in self.values.items():
            cells = []
            for level in self.levels:
                note = self.hidden.get((subject, level))
                shown = median_range(value for (at, _), value in own.items() if at == level)
                cells.append(shown + (f" ({note} collapsed)" if note else ""))
            falls = counts.monotone(own, self.levels)
            rises = counts.lower(own, rising, self.levels[0])
            cells.append(str(falls if rising is None else rises))
            rows.append((f"`{subject}`", *cells))
        shown_levels = (f"{short(level)}{marks.get(level, '')}" for level in self.levels)
        falls_or_rises = "lower at every level than before"
        if rising is not None:
            falls_or_rises = f"higher at {short(rising)} than at {short(self.levels[0])}"
        return Table((what, *shown_levels, falls_or_rises), rows)


def by_level(results: Results, metric: str, parameter: str, where: str = "true") -> ByLevel:
    """W1: a metric at the end by a parameter; collapsed matrices are only counted."""
    alone = single(results)
    values: dict[str, dict[tuple[Any, int], float]] = defaultdict(dict)
    hidden: dict[tuple[str, Any], int] = defaultdict(int)
    levels = set()
    for row in ends(results, metric, parameter, where):
        levels.add(row["level"])
        if row["subject"] in alone:
            continue
        if row["flag"] in ("collapsed", "zero"):
            hidden[row["subject"], row["level"]] += 1
        elif row["last"] is not None:
            values[row["subject"]][row["level"], row["seed"]] = row["last"]
    return ByLevel(sorted(levels), values, hidden)


def median_losses(results: Results, parameter: str) -> dict[Any, float]:
    """Level -> median over the seeds of the validation loss at the end."""
    found: dict[Any, list[float]] = defaultdict(list)
    for row in ends(results, "loss", parameter, "subject = 'val'"):
        found[row["level"]].append(row["last"])
    return {level: float(np.median(own)) for level, own in found.items()}


def errors(results: Results, columns: Sequence[str]) -> Table:
    """Final errors of every trial, and the first evaluation at which a set is fitted."""
    named = ", ".join(columns)
    found = results.sql(
        f"""
        SELECT {named}, seed, trial_id, subject, arg_max(value, step) AS error,
               min(step) FILTER (value < {LEARNED}) AS fitted
        FROM scalars JOIN trials USING (trial_id)
        WHERE subject IN ('train', 'val') AND metric = 'error'
        GROUP BY {named}, seed, trial_id, subject ORDER BY {named}, seed, subject
        """
    ).to_pylist()
    rows: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in found:
        key = (*(short(row[name]) for name in columns), str(row["seed"]))
        rows.setdefault(key, {})[row["subject"]] = row
    table = []
    for key, splits in rows.items():
        cells = [short(splits[s][what]) for what in ("error", "fitted") for s in ("train", "val")]
        table.append((*key, *cells))
    header = ("train error", "val error", "train fitted at", "val fitted at")
    return Table((*columns, "seed", *header), table)


def fitted(results: Results, split: str, where: str = "true") -> Count:
    """Trials whose error on a split is below `LEARNED` at the end."""
    found = ends(results, "error", where=f"subject = '{split}' AND ({where})")
    return Count.of(row["last"] < LEARNED for row in found)


@dataclass(frozen=True)
class Steepest:
    """Where one trial falls most once its training set is fitted."""

    val: tuple[int, float]  # step at which the drop of the validation error ends, its size
    ranks: dict[str, tuple[int, float]]  # likewise of each matrix's rank
    num_steps: int

    @property
    def coincide(self) -> bool:
        steps = [step for step, _ in self.ranks.values()]
        return counts.coincide(steps, self.val[0], self.num_steps)


def steepest(results: Results, parameter: str) -> dict[tuple[Any, int], Steepest]:
    """G1: (level, seed) -> its steepest drops between evenly spaced snapshots, equal spans all."""
    found = results.sql(
        f"""
        SELECT {parameter} AS level, seed, metric, subject, step, value, last_step
        FROM scalars JOIN trials USING (trial_id)
        WHERE status = 'completed' AND ((metric = '{RANK}' AND {WHOLE})
              OR (metric = 'error' AND subject IN ('train', 'val'))) ORDER BY ALL
        """
    ).to_pylist()
    trials: dict[tuple[Any, int], dict[str, dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    num_steps = {}
    for row in found:
        key = row["level"], row["seed"]
        trials[key][row["subject"]][row["step"]] = row["value"]
        num_steps[key] = row["last_step"]
    drops = {}
    for key, series in trials.items():
        errors_of = {split: series.pop(split) for split in ("train", "val")}
        since = min((s for s, v in errors_of["train"].items() if v < LEARNED), default=math.inf)
        steps = counts.even_steps(step for own in series.values() for step in own)
        val = counts.largest_drop(errors_of["val"], steps, since)
        of = {name: counts.largest_drop(own, steps, since) for name, own in series.items()}
        if val is not None:
            ranks = {name: drop for name, drop in of.items() if drop is not None}
            drops[key] = Steepest(val, ranks, num_steps[key])
    return drops


def steepest_table(results: Results, parameter: str) -> Table:
    """G1, as a table."""
    rows = []
    for (level, seed), own in sorted(steepest(results, parameter).items()):
        steps = [step for step, _ in own.ranks.values()]
        rows.append(
            (
                short(level),
                str(seed),
                f"{own.val[0]} ({own.val[1]:+.2f})",
                f"{np.median(steps):.0f} ({min(steps)} to {max(steps)})",
                f"{np.median([change for _, change in own.ranks.values()]):+.2f}",
                "yes" if own.coincide else "no",
            )
        )
    ranks = ("of ranks: median (range) of the steps", "median of the drops", "at one time")
    return Table((parameter, "seed", "largest drop of val error", *ranks), rows)


def sizes(results: Results, metric: str, where: str = "true") -> dict[str, dict[int, float]]:
    """Matrix -> seed -> a norm at the end."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for row in ends(results, metric, where=where):
        found[row["subject"]][row["seed"]] = row["last"]
    return found


def larger(one: Mapping[str, Mapping[int, float]], other: Mapping[str, Mapping[int, float]]) -> Any:
    """Matrix -> in how many of the seeds that both have the first value is the larger one."""
    return {
        subject: Count.of(own[seed] > other[subject][seed] for seed in own.keys() & other[subject])
        for subject, own in one.items()
        if subject in other
    }


def compared(
    one: Mapping[str, Mapping[int, float]],
    other: Mapping[str, Mapping[int, float]],
    header: tuple[str, str, str, str],
) -> Table:
    """Two values of each matrix side by side, and in how many seeds the first is larger."""
    rows = [
        (
            f"`{subject}`",
            median_range(one[subject].values()),
            median_range(other[subject].values()),
            str(count),
        )
        for subject, count in larger(one, other).items()
    ]
    return Table(header, rows)


def gaps(own: Mapping[int, Mapping[str, float]]) -> dict[int, float]:
    """W3: seed -> how far the loss of the top half is from the full model's, either way."""
    return {seed: abs(one["top"] - one["full"]) for seed, one in own.items()}


def measured(results: Results, metric: str) -> bool:
    """Whether a metric was measured at all."""
    found: Iterable[Any] = results.sql(
        f"SELECT 1 FROM scalars WHERE metric = '{metric}' LIMIT 1"
    ).to_pylist()
    return any(True for _ in found)
