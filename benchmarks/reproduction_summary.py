"""The summary of docs/reproduction.md: one row per finding and setting, judged by stated rules."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import reproduction_counts as counts
from benchmarks import reproduction_facts as facts
from benchmarks.reproduction_chance import chance
from benchmarks.reproduction_counts import CLOSE, NEAR, SHARE, Count, Table
from orchestrator import Results

BASES = {
    "image_classification_small": "VGG-16 on digits",
    "image_generation_small": "UNet on digits",
    "speech_recognition_small": "LSTM on synthesised speech",
    "language_modeling_small": "Transformer on Python's documentation",
}
DECAYS = {f"{name.removesuffix('_small')}_decay_small": title for name, title in BASES.items()}
ALIGNING = "language_modeling_decay_small"
"""The setting in which the paper says that weight decay aligns layers."""
MARKED = 0.1
"""A rise of the alignment score, which lies between 0 and 1, that counts as marked."""
PERMUTED = (0.9, 0.05)
"""The error of guessing among ten labels, and how far from it an error still is at chance."""

RULES = f"""A row is reproduced (yes) if what it counts holds in at least {100 * SHARE:.0f} % of
the cases, not (no) if in at most {100 - 100 * SHARE:.0f} %, else partly. A case is a trial, or a
matrix, or a matrix of one seed where it says (matrix, seed). Two rows need more:

- B2 counts seeds in which the loss of the top half is nearer to the full model's than to the bottom
  half's, and seeds in which it is at most {CLOSE:g} times the full model's. Yes if both hold, no if
  the first does not, else partly. Chance is the validation loss of the best constant answer; for
  the UNet, which predicts noise of variance 1, predicting nothing gives 1.
- W2 is judged against the paper's "only in the Transformer": there the score is to rise by at least
  {MARKED:g} from no decay to the largest decay that trains, elsewhere it is not to.

