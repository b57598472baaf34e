"""What figures show, as numbers: configurations in order, heat maps of one, final values of all.

Pure functions of the tables `trials`, `scalars` and `spectra`; nothing is drawn here. A heat map is
of one trial, or the mean over the completed seeds of one configuration, and of nothing wider: never
over matrices, never over configurations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import subjects
from orchestrator.comparable import level_of, level_order
from orchestrator.figures_text import shorter
from orchestrator.fits import Floats
from orchestrator.lines import drawable

HIDDEN = ("collapsed", "zero", "diverged")
"""Flags of numbers that no figure shows. `ill_posed` entries are NaN where they have to be, and an
`estimated` number has an interval, so these two are drawn."""
ENDS = ("diverged", "pruned")


@dataclass(frozen=True)
class Configuration:
    """The trials with a line of one configuration.

    Attributes:
        config_id: which.
        label: its swept parameters, ``weight_decay = 0.3``; its identifier if none is swept and
            there are several.
        shown: the same with long values shortened.
        rows: its trials by seed: trial_id, config_id, seed, status.
    """

    config_id: str
    label: str
    shown: str
    rows: tuple[Mapping[str, Any], ...]

    @property
    def chosen(self) -> tuple[Mapping[str, Any], ...]:
        """Its completed trials; if there is none, the trial of the smallest seed."""
        done = tuple(row for row in self.rows if row["status"] == "completed")
        return done or self.rows[:1]

    def alone(self, trial_id: str) -> Configuration:
        """The same with one trial."""
        rows = tuple(row for row in self.rows if row["trial_id"] == trial_id)
        return dataclasses.replace(self, rows=rows)


@dataclass(frozen=True)
class Heat:
    """A heat map: `values` (rows, steps), NaN where there is nothing to show.

    Attributes:
        label: of the configuration; likewise `shown`.
        rows: what the rows are: names of matrices or couplings, or indices from 1.
        steps: ascending.
        values: of one trial, or the mean over `trials`; NaN where any of them has no number.
        chance: what each row would be on average for random vectors; None: no such level.
        trials: whose numbers they are.
        statuses: of these.
        seeds: of these.
        num_hidden: numbers hidden for their flag (`HIDDEN`), over these trials.
        num_undetermined: numbers that are NaN for any other reason.
        unequal: whether further seeds were left out because they were recorded at other steps.
    """

    label: str
    shown: str
    rows: tuple[Any, ...]
    steps: tuple[int, ...]
    values: Floats
    chance: Mapping[Any, float] | None
    trials: tuple[str, ...]
    statuses: tuple[str, ...]
    seeds: tuple[int, ...]
    num_hidden: int
    num_undetermined: int
    unequal: bool = False

    @property
    def title(self) -> str:
        """The configuration, and whose numbers."""
        return ", ".join(part for part in (self.shown, self.whose) if part)

    @property
    def whose(self) -> str:
        """``seed 0``, or ``mean of 3 seeds``."""
        if len(self.seeds) > 1:
            return f"mean of {len(self.seeds)} seeds"
        ended = "" if self.statuses[0] == "completed" else f" ({self.statuses[0]})"
        return f"seed {self.seeds[0]}{ended}"

    def table(self, row: str) -> pa.Table:
        """The numbers in long form; `row` names the column of the rows."""
        count = len(self.rows)
        long = {
            "panel": [self.label or "all"] * self.values.size,
            "seeds": [" ".join(map(str, self.seeds))] * self.values.size,
            row: [name for name in self.rows for _ in self.steps],
            "step": pa.array(list(self.steps) * count, pa.int64()),
            "value": pa.array(self.values.ravel(), pa.float64(), from_pandas=True),
        }
        if self.chance is not None:
            chance = [self.chance.get(name, math.nan) for name in self.rows for _ in self.steps]
            long["chance"] = pa.array(chance, pa.float64(), from_pandas=True)
        return pa.table(long)


def configurations(trials: pa.Table, parameters: Sequence[str]) -> list[Configuration]:
    """Those with a trial that has a line, by the levels of the parameters.

    Args:
        trials: columns trial_id, config_id, seed, status and the parameters.
        parameters: the swept ones.
    """
    columns = ["trial_id", "config_id", "seed", "status", *parameters]
    of_config: dict[str, list[dict[str, Any]]] = {}
    for row in drawable(trials).select(list(dict.fromkeys(columns))).to_pylist():
        of_config.setdefault(row["config_id"], []).append(row)
    levels = {c: [level_of(rows[0][p]) for p in parameters] for c, rows in of_config.items()}
    varying = [i for i in range(len(parameters)) if len({str(v[i]) for v in levels.values()}) > 1]
    found = []
    for config_id in sorted(levels, key=lambda c: (*map(level_order, levels[c]), c)):
        named = [(parameters[i], levels[config_id][i]) for i in varying]
        without = config_id[:8] if len(levels) > 1 else ""
        label = ", ".join(f"{name} = {level}" for name, level in named) or without
        shown = ", ".join(f"{name} = {shorter(level)}" for name, level in named) or without
        rows = sorted(of_config[config_id], key=lambda row: (row["seed"], row["trial_id"]))
        found.append(Configuration(config_id, label, shown, tuple(rows)))
    return found


def whole_subjects(table: pa.Table) -> list[str]:
    """The subjects in order without parts of matrices; see `subjects.whole`."""
    return subjects.whole(table["subject"].to_pylist())


def chance_levels(scalars: pa.Table) -> dict[str, list[float]]:
    """Subject -> its chance level in each trial, every level once, ascending.

    It follows from the shapes, so trials of different widths differ. Where it depends on the step
    too, as that of update_share/top_10 does, it is the highest of the trial.
    """
    highest: dict[tuple[str, str], float] = {}
    names = ("subject", "trial_id", "value")
    for subject, trial_id, value in zip(
        *(scalars.column(name).to_pylist() for name in names), strict=True
    ):
        if value is not None and math.isfinite(value):
            highest[subject, trial_id] = max(highest.get((subject, trial_id), value), value)
    found: dict[str, set[float]] = {}
    for (subject, _), level in highest.items():
        found.setdefault(subject, set()).add(level)
    return {subject: sorted(levels) for subject, levels in found.items()}


def visible(table: pa.Table) -> pa.Table:
    """The same rows, with the flag of those that no figure hides taken off."""
    place = table.schema.get_field_index("flag")
    hide = pc.is_in(table.column("flag"), value_set=pa.array(HIDDEN))
    nothing = pa.scalar(None, pa.string())
    return table.set_column(place, "flag", pc.if_else(hide, table.column("flag"), nothing))


def scalar_heat(
    scalars: pa.Table, configuration: Configuration, chance: Mapping[Any, float] | None = None
) -> Heat:
    """One metric of every subject in the table, subject x step.

    Args:
        scalars: rows of one metric.
        configuration: whose rows are shown; see `Configuration.chosen`.
        chance: subject -> its chance level.
    """
    names = ("trial_id", "subject", "step", "value", "flag")
    cells: dict[str, dict[tuple[Any, int], tuple[float, bool]]] = {}
    rows: dict[str, None] = {}
    for trial_id, subject, step, value, flag in zip(
        *(scalars.column(name).to_pylist() for name in names), strict=True
    ):
        rows.setdefault(subject)
        number = math.nan if value is None else value
        cells.setdefault(trial_id, {})[subject, step] = (number, flag in HIDDEN)
    return _heat(configuration, cells, tuple(rows), chance)


def spectrum_heat(
    spectra: pa.Table, configuration: Configuration, chance: float | None = None
) -> Heat:
    """One quantity of one subject, index x step, the index counted from 1.

    Args:
        spectra: rows of one quantity and subject.
        configuration: as for `scalar_heat`.
        chance: of every entry.
    """
    names = ("trial_id", "step", "values", "flag")
    cells: dict[str, dict[tuple[Any, int], tuple[float, bool]]] = {}
    longest = 0
    for trial_id, step, values, flag in zip(
        *(spectra.column(name).to_pylist() for name in names), strict=True
    ):
        longest = max(longest, len(values))
        mine = cells.setdefault(trial_id, {})
        for index, value in enumerate(values, 1):
            mine[index, step] = (math.nan if value is None else value, flag in HIDDEN)
    rows = tuple(range(1, longest + 1))
    return _heat(
        configuration, cells, rows, None if chance is None else dict.fromkeys(rows, chance)
    )


def _heat(
    configuration: Configuration,
    cells: Mapping[str, Mapping[tuple[Any, int], tuple[float, bool]]],
    rows: tuple[Any, ...],
    chance: Mapping[Any, float] | None,
) -> Heat:
    have = [row for row in configuration.chosen if row["trial_id"] in cells]
    if not have:  # only an unfinished trial may have rows
        have = [row for row in configuration.rows if row["trial_id"] in cells][:1]
    steps_of = {row["trial_id"]: {step for _, step in cells[row["trial_id"]]} for row in have}
    unequal = len({frozenset(steps) for steps in steps_of.values()}) > 1
    if unequal:
        have = have[:1]
    steps = sorted(steps_of[have[0]["trial_id"]]) if have else []
    known = {r for row in have for r, _ in cells[row["trial_id"]]}
    rows = tuple(row for row in rows if row in known)
    cube = np.full((len(have), len(rows), len(steps)), np.nan)
    row_at, step_at = ({v: i for i, v in enumerate(values)} for values in (rows, steps))
    num_hidden = 0
    for layer, trial in zip(cube, have, strict=True):
        for (row, step), (value, hidden) in cells[trial["trial_id"]].items():
            num_hidden += hidden
            layer[row_at[row], step_at[step]] = math.nan if hidden else value
    return Heat(
        label=configuration.label,
        shown=configuration.shown,
        rows=rows,
        steps=tuple(steps),
        values=cube.mean(axis=0) if have else np.zeros((0, 0)),
        chance=chance,
        trials=tuple(row["trial_id"] for row in have),
        statuses=tuple(row["status"] for row in have),
        seeds=tuple(row["seed"] for row in have),
        num_hidden=num_hidden,
        num_undetermined=int(np.isnan(cube).sum()) - num_hidden,
        unequal=unequal,
    )


def most_changed(scalars: pa.Table) -> str | None:
    """The subject whose value changed most, |last - first|, on average over the trials.

    Parts of matrices only if there is nothing else. None for a table without rows.
    """
    change: dict[str, list[float]] = {}
    ends: dict[tuple[str, str], tuple[int, float, int, float]] = {}
    names = ("subject", "trial_id", "step", "value", "flag")
    for subject, trial_id, step, value, flag in zip(
        *(scalars.column(name).to_pylist() for name in names), strict=True
    ):
        if flag in HIDDEN or value is None or not math.isfinite(value):
            continue
        first, at_first, last, at_last = ends.get((subject, trial_id), (step, value, step, value))
        if step <= first:
            first, at_first = step, value
        if step >= last:
            last, at_last = step, value
        ends[subject, trial_id] = (first, at_first, last, at_last)
    for (subject, _), (_, at_first, _, at_last) in ends.items():
        change.setdefault(subject, []).append(abs(at_last - at_first))
    return max(subjects.whole(change), key=lambda s: sum(change[s]) / len(change[s]), default=None)
