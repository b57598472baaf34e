"""Heat maps and lines of one configuration onto a given `Axes`, and the numbers of drawn lines.

No pyplot, no global state, no display, like `orchestrator.lines`. Every line that stands for
something has a gid that begins with the trial's or the configuration's identifier and goes on,
after a space, with what it is; `lines_table` turns them back into numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from orchestrator.figures_data import ENDS, Configuration, Heat
from orchestrator.figures_text import literal
from orchestrator.fits import Floats
from orchestrator.lines import STEP_LABEL

CHANCE = "chance"
"""The gid of a line that marks a chance level."""
MOST_LABELS = 70
"""Names beside a heat map, at most; of more rows every second has one, or every third, ..."""
_LONGEST = 40
_EMPTY = "0.85"


# --- heat maps ------------------------------------------------------------------------------


def limits_of(heats: Sequence[Heat], *, whole: bool) -> tuple[float, float]:
    """A range of colours that several heat maps can share.

    Args:
        heats: which.
        whole: from 0 to 1 if all numbers lie there; else from 0 to the largest that is there.
    """
    drawn = np.concatenate([heat.values.ravel() for heat in heats] or [np.zeros(0)])
    drawn = drawn[np.isfinite(drawn)]
    low, high = float(drawn.min(initial=0.0)), float(drawn.max(initial=0.0))
    if whole and 0 <= low and high <= 1.0 + 1e-9:
        return 0.0, 1.0
    return low, high if high > low else low + 1.0


def draw_heat(
    ax: Axes, heat: Heat, limits: tuple[float, float], *, labels: bool = True
) -> ScalarMappable:
    """One heat map: steps across (linear to 1, then logarithmic), rows down; grey: no number.

    A column reaches half way (geometrically) to the neighbouring steps.
    """
    colours = mpl.colormaps["viridis"].with_extremes(bad=_EMPTY)
    ax.set_facecolor(_EMPTY)
    rows = np.arange(len(heat.rows) + 1) + 0.5
    mesh = ax.pcolormesh(
        _edges(heat.steps),
        rows,
        np.ma.masked_invalid(heat.values),
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        rasterized=heat.values.size > 1000,  # a vector file with a shape per cell is slow to open
    )
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.set_ylim(rows[-1], rows[0])
    ax.tick_params(which="both", labelsize=7)
    if all(isinstance(row, int) for row in heat.rows):
        ax.set_ylabel("index (1 = largest singular value)" if labels else "", fontsize=8)
    else:
        size = 7 if len(heat.rows) <= 24 else 5
        every = max(1, math.ceil(len(heat.rows) / MOST_LABELS))
        names = [literal(_named(heat, row)) for row in heat.rows[::every]]
        places = range(1, len(heat.rows) + 1, every)
        ax.set_yticks(places, names if labels else [], fontsize=size)
        ax.tick_params(axis="y", length=0)
    return mesh


def colour_bar(mesh: ScalarMappable, axes: Any, label: str, chance: float | None = None) -> None:
    """What the colours mean; a chance level is a dashed line across it."""
    figure = (axes[0] if isinstance(axes, list) else axes).figure
    bar = figure.colorbar(mesh, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(literal(label), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    if chance is not None:
        bar.ax.axhline(chance, color="white", lw=2.2)
        bar.ax.axhline(chance, color="black", lw=1.2, ls="--", gid=CHANCE)


def short(name: str) -> str:
    """A name that fits beside a panel: ``a.b.c->a.b.d`` as ``a.b.c → d``; of a long one the end."""
    first, arrow, second = name.partition("->")
    one, other = first.split("."), second.split(".")
    while arrow and len(one) > 1 and len(other) > 1 and one[0] == other[0]:
        one, other = one[1:], other[1:]
    text = f"{first} → {'.'.join(other)}" if arrow else first
    return text if len(text) <= _LONGEST else f"…{text[1 - _LONGEST :]}"


def _named(heat: Heat, row: str) -> str:
    chance = (heat.chance or {}).get(row)
    return short(row) if chance is None else f"{short(row)} ({chance:.2g})"


def _edges(steps: Sequence[int]) -> Floats:
    """Where the columns of these steps begin and end."""
    if len(steps) < 2:
        return np.array([max(steps[0] - 0.5, 0.0), steps[0] + 0.5]) if steps else np.zeros(1)
    inner = [0.5 if a == 0 else float(np.sqrt(a * b)) for a, b in itertools.pairwise(steps)]
    first = 0.0 if steps[0] == 0 else steps[0] ** 2 / inner[0]
    last = steps[-1] ** 2 / inner[-1]
    return np.array([first, *inner, last])


# --- lines ----------------------------------------------------------------------------------


def draw_seeds(
    ax: Axes,
    configuration: Configuration,
    series: Mapping[str, Mapping[str, tuple[Sequence[int], Sequence[float]]]],
    colours: Mapping[str, Any],
    styles: Mapping[str, str] | None = None,
) -> None:
    """Every trial as a thin line and the mean of the completed ones as a thick one, per series.

    Args:
        ax: where to draw.
        configuration: whose trials.
        series: what a line is -> trial_id -> its steps and values; NaN: nothing to show.
        colours: of each series.
        styles: likewise; default: solid. Diverged and pruned trials are dashed and end in a cross.
    """
    for name, of_trial in series.items():
        style = (styles or {}).get(name, "-")
        means: list[Floats] = []
        steps_of: set[tuple[int, ...]] = set()
        for row in configuration.rows:
            if row["trial_id"] not in of_trial:
                continue
            x, y = of_trial[row["trial_id"]]
            gid = f"{row['trial_id']} {name}"
            (line,) = ax.plot(x, y, color=colours[name], ls=style, lw=0.8, alpha=0.7, gid=gid)
            if len(x) == 1:
                line.set(marker=".")
            if row["status"] in ENDS:
                line.set(linestyle="--", marker="x", markersize=5)
                line.set_markevery(np.flatnonzero(np.isfinite(y))[-1:].tolist())
            elif row["status"] == "completed":
                means.append(np.array(y, np.float64))
                steps_of.add(tuple(x))
        if len(means) > 1 and len(steps_of) == 1:
            gid = f"{configuration.config_id} {name}"
            mean = np.mean(means, axis=0)
            ax.plot(steps_of.pop(), mean, color=colours[name], ls=style, lw=1.8, gid=gid)
    ax.set_xscale("symlog", linthresh=1, linscale=0.5)
    ax.margins(x=0)
    ax.grid(visible=True, lw=0.4, alpha=0.4)
    ax.tick_params(which="both", labelsize=7)


def legend_lines(colours: Mapping[str, Any], styles: Mapping[str, str] | None = None) -> list[Any]:
    """The legend's handles of the series of `draw_seeds`."""
    return [
        Line2D([], [], color=colour, lw=1.8, ls=(styles or {}).get(name, "-"), label=name)
        for name, colour in colours.items()
    ]


