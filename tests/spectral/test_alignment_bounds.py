"""Alignment of random vectors is what chance makes it, and its intervals hold."""

import math

import numpy as np
import pytest
import torch

from spectral import CouplingEnd, decompose
from spectral.alignment import Alignment, alignments, inter_layer_alignment
from tests.spectral.frames import (
    coupled,
    frame,
    of_matrix,
    random_triples,
    turned,
    with_left,
    with_right,
)

# ---------------------------------------------------------------- chance


@pytest.mark.parametrize(
    ("first", "second", "shapes", "length"),
    [
        (None, None, ((48, 12), (12, 48)), 48),
        (CouplingEnd("a", "left", entries=(16, 32)), None, ((64, 12), (12, 16)), 64),
        (None, CouplingEnd("b", "right", reshape=(16, 3), tap=(1,)), ((16, 12), (12, 48)), 48),
        (None, CouplingEnd("b", "right", reshape=(16, 3), tap="all"), ((16, 12), (12, 48)), 48),
        # both sliced, to 16 entries: 64 * 32 / 16
        (
            CouplingEnd("a", "left", entries=(16, 32)),
            CouplingEnd("b", "right", entries=(0, 16)),
            ((64, 12), (12, 32)),
            128,
        ),
    ],
    ids=["whole", "gate", "tap", "all taps", "both sliced"],
)
def test_random_vectors_are_aligned_by_chance(
    first: CouplingEnd | None,
    second: CouplingEnd | None,
    shapes: tuple[tuple[int, int], tuple[int, int]],
    length: int,
) -> None:
    """Means over 300 random pairs of 8 vectors: standard errors below 2 %."""
    coupling = coupled(first, second, length)
    met = [
        (coupling, random_triples(*shapes[0], 8, s), random_triples(*shapes[1], 8, 5000 + s))
        for s in range(300)
    ]
    found = alignments(met)

    def mean(numbers: list[float]) -> float:
        return float(np.mean(numbers))

    assert mean([a.score.value for a in found]) == pytest.approx(found[0].chance, rel=0.05)
    assert mean([a.overlap.value for a in found]) == pytest.approx(8 / length, rel=0.05)
    assert found[0].overlap_chance == 8 / length
    chance = found[0].matched_chance
    assert chance.lower < chance.value < chance.upper
    assert mean([a.matched.value for a in found]) == pytest.approx(chance.value, rel=0.03)


def test_everything_lies_between_zero_and_one() -> None:
    for seed in range(20):
        a, b = random_triples(9, 7, 7, seed), random_triples(7, 9, 7, 100 + seed)
        aligned = inter_layer_alignment(a, b)
        assert np.all((aligned.diagonal >= 0.0) & (aligned.diagonal <= 1.0))
        for value, lower, upper in (aligned.score, aligned.matched, aligned.overlap):
            assert 0.0 <= lower <= value <= upper <= 1.0


# ---------------------------------------------------------------- intervals


def perturbed(seed: int, angle: float, claimed: float) -> tuple[Alignment, Alignment]:
    """Alignments of true vectors and of ones that are all turned by `angle`."""
    rng = np.random.default_rng(seed)
    basis, k = frame(40, 18, seed), 6
    cosines = rng.uniform(0.0, 1.0, k)
    a = basis[:, :k]
    b = cosines * a + np.sqrt(1 - cosines**2) * basis[:, k : 2 * k]
    # towards what the other vector has and this one has not: the worst there is
    worst = np.where(rng.random(k) < 0.5, 1.0, -1.0) * basis[:, k : 2 * k]
    moved = turned(a, worst, angle), turned(b, basis[:, 2 * k :], angle)
    coupling = coupled(length=40)
    truth = inter_layer_alignment(with_left(a), with_right(b), coupling)
    found = inter_layer_alignment(
        with_left(moved[0], claimed), with_right(moved[1], claimed), coupling
    )
    return truth, found


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-5, 0.9e-3])
def test_intervals_enclose_the_alignment_of_the_true_vectors(angle: float) -> None:
    largest = 0.0
    for seed in range(60):
        truth, found = perturbed(seed, angle, math.sin(angle) * (1 + 1e-12))
        off = np.abs(found.diagonal - truth.diagonal)
        assert np.all(off <= found.bounds)
        largest = max(largest, float(np.max(off / found.bounds)))
        for name in ("score", "matched", "overlap"):
            _, lower, upper = getattr(found, name)
            assert lower <= getattr(truth, name).value <= upper, name
    # nor are they much wider than the worst that happens, when rounding does not rule
    assert largest > (0.4 if angle > 1e-10 else 0.0)


