"""What each configuration ends at, against one swept parameter: every seed, and their mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes

from orchestrator.aggregate import Estimate, over_seeds
from orchestrator.comparable import level_of, level_order
from orchestrator.figures_data import HIDDEN, Configuration, configurations
from orchestrator.figures_text import literal, shorter
from orchestrator.lines import AXIS_LABELS, evenly

MAX_TICKS = 12
"""Levels that have their name under the axis, at most."""
_ROOM = 60  # characters that fit under it, about


@dataclass(frozen=True)
class Final:
    """One subject at the end of one configuration.

    Attributes:
        configuration: which.
        level: of the parameter on the axis.
        points: trial_id -> value at its last step; completed trials, flagged ones left out.
        estimate: mean and 95 % t interval over the seeds; None if any of them is hidden.
        num_hidden: completed trials hidden for their flag.
    """

    configuration: Configuration
    level: Any
    points: Mapping[str, float]
    estimate: Estimate | None
    num_hidden: int


def finals(
    trials: pa.Table, scalars: pa.Table, parameter: str, parameters: Sequence[str]
) -> dict[str, list[Final]]:
    """Subject -> what each configuration with a completed trial ends at, by the parameter's level.

    Args:
        trials: columns trial_id, config_id, seed, status and the parameters.
        scalars: rows of one metric.
        parameter: the one on the axis.
        parameters: all swept ones.

    Raises:
        IncomparableTrialsError: see `comparable.completed_rows`.
    """
    last: dict[tuple[str, str], tuple[int, float, bool]] = {}
    names = ("subject", "trial_id", "step", "value", "flag")
    for subject, trial_id, step, value, flag in zip(
        *(scalars.column(name).to_pylist() for name in names), strict=True
    ):
        if step >= last.get((subject, trial_id), (-1,))[0]:
            number = math.nan if value is None else value
            last[subject, trial_id] = (step, number, flag in HIDDEN)
    ends: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in over_seeds(trials, scalars).to_pylist():  # steps ascend: the last one stays
        ends[row["subject"], row["config_id"]] = row
    levels = dict(
        zip(
            trials["config_id"].to_pylist(),
            map(level_of, trials[parameter].to_pylist()),
            strict=True,
        )
    )
    found: dict[str, list[Final]] = {}
    ordered = sorted(
        configurations(trials, parameters), key=lambda c: level_order(levels[c.config_id])
    )
    for subject in dict.fromkeys(scalars["subject"].to_pylist()):
        for each in ordered:
            end = ends.get((subject, each.config_id))
            if end is None:
                continue
            done = [r["trial_id"] for r in each.rows if r["status"] == "completed"]
            mine = {t: last[subject, t] for t in done if (subject, t) in last}
            num_hidden = sum(hidden for _, _, hidden in mine.values())
            statistics = {name: end[name] for name in ("n", "mean", "sd", "lower", "upper")}
            found.setdefault(subject, []).append(
                Final(
                    configuration=each,
                    level=levels[each.config_id],
                    points={t: value for t, (_, value, hidden) in mine.items() if not hidden},
                    estimate=None if num_hidden else Estimate(**statistics),
                    num_hidden=num_hidden,
                )
            )
    return found


def finals_table(found: Mapping[str, Sequence[Final]], parameter: str) -> pa.Table:
    """The numbers of `finals` in long form: a row per seed, and one per mean."""
    rows: list[dict[str, Any]] = []
    for subject, ends in found.items():
        for end in ends:
            common = {"panel": subject, "parameter": parameter, "level": str(end.level)}
            common |= {"configuration": end.configuration.label or "all"}
            seeds = {row["trial_id"]: row["seed"] for row in end.configuration.rows}
            for trial_id, value in end.points.items():
                rows.append(
                    {**common, "what": "trial", "trial_id": trial_id, "seed": seeds[trial_id]}
                    | {"value": value}
                )
            if (of := end.estimate) is not None:
                mean = {"what": "mean", "value": of.mean, "n": of.n}
                rows.append({**common, **mean, "lower": of.lower, "upper": of.upper})
    texts = ("panel", "parameter", "level", "configuration", "what", "trial_id")
    names = [*((name, pa.string()) for name in texts), ("seed", pa.int64())]
    names += [(name, pa.float64()) for name in ("value", "lower", "upper")] + [("n", pa.int64())]
    return pa.Table.from_pylist(rows, pa.schema(names))


def draw_finals(ax: Axes, ends: Sequence[Final], parameter: str, metric: str) -> None:
    """Every seed as a point over the levels, which stand side by side without a scale.

    Means are bars with their 95 % t interval, joined by a line where each level has one
    configuration. Configurations that share a level stand beside each other; the points of each
    have its config_id as gid. Of many levels, evenly spread ones are named.
    """
    levels = list(dict.fromkeys(end.level for end in ends))
    at_level: dict[Any, list[Final]] = {level: [] for level in levels}
    for end in ends:
        at_level[end.level].append(end)
    widest = max((len(members) for members in at_level.values()), default=1)
    means: list[tuple[float, float, float, float]] = []  # where, mean, its interval
    for place, level in enumerate(levels):
        for i, end in enumerate(at_level[level]):
            centre = place + (0.8 * ((i + 0.5) / len(at_level[level]) - 0.5) if widest > 1 else 0)
            spread = 0.12 / widest
            xs = [centre + spread * (j - (len(end.points) - 1) / 2) for j in range(len(end.points))]
            gid = end.configuration.config_id
            values = [*end.points.values()]
            ax.plot(xs, values, "o", ms=3.5, mfc="none", color="#0072B2", gid=gid)
            if (of := end.estimate) is None or of.mean is None:
                continue
            low = of.mean if of.lower is None else of.lower
            high = of.mean if of.upper is None else of.upper
            means.append((centre, of.mean, low, high))
    if means:
        x, y, lower, upper = np.array(means).T
        half = np.maximum([y - lower, upper - y], 0.0)  # rounding may put the mean at an end
        ax.errorbar(x, y, half, fmt="_", ms=9, color="#D55E00", capsize=3, lw=1.2)
        if widest == 1:
            ax.plot(x, y, color="#D55E00", lw=0.8, alpha=0.6)
    longest = max((len(shorter(level)) for level in levels), default=0)
    named = evenly(range(len(levels)), min(MAX_TICKS, _ROOM // min(max(longest, 5), 10)))
    room = max(8, _ROOM // max(len(named), 1) - 1)
    ax.set_xticks(named, [_ticked(levels[i], at_level[levels[i]], room) for i in named])
    ax.set_xlim(-0.6, len(levels) - 0.4)
    ax.set_xlabel(literal(parameter), fontsize=8)
    ax.set_ylabel(literal(AXIS_LABELS.get(metric, metric)), fontsize=8)
    ax.grid(visible=True, axis="y", lw=0.4, alpha=0.4)
    ax.tick_params(labelsize=7)


def _ticked(level: Any, ends: Sequence[Final], room: int) -> str:
    counts = {end.estimate.n if end.estimate else len(end.points) for end in ends}
    n = str(counts.pop()) if len(counts) == 1 else f"{min(counts)}–{max(counts)}"
    return literal(f"{shorter(level, room)}\nn = {n}")
