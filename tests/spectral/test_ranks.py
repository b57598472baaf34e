"""Ranks and norms: known answers, invariances, random-matrix baselines."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral import (
    Bounded,
    decompose,
    effective_rank,
    effective_ranks,
    frobenius_norm,
    normalised,
    spectral_norm,
    stable_rank,
)
from spectral.entropy import effective_rank_range


def ranks(matrix: Tensor) -> dict[str, Bounded]:
    (d,) = decompose([matrix])
    rank = effective_rank(d)
    return {
        "effective_rank": rank,
        "normalised": normalised(rank, d),
        "stable_rank": stable_rank(d),
        "frobenius": frobenius_norm(d),
        "spectral": spectral_norm(d),
    }


def orthogonal(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    return q


def naive_effective_rank(values: np.ndarray) -> float:
    total = math.fsum(values)
    return math.exp(-math.fsum(v / total * math.log(v / total) for v in values if v > 0))


KNOWN = {
    "identity": (torch.eye(8), 8.0, 8.0, math.sqrt(8.0), 1.0),
    "orthogonal": (orthogonal(8, 0), 8.0, 8.0, math.sqrt(8.0), 1.0),
    "rank one": (torch.outer(torch.ones(9), torch.full((4,), 0.5)), 1.0, 1.0, 3.0, 3.0),
    # p = 1/2, 1/4, 1/4: H = 1.5 ln 2
    "diagonal": (torch.diag(torch.tensor([4.0, 2.0, 2.0])), 2.0**1.5, 1.5, math.sqrt(24.0), 4.0),
    "zero": (torch.zeros(5, 3), 0.0, 0.0, 0.0, 0.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_answers(name: str) -> None:
    """Values from algebra, inside their interval; 1e-13: some sixty roundings, and none at zero."""
    matrix, erank, stable, frobenius, top = KNOWN[name]

    found = ranks(matrix)

    expected = {
        "effective_rank": erank,
        "normalised": erank / min(matrix.shape),
        "stable_rank": stable,
        "frobenius": frobenius,
        "spectral": top,
    }
    for metric, true in expected.items():
        # an orthogonal matrix is itself rounded, by less than 1e-14
        slack = 1e-14 if name == "orthogonal" else 0.0
        tolerance = 1e-9 if name == "rank one" else 1e-13
        assert found[metric].value == pytest.approx(true, rel=tolerance), metric
        assert found[metric].lower - slack <= true <= found[metric].upper + slack, metric


def test_the_zero_matrix_has_rank_zero_exactly() -> None:
    assert set(ranks(torch.zeros(5, 3)).values()) == {Bounded(0.0, 0.0, 0.0)}


def test_a_matrix_that_is_not_finite_has_no_ranks() -> None:
    found = ranks(torch.tensor([[1.0, math.nan], [0.0, 1.0]]))

    assert all(math.isnan(v) for bounded in found.values() for v in bounded)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 3.0, -7.5, 1e20])
def test_ranks_ignore_scale(factor: float) -> None:
    """Multiplying a matrix by a constant changes no rank (1e-6: the entries round to float32)."""
    matrix = torch.randn(48, 20, generator=torch.Generator().manual_seed(2))

    plain, scaled = ranks(matrix), ranks(matrix * factor)

    for metric in ("effective_rank", "normalised", "stable_rank"):
        assert scaled[metric].value == pytest.approx(plain[metric].value, rel=1e-6)
    for metric in ("frobenius", "spectral"):
        assert scaled[metric].value == pytest.approx(plain[metric].value * abs(factor), rel=1e-6)


def test_ranks_and_norms_ignore_transposition_and_rotation() -> None:
    """U W V for orthogonal U, V, and the transpose, have the singular values of W (to 1e-12)."""
    matrix = torch.randn(30, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    rotated = orthogonal(30, 1) @ matrix @ orthogonal(12, 2)

    plain = ranks(matrix)

    for other in (ranks(matrix.mT), ranks(rotated), ranks(rotated.mT)):
        for metric, bounded in plain.items():
            assert other[metric].value == pytest.approx(bounded.value, rel=1e-12)


def test_effective_rank_agrees_with_a_slow_obvious_version() -> None:
    generator = torch.Generator().manual_seed(4)
    matrices = [torch.randn(shape, generator=generator) for shape in ((9, 9), (20, 7), (3, 40))]

    for matrix in matrices:
        values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        # 1e-11: float64 solvers on spectra whose smallest value is about 0.01 of the largest
        assert ranks(matrix)["effective_rank"].value == pytest.approx(
            naive_effective_rank(values), rel=1e-11
        )


def test_ranks_computed_together_equal_those_computed_alone() -> None:
    """Bitwise: otherwise a trial's numbers would depend on its company."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((16, 64), (64, 64), (64, 16), (1, 5), (33, 40))
    decompositions = decompose([torch.randn(s, generator=generator) for s in shapes * 3])

    assert effective_ranks(decompositions) == [effective_rank(d) for d in decompositions]


