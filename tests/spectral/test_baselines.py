"""Ranks of random matrices by shape: published constants, slow versions, both sides of R = 64."""

import math
import random
import re

import numpy as np
import pytest
import torch

from spectral.baselines import SMALLEST_LIMIT, Baseline, baseline, limit, simulate
from tests.spectral.spectra_truth import obvious

FIELDS = (
    "effective_rank",
    "stable_rank",
    "participation_rank",
    "mass_rank",
    "gini",
    "spectral_share",
    "nuclear_share",
)

# Longer side : shorter side -> normalised effective rank of infinitely large random matrices.
EFFECTIVE_RANKS = {
    1: 0.8050,
    2: 0.9261,
    3: 0.9537,
    4: 0.9662,
    8: 0.9838,
    9: 0.9856,
    18: 0.9929,
}


@pytest.mark.parametrize("aspect", EFFECTIVE_RANKS)
def test_the_limit_of_the_effective_rank_is_the_published_one(aspect: int) -> None:
    """To the four digits that are printed."""
    assert limit(1 / aspect).effective_rank == pytest.approx(EFFECTIVE_RANKS[aspect], abs=5.1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.5, 0.25, 0.125, 1e-4])
def test_the_limit_of_the_stable_rank_is_a_formula(gamma: float) -> None:
    assert limit(gamma).stable_rank == pytest.approx(1 / (1 + math.sqrt(gamma)) ** 2, rel=1e-14)


def test_the_square_limit_has_the_quarter_circle_law() -> None:
    """gamma = 1: density sqrt(4 - s^2) / pi on [0, 2], whose mean is 8 / (3 pi)."""
    assert limit(1.0).nuclear_share == pytest.approx(8 / (3 * math.pi), rel=1e-12)


def quantiles(gamma: float, count: int) -> np.ndarray:
    """Singular values with equal shares of the limiting density, by summing it on a fine grid."""
    a, b = (1 - math.sqrt(gamma)) ** 2, (1 + math.sqrt(gamma)) ** 2
    edges = np.linspace(math.sqrt(a), math.sqrt(b), 2_000_001)
    s = (edges[1:] + edges[:-1]) / 2
    density = np.sqrt(np.maximum((b - s**2) * (s**2 - a), 0.0)) / (math.pi * gamma * s)
    held = np.concatenate([[0.0], np.cumsum(density) * (edges[1] - edges[0])])
    assert held[-1] == pytest.approx(1.0, abs=1e-6)
    middles = (np.arange(count) + 0.5) / count
    ascending: np.ndarray = np.interp(middles * held[-1], held, edges)
    return ascending[::-1]


@pytest.mark.parametrize("gamma", [1.0, 0.99, 0.5, 0.1, 0.001])
def test_limits_agree_with_ranks_of_a_large_vector_of_quantiles(gamma: float) -> None:
    """Slow and obvious; 2e-3: what 1,000 values miss of the density's edges."""
    count = 1000
    values = quantiles(gamma, count)
    found, slow = limit(gamma), obvious(values)

    for field in ("effective_rank", "participation_rank", "mass_rank"):
        assert getattr(found, field) == pytest.approx(slow[field] / count, rel=2e-3), field
    assert found.gini == pytest.approx(slow["gini"], rel=2e-3)
    share = slow["norm/nuclear"] / slow["norm/frobenius"] / math.sqrt(count)
    assert found.nuclear_share == pytest.approx(share, rel=2e-3)
    assert found.spectral_share == pytest.approx(values[0], rel=1e-2)


