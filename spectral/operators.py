"""The singular values of convolutions as linear operators on feature maps, with error bounds.

The operator is the convolution with *circular* boundary (see `spectral.fourier`). One that pads
with zeros, or not at all, is a submatrix of a circular one on a larger grid: its norm is at most
the supremum of ||B(nu)|| over all real frequencies, and the circular spectrum is not exactly its
own. The matrix that a ``conv`` view reads is another thing again: with k kernel positions the
operator norm is at most sqrt(k) times its sigma_1.

**Rounding errors** of a block B of L x R (longer and shorter side), u = 2^-53, beside what
`spectral.fourier` says of evaluating it:

- Forming G = B^H B from Z = [Re B; Im B], whose 2 L rows are summed in blocks: Re G = Z^T Z, and
  Im G = Re B^T Im B - its transpose, err by gamma |Z|^T |Z| each, entry by entry, so that
  ||error||_F <= sqrt(2) gamma ||B||_F^2, with gamma = `spectral.gram.summation_error(2 L)`.
- Solvers: three times what `spectral.gram` and `spectral.decompose` allow real matrices, as a
  complex product errs by 2 sqrt(2) u: (6 R + 72) u lambda_1 for eigenvalues and
  3 (L + 4 R + 32) u ||B||_F for a direct SVD. Measured: at most 10.7 u lambda_1 and 8.8 u ||B||_F
  (R = 2 to 24, eight kinds of spectra, against 40 digits).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.special import xlogy
from torch import Tensor

from spectral.decompose import DEFAULT_WORKSPACE, EFFECTIVE_RANK_TOLERANCE, Decomposition
from spectral.entropy import UNIT_ROUNDOFF, Array, effective_rank_range
from spectral.fourier import FourierBlocks, Integers, fourier_blocks
from spectral.geometry import ConvGeometry
from spectral.gram import BLOCK_ROWS, peaks_and_scales, singular_values_from, summation_error
from spectral.ranks import effective_rank, frobenius_norm, normalised, spectral_norm, stable_rank
from spectral.rows import ScalarRow, SpectrumRow, rounded_up, scalar_row
from spectral.solvers import LINALG_ERRORS, direct, eigen

# Singular values of an operator that a row holds: there are c min(N) of them, 65,536 for 64
# channels on a 32 x 32 grid.
MOST_STORED = 1000

# from the top of the ladder to its end
_METHODS = ("fft_gram64", "fft_svd64", "fft_gesvd64")


def conv_operator_spectrum(
    weight: Tensor,
    geometry: ConvGeometry,
    *,
    tolerance: float = EFFECTIVE_RANK_TOLERANCE,
    workspace: int = DEFAULT_WORKSPACE,
) -> Decomposition:
    """All singular values of a circular convolution on its grid, with intervals for the true ones.

    The union over frequencies nu of the singular values of B(nu), each as often as it occurs, and
    exact zeros where the stride leaves input positions that no kernel position reads. A transposed
    convolution is the adjoint, with the same values. Every sigma is that of the operator of *this*
    grid: compare operators through equal shapes or random kernels only.

    The ladder for each block: fft_gram64 (float64 Gram, Hermitian eigenvalues) -> fft_svd64 (gesdd)
    -> fft_gesvd64. If the effective rank of the whole is less certain than `tolerance`, the blocks
    that make it so step down once; the method named is the lowest that any block needed.

    Args:
        weight: shape (c_out, c_in / groups, k...), or (c_in, c_out / groups, k...) if transposed;
            any real floating dtype and device; not modified.
        geometry: how it is applied. Where the stride does not divide the input's size, the input
            is taken to be as large as the next multiple; a kernel larger than the grid wraps
            around it.
        tolerance: largest accepted half width of the effective rank, relative to it; ``inf`` never
            steps down.
        workspace: bytes to hold at once; a single block is always held.

    Returns:
        a `Decomposition` of the operator: `shape` is (entries of the output, entries of the input),
        R its smaller number; the Frobenius norm is that of the kernel, as it lies on the grid,
        times sqrt(number of positions of the smaller grid). Flags ``zero``, ``diverged`` and
        ``collapsed`` are as for matrices; ``ill_posed``: all solvers failed for a block, or a
        kernel larger than the grid cancels itself there (values NaN, the Frobenius norm stands).

    Raises:
        TypeError: if the weights are complex, integer or boolean.
        ValueError: if the weights cannot be applied like this.

    Source: Sedghi, Gupta and Long, ICLR 2019; Weyl's inequality.
    """
    if not weight.dtype.is_floating_point:
        raise TypeError(
            f"expected a kernel of real floating-point numbers, got {weight.dtype}; the spectra "
            "of complex and integer weights are not defined here"
        )
    shape = geometry.operator_shape(tuple(weight.shape))
    with torch.no_grad():
        kernel = weight.detach()
        peaks, scales = peaks_and_scales(kernel.flatten(1))
        peak, scale = peaks.item(), scales.item()
        flag = "zero" if peak == 0.0 else None if math.isfinite(peak) else "diverged"
        if flag:
            known = np.full(min(shape), 0.0 if flag == "zero" else math.nan)
            norm = float(known[0])
            return Decomposition(shape, known, known, norm, norm, 1.0, "none", flag)
        blocks = fourier_blocks(kernel.to(torch.float64) / scale, geometry)
        values, bounds, method = _solve(blocks, min(shape), tolerance, workspace)
    if method == "none":
        flag = "ill_posed"
    elif scale < torch.finfo(weight.dtype).tiny:
        # both are powers of two, so this compares max|K| itself
        flag = "collapsed"
    return Decomposition(
        shape=shape,
        unit_values=values,
        unit_bounds=bounds,
        unit_frobenius=blocks.frobenius,
        unit_frobenius_bound=blocks.frobenius_bound,
        scale=scale,
        method=method,
        flag=flag,
        precision=torch.finfo(weight.dtype).eps,
    )


def _solve(
    blocks: FourierBlocks, num_values: int, tolerance: float, workspace: int
) -> tuple[Array, Array, str]:
    """(values, half widths, method) of the whole operator, both (num_values,), descending."""
    nothing = np.full(num_values, math.nan)
    if blocks.frobenius == 0.0:
        # the kernel cancels itself on the grid: what is left, if anything, is rounding
        return nothing, nothing, "none"
    counts = np.repeat(blocks.multiplicities, blocks.channels[0])
    values, bounds, norms = _gram_spectra(blocks, workspace)
    method = _METHODS[0]
    united = _united(values, bounds, counts, num_values)
    (rank,), (lower,), (upper,) = effective_rank_range(united[0][None], united[1][None])
    # not: comparisons with NaN, where a solver failed, are false
    if not max(upper - rank, rank - lower) <= tolerance * rank:
        chosen = _uncertain(values, bounds, counts, tolerance)
        method = _step_down(blocks, chosen, values, bounds, norms)
        united = _united(values, bounds, counts, num_values)
    if np.isnan(united[0]).any():
        return nothing, nothing, "none"
    return *united, method


def _gram_spectra(blocks: FourierBlocks, workspace: int) -> tuple[Array, Array, Array]:
    """Singular values and half widths, (F g, R), and Frobenius norms, (F g,), of all blocks."""
    eigenvalues, traces = [], []
    for chunk in blocks.chunks(workspace):
        grams = _grams(*blocks.evaluate(chunk)).cpu()
        eigenvalues.append(_eigenvalues(grams))
        traces.append(grams.diagonal(dim1=1, dim2=2).real.sum(1).numpy())
    squares, trace = np.concatenate(eigenvalues), np.concatenate(traces)
    short, long = sorted(blocks.block_shape)
    forming = math.sqrt(2.0) * summation_error(2 * long)
    solver = (6 * short + 72) * UNIT_ROUNDOFF
    # 1e-6: trace and lambda_1 are themselves computed
    eps = (1.0 + 1e-6) * (forming * trace + solver * squares[:, 0])
    # a block may be exactly zero: an interval of width zero would be divided by its width
    values, bounds = singular_values_from(squares, np.maximum(eps, 2.0**-1000))
    return values, bounds + _evaluation_errors(blocks, len(bounds)), np.sqrt(trace)


def _evaluation_errors(blocks: FourierBlocks, num_blocks: int) -> Array:
    """Shape (F g, 1): blocks lie frequency after frequency, each with all its groups."""
    return np.tile(blocks.errors, num_blocks // len(blocks.errors))[:, None]


def _grams(real: Tensor, imaginary: Tensor | None) -> Tensor:
    """Gram matrices on the smaller side, shape (B, R, R): real, or complex Hermitian."""
    if real.shape[1] < real.shape[2]:
        # of B^T, whose singular values are the same
        real, imaginary = real.mT, None if imaginary is None else imaginary.mT
    result = real.new_zeros(len(real), real.shape[2], real.shape[2])
    skew = torch.zeros_like(result)
    for start in range(0, real.shape[1], BLOCK_ROWS // 2):
        x = real[:, start : start + BLOCK_ROWS // 2]
        if imaginary is None:
            result += x.mT @ x
            continue
        y = imaginary[:, start : start + BLOCK_ROWS // 2]
        both = torch.cat([x, y], dim=1)
        result += both.mT @ both
        product = x.mT @ y
        skew += product - product.mT
    return result if imaginary is None else torch.complex(result, skew)


def _eigenvalues(grams: Tensor) -> Array:
    """Shape (B, R), descending; NaN in the rows where the solver fails."""
    try:
        values: Array = torch.linalg.eigvalsh(grams).numpy()[:, ::-1]
        if np.isfinite(values).all():
            return values
    except LINALG_ERRORS:
        pass
    # which of them it was: the others are right
    rows = np.full(grams.shape[:2], math.nan)
    for row, gram in zip(rows, grams, strict=True):
        solved = eigen(gram, vectors=False)
        if solved is not None:
            row[:] = solved.values
    return rows


def _united(values: Array, bounds: Array, counts: Integers, num_values: int) -> tuple[Array, Array]:
    """Values of all blocks together, descending, with half widths, (num_values,) each.

    Sorting can pair a value with the interval of another. But the j-th largest true value lies
    between the j-th largest lower end and the j-th largest upper end.
    """

    def descending(entries: Array) -> Array:
        # what no block holds is exactly zero
        ordered = np.zeros(num_values)
        ordered[: counts.sum() * entries.shape[1]] = np.repeat(entries, counts, axis=0).ravel()
        ordered.sort()
        return ordered[::-1]

    middle = descending(values)
    low, high = descending(np.maximum(values - bounds, 0.0)), descending(values + bounds)
    widths = np.maximum(high - middle, middle - low)
    return middle, widths + 4 * UNIT_ROUNDOFF * (widths + middle)


def _uncertain(values: Array, bounds: Array, counts: Integers, tolerance: float) -> Integers:
    """The blocks that make the effective rank uncertain; all but those that hardly add to it.

    To first order block b adds sum_i d_i (|ln p_i| + H) / S; the smallest are left out while
    they add up to a quarter of the tolerance.
    """
    total = np.nansum(values * counts[:, None])
    share, width = values / total, bounds / total
    entropy = -np.nansum(xlogy(share, share) * counts[:, None])
    cost = counts * (width * (np.abs(np.log(np.maximum(share, width))) + entropy)).sum(1)
    order = np.argsort(cost)
    chosen: Integers = order[~(np.cumsum(cost[order]) <= tolerance / 4)]
    return chosen


def _step_down(
    blocks: FourierBlocks, chosen: Integers, values: Array, bounds: Array, norms: Array
) -> str:
    """Replace values and bounds of the chosen blocks by those of a direct SVD; name the method.

    Where all direct solvers fail the Gram's values stand, with their wide bounds.
    """
    groups = blocks.channels[0]
    short, long = sorted(blocks.block_shape)
    relative = 3 * (long + 4 * short + 32) * UNIT_ROUNDOFF * (1.0 + 1e-6)
    errors = _evaluation_errors(blocks, len(values))
    method = _METHODS[0]
    for block in np.unique(chosen // groups).tolist():
        real, imaginary = blocks.evaluate(slice(block, block + 1))
        matrices = (real if imaginary is None else torch.complex(real, imaginary)).cpu()
        for row in chosen[chosen // groups == block].tolist():
            solved = direct(matrices[row % groups])
            if solved is not None:
                values[row] = solved[1]
                bounds[row] = relative * norms[row] + errors[row]
                method = max(method, f"fft_{solved[0]}", key=_METHODS.index)
    return method


def operator_rows(
    subject: str, spectrum: Decomposition, flag: str | None
) -> tuple[list[ScalarRow], list[SpectrumRow]]:
    """The rows of one convolution: `OPERATOR_METRICS` and `OPERATOR_QUANTITIES`, in their order.

    Args:
        subject: name of the view.
        spectrum: from `conv_operator_spectrum`.
        flag: what is known of the view's matrix, such as ``collapsed`` relative to step 0; a flag
            of the operator itself comes first.

    Returns:
        (scalars, spectra); the one vector holds the `MOST_STORED` largest singular values.
    """
    flag = spectrum.flag or flag
    rank = effective_rank(spectrum)
    measured = (
        ("operator_effective_rank", rank),
        ("operator_effective_rank/normalised", normalised(rank, spectrum)),
        ("operator_stable_rank", stable_rank(spectrum)),
        ("operator_norm/spectral", spectral_norm(spectrum)),
        ("operator_norm/frobenius", frobenius_norm(spectrum)),
    )
    scalars = [
        scalar_row(subject, name, number, spectrum.method, flag) for name, number in measured
    ]
    spectra = SpectrumRow(
        subject,
        "operator/singular_values",
        spectrum.values[:MOST_STORED],
        rounded_up(spectrum.bounds[:MOST_STORED]),
        spectrum.method,
        flag,
    )
    return scalars, [spectra]
