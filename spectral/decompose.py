"""Singular values and vectors with error bounds: one decomposition per matrix, and a ladder.

The default is the float64 Gram matrix of the smaller side and a symmetric eigenvalue solver. Where
that leaves the effective rank less certain than the tolerance, the values are computed again, once,
by deflation or from the matrix itself. Shape legend: m x n the matrix W, R = min(m, n),
L = max(m, n), k leading singular vectors.

On a CPU matrices go through the solver one by one, each in freshly allocated (hence equally
aligned) memory, so that a matrix's numbers cannot depend on its company; LAPACK loops over a batch
anyway. On an accelerator equal shapes are multiplied in one call, and the eigenvalue problems are
solved wherever a probe finds that to be fastest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spectral.angles import Angles, angle_bounds
from spectral.backend import solve
from spectral.decomposition import Decomposition as Decomposition
from spectral.decomposition import Tail as Tail
from spectral.deflation import Deflated, deflated
from spectral.entropy import UNIT_ROUNDOFF, Array, effective_rank_range
from spectral.gram import (
    Scaled,
    eigenvalue_error,
    gram,
    peaks_and_scales,
    row_blocks,
    singular_values_from,
    summation_error,
)
from spectral.solvers import Eigen, direct
from spectral.vectors import SingularVectors

# Largest half width of the effective rank, relative to it, that the Gram may leave behind.
EFFECTIVE_RANK_TOLERANCE = 1e-5

# Leading singular vectors per matrix, unless more or fewer are asked for: the paper's figures show
# the first 100 entries of every diagonal.
DEFAULT_VECTORS = 100

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Bytes that decomposition uses at once beside its arguments and results.
DEFAULT_WORKSPACE = 256 * 10**6

# Matrices with a larger R are not decomposed in full: `spectral.subspace`.
LARGEST_RANK = 2048


def decompose(
    matrices: Sequence[Tensor],
    *,
    vectors: int | None = None,
    basis: bool = False,
    tolerance: float = EFFECTIVE_RANK_TOLERANCE,
    workspace: int | None = None,
    starts: Sequence[Tensor | None] | None = None,
) -> list[Decomposition]:
    """Singular values and vectors of every matrix, with bounds that hold.

    The ladder: gram64 (float64 Gram, symmetric eigenvalue solver) -> svd64 (float64 gesdd) ->
    gesvd64 -> none. A rung is left when its solver reports failure or returns what is not finite.
    Matrices whose effective rank is less certain than `tolerance` have their values computed
    again, once: deflated64 where eigenvectors are at hand or W is elongated, else svd64.
    Matrices with R above 2048 have their leading singular triples only, found by block subspace
    iteration (subspace64), and an estimate of sums over the rest: `Decomposition.tail`.

    Args:
        matrices: each of shape (m, n), m and n at least 1, a dtype of `DTYPES`, any device; not
            modified, and nothing is recorded for differentiation.
        vectors: how many leading singular vectors of each, at most its R; 0 for values only, which
            takes half the time. None: `DEFAULT_VECTORS`, or R where that is less.
        basis: whether to return all singular vectors of the shorter side.
        tolerance: largest accepted half width of the effective rank, relative to it; ``inf`` never
            computes again.
        workspace: bytes to use at once; None: 256 MB, or three times the largest matrix where that
            is more. Changes no number.
        starts: for each matrix, the right vectors of an earlier decomposition, (n, any), or None:
            where subspace iteration begins (R above 2048; ignored otherwise).

    Returns:
        one `Decomposition` per matrix, in order. A matrix that is not finite is a result, flagged
        ``diverged``, not an error.

    Raises:
        TypeError: if a matrix is no tensor, or is complex, integer, boolean or of eight bits.
        ValueError: if a matrix does not have two dimensions or has no entries, or if `vectors` is
            negative or more than a matrix has.

    Source: Weyl's inequality, with the rounding errors of `spectral.gram` and docs/metrics.md.
    """
    given: object = matrices
    if isinstance(given, Tensor):  # a tensor is a sequence too, of its rows
        raise TypeError("expected a list of matrices, got one tensor: write decompose([matrix])")
    for matrix in matrices:
        check_matrix(matrix, vectors)
    return decompose_at_most(
        matrices,
        vectors=DEFAULT_VECTORS if vectors is None else vectors,
        basis=basis,
        tolerance=tolerance,
        workspace=workspace,
        starts=starts,
    )


def decompose_at_most(
    matrices: Sequence[Tensor],
    *,
    vectors: int,
    basis: bool = False,
    tolerance: float = EFFECTIVE_RANK_TOLERANCE,
    workspace: int | None = None,
    starts: Sequence[Tensor | None] | None = None,
) -> list[Decomposition]:
    """`decompose` of matrices of several ranks: `vectors` of each, or R where that is less."""
    for matrix in matrices:
        check_matrix(matrix)
    results: dict[int, Decomposition] = {}
    with torch.no_grad():
        own = [matrix.detach() for matrix in matrices]
        small = []
        for position, matrix in enumerate(own):
            if min(matrix.shape) <= LARGEST_RANK:
                small.append(position)
            else:
                start = starts[position] if starts else None
                results[position] = _large(matrix, vectors, start, workspace)
        for chunk in _chunks(own, small, workspace):
            batches = list(batches_of([own[p] for p in chunk]))
            enqueued = [enqueue([own[chunk[i]] for i in batch]) for batch in batches]
            found = finish(enqueued, vectors=vectors, basis=basis, tolerance=tolerance)
            order = (chunk[i] for batch in batches for i in batch)
            results.update(zip(order, found, strict=True))
    return [results[position] for position in range(len(matrices))]


def check_matrix(matrix: Tensor, vectors: int | None = None) -> None:
    """Refuse what cannot be decomposed; raises as `decompose` does."""
    if not isinstance(matrix, Tensor):
        raise TypeError(
            f"expected torch tensors, got {type(matrix).__name__}; torch.as_tensor makes one of an "
            "array, spectral.discover finds the matrices of a module"
        )
    if not matrix.dtype.is_floating_point:
        raise TypeError(
            f"expected a matrix of real floating-point numbers, got {matrix.dtype}; the spectra "
            "of complex and integer weights are not defined here"
        )
    if matrix.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise TypeError(f"expected one of {known}, got {matrix.dtype}: convert it first")
    if matrix.dim() != 2 or matrix.numel() == 0:
        raise ValueError(
            f"expected a matrix (m, n) with m, n >= 1, got the shape {tuple(matrix.shape)}"
        )
    if vectors is not None and not 0 <= vectors <= min(matrix.shape):
        raise ValueError(
            f"expected at most {min(matrix.shape)} singular vectors of a matrix of the shape "
            f"{tuple(matrix.shape)}, got vectors={vectors}"
        )


def _chunks(
    matrices: Sequence[Tensor], positions: Sequence[int], workspace: int | None
) -> Iterator[list[int]]:
    """Positions of matrices that are decomposed together, those of equal R beside each other."""
    if workspace is None:
        largest = max((matrices[p].numel() for p in positions), default=0)
        workspace = max(DEFAULT_WORKSPACE, 3 * 8 * largest)
    chunk: list[int] = []
    used = 0
    for position in sorted(positions, key=lambda p: min(matrices[p].shape)):
        # Gram matrix, eigenvectors, and a copy of them while they are put into order
        need = 3 * 8 * min(matrices[position].shape) ** 2
        if chunk and used + need > workspace:
            yield chunk
            chunk, used = [], 0
        chunk.append(position)
        used += need
    if chunk:
        yield chunk


def batches_of(matrices: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of matrices that are multiplied in one call."""
    together: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        if matrix.device.type == "cpu":
            yield [index]
        else:
            together[(tuple(matrix.shape), matrix.dtype, matrix.device)].append(index)
    yield from together.values()


