"""The figures of a report that are lines or points: pruned models, settling, values, last step."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from orchestrator import figures_draw as draw
from orchestrator import lines
from orchestrator.aggregate import NORMALISED_RANK
from orchestrator.columns import only
from orchestrator.figures_data import HIDDEN, whole_subjects
from orchestrator.figures_final import draw_finals, finals, finals_table
from orchestrator.figures_panels import (
    CHOICE,
    COLUMNS,
    MAX_PANELS,
    MAX_SEEDS,
    SEEDS,
    STEPS,
    Material,
    Sheet,
    grid_of,
    hidden_of,
    panels,
    wrapped,
)
from orchestrator.figures_series import pruned_series, settling_series
from orchestrator.figures_sheets import series_sheet
from orchestrator.figures_text import literal, slug
from orchestrator.lines import AXIS_LABELS, STEP_LABEL


def pruned_sheet(material: Material, metric: str) -> Sheet | None:
    """Full and pruned models: a row of panels per configuration, a panel per split."""
    names = pc.unique(material.scalars["metric"]).to_pylist()
    kept = [name for name in names if name.startswith(f"{metric}/kept_")]
    if not kept:
        return None
    rows = pa.concat_tables([material.task_metric(metric), only(material.scalars, "metric", kept)])
    splits = sorted(set(only(rows, "metric", kept)["subject"].to_pylist()))
    drawn = []
    colours: dict[str, str] = {}
    styles: dict[str, str] = {}
    for configuration in material.shown:
        for split in splits:
            mine = only(rows, "subject", [split])
            series, colours, styles = pruned_series(mine, metric)
            of, titled = (
                ", ".join(part for part in (name, split) if part)
                for name in (configuration.label, configuration.shown)
            )
            drawn.append((of, titled, configuration, series))
    title = f"{AXIS_LABELS.get(metric, metric).split(' (')[0].capitalize()} of pruned models"
    label = AXIS_LABELS.get(metric, metric)
    columns = len(splits) if len(splits) > 1 else COLUMNS
    how = (
        f"{STEPS} Black: the full model. Blue and orange: every matrix (as a rule but the last) "
        "with only its leading, or only its last, singular directions kept, nothing retrained. "
        f"One panel per configuration and split. {SEEDS}"
    )
    doubtful = hidden_of(only(rows, "metric", kept))
    return series_sheet(
        material, f"pruned_{slug(metric)}", title, how, label, drawn, colours, styles,
        log=metric == "loss", columns=columns, notes=doubtful,
    )  # fmt: skip


def settling_sheet(material: Material) -> Sheet | None:
    """First and last indices of one matrix: a panel per configuration."""
    if material.matrix is None:
        return None
    table = material.quantity("agreement/final", material.matrix)
    if not table.num_rows:
        return None
    how = (
        f"{STEPS} Blue: mean over the determined ones among the first ten entries of the heat map "
        "of agreement above, orange: among the last ten. One panel per configuration. "
        f"{SEEDS} {CHOICE}"
    )
    series, colours = settling_series(table)
    drawn = [(each.label or "all", each.shown or "all", each, series) for each in material.shown]
    title = f"Agreement with the last snapshot, first and last indices: {material.matrix}"
    label = "agreement, mean of ten entries"
    sheet = series_sheet(
        material, "settling", title, how, label, drawn, colours, None, notes=hidden_of(table)
    )
    for ax in sheet.figure.axes:
        ax.set_ylim(-0.02, 1.02)
    return sheet


def singular_values_sheet(material: Material) -> Sheet | None:
    """Singular values of one matrix: a row per configuration, a panel per seed."""
    if material.matrix is None:
        return None
    table = material.quantity("singular_values", material.matrix)
    have = set(table["trial_id"].to_pylist())
    chosen = [
        (each, row)
        for each in material.shown
        for row in [row for row in each.rows if row["trial_id"] in have][:MAX_SEEDS]
    ]
    if not chosen:
        return None
    columns = max(sum(each is other for other, _ in chosen) for each, _ in chosen)
    notes = []
    if any(len(each.rows) > MAX_SEEDS for each in material.shown):
        notes.append(f"the first {MAX_SEEDS} seeds of each configuration; the others are left out")
    figure, cells = grid_of(chosen, columns)
    drawn: dict[str, Axes] = {}
    rank = 1
    for (configuration, row), ax in zip(chosen, cells, strict=True):
        lines.singular_values(table, row["trial_id"], material.matrix, ax, colour_bar=False)
        rank = max(rank, _name_indices(ax, row["trial_id"]))
        many = len(ax.lines) > 64
        for line in ax.lines:  # thousands of segments make a vector file slow to open
            line.set_rasterized(many)
        ended = "" if row["status"] == "completed" else f" ({row['status']})"
        of, titled = (
            ", ".join(part for part in (name, f"seed {row['seed']}{ended}") if part)
            for name in (configuration.label, configuration.shown)
        )
        ax.set_title(literal(wrapped(titled)), fontsize=8)
        ax.set_xlabel("")
        ax.set_ylabel("")
        ax.tick_params(which="both", labelsize=7)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
        drawn[of] = ax
    how = (
        f"{STEPS} Every line is one singular value, coloured by its index, 1 the largest; values "
        "on a logarithmic axis, zeros left out. One row of panels per configuration, one panel "
        "per seed. Dotted: where drawn, the largest numerical bound; what lies below it may be "
        f"rounding. {CHOICE}"
    )
    lines.add_colour_bar(figure, Normalize(1, max(rank, 2)), list(cells))
    title = f"Singular values over steps: {material.matrix}"
    figure.supxlabel(STEP_LABEL, fontsize=8)
    figure.supylabel("singular value (weight units)", fontsize=8)
    figure.suptitle(literal(title), fontsize=10)
    numbers = draw.lines_table(drawn, material.trials)
    return Sheet("singular_values", title, how, figure, numbers, [*notes, *hidden_of(table)])


def _name_indices(ax: Axes, trial_id: str) -> int:
    """Tell the lines of `lines.singular_values` apart; how many values there are."""
    values = [line for line in ax.lines if line.get_linestyle() != ":"]
    for place, line in enumerate(values):  # it draws the smallest first
        line.set_gid(f"{trial_id} {len(values) - place}")
    return len(values)


def finals_sheet(material: Material, parameter: str) -> Sheet | None:
    """The last step against a parameter: a panel per matrix, every seed a point."""
    table = material.metric(NORMALISED_RANK)
    table = only(table, "subject", whole_subjects(table))
    found = finals(material.trials, table, parameter, material.parameters)
    if not found:
        return None
    notes = []
    if len(found) > MAX_PANELS:
        notes.append(f"{len(found) - MAX_PANELS} of {len(found)} matrices left out")
        found = dict(list(found.items())[:MAX_PANELS])
    figure, grid = panels(len(found), 1.9)
    for ax, (subject, ends) in zip(grid, found.items(), strict=True):
        draw_finals(ax, ends, parameter, NORMALISED_RANK)
        ax.set_title(literal(draw.short(subject)), fontsize=8)
        ax.set_xlabel("")
        ax.set_ylabel("")
    label = AXIS_LABELS[NORMALISED_RANK]
    title = f"Normalised effective rank at the last step, by {parameter}"
    figure.supxlabel(literal(parameter), fontsize=8)
    figure.supylabel(label, fontsize=8)
    figure.suptitle(literal(title), fontsize=10)
    how = (
        f"Levels of {parameter} stand side by side, without a scale. Circles: completed trials, "
        "one each. Bars: mean over the seeds of a configuration with its 95 % Student-t interval; "
        "n is the number of seeds; without an interval where n = 1. One panel per matrix, each "
        "with a value axis of its own."
    )
    hidden = sum(end.num_hidden for ends in found.values() for end in ends)
    if hidden:
        notes.insert(0, f"{hidden} numbers hidden for their flag ({', '.join(HIDDEN)})")
    numbers = finals_table(found, parameter)
    return Sheet(f"final_rank_by_{slug(parameter)}", title, how, figure, numbers, notes)
