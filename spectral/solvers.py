"""Symmetric eigenvalue solvers and direct SVDs, and what counts as their failure.

LAPACK's routines loop over a batch, so matrices go through them one by one; each result is a
function of its matrix alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from spectral.entropy import Array

# torch's is a RuntimeError and numpy's a ValueError; nothing wider is ever caught
LINALG_ERRORS: tuple[type[Exception], ...] = (
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]  # documented, but not re-exported
    np.linalg.LinAlgError,
)


class Eigen(NamedTuple):
    """Eigenvalues, shape (R,), descending; eigenvectors, (R, R) by columns, if asked for."""

    values: Array
    vectors: Tensor | None


def eigen(gram: Tensor, *, vectors: bool) -> Eigen | None:
    """Eigenvalues of a symmetric float64 matrix, or None where the solver fails.

    Args:
        gram: shape (R, R), on the device where it is to be solved.
        vectors: whether eigenvectors are wanted; they stay on that device.
    """
    try:
        if not vectors:
            return in_order(torch.linalg.eigvalsh(gram).cpu().numpy(), None)
        ascending, columns = torch.linalg.eigh(gram)
        return in_order(ascending.cpu().numpy(), columns)
    except LINALG_ERRORS:
        return None


def in_order(ascending: Array, columns: Tensor | None) -> Eigen:
    """What a solver returned, largest eigenvalue first.

    Raises:
        numpy.linalg.LinAlgError: it is not finite.
    """
    return Eigen(_finite(ascending[::-1]), None if columns is None else columns.flip(-1))


def _finite(values: Array) -> Array:
    # a sum of finite values of order one is finite; three times as fast as asking each
    if not math.isfinite(values.sum()):
        raise np.linalg.LinAlgError("the solver returned values that are not finite")
    return values


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


def direct(unit: Tensor) -> tuple[str, Array] | None:
    """Singular values of a float64 matrix on the CPU, descending, by the first driver that works.

    Returns:
        (method, values), or None if every driver fails.
    """
    for method, solve in _DIRECT:
        try:
            return method, _finite(solve(unit))
        except LINALG_ERRORS:
            continue
    return None
