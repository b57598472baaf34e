"""Subspace overlap, and what errors of vectors do to inner products."""

import itertools
import math

import numpy as np
import pytest
import torch

from spectral.chance import agreement_chance, alignment_chance, matched_chance
from spectral.overlap import distances, subspace_overlap
from tests.spectral.frames import frame, of_matrix, random_triples, triples, turned


def test_equal_spans_overlap_fully_whatever_their_bases() -> None:
    u, v = frame(20, 4, 0), frame(12, 4, 1)
    mixed = u @ frame(4, 4, 2)

    overlap = subspace_overlap(triples(u, v), triples(mixed, v), 4)

    assert overlap.value == pytest.approx(1.0, abs=1e-14)
    assert overlap.upper == 1.0
    assert overlap.lower > 1.0 - 1e-10


def test_orthogonal_spans_do_not_overlap() -> None:
    basis, v = frame(20, 8, 0), frame(12, 4, 1)

    overlap = subspace_overlap(triples(basis[:, :4], v), triples(basis[:, 4:], v), 4)

    assert overlap.value == pytest.approx(0.0, abs=1e-14)
    assert 0.0 <= overlap.lower <= overlap.upper < 1e-10


def test_the_overlap_is_the_mean_squared_cosine_of_the_principal_angles() -> None:
    basis, v = frame(20, 6, 0), frame(12, 3, 1)
    angles = np.array([0.1, 0.7, 1.2])
    other = np.cos(angles) * basis[:, :3] + np.sin(angles) * basis[:, 3:]

    overlap = subspace_overlap(triples(basis[:, :3], v), triples(other, v), 3)

    assert overlap.value == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-14)


