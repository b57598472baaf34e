"""Norms of a decomposition, in the units of the weights or relative to a random matrix.

Every function is pure. A result's interval holds the exact value for the stored matrix; rounding
of the last operations is directed outwards. The zero matrix has 0 everywhere, a matrix that is not
finite NaN. Shape legend: m x n the matrix, R = min(m, n).
"""

from __future__ import annotations

import math

import numpy as np

from spectral import partial_ranks, ranges
from spectral.baselines import baseline
from spectral.bounded import UNKNOWN, ZERO, Bounded
from spectral.decomposition import Decomposition
from spectral.ranges import alone, divided, measured


def frobenius_norm(decomposition: Decomposition) -> Bounded:
    """Square root of the sum of the squared entries, ||W||_F.

    Args:
        decomposition: of any matrix.

    Returns:
        at least 0, in the units of the weights; NaN if the matrix is not finite.
    """
    if decomposition.flag == "zero":
        return ZERO
    if math.isnan(decomposition.unit_frobenius):
        return UNKNOWN
    spectra = ranges.box([decomposition])
    return alone(ranges.scaled(ranges.frobenius_norm(spectra), np.array([decomposition.scale])))


def spectral_norm(decomposition: Decomposition) -> Bounded:
    """Largest singular value, sigma_1.

    Args:
        decomposition: of any matrix.

    Returns:
        at least 0, in the units of the weights; NaN if the matrix is not finite.
    """
    scales = np.array([decomposition.scale])
    return measured(
        decomposition, lambda spectra: ranges.scaled(ranges.spectral_norm(spectra), scales)
    )


def nuclear_norm(decomposition: Decomposition) -> Bounded:
    """Sum of the singular values, sum_i sigma_i.

    Args:
        decomposition: of any matrix.

    Returns:
        at least 0, in the units of the weights; NaN if the matrix is not finite. Where not all
        singular values are known, the interval is that of the estimated rest.
    """
    scales = np.array([decomposition.scale])
    return measured(
        decomposition, lambda spectra: ranges.scaled(_unit_nuclear(decomposition, spectra), scales)
    )


def spectral_norm_relative(decomposition: Decomposition) -> Bounded:
    """Spectral norm over that of a random matrix of the same shape and Frobenius norm.

    (sigma_1 / ||W||_F) / E[sigma_1(G) / ||G||_F] over Gaussian matrices G.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        at least 0, dimensionless, about 1 for independent entries; 0 for the zero matrix; NaN if
        the matrix is not finite.
    """
    share = measured(
        decomposition, lambda spectra: ranges.share_of_norm(ranges.spectral_norm(spectra), spectra)
    )
    return divided(share, baseline(*decomposition.shape).spectral_share, math.inf)


def nuclear_norm_relative(decomposition: Decomposition) -> Bounded:
    """Nuclear norm over that of a random matrix of the same shape and Frobenius norm.

    (sum_i sigma_i / ||W||_F) / E[sum_i sigma_i(G) / ||G||_F] over Gaussian matrices G.

    Args:
        decomposition: of any matrix; the matrix's scale does not enter.

    Returns:
        at least 0, dimensionless, about 1 for independent entries; 0 for the zero matrix; NaN if
        the matrix is not finite.
    """
    share = measured(
        decomposition,
        lambda spectra: ranges.share_of_norm(_unit_nuclear(decomposition, spectra), spectra),
    )
    return divided(share, baseline(*decomposition.shape).nuclear_share, math.inf)


def _unit_nuclear(decomposition: Decomposition, spectra: ranges.Box) -> ranges.Range:
    if decomposition.tail is None:
        return ranges.nuclear_norm(spectra)
    return partial_ranks.unit_nuclear_norm(decomposition)