A decay trains if the median validation loss is not nearer to chance than to that without decay, and
so with every smaller decay. Levels that do not train are shown, marked with *, and not judged. G1's
second row looks at evenly spaced snapshots after the training set is fitted. The step at which the
largest drop of the validation error ends, and the median over the matrices of the steps at which
the largest drops of rank do, coincide if they are at most {100 * NEAR:.0f} % of all steps apart. W3
compares how far the training loss of the top half is from the full model's, either way. Matrices
with one singular value (`tconv1` of the UNet), whose rank is always 1, are in no count.
"""


@dataclass(frozen=True)
class Row:
    """One line of the summary."""

    finding: str
    what: str
    count: Any
    verdict: str = ""  # that of the count, if not given

    def cells(self) -> tuple[str, ...]:
        return self.finding, self.what, str(self.count), self.verdict or self.count.verdict


def summary(opened: Mapping[str, Results]) -> Table:
    """Counts, which the sections of the page break down, and whether they reproduce the paper."""
    parts = (_grokking, _most_data, _slingshot, _falling, _pruning, _settling, _decay, _labels)
    rows = [row.cells() for part in parts for row in part(opened)]
    return Table(("finding", "what is counted", "count", "reproduced"), rows)


@dataclass(frozen=True)
class Training:
    """Which levels of weight decay train."""

    chance: float
    losses: dict[float, float]  # level -> median validation loss
    last: float  # the largest level that trains

    @property
    def marks(self) -> dict[float, str]:
        return {level: "*" for level in self.losses if level > self.last}


@functools.cache
def chance_of(name: str) -> float:
    """See `reproduction_chance.chance`; once per twin."""
    return chance(name)


def training(name: str, results: Results) -> Training:
    """Which levels of a decay twin train, by the rule of the page."""
    losses = facts.median_losses(results, "weight_decay")
    level = chance_of(name)
    return Training(level, losses, counts.last_that_trains(losses, level))


def _grokking(opened: Mapping[str, Results]) -> Iterator[Row]:
    if (decay := opened.get("modular_addition_decay_small")) is None:
        return
    low, drops = (
        f"val error below {facts.LEARNED} at the end",
        facts.steepest(decay, "weight_decay"),
    )
    yield Row("G1", f"{low}, decay 1", facts.fitted(decay, "val", "weight_decay = 1"))
    at_one = Count.of(own.coincide for (level, _), own in drops.items() if level == 1)
    yield Row("G1", "decay 1: ranks fall most when val error does", at_one)
    without = facts.fitted(decay, "val", "weight_decay = 0")
    what = f"no decay: val error not below {facts.LEARNED} at the end"
    yield Row("G2", what, Count(without.total - without.held, without.total))
    ranks = facts.by_level(decay, facts.RANK, "weight_decay")
    what = "rank at the end higher without decay than with decay 1 (matrix, seed)"
    yield Row("G2", what, ranks.count(0.0, 1.0))


def _most_data(opened: Mapping[str, Results]) -> Iterator[Row]:
    if (most := opened.get("modular_addition_most_data_small")) is None:
        return
    what = f"90 % of the pairs, no decay: val error below {facts.LEARNED} at the end"
    yield Row("G3", what, facts.fitted(most, "val"))
    yield Row("G3", "rank falls (matrix, seed)", facts.fell(most)[1])
    if (decay := opened.get("modular_addition_decay_small")) is not None:
        for norm, shown in NORMS.items():
            found = norms(most, decay, norm)
            what = f"{shown} larger than at 70 % and decay 1 (matrix, seed)"
            yield Row("G3", what, counts.total(facts.larger(*found).values()))


NORMS = {"norm/spectral": "largest singular value", "norm/frobenius": "Frobenius norm"}


def norms(most: Results, decay: Results, norm: str) -> tuple[Any, Any]:
    """A norm of every matrix at the end, with most of the data and with decay 1."""
    return facts.sizes(most, norm), facts.sizes(decay, norm, "weight_decay = 1")


def _slingshot(opened: Mapping[str, Results]) -> Iterator[Row]:
    if (slingshot := opened.get("modular_addition_slingshot_small")) is None:
        return
    what = f"LayerNorm, no decay: val error below {facts.LEARNED} at the end"
    yield Row("G4", what, facts.fitted(slingshot, "val"))
    yield Row("G4", "rank falls (matrix, seed)", facts.fell(slingshot)[1])


def _falling(opened: Mapping[str, Results]) -> Iterator[Row]:
    for name, title in BASES.items():
        if name in opened:
            matrices, _, trials = facts.fell(opened[name])
            yield Row("B1", f"{title}: matrices whose rank fell in all {trials} seeds", matrices)


def _pruning(opened: Mapping[str, Results]) -> Iterator[Row]:
    for name, title in BASES.items():
        if name not in opened:
            continue
        own = list(facts.losses(opened[name], "val").values())
        medians = (f"{np.median([one[kind] for one in own]):.3g}" for kind in facts.LOSSES)
        level = chance_of(name)
        shown = f"{title}: val loss full, top, bottom half {', '.join(medians)}; chance {level:.3g}"
        if name == "image_generation_small":
            shown += " (predicting nothing)"
        nearer, close = closeness(own)
        useless = Count.of(one["top"] >= level for one in own)
        counted = (
            f"nearer {nearer}, within {100 * CLOSE - 100:.0f} % {close}, not below chance {useless}"
        )
        yield Row("B2", shown, counted, counts.both(nearer, close))


def closeness(own: list[dict[str, float]]) -> tuple[Count, Count]:
    """Seeds whose top half is nearer to the full model than to the bottom half, and close to it."""
    nearer = Count.of(
        abs(one["top"] - one["full"]) < abs(one["bottom"] - one["top"]) for one in own
    )
    return nearer, Count.of(one["top"] <= CLOSE * one["full"] for one in own)


def _settling(opened: Mapping[str, Results]) -> Iterator[Row]:
    for name, title in BASES.items():
        if name in opened:
            for level, orders in facts.settling(opened[name]).items():
                what = f"{title}: leading ten reach {level:g} before the last ten (matrix, seed)"
                yield Row("B5", what, Count(orders["earlier"], sum(orders.values())))


def _decay(opened: Mapping[str, Results]) -> Iterator[Row]:
    found = {name: title for name, title in DECAYS.items() if name in opened}
    for name, title in found.items():
        results = opened[name]
        own, ranks = training(name, results), facts.by_level(results, facts.RANK, "weight_decay")
        first, second, *_, last = ranks.levels
        lower = f"{title}: rank lower at decay"
        yield Row(
            "W1", f"{lower} {own.last:g} than at 0 (matrix, seed)", ranks.count(first, own.last)
        )
        yield Row("W1", f"{lower} {second:g} than at 0 (matrix, seed)", ranks.count(first, second))
        judged = [level for level in ranks.levels if level <= own.last]
        for levels, note in ((judged, f" up to {own.last:g}"), (ranks.levels, "")):
            held = counts.total(counts.monotone(one, levels) for one in ranks.values.values())
            what = f"{title}: rank lower at every decay{note} than at the one before (matrix, seed)"
            yield Row("W1", what, held, "" if levels[-1] == own.last else "-")
        if last > own.last:
            what = f"{lower} {last:g} than at 0, but {last:g} does not train"
            yield Row("W1", what, ranks.count(first, last), "-")
    for name, title in found.items():
        if facts.measured(opened[name], "alignment"):
            own, other = training(name, opened[name]), name != ALIGNING
            rises = marked(opened[name], own.last)
            held = Count(rises.total - rises.held, rises.total) if other else rises
            does = "does not rise" if other else "rises"
            what = (
                f"{title}: alignment {does} by {MARKED:g} from decay 0 to {own.last:g} (pair, seed)"
            )
            yield Row("W2", what, held)
    for name, title in found.items():
        own = training(name, opened[name])
        gaps = [
            facts.gaps(facts.losses(opened[name], "train", f"weight_decay = {level}"))
            for level in (min(own.losses), own.last)
        ]
        closer = Count.of(gaps[1][seed] < gaps[0][seed] for seed in gaps[0].keys() & gaps[1].keys())
        what = f"{title}: top half closer to the full model at decay {own.last:g} than at 0 (seed)"
        yield Row("W3", what, closer)


def marked(results: Results, last: float) -> Count:
    """(coupling, seed) pairs whose alignment score rises by `MARKED` from no decay to a level."""
    scores = facts.by_level(results, "alignment", "weight_decay")
    first = scores.levels[0]
    return Count.of(
        own[last, seed] - value >= MARKED
        for own in scores.values.values()
        for (level, seed), value in own.items()
        if level == first and (last, seed) in own
    )


def _labels(opened: Mapping[str, Results]) -> Iterator[Row]:
    if (results := opened.get("random_labels_small")) is None:
        return
    for labels in ("given", "permuted"):
        what = f"{labels} labels: train error below {facts.LEARNED} at the end"
        yield Row("R1", what, facts.fitted(results, "train", f"labels = '{labels}'"))
    chance_error, near = PERMUTED
    of_val = facts.ends(results, "error", where="subject = 'val' AND labels = 'permuted'")
    held = Count.of(abs(row["last"] - chance_error) <= near for row in of_val)
    yield Row("R1", f"permuted labels: val error within {near:g} of {chance_error:g}", held)
    given, permuted = by_labels(results)
    inner = {subject: permuted[subject] for subject in ("layers.1", "layers.2")}
    what = "inner layers with a higher rank on permuted labels (matrix, seed)"
    yield Row("R2", what, counts.total(facts.larger(inner, given).values()))


def by_labels(results: Results) -> tuple[Any, Any]:
    """Ranks at the end of every matrix, with the given labels and with permuted ones."""
    given, permuted = (
        facts.sizes(results, facts.RANK, f"labels = '{labels}'") for labels in ("given", "permuted")
    )
    return given, permuted
