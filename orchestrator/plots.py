"""The figures of a sweep: every seed as a thin line, its configuration's mean as a thick one."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from orchestrator.aggregate import NORMALISED_RANK
from orchestrator.comparable import completed_rows, level_of, level_order
from orchestrator.figures_text import literal, shorter, slug, untaken
from orchestrator.lines import (
    AXIS_LABELS,
    STEP_LABEL,
    add_colour_bar,
    draw_metric,
    drawable,
    evenly,
    legend_of,
    levels_of,
    metric_over_steps,
    rows_of,
    singular_values,
    spectra_of,
)
from orchestrator.subjects import without_brackets

__all__ = ["metric_over_steps", "singular_values", "sweep_figures"]

MAX_PANELS = 24
MAX_TRIALS = 200
"""Thin lines in one panel. More are a blur, and each costs 2 ms to make and save (measured)."""


def sweep_figures(
    trials: pa.Table, scalars: pa.Table, spectra: pa.Table, parameters: Sequence[str]
) -> dict[str, Figure]:
    """The figures written at the end of a sweep, by name (fit for a file name).

    For each of `parameters` with at least two levels, or once without colours if there is none:
    ``error_by_<parameter>`` (``loss_…`` for a task without an error), train beside val and any
    other split;
    ``normalised_rank_by_<parameter>``, a panel per matrix (heads are left out if there would be
    more than 12 panels); ``singular_values_by_<parameter>``, a panel per level with the
    smallest seed, of the matrix whose normalised rank changed most over the trials' mean. A figure
    without data is not made. Of more than `MAX_TRIALS` trials that many are drawn, and the title
    counts them: see `few_of`. Means and the legend's counts are over all.

    Raises:
        IncomparableTrialsError: see `comparable.completed_rows`.
    """
    swept = [name for name in parameters if len(levels_of(trials, name)) > 1]
    figures: dict[str, Figure | None] = {}
    of_rank = rows_of(scalars, NORMALISED_RANK)
    chosen = _most_changed(trials, of_rank, spectra)
    colourings: list[str | None] = [*swept] or [None]
    slugs: set[str] = set()
    for by in colourings:
        suffix = "" if by is None else f"_by_{untaken(slug(by), slugs)}"
        metric = "error" if pc.any(pc.equal(scalars.column("metric"), "error")).as_py() else "loss"
        figures[metric + suffix] = _panels(trials, _by_split(scalars, metric), metric, by)
        figures["normalised_rank" + suffix] = _panels(trials, of_rank, NORMALISED_RANK, by)
        if chosen is not None:
            others = [name for name in swept if name != by]
            figures["singular_values" + suffix] = _spectra(trials, spectra, chosen, by, others)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _by_split(scalars: pa.Table, metric: str) -> pa.Table:
    """The rows of a metric of the task: train, val, then any other split."""
    found = rows_of(scalars, metric)
    splits = dict.fromkeys(["train", "val", *pc.unique(found["subject"]).to_pylist()])
    return pa.concat_tables([rows_of(found, metric, split) for split in splits])


def _panels(trials: pa.Table, scalars: pa.Table, metric: str, by: str | None) -> Figure | None:
    """One metric, a panel per subject, with one legend."""
    columns = ["trial_id", "config_id", "seed", "status", *([] if by is None else [by])]
    trials = trials.select(columns)
    drawable_ids = drawable(trials).column("trial_id")
    scalars = rows_of(scalars, metric)
    scalars = scalars.filter(pc.is_in(scalars.column("trial_id"), value_set=drawable_ids))
    found = pc.unique(scalars.column("subject")).to_pylist()
    if not found:
        return None
    subjects = found
    if len(subjects) > MAX_PANELS // 2:
        subjects = without_brackets(found)
    subjects = subjects[:MAX_PANELS]
    known = _with_rows(trials, scalars)
    chosen = few_of(known, by)
    figure, grid = _grid(len(subjects))
    for ax, subject in zip(grid, subjects, strict=True):
        draw_metric(ax, trials, rows_of(scalars, metric, subject), by, chosen)
        ax.set_title(literal(subject), fontsize=8)
    label = AXIS_LABELS.get(metric, metric)
    figure.supxlabel(STEP_LABEL, fontsize=9)
    figure.supylabel(label, fontsize=9)
    parts = []
    if len(subjects) < len(found):
        parts.append(f"{len(subjects)} of {len(found)} matrices")
    if chosen.num_rows < known.num_rows:
        parts.append(f"{chosen.num_rows} of {known.num_rows} trials drawn")
    shown = f" ({', '.join(parts)})" if parts else ""
    seeds = "seeds" if chosen.num_rows == known.num_rows else "all seeds"
    figure.suptitle(
        f"{label.split(' (')[0].capitalize()} over steps{shown}\n"
        f"thin: one trial (dashed: diverged or pruned), thick: mean over {seeds}",
        fontsize=10,
    )
    if by is not None:
        handles = legend_of(trials, known, by)
        place = "outside right center"
        figure.legend(handles=handles, title=literal(by), loc=place, fontsize=8, title_fontsize=8)
    return figure


def _spectra(
    trials: pa.Table, spectra: pa.Table, subject: str, by: str | None, others: Sequence[str]
) -> Figure | None:
    """Singular values of one matrix, a panel per level: its completed trial of smallest seed."""
    mine = spectra.filter(pc.equal(spectra.column("subject"), subject))
    names = [name for name in (by, *others) if name is not None]
    completed = trials.filter(pc.equal(trials.column("status"), "completed"))
    rows = _with_rows(completed, mine).select(["trial_id", "seed", *names]).to_pylist()
    rows.sort(key=lambda row: (row["seed"], *(level_order(row[name]) for name in others)))
    first: dict[Any, dict[str, Any]] = {}
    for row in rows:
        first.setdefault(None if by is None else level_of(row[by]), row)
    levels = sorted(first, key=level_order)
    shown = evenly(levels, 6)
    if not shown:
        return None
    figure, grid = _grid(len(shown))
    for ax, level in zip(grid, shown, strict=True):
        row = first[level]
        singular_values(mine, row["trial_id"], subject, ax, colour_bar=False)
        parts = [*(f"{n} = {shorter(row[n])}" for n in names), f"seed {row['seed']}"]
        ax.set_title(literal(", ".join(parts)), fontsize=8)
        ax.set_xlabel("")
        ax.set_ylabel("")
    rank = len(spectra_of(mine, first[shown[0]]["trial_id"], subject).column("values")[0])
    add_colour_bar(figure, Normalize(1, max(rank, 2)), grid)
    figure.supxlabel(STEP_LABEL, fontsize=9)
    figure.supylabel("singular value (weight units)", fontsize=9)
    count = "" if len(shown) == len(levels) else f" ({len(shown)} of {len(levels)} levels)"
    title = f"Singular values of {subject} over steps, one trial each{count}"
    figure.suptitle(literal(title), fontsize=10)
    return figure


def few_of(trials: pa.Table, by: str | None) -> pa.Table:
    """At most `MAX_TRIALS` of these trials, always the same: the first seeds of each configuration.

    Of more configurations than that, an equal share of each level of `by`, so that no level is
    missing: those of the smallest identifiers, which are hashes and so favour no other parameter.
    Of more levels than that, evenly spread ones.
    """
    if trials.num_rows <= MAX_TRIALS:
        return trials
    config_ids, seeds = (trials.column(name).to_pylist() for name in ("config_id", "seed"))
    values = [None] * trials.num_rows if by is None else trials.column(by).to_pylist()
    of_level: dict[Any, set[str]] = defaultdict(set)
    for config_id, value in zip(config_ids, values, strict=True):
        of_level[level_of(value)].add(config_id)
    levels = evenly(sorted(of_level, key=level_order), MAX_TRIALS)
    too_many = len(set(config_ids)) > MAX_TRIALS
    share = MAX_TRIALS // len(levels) if too_many else MAX_TRIALS
    kept = {config_id for level in levels for config_id in sorted(of_level[level])[:share]}
    rows = [row for row, config_id in enumerate(config_ids) if config_id in kept]
    nth: dict[str, Iterator[int]] = defaultdict(itertools.count)
    ranked = [(next(nth[config_ids[row]]), row) for row in sorted(rows, key=seeds.__getitem__)]
    return trials.take(sorted(row for _, row in sorted(ranked)[:MAX_TRIALS]))


def _with_rows(trials: pa.Table, table: pa.Table) -> pa.Table:
    found = pc.unique(table.column("trial_id"))
    return trials.filter(pc.is_in(trials.column("trial_id"), value_set=found))


def _most_changed(trials: pa.Table, of_rank: pa.Table, spectra: pa.Table) -> str | None:
    """The matrix with spectra whose normalised rank changed most, |last - first|, on average."""
    subjects = pc.unique(spectra.column("subject")).to_pylist()
    of_rank = of_rank.filter(pc.is_in(of_rank.column("subject"), pa.array(subjects, pa.string())))
    rows = completed_rows(trials, of_rank)
    order, starts = rows.by_trajectory()
    series, value = rows.of_series[order][starts], rows.value[order]
    lengths = np.diff(starts, append=value.size)
    change = np.abs(value[starts + lengths - 1] - value[starts])
    known = np.isfinite(change)
    means = {
        rows.series[s][0]: change[known & (series == s)].mean() for s in np.unique(series[known])
    }
    return max(means, key=lambda s: means[s]) if means else next(iter(subjects), None)


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
