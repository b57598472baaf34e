"""The figures of a report, one after another: which there are, and how each is read."""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.aggregate import NORMALISED_RANK
from orchestrator.figures_choice import chances as chances_of
from orchestrator.figures_data import chance_levels, whole_subjects
from orchestrator.figures_lines import (
    finals_sheet,
    pruned_sheet,
    settling_sheet,
    singular_values_sheet,
)
from orchestrator.figures_panels import (
    CHANCE,
    CHOICE,
    COUPLING_CHOICE,
    GREY,
    MEAN,
    SEEDS,
    STEPS,
    UPDATES,
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
from orchestrator.lines import OPERATOR_RANK, UPDATE_RANK, UPDATE_SHARE, levels_of

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
    for make in (_update_share, _update_ranks, _operators):
        found += [partial(make, material, by) for by in colourings]
    return found


def swept_in(material: Material) -> list[str]:
    """The parameters with at least two levels among the trials."""
    return [p for p in material.parameters if len(levels_of(material.trials, p)) > 1]


def task_metrics(own: pa.Table) -> list[str]:
    """What the task itself measures: error rates first, then losses."""
    names = pc.unique(own["metric"]).to_pylist()
    return sorted(names, key=lambda name: (name == "loss", names.index(name)))


def _named(name: str, title: str, by: str | None) -> tuple[str, str]:
    """The name and the title of a figure whose lines are coloured by a parameter."""
    return (name, title) if by is None else (f"{name}_by_{slug(by)}", f"{title}, by {by}")


def _losses(material: Material, by: str | None) -> Sheet | None:
    known = dict.fromkeys(["train", "val", *pc.unique(material.own["subject"]).to_pylist()])
    pairs = [(split, metric) for metric in task_metrics(material.own) for split in known]
    coloured = "" if by is None else f", coloured by {by}"
    how = f"{STEPS} One panel per split of the data and metric{coloured}. {SEEDS}"
    name, title = _named("task_metrics", "Metrics of the task over steps", by)
    return metric_sheet(material, name, title, how, pairs, by, own=True, columns=2)


def _ranks(material: Material) -> Sheet | None:
    how = (
        f"{STEPS} One row per matrix; parts of matrices (heads, thirds of a fused one) are left "
        "out. Colour: effective rank, the exponential of the entropy of the singular values over "
        f"their sum, divided by the smaller side: between 1/R and 1. {MEAN} {GREY}"
    )
    heats = scalar_heats(material, NORMALISED_RANK, None)
    title, label = "Normalised effective rank, matrix by step", "effective rank / full rank"
    return heat_sheet("rank_heatmap", title, how, heats, label, row="matrix", whole=True)


def _rank_lines(material: Material, by: str | None) -> Sheet | None:
    pairs = [(s, NORMALISED_RANK) for s in whole_subjects(material.metric(NORMALISED_RANK))]
    how = f"{STEPS} One panel per matrix. {SEEDS}"
    name, title = _named("rank_lines", "Normalised effective rank over steps", by)
    return metric_sheet(material, name, title, how, pairs, by)


def _diagonal(material: Material) -> Sheet | None:
    return _entries(
        material, "alignment/diagonal", material.coupling,
        name="alignment_diagonal", title="Alignment of neighbouring layers",
        label="absolute inner product",
        colour="absolute inner product of the two vectors of that index, which meet in this "
        "coupling",
        choice=COUPLING_CHOICE,
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
    pairs = [(s, "alignment") for s in whole_subjects(material.metric("alignment"))]
    how = (
        f"{STEPS} One panel per coupling, each with a value axis of its own. {SEEDS} Black dashes: "
        f"{CHANCE}."
    )
    levels = chance_levels(material.metric("alignment/chance"))
    chances = {pair: levels.get(pair[0], ()) for pair in pairs}
    name, title = _named("alignment_lines", "Alignment score over steps", by)
    return metric_sheet(material, name, title, how, pairs, by, chances=chances)


def _agreement(material: Material) -> Sheet | None:
    return _entries(
        material, "agreement/final", material.matrix,
        name="agreement", title="Agreement of singular vectors with the last snapshot",
        label="agreement", whole=True,
        colour="absolute product of the inner products of the left and of the right vector with "
        "those of the same index at the last snapshot; 1 at the last step by definition",
        choice=CHOICE,
    )  # fmt: skip


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


def _update_share(material: Material, by: str | None) -> Sheet | None:
    pairs = [(s, UPDATE_SHARE) for s in whole_subjects(material.metric(UPDATE_SHARE))]
    how = (
        f"{UPDATES} Drawn: the share of its squared Frobenius norm inside the first ten left and "
        "right singular directions of the weights before it. One panel per matrix, each with a "
        f"value axis of its own, logarithmic where all shares are positive. {SEEDS} Black dashes: "
        "the level that an update of independent normal entries would have on average."
    )
    chance = material.metric(f"{UPDATE_SHARE}_chance")
    levels = chance_levels(chance)
    chances = {pair: levels.get(pair[0], ()) for pair in pairs}
    values = zip(chance["subject"].to_pylist(), chance["value"].to_pylist(), strict=True)
    fewer = sum(value is not None and value < levels[subject][-1] for subject, value in values)
    notes = [f"{fewer} chance levels of shares of fewer directions, which are lower"] * (fewer > 0)
    name, title = _named("update_share", "Share of the update inside the leading directions", by)
    return metric_sheet(material, name, title, how, pairs, by, chances=chances, notes=notes)


def _update_ranks(material: Material, by: str | None) -> Sheet | None:
    pairs = [(s, UPDATE_RANK) for s in whole_subjects(material.metric(UPDATE_RANK))]
    how = (
        f"{UPDATES} Drawn: its effective rank, divided by the smaller side. One panel per matrix. "
        f"{SEEDS}"
    )
    name, title = _named("update_rank", "Normalised effective rank of the update", by)
    return metric_sheet(material, name, title, how, pairs, by)


def _operators(material: Material, by: str | None) -> Sheet | None:
    pairs = [(s, OPERATOR_RANK) for s in whole_subjects(material.metric(OPERATOR_RANK))]
    how = (
        f"{STEPS} Effective rank, divided by the smaller side, of the linear operator that a "
        "convolution is on its grid with circular padding. One panel per convolution. "
        f"{SEEDS} Dotted, where `ranks` was measured: the mean of the same number of the weight, "
        "flattened to a matrix with a row per output channel."
    )
    name, title = _named("operators", "Normalised effective rank of convolutions as operators", by)
    ranked = material.metric(NORMALISED_RANK).num_rows > 0
    beside = (NORMALISED_RANK, "flattened weight") if ranked else None
    return metric_sheet(material, name, title, how, pairs, by, beside=beside)


def _entries(
    material: Material,
    quantity: str,
    subject: str | None,
    *,
    name: str,
    title: str,
    label: str,
    colour: str,
    choice: str,
    whole: bool = False,
) -> Sheet | None:
    """A quantity of the subject that is shown, index by step, with its chance level."""
    if subject is None:
        return None
    chance = _chances(material, f"{quantity.split('/')[0]}/chance").get(subject)
    heats = entry_heats(material, quantity, subject, chance)
    level = "" if chance is None else f" ({chance:.2g})"
    how = (
        f"{STEPS} Index of the singular vectors downwards, 1 belongs to the largest singular "
        f"value. Colour: {colour}; the dashed line across the colours is {CHANCE}{level}. {MEAN} "
        f"{GREY} {choice}"
    )
    title = f"{title}: {subject.replace('->', ' → ')}"
    return heat_sheet(name, title, how, heats, label, row="index", whole=whole, chance=chance)


def _chances(material: Material, metric: str) -> dict[str, float]:
    return chances_of(material.metric(metric))
