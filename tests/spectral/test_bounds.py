"""No true value lies outside its interval: the promise that every row of the store makes."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral import Decomposition, MatrixView, decompose, effective_rank, take_snapshot
from spectral.rows import ScalarRow, SpectrumRow
from tests.spectral.matrix_zoo import Truth, oracle, zoo

# what the oracle knows; test_rank_metrics.py holds all metrics of the group against slow versions
ORACLES = (
    "effective_rank",
    "effective_rank/normalised",
    "stable_rank",
    "norm/frobenius",
    "norm/spectral",
)


@pytest.fixture(scope="module")
def truths() -> dict[str, Truth]:
    return {name: oracle(matrix) for name, matrix in zoo().items()}


def snapshot_rows(matrices: dict[str, Tensor]) -> tuple[list[ScalarRow], list[SpectrumRow]]:
    views = [MatrixView(name, name) for name in matrices]
    parameters = {name: matrix[None] for name, matrix in matrices.items()}
    (snapshot,), _ = take_snapshot(views, parameters, ("ranks", "spectrum"), None)
    return snapshot.scalars, snapshot.spectra


def outside(values: np.ndarray, bounds: np.ndarray, truth: Truth) -> int:
    """How many singular values are farther from the truth than their bound and the oracle's."""
    allowed = bounds.astype(np.float64) + truth.singular_value_error * truth.scale
    return int((np.abs(values - truth.singular_values * truth.scale) > allowed).sum())


def test_the_zoo_is_large_enough_to_mean_something() -> None:
    assert len(zoo()) >= 200


def test_every_singular_value_lies_within_its_stored_bound(truths: dict[str, Truth]) -> None:
    """|true - value| <= bound, with the bound as it is stored: in float32."""
    _, spectra = snapshot_rows(zoo())

    wrong = {row.subject: outside(row.values, row.bounds, truths[row.subject]) for row in spectra}

    assert {name: count for name, count in wrong.items() if count} == {}
    assert {row.bounds.dtype for row in spectra} == {np.dtype(np.float32)}
    assert {row.method for row in spectra} <= {"gram64", "svd64", "deflated64"}


def test_every_metric_lies_within_its_stored_interval(truths: dict[str, Truth]) -> None:
    """lower <= true <= upper, up to what the oracle itself may be off."""
    scalars, _ = snapshot_rows(zoo())

    wrong = []
    scalars = [row for row in scalars if row.metric in ORACLES]
    for row in scalars:
        true, error = truths[row.subject].metrics[row.metric]
        assert row.lower is not None
        assert row.upper is not None
        if not (row.lower - error <= true <= row.upper + error):
            wrong.append((row.subject, row.metric, row.lower, true, row.upper))
        assert row.lower <= row.value <= row.upper
    assert wrong == []
    assert len(scalars) == 5 * len(zoo())


def test_gram_bounds_hold_where_the_effective_rank_would_have_escalated(
    truths: dict[str, Truth],
) -> None:
    """The Gram's intervals are right also where they are too wide to be useful."""
    decompositions = decompose(list(zoo().values()), tolerance=math.inf)

    wrong = {}
    for (name, truth), result in zip(truths.items(), decompositions, strict=True):
        assert result.method == "gram64"
        rank, (true, error) = effective_rank(result), truth.metrics["effective_rank"]
        inside = rank.lower - error <= true <= rank.upper + error
        count = outside(result.values, result.bounds, truth)
        if count or not inside:
            wrong[name] = (count, rank, true)
    assert wrong == {}


@pytest.mark.parametrize("divisor", [100.0, 1000.0])
def test_bounds_shrunk_a_hundredfold_would_be_caught(
    truths: dict[str, Truth], divisor: float
) -> None:
    """Twin: the checks above can fail."""
    decompositions = decompose(list(zoo().values()), tolerance=math.inf)

    wrong = [
        name
        for (name, truth), result in zip(truths.items(), decompositions, strict=True)
        if outside(result.values, result.bounds / divisor, truth)
    ]

    assert len(wrong) >= 5


