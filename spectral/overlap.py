"""Inner products of two sets of singular vectors, their subspaces, and what errors make of them.

The common ground of alignment (two matrices, one time) and agreement (one matrix, two times). A
computed unit vector whose angle to the true one has a sine of at most e is off by at most
2 sin(asin(e) / 2) in length once the sign is chosen, and no inner product of it with a unit vector,
nor with a part of one, is off by more. How far columns are from unit length and from each other's
right angles is measured, not assumed, and added.

Shape legend: S pairs of equal shape, k vectors of length d as columns, of which c entries are
picked in each of T ways (taps); s the leading vectors that are compared all with all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectral.bounded import UNKNOWN, Bounded
from spectral.decomposition import Decomposition
from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.vectors import VECTOR_TOLERANCE, SingularVectors
from spectral.views import Side

Pick = Callable[[Tensor], Tensor]
"""From vectors [S, d, k] to the entries that meet, [S, T, c, k]."""

# Entries of one stack: on a CPU what its caches hold, on an accelerator 256 MiB.
_STACK_ENTRIES = {"cpu": 2**18}
_STACK_ENTRIES_ELSEWHERE = 2**25


def vectors_in(given: Decomposition | SingularVectors, owner: str) -> SingularVectors:
    """The singular vectors of what a caller gave.

    Args:
        given: singular vectors, or a decomposition that holds them.
        owner: what it is, for the message.

    Raises:
        ValueError: the decomposition has none.
    """
    if isinstance(given, SingularVectors):
        return given
    if given.vectors is None:
        m, n = given.shape
        raise ValueError(
            f"{owner} decomposition ({m} x {n}, flag {given.flag}) has no singular vectors; call "
            "decompose with vectors above 0"
        )
    return given.vectors


def all_entries(vectors: Tensor) -> Tensor:
    """[S, d, k] -> [S, 1, d, k]: nothing is sliced."""
    return vectors[:, None]


def vectors_of(vectors: SingularVectors, side: Side) -> tuple[Tensor, Array, Array]:
    """One side's columns, the error of each and of each leading span."""
    if side == "left":
        return vectors.left, vectors.left_errors, vectors.left_span_errors
    return vectors.right, vectors.right_errors, vectors.right_span_errors


def distances(sines: Array) -> Array:
    """2 sin(asin(e) / 2), rounded up: how far a unit vector is at most from the true one.

    The sign is the one that brings them closest, so the angle is at most a right one.

    Args:
        sines: any shape, in [0, 1]: bounds of the sine of the angle.

    Returns:
        the same shape, in [0, sqrt(2)].
    """
    cosines = np.sqrt((1.0 - sines) * (1.0 + sines))
    return np.asarray(sines * np.sqrt(2.0 / (1.0 + cosines)) * (1.0 + 8 * UNIT_ROUNDOFF))


def _distance(sine: float) -> float:
    """`distances` of one number, without numpy's overhead."""
    cosine = math.sqrt((1.0 - sine) * (1.0 + sine))
    return sine * math.sqrt(2.0 / (1.0 + cosine)) * (1.0 + 8 * UNIT_ROUNDOFF)


@dataclass(frozen=True)
class Meeting:
    """Everything the numbers of S pairs are made of, float64 and on the CPU.

    Attributes:
        diagonal: shape (S, k): |<a_j, b_j>|, mean over taps, at most 1.
        products: shape (S, T, s, s): <a_i, b_j>.
        drift: two of shape (S, k): how far a_j, and b_j, is at most from the true vector.
        widths: shape (S, k): |true - diagonal| <= width. <a, b> - <a*, b*> = <a - a*, b> +
            <a*, b - b*> with ||a*|| = 1; for picked entries likewise, and for means over taps.
        longest: shape (S, k): 1 + | ||b_j|| - 1 |.
        deviations: two of shape (S, s, s): the leading vectors' (A^T A - I)^2, entry by entry.
        rounding: bounds the rounding of one inner product of unit vectors.
    """

    diagonal: Array
    products: Array
    drift: tuple[Array, Array]
    widths: Array
    longest: Array
    deviations: tuple[Array, Array]
    rounding: float


