"""Plots of the tables: every seed as a thin line, its configuration's mean as a thick one.

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

from orchestrator.aggregate import NORMALISED_RANK, completed_rows, over_seeds, starts_of

AXIS_LABELS = {
    "loss": "loss",
    "error": "error (fraction of examples)",
    "effective_rank": "effective rank (directions)",
    NORMALISED_RANK: "effective rank / full rank",
    "stable_rank": "stable rank (directions)",
    "norm/frobenius": "Frobenius norm (weight units)",
    "norm/spectral": "spectral norm (weight units)",
}
STEP_LABEL = "optimiser step (linear to 1, then logarithmic)"
MAX_PANELS = 24
MAX_LEGEND = 12
_LOGARITHMIC = ("loss", "norm/frobenius", "norm/spectral")
_DRAWN = ("completed", "diverged", "pruned", "running")
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
        scalars: the table of design section 6.
        subject: for example ``val`` or a view's name.
        metric: for example ``error``.
        by: the swept parameter; None: one colour.
        ax: where to draw; None: a new figure.

    Raises:
        IncomparableTrialsError: see `aggregate.completed_rows`.
    """
    ax = _new_axes() if ax is None else ax
    scalars = _rows_of(scalars, metric, subject)
    _draw_metric(ax, trials, scalars, by)
    ax.set_xlabel(STEP_LABEL)
    ax.set_ylabel(AXIS_LABELS.get(metric, metric))
    ax.set_title(f"{subject}: {metric} over steps", fontsize=10)
    if by is not None:
        handles = _handles(trials, scalars, by)
        ax.legend(handles=handles, title=by, fontsize=8, title_fontsize=8)
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
    table = _spectra_of(spectra, trial_id, subject)
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
    ax.set_title(f"{subject}, trial {trial_id}", fontsize=10)
    if colour_bar:
        _colour_bar(ax.figure, norm, ax)
    return ax


def sweep_figures(
    trials: pa.Table, scalars: pa.Table, spectra: pa.Table, parameters: Sequence[str]
) -> dict[str, Figure]:
    """The figures written at the end of a sweep, by name (fit for a file name).

    For each of `parameters` with at least two levels, or once without colours if there is none:
    ``error_by_<parameter>`` (``loss_…`` for a task without an error), train beside val;
    ``normalised_rank_by_<parameter>``, a panel per matrix (heads are left out if there would be
    more than 12 panels); ``singular_values_by_<parameter>``, a panel per level with the
    smallest seed, of the matrix whose normalised rank changed most over the trials' mean. A figure
    without data is not made.

    Raises:
        IncomparableTrialsError: see `aggregate.completed_rows`.
    """
    swept = [name for name in parameters if len(_levels(trials, name)) > 1]
    figures: dict[str, Figure | None] = {}
    of_rank = _rows_of(scalars, NORMALISED_RANK)
    chosen = _most_changed(trials, of_rank, spectra)
    colourings: list[str | None] = [*swept] or [None]
    for by in colourings:
        suffix = "" if by is None else f"_by_{by}"
        metric = "error" if pc.any(pc.equal(scalars.column("metric"), "error")).as_py() else "loss"
        splits = pa.concat_tables([_rows_of(scalars, metric, split) for split in ("train", "val")])
        figures[metric + suffix] = _panels(trials, splits, metric, by)
        figures["normalised_rank" + suffix] = _panels(trials, of_rank, NORMALISED_RANK, by)
        if chosen is not None:
            others = [name for name in swept if name != by]
            figures["singular_values" + suffix] = _spectra(trials, spectra, chosen, by, others)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _panels(trials: pa.Table, scalars: pa.Table, metric: str, by: str | None) -> Figure | None:
    """One metric, a panel per subject, with one legend."""
    drawn = _drawn(trials).column("trial_id")
    scalars = _rows_of(scalars, metric)
    scalars = scalars.filter(pc.is_in(scalars.column("trial_id"), value_set=drawn))
    found = pc.unique(scalars.column("subject")).to_pylist()
    if not found:
        return None
    subjects = found
    if len(subjects) > MAX_PANELS // 2:
        subjects = [subject for subject in found if "[" not in subject] or found
    subjects = subjects[:MAX_PANELS]
    figure, grid = _grid(len(subjects))
    for ax, subject in zip(grid, subjects, strict=True):
        _draw_metric(ax, trials, _rows_of(scalars, metric, subject), by)
        ax.set_title(subject, fontsize=8)
    label = AXIS_LABELS.get(metric, metric)
    figure.supxlabel(STEP_LABEL, fontsize=9)
    figure.supylabel(label, fontsize=9)
    shown = "" if len(subjects) == len(found) else f" ({len(subjects)} of {len(found)} matrices)"
    figure.suptitle(
        f"{label.split(' (')[0].capitalize()} over steps{shown}\n"
        "thin: one trial (dashed: diverged or pruned), thick: mean over seeds",
        fontsize=10,
    )
    if by is not None:
        handles = _handles(trials, scalars, by)
        place = "outside right center"
        figure.legend(handles=handles, title=by, loc=place, fontsize=8, title_fontsize=8)
    return figure


