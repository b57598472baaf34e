"""Alignment of the singular vectors of neighbouring matrices.

Matched by index, as in the paper; beside that with the best matching, and as the overlap of
subspaces, because matching by index means nothing inside a cluster of equal singular values.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from spectral.bounded import UNKNOWN, Bounded
from spectral.chance import alignment_chance, best_matching, matched_chance
from spectral.coupling_checks import ends_problems
from spectral.decomposition import Decomposition
from spectral.entropy import Array
from spectral.overlap import (
    Meeting,
    Pick,
    chunks,
    gap_aware_dimension,
    mean_of,
    meet,
    overlap_of,
    vectors_in,
    vectors_of,
    within_unit,
)
from spectral.vectors import VECTOR_TOLERANCE, SingularVectors
from spectral.views import Coupling, CouplingEnd


@dataclass(frozen=True)
class Alignment:
    """How two sets of singular vectors are aligned. Every number is dimensionless.

    Attributes:
        diagonal: shape (k,), float64, in [0, 1]: |<a_j, b_j>| for j = 1, 2, ...; with taps ``all``
            the mean over taps. NaN where either vector is not determined (`VECTOR_TOLERANCE`).
        bounds: shape (k,): |true - diagonal| <= bound; NaN likewise.
        score: mean of the determined ones among the first 10 entries; UNKNOWN if there is none.
        ill_posed: whether any of those first entries is not determined.
        chance: sqrt(2 / pi) / sqrt(length), the expected entry for random vectors.
        matched: largest mean over permutations pi of |<a_j, b_pi(j)>|, j and pi(j) among the
            entries that make the score (so never below it); UNKNOWN if there is none.
        matched_chance: what `matched` is for random vectors, simulated.
        dimension: the largest k' <= 10 at which the leading spans of both sides are determined: the
            last gap; 0 if there is none.
        overlap: ||A_k'^T B_k'||_F^2 / k' with k' = dimension; UNKNOWN if that is 0.
        overlap_chance: dimension / length, the expected overlap of random subspaces; NaN if 0.
    """

    diagonal: Array
    bounds: Array
    score: Bounded
    ill_posed: bool
    chance: float
    matched: Bounded
    matched_chance: Bounded
    dimension: int
    overlap: Bounded
    overlap_chance: float


def inter_layer_alignment(
    first: Decomposition | SingularVectors,
    second: Decomposition | SingularVectors,
    coupling: Coupling | None = None,
    *,
    entries: int = 100,
    score: int = 10,
) -> Alignment:
    """|<a_j, b_j>| over the singular vectors of two matrices that meet in a network.

    Signs of vectors do not matter. Parts of vectors (gates, taps) are not normalised again, so
    their alignment is bounded below 1; each entry's square is 1 / length on average for random
    vectors, whether one end is sliced or none, and hence the overlap dimension / length.

    Args:
        first: singular vectors of the earlier matrix, or a decomposition that holds them.
        second: of the later matrix.
        coupling: which vectors meet; its views' names are not looked at. None: the left vectors of
            `first` against the right vectors of `second`, whole.
        entries: how many diagonal entries; fewer if either matrix has fewer vectors.
        score: how many of them the score, the matching and the subspaces are made of.

    Returns:
        an `Alignment`.

    Raises:
        ValueError: if a decomposition has no vectors, the vectors' lengths differ (both shapes are
            named) or do not fit the coupling, or `entries` or `score` is below 1.

    Source: Yunis et al., arXiv 2408.11804, equations 3 and 4, and their code.
    """
    pair = [
        vectors_in(given, f"inter-layer alignment: the {which}")
        for which, given in (("first", first), ("second", second))
    ]
    if coupling is None:
        length = pair[0].shape[0]
        coupling = Coupling(CouplingEnd("first", "left"), CouplingEnd("second", "right"), length)
    return alignments([(coupling, pair[0], pair[1])], entries=entries, score=score)[0]


def alignments(
    met: Sequence[tuple[Coupling, SingularVectors, SingularVectors]],
    *,
    entries: int = 100,
    score: int = 10,
) -> list[Alignment]:
    """`inter_layer_alignment` of many couplings; those of equal shapes and ends in one call.

    Args:
        met: each coupling with the singular vectors of its first and of its second view.
        entries: see `inter_layer_alignment`.
        score: likewise.

    Raises:
        ValueError: as `inter_layer_alignment` does, for the first that does not fit.
    """
    for name, number in (("entries", entries), ("score", score)):
        if number < 1:
            raise ValueError(f"alignment: {name} must be at least 1, got {number}")
    alike = defaultdict(list)
    for position, (coupling, a, b) in enumerate(met):
        key = (*_kind(coupling.first, a), *_kind(coupling.second, b))
        if problems := ends_problems(coupling, a.shape, b.shape):
            raise ValueError(f"coupling {coupling.name!r}: {'; '.join(problems)}")
        alike[key].append(position)
    results: dict[int, Alignment] = {}
    for kind in alike.values():
        coupling, a, b = met[kind[0]]
        sides = (vectors_of(a, coupling.first.side)[0], vectors_of(b, coupling.second.side)[0])
        for positions in chunks(kind, max(sides, key=Tensor.numel)):
            aligned = _aligned([met[position] for position in positions], entries, score)
            results.update(zip(positions, aligned, strict=True))
    return [results[position] for position in range(len(met))]


def _kind(end: CouplingEnd, vectors: SingularVectors) -> tuple[object, ...]:
    """What must be equal for two couplings to be computed in one call."""
    columns = vectors.left if end.side == "left" else vectors.right
    return (end.entries, end.reshape, end.tap, columns.shape, columns.device)


def _pick(end: CouplingEnd) -> Pick:
    """The entries of an end's vectors that meet: [S, d, k] -> [S, T, c, k]."""

    def pick(vectors: Tensor) -> Tensor:
        if end.entries is not None:
            vectors = vectors[:, end.entries[0] : end.entries[1]]
        if end.reshape is None or end.tap is None:
            return vectors[:, None]
        folded = vectors.reshape(len(vectors), end.reshape[0], -1, vectors.shape[-1])
        if end.tap == "all":
            return folded.transpose(1, 2)
        tap = int(np.ravel_multi_index(end.tap, end.reshape[1:]))
        return folded[:, None, :, tap]

    return pick