def meet(
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    errors: tuple[Array, Array],
    leading: int,
    picks: tuple[Pick, Pick] = (all_entries, all_entries),
) -> Meeting:
    """Compare S pairs in one go, with one transfer from the device.

    Args:
        first: S matrices of shape (d, k), of one device; float64, or float32 which is widened.
        second: S matrices of shape (d', k), likewise.
        errors: two of shape (S, k), in [0, 1]: sines of the angles to the true vectors, at most.
            Widths are valid for any; callers leave out what is not determined.
        leading: s, at most k.
        picks: which entries meet; both leave vectors of equal length.

    Returns:
        a `Meeting`; the inputs are not modified.
    """
    # stacking copies: equal numbers give equal bits wherever in memory they came from
    count, lengths = len(first), (len(first[0]), len(second[0]))
    if lengths[0] == lengths[1]:
        both = torch.stack([v.double() for v in (*first, *second)])
        stacks, selves = [both[:count], both[count:]], [both]
    else:
        stacks = selves = [torch.stack([v.double() for v in side]) for side in (first, second)]
    a, b = (pick(stack) for pick, stack in zip(picks, stacks, strict=True))
    heads = [stack[..., :leading] for stack in selves]
    pieces = [
        (a * b).sum(-2),
        a[..., :leading].mT @ b[..., :leading],
        *((stack * stack).sum(1) for stack in selves),
        *(head.mT @ head for head in heads),
    ]
    dots, products, *own = _on_host(pieces)
    squares, grams = (np.concatenate(part) for part in (own[: len(selves)], own[len(selves) :]))
    deviations = (grams - np.eye(leading)) ** 2
    rounding = (sum(lengths) + 64) * UNIT_ROUNDOFF
    off_unit = np.abs(np.sqrt(squares) - 1.0) + rounding
    drift = distances(np.concatenate(errors)) + off_unit
    longest = 1.0 + off_unit[count:]
    magnitudes = np.abs(dots)
    return Meeting(
        diagonal=np.minimum(magnitudes.mean(1) if dots.shape[1] > 1 else magnitudes[:, 0], 1.0),
        products=products,
        drift=(drift[:count], drift[count:]),
        widths=drift[:count] * longest + drift[count:] + rounding,
        longest=longest,
        deviations=(deviations[:count], deviations[count:]),
        rounding=rounding,
    )


def _on_host(pieces: Sequence[Tensor]) -> list[Array]:
    """As numpy arrays, in one transfer."""
    if pieces[0].device.type == "cpu":
        return [piece.numpy() for piece in pieces]
    flat = torch.cat([piece.flatten() for piece in pieces]).cpu().numpy()
    parts = np.split(flat, np.cumsum([piece.numel() for piece in pieces])[:-1])
    return [part.reshape(piece.shape) for part, piece in zip(parts, pieces, strict=True)]


