"""Lines over steps on one `Axes`: a metric of every trial, the singular values of one matrix.

Plain functions onto a given `Axes` (or a new `Figure` with an Agg canvas): no pyplot, no global
state, no display. What is drawn is what is in the table; flagged points are hidden, and the words
on a figure count and never conclude.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.aggregate import NORMALISED_RANK, over_seeds
from orchestrator.comparable import level_of, level_order
from orchestrator.figures_text import literal, shorter
from orchestrator.schemas import RESULTS

OPERATOR_RANK = "operator_effective_rank/normalised"
UPDATE_RANK = "update_effective_rank/normalised"
UPDATE_SHARE = "update_share/top_10"
AXIS_LABELS = {
    "loss": "loss",
    "error": "error (fraction of examples)",
    "effective_rank": "effective rank (directions)",
    NORMALISED_RANK: "effective rank / full rank",
    "stable_rank": "stable rank (directions)",
    "norm/frobenius": "Frobenius norm (weight units)",
    "norm/spectral": "spectral norm (weight units)",
    UPDATE_SHARE: "share in the first 10 directions",
    UPDATE_RANK: "update: effective rank / full rank",
    OPERATOR_RANK: "operator: effective rank / full rank",
}
STEP_LABEL = "optimiser step (linear to 1, then logarithmic)"
MAX_LEGEND = 12
_LOGARITHMIC = ("loss", "norm/frobenius", "norm/spectral", UPDATE_SHARE)
_TO_ONE = ("error", NORMALISED_RANK, UPDATE_RANK, OPERATOR_RANK)
_DRAWN = (*RESULTS, "running")
# Okabe & Ito (2008), told apart under every common colour blindness; their yellow is too light
_CATEGORIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def metric_over_steps(
    trials: pa.Table,
    scalars: pa.Table,
    subject: str,
    metric: str,
    by: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One metric of one subject against the step, coloured by the level of a parameter.

    Every trial is a thin line (its gid is the trial_id), dashed if it diverged or was pruned; every
    configuration's mean over seeds is a thick one (its gid is the config_id), drawn where no seed
    is flagged. Configurations that share a level share its colour and are not averaged. The step
    axis is linear up to 1 and logarithmic beyond, so that step 0 has a place.

    Args:
        trials: columns trial_id, config_id, seed, status and `by`.
        scalars: the table `scalars` of docs/results.md.
        subject: for example ``val`` or a view's name.
        metric: for example ``error``.
        by: the swept parameter; None: one colour.
        ax: where to draw; None: a new figure.

    Raises:
        IncomparableTrialsError: see `comparable.completed_rows`.
    """
    ax = _new_axes() if ax is None else ax
    scalars = rows_of(scalars, metric, subject)
    draw_metric(ax, trials, scalars, by)
    ax.set_xlabel(STEP_LABEL)
    ax.set_ylabel(literal(AXIS_LABELS.get(metric, metric)))
    ax.set_title(literal(f"{subject}: {metric} over steps"), fontsize=10)
    if by is not None:
        has_rows = pc.is_in(trials.column("trial_id"), value_set=scalars.column("trial_id"))
        handles = legend_of(trials, trials.filter(has_rows), by)
        ax.legend(handles=handles, title=literal(by), fontsize=8, title_fontsize=8)
    return ax


