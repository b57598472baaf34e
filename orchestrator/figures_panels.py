"""What the sheets of a report are made from, and the panels they are drawn on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator import lines
from orchestrator.columns import only
from orchestrator.figures_data import HIDDEN, Configuration
from orchestrator.lines import evenly

COLUMNS = 3
MAX_CONFIGURATIONS = 6
MAX_PANELS = 24
MAX_SEEDS = 3
"""Seeds with a panel of their own; where a seed is a line, all are drawn."""

# Words that the explanations of several figures share.
STEPS = "Steps run across, linearly to 1 and logarithmically beyond."
SEEDS = (
    "Thin lines: one trial each (dashed with a cross: it diverged or was pruned); thick lines: the "
    "mean over the completed seeds of a configuration."
)
UPDATES = (
    f"{STEPS} The update at a step is what was added to a matrix since the snapshot before; "
    "snapshots need not be equally far apart."
)
GREY = "Grey: no number, in at least one of the seeds."
CHOICE = (
    "The matrix shown is the one whose normalised effective rank changed most (last minus first, "
    "absolute, mean over trials)."
)
COUPLING_CHOICE = (
    "The coupling shown is the one whose score changed most (last minus first, absolute, mean over "
    "trials)."
)
MEAN = "Each heat map is one configuration: the mean over its completed seeds, as its title says."
CHANCE = "the level that random vectors would have on average"


@dataclass(frozen=True)
class Material:
    """What the sheets are made from.

    Attributes:
        trials: one row per trial with a result.
        parameters: the swept ones.
        scalars: what was measured of all trials, flags as `figures_data.visible` leaves them.
        own: likewise the task's own metrics; see `figures_choice.own_rows`.
        spectra: rows of the shown configurations, likewise.
        configurations: all with a line, in order.
        shown: those that have a panel of their own.
        matrix: the one that is shown where a figure is of one; None: there is none.
        coupling: likewise.
    """

    trials: pa.Table
    parameters: Sequence[str]
    scalars: pa.Table
    own: pa.Table
    spectra: pa.Table
    configurations: Sequence[Configuration]
    shown: Sequence[Configuration]
    matrix: str | None
    coupling: str | None

    def metric(self, name: str, subject: str | None = None) -> pa.Table:
        """The rows of a metric."""
        return lines.rows_of(self.scalars, name, subject)

    def task_metric(self, name: str, subject: str | None = None) -> pa.Table:
        """The rows of a metric of the task's own."""
        return lines.rows_of(self.own, name, subject)

    def quantity(self, name: str, subject: str) -> pa.Table:
        """The rows of a quantity of one subject."""
        chosen = only(only(self.spectra, "quantity", [name]), "subject", [subject])
        return chosen.sort_by("step")


@dataclass(frozen=True)
class Sheet:
    """One figure of the report.

    Attributes:
        name: fit for a file name.
        title: of its section.
        how: how to read it.
        figure: the figure.
        numbers: what is plotted.
        notes: what is hidden or left out, counted.
        section: the group of the table of contents.
    """

    name: str
    title: str
    how: str
    figure: Figure
    numbers: pa.Table
    notes: Sequence[str] = field(default=())


Maker = Callable[[], Sheet | None]


def panels(
    count: int, height: float, *, columns: int = COLUMNS, names: int = 0
) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, row by row, `names` columns of which have names at the left."""
    across = min(count, columns)
    rows = math.ceil(count / across)
    width = 3.1 * across + 1.0 + 1.4 * names + (1.2 if across == 1 else 0)
    figure = Figure(figsize=(width, height * rows + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, across, squeeze=False).ravel()
    for ax in axes[count:]:
        ax.remove()
    return figure, list(axes[:count])


def grid_of(chosen: Sequence[tuple[Configuration, Any]], columns: int) -> tuple[Figure, list[Axes]]:
    """A row per configuration, whether or not it has as many seeds as the others."""
    order = list(dict.fromkeys(each.config_id for each, _ in chosen))
    width = 3.1 * columns + 1.4 + (1.2 if columns == 1 else 0)
    figure = Figure(figsize=(width, 2.1 * len(order) + 1.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(order), columns, squeeze=False, sharex=True, sharey=True)
    used: dict[str, int] = dict.fromkeys(order, 0)
    cells = []
    for each, _ in chosen:
        cells.append(axes[order.index(each.config_id)][used[each.config_id]])
        used[each.config_id] += 1
    for ax in axes.ravel():
        if not any(ax is cell for cell in cells):
            ax.remove()
    return figure, cells


def label_bottom(grid: Sequence[Axes], label: str, columns: int) -> None:
    """The label of the common axis under the panels of the last row.

    The figure's own label would lie under a legend that stands outside the panels.
    """
    for ax in grid[(len(grid) - 1) // columns * columns :]:
        ax.set_xlabel(label, fontsize=7)


def wrapped(text: str, width: int = 40) -> str:
    """A title on two or more lines, broken at commas."""
    rows: list[str] = []
    for part in text.split(", "):
        if rows and len(rows[-1]) + len(part) + 2 <= width:
            rows[-1] += f", {part}"
        else:
            rows.append(part)
    return ",\n".join(rows)


def shown_of(all_: Sequence[Configuration]) -> list[Configuration]:
    """The configurations that get a panel: all, or evenly spread ones."""
    return evenly(all_, MAX_CONFIGURATIONS)


def hidden_of(rows: pa.Table) -> list[str]:
    """A note that counts the numbers among these rows that are hidden; none if there are none."""
    hidden = pc.sum(pc.is_valid(rows["flag"])).as_py() or 0
    return [f"{hidden} numbers hidden for their flag ({', '.join(HIDDEN)})"] * (hidden > 0)
