"""The facts of docs/reproduction.md, each a count or a range over trials, from a results folder."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from orchestrator import Results

RANK = "effective_rank/normalised"
PART = re.compile(r"\[|\.attention\.(query|key|value)$")
WHOLE = f"NOT regexp_matches(subject, '{PART.pattern}')"
"""Matrices as the paper counts them: no heads, thirds of in_proj or halves of columns."""
SETTLED = (0.5, 0.9)
"""Agreement with the final vectors from which on they count as settled."""
LEARNED = 0.02
"""Error below which a set counts as fitted."""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __str__(self) -> str:
        lines = ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.rows)])


def ends(results: Results, where: str = "true") -> list[dict[str, Any]]:
    """Per completed trial and whole matrix: rank at step 0 and at the last step, and its flags."""
    return results.sql(
        f"""
        SELECT trial_id, subject, any_value(seed) AS seed,
               arg_min(value, step) AS first, arg_max(value, step) AS last,
               arg_max(flag, step) FILTER (flag IS NOT NULL) AS flag
        FROM scalars JOIN trials USING (trial_id)
        WHERE metric = '{RANK}' AND status = 'completed' AND {WHOLE}
              AND ({where})
        GROUP BY trial_id, subject ORDER BY subject, seed
        """
    ).to_pylist()


def rank_falls(results: Results) -> Table:
    """B1: in how many trials does each matrix end with a lower effective rank than it began."""
    rows = []
    by_subject: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in ends(results):
        by_subject[row["subject"]].append(row)
    for subject, own in by_subject.items():
        fell = sum(row["last"] < row["first"] for row in own)
        rows.append(
            (
                f"`{subject}`",
                _range(row["first"] for row in own),
                _range(row["last"] for row in own),
                f"{fell} of {len(own)}",
            )
        )
    return Table(("matrix", "rank at step 0", "rank at the end", "fell in"), rows)


def fell_of_all(results: Results) -> tuple[int, int, int]:
    """(matrices that fell in every trial, matrices, trials)."""
    by_subject: dict[str, list[bool]] = defaultdict(list)
    for row in ends(results):
        by_subject[row["subject"]].append(row["last"] < row["first"])
    trials = max((len(own) for own in by_subject.values()), default=0)
    return sum(all(own) for own in by_subject.values()), len(by_subject), trials


def pruned(results: Results, where: str = "true") -> Table:
    """B2: losses of the full model and of those that keep the top or the bottom half."""
    found = results.sql(
        f"""
        SELECT subject, metric, seed, arg_max(value, step) AS value
        FROM scalars JOIN trials USING (trial_id)
        WHERE metric IN ('loss', 'loss/kept_top_0.5', 'loss/kept_bottom_0.5')
              AND subject IN ('train', 'val') AND status = 'completed' AND ({where})
        GROUP BY trial_id, seed, subject, metric ORDER BY subject, seed
        """
    ).to_pylist()
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in found:
        values[row["subject"], row["metric"]].append(row["value"])
    metrics = ("loss", "loss/kept_top_0.5", "loss/kept_bottom_0.5")
    rows = [
        (split, *(_range(values[split, metric]) for metric in metrics))
        for split in ("train", "val")
    ]
    return Table(("split", "full model", "top half kept", "bottom half kept"), rows)


def settling(results: Results) -> Table:
    """B5: does the mean agreement of the leading ten reach a level before that of the last ten."""
    spectra = results.spectra(quantity="agreement/final").to_pylist()
    by_series: dict[tuple[str, str], list[tuple[int, np.ndarray]]] = defaultdict(list)
    for row in spectra:
        if not PART.search(row["subject"]):
            values = np.asarray(row["values"], dtype=float)
            by_series[row["trial_id"], row["subject"]].append((row["step"], values))
    rows = []
    for level in SETTLED:
        counts = dict.fromkeys(("earlier", "together", "later", "neither"), 0)
        for series in by_series.values():
            if len(series[0][1]) < 20:
                continue  # of fewer than 20 vectors the leading and the last ten overlap
            series.sort(key=lambda entry: entry[0])
            top = _reached(((s, _mean(v[:10])) for s, v in series), level)
            last = _reached(((s, _mean(v[-10:])) for s, v in series), level)
            if top == last == math.inf:
                counts["neither"] += 1
            else:
                counts["earlier" if top < last else "later" if top > last else "together"] += 1
        rows.append((f"{level:g}", *(str(count) for count in counts.values())))
    return Table(
        ("level", "leading ten first", "at one snapshot", "last ten first", "neither"), rows
    )


def rank_by(results: Results, parameter: str, where: str = "true") -> Table:
    """W1: rank at the end for each value of a parameter, matrix by matrix, and its order."""
    found = results.sql(
        f"""
        SELECT subject, {parameter} AS level, seed, arg_max(value, step) AS last,
               arg_max(coalesce(flag, ''), step) AS flag
        FROM scalars JOIN trials USING (trial_id)
        WHERE metric = '{RANK}' AND status = 'completed' AND {WHOLE}
              AND ({where})
        GROUP BY trial_id, subject, level, seed
        """
    ).to_pylist()
    levels = sorted({row["level"] for row in found})
    by_subject: dict[str, dict[tuple[Any, int], float]] = defaultdict(dict)
    hidden: dict[tuple[str, Any], int] = defaultdict(int)
    for row in found:
        if row["flag"] in ("collapsed", "zero"):
            hidden[row["subject"], row["level"]] += 1
        else:
            by_subject[row["subject"]][row["level"], row["seed"]] = row["last"]
    rows = []
    for subject, own in sorted(by_subject.items()):
        cells = []
        for level in levels:
            values = [value for (at, _), value in own.items() if at == level]
            note = f" ({hidden[subject, level]} collapsed)" if hidden[subject, level] else ""
            cells.append((_range(values) if values else "-") + note)
        rows.append((f"`{subject}`", *cells, falls(own, levels)))
    header = ("matrix", *(f"{level:g}" for level in levels), "lower at the last than at the first")
    return Table(header, rows)


def falls(own: Mapping[tuple[Any, int], float], levels: Sequence[Any]) -> str:
    """In how many seeds the value at the last level that a seed has is below that at the first."""
    seeds = sorted({seed for _, seed in own})
    count = total = 0
    for seed in seeds:
        values = [own[level, seed] for level in levels if (level, seed) in own]
        if len(values) > 1:
            total += 1
            count += values[-1] < values[0]
    return f"{count} of {total}"


def errors(results: Results, columns: Sequence[str]) -> Table:
    """Final errors and losses of every trial, and the first evaluation at which a set is fitted."""
    named = ", ".join(columns)
    found = results.sql(
        f"""
        SELECT {named}, seed, trial_id, subject,
               arg_max(value, step) FILTER (metric = 'error') AS error,
               arg_max(value, step) FILTER (metric = 'loss') AS loss,
               min(step) FILTER (metric = 'error' AND value < {LEARNED}) AS fitted
        FROM scalars JOIN trials USING (trial_id)
        WHERE subject IN ('train', 'val') AND metric IN ('error', 'loss')
        GROUP BY {named}, seed, trial_id, subject ORDER BY {named}, seed, subject
        """
    ).to_pylist()
    rows = {}
    for row in found:
        key = (*(_short(row[name]) for name in columns), str(row["seed"]))
        rows.setdefault(key, {})[row["subject"]] = row
    table = []
    for key, splits in rows.items():
        cells = [_short(splits[s][what]) for what in ("error", "fitted") for s in ("train", "val")]
        table.append((*key, *cells))
    header = ("train error", "val error", "train fitted at", "val fitted at")
    return Table((*columns, "seed", *header), table)


def steepest(results: Results) -> Table:
    """G1: where rank falls most after the training set is fitted, beside the validation error."""
    found = results.sql(
        f"""
        WITH fitted AS (
            SELECT trial_id, min(step) AS since FROM scalars
            WHERE metric = 'error' AND subject = 'train' AND value < {LEARNED} GROUP BY trial_id
        ), moves AS (
            SELECT trial_id, subject, metric, step,
                   value - lag(value) OVER (PARTITION BY trial_id, subject, metric ORDER BY step)
                       AS change
            FROM scalars JOIN fitted USING (trial_id)
            WHERE step >= since AND ((metric = '{RANK}' AND {WHOLE})
                                     OR (metric = 'error' AND subject = 'val'))
        )
        SELECT weight_decay, seed, subject, metric, arg_min(step, change) AS step,
               min(change) AS change
        FROM moves JOIN trials USING (trial_id) WHERE change IS NOT NULL
        GROUP BY weight_decay, seed, trial_id, subject, metric
        """
    ).to_pylist()
    rows: dict[tuple[Any, int], dict[str, Any]] = defaultdict(lambda: {"ranks": []})
    for row in found:
        own = rows[row["weight_decay"], row["seed"]]
        if row["metric"] == "error":
            own["val"] = row
        else:
            own["ranks"].append(row)
    table = []
    for (decay, seed), own in sorted(rows.items()):
        steps = [row["step"] for row in own["ranks"]]
        changes = [row["change"] for row in own["ranks"]]
        table.append(
            (
                f"{decay:g}",
                str(seed),
                f"{own['val']['step']} ({own['val']['change']:+.2f})",
                f"{int(np.median(steps))} ({min(steps)} to {max(steps)})",
                f"{np.median(changes):+.2f}",
            )
        )
    header = (
        "weight_decay",
        "seed",
        "largest drop of val error",
        "of ranks: median (range) of the steps",
        "median of the drops",
    )
    return Table(header, table)


def generalised(results: Results, where: str = "true") -> str:
    """How many trials have a validation error below `LEARNED` at the end."""
    row = results.sql(
        f"""
        SELECT count(*) FILTER (last < {LEARNED}) AS n, count(*) AS total FROM (
            SELECT trial_id, arg_max(value, step) AS last
            FROM scalars JOIN trials USING (trial_id)
            WHERE metric = 'error' AND subject = 'val' AND ({where}) GROUP BY trial_id)
        """
    ).to_pylist()[0]
    return f"{row['n']} of {row['total']}"


def sizes(results: Results, where: str = "true") -> dict[str, tuple[float, float]]:
    """Largest singular value and Frobenius norm at the end, over matrices and trials: medians."""
    found = results.sql(
        f"""
        SELECT metric, median(last) AS value FROM (
            SELECT trial_id, subject, metric, arg_max(value, step) AS last
            FROM scalars JOIN trials USING (trial_id)
            WHERE metric IN ('norm/spectral', 'norm/frobenius') AND {WHOLE}
                  AND ({where})
            GROUP BY trial_id, subject, metric)
        GROUP BY metric
        """
    ).to_pylist()
    return {row["metric"]: row["value"] for row in found}


def _reached(series: Iterable[tuple[int, float]], level: float) -> float:
    """The first step from which on the values stay at or above a level; infinity if none."""
    since = math.inf
    for step, value in series:
        if not value >= level:
            since = math.inf
        elif since == math.inf:
            since = step
    return since


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _range(values: Iterable[float]) -> str:
    """Median (smallest to largest)."""
    known = sorted(v for v in values if v is not None and math.isfinite(v))
    if not known:
        return "-"
    median = float(np.median(known))
    return f"{median:.3g} ({known[0]:.3g} to {known[-1]:.3g})"


def _short(value: Any) -> str:
    if value is None:
        return "never"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
