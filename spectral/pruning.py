"""Weights that keep only a part of their singular directions, for evaluation.

Shape legend: K trials of a group, W is m x n, R = min(m, n), L = max(m, n), sigma_1 >= ... >=
sigma_R; a cut after k splits W into its k leading directions ("top") and the R - k others
("bottom"), and the two sum to W.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from spectral.decompose import LARGEST_RANK, Decomposition
from spectral.gram import eigenvalue_error
from spectral.vectors import VECTOR_TOLERANCE
from spectral.views import MatrixView, discover

End = Literal["top", "bottom"]

# Entries of W that are multiplied at once; with what is made of them, some 130 MB of float64.
_SLAB_ENTRIES = 2**22

# Rungs of the ladder below the eigenvalue solver: a failure of it is a result, not an error.
_WITHOUT_EIGENVECTORS = ("svd64", "gesvd64", "none")


def kept(fraction: float, rank: int, end: End) -> int:
    """How many of `rank` singular directions are kept.

    top: ceil(f R). bottom: R - ceil((1 - f) R), so that the top f and the bottom 1 - f are all. The
    fraction is the decimal number it prints as, not the binary one beside it: 0.7 of 10 is 7.

    Args:
        fraction: f, in [0, 1].
        rank: R, at least 1.
        end: which of them are kept.

    Returns:
        in [0, rank].

    Raises:
        ValueError: if the fraction or the end is none of these.

    Source: Yunis et al., arXiv 2408.11804 (their code), with f = 0.5 for both ends.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the fraction of directions kept must lie in [0, 1], got {fraction!r}")
    if end not in get_args(End):
        raise ValueError(f"the end that is kept must be one of top, bottom; got {end!r}")
    exact = Fraction(repr(float(fraction)))
    return math.ceil(exact * rank) if end == "top" else rank - math.ceil((1 - exact) * rank)


def pruned_metric(metric: str, fraction: float, end: End) -> str:
    """The name of a task's metric when pruned weights are evaluated: ``loss/kept_top_0.5``."""
    return f"{metric}/kept_{end}_{float(fraction)!r}"


def prune_singular_directions(
    matrix: Tensor, decomposition: Decomposition, *, fraction: float, end: End = "top"
) -> Tensor:
    """W with only its leading (or only its last) singular directions.

    W_kept = U_k U_k^T W with the kept vectors of the shorter side if that is the left one, and
    W V_k V_k^T otherwise. The smaller part is multiplied, in float64, and the larger is W minus it:
    entries are off by the rounding to W's dtype and some 1e-15 ||W||_F, also where what is kept
    is far smaller than W. Which directions those are is another question: `cut_is_determined`.

    Args:
        matrix: W, shape (m, n), real floating dtype, any device; not modified.
        decomposition: of W, with its basis unless all or no directions are kept.
        fraction: of the R directions; `kept` says how many that are.
        end: which directions are kept.

    Returns:
        shape (m, n), W's dtype and device: a new tensor, or `matrix` itself where nothing is cut:
        all directions are kept, W is zero, or W is not finite. NaN where the eigenvalue solver
        failed: the method is ``svd64``, ``gesvd64`` or ``none``, and there is no basis.

    Raises:
        ValueError: if the decomposition is of another shape or was made without a basis, or the
            fraction or the end is none.

    Source: Yunis et al., arXiv 2408.11804, section on pruning (there from a float32 SVD).
    """
    rank = min(decomposition.shape)
    top, bottom = _split(matrix, decomposition, _cut(fraction, rank, end))
    return top if end == "top" else bottom