def test_errors_that_claim_too_little_would_be_noticed() -> None:
    """Twin: vectors turned by 1e-4, said to be known to 1e-6."""
    missed = 0
    for seed in range(20):
        truth, found = perturbed(seed, 1e-4, 1e-6)
        off = np.abs(found.diagonal - truth.diagonal)
        missed += int(np.any(off > found.bounds))

    assert missed == 20


def test_intervals_of_parts_of_vectors_enclose_the_truth_too() -> None:
    """Gates and taps, with vectors turned by 5e-4 in random directions."""
    gate = coupled(CouplingEnd("a", "left", entries=(4, 12)), length=24)
    taps = coupled(second=CouplingEnd("b", "right", reshape=(8, 3), tap="all"), length=24)
    sine = math.sin(5e-4) * (1 + 1e-12)
    for seed in range(40):
        long, short = frame(24, 12, seed), frame(8, 8, seed)[:, :6]
        moved = turned(long[:, :6], long[:, 6:], 5e-4)
        for coupling, arrange in (
            (gate, lambda x, e, s=short: (with_left(x, e), with_right(s))),
            (taps, lambda x, e, s=short: (with_left(s), with_right(x, e))),
        ):
            truth = inter_layer_alignment(*arrange(long[:, :6], 1e-12), coupling)
            found = inter_layer_alignment(*arrange(moved, sine), coupling)
            assert np.all(np.abs(found.diagonal - truth.diagonal) <= found.bounds)
            for name in ("score", "matched", "overlap"):
                _, lower, upper = getattr(found, name)
                assert lower <= getattr(truth, name).value <= upper, name


def test_float32_factors_are_computed_with_in_float64() -> None:
    a, b = random_triples(200, 40, 20, 0), random_triples(40, 200, 20, 1)

    exact, kept = inter_layer_alignment(a, b), inter_layer_alignment(a.rounded(), b.rounded())

    off = np.abs(kept.diagonal - exact.diagonal)
    assert np.all(off <= kept.bounds)
    assert np.all(off < 1e-7)
    assert not kept.ill_posed


def test_an_error_above_the_tolerance_makes_an_entry_unknown() -> None:
    errors = np.array([1e-3, 1.01e-3, 1e-4])
    u = frame(24, 3, 0)

    aligned = inter_layer_alignment(with_left(u, errors), with_right(u))

    assert np.isnan(aligned.diagonal).tolist() == [False, True, False]
    assert aligned.ill_posed


@pytest.mark.parametrize(
    ("shapes", "k"), [(((40, 30), (25, 40)), 25), (((64, 64), (64, 64)), 60), (((9, 1), (4, 9)), 1)]
)
def test_alignment_of_decomposed_matrices_encloses_that_of_an_independent_svd(
    shapes: tuple[tuple[int, int], tuple[int, int]], k: int
) -> None:
    """numpy's own vectors are off by 1e-10 at most here."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        weights = [torch.randn(*shape, generator=generator) for shape in shapes]
        found = inter_layer_alignment(*decompose(weights, vectors=k))
        reference = inter_layer_alignment(*(of_matrix(w.double().numpy(), k) for w in weights))

        known = ~np.isnan(found.diagonal)
        assert known.mean() > 0.9
        off = np.abs(found.diagonal - reference.diagonal)[known]
        assert np.all(off <= found.bounds[known] + 1e-10)
        assert found.score.value == pytest.approx(reference.score.value, abs=1e-6)
        assert found.overlap.lower - 1e-10 <= reference.overlap.value
        assert reference.overlap.value <= found.overlap.upper + 1e-10


@pytest.mark.parametrize("kind", ["zero", "diverged"])
def test_a_matrix_that_is_zero_or_not_finite_is_aligned_with_nothing(kind: str) -> None:
    weights = torch.full((6, 6), 0.0 if kind == "zero" else math.nan)

    aligned = inter_layer_alignment(*decompose([weights, torch.eye(6)], vectors=3))

    assert np.isnan(aligned.diagonal).all()
    assert aligned.ill_posed
    assert math.isnan(aligned.score.value)
    assert math.isnan(aligned.matched.value)
    assert math.isnan(aligned.overlap.value)
