"""Properties of every rank and norm, over shapes, ranks, scales, repeated and zero values."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from spectral import decompose
from spectral.rank_rows import NAMES, rank_rows
from spectral.rows import ScalarRow
from tests.spectral.spectra_truth import ends, obvious, obvious_mass_rank

# Reproducible: every run tries the same examples.
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True)

SIDES = st.integers(1, 24)
# a few sizes, so that values repeat, zeros among them
SIZES = st.sampled_from((1.0, 1.0, 0.5, 0.3, 1e-2, 1e-4, 1e-7, 0.0))
SCALES = st.floats(-20.0, 20.0).map(lambda exponent: 10.0**exponent)


def orthonormal(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0]


@st.composite
def spectra(draw: st.DrawFn) -> tuple[int, int, np.ndarray]:
    """A shape and its singular values, descending, the largest of them 1."""
    m, n = draw(SIDES), draw(SIDES)
    rest = draw(st.lists(SIZES, min_size=min(m, n) - 1, max_size=min(m, n) - 1))
    return m, n, np.array([1.0, *sorted(rest, reverse=True)])


def matrix_of(m: int, n: int, values: np.ndarray, seed: int = 1) -> Tensor:
    rank = len(values)
    return torch.tensor((orthonormal(m, rank, seed) * values) @ orthonormal(n, rank, seed + 1).T)


def rows_of(matrix: Tensor) -> dict[str, ScalarRow]:
    (decomposition,) = decompose([matrix])
    (rows,) = rank_rows(["w"], [decomposition], [decomposition.flag])
    return {row.metric: row for row in rows}


@PROPERTY
@given(spectra(), SCALES)
@example((1, 7, np.ones(1)), 1e-20)
@example((7, 1, np.ones(1)), 1e20)
@example((6, 6, np.array([1.0, 0.0, 0.0, 0.0, 0.0, 0.0])), 1.0)
def test_numbers_lie_in_their_intervals_and_intervals_in_their_ranges(
    spectrum: tuple[int, int, np.ndarray], scale: float
) -> None:
    m, n, values = spectrum
    rank = min(m, n)

    found = rows_of(matrix_of(m, n, values) * scale)

    assert tuple(found) == NAMES
    for name, row in found.items():
        low, high = ends(row)
        assert 0.0 <= low <= row.value <= high < math.inf, name
        if name in ("effective_rank", "stable_rank", "participation_rank", "mass_rank"):
            assert 1.0 <= low, name
            assert high <= rank, name
        if name.endswith("/normalised"):
            assert high <= 1.0, name
    for name in ("mass_rank", "numerical_rank"):
        assert all(end.is_integer() for end in (found[name].value, *ends(found[name]))), name
    lower = {name: ends(row)[0] for name, row in found.items()}
    upper = {name: ends(row)[1] for name, row in found.items()}
    assert upper["spectral_entropy/over_log_rank"] <= 1.0
    assert upper["gini"] <= 1.0 - 1.0 / rank
    # sigma_1 <= ||W||_F <= sum sigma
    assert lower["norm/spectral"] <= upper["norm/frobenius"]
    assert lower["norm/frobenius"] <= upper["norm/nuclear"]
    # the larger the power, the more the largest values count
    assert lower["stable_rank"] <= upper["participation_rank"]
    assert lower["participation_rank"] <= upper["effective_rank"]


@PROPERTY
@given(spectra(), SCALES)
def test_intervals_hold_the_metrics_of_the_values_that_the_matrix_was_built_from(
    spectrum: tuple[int, int, np.ndarray], scale: float
) -> None:
    """Up to the entries' rounding in float64, which moves no value by more than 1e-14."""
    m, n, values = spectrum
    moved = 1e-14

    found = rows_of(matrix_of(m, n, values) * scale)

    for name, true in obvious(values).items():
        if name == "mass_rank":
            continue
        lower, upper = ends(found[name])
        factor = scale if name.startswith("norm/") else 1.0
        # d(metric) <= R times the steepest slope: ln(1e14) for the entropy, times R for the rank
        slack = moved * 40 * len(values) ** 2 * factor
        assert lower - slack <= true * factor <= upper + slack, name


