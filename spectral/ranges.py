"""Ranges of spectral metrics over the intervals of their singular values, many matrices at once.

Every function takes the spectra of B matrices of one R and returns `(value, lower, upper)`, float64
arrays of shape (B,), where the range holds the metric of every spectrum inside the intervals; last
roundings are directed outwards. Sums run along the last axis only and logarithms are taken one by
one, so that a matrix's numbers are the same to the bit alone and in company.

Shape legend: m x n a matrix, R = min(m, n), s_1 >= ... >= s_R its singular values over `scale`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spectral.bounded import UNKNOWN, ZERO, Bounded
from spectral.decomposition import Decomposition
from spectral.entropy import UNIT_ROUNDOFF, Array, effective_rank_range

Range = tuple[Array, Array, Array]

# The 90 % mass rank compares the sum of the first k with nine times the sum of the rest.
_REST_WEIGHT = 9.0


@dataclass(frozen=True)
class Box:
    """Singular values of W / scale of B matrices, and the intervals that hold the exact ones.

    Attributes:
        values: shape (B, R), descending in each row.
        bounds: shape (B, R): half widths.
        low: shape (B, R), descending: no s_i is smaller.
        high: shape (B, R), descending: no s_i is larger.
        norm: shape (B,): Frobenius norms, with
        norm_low: the smallest and
        norm_high: the largest they can be.
        size: R; more than there are columns where only the largest values are known.
    """

    values: Array
    bounds: Array
    low: Array
    high: Array
    norm: Array
    norm_low: Array
    norm_high: Array
    size: int

    @property
    def rounding(self) -> float:
        """Relative error of a sum of R non-negative terms of a few operations each."""
        return (self.size + 16) * UNIT_ROUNDOFF


def box(decompositions: Sequence[Decomposition]) -> Box:
    """The intervals of decompositions with equally many singular values, none zero or unsolved.

    Symmetric intervals of sorted values need not be sorted themselves where values are as small as
    their bounds; widening them to be sorted keeps every spectrum they held.
    """
    values = np.stack([decomposition.unit_values for decomposition in decompositions])
    bounds = np.stack([decomposition.unit_bounds for decomposition in decompositions])
    norm = np.array([decomposition.unit_frobenius for decomposition in decompositions])
    norm_bound = np.array([decomposition.unit_frobenius_bound for decomposition in decompositions])
    return Box(
        values=values,
        bounds=bounds,
        low=np.minimum.accumulate(np.maximum(values - bounds, 0.0), axis=-1),
        high=np.maximum.accumulate((values + bounds)[:, ::-1], axis=-1)[:, ::-1],
        norm=norm,
        norm_low=np.maximum(norm - norm_bound, 0.0),
        norm_high=norm + norm_bound,
        size=min(decompositions[0].shape),
    )


def measured(
    decomposition: Decomposition,
    metric: Callable[[Box], Range],
    partly: Callable[[Decomposition], Bounded] | None = None,
) -> Bounded:
    """A metric of one matrix: 0 if it is zero, NaN if its singular values are not known.

    Args:
        decomposition: of the matrix.
        metric: of its box.
        partly: used instead where only the largest singular values are known.
    """
    if decomposition.flag == "zero":
        return ZERO
    if math.isnan(decomposition.unit_values[0]):
        return UNKNOWN
    if partly is not None and decomposition.tail is not None:
        return partly(decomposition)
    return alone(metric(box([decomposition])))


def alone(numbers: Range) -> Bounded:
    """The only entry of a range."""
    return Bounded(*(ends.item() for ends in numbers))


def divided(number: Bounded, divisor: float, largest: float) -> Bounded:
    """A number over an exact positive one, rounded outwards, in [0, largest]; NaN stays NaN."""
    if math.isnan(number.value):
        return UNKNOWN
    value, lower, upper = (np.array([end]) for end in number)
    return alone(outward((value / divisor, lower / divisor, upper / divisor), largest))


def outward(numbers: Range, largest: float | Array) -> Range:
    """Widen by a few roundings, keep within [0, largest]; zero, known exactly, stays zero."""
    value, lower, upper = numbers
    some = upper > 0.0
    lower = np.where(some, np.nextafter(lower * (1.0 - 16 * UNIT_ROUNDOFF), 0.0), lower)
    upper = np.where(some, np.nextafter(upper * (1.0 + 16 * UNIT_ROUNDOFF), np.inf), upper)
    # a norm beyond float64 is inf as a value, but the exact one is a number
    lower = np.minimum(np.minimum(np.maximum(lower, 0.0), value), sys.float_info.max)
    return value, lower, np.minimum(np.maximum(upper, value), largest)


def effective_rank(spectra: Box) -> Range:
    """exp(-sum_i p_i ln p_i), p_i = s_i / sum_j s_j; in [1, R]."""
    return effective_rank_range(spectra.values, spectra.bounds)


def entropy_of(effective_ranks: Range) -> Range:
    """Natural logarithm of an effective rank and of both ends of its range."""
    value, lower, upper = (
        np.array([math.log(rank) for rank in ranks.tolist()]) for ranks in effective_ranks
    )
    return outward((value, lower, upper), np.inf)


def stable_rank(spectra: Box) -> Range:
    """||W||_F^2 / s_1^2; in [1, R]."""
    top, low, high = spectral_norm(spectra)
    with np.errstate(divide="ignore"):
        numbers = (
            np.square(spectra.norm / top),
            np.square(spectra.norm_low / high),
            np.square(spectra.norm_high / low),
        )
    return _at_least_one(numbers, spectra.size)


def participation_rank(spectra: Box) -> Range:
    """||W||_F^4 / sum_i s_i^4; in [1, R].

    The norm is a sum over the matrix itself, known to a few roundings whatever the intervals, and
    s^4 of values as small as their bounds adds nothing: the range is about as wide, relatively, as
    four times the intervals of the values that make up the sum.
    """

    def fourth_powers(values: Array) -> Array:
        squares = np.square(values)
        total: Array = np.square(squares).sum(-1)
        return total

    def ratio(norm: Array, values: Array) -> Array:
        quotient: Array = np.square(np.square(norm)) / fourth_powers(values)
        return quotient

    with np.errstate(divide="ignore"):
        value, lower, upper = (
            ratio(spectra.norm, spectra.values),
            ratio(spectra.norm_low, spectra.high) * (1.0 - 4 * spectra.rounding),
            ratio(spectra.norm_high, spectra.low) * (1.0 + 4 * spectra.rounding),
        )
    return _at_least_one((value, lower, upper), spectra.size)


def mass_rank(spectra: Box) -> Range:
    """Smallest k with s_1 + ... + s_k > 0.9 sum_i s_i; a whole number in [1, R].

    Equivalently s_1 + ... + s_k > 9 (s_(k+1) + ... + s_R), whose sides the intervals bound one by
    one: k can be no smaller with the first k at their upper ends and the rest at their lower ones,
    and no larger the other way round.
    """

    def count(first: Array, rest: Array, slack: float) -> Array:
        head = np.cumsum(first, axis=-1)[:, :-1]
        tail = _REST_WEIGHT * _sums_from(rest)[:, 1:]
        short = head - tail + slack * (head + tail) <= 0.0
        number: Array = 1.0 + short.sum(-1)
        return number

    slack = 4 * spectra.rounding
    value = count(spectra.values, spectra.values, 0.0)
    lower = count(spectra.high, spectra.low, slack)
    upper = count(spectra.low, spectra.high, -slack)
    return value, np.minimum(lower, value), np.maximum(upper, value)


def numerical_rank(spectra: Box, thresholds: Array) -> Range:
    """How many s_i exceed s_1 times a threshold, shape (B,); a whole number in [0, R].

    The first one exceeds it if the threshold is below 1, whatever its interval.
    """
    some = thresholds < 1.0

    def count(values: Array, cuts: Array) -> Array:
        number: Array = some * (1.0 + (values[:, 1:] > cuts[:, None]).sum(-1))
        return number

    value = count(spectra.values, thresholds * spectra.values[:, 0])
    lower = count(spectra.low, thresholds * spectra.high[:, 0] * (1.0 + 8 * UNIT_ROUNDOFF))
    upper = count(spectra.high, thresholds * spectra.low[:, 0] * (1.0 - 8 * UNIT_ROUNDOFF))
    return value, np.minimum(lower, value), np.maximum(upper, value)


def gini(spectra: Box) -> Range:
    """sum_ij |s_i - s_j| / (2 R sum_i s_i); in [0, 1 - 1/R].

    For sorted values that is sum_i w_i s_i / sum_i s_i with w_i = (R + 1 - 2 i) / R. Over a box
    such a quotient is largest at a corner "the first k up, the rest down" and smallest at a corner
    "the first k down, the rest up", because w_i descends: R + 1 corners each, all tried.
    """
    size = spectra.size
    weights = np.arange(size - 1, -size, -2) / size
    value = (weights * spectra.values).sum(-1) / spectra.values.sum(-1)

    def corners(first: Array, rest: Array) -> Array:
        total = _corner_sums(first, rest)
        weighted = _corner_sums(weights * first, weights * rest)
        # a corner of zeros is no spectrum; next to it lie spectra that other corners stand for
        some = total > 0.0
        quotients: Array = np.where(some, weighted / np.where(some, total, 1.0), value[:, None])
        return quotients

    lower = corners(spectra.low, spectra.high).min(-1) - 4 * spectra.rounding
    upper = corners(spectra.high, spectra.low).max(-1) + 4 * spectra.rounding
    # values of one size may differ from 0 by roundings
    value = np.clip(value, 0.0, 1.0 - 1.0 / size)
    upper = np.minimum(upper, 1.0 - 1.0 / size)
    return value, np.clip(lower, 0.0, value), np.maximum(upper, value)


def nuclear_norm(spectra: Box) -> Range:
    """sum_i s_i, of W / scale."""
    lower = spectra.low.sum(-1) * (1.0 - spectra.rounding)
    upper = spectra.high.sum(-1) * (1.0 + spectra.rounding)
    return outward((spectra.values.sum(-1), lower, upper), np.inf)


def frobenius_norm(spectra: Box) -> Range:
    """||W||_F, of W / scale."""
    return spectra.norm, spectra.norm_low, spectra.norm_high


def spectral_norm(spectra: Box) -> Range:
    """s_1, of W / scale."""
    return spectra.values[:, 0], spectra.low[:, 0], spectra.high[:, 0]


def share_of_norm(norms: Range, spectra: Box) -> Range:
    """A norm of W / scale over its Frobenius norm."""
    value, lower, upper = norms
    shares = (value / spectra.norm, lower / spectra.norm_high, upper / spectra.norm_low)
    return outward(shares, np.inf)


def scaled(norms: Range, scales: Array) -> Range:
    """A norm of W from that of W / scale, with what float64 cannot hold rounded outwards."""
    value, lower, upper = norms
    with np.errstate(over="ignore"):
        return outward((value * scales, lower * scales, upper * scales), np.inf)


def _at_least_one(numbers: Range, largest: int) -> Range:
    value = np.clip(numbers[0], 1.0, largest)
    value, lower, upper = outward((value, numbers[1], numbers[2]), float(largest))
    return value, np.maximum(lower, 1.0), upper


def _sums_from(values: Array) -> Array:
    """Entry i is the sum of entries i, i + 1, ..., from the small end."""
    sums: Array = np.cumsum(values[:, ::-1], axis=-1)[:, ::-1]
    return sums


def _corner_sums(first: Array, rest: Array) -> Array:
    """Shape (B, R + 1): entry k is the sum of the first k of `first` and the others of `rest`."""
    sums = np.zeros((len(first), first.shape[1] + 1))
    sums[:, :-1] = _sums_from(rest)
    sums[:, 1:] += np.cumsum(first, axis=-1)
    return sums