@dataclass(frozen=True)
class Enqueued:
    """Matrices of one shape whose Gram matrices are on their way. Nothing has waited for a device.

    Attributes:
        scaled: the matrices, (m, n) each. They must not change before `finish` has run.
        peaks: shape (B,), max|W|.
        grams: shape (B, R, R), on the device of the weights.
    """

    scaled: list[Scaled]
    peaks: Tensor
    grams: Tensor


def enqueue(matrices: Sequence[Tensor]) -> Enqueued:
    """Begin the decomposition of matrices of one shape, dtype and device (on a CPU: of one)."""
    if len(matrices) == 1:
        (weights,) = matrices
        peak, scale = peaks_and_scales(weights)
        scaled = Scaled.of(weights, scale)
        return Enqueued([scaled], peak[None], gram(scaled.blocks())[None])
    stack = torch.stack(list(matrices))
    peaks, scales = peaks_and_scales(stack)
    each = [Scaled(weights, scale) for weights, scale in zip(stack, scales, strict=True)]
    return Enqueued(each, peaks, gram(row_blocks(stack, scales)))


@dataclass(frozen=True)
class _Solved:
    """A finite, non-zero matrix between its solver and its bounds."""

    scaled: Scaled
    trace: float  # of the computed Gram matrix of W / scale
    eigen: Eigen | None  # None where the solver failed

    @property
    def weights(self) -> Tensor:
        return self.scaled.weights


