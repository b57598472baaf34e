"""Gram matrices in float64, and what their rounding errors do to singular values.

**Scale.** Every matrix is divided by the power of two below max|W|: exact, so that nothing
overflows or vanishes between float32's 1e-45 and float64's 1e308, and numbers do not depend on it.

Shape legend: B matrices of m x n, L = max(m, n), R = min(m, n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spectral.entropy import UNIT_ROUNDOFF, Array

# Rows added up in one product. A constant matrix rounds the same way at every addition, so that one
# product over m rows errs by m/4 roundings (measured, m = 64 to 50,000), which no multiple of
# sqrt(m) bounds. Sums over blocks keep the worst case at 256 + m/256.
BLOCK_ROWS = 256


def scaled_grams(matrices: Sequence[Tensor]) -> tuple[list[float], list[float], Tensor]:
    """Gram matrices of W / scale on the smaller side, for matrices of one shape and device.

    Args:
        matrices: B matrices (m, n), any real floating dtype; not modified.

    Returns:
        (peaks, scales, grams): max|W| of each, NaN or inf if an entry is not finite; the power of
        two with scale <= peak < 2 scale (1.0 for a peak of zero or not finite); and the float64
        Grams, shape (B, R, R), on the CPU, without meaning where the peak is not finite.
    """
    stack = matrices[0][None] if len(matrices) == 1 else torch.stack(list(matrices))
    stack = stack.to(torch.float64, memory_format=torch.contiguous_format)
    if len(matrices) == 1:
        least, largest = stack.aminmax()
        peaks = [max(-least.item(), largest.item())]
        scales = [scale_below(peaks[0])]
        units = stack / scales[0]
    else:
        least, largest = stack.flatten(1).aminmax(dim=1)
        peaks = torch.maximum(-least, largest).tolist()
        scales = [scale_below(peak) for peak in peaks]
        units = stack / torch.tensor(scales, dtype=stack.dtype, device=stack.device)[:, None, None]
    tall = units if units.shape[1] >= units.shape[2] else units.mT
    if tall.shape[1] <= BLOCK_ROWS:
        return peaks, scales, torch.bmm(tall.mT, tall).cpu()
    grams = tall.new_zeros(len(matrices), tall.shape[2], tall.shape[2])
    for start in range(0, tall.shape[1], BLOCK_ROWS):
        block = tall[:, start : start + BLOCK_ROWS]
        grams += torch.bmm(block.mT, block)
    return peaks, scales, grams.cpu()


def scale_below(peak: float) -> float:
    """The power of two with scale <= peak < 2 scale; 1.0 if `peak` is zero or not finite."""
    if peak == 0.0 or not math.isfinite(peak):
        return 1.0
    return math.ldexp(1.0, math.frexp(peak)[1] - 1)


def summation_error(long_side: int) -> float:
    """Relative error of a sum of `long_side` products added in blocks, in any order inside them.

    gamma_k = k u / (1 - k u) with k the additions one product goes through (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1).
    """
    blocks = -(-long_side // BLOCK_ROWS)
    # + 1: products of float32 numbers are exact in float64, those of float64 numbers round
    terms = min(long_side, BLOCK_ROWS) + blocks + 1
    return terms * UNIT_ROUNDOFF / (1.0 - terms * UNIT_ROUNDOFF)


def singular_values_from(
    eigenvalues: Array, traces: Array, long_sides: Sequence[int]
) -> tuple[Array, Array]:
    """Singular values with half widths from the eigenvalues of computed Gram matrices.

    |computed - true eigenvalue| <= eps = g ||W||_F^2 + (2 R + 24) u lambda_1. The first term is
    forming the Gram (a theorem, g = `summation_error`); the second is the solver (measured: at most
    12.5 u lambda_1 for R = 2 to 64 and eight kinds of spectra, against 40 digits; R u lambda_1
    would be too small below R = 9). Weyl: sqrt(lambda - eps) <= sigma <= sqrt(lambda + eps).

    Args:
        eigenvalues: shape (B, R), descending, possibly negative by rounding.
        traces: shape (B,), of the computed Gram matrices.
        long_sides: L of each matrix.

    Returns:
        (values, half widths), both (B, R).
    """
    forming = np.array([summation_error(long_side) for long_side in long_sides])
    solver = (2 * eigenvalues.shape[1] + 24) * UNIT_ROUNDOFF
    # 1e-6: trace and lambda_1 are themselves computed
    eps = (1.0 + 1e-6) * (forming * traces + solver * eigenvalues[:, 0])[:, None]
    squares = np.maximum(eigenvalues, 0.0)
    values = np.sqrt(squares)
    # differences of square roots, written as quotients that do not cancel
    above = eps / (np.sqrt(squares + eps) + values)
    reach = values + np.sqrt(np.maximum(squares - eps, 0.0))
    below = np.where(squares > eps, eps / np.where(squares > eps, reach, 1.0), values)
    bounds = np.maximum(above, below) * (1.0 + 8 * UNIT_ROUNDOFF) + 2 * UNIT_ROUNDOFF * values
    return values, bounds
