"""How far computed singular vectors are from true ones.

Let lambda_1 >= ... >= lambda_R be the eigenvalues of W^T W (of W W^T if W is wide), v_i the true
eigenvectors, and (mu_j, x_j) a computed pair whose residual r = W^T W x_j - mu_j x_j has a norm of
at most eps. Then <v_i, x_j> = <v_i, r> / (lambda_i - mu_j) exactly, which gives

- the shorter side: sin(x_j, v_j) <= eps / min_{i != j} |lambda_i - mu_j|;
- the longer side, W x_j normalised: the part outside the true vector is sum_{i != j} sigma_i <v_i,
  x_j> u_i, of norm at most eps max_{i != j} sigma_i / |lambda_i - mu_j|, over sigma_j. As a
  function of sigma_i the quotient falls above mu_j and rises below it, so that the two neighbours
  decide.

The span of the first k vectors is treated in the same way, with the gap between k and k + 1.
Source: Davis and Kahan, SIAM J. Numer. Anal. 7 (1), 1970; the second bound is derived above.
Shape legend: B matrices of equal R, k vectors each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.vectors import SMALLEST_SHARE


class Angles(NamedTuple):
    """Bounds of sines of angles, each of shape (B, k), in [0, 1]; 1 where nothing is known."""

    short: Array
    long: Array
    short_span: Array
    long_span: Array


def angle_bounds(eigenvalues: Array, eps: Array, frobenius: Array, k: int) -> Angles:
    """Bounds for the vectors of the k largest eigenvalues of computed Gram matrices.

    Args:
        eigenvalues: shape (B, R), descending, of Gram matrices of W / scale.
        eps: shape (B,): bounds of eigenvalue errors and residual norms, see
            `spectral.gram.eigenvalue_error`.
        frobenius: shape (B,): ||W / scale||_F.
        k: how many vectors, at most R.

    Returns:
        the bounds, sorted as the eigenvalues are. Vectors of singular values below 1e-6 of the
        largest one have none, whatever their gap.
    """
    num_matrices, rank = eigenvalues.shape
    e = eps[:, None]
    values = np.maximum(eigenvalues, 0.0)
    sigma = np.sqrt(values)
    none = np.zeros((num_matrices, 1))
    rounding = (rank + 32) * UNIT_ROUNDOFF  # of a computed vector's length and direction
    product = rounding * frobenius[:, None]  # of W x_j
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        gap = eigenvalues[:, :-1] - eigenvalues[:, 1:] - e  # between i and i + 1
        known = gap > 0.0
        inverse = np.where(known, 1.0 / gap, np.inf)
        above = np.concatenate([none, inverse], axis=1)
        below = np.concatenate([inverse, none], axis=1)
        short = e * np.maximum(above, below) + rounding
        short_span = e * below + rounding
        # what a neighbour adds to a vector of the longer side, before the division by its length
        larger = np.where(known, (sigma[:, :-1] + np.sqrt(e)) / gap, np.inf)
        smaller = np.where(known, np.sqrt(values[:, 1:] + e) / gap, np.inf)
        larger = np.concatenate([none, larger], axis=1)
        smaller = np.concatenate([smaller, none], axis=1)
        # |W x_j|^2 = mu_j + x_j . r_j
        length = np.maximum(np.sqrt(np.maximum(values - e, 0.0)) - product, 0.0)
        long = (e * np.maximum(larger, smaller) + product) / length + rounding
        inverse_squares = np.cumsum(1.0 / length**2, axis=1)
        # root of a sum over the vectors of the span, with the gap of the last of them for all
        outside = e * smaller * np.sqrt(inverse_squares) + product * np.sqrt(inverse_squares)
        # long vectors are orthogonal up to eps / (sigma_i sigma_j), and computed like that
        skew = e * inverse_squares + np.cumsum(2 * product / length + rounding, axis=1)
        long_span = outside / np.sqrt(np.maximum(1.0 - skew, 0.0)) + skew
    weak = sigma < SMALLEST_SHARE * sigma[:, :1]
    bounds = (
        np.where(weak, np.inf, short),
        np.where(weak, np.inf, long),
        short_span,
        np.where(weak, np.inf, long_span),
    )
    return Angles(*(_capped(bound[:, :k]) for bound in bounds))


def _capped(bounds: Array) -> Array:
    """At most 1; 1 where a bound could not be computed."""
    result: Array = np.where(np.isfinite(bounds), np.minimum(bounds, 1.0), 1.0)
    return result
