"""Small singular values without the floor that a Gram matrix puts under them.

The Gram matrix knows a singular value to about 1e-16 sigma_1^2 / sigma: nothing is left of it below
1e-8 sigma_1. Restricted to the eigenvectors of the small eigenvalues, W is a matrix whose largest
singular value is small, and the Gram matrix of that restriction has its floor 1e-8 below *that*.
One more product, one more Gram matrix, one more values-only eigenvalue problem.

Shape legend: W is m x n, R = min(m, n), h values kept, t = R - h computed again.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.gram import (
    Scaled,
    eigenvalue_error,
    gram,
    peaks_and_scales,
    row_blocks,
    singular_values_from,
)
from spectral.solvers import eigen

# The values to compute again begin at the widest relative gap between these parts of lambda_1:
# above, the first Gram matrix knows them to 1e-9 and better.
_CUT_BELOW, _CUT_ABOVE = 1e-5, 1e-7


class Deflated(NamedTuple):
    """Singular values of W / scale, and what was computed on the way.

    Attributes:
        values: shape (R,), descending.
        bounds: shape (R,), half widths.
        head: h, how many values are those of the first look.
        restricted: shape (L, t), (W / scale) V_t, or its transpose's where W is wide.
    """

    values: Array
    bounds: Array
    head: int
    restricted: Tensor


def deflated(
    scaled: Scaled,
    eigenvalues: Array,
    eigenvectors: Tensor,
    eps: float,
    frobenius: float,
) -> Deflated | None:
    """Singular values of W / scale with half widths, the small ones computed again.

    With V = [V_h V_t] the computed eigenvectors, (W V)^T (W V) has the blocks A, C, B. Its
    eigenvalues are those of W^T W times 1 +- 2 w, with w a bound of ||V^T V - I|| (Ostrowski), and
    those of B up to ||C||^2 / (lambda_min(A) - lambda_max(B)) (Mathias, SIAM J. Matrix Anal. Appl.
    19 (2), 1998). ||C|| = ||V_h^T W^T W V_t|| is at most the residual of V_t, eps, and w
    lambda_{h+1}. W V_t itself rounds by at most R u ||W||_F sqrt(t).

    Args:
        scaled: W / scale.
        eigenvalues: shape (R,), descending, of the Gram matrix of W / scale.
        eigenvectors: shape (R, R), by columns, in the same order.
        eps: bound of the errors of the eigenvalues and of the residuals.
        frobenius: ||W / scale||_F.

    Returns:
        the singular values, or None if no eigenvalue is small or the solver fails.
    """
    rank = len(eigenvalues)
    first = int((eigenvalues > _CUT_BELOW * eigenvalues[0]).sum())
    last = int((eigenvalues > _CUT_ABOVE * eigenvalues[0]).sum())
    if first == rank:
        return None
    squares = np.maximum(eigenvalues, 0.0)
    candidates = range(first, min(last, rank - 1) + 1)
    head = max(candidates, key=lambda h: squares[h - 1] / max(squares[h], eps))
    num_tail = rank - head
    restricted = scaled.times(eigenvectors[:, head:])
    found = _values(restricted)
    if found is None:
        return None
    tail, half_widths = found

    orthogonality = (4 * rank + 64) * UNIT_ROUNDOFF
    rounding = (rank + 2) * UNIT_ROUNDOFF * frobenius * math.sqrt(num_tail)
    coupling = (eps + orthogonality * (float(squares[head]) + eps)) * 1.01
    # V_h is orthonormal up to `orthogonality`, and lambda_1 is what that may cost the block A
    least = float(squares[head - 1]) - eps - orthogonality * float(eigenvalues[0])
    gap = least - (tail[0] + half_widths[0] + rounding) ** 2
    if gap <= 2 * coupling:
        return None
    shift = coupling**2 / gap
    reach = half_widths + rounding
    upper = np.sqrt((tail + reach) ** 2 + shift) * (1.0 + 2 * orthogonality)
    lower = np.sqrt(np.maximum(np.maximum(tail - reach, 0.0) ** 2 - shift, 0.0))
    lower = lower * (1.0 - 2 * orthogonality)
    tail_bounds = np.maximum(upper - tail, tail - lower) * (1.0 + 8 * UNIT_ROUNDOFF)

    values, bounds = singular_values_from(eigenvalues[None, :head], np.array([eps]))
    return Deflated(
        np.concatenate([values[0], tail]),
        np.concatenate([bounds[0], tail_bounds]),
        head,
        restricted,
    )


def _values(restricted: Tensor) -> tuple[Array, Array] | None:
    """Singular values of a tall matrix with half widths, from its Gram matrix."""
    peaks, scales = peaks_and_scales(restricted)
    if peaks.item() == 0.0:
        zeros = np.zeros(restricted.shape[1])
        return zeros, zeros
    small = gram(row_blocks(restricted, scales)).cpu()
    solved = eigen(small, vectors=False)
    if solved is None:
        return None
    values = solved.values[None]
    traces = np.array([small.trace().item()])
    found, bounds = singular_values_from(
        values, eigenvalue_error(values, traces, [max(restricted.shape)])
    )
    return found[0] * scales.item(), bounds[0] * scales.item()
