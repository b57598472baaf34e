"""The rows of the measurement `ranks`: every rank and norm of many matrices, computed together.

Matrices of one R go through `spectral.ranges` in one call, with the numbers that the functions of
`spectral.ranks` and `spectral.norms` have for one. Shape legend: B matrices of one R = min(m, n).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spectral import norms, ranges, ranks
from spectral.baselines import Baseline, baseline
from spectral.bounded import Bounded
from spectral.decomposition import Decomposition
from spectral.rows import ScalarRow, scalar_row

# In the order of the rows.
NAMES = (
    "effective_rank",
    "effective_rank/normalised",
    "effective_rank/relative",
    "spectral_entropy",
    "spectral_entropy/over_rank",
    "spectral_entropy/over_log_rank",
    "stable_rank",
    "stable_rank/normalised",
    "stable_rank/relative",
    "participation_rank",
    "participation_rank/normalised",
    "participation_rank/relative",
    "mass_rank",
    "mass_rank/normalised",
    "mass_rank/relative",
    "numerical_rank",
    "numerical_rank/normalised",
    "gini",
    "gini/relative",
    "norm/frobenius",
    "norm/spectral",
    "norm/nuclear",
    "norm/spectral_relative",
    "norm/nuclear_relative",
)

# Flag of numbers whose interval is statistical, where the matrix itself has no flag.
ESTIMATED = "estimated"

# What is estimated where only the largest singular values are known.
_FROM_THE_TAIL = frozenset(
    name
    for name in NAMES
    if name.split("/")[0] in ("effective_rank", "spectral_entropy", "mass_rank")
    or name.startswith("norm/nuclear")
)

# Rows of a [len(NAMES), 3, B] table: what is divided by a number of its own, and what that is at
# most. Everything else is copied.
_NUMERATORS = {
    "effective_rank/normalised": "effective_rank",
    "effective_rank/relative": "effective_rank",
    "spectral_entropy/over_rank": "spectral_entropy",
    "spectral_entropy/over_log_rank": "spectral_entropy",
    "stable_rank/normalised": "stable_rank",
    "stable_rank/relative": "stable_rank",
    "participation_rank/normalised": "participation_rank",
    "participation_rank/relative": "participation_rank",
    "mass_rank/normalised": "mass_rank",
    "mass_rank/relative": "mass_rank",
    "numerical_rank/normalised": "numerical_rank",
    "gini/relative": "gini",
    "norm/spectral_relative": "norm/spectral",
    "norm/nuclear_relative": "norm/nuclear",
}
_QUOTIENTS = np.array([NAMES.index(name) for name in _NUMERATORS])
_DIVIDENDS = np.array([NAMES.index(name) for name in _NUMERATORS.values()])
_LARGEST = np.array(
    [np.inf if name.endswith("relative") else 1.0 for name in _NUMERATORS], dtype=np.float64
)[:, None]


def rank_rows(
    subjects: Sequence[str],
    decompositions: Sequence[Decomposition],
    flags: Sequence[str | None],
) -> list[list[ScalarRow]]:
    """All rows of the measurement `ranks`.

    Args:
        subjects: the subject of each matrix's rows.
        decompositions: one per matrix.
        flags: the flag of each matrix's rows. Where it is None, numbers that rest on estimated
            sums (R above 2048) are flagged ``estimated``.

    Returns:
        for each matrix its rows, in the order of `NAMES`. A matrix's rows are the same to the bit
        whatever else is measured with it.

    Raises:
        ValueError: if the three do not have one entry per matrix.
    """
    if not len(subjects) == len(decompositions) == len(flags):
        raise ValueError(
            f"expected a subject and a flag for each of {len(decompositions)} matrices, got "
            f"{len(subjects)} subjects and {len(flags)} flags"
        )
    results: list[list[ScalarRow]] = [[] for _ in decompositions]
    together: dict[int, list[int]] = defaultdict(list)
    for position, decomposition in enumerate(decompositions):
        if decomposition.tail is None and decomposition.unit_values[0] > 0.0:
            together[len(decomposition.unit_values)].append(position)
        else:
            results[position] = _rows_alone(subjects[position], decomposition, flags[position])
    for positions in together.values():
        numbers = _table([decompositions[position] for position in positions])
        # [len(NAMES), 3, B] as B lists of (value, lower, upper)
        for position, triples in zip(positions, numbers.transpose(2, 0, 1).tolist(), strict=True):
            subject, flag = subjects[position], flags[position]
            method = decompositions[position].method
            results[position] = [
                ScalarRow(subject, name, value, lower, upper, method, flag)
                for name, (value, lower, upper) in zip(NAMES, triples, strict=True)
            ]
    return results


def _table(group: list[Decomposition]) -> NDArray[np.float64]:
    """Shape (len(NAMES), 3, B): value, lower and upper of every metric of solved matrices."""
    spectra = ranges.box(group)
    size = spectra.size
    baselines = [baseline(*decomposition.shape) for decomposition in group]
    thresholds = np.array([max(d.shape) * d.precision for d in group])
    scales = np.array([decomposition.scale for decomposition in group])
    effective = ranges.effective_rank(spectra)
    nuclear, top = ranges.nuclear_norm(spectra), ranges.spectral_norm(spectra)
    measured = {
        "effective_rank": effective,
        "spectral_entropy": ranges.entropy_of(effective),
        "stable_rank": ranges.stable_rank(spectra),
        "participation_rank": ranges.participation_rank(spectra),
        "mass_rank": ranges.mass_rank(spectra),
        "numerical_rank": ranges.numerical_rank(spectra, thresholds),
        "gini": ranges.gini(spectra),
        # of shares of the Frobenius norm, until the quotients are formed
        "norm/spectral": ranges.share_of_norm(top, spectra),
        "norm/nuclear": ranges.share_of_norm(nuclear, spectra),
    }
    numbers = np.empty((len(NAMES), 3, len(group)))
    for name, found in measured.items():
        numbers[NAMES.index(name)] = found
    quotients = numbers[_DIVIDENDS] / _divisors(size, baselines)[:, None, :]
    numbers[_QUOTIENTS] = np.stack(
        ranges.outward((quotients[:, 0], quotients[:, 1], quotients[:, 2]), _LARGEST), axis=1
    )
    if size == 1:
        for name in ("spectral_entropy/over_log_rank", "gini/relative"):
            numbers[NAMES.index(name)] = 1.0
    for name, norm in (
        ("norm/frobenius", ranges.frobenius_norm(spectra)),
        ("norm/spectral", top),
        ("norm/nuclear", nuclear),
    ):
        numbers[NAMES.index(name)] = ranges.scaled(norm, scales)
    return numbers


def _divisors(size: int, baselines: list[Baseline]) -> NDArray[np.float64]:
    """Shape (len(_NUMERATORS), B); 1 instead of 0, which matrices with R = 1 have."""
    log_size = math.log(size) if size > 1 else 1.0
    columns = [
        (
            size,
            random.effective_rank,
            size,
            log_size,
            size,
            random.stable_rank,
            size,
            random.participation_rank,
            size,
            random.mass_rank,
            size,
            random.gini if size > 1 else 1.0,
            random.spectral_share,
            random.nuclear_share,
        )
        for random in baselines
    ]
    return np.array(columns, dtype=np.float64).T


def _rows_alone(subject: str, decomposition: Decomposition, flag: str | None) -> list[ScalarRow]:
    rows = []
    for name, number in zip(NAMES, _numbers(decomposition), strict=True):
        estimated = decomposition.tail is not None and name in _FROM_THE_TAIL
        own = ESTIMATED if flag is None and estimated else flag
        rows.append(scalar_row(subject, name, number, decomposition.method, own))
    return rows


def _numbers(decomposition: Decomposition) -> list[Bounded]:
    """Every metric of one matrix, in the order of `NAMES`: what the public functions say."""
    random = baseline(*decomposition.shape)
    numbers = []
    for rank, mean in (
        (ranks.effective_rank(decomposition), random.effective_rank),
        (ranks.spectral_entropy(decomposition), None),
        (ranks.stable_rank(decomposition), random.stable_rank),
        (ranks.participation_rank(decomposition), random.participation_rank),
        (ranks.mass_rank(decomposition), random.mass_rank),
    ):
        numbers += [
            rank,
            ranks.normalised(rank, decomposition),
            ranks.entropy_over_log_rank(decomposition)
            if mean is None
            else ranks.relative(rank, mean),
        ]
    numerical = ranks.numerical_rank(decomposition)
    return [
        *numbers,
        numerical,
        ranks.normalised(numerical, decomposition),
        ranks.gini(decomposition),
        ranks.gini_relative(decomposition),
        norms.frobenius_norm(decomposition),
        norms.spectral_norm(decomposition),
        norms.nuclear_norm(decomposition),
        norms.spectral_norm_relative(decomposition),
        norms.nuclear_norm_relative(decomposition),
    ]
