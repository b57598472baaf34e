"""Every metric of the measurement `ranks`, computed slowly and obviously from singular values."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from spectral import Decomposition
from spectral.rows import ScalarRow


def obvious(values: np.ndarray) -> dict[str, float]:
    """The metrics that depend on singular values alone, of any (unsorted) non-negative vector."""
    ordered = sorted((float(value) for value in values), reverse=True)
    size, total = len(ordered), math.fsum(ordered)
    shares = [value / total for value in ordered]
    differences = math.fsum(abs(a - b) for a in ordered for b in ordered)
    squares = math.fsum(value**2 for value in ordered)
    return {
        "effective_rank": math.exp(-math.fsum(p * math.log(p) for p in shares if p > 0.0)),
        "spectral_entropy": -math.fsum(p * math.log(p) for p in shares if p > 0.0),
        "stable_rank": squares / ordered[0] ** 2,
        "participation_rank": squares**2 / math.fsum(value**4 for value in ordered),
        "mass_rank": obvious_mass_rank(ordered),
        "gini": differences / (2 * size**2 * (total / size)),
        "norm/frobenius": math.sqrt(squares),
        "norm/spectral": ordered[0],
        "norm/nuclear": total,
    }


def obvious_mass_rank(ordered: list[float]) -> int:
    total = math.fsum(ordered)
    sums = (math.fsum(ordered[:k]) for k in range(1, len(ordered) + 1))
    return next(k for k, held in enumerate(sums, start=1) if held > 0.9 * total)


def obvious_numerical_rank(values: np.ndarray, threshold: float) -> int:
    return int((values > values.max() * threshold).sum())


def ends(row: ScalarRow) -> tuple[float, float]:
    """Of an interval that is known."""
    assert row.lower is not None
    assert row.upper is not None
    return row.lower, row.upper


def corners(low: np.ndarray, high: np.ndarray) -> Iterator[np.ndarray]:
    return (np.asarray(c) for c in itertools.product(*zip(low, high, strict=True)))


def known_spectrum(
    values: np.ndarray,
    bounds: np.ndarray,
    *,
    long_side: int | None = None,
    precision: float = 2.0**-23,
) -> Decomposition:
    """A decomposition with the given intervals; the norm's holds every spectrum inside them."""
    low, high = np.maximum(values - bounds, 0.0), values + bounds
    norm = math.sqrt(math.fsum(values**2))
    lowest, highest = math.sqrt(math.fsum(low**2)), math.sqrt(math.fsum(high**2))
    return Decomposition(
        shape=(len(values), long_side or len(values)),
        unit_values=np.asarray(values, dtype=np.float64),
        unit_bounds=np.asarray(bounds, dtype=np.float64),
        unit_frobenius=norm,
        unit_frobenius_bound=max(norm - lowest, highest - norm) * (1 + 1e-12),
        scale=1.0,
        method="svd64",
        flag=None,
        precision=precision,
    )
