"""The curves that MLflow shows of the scalars table: which ones, under which keys, which points.

A run has at most 40 curves of 200 points; both are chosen by rule, so that curves that were sent
while a trial trained equal those that are read from its commit. Points that are not finite are left
out: MLflow would store infinity as 1.8e308.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.aggregate import NORMALISED_RANK, IncomparableTrialsError, over_seeds
from orchestrator.store import Store
from orchestrator.subjects import has_brackets, natural

MAX_CURVES = 40
MAX_POINTS = 200
SPLITS = ("train", "val", "test")
_FIRST = ("loss", "error")
# What is shown of matrices and couplings; `agreement/final` is not, as nobody knows it live.
_SPECTRAL = (
    NORMALISED_RANK,
    "alignment",
    "agreement/initial",
    "agreement/previous",
    "operator_effective_rank/normalised",
    "update_effective_rank/normalised",
)
_LONGEST_KEY = 240  # MLflow takes 250; room for "_lower"

Series = tuple[str, str]  # subject, metric


class Point(NamedTuple):
    """One value of one curve; its timestamp is a function of the step, see `timestamp`."""

    key: str
    step: int
    value: float


def curve_key(subject: str, metric: str) -> str:
    """The key of a curve: ``train/loss``, ``effective_rank_normalised/layers.0.linear1``.

    The UI makes a section of what stands before the slash. MLflow takes letters, digits and
    ``_ - . : /`` only: ``[3]`` becomes ``:3:``, ``->`` becomes ``:to:`` and any other character
    ``:u`` with its code point in hexadecimal and ``:``, so no two subjects share a key. A slash
    within a metric's name becomes an underscore: no two registered metrics may differ in that
    alone.
    """
    name, of = _escape(metric.replace("/", "_")), _escape(subject)
    key = f"{of}/{name}" if subject in SPLITS else f"{name}/{of}"
    if len(key) <= _LONGEST_KEY:
        return key
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{key[: _LONGEST_KEY - 18]}::{digest}"


def _escape(text: str) -> str:
    def code(match: re.Match[str]) -> str:
        if match[0] == "->":
            return ":to:"
        return f":{match[1]}:" if match[1] else f":u{ord(match[0]):x}:"

    # A dot at the ends could make a path such as "..", which MLflow refuses.
    return re.sub(r"\[([0-9]+)\]|->|[^A-Za-z0-9_.\-]|^\.|\.$", code, text)


def choose(series: Iterable[Series]) -> dict[Series, str]:
    """The curves of a run and their keys, in order of importance, at most `MAX_CURVES`.

    Losses and errors first, then what else is evaluated on a split, then the normalised effective
    rank of each matrix, the alignment of each coupling and so on, one number per measurement. The
    first to be left out are slices of matrices (heads), then pruned models.
    """

    def order(one: Series) -> tuple[Any, ...]:
        subject, metric = one
        if subject in SPLITS:
            rank = _FIRST.index(metric) if metric in _FIRST else len(_FIRST)
            pruned = "/kept_" in metric  # a few fractions would fill the page
            return (2 if pruned else 0, rank, metric, SPLITS.index(subject), ())
        part = has_brackets(subject)
        return (3 if part else 1, 0, "", _SPECTRAL.index(metric), natural(subject))

    shown = {one for one in series if one[0] in SPLITS or one[1] in _SPECTRAL}
    return {one: curve_key(*one) for one in sorted(shown, key=order)[:MAX_CURVES]}


def thin(steps: Iterable[int]) -> frozenset[int]:
    """At most `MAX_POINTS` of these steps, evenly by rank, the first and the last included."""
    ordered = sorted(set(steps))
    last = len(ordered) - 1
    if last < MAX_POINTS:
        return frozenset(ordered)
    return frozenset(ordered[i * last // (MAX_POINTS - 1)] for i in range(MAX_POINTS))


def milliseconds(moment: datetime) -> int:
    """Whole milliseconds since 1970, UTC, rounded down: MLflow's unit."""
    return int(moment.timestamp() * 1000)


def timestamp(created: int, step: int) -> int:
    """When a point is said to have been measured: one millisecond per step after `created`.

    It belongs to the identity of a point in MLflow. As a function of the step alone it makes
    sending a point again a no-op; a clock would make it a second point.
    """
    return created + step


def points_of(
    values: Mapping[Series, float],
    keys: Mapping[Series, str],
    step: int,
    evaluations: frozenset[int],
    snapshots: frozenset[int],
) -> list[Point]:
    """The points of one step of a running trial.

    Args:
        values: what was measured at that step.
        keys: the curves of the run, see `choose`.
        step: the step.
        evaluations: steps of which points are shown in curves of a split, see `thin`.
        snapshots: likewise in all other curves.
    """
    return [
        Point(keys[series], step, value)
        for series, value in values.items()
        if series in keys
        and step in (evaluations if series[0] in SPLITS else snapshots)
        and math.isfinite(value)
    ]


def shown_rows(store: Store, trials: pa.Table) -> pa.Table:
    """Rows of the scalars table that any curve may come from, of these rows of the trials table.

    Raises:
        DamageError: a shard is damaged.
    """
    rows = store.scan("scalars", trials)
    split = pc.is_in(rows["subject"], pa.array(SPLITS))
    return rows.filter(pc.or_(split, pc.is_in(rows["metric"], pa.array(_SPECTRAL))))


def trial_points(store: Store, trials: pa.Table) -> dict[str, list[Point]]:
    """trial_id -> the points of its run, for rows of the trials table."""
    rows = shown_rows(store, trials)
    ids = trials["trial_id"].to_pylist()
    curves: dict[str, dict[Series, dict[int, float]]] = {trial_id: {} for trial_id in ids}
    names = ("trial_id", "subject", "metric", "step", "value")
    columns = (rows[name].to_pylist() for name in names)
    for trial_id, subject, metric, step, value in zip(*columns, strict=True):
        curves[trial_id].setdefault((subject, metric), {})[step] = value
    return {trial_id: _points(found) for trial_id, found in curves.items()}


def summary_points(store: Store, trials: pa.Table) -> list[Point]:
    """Mean and 95 % t interval over the seeds of one configuration, at each step.

    The mean has the keys of a trial's curves, so that the UI draws it into the same charts.
    Trials that cannot be compared, for example with unequal steps, have no mean and no points.
    """
    try:
        table = over_seeds(trials, shown_rows(store, trials))
    except IncomparableTrialsError:
        return []
    points = []
    for column in ("mean", "lower", "upper"):
        curves: dict[Series, dict[int, float]] = {}
        for row in table.select(["subject", "metric", "step", column]).to_pylist():
            curves.setdefault((row["subject"], row["metric"]), {})[row["step"]] = row[column]
        points += _points(curves, "" if column == "mean" else f"_{column}")
    return points


def _points(curves: Mapping[Series, Mapping[int, float | None]], part: str = "") -> list[Point]:
    """The points of a run; `part` marks the section, the text of each key before its slash."""
    return [
        Point(key.replace("/", f"{part}/", 1), step, value)
        for series, key in choose(curves).items()
        for step in sorted(thin(curves[series]))
        if (value := curves[series][step]) is not None and math.isfinite(value)
    ]