def cut_is_determined(decomposition: Decomposition, k: int, end: End = "top") -> bool:
    """Whether the k leading directions of W are known from the others, as far as it matters.

    Their span turns by at most asin(eps / (low_k^2 - high_{k+1}^2)) with eps the error of W's Gram
    matrix (Davis and Kahan), low and high the ends of the intervals of sigma; it is determined if
    that sine is at most `VECTOR_TOLERANCE`. Where the top is kept, a cut among directions that add
    at most sqrt(eps) changes nothing that counts; where the bottom is, only one among directions
    whose singular values cannot be told from zero.

    Args:
        decomposition: of any matrix.
        k: the number of leading directions, in [0, R].
        end: whether the k leading ones are kept, or the others.

    Returns:
        False for a cut within a cluster of singular values, and where nothing is known of them.
    """
    rank = min(decomposition.shape)
    if not 0 <= k <= rank:
        raise ValueError(f"a cut after {k} directions: a matrix of rank {rank} has 0 to {rank}")
    if k in (0, rank) or decomposition.flag == "zero":
        return True
    if decomposition.flag == "diverged" or k >= len(decomposition.unit_values):
        return False
    values, bounds = decomposition.unit_values, decomposition.unit_bounds
    squares, trace = (values + bounds)[None] ** 2, np.array([decomposition.unit_frobenius**2])
    eps = float(eigenvalue_error(squares, trace, [max(decomposition.shape)])[0])
    negligible = math.sqrt(eps) if end == "top" else 0.0
    if values[k - 1] <= max(bounds[k - 1], negligible):
        return True
    low = max(values[k - 1] - bounds[k - 1], 0.0)
    high = values[k] + bounds[k]
    # comparisons with the NaN of a solver that failed are false
    return bool(low > high and eps <= VECTOR_TOLERANCE * (low - high) * (low + high))


def prunable(module: nn.Module, *, exempt_last: bool = True) -> list[MatrixView]:
    """The matrices whose directions are cut: those of `discover`, as a rule without the last.

    Args:
        module: any module; not modified.
        exempt_last: whether the last matrix in `named_parameters()` order stays whole.

    Returns:
        views of whole parameters, embeddings included; none for a model of one matrix.

    Source: Yunis et al., arXiv 2408.11804 (their code): the last is the classifier or decoder.
    """
    views = discover(module)
    return views[:-1] if exempt_last else views


def pruned_parameters(
    views: Sequence[MatrixView],
    parameters: Mapping[str, Tensor],
    decompositions: Sequence[Decomposition],
    fraction: float,
    end: End = "top",
    *,
    stacked: bool = False,
) -> dict[str, Tensor]:
    """All named parameters, with only a part of the singular directions of those that views name.

    Args:
        views: of whole parameters, at most one of each.
        parameters: named parameters; not modified.
        decompositions: of the views' matrices, with their bases, in the order of the views; if
            stacked, trial after trial, each with all its views.
        fraction: of each matrix's directions, as in `prune_singular_directions`.
        end: which directions are kept.
        stacked: whether every parameter carries a leading group dimension K.

    Returns:
        name -> tensor of the stored shape, dtype and device. What no view names is the caller's own
        tensor, and what is not cut may share its memory.

    Raises:
        ValueError: if a view is of a part of a parameter, two are of the same, there is not one
            decomposition for each matrix, and as `prune_singular_directions` does.
    """
    result = dict(parameters)
    for name, *parts in _pieces(views, parameters, decompositions, fraction, end, stacked):
        result[name] = parts[0 if end == "top" else 1]
    return result


