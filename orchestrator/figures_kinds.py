"""The figures of a report, one after another: which there are, and how each is read."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.aggregate import NORMALISED_RANK
from orchestrator.figures_lines import (
    finals_sheet,
    pruned_sheet,
    settling_sheet,
    singular_values_sheet,
)
from orchestrator.figures_panels import (
    CHANCE,
    CHOICE,
    GREY,
    MEAN,
    SEEDS,
    STEPS,
    Maker,
    Material,
    Sheet,
)
from orchestrator.figures_sheets import (
    entry_heats,
    heat_sheet,
    metric_sheet,
    scalar_heats,
)
from orchestrator.figures_text import slug
from orchestrator.lines import levels_of

MAX_PARAMETERS = 4
"""Parameters by which lines are coloured, each in figures of its own."""


def makers(material: Material) -> list[Maker]:
    """Every figure that the measured rows allow, in the order of the page; some may yield none."""
    swept = swept_in(material)[:MAX_PARAMETERS]
    colourings: list[str | None] = [*swept] or [None]
    found: list[Maker] = []
    for by in colourings:
        found.append(partial(_losses, material, by))
    found.append(partial(singular_values_sheet, material))
    found.append(partial(_ranks, material))
    for by in colourings:
        found.append(partial(_rank_lines, material, by))
    for by in swept:
        found.append(partial(finals_sheet, material, by))
    found += [partial(_diagonal, material), partial(_alignment, material)]
    for by in colourings:
        found.append(partial(_alignment_lines, material, by))
    found += [partial(_agreement, material), partial(_agreement_scores, material)]
    found += [partial(settling_sheet, material)]
    found += [partial(pruned_sheet, material, metric) for metric in task_metrics(material.own)]
    return found


def swept_in(material: Material) -> list[str]:
    """The parameters with at least two levels among the trials."""
    return [p for p in material.parameters if len(levels_of(material.trials, p)) > 1]


def task_metrics(own: pa.Table) -> list[str]:
    """What the task itself measures: error rates first, then losses."""
    names = pc.unique(own["metric"]).to_pylist()
    return sorted(names, key=lambda name: (name == "loss", names.index(name)))


def _suffix(by: str | None) -> str:
    return "" if by is None else f"_by_{slug(by)}"


def _losses(material: Material, by: str | None) -> Sheet | None:
    known = dict.fromkeys(["train", "val", *pc.unique(material.own["subject"]).to_pylist()])
    pairs = [(split, metric) for metric in task_metrics(material.own) for split in known]
    coloured = "" if by is None else f", coloured by {by}"
    how = f"{STEPS} One panel per split of the data and metric{coloured}. {SEEDS}"
    title = "Metrics of the task over steps" + (f", by {by}" if by else "")
    name = f"task_metrics{_suffix(by)}"
    return metric_sheet(material, name, title, how, pairs, by, own=True, columns=2)


def _ranks(material: Material) -> Sheet | None:
    how = (
        f"{STEPS} One row per matrix (parts of matrices are left out). Colour: effective rank, the "
        f"exponential of the entropy of the singular values over their sum, divided by the smaller "
        f"side: between 1/R and 1. {MEAN} {GREY}"
    )
    heats = scalar_heats(material, NORMALISED_RANK, None)
    title, label = "Normalised effective rank, matrix by step", "effective rank / full rank"
    return heat_sheet("rank_heatmap", title, how, heats, label, row="matrix", whole=True)


def _rank_lines(material: Material, by: str | None) -> Sheet | None:
    table = material.metric(NORMALISED_RANK)
    subjects = dict.fromkeys(table["subject"].to_pylist())
    pairs = [(s, NORMALISED_RANK) for s in subjects if "[" not in s]
    how = f"{STEPS} One panel per matrix. {SEEDS}"
    title = "Normalised effective rank over steps" + (f", by {by}" if by else "")
    return metric_sheet(material, f"rank_lines{_suffix(by)}", title, how, pairs, by)


def _diagonal(material: Material) -> Sheet | None:
    coupling = material.coupling
    if coupling is None:
        return None
    chance = _chances(material, "alignment/chance").get(coupling)
    heats = entry_heats(material, "alignment/diagonal", coupling, chance)
    how = (
        f"{STEPS} Index of the singular vector downwards, 1 belongs to the largest singular value. "
        "Colour: absolute inner product of the two vectors of that index, which meet in this "
        f"coupling; the dashed line across the colours is {CHANCE}"
        f"{_level(chance)}. {MEAN} {GREY} The coupling shown is the one whose score changed most "
        "(last minus first, absolute, mean over trials)."
    )
    title = f"Alignment of neighbouring layers: {coupling.replace('->', ' → ')}"
    return heat_sheet(
        "alignment_diagonal", title, how, heats, "absolute inner product", row="index",
        chance=chance,
    )  # fmt: skip


def _alignment(material: Material) -> Sheet | None:
    heats = scalar_heats(material, "alignment", _chances(material, "alignment/chance"))
    how = (
        f"{STEPS} One row per coupling, two matrices that meet; in brackets {CHANCE}. Colour: mean "
        f"of the determined ones among the first ten entries of the diagonal. {MEAN} {GREY}"
    )
    title, label = "Alignment score, coupling by step", "alignment score"
    return heat_sheet("alignment_scores", title, how, heats, label, row="coupling")


def _alignment_lines(material: Material, by: str | None) -> Sheet | None:
    table = material.metric("alignment")
    pairs = [(s, "alignment") for s in dict.fromkeys(table["subject"].to_pylist()) if "[" not in s]
    how = (
        f"{STEPS} One panel per coupling, each with a value axis of its own. {SEEDS} Black dashes: "
        f"{CHANCE}."
    )
    title = "Alignment score over steps" + (f", by {by}" if by else "")
    chances = _chances(material, "alignment/chance")
    name = f"alignment_lines{_suffix(by)}"
    return metric_sheet(material, name, title, how, pairs, by, chances=chances)


def _agreement(material: Material) -> Sheet | None:
    matrix = material.matrix
    if matrix is None:
        return None
    chance = _chances(material, "agreement/chance").get(matrix)
    heats = entry_heats(material, "agreement/final", matrix, chance)
    how = (
        f"{STEPS} Index of the singular vectors downwards, 1 belongs to the largest singular "
        "value. Colour: absolute product of the inner products of the left and of the right "
        "vector with those of the same index at the last snapshot; 1 at the last step by "
        f"definition; the dashed line across the colours is {CHANCE}"
        f"{_level(chance)}. {MEAN} {GREY} {CHOICE}"
    )
    title = f"Agreement of singular vectors with the last snapshot: {matrix}"
    return heat_sheet(
        "agreement", title, how, heats, "agreement", row="index", whole=True, chance=chance
    )


def _agreement_scores(material: Material) -> Sheet | None:
    heats = scalar_heats(material, "agreement/final", _chances(material, "agreement/chance"))
    how = (
        f"{STEPS} One row per matrix; in brackets {CHANCE}. Colour: mean of the determined ones "
        f"among the first ten agreements with the last snapshot. {MEAN} {GREY}"
    )
    title = "Agreement score with the last snapshot, matrix by step"
    return heat_sheet(
        "agreement_scores", title, how, heats, "agreement score", row="matrix", whole=True
    )


def _level(chance: float | None) -> str:
    return "" if chance is None else f" ({chance:.2g})"


def _chances(material: Material, metric: str) -> dict[str, float]:
    table = material.metric(metric)
    columns = (table["subject"].to_pylist(), table["value"].to_pylist())
    return {name: value for name, value in zip(*columns, strict=True) if value is not None}
