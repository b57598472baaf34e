"""The two constants of the bounds that are measured, not proven: held against 80-bit arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spectral.entropy import UNIT_ROUNDOFF
from spectral.gram import gram, peaks_and_scales, row_blocks
from spectral.solvers import eigen
from tests.spectral.matrix_zoo import kinds

SIZES = (2, 3, 5, 8, 16, 32, 64, 128)
WIDER = pytest.mark.skipif(
    np.finfo(np.longdouble).eps >= 2.0**-60, reason="long double is no wider than float64 here"
)


def worst(size: int) -> tuple[float, float]:
    """Largest ||G V - V diag(l)|| / (u l_1) and ||V^T V - I|| / u over all kinds of spectra."""
    residual = skew = 0.0
    for entries in kinds(np.random.default_rng(size), size, size).values():
        matrix = torch.tensor(entries)
        _, scale = peaks_and_scales(matrix)
        formed = gram(row_blocks(matrix, scale))
        solved = eigen(formed, vectors=True)
        assert solved is not None
        assert solved.vectors is not None
        # eigh reads the lower triangle: that is the matrix it was given
        lower = formed.numpy().astype(np.longdouble)
        given = np.tril(lower) + np.tril(lower, -1).T
        vectors = solved.vectors.numpy().astype(np.longdouble)
        off = (given @ vectors - vectors * solved.values).astype(np.float64)
        eye = (vectors.T @ vectors - np.eye(size)).astype(np.float64)
        residual = max(residual, np.linalg.norm(off, 2) / (UNIT_ROUNDOFF * solved.values[0]))
        skew = max(skew, np.linalg.norm(eye, 2) / UNIT_ROUNDOFF)
    return residual, skew


@WIDER
@pytest.mark.parametrize("size", SIZES)
def test_eigenvectors_leave_a_residual_within_what_the_bounds_assume(size: int) -> None:
    """(2 R + 24) u lambda_1 for residuals, (4 R + 64) u for orthogonality; and not by far."""
    residual, skew = worst(size)

    assert residual <= 2 * size + 24
    assert skew <= 4 * size + 64


@WIDER
def test_constants_a_tenth_as_large_would_be_caught() -> None:
    """Twin: the comparison can fail."""
    residuals, skews = zip(*(worst(size) for size in (5, 8, 16)), strict=True)

    assert max(r / (2 * n + 24) for r, n in zip(residuals, (5, 8, 16), strict=True)) > 0.1
    assert max(s / (4 * n + 64) for s, n in zip(skews, (5, 8, 16), strict=True)) > 0.1
