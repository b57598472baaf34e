"""Alignment of two matrices: known answers, and a slow version."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from spectral import Coupling, CouplingEnd, SingularVectors, decompose
from spectral.alignment import alignments, inter_layer_alignment
from spectral.overlap import subspace_overlap
from tests.spectral.frames import (
    coupled,
    frame,
    of_matrix,
    random_triples,
    triples,
    with_left,
    with_right,
)

# ---------------------------------------------------------------- known answers


def test_a_balanced_pair_is_perfectly_aligned() -> None:
    """U of the one equals V of the next: A is the identity."""
    u = frame(24, 12, 0)

    aligned = inter_layer_alignment(with_left(u), with_right(u))

    np.testing.assert_allclose(aligned.diagonal, np.ones(12), atol=1e-14)
    assert np.all(aligned.diagonal <= 1.0)
    assert np.all(aligned.bounds < 1e-10)
    for number in (aligned.score, aligned.matched, aligned.overlap):
        assert number.value == pytest.approx(1.0, abs=1e-14)
        assert number.lower > 1.0 - 1e-10
        assert number.upper == 1.0
    assert aligned.dimension == 10
    assert not aligned.ill_posed


def test_a_balanced_pair_of_real_matrices_is_aligned_by_decompose_too() -> None:
    """W2 = V S U^T of W1 = U S V^T with singular values 12, 11, ..., 1."""
    u, v, values = frame(24, 12, 0), frame(16, 12, 1), np.arange(12.0, 0.0, -1.0)
    weights = torch.tensor((u * values) @ v.T)

    first, second = decompose([weights, weights.T.contiguous()], vectors=12)
    aligned = inter_layer_alignment(first, second)

    np.testing.assert_allclose(aligned.diagonal, np.ones(12), atol=1e-12)
    assert np.all(1.0 - aligned.diagonal <= aligned.bounds)
    assert not aligned.ill_posed


def test_signs_of_vectors_do_not_matter() -> None:
    a, b = random_triples(20, 9, 5, 0), random_triples(9, 20, 5, 1)
    signs = np.array([1.0, -1.0, -1.0, 1.0, -1.0])
    flipped = triples(a.left.numpy() * signs, a.right.numpy() * signs)

    expected, aligned = inter_layer_alignment(a, b), inter_layer_alignment(flipped, b)

    assert np.array_equal(aligned.diagonal, expected.diagonal)
    assert (aligned.score, aligned.matched, aligned.overlap) == (
        expected.score,
        expected.matched,
        expected.overlap,
    )


def test_a_swap_is_lost_on_matching_by_index_but_not_on_the_others() -> None:
    """Two vectors in the other order: the diagonal says 0, matching and overlap say 1."""
    u = frame(24, 2, 0)

    aligned = inter_layer_alignment(with_left(u), with_right(u[:, ::-1].copy()))

    np.testing.assert_allclose(aligned.diagonal, [0.0, 0.0], atol=1e-14)
    assert aligned.score.value == pytest.approx(0.0, abs=1e-14)
    assert aligned.matched.value == pytest.approx(1.0, abs=1e-14)
    assert aligned.overlap.value == pytest.approx(1.0, abs=1e-14)


def test_vectors_of_a_cluster_are_not_determined_but_their_span_is() -> None:
    """Values 2, 2, 2, 1, 1/2, ...: three equal ones, whose vectors are arbitrary."""
    u, k = frame(24, 8, 0), 8
    mixed = np.concatenate([u[:, :3] @ frame(3, 3, 1), u[:, 3:]], axis=1)
    errors = np.array([1.0] * 3 + [1e-12] * 5)
    spans = np.array([1.0] * 2 + [1e-12] * 6)
    first = triples(u, frame(12, k, 2), errors, spans)
    second = triples(frame(12, k, 3), mixed, errors, spans)

    aligned = inter_layer_alignment(first, second)

    assert np.isnan(aligned.diagonal[:3]).all()
    assert np.isnan(aligned.bounds[:3]).all()
    np.testing.assert_allclose(aligned.diagonal[3:], np.ones(5), atol=1e-14)
    assert aligned.ill_posed
    assert aligned.score.value == pytest.approx(1.0, abs=1e-14)
    assert aligned.dimension == 8
    assert aligned.overlap.value == pytest.approx(1.0, abs=1e-14)
    only_cluster = inter_layer_alignment(first, second, score=3)
    assert math.isnan(only_cluster.score.value)
    assert math.isnan(only_cluster.matched.value)
    assert only_cluster.dimension == 3
    assert only_cluster.overlap.value == pytest.approx(1.0, abs=1e-14)


def test_one_cluster_without_a_gap_leaves_nothing_to_say() -> None:
    u = frame(24, 12, 0)
    aligned = inter_layer_alignment(with_left(u, 1.0), with_right(u, 1.0))

    assert np.isnan(aligned.diagonal).all()
    assert aligned.ill_posed
    assert aligned.dimension == 0
    numbers = (aligned.score, aligned.matched, aligned.matched_chance, aligned.overlap)
    assert all(math.isnan(end) for number in numbers for end in number)
    assert math.isnan(aligned.overlap_chance)


def test_the_subspace_ends_at_the_last_gap_of_both_sides() -> None:
    u = frame(24, 12, 0)
    gaps = np.full(12, 1.0)
    gaps[[1, 4, 6]] = 1e-12
    other = np.full(12, 1.0)
    other[[4, 9]] = 1e-12
    first = triples(u, frame(12, 12, 2), 1.0, gaps)
    second = triples(frame(12, 12, 3), u, 1.0, other)

    assert inter_layer_alignment(first, second).dimension == 5


@pytest.mark.parametrize(("entries", "k", "expected"), [(100, 12, 12), (5, 12, 5), (100, 3, 3)])
def test_there_are_as_many_entries_as_asked_for_or_as_there_are_vectors(
    entries: int, k: int, expected: int
) -> None:
    u = frame(24, 12, 0)

    aligned = inter_layer_alignment(with_left(u), with_right(u[:, :k]), entries=entries)

    assert aligned.diagonal.shape == aligned.bounds.shape == (expected,)
    assert not aligned.ill_posed


def test_the_score_is_the_mean_of_the_first_ten_entries() -> None:
    a, b = random_triples(30, 20, 15, 0), random_triples(20, 30, 15, 1)
    aligned = inter_layer_alignment(a, b)

    slow = [abs(float(a.left[:, j] @ b.right[:, j])) for j in range(15)]

    np.testing.assert_allclose(aligned.diagonal, slow, atol=1e-14)
    assert aligned.score.value == pytest.approx(np.mean(slow[:10]), abs=1e-14)
    assert aligned.matched.value >= aligned.score.value
    expected = subspace_overlap(a, b, 10, "left", "right").value
    assert aligned.overlap.value == pytest.approx(expected, abs=1e-14)


# ---------------------------------------------------------------- which entries meet


def test_queries_meet_keys_with_their_left_vectors() -> None:
    query, key = random_triples(8, 32, 8, 0), random_triples(8, 32, 8, 1)
    coupling = coupled(CouplingEnd("q", "left"), CouplingEnd("k", "left"), 8)

    aligned = inter_layer_alignment(query, key, coupling)

    slow = [abs(float(query.left[:, j] @ key.left[:, j])) for j in range(8)]
    np.testing.assert_allclose(aligned.diagonal, slow, atol=1e-14)
    assert aligned.chance == pytest.approx(0.8 / math.sqrt(8), rel=0.003)


def test_a_gate_is_a_slice_of_each_vector_that_is_not_normalised_again() -> None:
    lstm, after = random_triples(64, 20, 12, 0), random_triples(30, 16, 12, 1)
    gate = coupled(CouplingEnd("a", "left", entries=(32, 48)), length=64)

    aligned = inter_layer_alignment(lstm, after, gate)

    slow = [abs(float(lstm.left[32:48, j] @ after.right[:, j])) for j in range(12)]
    np.testing.assert_allclose(aligned.diagonal, slow, atol=1e-14)
    part = lstm.left[32:48, :10].numpy().T @ after.right[:, :10].numpy()
    assert aligned.overlap.value == pytest.approx(np.sum(part**2) / 10, abs=1e-14)
    assert aligned.overlap_chance == 10 / 64


def convolution(k: int) -> tuple[SingularVectors, SingularVectors]:
    """Six channels out of the first, six channels of 3 x 2 taps into the second."""
    return random_triples(6, 20, k, 0), random_triples(9, 36, k, 1)


@pytest.mark.parametrize("tap", [(0, 0), (1, 1), (2, 0)])
def test_a_tap_of_a_convolution_picks_one_entry_of_each_channel(tap: tuple[int, int]) -> None:
    first, second = convolution(6)
    end = CouplingEnd("b", "right", reshape=(6, 3, 2), tap=tap)

    aligned = inter_layer_alignment(first, second, coupled(second=end, length=36))

    slow = []
    for j in range(6):
        folded = second.right[:, j].reshape(6, 3, 2)
        slow.append(abs(float(sum(first.left[c, j] * folded[c, *tap] for c in range(6)))))
    np.testing.assert_allclose(aligned.diagonal, slow, atol=1e-14)


def test_all_taps_are_the_mean_of_each() -> None:
    """Diagonal and overlap; the matching is of the mean over taps."""
    first, second = convolution(6)

    def at(tap: object) -> Coupling:
        end = CouplingEnd("b", "right", reshape=(6, 3, 2), tap=tap)  # type: ignore[arg-type]
        return coupled(second=end, length=36)

    each = [inter_layer_alignment(first, second, at((i, j))) for i in range(3) for j in range(2)]
    aligned = inter_layer_alignment(first, second, at("all"))

    np.testing.assert_allclose(
        aligned.diagonal, np.mean([one.diagonal for one in each], axis=0), atol=1e-14
    )
    assert aligned.overlap.value == pytest.approx(np.mean([one.overlap.value for one in each]))
    assert aligned.score.value <= aligned.matched.value
    assert aligned.matched.value <= np.mean([one.matched.value for one in each])
    assert aligned.overlap_chance == 6 / 36


def test_couplings_in_one_call_have_the_numbers_they_have_alone() -> None:
    """Heads of equal shape are stacked, whatever stands between them."""
    heads = [(random_triples(8, 32, 8, s), random_triples(8, 32, 8, 50 + s)) for s in range(3)]
    left = coupled(CouplingEnd("q", "left"), CouplingEnd("k", "left"), 8)
    others = (random_triples(24, 6, 6, 1), random_triples(6, 24, 6, 2))
    met = [(left, *heads[0]), (coupled(length=24), *others), *((left, *h) for h in heads[1:])]

    together = alignments(met)

    for (coupling, a, b), found in zip(met, together, strict=True):
        alone = inter_layer_alignment(a, b, coupling)
        np.testing.assert_allclose(found.diagonal, alone.diagonal, atol=1e-15)
        np.testing.assert_allclose(found.overlap, alone.overlap, atol=1e-14)
        assert found.chance == alone.chance


# ---------------------------------------------------------------- refusals and purity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: inter_layer_alignment(random_triples(24, 6, 4, 0), random_triples(6, 20, 4, 1)),
            "coupling 'first->second': the left vectors of 'first' (24 x 6) have 24 entries, its "
            "rows, but the right vectors of 'second' (6 x 20) have 20 entries, its columns; both "
            "must have equally many",
        ),
        (
            lambda: inter_layer_alignment(
                random_triples(24, 6, 4, 0),
                random_triples(6, 20, 4, 1),
                coupled(CouplingEnd("a", "left", entries=(10, 30)), length=24),
            ),
            "coupling 'a->b': entries (10, 30) reach beyond the 24 entries of the left vectors of "
            "'a' (24 x 6)",
        ),
        (
            lambda: inter_layer_alignment(
                decompose([torch.eye(3)], vectors=0)[0], random_triples(6, 3, 3, 1)
            ),
            "inter-layer alignment: the first decomposition (3 x 3, flag None) has no singular "
            "vectors; call decompose with vectors above 0",
        ),
        (
            lambda: inter_layer_alignment(*[random_triples(6, 6, 3, 1)] * 2, entries=0),
            "alignment: entries must be at least 1, got 0",
        ),
        (
            lambda: inter_layer_alignment(*[random_triples(6, 6, 3, 1)] * 2, score=-1),
            "alignment: score must be at least 1, got -1",
        ),
    ],
    ids=["lengths", "slice", "no vectors", "entries", "score"],
)
def test_what_cannot_be_aligned_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"coupling|alignment") as caught:
        make()

    assert str(caught.value) == message


def test_vectors_are_not_modified() -> None:
    a, b = of_matrix(np.diag([3.0, 2.0, 1.0]), 3), of_matrix(np.diag([5.0, 2.0, 1.0]), 3)
    before = [side.clone() for v in (a, b) for side in (v.left, v.right)]

    inter_layer_alignment(a, b)

    after = [side for v in (a, b) for side in (v.left, v.right)]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_the_layout_of_vectors_in_memory_does_not_change_a_bit() -> None:
    """A resumed trial's kept vectors may lie differently in memory."""
    a, b = random_triples(33, 17, 13, 0), random_triples(17, 33, 13, 1)

    def laid_out(vectors: SingularVectors) -> SingularVectors:
        wide = torch.zeros(2, *vectors.left.shape, dtype=torch.float64)
        wide[1] = vectors.left
        return replace(vectors, left=wide[1], right=vectors.right.T.contiguous().T)

    expected, aligned = inter_layer_alignment(a, b), inter_layer_alignment(*map(laid_out, (a, b)))

    assert np.array_equal(aligned.diagonal, expected.diagonal)
    assert np.array_equal(aligned.bounds, expected.bounds)
    assert (aligned.matched, aligned.overlap) == (expected.matched, expected.overlap)


@pytest.mark.gpu
def test_on_an_accelerator_the_numbers_are_the_same_but_for_rounding() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    def there(vectors: SingularVectors) -> SingularVectors:
        return replace(vectors, left=vectors.left.cuda(), right=vectors.right.cuda())

    taps = coupled(second=CouplingEnd("b", "right", reshape=(11, 3), tap="all"), length=33)
    for pair, coupling in (
        ((random_triples(33, 17, 13, 0), random_triples(17, 33, 13, 1)), None),
        ((random_triples(11, 17, 11, 0), random_triples(17, 33, 11, 1)), taps),
    ):
        expected = inter_layer_alignment(*pair, coupling)
        aligned = inter_layer_alignment(*map(there, pair), coupling)
        np.testing.assert_allclose(aligned.diagonal, expected.diagonal, atol=1e-14)
        np.testing.assert_allclose(aligned.bounds, expected.bounds, rtol=0.1)
        np.testing.assert_allclose(aligned.matched, expected.matched, atol=1e-13)
        np.testing.assert_allclose(aligned.overlap, expected.overlap, atol=1e-13)
