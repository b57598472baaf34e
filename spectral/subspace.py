"""Leading singular triples of a matrix too large to decompose, from products with a few vectors.

Block Golub-Kahan bidiagonalisation, started from the vectors of the previous snapshot: subspace
iteration X <- qr(W^T (W X)) that keeps what earlier sweeps have found. After it, with Y and U the
computed right and left vectors (orthonormal), S their values, W Y = U S and F = W^T U - Y S,

    W = [U U'] [[S, F^T], [0, W2]] [Y Y']^T,    ||W||_F^2 = ||S||_F^2 + ||F||_F^2 + ||W2||_F^2.

**Certain** (up to rounding, for which tested slack is added): sigma_j >= S_j, by interlacing; and
||W2||_2 <= ||W2||_F. **With probability 1 - 1e-6** over a draw that no weights depend on: ||W2||_2
<= `remainder`, from the largest value that Lanczos finds from random starts. Everything else
follows: W^T W only grows where W2 becomes remainder * I, so that sigma_j is at most the j-th
singular value of [[S, F^T], [0, remainder * I]]; angles are at most residual over gap (Wedin).

Shape legend: W is m x n, L = max(m, n), R = min(m, n), k triples asked for, d >= k found.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spectral.bidiagonal import (
    WORKSPACE,
    Basis,
    UnitMatrix,
    angle_bounds,
    first_block,
    padded,
    value_intervals,
)
from spectral.decomposition import Decomposition
from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.gram import summation_error
from spectral.quadrature import Probes, probe, tail_sums
from spectral.solvers import LINALG_ERRORS
from spectral.vectors import SingularVectors

FAILURE_PROBABILITY = 1e-6

# The basis grows by this factor between two looks at its residuals, which cost a dense SVD each.
_GROWTH = 1.2
# Ritz vectors beyond k count as found up to the first whose residual exceeds this part of sigma_1.
_FOUND = 1e-4


@dataclass(frozen=True)
class Leading:
    """The k leading singular triples of W / scale, with d >= k of them set apart from the rest.

    Attributes:
        values: shape (k,), float64, descending; singular values of W / scale.
        bounds: shape (k,), half widths. value - bound is certain; value + bound holds with
            probability 1 - `FAILURE_PROBABILITY`.
        vectors: of W: the triples and the bounds of their angles, of the same probability. An error
            of 1 says that nothing is known.
        converged: whether every residual came below the tolerance.
        sweeps: products with W^T W that it took, without those of the probes.
        block: shape (n, p), float64: right vectors to start from at the next snapshot.
        scale: the power of two that W was divided by.
        energy: (||W / scale||_F^2, half width).
        found: shape (d,), the values set apart; Ritz values, not above the true ones.
        left: shape (L, d), right: shape (R, d): their vectors, on the longer and the shorter side.
        missing: shape (c, d): F up to a rotation from the left; its norms are those of F.
        next_upper: upper end of sigma_{k+1}; 0 if k = R.
        remainder: upper end of ||W2||_2.
        slack: what rounding may have done to any single value.
        probes: Lanczos runs on W2, for the bound and for `tail_sums`; None if d = R.
    """

    values: Array
    bounds: Array
    vectors: SingularVectors
    converged: bool
    sweeps: int
    block: Tensor
    scale: float
    energy: tuple[float, float]
    found: Array
    left: Tensor
    right: Tensor
    missing: Array
    next_upper: float
    remainder: float
    slack: float
    probes: Probes | None
    method: str = "subspace64"


def leading_triples(
    matrix: Tensor,
    k: int,
    *,
    start: Tensor | None = None,
    oversample: int | None = None,
    tolerance: float = 1e-6,
    max_sweeps: int = 48,
    steps: int = 24,
    probes: int = 16,
    workspace: int = WORKSPACE,
) -> Leading:
    """Leading singular triples, iterated until their residuals are small, with certificates.

    Args:
        matrix: shape (m, n), any real floating dtype, any device; finite and not zero; not
            modified, and nothing is recorded for differentiation.
        k: how many triples, in [1, R].
        start: shape (n, p), the `block` of an earlier snapshot of this matrix; None draws one from
            a generator of its own.
        oversample: columns iterated beside the k that are asked for; None: 8, or k / 4 if more.
        tolerance: largest ||W^T u_j - sigma_j v_j|| of the k triples, relative to sigma_1.
        max_sweeps: products with W^T W after which it stops, converged or not.
        steps: Lanczos steps of each probe of the remainder, at least 2.
        probes: how many, at least 3.
        workspace: bytes for a float64 copy of W, and again for the basis that is kept.

    Returns:
        `Leading`. Where the iteration has not converged the bounds are wider and still hold.

    Raises:
        ValueError: if k is not in [1, R], `start` is not (n, p), or the matrix is zero or not
            finite.

    Source: Golub, Luk and Overton, ACM TOMS 7 (2), 1981 (block Lanczos); Wedin, BIT 12, 1972.
    """
    m, n = matrix.shape
    if not 1 <= k <= min(m, n):
        raise ValueError(f"expected k between 1 and min(m, n) = {min(m, n)}, got {k}")
    if start is not None and (start.dim() != 2 or start.shape[0] != n or start.shape[1] < 1):
        raise ValueError(
            f"expected a start of shape ({n}, p) for a matrix {m} x {n}, got {tuple(start.shape)}"
        )
    with torch.no_grad():
        unit = UnitMatrix(matrix, workspace)
        extra = max(8, k // 4) if oversample is None else oversample
        width = min(k + extra, unit.shape[1])
        basis = Basis(unit, first_block(unit, start, width), workspace)
        solved = 0
        for sweep in range(1, max_sweeps + 1):
            exhausted = basis.sweep()
            last = exhausted or basis.full or sweep == max_sweeps
            if not last and basis.columns < max(k, _GROWTH * solved):
                continue
            solved = basis.columns
            values, residuals = basis.ritz()
            done = len(values) >= k and bool((residuals[:k] <= tolerance * values[0]).all())
            if done or exhausted or sweep == max_sweeps:
                break
            if basis.full:
                basis.restart(width)
                solved = 0
        return _certified(basis, k, width, done or exhausted, sweep, steps, probes)


def decompose_large(
    matrix: Tensor, k: int, *, start: Tensor | None = None, workspace: int | None = None
) -> Decomposition:
    """The k leading singular triples of a matrix, and sums over all other singular values.

    Args:
        matrix: shape (m, n), any real floating dtype, any device; not modified.
        k: how many triples, in [1, R].
        start: shape (n, p), right vectors of an earlier snapshot; None for the first one.
        workspace: bytes to use at once; None: 256 MB, or three times the matrix in float64.

    Returns:
        `Decomposition` with k values, vectors and a `tail`; method ``subspace64``. Flag
        ``estimated``, or ``collapsed``, ``zero`` or ``diverged`` as for any matrix; ``ill_posed``,
        and NaN, if a dense solver of the small problems failed.

    Raises:
        ValueError: if k is not in [1, R] or `start` is not (n, p).
    """
    m, n = matrix.shape
    least, largest = matrix.detach().aminmax()
    peak = max(-least.item(), largest.item())
    if peak == 0.0 or not math.isfinite(peak):
        value, flag = (0.0, "zero") if peak == 0.0 else (math.nan, "diverged")
        entries, nothing = np.full(min(m, n), value), SingularVectors.unknown(matrix, k)
        return Decomposition(
            (m, n), entries, entries, value, value, 1.0, "none", flag, vectors=nothing
        )
    if workspace is None:
        workspace = max(WORKSPACE, 3 * 8 * matrix.numel())
    unit = UnitMatrix(matrix, 2**24)  # one pass needs no copy of all
    frobenius = math.sqrt(unit.energy)
    relative = summation_error(max(m, n)) + (min(m, n) + 4) * UNIT_ROUNDOFF
    unknown = Decomposition(
        shape=(m, n),
        unit_values=np.full(k, math.nan),
        unit_bounds=np.full(k, math.nan),
        unit_frobenius=frobenius,
        unit_frobenius_bound=relative * frobenius,
        scale=unit.scale,
        method="none",
        flag="ill_posed",
        precision=torch.finfo(matrix.dtype).eps,
        vectors=SingularVectors.unknown(matrix, k),
    )
    try:
        leading = leading_triples(matrix, k, start=start, workspace=workspace)
        tail = tail_sums(matrix, leading)
    except LINALG_ERRORS:
        return unknown
    return replace(
        unknown,
        unit_values=leading.values,
        unit_bounds=leading.bounds,
        method=leading.method,
        flag="collapsed" if unit.scale < torch.finfo(matrix.dtype).tiny else "estimated",
        vectors=leading.vectors,
        tail=tail,
    )


def _certified(
    basis: Basis, k: int, width: int, converged: bool, sweeps: int, steps: int, runs: int
) -> Leading:
    """Bounds of values and angles from the basis, and probes of what it leaves out."""
    unit, (long, short) = basis.unit, basis.unit.shape
    values, residuals = basis.ritz()
    slack = (long + 4 * basis.right.shape[1] + 32) * UNIT_ROUNDOFF * math.sqrt(unit.energy)
    above = np.flatnonzero(residuals > _FOUND * values[0])
    count = min(len(values), max(k, int(above[0]) if len(above) else len(values)))
    found, missing = values[:count], basis.missing[:, :count]
    left, right = basis.vectors(count)
    rest = unit.energy - float((found**2).sum()) - float((missing**2).sum())
    remainder = math.sqrt(max(rest, 0.0) + 2 * unit.energy_error) + slack
    seen = None
    if count == short:
        remainder = 0.0
    else:
        seen = probe(unit, left, right, steps=steps, runs=runs)
        remainder = min(remainder, seen.largest(FAILURE_PROBABILITY) + slack)
    lower, upper = value_intervals(found, missing, k, remainder, slack)
    if short == k:
        upper[k] = 0.0
    # fewer than k values where W's rank is: the others are zero, or as small as `remainder`
    shown = np.zeros(k)
    shown[: min(k, count)] = found[:k]
    columns = [
        padded(unit, side, k) if count < k else side[:, :k].contiguous() for side in (left, right)
    ]
    errors, span_errors = angle_bounds(shown, lower, upper, missing, slack)
    ours, theirs = columns if not unit.wide else columns[::-1]
    with np.errstate(over="ignore"):
        own_units = shown * unit.scale
    vectors = SingularVectors(own_units, ours, theirs, errors, errors, span_errors, span_errors)
    block = basis.vectors(width)[0 if unit.wide else 1]
    bounds = np.maximum(upper[:k] - shown, shown - lower[:k]) * (1.0 + 4 * UNIT_ROUNDOFF)
    return Leading(
        values=shown,
        bounds=bounds,
        vectors=vectors,
        converged=converged,
        sweeps=sweeps,
        block=block,
        scale=unit.scale,
        energy=(unit.energy, unit.energy_error),
        found=found,
        left=left,
        right=right,
        missing=missing,
        next_upper=float(upper[k]),
        remainder=remainder,
        slack=slack,
        probes=seen,
    )