def draw_chance(ax: Axes, chance: float) -> None:
    """A dashed line at a chance level."""
    ax.axhline(chance, color="0.2", ls="--", lw=1.0, gid=CHANCE)


def lines_table(panels: Mapping[str, Axes], trials: pa.Table) -> pa.Table:
    """The numbers of every line that stands for something, as drawn; NaN (not drawn) as null.

    Args:
        panels: title -> axes.
        trials: columns trial_id, config_id, seed.
    """
    of_trial = {
        row["trial_id"]: row for row in trials.select(["trial_id", "config_id", "seed"]).to_pylist()
    }
    parts = []
    for title, ax in panels.items():
        for line in ax.lines:
            gid = line.get_gid()
            if gid is None:
                continue
            x, y = (np.asarray(values, np.float64) for values in line.get_data())
            identifier, _, series = gid.partition(" ")
            trial = of_trial.get(identifier)
            at = x if gid != CHANCE else np.full(x.size, np.nan)
            what = CHANCE if gid == CHANCE else "trial" if trial else "mean"
            config_id = None if gid == CHANCE else trial["config_id"] if trial else identifier
            labels = {
                "panel": title,
                "what": what,
                "series": series or None,
                "config_id": config_id,
                "trial_id": identifier if trial else None,
            }
            columns = {k: pa.repeat(pa.scalar(v, pa.string()), x.size) for k, v in labels.items()}
            seed = pa.scalar(trial["seed"] if trial else None, pa.int64())
            columns["seed"] = pa.repeat(seed, x.size)
            columns["step"] = pa.array(at, pa.float64(), from_pandas=True).cast(pa.int64())
            columns["value"] = pa.array(y, pa.float64(), from_pandas=True)
            parts.append(pa.table(columns).slice(0, 1 if gid == CHANCE else x.size))
    return pa.concat_tables(parts) if parts else pa.table({})


def label_steps(ax: Axes) -> None:
    """Name the step axis."""
    ax.set_xlabel(STEP_LABEL, fontsize=8)


def new_axes() -> Axes:
    """The axes of a figure of its own, which needs no display."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def logarithmic_if_positive(ax: Axes) -> None:
    """A logarithmic value axis, unless a drawn value has no place on it."""
    drawn = np.concatenate(
        [np.asarray(line.get_ydata(), float) for line in ax.lines] + [np.zeros(0)]
    )
    drawn = drawn[np.isfinite(drawn)]
    if drawn.size and drawn.min() > 0:
        ax.set_yscale("log")


# --- one of them alone ---------------------------------------------------------------------


def heat_alone(
    ax: Axes | None,
    heat: Heat,
    label: str,
    *,
    whole: bool = False,
    chance: float | None = None,
    of: str | None = None,
) -> Axes:
    """One heat map with its colours, title and labels; see `draw_heat` and `colour_bar`."""
    ax = new_axes() if ax is None else ax
    mesh = draw_heat(ax, heat, limits_of([heat], whole=whole))
    colour_bar(mesh, ax, label, chance)
    label_steps(ax)
    title = [part for part in (None if of is None else short(of), heat.title) if part]
    ax.set_title(literal(", ".join(title)), fontsize=10)
    return ax


def seeds_alone(
    ax: Axes | None,
    one: Configuration,
    series: Mapping[str, Any],
    colours: Mapping[str, Any],
    styles: Mapping[str, str] | None,
    label: str,
    of: str,
) -> Axes:
    """The lines of one configuration with their legend, title and labels; see `draw_seeds`."""
    ax = new_axes() if ax is None else ax
    draw_seeds(ax, one, series, colours, styles)
    label_steps(ax)
    ax.set_ylabel(literal(label), fontsize=8)
    ax.legend(handles=legend_lines(colours, styles), fontsize=7)
    seeds = "seed" if len(one.rows) == 1 else "seeds"
    whose = f"{seeds} {', '.join(str(row['seed']) for row in one.rows)}"
    ax.set_title(literal(", ".join(filter(None, (of, one.shown, whose)))), fontsize=10)
    return ax
