"""Gram matrices in float64, and what their rounding errors do to singular values.

**Scale.** Every matrix is divided by the power of two below max|W|: exact, so that nothing
overflows or vanishes between float32's 1e-45 and float64's 1e308, and numbers do not depend on it.

Shape legend: B matrices of m x n, L = max(m, n), R = min(m, n).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectral.entropy import UNIT_ROUNDOFF, Array

# Rows added up in one product. A constant matrix rounds the same way at every addition, so that one
# product over m rows errs by m/4 roundings (measured, m = 64 to 50,000), which no multiple of
# sqrt(m) bounds. Sums over blocks keep the worst case at 256 + m/256.
BLOCK_ROWS = 256


# Columns of a Gram matrix that one product makes. It is symmetric: only what lies on and right of
# the diagonal blocks is computed, 5/8 of it with four panels.
PANEL_COLUMNS = 192

# Entries of matrices whose float64 blocks are kept between two uses: making them anew costs small
# matrices as much as multiplying them.
KEPT_ENTRIES = 2**18

# Entries of a block that vectors are multiplied with.
TIMES_ENTRIES = 2**20


def peaks_and_scales(weights: Tensor) -> tuple[Tensor, Tensor]:
    """max|W| of each matrix, and the power of two that it is divided by.

    Args:
        weights: shape (m, n) or (B, m, n), any real floating dtype; not modified.

    Returns:
        (peaks, scales), float64, shape () or (B,), on the device of the weights, without waiting
        for it: a peak is NaN or inf if an entry is not finite; scale <= peak < 2 scale, and 1 for a
        peak of zero or not finite.
    """
    if weights.dim() == 2:
        least, largest = weights.aminmax()
    else:
        least, largest = weights.flatten(1).aminmax(dim=1)
    peaks = torch.maximum(-least, largest).double()
    if peaks.device.type == "cpu" and peaks.dim() == 0:
        scale = scale_below(peaks.item())
        return peaks, torch.tensor(scale, dtype=torch.float64, device=peaks.device)
    exponents = torch.frexp(peaks).exponent - 1
    usable = torch.isfinite(peaks) & (peaks != 0.0)
    one = torch.ones_like(peaks)
    return peaks, torch.where(usable, torch.ldexp(one, torch.where(usable, exponents, 0)), one)


def row_blocks(weights: Tensor, scales: Tensor, rows: int = BLOCK_ROWS) -> Iterator[Tensor]:
    """W / scale in float64, some rows of the longer side at a time: shape (..., <= rows, R).

    No copy of a whole matrix is made; a block stays in the cache while it is used.
    """
    wide = weights.shape[-2] <= weights.shape[-1]
    long_axis = weights.dim() - 1 if wide else weights.dim() - 2
    divisors = scales[..., None, None]
    for start in range(0, weights.shape[long_axis], rows):
        length = min(rows, weights.shape[long_axis] - start)
        block = weights.narrow(long_axis, start, length)
        # one copy, also where the weights are float64 already: the division is in place
        block = block.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
        block.div_(divisors)
        yield block.mT if wide else block


def gram(blocks: Iterable[Tensor]) -> Tensor:
    """Sum of block^T block over blocks of rows: shape (..., R, R), symmetric up to rounding.

    Args:
        blocks: at least one, float64, shape (..., <= `BLOCK_ROWS`, R).
    """
    result: Tensor | None = None
    panels = 1
    for block in blocks:
        size = block.shape[-1]
        panels = -(-size // PANEL_COLUMNS)
        if panels == 1:
            product = block.mT @ block
            result = product if result is None else result.add_(product)
            continue
        if result is None:
            result = block.new_zeros(*block.shape[:-2], size, size)
        for start in range(0, size, PANEL_COLUMNS):
            panel = block[..., start : start + PANEL_COLUMNS].mT
            rest = block[..., start:]
            rows = result[..., start : start + PANEL_COLUMNS, start:]
            rows.addmm_(panel, rest) if rows.dim() == 2 else rows.baddbmm_(panel, rest)
    assert result is not None
    if panels > 1:
        # solvers read one triangle; the other is filled in for whoever reads both
        upper = result.triu_()
        result = upper + upper.triu(1).mT
    return result


@dataclass(frozen=True)
class Scaled:
    """W / scale, which is read in blocks of rows, more than once.

    Attributes:
        weights: shape (m, n).
        scale: shape (), see `peaks_and_scales`.
        kept: its blocks, where they are small enough to be kept; else they are made again.
    """

    weights: Tensor
    scale: Tensor
    kept: list[Tensor] | None = None

    @classmethod
    def of(cls, weights: Tensor, scale: Tensor) -> Scaled:
        """With its blocks, if they are small and on the CPU."""
        small = weights.device.type == "cpu" and weights.numel() <= KEPT_ENTRIES
        return cls(weights, scale, list(row_blocks(weights, scale)) if small else None)

    def blocks(self) -> Iterable[Tensor]:
        """As `row_blocks`."""
        return row_blocks(self.weights, self.scale) if self.kept is None else self.kept

    def times(self, right: Tensor) -> Tensor:
        """(W / scale) right where W is tall, (W / scale)^T right where it is wide.

        Args:
            right: shape (R, k), float64: vectors of the shorter side.

        Returns:
            shape (L, k), float64.
        """
        blocks: Iterable[Tensor] | None = self.kept
        if blocks is None:  # sums are over R entries here: blocks may be as large as is fast
            rows = max(TIMES_ENTRIES // right.shape[-2], BLOCK_ROWS)
            blocks = row_blocks(self.weights, self.scale, rows)
        parts = [block @ right for block in blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


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


def eigenvalue_error(eigenvalues: Array, traces: Array, long_sides: Sequence[int]) -> Array:
    """How far eigenvalues and eigenvectors of a computed Gram matrix G are from true ones.

    eps = g ||W||_F^2 + (2 R + 24) u lambda_1 bounds |computed - true eigenvalue|, and the norm of
    the residual W^T W V - V Lambda of any set of computed eigenvectors V. The first term is forming
    the Gram (a theorem, g = `summation_error`); the second is the solver, measured for R = 2 to 64
    and eight kinds of spectra against 40 digits (values: at most 12.5 u lambda_1, where R u
    lambda_1 would be too small below R = 9) and in 80-bit arithmetic (residuals, R up to 128).

    Args:
        eigenvalues: shape (B, R), descending.
        traces: shape (B,), of the computed Gram matrices.
        long_sides: L of each matrix.

    Returns:
        eps, shape (B,).
    """
    forming = np.array([summation_error(long_side) for long_side in long_sides])
    solver = (2 * eigenvalues.shape[1] + 24) * UNIT_ROUNDOFF
    # 1e-6: trace and lambda_1 are themselves computed
    eps: Array = (1.0 + 1e-6) * (forming * traces + solver * eigenvalues[:, 0])
    return eps


def singular_values_from(eigenvalues: Array, eps: Array) -> tuple[Array, Array]:
    """Singular values with half widths from eigenvalues of Gram matrices that err by at most eps.

    Weyl: sqrt(lambda - eps) <= sigma <= sqrt(lambda + eps).

    Args:
        eigenvalues: shape (B, R), descending, possibly negative by rounding.
        eps: shape (B,), from `eigenvalue_error`.

    Returns:
        (values, half widths), both (B, R).
    """
    eps = eps[:, None]
    squares = np.maximum(eigenvalues, 0.0)
    values = np.sqrt(squares)
    # differences of square roots, written as quotients that do not cancel
    above = eps / (np.sqrt(squares + eps) + values)
    reach = values + np.sqrt(np.maximum(squares - eps, 0.0))
    below = np.where(squares > eps, eps / np.where(squares > eps, reach, 1.0), values)
    bounds = np.maximum(above, below) * (1.0 + 8 * UNIT_ROUNDOFF) + 2 * UNIT_ROUNDOFF * values
    return values, bounds