def test_a_float32_gram_would_be_caught(truths: dict[str, Truth]) -> None:
    """Twin: the same matrices through a float32 Gram break the bounds, by percents in the rank."""
    decompositions = decompose(list(zoo().values()))

    wrong = []
    for (name, matrix), result in zip(zoo().items(), decompositions, strict=True):
        unit = (matrix.double() / result.scale).float()
        gram = unit.mT @ unit if unit.shape[0] >= unit.shape[1] else unit @ unit.mT
        squares = torch.linalg.eigvalsh(gram).double().clamp(min=0.0).sqrt().numpy()[::-1]
        if outside(squares * result.scale, result.bounds, truths[name]):
            wrong.append(name)

    assert len(wrong) > 100


def test_one_product_with_a_square_root_bound_would_be_caught() -> None:
    """Twin: why Gram matrices are summed in blocks.

    A constant matrix rounds the same way at every addition, so that u sqrt(m) ||W||_F^2 does not
    bound one product over all rows. The truth is a rational number.
    """
    m, roundoff = 50_000, 2.0**-53
    ratios = []
    for constant in np.linspace(0.5, 1.0, 7, dtype=np.float32)[1:-1]:
        column = torch.full((m, 1), float(constant), dtype=torch.float64)
        exact = Fraction(float(constant)) ** 2 * m
        naive = abs(Fraction((column.mT @ column).item()) - exact)
        (ours,) = decompose([column.float()], tolerance=math.inf)
        ours_error = abs(Fraction(float(ours.values[0])) ** 2 - exact)
        ratios.append(float(naive / exact) / (roundoff * math.sqrt(m)))
        assert float(ours_error / exact) / 2 * math.sqrt(exact) <= ours.bounds[0]

    assert max(ratios) > 3


@pytest.mark.parametrize("shape", [(2, 2), (64, 64), (200, 31), (50_000, 8), (8, 3000)])
@pytest.mark.parametrize("tolerance", [1e-5, math.inf], ids=["escalated", "gram only"])
def test_rank_one_products_of_whole_numbers_have_exactly_known_values(
    shape: tuple[int, int], tolerance: float
) -> None:
    """sigma_1 = |u| |v| and every other value is 0: truth from algebra, no oracle."""
    generator = np.random.default_rng(3)
    u, v = (generator.integers(1, 200, size) for size in shape)
    matrix = torch.tensor(np.outer(u, v), dtype=torch.float32)

    (result,) = decompose([matrix], tolerance=tolerance)

    top = Fraction(int((u.astype(np.int64) ** 2).sum()) * int((v.astype(np.int64) ** 2).sum()))
    value, bound = Fraction(result.values[0].item()), Fraction(result.bounds[0].item())
    assert max(value - bound, Fraction(0)) ** 2 <= top <= (value + bound) ** 2
    assert (result.values[1:] <= result.bounds[1:]).all()
    rank = effective_rank(result)
    assert rank.lower == 1.0
    if shape == (64, 64):
        assert result.method == ("gram64" if tolerance == math.inf else "deflated64")


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_hadamard_spectra_are_exact(n: int) -> None:
    """A Sylvester matrix of order N has N singular values sqrt(N), and effective rank N."""
    order = 2 ** (n.bit_length())
    hadamard = torch.ones(1, 1)
    while len(hadamard) < order:
        hadamard = torch.kron(hadamard, torch.tensor([[1.0, 1.0], [1.0, -1.0]]))

    (result,) = decompose([hadamard])

    low, high = result.values - result.bounds, result.values + result.bounds
    assert ((low**2 <= order) & (order <= high**2)).all()
    assert effective_rank(result).upper == order


def test_escalation_leaves_no_effective_rank_less_certain_than_the_tolerance() -> None:
    results: list[Decomposition] = decompose(list(zoo().values()))

    for result in results:
        rank = effective_rank(result)
        assert max(rank.upper - rank.value, rank.value - rank.lower) <= 1e-5 * rank.value