@PROPERTY
@given(spectra())
def test_mass_rank_intervals_hold_the_rank_of_values_nearby(
    spectrum: tuple[int, int, np.ndarray],
) -> None:
    """A whole number may jump with the entries' rounding: one of three spectra is the truth."""
    m, n, values = spectrum

    lower, upper = ends(rows_of(matrix_of(m, n, values))["mass_rank"])

    down = np.where(np.arange(len(values)) == 0, 1 - 1e-12, 1.0)
    near = [values, values * down, values * (2 - down)]
    ranks = [obvious_mass_rank(sorted(v.tolist(), reverse=True)) for v in near]
    assert lower <= max(ranks)
    assert min(ranks) <= upper


def assert_the_same(one: ScalarRow, other: ScalarRow, factor: float = 1.0) -> None:
    """The intervals meet: both hold the metric of the same values, up to roundings of entries."""
    first, second = ends(one), ends(other)
    slack = 1e-10 * max(abs(first[1]), abs(second[1] / factor), 1e-300)
    assert first[0] - slack <= second[1] / factor, one.metric
    assert second[0] / factor <= first[1] + slack, one.metric


@PROPERTY
@given(spectra(), SCALES)
def test_ranks_ignore_scale_and_norms_follow_it(
    spectrum: tuple[int, int, np.ndarray], scale: float
) -> None:
    matrix = matrix_of(*spectrum)

    plain, scaled = rows_of(matrix), rows_of(matrix * scale)

    for name, row in plain.items():
        norm = name in ("norm/frobenius", "norm/spectral", "norm/nuclear")
        assert_the_same(row, scaled[name], scale if norm else 1.0)


@PROPERTY
@given(spectra(), st.integers(-60, 60))
def test_powers_of_two_change_no_bit_of_a_rank(
    spectrum: tuple[int, int, np.ndarray], exponent: int
) -> None:
    matrix = matrix_of(*spectrum)

    plain, scaled = rows_of(matrix), rows_of(matrix * 2.0**exponent)

    for name, row in plain.items():
        if not name.startswith("norm/") or name.endswith("relative"):
            assert row == scaled[name]


@PROPERTY
@given(spectra())
def test_transposition_and_rotation_change_nothing(
    spectrum: tuple[int, int, np.ndarray],
) -> None:
    m, n, _ = spectrum
    matrix = matrix_of(*spectrum)
    rotated = torch.tensor(orthonormal(m, m, 5)) @ matrix @ torch.tensor(orthonormal(n, n, 6))

    plain = rows_of(matrix)

    for other in (rows_of(matrix.mT), rows_of(rotated)):
        for name, row in plain.items():
            assert_the_same(row, other[name])


@pytest.mark.parametrize("factor", [1.001, 0.999])
def test_values_a_thousandth_larger_would_be_noticed(factor: float) -> None:
    """Twin: the comparison of intervals can fail."""
    matrix = matrix_of(9, 6, np.array([1.0, 0.5, 0.3, 0.3, 1e-2, 0.0]))
    changed = matrix_of(9, 6, np.array([1.0, 0.5 * factor, 0.3, 0.3, 1e-2, 0.0]))

    plain, other = rows_of(matrix), rows_of(changed)

    noticed = 0
    for name, row in plain.items():
        try:
            assert_the_same(row, other[name])
        except AssertionError:
            noticed += 1
    # all but mass rank and numerical rank (with what they are divided by), and the largest value
    assert noticed == len(NAMES) - 3 - 2 - 1


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_matrices_have_no_ranks(shape: tuple[int, int]) -> None:
    message = f"expected a matrix (m, n) with m, n >= 1, got the shape {shape}"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        decompose([torch.zeros(shape)])