def finish(
    batches: Sequence[Enqueued], *, vectors: int, basis: bool, tolerance: float
) -> list[Decomposition]:
    """The decompositions of enqueued matrices, in order; arguments as of `decompose_at_most`."""
    results: dict[int, Decomposition] = {}
    same_rank: dict[int, list[tuple[int, _Solved]]] = defaultdict(list)
    position = 0
    for batch in batches:
        usable = []
        for i, peak in enumerate(batch.peaks.tolist()):
            if peak == 0.0 or not math.isfinite(peak):
                weights = batch.scaled[i].weights
                results[position + i] = _trivial(weights, vectors, zero=peak == 0.0)
            else:
                usable.append(i)
        want = basis or vectors > 0
        traces = batch.grams.diagonal(dim1=-2, dim2=-1).sum(-1).tolist()
        for i, eigen in zip(usable, solve(batch.grams[usable], vectors=want), strict=True):
            item = _Solved(batch.scaled[i], traces[i], eigen)
            same_rank[batch.grams.shape[-1]].append((position + i, item))
        position += len(batch.scaled)
    for rank, items in same_rank.items():
        k = min(vectors, rank)
        found = _bounded([item for _, item in items], k, basis=basis, tolerance=tolerance)
        results.update(zip((p for p, _ in items), found, strict=True))
    return [results[p] for p in range(position)]


def _trivial(weights: Tensor, vectors: int, *, zero: bool) -> Decomposition:
    rank = min(weights.shape)
    value = 0.0 if zero else math.nan
    k = min(vectors, rank)
    return Decomposition(
        shape=(weights.shape[0], weights.shape[1]),
        unit_values=np.full(rank, value),
        unit_bounds=np.full(rank, value),
        unit_frobenius=value,
        unit_frobenius_bound=value,
        scale=1.0,
        method="none",
        flag="zero" if zero else "diverged",
        precision=torch.finfo(weights.dtype).eps,
        vectors=SingularVectors.unknown(weights, k) if k else None,
    )


def _bounded(
    items: Sequence[_Solved], k: int, *, basis: bool, tolerance: float
) -> list[Decomposition]:
    """Decompositions of matrices of one R: bounds, second looks, vectors."""
    found: list[Decomposition | None] = [None] * len(items)
    indices = [i for i, item in enumerate(items) if item.eigen is not None]
    if indices:
        own = [items[i] for i in indices]
        eigenvalues = np.stack([item.eigen.values for item in own if item.eigen])
        traces = np.array([item.trace for item in own])
        eps = eigenvalue_error(eigenvalues, traces, [max(item.weights.shape) for item in own])
        values, bounds = singular_values_from(eigenvalues, eps)
        rank, lower, upper = effective_rank_range(values, bounds)
        wide = ~(np.maximum(upper - rank, rank - lower) <= tolerance * rank)
        frobenius = np.sqrt(traces)
        angles = angle_bounds(eigenvalues, eps, frobenius, k) if k else None
        for row, (i, item) in enumerate(zip(indices, own, strict=True)):
            result = _assemble(item, values[row], bounds[row], "gram64")
            again: Deflated | None = None
            if wide[row]:
                again = _deflated(item, float(eps[row]), result)
                # where the second look fails, the first stands with its wide bounds
                result = (
                    _assemble(item, again.values, again.bounds, "deflated64")
                    if again
                    else _direct(item) or result
                )
            eigenvectors = item.eigen.vectors if item.eigen else None
            if angles is not None and eigenvectors is not None:
                own_angles = Angles(*(bound[row] for bound in angles))
                triples = _vectors(item, result.values[:k], eigenvectors[:, :k], own_angles, again)
                result = replace(result, vectors=triples)
            if basis:
                result = replace(result, basis=eigenvectors)
            found[i] = result
    return [result or _without_vectors(item, k) for result, item in zip(found, items, strict=True)]