def split_parameters(
    views: Sequence[MatrixView],
    parameters: Mapping[str, Tensor],
    decompositions: Sequence[Decomposition],
    fraction: float,
    *,
    stacked: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """`pruned_parameters` of the top `fraction` and of the bottom rest, for the price of one.

    Args and errors are those of `pruned_parameters`.

    Returns:
        (top `fraction` kept, bottom 1 - `fraction` kept): the same tensors to the bit.
    """
    top, bottom = dict(parameters), dict(parameters)
    pieces = _pieces(views, parameters, decompositions, fraction, "top", stacked)
    for name, kept_top, kept_bottom in pieces:
        top[name], bottom[name] = kept_top, kept_bottom
    return top, bottom


def _cut(fraction: float, rank: int, end: End) -> int:
    """How many leading directions lie before the cut."""
    number = kept(fraction, rank, end)
    return number if end == "top" else rank - number


def _split(matrix: Tensor, decomposition: Decomposition, k: int) -> tuple[Tensor, Tensor]:
    """The k leading directions of W, and the others."""
    matrix = matrix.detach()
    shape = tuple(matrix.shape)
    if shape != decomposition.shape:
        raise ValueError(f"the matrix is {shape}, but the decomposition of {decomposition.shape}")
    if decomposition.flag in ("zero", "diverged"):
        return matrix, matrix
    rank = min(shape)
    if k in (0, rank):
        nothing = torch.zeros_like(matrix)
        return (nothing, matrix) if k == 0 else (matrix, nothing)
    if decomposition.basis is None:
        if decomposition.method in _WITHOUT_EIGENVECTORS:
            unknown = torch.full_like(matrix, math.nan)
            return unknown, unknown
        raise ValueError(
            f"the decomposition of a {shape} matrix has no basis to cut; decompose(..., basis=True)"
            f" finds one where min(m, n) is at most {LARGEST_RANK}"
        )
    basis = decomposition.basis.to(matrix.device)
    # Coordinates are float64: those of small directions are lost in float32 beside large ones. What
    # they are multiplied with may be float32, if it is the small directions that are made so and
    # the large ones are what is left. That is worth it unless it makes many more products.
    single = matrix.dtype != torch.float64 and rank - k <= 2 * k
    make_top = not single and k <= rank - k
    vectors = basis[:, :k] if make_top else basis[:, k:]
    left = vectors.float() if single else vectors
    made = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    others = torch.empty_like(made)
    # the shorter side first: (R, L)
    whole, part, rest = ((t if shape[0] <= shape[1] else t.mT) for t in (matrix, made, others))
    width = max(_SLAB_ENTRIES // rank, 1)
    for start in range(0, max(shape), width):
        slab = whole[:, start : start + width]
        coordinates = vectors.mT @ slab.double()
        if single:
            # over a power of two, so that float32 holds them as it holds the weights
            coordinates = coordinates.div_(decomposition.scale).float()
            projected = (left @ coordinates).mul_(decomposition.scale)
        else:
            projected = left @ coordinates
        part[:, start : start + width] = projected
        rest[:, start : start + width] = slab.to(projected.dtype) - projected
    return (made, others) if make_top else (others, made)


def _pieces(
    views: Sequence[MatrixView],
    parameters: Mapping[str, Tensor],
    decompositions: Sequence[Decomposition],
    fraction: float,
    end: End,
    stacked: bool,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(parameter, its top part, its bottom part) of each view, in the stored shape."""
    stacks = _stacks(views, parameters, stacked)
    group_size = len(stacks[0]) if stacks else 0
    if len(decompositions) != group_size * len(views):
        raise ValueError(
            f"expected one decomposition for each of {len(views)} views of {group_size} trials, "
            f"got {len(decompositions)}"
        )
    for i, (view, stack) in enumerate(zip(views, stacks, strict=True)):
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for matrix, decomposition in zip(stack, decompositions[i :: len(views)], strict=True):
            cut = _cut(fraction, min(decomposition.shape), end)
            for own, piece in zip(parts, _split(matrix, decomposition, cut), strict=True):
                own.append(piece)
        stored = parameters[view.parameter].shape[1 if stacked else 0 :]
        top, bottom = ([_restored(view, p, stored) for p in own] for own in parts)
        if stacked:
            yield view.parameter, torch.stack(top), torch.stack(bottom)
        else:
            yield view.parameter, top[0], bottom[0]


def _stacks(
    views: Sequence[MatrixView], parameters: Mapping[str, Tensor], stacked: bool
) -> list[Tensor]:
    """The matrices of each view, (K, m, n)."""
    named = [view.parameter for view in views]
    for view in views:
        if view.rows is not None or view.columns is not None:
            raise ValueError(
                f"matrix view {view.name!r}: directions are cut in whole parameters, but it is of "
                f"a part of {view.parameter!r}"
            )
        if named.count(view.parameter) > 1:
            raise ValueError(f"more than one matrix view is of {view.parameter!r}")
    matrices = [view.read(parameters, stacked=stacked) for view in views]
    return matrices if stacked else [matrix[None] for matrix in matrices]


def _restored(view: MatrixView, matrix: Tensor, stored: torch.Size) -> Tensor:
    """The inverse of `MatrixView.read`: the matrix in the parameter's stored shape."""
    if view.transpose:
        matrix = matrix.mT
    if view.layout == "conv_transpose":
        first, second, *taps = stored
        return matrix.reshape(second, first, *taps).transpose(0, 1).contiguous()
    return matrix.reshape(stored).contiguous()
