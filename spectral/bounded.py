"""A number with the interval that holds its exact value."""

from __future__ import annotations

import math
from typing import NamedTuple


class Bounded(NamedTuple):
    """A number and the interval that holds its exact value; all three NaN where it is not known."""

    value: float
    lower: float
    upper: float


UNKNOWN = Bounded(math.nan, math.nan, math.nan)
ZERO = Bounded(0.0, 0.0, 0.0)