def chunks(positions: Sequence[int], vectors: Tensor) -> Iterator[Sequence[int]]:
    """Parts of a list of pairs of equal shape that are worth stacking, given one's vectors."""
    most = _STACK_ENTRIES.get(vectors.device.type, _STACK_ENTRIES_ELSEWHERE)
    size = max(most // max(vectors.numel(), 1), 1)
    for start in range(0, len(positions), size):
        yield positions[start : start + size]


def gap_aware_dimension(spans: Sequence[Array], largest: int) -> int:
    """Largest k' <= `largest` at which every leading span is known to `VECTOR_TOLERANCE`; or 0."""
    worst = spans[0][:largest]
    for span in spans[1:]:
        worst = np.maximum(worst, span[: len(worst)])
    known = np.flatnonzero(worst <= VECTOR_TOLERANCE)
    return int(known[-1]) + 1 if len(known) else 0


def overlap_of(meeting: Meeting, pair: int, dimension: int, spans: Sequence[Array]) -> Bounded:
    """||A_k^T B_k||_F^2 / k of one pair of a `Meeting`, k = `dimension`; UNKNOWN for 0.

    f = ||A_k^T B_k||_F / sqrt(k) moves by at most ||A_k - A*Q||_2 (1 + ...) + ||B_k - B*Q'||_2,
    with rotations Q, Q' inside the true spans, which leave f as it is; parts of vectors and means
    of f^2 over taps move no further.

    Args:
        meeting: of at least `dimension` leading vectors.
        pair: index below S.
        dimension: k, or 0.
        spans: errors of the leading spans of both, from which entry k - 1 is taken.
    """
    if dimension == 0:
        return UNKNOWN
    last = dimension - 1
    products = meeting.products[pair, :, :dimension, :dimension]
    value = float((products * products).sum()) / (len(products) * dimension)
    # how far the columns are from orthonormal: ||A - basis||_2 <= ||A^T A - I||_F
    skews = [
        math.sqrt(squared[pair, :dimension, :dimension].sum()) + dimension * meeting.rounding
        for squared in meeting.deviations
    ]
    turned = [_distance(float(span[last])) for span in spans]
    width = (turned[0] + skews[0]) * (1.0 + skews[1]) + turned[1] + skews[1]
    width += dimension * meeting.rounding
    root = math.sqrt(value)
    return within_unit(value, max(root - width, 0.0) ** 2, (root + width) ** 2)


def mean_of(entries: Array, bounds: Array) -> Bounded:
    """The mean of entries in [0, 1] that are determined, and of their half widths."""
    if not len(entries):
        return UNKNOWN
    value, width = float(entries.sum()) / len(entries), float(bounds.sum()) / len(bounds)
    return within_unit(value, value - width, value + width)


def exactly(number: float) -> Bounded:
    """A number that is what it is by definition."""
    return Bounded(float(number), float(number), float(number))


def within_unit(value: float, lower: float, upper: float) -> Bounded:
    """An interval of a number in [0, 1], a few roundings wider and then cut to that range."""
    value = min(max(value, 0.0), 1.0)
    slack = 8 * UNIT_ROUNDOFF
    return Bounded(value, min(max(lower - slack, 0.0), value), max(min(upper + slack, 1.0), value))


def subspace_overlap(
    a: Decomposition | SingularVectors,
    b: Decomposition | SingularVectors,
    k: int,
    side: Side = "left",
    other_side: Side | None = None,
) -> Bounded:
    """What the spans of the k leading vectors of two matrices share, ||A_k^T B_k||_F^2 / k.

    The mean squared cosine of the principal angles between the two spans. Unlike the vectors, a
    span that ends at a gap is well defined inside a cluster of equal singular values.

    Args:
        a: singular vectors of one matrix, float64 or float32, or a decomposition that holds them;
            not modified.
        b: of another, or of the same at another time.
        k: dimension of the subspaces, 1 <= k <= min(a.k, b.k).
        side: which vectors of `a`.
        other_side: which vectors of `b`; None: those of `side`.

    Returns:
        in [0, 1], dimensionless: 1 for equal spans, k / d on average for random ones in R^d. The
        interval is as wide as the errors of the two spans, [0, 1] where they are not determined.

    Raises:
        ValueError: if k is out of range, the vectors' lengths differ, or a decomposition has none.

    Source: Golub and Van Loan, Matrix Computations, 4th edition, section 6.4.3.
    """
    other_side = other_side or side
    a = vectors_in(a, "subspace overlap: the first")
    b = vectors_in(b, "subspace overlap: the second")
    for which, vectors in (("first", a), ("second", b)):
        if not 1 <= k <= vectors.k:
            m, n = vectors.shape
            raise ValueError(
                f"subspace overlap of the {k} leading vectors: the {which} matrix ({m} x {n}, rank "
                f"at most {min(m, n)}) has {vectors.k} of them; k must be between 1 and "
                f"{min(a.k, b.k)}"
            )
    (left, _, left_spans), (right, _, right_spans) = vectors_of(a, side), vectors_of(b, other_side)
    if len(left) != len(right):
        (m, n), (p, q) = a.shape, b.shape
        raise ValueError(
            f"subspace overlap needs vectors of equal length: the {side} vectors of the first "
            f"matrix ({m} x {n}) have {len(left)} entries, the {other_side} vectors of the second "
            f"({p} x {q}) have {len(right)}"
        )
    # only spans are compared here
    nothing = np.ones((1, k))
    meeting = meet([left[:, :k]], [right[:, :k].to(left.device)], (nothing, nothing), k)
    return overlap_of(meeting, 0, k, (left_spans, right_spans))