def _taps(coupling: Coupling) -> int:
    """How many absolute values each entry is the mean of."""
    ends = (coupling.first, coupling.second)
    return math.prod(math.prod(e.reshape[1:]) for e in ends if e.reshape and e.tap == "all")


def _aligned(
    met: Sequence[tuple[Coupling, SingularVectors, SingularVectors]], entries: int, score: int
) -> list[Alignment]:
    """Couplings whose vectors are of equal shapes and picked alike."""
    coupling, a, b = met[0]
    k = min(entries, a.k, b.k)
    leading = min(score, k)
    pairs = [
        [vectors_of(a, coupling.first.side) for coupling, a, _ in met],
        [vectors_of(b, coupling.second.side) for coupling, _, b in met],
    ]
    first, second = ([vectors[:, :k] for vectors, _, _ in side] for side in pairs)
    errors = [np.array([sines[:k] for _, sines, _ in side]) for side in pairs]
    picks = (_pick(coupling.first), _pick(coupling.second))
    meeting = meet(first, second, (errors[0], errors[1]), leading, picks)
    known = np.maximum(*errors) <= VECTOR_TOLERANCE
    diagonal = np.where(known, meeting.diagonal, math.nan)
    bounds = np.where(known, meeting.widths, math.nan)
    taps = _taps(coupling)
    results = []
    for row, (own, _, _) in enumerate(met):
        chosen = np.flatnonzero(known[row, :leading])
        spans = [side[row][2] for side in pairs]
        dimension = gap_aware_dimension(spans, leading)
        results.append(
            Alignment(
                diagonal=diagonal[row],
                bounds=bounds[row],
                score=mean_of(diagonal[row, chosen], bounds[row, chosen]),
                ill_posed=len(chosen) < leading,
                chance=alignment_chance(own.length),
                matched=_matched(meeting, row, chosen),
                matched_chance=matched_chance(len(chosen), own.length, taps)
                if len(chosen)
                else UNKNOWN,
                dimension=dimension,
                overlap=overlap_of(meeting, row, dimension, spans),
                overlap_chance=dimension / own.length if dimension else math.nan,
            )
        )
    return results


def _matched(meeting: Meeting, row: int, chosen: NDArray[np.intp]) -> Bounded:
    """The best matching among the chosen entries.

    Whatever the permutation, its mean moves by at most the mean of how far the first vectors may be
    off, times the second ones' length, plus the mean of how far those are off; hence so does the
    largest mean.
    """
    if not len(chosen):
        return UNKNOWN
    products = meeting.products[row]
    if len(chosen) < products.shape[-1]:
        products = products[:, chosen[:, None], chosen]
    value = best_matching(np.abs(products).mean(0))
    first, second = (float(drift[row, chosen].sum()) / len(chosen) for drift in meeting.drift)
    width = first * float(meeting.longest[row, chosen].max()) + second + meeting.rounding
    return within_unit(value, value - width, value + width)
