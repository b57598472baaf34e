"""The rows that measurements become: one number, or one vector, each with its bound."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spectral.bounded import Bounded


class ScalarRow(NamedTuple):
    """One number: a metric of a subject, with the interval that holds its exact value.

    `lower` and `upper` are None where nothing is known, that is where `value` is NaN.
    """

    subject: str
    metric: str
    value: float
    lower: float | None
    upper: float | None
    method: str
    flag: str | None


class SpectrumRow(NamedTuple):
    """One vector: `values` float64 (R,), `bounds` float32 (R,), with |true - value| <= bound.

    An entry that is not determined is NaN in both, and the row is flagged ``ill_posed``.
    """

    subject: str
    quantity: str
    values: NDArray[np.float64]
    bounds: NDArray[np.float32]
    method: str
    flag: str | None


def scalar_row(
    subject: str, metric: str, number: Bounded, method: str, flag: str | None
) -> ScalarRow:
    """A row of a number with its interval; no interval where the number is not known."""
    if math.isnan(number.value):
        return ScalarRow(subject, metric, number.value, None, None, method, flag)
    return ScalarRow(subject, metric, *number, method, flag)


def rounded_up(bounds: NDArray[np.float64]) -> NDArray[np.float32]:
    """The smallest float32 numbers that are not below `bounds`; inf above float32's range."""
    with np.errstate(over="ignore", under="ignore"):
        nearest = bounds.astype(np.float32)
        return np.where(nearest < bounds, np.nextafter(nearest, np.float32(np.inf)), nearest)
