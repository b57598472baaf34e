"""Lines of several kinds on one axes: pruned models beside the full one, first and last indices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from orchestrator.figures_data import HIDDEN

Series = dict[str, dict[str, tuple[Sequence[int], Sequence[float]]]]
"""What a line is -> trial_id -> its steps and values; NaN: nothing to show."""
FULL = "full model"
_COLOURS = {"top": "#0072B2", "bottom": "#D55E00"}
_STYLES = ("-", "--", "-.", ":")


def pruned_series(scalars: pa.Table, metric: str) -> tuple[Series, dict[str, str], dict[str, str]]:
    """The lines of one split: full model, top part kept, bottom part kept; colours; styles.

    Args:
        scalars: rows of the metric and of its pruned variants, of one split.
        metric: for example ``loss``.
    """
    rows = _by_metric(scalars)
    kept = [found for name in sorted(rows) if (found := _KEPT.fullmatch(name))]
    fractions = sorted({found["fraction"] for found in kept}, key=float, reverse=True)
    series: Series = {FULL: _lines(rows.get(metric, {}))}
    colours, styles = {FULL: "#000000"}, {FULL: "-"}
    for fraction in fractions:
        for end in ("top", "bottom"):
            name = f"{metric}/kept_{end}_{fraction}"
            if name in rows:
                label = f"{end} {100 * float(fraction):g} % kept"
                series[label] = _lines(rows[name])
                colours[label] = _COLOURS[end]
                styles[label] = _STYLES[fractions.index(fraction) % len(_STYLES)]
    return series, colours, styles


_KEPT = re.compile(r".+/kept_(?P<end>top|bottom)_(?P<fraction>[0-9.e-]+)")


def named_series(scalars: pa.Table, names: Mapping[str, str]) -> tuple[Series, dict[str, str]]:
    """A line per metric, by its name in the legend, and their colours; at most two metrics.

    Args:
        scalars: rows of one subject.
        names: metric -> what its line is called; a metric without rows has none.
    """
    rows = _by_metric(scalars)
    series = {name: _lines(rows[metric]) for metric, name in names.items() if metric in rows}
    return series, dict(zip(series, _COLOURS.values(), strict=False))


def settling_series(spectra: pa.Table) -> tuple[Series, dict[str, str]]:
    """The mean over the first ten entries and over the last ten, and their colours.

    Means are over the entries that are determined; of ten or fewer entries there is no second line.

    Args:
        spectra: rows of one quantity and subject.
    """
    longest = max((len(values) for values in spectra["values"].to_pylist()), default=0)
    first = f"index 1–{min(10, longest)}"
    parts = {first: slice(0, 10)}
    if longest > 10:
        start = max(10, longest - 10)
        parts[f"index {start + 1}–{longest}"] = slice(start, longest)
    rows: dict[str, dict[str, dict[int, float]]] = {name: {} for name in parts}
    names = ("trial_id", "step", "values", "flag")
    for trial_id, step, values, flag in zip(
        *(spectra.column(column).to_pylist() for column in names), strict=True
    ):
        entries = np.array(values, np.float64)
        for name, part in parts.items():
            known = entries[part][np.isfinite(entries[part])]
            shown = known.size and flag not in HIDDEN
            rows[name].setdefault(trial_id, {})[step] = known.mean() if shown else math.nan
    colours = dict(zip(parts, (_COLOURS["top"], _COLOURS["bottom"]), strict=False))
    return {name: _lines(of_trial) for name, of_trial in rows.items()}, colours


def _by_metric(scalars: pa.Table) -> dict[str, dict[str, dict[int, float]]]:
    """Metric -> trial_id -> step -> value; NaN: nothing to show."""
    rows: dict[str, dict[str, dict[int, float]]] = {}
    names = ("metric", "trial_id", "step", "value", "flag")
    for name, trial_id, step, value, flag in zip(
        *(scalars.column(column).to_pylist() for column in names), strict=True
    ):
        number = math.nan if value is None or flag in HIDDEN else value
        rows.setdefault(name, {}).setdefault(trial_id, {})[step] = number
    return rows


def _lines(rows: dict[str, dict[int, float]]) -> dict[str, tuple[Sequence[int], Sequence[float]]]:
    return {
        trial_id: (sorted(points), [points[step] for step in sorted(points)])
        for trial_id, points in rows.items()
    }