def _spectra(
    trials: pa.Table, spectra: pa.Table, subject: str, by: str | None, others: Sequence[str]
) -> Figure | None:
    """Singular values of one matrix, a panel per level: its completed trial of smallest seed."""
    mine = spectra.filter(pc.equal(spectra.column("subject"), subject))
    known = pc.is_in(trials.column("trial_id"), value_set=mine.column("trial_id"))
    rows = trials.filter(pc.and_(known, pc.equal(trials.column("status"), "completed"))).to_pylist()
    rows.sort(key=lambda row: (row["seed"], *(_order(row[name]) for name in others)))
    first: dict[Any, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(None if by is None else _level(row[by]), row)
    levels = sorted(first, key=_order)
    shown = _evenly(levels, 6)
    if not shown:
        return None
    figure, grid = _grid(len(shown))
    for ax, level in zip(grid, shown, strict=True):
        row = first[level]
        singular_values(mine, row["trial_id"], subject, ax, colour_bar=False)
        names = [name for name in (by, *others) if name is not None]
        ax.set_title(", ".join([*(f"{n} = {row[n]}" for n in names), f"seed {row['seed']}"]))
        ax.title.set_fontsize(8)
        ax.set_xlabel("")
        ax.set_ylabel("")
    rank = len(_spectra_of(mine, first[shown[0]]["trial_id"], subject).column("values")[0])
    _colour_bar(figure, Normalize(1, max(rank, 2)), grid)
    figure.supxlabel(STEP_LABEL, fontsize=9)
    figure.supylabel("singular value (weight units)", fontsize=9)
    count = "" if len(shown) == len(levels) else f" ({len(shown)} of {len(levels)} levels)"
    figure.suptitle(f"Singular values of {subject} over steps, one trial each{count}", fontsize=10)
    return figure


def _draw_metric(ax: Axes, trials: pa.Table, scalars: pa.Table, by: str | None) -> None:
    """The lines of one metric of one subject, and the axes' scales."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in scalars.select(["trial_id", "step", "value", "flag"]).to_pylist():
        value = row["value"] if row["flag"] is None and row["value"] is not None else math.nan
        curves.setdefault(row["trial_id"], []).append((row["step"], value))
    levels = [None] if by is None else _levels(trials, by)
    colours = dict(zip(levels, _colours(levels), strict=True))
    of_config: dict[str, Any] = {}
    for row in _drawn(trials).to_pylist():
        colour = of_config[row["config_id"]] = colours[None if by is None else _level(row[by])]
        if row["trial_id"] not in curves:
            continue
        x, y = zip(*sorted(curves[row["trial_id"]]), strict=True)
        (line,) = ax.plot(x, y, color=colour, lw=0.8, alpha=0.7, gid=row["trial_id"])
        if row["status"] in ("diverged", "pruned"):
            line.set(linestyle="--", marker="x", markersize=5)
            line.set_markevery(np.flatnonzero(np.isfinite(y))[-1:].tolist())  # where it ended
    means: dict[str, list[tuple[int, float]]] = {}
    for row in over_seeds(trials, scalars).to_pylist():
        mean = math.nan if row["n_flagged"] else row["mean"]
        means.setdefault(row["config_id"], []).append((row["step"], mean))
    for config_id, points in means.items():
        x, y = zip(*points, strict=True)
        ax.plot(x, y, color=of_config[config_id], lw=1.8, gid=config_id)
    _step_axis(ax)
    metric = scalars.column("metric")[0].as_py() if scalars.num_rows else ""
    drawn = np.concatenate([line.get_ydata() for line in ax.lines] or [np.zeros(0)])
    drawn = drawn[np.isfinite(drawn)]
    if metric in _LOGARITHMIC and drawn.size and drawn.min() > 0:
        ax.set_yscale("log")
    elif metric in ("error", NORMALISED_RANK):
        ax.set_ylim(-0.02, 1.02 * drawn.max(initial=1.0))


def _handles(trials: pa.Table, scalars: pa.Table, by: str) -> list[Line2D]:
    """The legend: each level with the number of trials that have rows in `scalars`."""
    known = pc.is_in(trials.column("trial_id"), value_set=pc.unique(scalars.column("trial_id")))
    levels = _levels(trials, by)
    counts: dict[Any, dict[str, int]] = {level: {} for level in levels}
    for row in _drawn(trials.filter(known)).to_pylist():
        of_level = counts[_level(row[by])]
        of_level[row["status"]] = of_level.get(row["status"], 0) + 1
    return [
        Line2D([], [], color=colour, lw=1.8, label=_label(level, counts[level]))
        for level, colour in _evenly(list(zip(levels, _colours(levels), strict=True)), MAX_LEGEND)
    ]


def _label(level: Any, counts: dict[str, int]) -> str:
    total = sum(counts.values())
    text = f"{level}: {total} trial{'' if total == 1 else 's'}"
    return text + "".join(f", {counts[s]} {s}" for s in _DRAWN[1:] if s in counts)


def _rows_of(scalars: pa.Table, metric: str, subject: str | None = None) -> pa.Table:
    scalars = scalars.filter(pc.equal(scalars.column("metric"), metric))
    if subject is None:
        return scalars
    return scalars.filter(pc.equal(scalars.column("subject"), subject))


def _drawn(trials: pa.Table) -> pa.Table:
    return trials.filter(pc.is_in(trials.column("status"), pa.array(_DRAWN)))


def _spectra_of(spectra: pa.Table, trial_id: str, subject: str) -> pa.Table:
    wanted = pc.and_(
        pc.and_(
            pc.equal(spectra.column("trial_id"), trial_id),
            pc.equal(spectra.column("subject"), subject),
        ),
        pc.equal(spectra.column("quantity"), "singular_values"),
    )
    return spectra.filter(wanted).sort_by("step")


def _most_changed(trials: pa.Table, of_rank: pa.Table, spectra: pa.Table) -> str | None:
    """The matrix with spectra whose normalised rank changed most, |last - first|, on average."""
    subjects = pc.unique(spectra.column("subject")).to_pylist()
    of_rank = of_rank.filter(pc.is_in(of_rank.column("subject"), pa.array(subjects, pa.string())))
    rows = completed_rows(trials, of_rank)
    order = np.lexsort((rows.step, rows.trial, rows.of_series))
    series, value = rows.of_series[order], rows.value[order]
    starts = starts_of(series, rows.trial[order])
    ends = starts + np.diff(starts, append=value.size) - 1
    change, series = np.abs(value[ends] - value[starts]), series[starts]
    known = np.isfinite(change)
    means = {
        rows.series[s][0]: change[known & (series == s)].mean() for s in np.unique(series[known])
    }
    return max(means, key=lambda s: means[s]) if means else next(iter(subjects), None)


def _levels(trials: pa.Table, parameter: str) -> list[Any]:
    return sorted(set(map(_level, _drawn(trials).column(parameter).to_pylist())), key=_order)


def _level(value: Any) -> Any:
    return str(value) if isinstance(value, list | dict) else value  # betas: [0.9, 0.98]


def _order(level: Any) -> tuple[int, float, str]:
    number = isinstance(level, int | float) and not isinstance(level, bool)
    return (0, float(level), "") if number else (1, 0.0, str(level))


def _colours(levels: Sequence[Any]) -> list[Any]:
    """Numbers get an ordered palette (viridis without its yellow), anything else a categorical."""
    if len(levels) <= len(_CATEGORIES) and (len(levels) < 2 or any(_order(v)[0] for v in levels)):
        return list(_CATEGORIES[: len(levels)])
    return list(mpl.colormaps["viridis"](np.linspace(0.0, 0.85, len(levels))))


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    if len(items) <= most:
        return list(items)
    return [items[i] for i in np.round(np.linspace(0, len(items) - 1, most)).astype(int)]


def _step_axis(ax: Axes) -> None:
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.margins(x=0)
    ax.grid(visible=True, lw=0.4, alpha=0.4)
    ax.tick_params(which="both", labelsize=8)


def _colour_bar(figure: Any, norm: Normalize, axes: Any) -> None:
    colours = mpl.colors.ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.9, 256)))
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes)
    bar.set_label("index of the singular value (1 = largest)", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _new_axes() -> Axes:
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _grid(num_panels: int) -> tuple[Figure, list[Axes]]:
    columns = min(num_panels, 3 if num_panels <= 9 else 4)
    rows = math.ceil(num_panels / columns)
    width = 2.6 * columns + 1.6 + (1.6 if columns <= 2 else 0)  # room for the words above
    figure = Figure(figsize=(width, 2.1 * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    for ax in axes[num_panels:]:
        ax.remove()
    for ax in axes[max(num_panels - columns, 0) : num_panels]:  # also above a removed panel
        ax.tick_params(labelbottom=True)
    return figure, list(axes[:num_panels])
