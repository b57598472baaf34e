"""Ranks of matrices whose largest singular values alone are known one by one (R above 2048).

What the other R - k add up to is estimated (`Tail`), and results that need it have statistical
intervals, at the confidence of the tail's. What the Frobenius norm and the known values settle is
certain. What neither settles is NaN. Shape legend: R = min(m, n), k known singular values of
W / scale.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import xlogy

from spectral import ranges
from spectral.bounded import UNKNOWN, Bounded
from spectral.decompose import Decomposition, Tail
from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.ranges import Range, alone, box, outward


def effective_rank(decomposition: Decomposition) -> Bounded:
    """exp(ln S - Q / S) with S = sum_i s_i and Q = sum_i s_i ln s_i, both estimated.

    For given S the entropy falls with Q; for given Q it falls with S up to S = -Q and rises beyond,
    so the range over both intervals is found at their ends and at that point.

    Args:
        decomposition: with a tail.

    Returns:
        in [1, R], with a statistical interval; NaN if the tail's sums are not known.
    """
    tail, spectra = _tail(decomposition), box([decomposition])
    total, total_low, total_high = _with_tail(
        (_sum(spectra.values), _sum(spectra.low), _sum(spectra.high)), tail.total
    )
    # s ln s has its minimum at 1 / e
    lowest = np.clip(math.exp(-1.0), spectra.low, spectra.high)
    ends = np.maximum(xlogy(spectra.low, spectra.low), xlogy(spectra.high, spectra.high))
    weighted, weighted_low, weighted_high = _with_tail(
        (
            _sum(xlogy(spectra.values, spectra.values)),
            _sum(xlogy(lowest, lowest)),
            _sum(ends),
        ),
        tail.weighted,
    )
    if math.isnan(weighted) or not total_low > 0.0:
        return UNKNOWN

    def entropy(total: float, weighted: float) -> float:
        return math.log(total) - weighted / total

    size = float(min(decomposition.shape))
    turning = min(max(-weighted_high, total_low), total_high)
    value = math.exp(entropy(total, weighted))
    lower = math.exp(entropy(turning, weighted_high))
    upper = max(math.exp(entropy(end, weighted_low)) for end in (total_low, total_high))
    slack = 64 * (size + 16) * UNIT_ROUNDOFF * (1.0 + math.log(size))
    value = min(max(value, 1.0), size)
    return Bounded(
        value,
        min(max(lower * (1.0 - slack), 1.0), value),
        max(min(upper * (1.0 + slack), size), value),
    )


def participation_rank(decomposition: Decomposition) -> Bounded:
    """||W||_F^4 / sum_i s_i^4, enclosed with certainty.

    The R - k others have the energy E = ||W||_F^2 - sum of the known s_i^2, so their fourth powers
    add up to at least E^2 / (R - k) (Cauchy and Schwarz), and to at most E s_k^2.

    Args:
        decomposition: with a tail.

    Returns:
        in [1, R]; the value takes the geometric mean of those two for the others.
    """
    spectra = box([decomposition])
    others = min(decomposition.shape) - spectra.values.shape[1]
    norm, norm_low, norm_high = (
        float(ends[0]) ** 2 for ends in (spectra.norm, spectra.norm_low, spectra.norm_high)
    )

    def squares(values: Array) -> Array:
        return np.square(values)

    slack = 8 * spectra.rounding
    left = max(norm - _sum(squares(spectra.values)), 0.0)
    left_low = max(norm_low - _sum(squares(spectra.high)) - slack * norm, 0.0)
    left_high = max(norm_high - _sum(squares(spectra.low)) + slack * norm, 0.0)
    last, last_high = float(spectra.values[0, -1]) ** 2, float(spectra.high[0, -1]) ** 2
    fourth, fourth_low, fourth_high = (
        _sum(squares(squares(ends))) for ends in (spectra.values, spectra.low, spectra.high)
    )
    # the two agree if the others are equal, and cannot cross but by rounding
    middle = math.sqrt((left**2 / others) * (left * last))
    value = norm**2 / (fourth + middle)
    lower = norm_low**2 / (fourth_high + left_high * last_high) * (1.0 - slack)
    smallest = fourth_low + left_low**2 / others
    size = float(min(decomposition.shape))
    upper = norm_high**2 / smallest * (1.0 + slack) if smallest > 0.0 else size
    value = min(max(value, 1.0, lower), size, max(upper, 1.0))
    return Bounded(value, min(max(lower, 1.0), value), min(max(upper, value), size))


def mass_rank(decomposition: Decomposition) -> Bounded:
    """Smallest k' with the first k' s_i above 0.9 of the (estimated) sum.

    Args:
        decomposition: with a tail.

    Returns:
        a whole number with a statistical interval; NaN if it may lie beyond the known values.
    """
    tail, spectra = _tail(decomposition), box([decomposition])
    slack = 4 * spectra.rounding

    def count(first: Array, rest: Array, others: float, slack: float) -> int:
        head = np.cumsum(first[0])
        after = np.append(np.cumsum(rest[0, ::-1])[::-1][1:], 0.0) + others
        return 1 + int((head - 9.0 * after + slack * (head + 9.0 * after) <= 0.0).sum())

    others, others_low, others_high = tail.total
    upper = count(spectra.low, spectra.high, others_high, -slack)
    if math.isnan(others) or upper > spectra.values.shape[1]:
        return UNKNOWN
    value = count(spectra.values, spectra.values, others, 0.0)
    lower = count(spectra.high, spectra.low, others_low, slack)
    return Bounded(value, min(lower, value), max(upper, value))


def numerical_rank(decomposition: Decomposition) -> Bounded:
    """Number of s_i > s_1 max(m, n) eps, where the known values go down to that threshold.

    Args:
        decomposition: with a tail.

    Returns:
        a whole number, certain; NaN if all known values may exceed the threshold.
    """
    spectra = box([decomposition])
    threshold = max(decomposition.shape) * decomposition.precision
    if threshold >= 1.0:
        return Bounded(0.0, 0.0, 0.0)
    if spectra.high[0, -1] > threshold * spectra.low[0, 0] * (1.0 - 8 * UNIT_ROUNDOFF):
        return UNKNOWN
    return alone(ranges.numerical_rank(spectra, np.array([threshold])))


def unit_nuclear_norm(decomposition: Decomposition) -> Range:
    """sum_i s_i, the others estimated; shape (1,) each."""
    spectra = box([decomposition])
    known = _sum(spectra.values), _sum(spectra.low), _sum(spectra.high)
    value, lower, upper = _with_tail(known, _tail(decomposition).total)
    slack = 2 * spectra.rounding
    numbers = value, lower * (1.0 - slack), upper * (1.0 + slack)
    first, second, third = (np.array([number]) for number in numbers)
    return outward((first, second, third), np.inf)


def _tail(decomposition: Decomposition) -> Tail:
    if decomposition.tail is None:
        raise ValueError("expected a decomposition with a tail, all its singular values are known")
    return decomposition.tail


def _sum(values: Array) -> float:
    return float(values.sum())


def _with_tail(known: tuple[float, float, float], tail: Bounded) -> tuple[float, float, float]:
    return known[0] + tail.value, known[1] + tail.lower, known[2] + tail.upper
