"""How much wider the bounds of spectra are than the errors, by family of spectra.

Not a matter of speed: it says what a bound is worth. The matrices are those of the test that holds
every bound against the truth (`tests/spectral/matrix_zoo.py`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from benchmarks.figures import Figure, Report
from spectral import decompose, effective_rank
from tests.spectral.matrix_zoo import exact_errors, exact_values, oracle, thousand


def measure(*, quick: bool) -> Report:
    """The median over a family's matrices, with the smallest and the largest."""
    pairs: list[tuple[str, Tensor]] = list(_chosen(quick))
    values: dict[str, list[float]] = defaultdict(list)
    ranks: dict[str, list[float]] = defaultdict(list)
    outside = 0
    for (kind, matrix), found in zip(pairs, decompose([m for _, m in pairs]), strict=True):
        if matrix.shape[0] == 50_000:  # NumPy's SVD is less certain than ours
            if matrix.shape[1] == 8:
                exact = exact_values(matrix.double().numpy() / found.scale)
                errors = exact_errors(found.unit_values, exact)
                outside += int((errors > found.unit_bounds).sum())
                values[kind].append(float(np.median(found.unit_bounds / errors)))
            continue
        truth = oracle(matrix)
        errors = np.abs(found.unit_values - truth.singular_values)
        outside += int((errors > found.unit_bounds + truth.singular_value_error).sum())
        # an error below what the truth itself may be off is not known to be smaller than that
        known = np.maximum(errors, truth.singular_value_error)
        values[kind].append(float(np.median(found.unit_bounds / known)))
        rank, (true, error) = effective_rank(found), truth.metrics["effective_rank"]
        outside += not rank.lower - error <= true <= rank.upper + error
        half_width = max(rank.upper - rank.value, rank.value - rank.lower)
        ranks[kind].append(half_width / max(abs(rank.value - true), error))
    return Report(
        "bounds",
        quick,
        [
            Figure("values outside their bound", "of all", [float(outside)], most=0.0),
            *(Figure(f"singular values, {kind}", "", values[kind]) for kind in values),
            *(Figure(f"effective rank, {kind}", "", ranks[kind]) for kind in ranks),
        ],
        raw={"matrices": len(pairs)},
    )


def _chosen(quick: bool) -> Iterator[tuple[str, Tensor]]:
    torch.set_num_threads(1)
    return islice(thousand(), 0, None, 12 if quick else 1)