def test_either_side_can_be_compared_with_either_side() -> None:
    a, b = random_triples(8, 5, 3, 0), random_triples(6, 8, 3, 1)

    left = subspace_overlap(a, random_triples(8, 9, 3, 2), 2)
    mixed = subspace_overlap(a, b, 2, "left", "right")
    right = subspace_overlap(a, random_triples(9, 5, 3, 3), 2, "right")

    def slow(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(np.linalg.norm(x[:, :2].numpy().T @ y[:, :2].numpy()) ** 2 / 2)

    assert left.value == pytest.approx(slow(a.left, random_triples(8, 9, 3, 2).left), abs=1e-14)
    assert mixed.value == pytest.approx(slow(a.left, b.right), abs=1e-14)
    assert right.value == pytest.approx(slow(a.right, random_triples(9, 5, 3, 3).right), abs=1e-14)


@pytest.mark.parametrize("angle", [1e-9, 1e-6, 1e-3, 0.1, 1.0])
def test_the_interval_encloses_the_overlap_of_the_true_spans(angle: float) -> None:
    """Each true span is turned by a known angle in a random direction."""
    rng = np.random.default_rng(0)
    v = frame(30, 5, 9)
    for seed in range(50):
        # the first five meet at angles between 0 and 1, the others are what they are turned towards
        basis = frame(60, 20, seed)
        meet = rng.uniform(0.0, 1.0, 5)
        a = basis[:, :5]
        b = np.cos(meet) * a + np.sin(meet) * basis[:, 5:10]
        truth = np.mean(np.cos(meet) ** 2)
        ways = (basis[:, 10:15], rng.choice([-1.0, 1.0]) * basis[:, 15:])
        moved = [turned(x, way, angle) for x, way in zip((a, b), ways, strict=True)]

        bound = math.sin(angle) * (1.0 + 1e-12)
        overlap = subspace_overlap(*(triples(x, v, 1.0, bound) for x in moved), 5)

        assert overlap.lower <= truth <= overlap.upper
        assert 0.0 <= overlap.lower <= overlap.value <= overlap.upper <= 1.0


def test_an_interval_from_errors_that_are_too_small_would_not_enclose_it() -> None:
    """Twin: a span turned by 1e-3, said to be known to 1e-5."""
    basis, v = frame(60, 10, 0), frame(30, 5, 9)
    a, rest = basis[:, :5], basis[:, 5:]
    b = turned(a, rest, 0.5)
    moved = turned(a, -rest, 1e-3)

    overlap = subspace_overlap(triples(moved, v, 1.0, 1e-5), triples(b, v), 5)

    assert not overlap.lower <= math.cos(0.5) ** 2 <= overlap.upper


def test_columns_that_are_not_orthonormal_widen_the_interval() -> None:
    """Their deviation is measured, whatever the errors say."""
    u, v = frame(20, 4, 0), frame(12, 4, 1)
    stretched = u * np.array([1.0, 1.0 + 1e-4, 1.0, 1.0 - 1e-4])
    other = triples(turned(frame(20, 8, 0)[:, :4], frame(20, 8, 0)[:, 4:], 0.5), v)

    exact = subspace_overlap(triples(u, v), other, 4)
    loose = subspace_overlap(triples(stretched, v), other, 4)

    assert loose.upper - loose.lower > 1e-4 > 1e-9 > exact.upper - exact.lower
    assert loose.lower <= exact.value <= loose.upper


def test_undetermined_spans_leave_everything_open() -> None:
    a, b = (triples(frame(20, 4, s), frame(12, 4, s), 1.0) for s in (0, 1))

    overlap = subspace_overlap(a, b, 3)

    assert (overlap.lower, overlap.upper) == (0.0, 1.0)


def test_float32_vectors_are_compared_in_float64() -> None:
    a, b = random_triples(40, 30, 6, 0), random_triples(40, 30, 6, 1)

    exact = subspace_overlap(a, b, 6)
    kept = subspace_overlap(a.rounded(), b, 6)

    assert kept.lower <= exact.value <= kept.upper
    assert abs(kept.value - exact.value) < 1e-7
    assert kept.upper - kept.lower < 1e-5


@pytest.mark.parametrize(
    ("k", "sizes", "message"),
    [
        (
            7,
            ((20, 12), (20, 6)),
            "subspace overlap of the 7 leading vectors: the second matrix (20 x 6, rank at most 6) "
            "has 6 of them; k must be between 1 and 6",
        ),
        (
            9,
            ((20, 12), (20, 6)),
            "subspace overlap of the 9 leading vectors: the first matrix (20 x 12, rank at most "
            "12) has 8 of them; k must be between 1 and 6",
        ),
        (
            0,
            ((20, 12), (20, 6)),
            "subspace overlap of the 0 leading vectors: the first matrix (20 x 12, rank at most "
            "12) has 8 of them; k must be between 1 and 6",
        ),
        (
            2,
            ((20, 12), (19, 12)),
            "subspace overlap needs vectors of equal length: the left vectors of the first matrix "
            "(20 x 12) have 20 entries, the left vectors of the second (19 x 12) have 19",
        ),
    ],
)
def test_subspaces_that_cannot_be_compared_are_refused(
    k: int, sizes: tuple[tuple[int, int], tuple[int, int]], message: str
) -> None:
    a, b = (random_triples(m, n, min(n, 8), 0) for m, n in sizes)

    with pytest.raises(ValueError, match=r"^subspace overlap") as caught:
        subspace_overlap(a, b, k)

    assert str(caught.value) == message


def test_distances_are_chords() -> None:
    """Twice the sine of half the angle; the square root of two at a right angle."""
    angles = np.linspace(0.0, math.pi / 2, 1001)

    chords = distances(np.sin(angles))

    # near a right angle its sine hardly says what the angle is
    np.testing.assert_allclose(chords[:950], 2 * np.sin(angles / 2)[:950], rtol=1e-13)
    assert chords[-1] == pytest.approx(math.sqrt(2.0))
    assert distances(np.array([1e-12]))[0] == pytest.approx(1e-12, rel=1e-14)


def test_random_subspaces_overlap_by_their_dimension_over_the_length() -> None:
    """k / d; mean of 200 pairs, standard error 0.6 %."""
    overlaps = [
        subspace_overlap(random_triples(40, 20, 8, s), random_triples(40, 20, 8, 1000 + s), 8).value
        for s in range(200)
    ]

    assert np.mean(overlaps) == pytest.approx(8 / 40, rel=0.025)


@pytest.mark.parametrize(
    ("length", "published"), [(32, 0.141), (128, 0.0705), (512, 0.0353), (4608, 0.0118)]
)
def test_chance_levels_of_one_entry_are_the_known_ones(length: int, published: float) -> None:
    assert alignment_chance(length) == pytest.approx(published, abs=5e-5)


@pytest.mark.parametrize(
    ("shape", "published"), [((512, 4608), 4.1e-4), ((768, 768), 8.3e-4), ((384, 128), 2.9e-3)]
)
def test_chance_levels_of_agreement_are_the_known_ones(
    shape: tuple[int, int], published: float
) -> None:
    assert agreement_chance(shape) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("length", "taps"), [(3, 1), (24, 1), (24, 4), (1000, 1)])
def test_the_matched_chance_level_is_what_trying_all_permutations_gives(
    length: int, taps: int
) -> None:
    """Three vectors, 1,500 draws of an independent generator, both frames random."""
    best = []
    for seed in range(1500 // taps):
        rng = np.random.default_rng([seed, length])
        a = np.linalg.qr(rng.standard_normal((length, 3)))[0]
        others = [np.linalg.qr(rng.standard_normal((length, 3)))[0] for _ in range(taps)]
        similarity = np.mean([np.abs(a.T @ b) for b in others], axis=0)
        orders = itertools.permutations(range(3))
        best.append(max(np.mean([similarity[i, j] for i, j in enumerate(o)]) for o in orders))
    error = float(np.std(best)) / math.sqrt(len(best))

    chance = matched_chance(3, length, taps)

    assert abs(chance.value - np.mean(best)) < 4 * error + (chance.upper - chance.value)
    assert chance.value > alignment_chance(length)
    assert (chance.upper - chance.lower) / chance.value < 0.05


def test_simulating_chance_draws_from_no_global_generator() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state()

    first = matched_chance.__wrapped__(4, 37)

    assert first == matched_chance.__wrapped__(4, 37)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_nothing_of_the_caller_is_modified() -> None:
    vectors = of_matrix(np.diag([3.0, 2.0, 1.0]), 3)
    before = vectors.left.clone(), vectors.right.clone()

    subspace_overlap(vectors, vectors, 2)

    assert torch.equal(vectors.left, before[0])
    assert torch.equal(vectors.right, before[1])
