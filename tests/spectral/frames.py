"""Singular vectors made by hand, whose errors are known because the truth is."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from spectral import Coupling, CouplingEnd, SingularVectors

Array = NDArray[np.float64]

# Far below the tolerance, far above rounding.
TINY = 1e-12


def frame(length: int, size: int, seed: int) -> Array:
    """`size` random orthonormal columns of length `length`."""
    draws = np.random.default_rng(seed).standard_normal((length, size))
    return np.asarray(np.linalg.qr(draws)[0])


def triples(
    left: Array,
    right: Array,
    error: float | Array = TINY,
    span_error: float | Array | None = None,
    values: Array | None = None,
) -> SingularVectors:
    """Columns of `left` and `right` as singular vectors, all with the same errors on both sides."""
    k = left.shape[1]
    errors = np.broadcast_to(np.asarray(error, dtype=float), k).copy()
    spans = errors if span_error is None else np.broadcast_to(span_error, k).astype(float)
    return SingularVectors(
        np.linspace(2.0, 1.0, k) if values is None else values,
        torch.tensor(left),
        torch.tensor(right),
        errors,
        errors.copy(),
        spans.copy(),
        spans.copy(),
    )


def random_triples(m: int, n: int, k: int, seed: int) -> SingularVectors:
    return triples(frame(m, k, 2 * seed), frame(n, k, 2 * seed + 1))


def of_matrix(weights: Array, k: int) -> SingularVectors:
    """The k leading triples by numpy's SVD, as if they were known to 1e-12."""
    left, values, right = np.linalg.svd(weights)
    return triples(left[:, :k], right.T[:, :k], values=values[:k])


def turned(columns: Array, towards: Array, angle: float) -> Array:
    """Each column turned by `angle` towards the column of `towards`, which is orthogonal to it."""
    return math.cos(angle) * columns + math.sin(angle) * towards


def coupled(
    first: CouplingEnd | None = None, second: CouplingEnd | None = None, length: int = 1
) -> Coupling:
    ends = first or CouplingEnd("a", "left"), second or CouplingEnd("b", "right")
    return Coupling(*ends, length)


def with_left(columns: Array, error: float | Array = TINY, n: int = 12) -> SingularVectors:
    return triples(columns, frame(n, columns.shape[1], 77), error)


def with_right(columns: Array, error: float | Array = TINY, m: int = 12) -> SingularVectors:
    return triples(frame(m, columns.shape[1], 78), columns, error)