def direct(m: int, n: int, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors of the fields over whole Gaussian matrices."""
    generator = np.random.default_rng(11)
    rows = []
    for values in np.linalg.svd(generator.normal(size=(draws, m, n)), compute_uv=False):
        found = obvious(values)
        frobenius = found["norm/frobenius"]
        rows.append(
            [found[field] for field in FIELDS[:5]]
            + [found["norm/spectral"] / frobenius, found["norm/nuclear"] / frobenius]
        )
    table = np.array(rows)
    return table.mean(0), table.std(0) / math.sqrt(draws)


@pytest.mark.parametrize(
    ("m", "n", "draws"), [(2, 2, 4000), (3, 2, 4000), (5, 5, 2000), (4, 64, 1000), (24, 31, 200)]
)
def test_simulated_baselines_agree_with_matrices_drawn_in_full(m: int, n: int, draws: int) -> None:
    """Within 4.5 standard errors of both: bidiagonal form and controls change no mean."""
    means, errors = direct(m, n, draws)

    _, own_errors = simulate(min(m, n), max(m, n))

    found = baseline(m, n)
    for i, field in enumerate(FIELDS):
        allowed = 4.5 * math.hypot(errors[i], own_errors[i]) + 1e-9
        assert abs(getattr(found, field) - means[i]) <= allowed, field


@pytest.mark.parametrize(
    ("short", "long"), [(2, 2), (3, 3), (6, 6), (16, 16), (63, 63), (40, 9000)]
)
def test_the_standard_error_of_a_simulation_is_a_thousandth(short: int, long: int) -> None:
    """1.05e-3: the error is itself an estimate."""
    means, errors = simulate(short, long)

    assert (np.array(errors) / np.array(means) <= 1.05e-3).all()


@pytest.mark.parametrize("long", [64, 96, 256, 4096])
def test_simulation_and_limit_meet_where_one_takes_over_from_the_other(long: int) -> None:
    """1 % at R = 64, where both can be computed."""
    means, _ = simulate(SMALLEST_LIMIT, long)

    found = baseline(SMALLEST_LIMIT, long)

    for field, mean in zip(FIELDS, means, strict=True):
        assert getattr(found, field) == pytest.approx(mean, rel=0.01), field


def test_without_the_edge_correction_the_largest_value_would_be_off() -> None:
    """Twin: the limit's stable rank is 5 % off at 64 x 64, five times what is allowed above."""
    means, _ = simulate(64, 64)

    assert limit(1.0).stable_rank * 64 / means[FIELDS.index("stable_rank")] < 0.95


def test_participation_of_random_matrices_has_the_known_mean_of_its_inverse() -> None:
    """E[sum sigma^4 / ||G||_F^4] = (R + L + 1) / (R L + 2), from fourth moments of Gaussians."""
    generator = np.random.default_rng(12)
    values = np.linalg.svd(generator.normal(size=(20_000, 3, 5)), compute_uv=False)
    inverse = (values**4).sum(-1) / (values**2).sum(-1) ** 2

    error = inverse.std() / math.sqrt(len(inverse))
    assert inverse.mean() == pytest.approx((3 + 5 + 1) / (3 * 5 + 2), abs=4.5 * error)


# Normalised effective rank at step 0, with 4 standard deviations or 0.005: matrices of uniform
# entries, those of the paper's models whose limit or simulation is cheap.
INITIAL = {
    (113, 128): (0.841, 4 * 0.0024),
    (97, 128): (0.872, 4 * 0.0022),
    (384, 128): (0.954, 0.005),
    (128, 128): (0.804, 4 * 0.0024),
    (512, 128): (0.966, 0.005),
    (64, 27): (0.939, 4 * 0.0044),
    (64, 576): (0.986, 0.005),
    (128, 576): (0.970, 0.005),
    (10, 512): (0.998, 0.005),
    (256, 256): (0.805, 4 * 0.0015),
    (256, 3072): (0.989, 0.005),
    (10, 256): (0.995, 0.005),
    (1024, 256): (0.966, 0.005),
    (1024, 512): (0.926, 0.005),
    (2304, 768): (0.954, 0.005),
    (50_257, 768): (0.998, 0.005),
}


@pytest.mark.parametrize("shape", INITIAL)
def test_baselines_are_what_initial_weights_have(shape: tuple[int, int]) -> None:
    expected, tolerance = INITIAL[shape]

    assert baseline(*shape).effective_rank / min(shape) == pytest.approx(expected, abs=tolerance)


def test_a_single_row_is_known_without_simulation() -> None:
    assert baseline(1, 50_000) == Baseline(1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0)


def test_transposed_shapes_have_the_same_baseline() -> None:
    for shape in ((3, 17), (70, 200)):
        assert baseline(*shape) == baseline(*shape[::-1])


def test_baselines_do_not_depend_on_what_was_asked_before_and_draw_from_no_global_generator() -> (
    None
):
    before = (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist())
    first = baseline(5, 9)
    baseline.cache_clear()
    baseline(9, 11)

    assert baseline(5, 9) == first
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (-1, 2)])
def test_empty_shapes_have_no_baseline(shape: tuple[int, int]) -> None:
    message = f"expected a shape (m, n) with m, n >= 1, got ({shape[0]}, {shape[1]})"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        baseline(*shape)


@pytest.mark.parametrize("gamma", [0.0, 1.5, math.nan])
def test_aspect_ratios_lie_between_0_and_1(gamma: float) -> None:
    message = f"expected gamma = min(m, n) / max(m, n) in (0, 1], got {gamma}"

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        limit(gamma)