def _vectors(
    item: _Solved, values: Array, short: Tensor, angles: Angles, again: Deflated | None
) -> SingularVectors:
    """Both sides' vectors from those of the shorter side: W^T u_j or W v_j, normalised."""
    short = short.contiguous()
    k = short.shape[1]
    if again is None or again.head >= k:
        long = item.scaled.times(short)
    else:  # the second look has multiplied with the others already
        own = item.scaled.times(short[:, : again.head])
        long = torch.cat([own, again.restricted[:, : k - again.head]], dim=1)
    lengths = torch.linalg.vector_norm(long, dim=0)
    # a vector of length zero belongs to a singular value of zero, and is not determined
    long = long / torch.where(lengths > 0.0, lengths, 1.0)
    if item.weights.shape[0] <= item.weights.shape[1]:
        return SingularVectors(
            values, short, long, angles.short, angles.long, angles.short_span, angles.long_span
        )
    return SingularVectors(
        values, long, short, angles.long, angles.short, angles.long_span, angles.short_span
    )


def _assemble(item: _Solved, values: Array, bounds: Array, method: str) -> Decomposition:
    frobenius = math.sqrt(item.trace)
    shape = (item.weights.shape[0], item.weights.shape[1])
    scale = item.scaled.scale.item()
    relative = summation_error(max(shape)) + (len(values) + 4) * UNIT_ROUNDOFF
    finfo = torch.finfo(item.weights.dtype)
    # both are powers of two, so this compares max|W| itself
    subnormal = scale < finfo.tiny
    return Decomposition(
        shape=shape,
        unit_values=values,
        unit_bounds=bounds,
        unit_frobenius=frobenius,
        unit_frobenius_bound=relative * frobenius,
        scale=scale,
        method=method,
        flag="ill_posed" if method == "none" else "collapsed" if subnormal else None,
        precision=finfo.eps,
    )


def _deflated(item: _Solved, eps: float, first: Decomposition) -> Deflated | None:
    """A second look at the values alone, where the first leaves the effective rank uncertain."""
    short, long = sorted(item.weights.shape)
    eigen = item.eigen
    assert eigen is not None
    eigenvectors = eigen.vectors
    if eigenvectors is None and long >= 3 * short:
        # two passes of eigenvalues cost less than one SVD of an elongated matrix
        (solved,) = solve(gram(item.scaled.blocks())[None], vectors=True)
        eigenvectors = solved.vectors if solved else None
    if eigenvectors is None:
        return None
    return deflated(item.scaled, eigen.values, eigenvectors, eps, first.unit_frobenius)


def _direct(item: _Solved) -> Decomposition | None:
    """Singular values of the matrix itself, or None if both direct solvers fail.

    |computed - true value| <= (L + 4 R + 32) u ||W||_F for every value: a backward error of the
    orthogonal reductions that grows linearly with the dimensions. Set from measurements; the tests
    hold it against exact values.
    """
    unit = item.weights.to("cpu", torch.float64, memory_format=torch.contiguous_format)
    found = direct(unit / item.scaled.scale.cpu())
    if found is None:
        return None
    method, values = found
    short, long = sorted(item.weights.shape)
    bound = (long + 4 * short + 32) * UNIT_ROUNDOFF * (1.0 + 1e-6) * math.sqrt(item.trace)
    return _assemble(item, values, np.full(short, bound), method)


def _without_vectors(item: _Solved, k: int) -> Decomposition:
    """Where the eigenvalue solver failed: values by a direct SVD, or none at all."""
    result = _direct(item)
    if result is None:
        nothing = np.full(min(item.weights.shape), math.nan)
        result = _assemble(item, nothing, nothing, "none")
    return replace(result, vectors=SingularVectors.unknown(item.weights, k) if k else None)


def _large(
    matrix: Tensor, vectors: int, start: Tensor | None, workspace: int | None
) -> Decomposition:
    from spectral.subspace import decompose_large  # it needs what is defined here

    # without vectors there would be no values either
    k = min(vectors or DEFAULT_VECTORS, min(matrix.shape))
    return decompose_large(matrix, k, start=start, workspace=workspace)
