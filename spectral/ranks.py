"""Ranks and norms of a decomposition, each with the interval that its singular values allow.

Every function is pure. A result's interval holds the exact value for the stored matrix; rounding
of the last operations is directed outwards. Shape legend: m x n the matrix, R = min(m, n).
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from spectral.bounded import UNKNOWN, ZERO, Bounded
from spectral.decompose import Decomposition
from spectral.entropy import UNIT_ROUNDOFF, effective_rank_range


def effective_rank(decomposition: Decomposition) -> Bounded:
    """Exponential of the entropy of the normalised singular values.

    erank = exp(-sum_i p_i ln p_i),  p_i = sigma_i / sum_j sigma_j,  with 0 ln 0 = 0.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        in [1, R], dimensionless; 0 for the zero matrix; NaN if the matrix is not finite.

    Source: Roy and Vetterli, EUSIPCO 2007. The code of Yunis et al. (arXiv 2408.11804) adds 1e-10
    to every sigma: 1e-7 relative for rank 10 of 384 at scale 1, but 10 -> 47.7 at scale 1e-8.
    """
    return effective_ranks([decomposition])[0]


def effective_ranks(decompositions: Sequence[Decomposition]) -> list[Bounded]:
    """`effective_rank` of each, computed together where R agrees; the same numbers to the bit."""
    results = [UNKNOWN] * len(decompositions)
    same_size: dict[int, list[int]] = defaultdict(list)
    for position, decomposition in enumerate(decompositions):
        if not math.isnan(decomposition.unit_values[0]):
            same_size[len(decomposition.unit_values)].append(position)
    for positions in same_size.values():
        value, lower, upper = effective_rank_range(
            np.stack([decompositions[p].unit_values for p in positions]),
            np.stack([decompositions[p].unit_bounds for p in positions]),
        )
        triples = zip(value.tolist(), lower.tolist(), upper.tolist(), strict=True)
        for position, triple in zip(positions, triples, strict=True):
            results[position] = Bounded(*triple)
    return results


def normalised(rank: Bounded, decomposition: Decomposition) -> Bounded:
    """A rank divided by its largest possible value, R = min(m, n).

    Args:
        rank: a rank of the matrix, in [0, R].
        decomposition: of the same matrix; only its shape is used.

    Returns:
        in [1/R, 1], dimensionless; 0 for the zero matrix; NaN if `rank` is. Square random matrices
        have 0.805 and 4:1 ones 0.966 (effective rank): compare only equal shapes, or baselines.

    Source: the quantity plotted by Yunis et al., arXiv 2408.11804, as exp(H) / R.
    """
    largest = min(decomposition.shape)
    return _outward(rank.value / largest, rank.lower / largest, rank.upper / largest, 1.0)


def stable_rank(decomposition: Decomposition) -> Bounded:
    """Squared Frobenius norm over squared spectral norm, ||W||_F^2 / sigma_1^2.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        in [1, R], dimensionless; 0 for the zero matrix; NaN if the matrix is not finite.

    Source: Rudelson and Vershynin, J. ACM 54 (4), 2007.
    """
    if decomposition.flag == "zero":
        return ZERO
    norm, norm_bound = decomposition.unit_frobenius, decomposition.unit_frobenius_bound
    top, top_bound = float(decomposition.unit_values[0]), float(decomposition.unit_bounds[0])
    if math.isnan(top):
        return UNKNOWN
    largest = float(min(decomposition.shape))
    value = min(max((norm / top) ** 2, 1.0), largest)
    lower = ((norm - norm_bound) / (top + top_bound)) ** 2
    upper = ((norm + norm_bound) / (top - top_bound)) ** 2 if top > top_bound else largest
    result = _outward(value, lower, upper, largest)
    return Bounded(value, max(result.lower, 1.0), result.upper)


def frobenius_norm(decomposition: Decomposition) -> Bounded:
    """Square root of the sum of the squared entries, ||W||_F.

    Args:
        decomposition: of any matrix.

    Returns:
        at least 0, in the units of the weights; NaN if the matrix is not finite.
    """
    return _scaled(decomposition, decomposition.unit_frobenius, decomposition.unit_frobenius_bound)


def spectral_norm(decomposition: Decomposition) -> Bounded:
    """Largest singular value, sigma_1.

    Args:
        decomposition: of any matrix.

    Returns:
        at least 0, in the units of the weights; NaN if the matrix is not finite.
    """
    top, top_bound = decomposition.unit_values[0], decomposition.unit_bounds[0]
    return _scaled(decomposition, float(top), float(top_bound))


def _scaled(decomposition: Decomposition, value: float, bound: float) -> Bounded:
    if decomposition.flag == "zero":
        return ZERO
    scale = decomposition.scale
    return _outward(value * scale, (value - bound) * scale, (value + bound) * scale, math.inf)


def _outward(value: float, lower: float, upper: float, largest: float) -> Bounded:
    """Widen by a few roundings, keep within [0, largest]; zero, known exactly, stays zero."""
    if math.isnan(value):
        return UNKNOWN
    if upper > 0.0:
        lower = math.nextafter(lower * (1.0 - 16 * UNIT_ROUNDOFF), 0.0)
        upper = math.nextafter(upper * (1.0 + 16 * UNIT_ROUNDOFF), math.inf)
    # a norm beyond float64 is inf as a value, but the exact one is a number
    lower = min(max(lower, 0.0), value, sys.float_info.max)
    return Bounded(value, lower, min(max(upper, value), largest))
