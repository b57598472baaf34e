"""Agreement of the singular vectors of one matrix view at two times, or in two trials.

Matched by index, as in the paper; beside that as the overlap of the leading subspaces at the last
gap, because near-equal singular values swap or rotate their vectors without the matrix changing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral.bounded import UNKNOWN, Bounded
from spectral.chance import agreement_chance
from spectral.decomposition import Decomposition
from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.overlap import (
    Meeting,
    chunks,
    exactly,
    gap_aware_dimension,
    mean_of,
    meet,
    overlap_of,
    vectors_in,
    vectors_of,
)
from spectral.rows import ScalarRow, SpectrumRow, rounded_up, scalar_row
from spectral.vectors import VECTOR_TOLERANCE, SingularVectors
from spectral.views import Side

_SIDES: tuple[Side, Side] = ("left", "right")

Pair = tuple[SingularVectors, SingularVectors]


@dataclass(frozen=True)
class Agreement:
    """How far the singular vectors of two m x n matrices agree. Every number is dimensionless.

    Attributes:
        diagonal: shape (k,), float64, in [0, 1]: |(u_j . u*_j) (v_j . v*_j)| for j = 1, 2, ...;
            NaN where any of the four vectors is not determined (`VECTOR_TOLERANCE`).
        bounds: shape (k,): |true - diagonal| <= bound; NaN likewise.
        score: mean of the determined ones among the first 10 entries; UNKNOWN if there is none.
        ill_posed: whether any of those first entries is not determined.
        chance: (2 / pi) / sqrt(m n), the expected entry for random vectors.
        dimension: the largest k' <= 10 at which the leading spans of both sides of both matrices
            are determined: the last gap; 0 if there is none.
        left_overlap: ||U_k'^T U*_k'||_F^2 / k' with k' = dimension; UNKNOWN if that is 0. For
            random subspaces k' / m on average.
        right_overlap: likewise of the right vectors; k' / n on average.
    """

    diagonal: Array
    bounds: Array
    score: Bounded
    ill_posed: bool
    chance: float
    dimension: int
    left_overlap: Bounded
    right_overlap: Bounded


class Compared(NamedTuple):
    """What rows of one view's agreement are made from; vectors None where there are none."""

    subject: str
    a: SingularVectors | None
    b: SingularVectors | None
    method: str
    flag: str | None


def singular_vector_agreement(
    a: Decomposition | SingularVectors,
    b: Decomposition | SingularVectors,
    *,
    entries: int = 100,
    score: int = 10,
) -> Agreement:
    """S_jj = |(u_j . u*_j) (v_j . v*_j)|: the inner product of the j-th rank-one terms.

    Signs of vectors do not matter. Symmetric in its arguments.

    Args:
        a: singular vectors of a matrix, float64 or float32 (computed with in float64), or a
            decomposition that holds them.
        b: of a matrix of the same shape, at another time or from another trial.
        entries: how many diagonal entries; fewer if either matrix has fewer vectors.
        score: how many of them the score and the subspaces are made of.

    Returns:
        an `Agreement`.

    Raises:
        ValueError: if the shapes differ (both are named), a decomposition has no vectors, or
            `entries` or `score` is below 1.

    Source: Yunis et al., arXiv 2408.11804, equation 5.
    """
    pair = vectors_in(a, "agreement: the first"), vectors_in(b, "agreement: the second")
    return singular_vector_agreements([pair], entries=entries, score=score)[0]


def singular_vector_agreements(
    pairs: Sequence[Pair], *, entries: int = 100, score: int = 10
) -> list[Agreement]:
    """`singular_vector_agreement` of many pairs; those of equal shapes in one call.

    Raises:
        ValueError: as `singular_vector_agreement` does, for the first pair that does not fit.
    """
    for name, number in (("entries", entries), ("score", score)):
        if number < 1:
            raise ValueError(f"agreement: {name} must be at least 1, got {number}")
    for a, b in pairs:
        if a.shape != b.shape:
            (m, n), (p, q) = a.shape, b.shape
            raise ValueError(
                f"agreement needs two matrices of one shape, got {m} x {n} and {p} x {q}"
            )
    alike = defaultdict(list)
    compared: list[tuple[SingularVectors, SingularVectors, Side]] = []
    for a, b in pairs:
        for side in _SIDES:
            shapes = (vectors_of(a, side)[0].shape, vectors_of(b, side)[0].shape)
            alike[*shapes, a.left.device, b.left.device].append(len(compared))
            compared.append((a, b, side))
    sides: dict[int, _Side] = {}
    for kind in alike.values():
        a, _, side = compared[kind[0]]
        for positions in chunks(kind, vectors_of(a, side)[0]):
            met = _met([compared[position] for position in positions], entries, score)
            sides.update(zip(positions, met, strict=True))
    return [
        _agreed(pair[0].shape, sides[2 * position], sides[2 * position + 1])
        for position, pair in enumerate(pairs)
    ]


class _Side(NamedTuple):
    """One side of one pair: row `row` of a meeting, and how well the vectors are known."""

    meeting: Meeting
    row: int
    known: NDArray[np.bool_]
    spans: tuple[Array, Array]
    leading: int


