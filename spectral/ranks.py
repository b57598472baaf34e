"""Ranks and norms of a decomposition, each with the interval that its singular values allow.

Every function is pure. A result's interval holds the exact value for the stored matrix; rounding
of the last operations is directed outwards. The zero matrix has 0 everywhere, a matrix that is not
finite NaN. Where only the largest singular values are known one by one (R above 2048), intervals of
what sums over all of them are statistical, and what cannot be known is NaN: `partial_ranks`.
Shape legend: m x n the matrix, R = min(m, n).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from spectral import partial_ranks, ranges
from spectral.baselines import baseline
from spectral.bounded import UNKNOWN, ZERO, Bounded
from spectral.decomposition import Decomposition
from spectral.norms import frobenius_norm as frobenius_norm
from spectral.norms import spectral_norm as spectral_norm
from spectral.ranges import alone, divided, measured


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
        if decomposition.flag == "zero":
            results[position] = ZERO
        elif math.isnan(decomposition.unit_values[0]):
            continue
        elif decomposition.tail is not None:
            results[position] = partial_ranks.effective_rank(decomposition)
        else:
            same_size[len(decomposition.unit_values)].append(position)
    for positions in same_size.values():
        found = ranges.effective_rank(ranges.box([decompositions[p] for p in positions]))
        triples = zip(*(ends.tolist() for ends in found), strict=True)
        for position, triple in zip(positions, triples, strict=True):
            results[position] = Bounded(*triple)
    return results


def spectral_entropy(decomposition: Decomposition) -> Bounded:
    """Entropy of the normalised singular values, H = -sum_i p_i ln p_i: ln(effective rank).

    `normalised(spectral_entropy(d), d)` is H / R, the rank that the paper of Yunis et al. prints
    (its code, and so its figures, have exp(H) / R: `effective_rank`).

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        in [0, ln R], in nats; 0 for the zero matrix; NaN if the matrix is not finite.
    """
    rank = effective_rank(decomposition)
    if not rank.value >= 1.0:
        return rank
    value, lower, upper = (np.array([end]) for end in rank)
    return alone(ranges.entropy_of((value, lower, upper)))


def entropy_over_log_rank(decomposition: Decomposition) -> Bounded:
    """Entropy of the normalised singular values over its largest possible value, H / ln R.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        in [0, 1], dimensionless; 0 for the zero matrix; NaN if the matrix is not finite. Matrices
        of one row or column have 1, as all matrices with equal singular values.

    Source: Pielou, J. Theor. Biol. 13, 1966 (evenness).
    """
    entropy, size = spectral_entropy(decomposition), min(decomposition.shape)
    if size == 1:
        return _one_unless_zero(decomposition)
    return divided(entropy, math.log(size), 1.0)


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
    return divided(rank, min(decomposition.shape), 1.0)


def relative(rank: Bounded, random: float) -> Bounded:
    """A rank divided by its mean over random matrices of the same shape.

    Args:
        rank: any rank of the matrix.
        random: what `spectral.baselines.baseline` says of that rank and shape; positive. It counts
            as a definition: its own error (1e-3 below R = 64, at most 1 % above) widens nothing.

    Returns:
        at least 0, dimensionless, about 1 for independent entries; NaN if `rank` is.
    """
    return divided(rank, random, math.inf)


def stable_rank(decomposition: Decomposition) -> Bounded:
    """Squared Frobenius norm over squared spectral norm, ||W||_F^2 / sigma_1^2.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        in [1, R], dimensionless; 0 for the zero matrix; NaN if the matrix is not finite.

    Source: Rudelson and Vershynin, J. ACM 54 (4), 2007.
    """
    return measured(decomposition, ranges.stable_rank)


def participation_rank(decomposition: Decomposition) -> Bounded:
    """Squared sum of sigma^2 over the sum of sigma^4, (sum_i sigma_i^2)^2 / sum_i sigma_i^4.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        in [1, R], dimensionless; 0 for the zero matrix; NaN if the matrix is not finite. Where not
        all singular values are known, the interval is still certain: the others share what is left
        of the Frobenius norm, and none is larger than the last one known.

    Source: participation ratio of the eigenvalues of W^T W (Bell and Dean, Discuss. Faraday Soc.
    50, 1970).
    """
    return measured(decomposition, ranges.participation_rank, partial_ranks.participation_rank)


def mass_rank(decomposition: Decomposition) -> Bounded:
    """How many of the largest singular values hold more than nine tenths of their sum.

    The smallest k with sigma_1 + ... + sigma_k > 0.9 sum_i sigma_i.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        a whole number in [1, R]; 0 for the zero matrix; NaN if the matrix is not finite. `lower`
        and `upper` are whole numbers too, and differ where the sums are as close as their bounds.

    Source: Yunis et al., arXiv 2408.11804 (their code, in no figure).
    """
    return measured(decomposition, ranges.mass_rank, partial_ranks.mass_rank)


def numerical_rank(decomposition: Decomposition) -> Bounded:
    """How many singular values stand out of the rounding errors of the weights.

    The number of sigma_i > sigma_1 max(m, n) eps, with eps the distance from 1 to the next number
    of the weights' dtype: 2^-23 for float32.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        a whole number in [0, R] (0 only for the zero matrix, and where max(m, n) eps >= 1, that is
        128 rows of bfloat16); NaN if the matrix is not finite. `lower` and `upper` are whole
        numbers too, and differ where a singular value is as close to the threshold as its bound.

    Source: the default of `numpy.linalg.matrix_rank`.
    """
    threshold = np.array([max(decomposition.shape) * decomposition.precision])
    return measured(
        decomposition,
        lambda box: ranges.numerical_rank(box, threshold),
        partial_ranks.numerical_rank,
    )


def gini(decomposition: Decomposition) -> Bounded:
    """Gini coefficient of the singular values: 0 if they are equal, 1 - 1/R if one stands alone.

    sum_ij |sigma_i - sigma_j| / (2 R sum_i sigma_i).

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        in [0, 1 - 1/R], dimensionless; 0 for the zero matrix; NaN if the matrix is not finite, or
        not all singular values are known.

    Source: Yunis et al., arXiv 2408.11804 (their code, in no figure).
    """
    return measured(decomposition, ranges.gini, lambda _: UNKNOWN)


def gini_relative(decomposition: Decomposition) -> Bounded:
    """`gini` divided by its mean over random matrices of the same shape.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        at least 0, dimensionless; 0 for the zero matrix; NaN if `gini` is. Matrices of one row or
        column, whose coefficient is 0 as that of random ones, have 1.
    """
    if min(decomposition.shape) == 1:
        return _one_unless_zero(decomposition)
    return relative(gini(decomposition), baseline(*decomposition.shape).gini)


def _one_unless_zero(decomposition: Decomposition) -> Bounded:
    return measured(decomposition, lambda spectra: (np.ones(1), np.ones(1), np.ones(1)))