def singular_values(
    spectra: pa.Table,
    trial_id: str,
    subject: str,
    ax: Axes | None = None,
    *,
    colour_bar: bool = True,
) -> Axes:
    """Every singular value of one matrix of one trial against the step, coloured by its index.

    The index counts from 1, the largest. Zeros have no place on the logarithmic axis and are left
    out, as are flagged snapshots. Where values lie below their numerical bound, the largest bound
    of each step is drawn as a dotted line: what lies below it may be rounding.

    Raises:
        ValueError: the table has no singular values of this subject in this trial.
    """
    table = spectra_of(spectra, trial_id, subject)
    if not table.num_rows:
        raise ValueError(f"no singular values of {subject!r} in trial {trial_id}")
    ax = _new_axes() if ax is None else ax
    steps = table.column("step").to_numpy()
    values = np.array(table.column("values").to_pylist(), np.float64)
    bounds = np.array(table.column("bounds").to_pylist(), np.float64)
    hidden = pc.is_valid(table.column("flag")).to_numpy()
    values[hidden] = np.nan
    below = bool(np.any(values < bounds))
    values[values <= 0] = np.nan
    norm = Normalize(1, max(values.shape[1], 2))
    colours = mpl.colormaps["viridis"](0.9 * norm(np.arange(1, values.shape[1] + 1)))
    width = 1.2 if values.shape[1] <= 64 else 0.6
    for index in reversed(range(values.shape[1])):  # the largest on top
        ax.plot(steps, values[:, index], color=colours[index], lw=width)
    if below:
        floor = np.where(hidden, np.nan, bounds.max(axis=1))
        ax.plot(steps, floor, color="0.3", ls=":", lw=1.2, label="largest numerical bound")
        ax.legend(fontsize=8)
    _step_axis(ax)
    if np.isfinite(values).any():
        ax.set_yscale("log")
    ax.set_xlabel(STEP_LABEL)
    ax.set_ylabel("singular value (weight units)")
    ax.set_title(literal(f"{subject}, trial {trial_id}"), fontsize=10)
    if colour_bar:
        add_colour_bar(ax.figure, norm, ax)
    return ax


def draw_metric(
    ax: Axes,
    trials: pa.Table,
    scalars: pa.Table,
    by: str | None,
    chosen: pa.Table | None = None,
) -> None:
    """The lines of one metric of one subject, and the axes' scales; see `metric_over_steps`.

    Args:
        ax: where to draw.
        trials: their levels give the colours, and all completed ones of a configuration its mean.
        scalars: rows of this metric and subject.
        by: the swept parameter.
        chosen: those of `trials` that are drawn, and whose configurations get a mean; None: all.
    """
    chosen = drawable(trials) if chosen is None else chosen
    curves: dict[str, list[tuple[int, float]]] = {}
    of_chosen = pc.is_in(scalars.column("trial_id"), value_set=chosen.column("trial_id"))
    columns = scalars.filter(of_chosen).select(["trial_id", "step", "value", "flag"])
    for row in columns.to_pylist():
        value = row["value"] if row["flag"] is None and row["value"] is not None else math.nan
        curves.setdefault(row["trial_id"], []).append((row["step"], value))
    colour_of = _colours_of(trials, chosen, by)
    for row in chosen.to_pylist():
        if row["trial_id"] not in curves:
            continue
        x, y = zip(*sorted(curves[row["trial_id"]]), strict=True)
        colour = colour_of[row["config_id"]]
        (line,) = ax.plot(x, y, color=colour, lw=0.8, alpha=0.7, gid=row["trial_id"])
        if len(x) == 1:  # such as a test split that is evaluated at the end
            line.set(marker=".")
        if row["status"] in ("diverged", "pruned"):
            line.set(linestyle="--", marker="x", markersize=5)
            line.set_markevery(np.flatnonzero(np.isfinite(y))[-1:].tolist())  # where it ended
    draw_means(ax, trials, scalars, by, chosen)
    _step_axis(ax)
    metric = scalars.column("metric")[0].as_py() if scalars.num_rows else ""
    drawn = np.concatenate([line.get_ydata() for line in ax.lines] or [np.zeros(0)])
    drawn = drawn[np.isfinite(drawn)]
    if metric in _LOGARITHMIC and drawn.size and drawn.min() > 0:
        ax.set_yscale("log")
    elif metric in _TO_ONE:
        ax.set_ylim(-0.02, 1.02 * drawn.max(initial=1.0))


def draw_means(
    ax: Axes,
    trials: pa.Table,
    scalars: pa.Table,
    by: str | None,
    chosen: pa.Table,
    style: str = "-",
    series: str | None = None,
) -> None:
    """The thick lines of `draw_metric`: the mean of each configuration over its completed seeds.

    Args:
        ax: see `draw_metric`; likewise the next four.
        trials: likewise.
        scalars: likewise.
        by: likewise.
        chosen: likewise.
        style: of the lines.
        series: what they are of, where the axes have lines of something else: a part of their gid.
    """
    means: dict[str, list[tuple[int, float]]] = {}
    of_config_ids = pc.is_in(trials.column("config_id"), value_set=chosen.column("config_id"))
    for row in over_seeds(trials.filter(of_config_ids), scalars).to_pylist():
        mean = math.nan if row["n_flagged"] else row["mean"]
        means.setdefault(row["config_id"], []).append((row["step"], mean))
    colour_of = _colours_of(trials, chosen, by)
    for config_id, points in means.items():
        x, y = zip(*points, strict=True)
        gid = config_id if series is None else f"{config_id} {series}"
        ax.plot(x, y, color=colour_of[config_id], lw=1.8, ls=style, gid=gid)


