"""The leading singular vectors of a matrix, and how far each may be off.

A singular vector is determined by its gap: the computed one is off by at most the residual over the
distance to the other eigenvalues of the Gram matrix. Within a cluster of equal singular values only
the subspace that they span together means anything, so subspaces have bounds of their own.

Shape legend: W is m x n, R = min(m, n), k <= R vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from spectral.entropy import Array

# A vector that may be off by more (sine of the angle) is not determined: what is made of it is
# null, flagged `ill_posed`, and the overlap of subspaces is what remains to be said.
VECTOR_TOLERANCE = 1e-3

# Vectors of singular values below this part of the largest one are not determined.
SMALLEST_SHARE = 1e-6


@dataclass(frozen=True)
class SingularVectors:
    """The k leading singular triples of one matrix W.

    Attributes:
        values: shape (k,), float64, descending: singular values of W.
        left: shape (m, k), float64 or float32, on W's device: left singular vectors as columns.
        right: shape (n, k), likewise: right singular vectors. Signs agree: W right_j = s_j left_j.
        left_errors: shape (k,), in [0, 1]: bounds of the sine of the angle between a column of
            `left` and the true singular vector; 1 where nothing is known.
        right_errors: likewise of `right`.
        left_span_errors: shape (k,), in [0, 1]: entry j bounds the sine of the largest principal
            angle between the span of the first j + 1 columns of `left` and that of the true ones.
        right_span_errors: likewise of `right`.
    """

    values: Array
    left: Tensor
    right: Tensor
    left_errors: Array
    right_errors: Array
    left_span_errors: Array
    right_span_errors: Array

    @classmethod
    def unknown(cls, weights: Tensor, k: int) -> SingularVectors:
        """Of a matrix that has none: it is zero, not finite, or no solver succeeded."""
        m, n = weights.shape
        nothing = np.ones(k)
        left, right = (weights.new_zeros(size, k, dtype=torch.float64) for size in (m, n))
        return cls(np.full(k, np.nan), left, right, nothing, nothing, nothing, nothing)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of W."""
        return self.left.shape[0], self.right.shape[0]

    @property
    def k(self) -> int:
        """How many triples there are."""
        return len(self.values)

    @property
    def determined(self) -> np.ndarray:
        """Shape (k,), bool: whether both vectors of a triple are known to `VECTOR_TOLERANCE`."""
        worst = np.maximum(self.left_errors, self.right_errors)
        return np.asarray(worst <= VECTOR_TOLERANCE)

    def rounded(self) -> SingularVectors:
        """The same in float32, with errors that say so: what is kept of a snapshot.

        Rounding each entry of a unit vector moves it by at most 2^-24 of its length, and by what
        float32 cannot represent: 2^-150 per entry.
        """
        if self.left.dtype == torch.float32:
            return self
        moved = [
            2.0**-24 + math.sqrt(side.shape[0]) * 2.0**-150 for side in (self.left, self.right)
        ]

        def widened(errors: Array, by: float) -> Array:
            return np.minimum(errors + by, 1.0)

        # k columns that each move by d span a space that turns by at most sqrt(k) d
        columns = np.sqrt(np.arange(1, self.k + 1))
        return replace(
            self,
            left=self.left.float(),
            right=self.right.float(),
            left_errors=widened(self.left_errors, moved[0]),
            right_errors=widened(self.right_errors, moved[1]),
            left_span_errors=np.minimum(self.left_span_errors + columns * moved[0] * 1.01, 1.0),
            right_span_errors=np.minimum(self.right_span_errors + columns * moved[1] * 1.01, 1.0),
        )
