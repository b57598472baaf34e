"""What the meaning of a number consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The meaning of one name in the `metric` or `quantity` column.

    Attributes:
        name: as it stands in the column.
        definition: the formula. W is m x n, R = min(m, n), sigma_1 >= ... >= sigma_R.
        range: the values it can take, besides NaN.
        units: `none`, or what it is measured in.
        source: where the definition comes from.
    """

    name: str
    definition: str
    range: str
    units: str
    source: str
