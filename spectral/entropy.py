"""Effective rank of singular values that are known to lie in intervals.

The range over the intervals is enclosed, not linearised: the first-order estimate
sum_i d_i (|ln p_i| + H) / S is no bound once d_i is comparable with sigma_i, which is exactly the
rank-deficient case. Shape legend: B matrices, r singular values each.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import xlogy

Array = NDArray[np.float64]

UNIT_ROUNDOFF = 2.0**-53


def effective_rank_range(values: Array, bounds: Array) -> tuple[Array, Array, Array]:
    """Effective rank of each row, with the range it can take inside the row's intervals.

    erank(s) = exp(H),  H = -sum_i p_i ln p_i,  p_i = s_i / sum_j s_j,  with 0 ln 0 = 0.
    The range is over all s with max(value_i - bound_i, 0) <= s_i <= value_i + bound_i.

    *Lower end, attained.* Along any line H has a single maximum, so its minimum over a box lies at
    a corner; entries with p_i > exp(-H) lie at their upper end and the others at their lower
    end. With sorted intervals the corners to try are "the first k up, the rest down".

    *Upper end, enclosed.* For every distribution q, H(p) <= -sum_i p_i ln q_i (Gibbs). With q taken
    near the maximiser, the right-hand side is a ratio of two linear functions of s, whose maximum
    over the box Dinkelbach's iteration approaches from below; the last step adds what is missing.

    Args:
        values: shape (B, r), descending in each row, non-negative; not modified.
        bounds: shape (B, r), non-negative half widths; not modified.

    Returns:
        (value, lower, upper), each of shape (B,), dimensionless, in [1, r]; 0, 0, 0 for a row of
        zeros; NaN where a row holds NaN. Every row's result is a function of that row alone.

    Source: Roy and Vetterli, EUSIPCO 2007 (effective rank).
    """
    num_values = values.shape[-1]
    total = values.sum(-1)
    zero = total == 0.0
    safe_total = np.where(zero, 1.0, total)[:, None]
    share = values / safe_total
    width = bounds / safe_total
    # Symmetric intervals of sorted values need not be sorted themselves where values are as small
    # as their bounds; widening them to be sorted keeps every point they held.
    low = np.minimum.accumulate(np.maximum(share - width, 0.0), axis=-1)
    high = np.maximum.accumulate((share + width)[:, ::-1], axis=-1)[:, ::-1]

    entropy = -xlogy(share, share).sum(-1)
    lowest = _lowest_entropy(low, high)
    highest = _highest_entropy(low, high, _exp(-entropy))
    # Rounding of sums of r terms and of the logarithms; far below any bound worth storing.
    slack = 4.0 * (num_values + 16) * UNIT_ROUNDOFF * (1.0 + math.log(num_values))
    value = np.clip(_exp(entropy), 1.0, num_values)
    lower = np.clip(_exp(lowest - slack), 1.0, value)
    upper = np.clip(_exp(highest + slack), value, num_values)
    for result in (value, lower, upper):
        result[zero] = 0.0
    return value, lower, upper


def _lowest_entropy(low: Array, high: Array) -> Array:
    """Smallest entropy over the box: the best of its r + 1 corners "first k up, the rest down"."""
    zeros = np.zeros((len(low), 1))

    def corner_sums(low_terms: Array, high_terms: Array) -> Array:
        up = np.concatenate([zeros, np.cumsum(high_terms, axis=-1)], axis=-1)
        down = np.concatenate([np.cumsum(low_terms[:, ::-1], axis=-1)[:, ::-1], zeros], axis=-1)
        sums: Array = up + down
        return sums

    total = corner_sums(low, high)
    weighted = corner_sums(xlogy(low, low), xlogy(high, high))
    # The corner of zeros belongs to a box that also holds (high_1, 0, 0, ...), of entropy 0.
    total_or_one = np.where(total > 0.0, total, 1.0)
    corners = xlogy(1.0, total_or_one) - weighted / total_or_one
    lowest: Array = np.where(total > 0.0, corners, 0.0).min(-1)
    return lowest


def _highest_entropy(low: Array, high: Array, threshold: Array) -> Array:
    """An upper bound of the entropy over the box, tight to second order in its width.

    The maximiser is clip(t, low, high) with t = exp(-H) of itself (for shares that sum to one).
    """
    num_values = low.shape[-1]
    log_r = math.log(num_values)
    for _ in range(2):
        best = np.clip(threshold[:, None], low, high)
        total = best.sum(-1)
        threshold = _exp(xlogy(best, best).sum(-1) / np.where(total > 0.0, total, 1.0))
    best = np.clip(threshold[:, None], low, high)
    total = np.where(best.sum(-1) > 0.0, best.sum(-1), 1.0)
    # high = 0 means the value is exactly 0: it adds nothing, whatever its cost
    cost = -xlogy(1.0, np.where(best > 0.0, best / total[:, None], 1.0))
    ratio = (best * cost).sum(-1) / total
    for _ in range(3):
        chosen = np.where(cost > ratio[:, None], high, low)
        chosen_total = chosen.sum(-1)
        positive = chosen_total > 0.0
        better = (chosen * cost).sum(-1) / np.where(positive, chosen_total, 1.0)
        ratio = np.where(positive, better, ratio)
    excess = cost - ratio[:, None]
    missing = (np.where(excess > 0.0, high, low) * excess).sum(-1)
    low_total = low.sum(-1)
    bounded = low_total > 0.0
    highest = ratio + np.maximum(missing, 0.0) / np.where(bounded, low_total, 1.0)
    return np.where(bounded, np.minimum(highest, log_r), log_r)


def _exp(exponents: Array) -> Array:
    """Exponential of each entry, one at a time.

    NumPy's vectorised exp may round differently in the body and in the tail of an array; then a
    trial's numbers would depend on how many others are in its group.
    """
    return np.array([math.exp(exponent) for exponent in exponents])
