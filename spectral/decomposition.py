"""What is known of the singular values and vectors of one matrix."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from spectral.bounded import Bounded
from spectral.entropy import Array
from spectral.vectors import SingularVectors

_SMALLEST_SUBNORMAL = 2.0**-1074
_SMALLEST_NORMAL = 2.0**-1022


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
        unit_values: shape (R,), float64, descending: singular values of W / scale; the leading ones
            only where R is above 2048.
        unit_bounds: shape (R,), float64: half widths; the true value lies within them.
        unit_frobenius: Frobenius norm of W / scale.
        unit_frobenius_bound: its half width.
        scale: the power of two with scale <= max|W| < 2 scale; 1.0 for zero and non-finite W.
        method: ``gram64``, ``deflated64``, ``svd64``, ``gesvd64``, ``subspace64`` (R above 2048),
            or ``none`` where no solver ran or all failed; ``fft_gram64``, ``fft_svd64``,
            ``fft_gesvd64`` of an operator.
        flag: ``zero``; ``diverged`` (an entry is not finite: values and bounds are NaN);
            ``ill_posed`` (finite, but every solver failed: values and bounds are NaN);
            ``estimated`` (R above 2048: `tail` is); ``collapsed`` (max|W| is below the smallest
            normal number of W's dtype); or None.
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
            # a value that float64 cannot hold is inf, and its distance from the true one is too
            bounds = np.where(np.isinf(self.unit_values * self.scale), np.inf, bounds)
        if self.scale > 2.0**-900 or self.flag == "zero":
            return bounds
        # Scaling back is exact except among subnormal numbers, where value and bound both round.
        return np.where(bounds < _SMALLEST_NORMAL, bounds + 2 * _SMALLEST_SUBNORMAL, bounds)