# Mean over draws and (4 standard deviations or 0.005): normalised effective rank at step 0.
INITIAL = {
    (113, 128): (0.841, 4 * 0.0024),
    (97, 128): (0.872, 4 * 0.0022),
    (384, 128): (0.954, 0.005),
    (128, 128): (0.804, 4 * 0.0024),
    (512, 128): (0.966, 0.005),
    (64, 64): (0.803, 0.02),
    (256, 128): (0.926, 0.005),
    (512, 64): (0.9838, 0.005),
    (576, 64): (0.9856, 0.005),
}


@pytest.mark.parametrize("shape", INITIAL)
def test_initial_weights_have_the_random_matrix_value(shape: tuple[int, int]) -> None:
    """iid uniform entries: the limiting density of singular values fixes exp(H) / R."""
    matrix = torch.rand(shape, generator=torch.Generator().manual_seed(6)) * 2 - 1

    expected, tolerance = INITIAL[shape]
    assert ranks(matrix)["normalised"].value == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("shape", [(512, 512), (1024, 512), (1024, 256), (2048, 256)])
def test_initial_weights_have_the_random_matrix_stable_rank(shape: tuple[int, int]) -> None:
    """stable rank / R -> 1 / (1 + sqrt(gamma))^2; 4 %: sigma_1^2 is off by about R^(-2/3)."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(7))

    limit = 1.0 / (1.0 + math.sqrt(min(shape) / max(shape))) ** 2
    assert ranks(matrix)["stable_rank"].value / min(shape) == pytest.approx(limit, rel=0.04)


def boxes() -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(8)
    result = []
    for _ in range(300):
        size = generator.integers(1, 7)
        values = np.sort(10.0 ** generator.uniform(-6, 0, size))[::-1]
        constant = np.full(size, 10.0 ** generator.uniform(-8, 0.3))
        relative = values * 10.0 ** generator.uniform(-3, 0.5, size)
        result += [(values, constant), (values, relative)]
    return result


def test_the_effective_rank_interval_holds_every_spectrum_in_the_box() -> None:
    """All corners, points inside, and the family that holds the maximiser, of 600 boxes."""
    generator = np.random.default_rng(9)
    for values, bounds in boxes():
        _, (lower,), (upper,) = effective_rank_range(values[None], bounds[None])
        low, high = np.maximum(values - bounds, 0.0), values + bounds
        corners = itertools.product(*zip(low, high, strict=True))
        inside = (generator.uniform(low, high) for _ in range(10))
        clipped = (np.clip(t, low, high) for t in np.geomspace(1e-9, 10.0, 40))
        spectra = [np.asarray(s) for s in itertools.chain(corners, inside, clipped)]
        found = [naive_effective_rank(s) for s in spectra if s.sum() > 0.0]
        # 1e-13: rounding of the slow version
        assert lower <= min(found) * (1 + 1e-13)
        assert max(found) <= upper * (1 + 1e-13)


def test_the_effective_rank_interval_is_attained_below_and_tight_for_small_boxes() -> None:
    """Twin: an interval that is always [1, R] would pass the test above."""
    values = np.geomspace(1.0, 0.01, 12)
    bounds = np.full(12, 1e-6)

    (value,), (lower,), (upper,) = effective_rank_range(values[None], bounds[None])

    shares = values / values.sum()
    entropy = math.log(value)
    first_order = (1e-6 / values.sum() * np.abs(np.log(shares) + entropy)).sum()
    assert value - lower == pytest.approx(value * first_order, rel=1e-3)
    assert upper - value == pytest.approx(value * first_order, rel=1e-3)
