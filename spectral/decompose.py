"""Singular values with error bounds: one decomposition per matrix, and a ladder for when it fails.

The default is the float64 Gram matrix of the smaller side and a symmetric eigenvalue solver. Where
that leaves the effective rank less certain than the tolerance, the values are computed again from
the matrix itself. Shape legend: m x n the matrix, R = min(m, n), L = max(m, n).

On a CPU matrices go through the solver one by one, each in freshly allocated (hence equally
aligned) memory, so that a matrix's numbers cannot depend on its company; LAPACK loops over a batch
anyway. On an accelerator equal shapes are multiplied in one call, and the eigenvalues of the R x R
Grams are found on the CPU.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from spectral.bounded import Bounded
from spectral.entropy import UNIT_ROUNDOFF, Array, effective_rank_range
from spectral.gram import scaled_grams, singular_values_from, summation_error
from spectral.vectors import SingularVectors

# Largest half width of the effective rank, relative to it, that the Gram may leave behind.
EFFECTIVE_RANK_TOLERANCE = 1e-5

# Entries of float64 copies that an accelerator holds at once (1 GiB).
_BATCH_ENTRIES = 2**27

_SMALLEST_SUBNORMAL = 2.0**-1074
_SMALLEST_NORMAL = 2.0**-1022

# torch's is a RuntimeError and numpy's a ValueError; nothing wider is ever caught
_LINALG_ERRORS: tuple[type[Exception], ...] = (
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # documented, but not re-exported
    np.linalg.LinAlgError,
)


@dataclass(frozen=True)
class Tail:
    """Sums over the singular values of W / scale that were not computed one by one.

    Attributes:
        total: of sigma_i.
        weighted: of sigma_i ln sigma_i.
        method: how they were estimated; their intervals are statistical, at 99 % confidence.
    """

    total: Bounded
    weighted: Bounded
    method: str


@dataclass(frozen=True)
class Decomposition:
    """The singular values of one matrix W and what is known of their error.

    Attributes:
        shape: (m, n) of W.
        unit_values: shape (R,), float64, descending: singular values of W / scale.
        unit_bounds: shape (R,), float64: half widths; the true value lies within them.
        unit_frobenius: Frobenius norm of W / scale.
        unit_frobenius_bound: its half width.
        scale: the power of two with scale <= max|W| < 2 scale; 1.0 for zero and non-finite W.
        method: ``gram64``, ``svd64``, ``gesvd64``, or ``none`` where no solver ran or all failed.
        flag: ``zero``; ``diverged`` (an entry is not finite: values and bounds are NaN);
            ``ill_posed`` (finite, but every solver failed: values and bounds are NaN);
            ``collapsed`` (max|W| is below the smallest normal number of W's dtype); or None.
        precision: distance from 1 to the next number of W's dtype, 2^-23 for float32.
        vectors: the leading singular vectors, if they were asked for and a solver found them.
        basis: shape (R, R), float64, on W's device: all singular vectors of the shorter side as
            columns (left ones if m <= n), if they were asked for.
        tail: what is known of the singular values beyond `unit_values`, where those are fewer than
            R (R above 2048); None where they are all.
    """

    shape: tuple[int, int]
    unit_values: Array
    unit_bounds: Array
    unit_frobenius: float
    unit_frobenius_bound: float
    scale: float
    method: str
    flag: str | None
    precision: float = 2.0**-23
    vectors: SingularVectors | None = None
    basis: Tensor | None = None
    tail: Tail | None = None

    @property
    def complete(self) -> bool:
        """Whether all R singular values are there."""
        return len(self.unit_values) == min(self.shape)

    @property
    def values(self) -> Array:
        """Singular values of W, shape (R,), descending; inf where float64 cannot hold them."""
        with np.errstate(over="ignore"):
            return self.unit_values * self.scale

    @property
    def bounds(self) -> Array:
        """Half widths of `values`, shape (R,): |true - value| <= bound."""
        with np.errstate(over="ignore"):
            bounds = self.unit_bounds * self.scale
        if self.scale > 2.0**-900 or self.flag == "zero":
            return bounds
        # Scaling back is exact except among subnormal numbers, where value and bound both round.
        return np.where(bounds < _SMALLEST_NORMAL, bounds + 2 * _SMALLEST_SUBNORMAL, bounds)


@dataclass(frozen=True)
class _Pending:
    """A finite, non-zero matrix between its solver and its bounds."""

    position: int
    matrix: Tensor
    scale: float
    trace: float  # of the computed Gram matrix of W / scale
    eigenvalues: Array | None  # descending; None where the eigenvalue solver failed


def decompose(
    matrices: Sequence[Tensor], *, tolerance: float = EFFECTIVE_RANK_TOLERANCE
) -> list[Decomposition]:
    """Singular values of every matrix, with intervals that hold the true ones.

    The ladder: gram64 (float64 Gram, eigvalsh) -> svd64 (float64 gesdd) -> gesvd64 -> none. A rung
    is left when its solver reports failure or returns what is not finite. Matrices whose effective
    rank is less certain than `tolerance` step down to svd64 once, for their values.

    Args:
        matrices: each of shape (m, n), m and n at least 1, any real floating dtype, any device; not
            modified, and nothing is recorded for differentiation.
        tolerance: largest accepted half width of the effective rank, relative to it; ``inf`` never
            steps down.

    Returns:
        one `Decomposition` per matrix, in order. A matrix that is not finite is a result, flagged
        ``diverged``, not an error.

    Raises:
        TypeError: if a matrix is complex, integer or boolean.
        ValueError: if a matrix does not have two dimensions or has no entries.

    Source: Weyl's inequality, with the rounding errors of `spectral.gram` and docs/metrics.md.
    """
    for matrix in matrices:
        _check(matrix)
    results: dict[int, Decomposition] = {}
    pending: dict[int, list[_Pending]] = defaultdict(list)
    with torch.no_grad():
        for positions in _batches(matrices):
            peaks, scales, grams = scaled_grams([matrices[p].detach() for p in positions])
            for i, position in enumerate(positions):
                matrix, peak = matrices[position].detach(), peaks[i]
                if peak == 0.0 or not math.isfinite(peak):
                    results[position] = _trivial(matrix, zero=peak == 0.0)
                    continue
                gram = grams[i]
                trace = gram.trace().item()
                item = _Pending(position, matrix, scales[i], trace, _eigenvalues(gram))
                pending[min(matrix.shape)].append(item)
        for group in pending.values():
            for item, decomposition in zip(group, _finish(group, tolerance), strict=True):
                results[item.position] = decomposition
    return [results[position] for position in range(len(matrices))]


def _check(matrix: Tensor) -> None:
    if not matrix.dtype.is_floating_point:
        raise TypeError(
            f"expected a matrix of real floating-point numbers, got {matrix.dtype}; the spectra "
            "of complex and integer weights are not defined here"
        )
    if matrix.dim() != 2 or matrix.numel() == 0:
        raise ValueError(
            f"expected a matrix (m, n) with m, n >= 1, got the shape {tuple(matrix.shape)}"
        )


def _batches(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """Positions of matrices that are multiplied in one call."""
    together: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for position, matrix in enumerate(matrices):
        if matrix.device.type == "cpu":
            yield [position]
        else:
            together[(tuple(matrix.shape), matrix.dtype, matrix.device)].append(position)
    for positions in together.values():
        size = max(1, _BATCH_ENTRIES // matrices[positions[0]].numel())
        for start in range(0, len(positions), size):
            yield positions[start : start + size]


def _trivial(matrix: Tensor, *, zero: bool) -> Decomposition:
    value = 0.0 if zero else math.nan
    entries = np.full(min(matrix.shape), value)
    shape = (matrix.shape[0], matrix.shape[1])
    flag = "zero" if zero else "diverged"
    return Decomposition(shape, entries, entries, value, value, 1.0, "none", flag)


def _eigenvalues(gram: Tensor) -> Array | None:
    try:
        return _finite(torch.linalg.eigvalsh(gram).numpy()[::-1])
    except _LINALG_ERRORS:
        return None


def _finite(values: Array) -> Array:
    # a sum of finite values of order one is finite; three times as fast as asking each
    if not math.isfinite(values.sum()):
        raise np.linalg.LinAlgError("the solver returned values that are not finite")
    return values


def _finish(group: list[_Pending], tolerance: float) -> list[Decomposition]:
    """Decompositions of matrices of one R, after the steps down the ladder that they need."""
    grams: dict[int, Decomposition] = {}
    uncertain = set()
    solved = [(item, item.eigenvalues) for item in group if item.eigenvalues is not None]
    if solved:
        values, bounds = singular_values_from(
            np.stack([eigenvalues for _, eigenvalues in solved]),
            np.array([item.trace for item, _ in solved]),
            [max(item.matrix.shape) for item, _ in solved],
        )
        rank, lower, upper = effective_rank_range(values, bounds)
        wide = ~(np.maximum(upper - rank, rank - lower) <= tolerance * rank)
        for row, (item, _) in enumerate(solved):
            grams[item.position] = _assemble(item, values[row], bounds[row], "gram64")
            if wide[row]:
                uncertain.add(item.position)
    results = []
    for item in group:
        result = grams.get(item.position)
        if result is None or item.position in uncertain:
            # where both direct solvers fail, the Gram's values stand with their wide bounds
            result = _direct(item) or result or _unsolved(item)
        results.append(result)
    return results


def _assemble(item: _Pending, values: Array, bounds: Array, method: str) -> Decomposition:
    frobenius = math.sqrt(item.trace)
    relative = summation_error(max(item.matrix.shape)) + (len(values) + 4) * UNIT_ROUNDOFF
    # both are powers of two, so this compares max|W| itself
    subnormal = item.scale < torch.finfo(item.matrix.dtype).tiny
    return Decomposition(
        shape=(item.matrix.shape[0], item.matrix.shape[1]),
        unit_values=values,
        unit_bounds=bounds,
        unit_frobenius=frobenius,
        unit_frobenius_bound=relative * frobenius,
        scale=item.scale,
        method=method,
        flag="ill_posed" if method == "none" else "collapsed" if subnormal else None,
    )


def _gesdd(unit: Tensor) -> Array:
    values: Array = torch.linalg.svdvals(unit).numpy()
    return values


def _gesvd(unit: Tensor) -> Array:
    # torch lets the caller choose a driver for CUDA input only
    values: Array = scipy.linalg.svd(unit.numpy(), compute_uv=False, lapack_driver="gesvd")
    return values


_DIRECT: tuple[tuple[str, Callable[[Tensor], Array]], ...] = (
    ("svd64", _gesdd),
    ("gesvd64", _gesvd),
)


def _direct(item: _Pending) -> Decomposition | None:
    """Singular values of the matrix itself, or None if both direct solvers fail.

    |computed - true value| <= (L + 4 R + 32) u ||W||_F for every value: a backward error of the
    orthogonal reductions that grows linearly with the dimensions. Set from measurements; the tests
    hold it against exact values.
    """
    unit = item.matrix.to("cpu", torch.float64, memory_format=torch.contiguous_format) / item.scale
    short, long = sorted(item.matrix.shape)
    for method, solve in _DIRECT:
        try:
            values = _finite(solve(unit))
        except _LINALG_ERRORS:
            continue
        bound = (long + 4 * short + 32) * UNIT_ROUNDOFF * (1.0 + 1e-6) * math.sqrt(item.trace)
        return _assemble(item, values, np.full(short, bound), method)
    return None


def _unsolved(item: _Pending) -> Decomposition:
    nothing = np.full(min(item.matrix.shape), math.nan)
    return _assemble(item, nothing, nothing, "none")