def _met(
    compared: Sequence[tuple[SingularVectors, SingularVectors, Side]], entries: int, score: int
) -> list[_Side]:
    """Sides of pairs whose vectors are of one shape, on either side of any matrix."""
    k = min(entries, compared[0][0].k, compared[0][1].k)
    leading = min(score, k)
    firsts = [vectors_of(a, side) for a, _, side in compared]
    seconds = [vectors_of(b, side) for _, b, side in compared]
    errors = [np.array([sines[:k] for _, sines, _ in found]) for found in (firsts, seconds)]
    device = firsts[0][0].device
    meeting = meet(
        [vectors[:, :k] for vectors, _, _ in firsts],
        [vectors[:, :k].to(device) for vectors, _, _ in seconds],
        (errors[0], errors[1]),
        leading,
    )
    known = np.maximum(*errors) <= VECTOR_TOLERANCE
    return [
        _Side(meeting, row, known[row], (a[2], b[2]), leading)
        for row, (a, b) in enumerate(zip(firsts, seconds, strict=True))
    ]


def _agreed(shape: tuple[int, int], left: _Side, right: _Side) -> Agreement:
    """Both sides together.

    With diagonals x and y and true ones x* and y*, |x y - x* y*| <= |x - x*| y + x* |y - y*|, where
    x* is at most x + |x - x*|, and at most 1.
    """
    x, y = (side.meeting.diagonal[side.row] for side in (left, right))
    dx, dy = (side.meeting.widths[side.row] for side in (left, right))
    width = dx * y + np.minimum(x + dx, 1.0) * dy + 4 * UNIT_ROUNDOFF
    known = left.known & right.known
    diagonal, bounds = np.where(known, x * y, math.nan), np.where(known, width, math.nan)
    chosen = np.flatnonzero(known[: left.leading])
    dimension = gap_aware_dimension([*left.spans, *right.spans], left.leading)
    overlaps = [overlap_of(s.meeting, s.row, dimension, s.spans) for s in (left, right)]
    return Agreement(
        diagonal=diagonal,
        bounds=bounds,
        score=mean_of(diagonal[chosen], bounds[chosen]),
        ill_posed=len(chosen) < left.leading,
        chance=agreement_chance(shape),
        dimension=dimension,
        left_overlap=overlaps[0],
        right_overlap=overlaps[1],
    )


def agreement_rows(
    variant: str, compared: Sequence[Compared], *, entries: int = 100, score: int = 10
) -> tuple[list[ScalarRow], list[SpectrumRow]]:
    """Four numbers and a diagonal for each view.

    `agreement/<variant>`, `subspace_overlap/<variant>_left` and `_right`, their dimension
    `subspace_overlap/<variant>_dimension`, and the quantity `agreement/<variant>`. Rows whose
    number, or any entry of the score, is not determined are flagged ``ill_posed`` unless the view
    itself has a flag, which tells more. Where either matrix has no vectors (zero, diverged), all
    numbers are NaN, and the diagonal is as long as the other's.

    Args:
        variant: `initial`, `previous` or `final`.
        compared: the views of ONE trial: bits of a number may depend on what it is computed with.
        entries: how many diagonal entries at most.
        score: how many of them make the score and the subspaces.

    Raises:
        ValueError: as `singular_vector_agreement` does.
    """
    there = [(c.a, c.b) for c in compared if c.a is not None and c.b is not None]
    found = iter(singular_vector_agreements(there, entries=entries, score=score))
    scalars: list[ScalarRow] = []
    spectra: list[SpectrumRow] = []
    for subject, a, b, method, flag in compared:
        agreed = next(found) if a is not None and b is not None else None
        if agreed is None:
            diagonal = bounds = np.full(
                min(entries, max(v.k if v else 0 for v in (a, b))), math.nan
            )
            score_, left, right, dimension, ill_posed = UNKNOWN, UNKNOWN, UNKNOWN, 0, True
        else:
            diagonal, bounds, score_ = agreed.diagonal, agreed.bounds, agreed.score
            left, right, dimension = agreed.left_overlap, agreed.right_overlap, agreed.dimension
            ill_posed = agreed.ill_posed
        score_flag = flag or ("ill_posed" if ill_posed else None)
        span_flag = flag or (None if dimension else "ill_posed")
        entry_flag = flag or ("ill_posed" if np.isnan(diagonal).any() else None)
        overlap = f"subspace_overlap/{variant}"
        scalars += [
            scalar_row(subject, f"agreement/{variant}", score_, method, score_flag),
            scalar_row(subject, f"{overlap}_left", left, method, span_flag),
            scalar_row(subject, f"{overlap}_right", right, method, span_flag),
            scalar_row(subject, f"{overlap}_dimension", exactly(dimension), method, span_flag),
        ]
        spectra.append(
            SpectrumRow(
                subject, f"agreement/{variant}", diagonal, rounded_up(bounds), method, entry_flag
            )
        )
    return scalars, spectra


def agreement_chance_row(
    subject: str, shape: tuple[int, int], method: str, flag: str | None
) -> ScalarRow:
    """`agreement/chance` of a view, one row however many variants there are."""
    chance = exactly(agreement_chance(shape))
    return scalar_row(subject, "agreement/chance", chance, method, flag)
