"""The general kinds of figures in a report: heat maps, metrics and series over steps.

A sheet's words name axes, units, chance levels, and count what is hidden or left out; they never
say what was found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator import figures_draw as draw
from orchestrator import lines
from orchestrator.columns import only
from orchestrator.figures_data import (
    HIDDEN,
    Configuration,
    Heat,
    scalar_heat,
    spectrum_heat,
    whole_subjects,
)
from orchestrator.figures_panels import (
    COLUMNS,
    MAX_PANELS,
    Material,
    Sheet,
    hidden_of,
    label_bottom,
    panels,
    wrapped,
)
from orchestrator.figures_series import Series
from orchestrator.figures_text import literal
from orchestrator.lines import AXIS_LABELS, STEP_LABEL
from orchestrator.plots import few_of

# --- heat maps ------------------------------------------------------------------------------


def heat_sheet(
    name: str,
    title: str,
    how: str,
    heats: Sequence[Heat],
    label: str,
    *,
    row: str,
    whole: bool = False,
    chance: float | None = None,
    notes: Sequence[str] = (),
) -> Sheet | None:
    """A heat map per configuration, with the same colours.

    Args:
        name: of the files.
        title: of the figure.
        how: how to read it.
        heats: of the shown configurations.
        label: of the colours.
        row: name of the rows' column among the numbers.
        whole: see `figures_draw.limits_of`.
        chance: one level for all entries.
        notes: what else was left out.
    """
    heats = [heat for heat in heats if heat.values.size]
    if not heats:
        return None
    indices = isinstance(heats[0].rows[0], int)
    longest = max(len(heat.rows) for heat in heats)
    height = 2.1 if indices else min(max(1.4, 0.16 * longest + 0.4), 10)
    # names stand at the left of a row of panels, and where they could be taken for others
    named = [
        place % COLUMNS == 0
        or (not indices and {heats[place - place % COLUMNS].rows, heats[place - 1].rows} != {own})
        for place, own in enumerate(heat.rows for heat in heats)
    ]
    columns = {place % COLUMNS for place, labels in enumerate(named) if labels}
    figure, grid = panels(len(heats), height, names=0 if indices else len(columns))
    limits = draw.limits_of(heats, whole=whole)
    for ax, heat, labels in zip(grid, heats, named, strict=True):
        mesh = draw.draw_heat(ax, heat, limits, labels=labels)
        ax.set_title(literal(wrapped(heat.title)), fontsize=8)
    draw.colour_bar(mesh, grid, label, chance)
    label_bottom(grid, STEP_LABEL, COLUMNS)
    figure.suptitle(literal(title), fontsize=10)
    hidden = sum(heat.num_hidden for heat in heats)
    undetermined = sum(heat.num_undetermined for heat in heats)
    counted = [f"{hidden} numbers hidden for their flag ({', '.join(HIDDEN)})"] * (hidden > 0)
    counted += [f"{undetermined} numbers not determined or not measured"] * (undetermined > 0)
    unequal = [heat.label or "this configuration" for heat in heats if heat.unequal]
    if unequal:
        counted.append(
            f"seeds of {'; '.join(unequal)} were recorded at different steps, so that the first "
            "one is shown instead of a mean"
        )
    numbers = pa.concat_tables([heat.table(row) for heat in heats], promote_options="default")
    return Sheet(name, title, how, figure, numbers, [*counted, *notes])


def scalar_heats(
    material: Material, metric: str, chances: Mapping[Any, float] | None
) -> list[Heat]:
    """A metric of the whole matrices or couplings, a heat map per shown configuration."""
    table = material.metric(metric)
    table = only(table, "subject", whole_subjects(table))
    return [scalar_heat(table, each, chances) for each in material.shown]


def entry_heats(
    material: Material, quantity: str, subject: str, chance: float | None
) -> list[Heat]:
    """A quantity of one subject, a heat map per shown configuration."""
    table = material.quantity(quantity, subject)
    return [spectrum_heat(table, each, chance) for each in material.shown]


# --- lines ----------------------------------------------------------------------------------


def metric_sheet(
    material: Material,
    name: str,
    title: str,
    how: str,
    pairs: Sequence[tuple[str, str]],
    by: str | None,
    *,
    own: bool = False,
    chances: Mapping[tuple[str, str], Sequence[float]] | None = None,
    beside: tuple[str, str] | None = None,
    columns: int = COLUMNS,
    notes: Sequence[str] = (),
) -> Sheet | None:
    """A panel per (subject, metric), every trial a line coloured by the level of a parameter.

    Args:
        material: the tables.
        name: of the files.
        title: of the figure.
        how: how to read it.
        pairs: subject and metric of each panel.
        by: the parameter; None: one colour.
        own: whether these are metrics of the task's own.
        chances: panel -> its chance levels, a dashed line each.
        beside: another metric whose means are dotted, and what it is of.
        columns: panels side by side.
        notes: what else was left out.
    """
    rows_of = material.task_metric if own else material.metric
    tables = {pair: rows_of(metric, subject) for pair in pairs for subject, metric in [pair]}
    pairs = [pair for pair in pairs if tables[pair].num_rows]
    if not pairs:
        return None
    counted = [*notes]
    if len(pairs) > MAX_PANELS:
        counted.append(f"{len(pairs) - MAX_PANELS} of {len(pairs)} panels left out")
        pairs = pairs[:MAX_PANELS]
    trials = material.trials.select(
        list(dict.fromkeys(["trial_id", "config_id", "seed", "status", *([by] if by else [])]))
    )
    have = pc.unique(pa.concat_tables(tables[pair] for pair in pairs)["trial_id"])
    known = lines.drawable(trials.filter(pc.is_in(trials["trial_id"], value_set=have)))
    chosen = few_of(known, by)
    if chosen.num_rows < known.num_rows:
        counted.append(f"{chosen.num_rows} of {known.num_rows} trials drawn; means are over all")
    figure, grid = panels(len(pairs), 2.1, columns=columns)
    drawn: dict[str, Axes] = {}
    single = len({metric for _, metric in pairs}) == 1
    for ax, (subject, metric) in zip(grid, pairs, strict=True):
        lines.draw_metric(ax, trials, tables[subject, metric], by, chosen)
        if beside is not None:
            table = rows_of(beside[0], subject)
            lines.draw_means(ax, trials, table, by, chosen, ":", beside[1])
        for level in (chances or {}).get((subject, metric), ()):
            draw.draw_chance(ax, level)
        ax.set_title(literal(wrapped(draw.short(subject))), fontsize=8)
        if not single:
            ax.set_ylabel(literal(AXIS_LABELS.get(metric, metric)), fontsize=7)
        ax.tick_params(which="both", labelsize=7)
        drawn[subject if single else f"{subject} {metric}"] = ax
    if single:
        figure.supylabel(literal(AXIS_LABELS.get(pairs[0][1], pairs[0][1])), fontsize=8)
    label_bottom(grid, STEP_LABEL, columns)
    figure.suptitle(literal(title), fontsize=10)
    handles = [] if by is None else lines.legend_of(trials, known, by)
    if beside is not None:
        handles += [Line2D([], [], color="black", lw=1.8, ls=":", label=f"{beside[1]}, mean")]
    if handles:
        figure.legend(
            handles=handles, title=None if by is None else literal(by), title_fontsize=8,
            loc="outside lower center", ncols=4, fontsize=7,
        )  # fmt: skip
    rows = pa.concat_tables(tables[pair] for pair in pairs)
    numbers = draw.lines_table(drawn, trials)
    return Sheet(name, title, how, figure, numbers, [*hidden_of(rows), *counted])


def series_sheet(
    material: Material,
    name: str,
    title: str,
    how: str,
    label: str,
    drawn: Sequence[tuple[str, str, Configuration, Series]],
    colours: Mapping[str, str],
    styles: Mapping[str, str] | None,
    *,
    log: bool = False,
    columns: int = COLUMNS,
    notes: Sequence[str] = (),
) -> Sheet:
    """A panel per entry of `drawn` (name, title, configuration, series), every seed a line.

    Args:
        material: the tables.
        name: of the files.
        title: of the figure.
        how: how to read it.
        label: of the value axis.
        drawn: the panels.
        colours: of each series.
        styles: likewise.
        log: whether the value axis is logarithmic where all values are positive.
        columns: panels side by side.
        notes: what was hidden or left out.
    """
    figure, grid = panels(len(drawn), 2.1, columns=columns)
    by_name: dict[str, Axes] = {}
    for ax, (of, titled, configuration, series) in zip(grid, drawn, strict=True):
        draw.draw_seeds(ax, configuration, series, colours, styles)
        if log:
            draw.logarithmic_if_positive(ax)
        ax.set_title(literal(wrapped(titled)), fontsize=8)
        by_name[of] = ax
    figure.supylabel(literal(label), fontsize=8)
    label_bottom(grid, STEP_LABEL, columns)
    figure.suptitle(literal(title), fontsize=10)
    handles = draw.legend_lines(colours, styles)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    return Sheet(name, title, how, figure, draw.lines_table(by_name, material.trials), notes)