def _colours_of(trials: pa.Table, chosen: pa.Table, by: str | None) -> dict[str, Any]:
    """The colour of each configuration among the chosen trials."""
    levels = [None] if by is None else levels_of(trials, by)
    colours = dict(zip(levels, _colours(levels), strict=True))
    values = [None] * chosen.num_rows if by is None else map(level_of, chosen[by].to_pylist())
    return {
        config_id: colours[value]
        for config_id, value in zip(chosen["config_id"].to_pylist(), values, strict=True)
    }


def legend_of(trials: pa.Table, counted: pa.Table, by: str) -> list[Line2D]:
    """The legend's handles: each level of the trials, with how many of it are among `counted`."""
    levels = levels_of(trials, by)
    counts: dict[Any, dict[str, int]] = {level: {} for level in levels}
    for row in drawable(counted).to_pylist():
        of_level = counts[level_of(row[by])]
        of_level[row["status"]] = of_level.get(row["status"], 0) + 1
    return [
        Line2D([], [], color=colour, lw=1.8, label=_label(level, counts[level]))
        for level, colour in evenly(list(zip(levels, _colours(levels), strict=True)), MAX_LEGEND)
    ]


def _label(level: Any, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    text = f"{literal(shorter(level))}: {total} trial{'' if total == 1 else 's'}"
    return text + "".join(f", {counts[s]} {s}" for s in _DRAWN[1:] if s in counts)


def rows_of(scalars: pa.Table, metric: str, subject: str | None = None) -> pa.Table:
    """The rows of a metric, of all subjects or of one."""
    wanted = pc.equal(scalars.column("metric"), metric)
    if subject is not None:
        wanted = pc.and_(wanted, pc.equal(scalars.column("subject"), subject))
    return scalars.filter(wanted)


def drawable(trials: pa.Table) -> pa.Table:
    """Those of the trials that have a line: the others never had a result."""
    return trials.filter(pc.is_in(trials.column("status"), pa.array(_DRAWN)))


def spectra_of(spectra: pa.Table, trial_id: str, subject: str) -> pa.Table:
    """The singular values of one matrix of one trial, by step."""
    wanted = pc.and_(
        pc.and_(
            pc.equal(spectra.column("trial_id"), trial_id),
            pc.equal(spectra.column("subject"), subject),
        ),
        pc.equal(spectra.column("quantity"), "singular_values"),
    )
    return spectra.filter(wanted).sort_by("step")


def levels_of(trials: pa.Table, parameter: str) -> list[Any]:
    """The levels of a parameter among the trials that have a line, in order."""
    values = drawable(trials).column(parameter).to_pylist()
    return sorted(set(map(level_of, values)), key=level_order)


def _colours(levels: Sequence[Any]) -> list[Any]:
    """Numbers get an ordered palette (viridis without its yellow), anything else a categorical."""
    categorical = len(levels) < 2 or any(level_order(level)[0] for level in levels)
    if categorical and len(levels) <= len(_CATEGORIES):
        return list(_CATEGORIES[: len(levels)])
    return list(mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(levels))))


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly spread, the first and the last included."""
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.round(np.linspace(0, len(items) - 1, most)).astype(int)]


def _step_axis(ax: Axes) -> None:
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.margins(x=0)
    ax.grid(visible=True, lw=0.4, alpha=0.4)
    ax.tick_params(which="both", labelsize=8)


def add_colour_bar(figure: Any, norm: Normalize, axes: Any) -> None:
    """Tell the colour of each index in `singular_values`."""
    colours = mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.9, 256)))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes)
    bar.set_label("index of the singular value (1 = largest)", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _new_axes() -> Axes:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()
