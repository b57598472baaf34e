"""Alignment of two matrices: known answers, a slow version, chance, and intervals that hold."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from spectral import Coupling, CouplingEnd, SingularVectors, decompose
from spectral.alignment import Alignment, alignments, inter_layer_alignment
from spectral.overlap import subspace_overlap
from tests.spectral.frames import Array, frame, of_matrix, random_triples, triples, turned


def coupled(
    first: CouplingEnd | None = None, second: CouplingEnd | None = None, length: int = 1
) -> Coupling:
    ends = first or CouplingEnd("a", "left"), second or CouplingEnd("b", "right")
    return Coupling(*ends, length)


def with_left(columns: Array, error: float | Array = 1e-12, n: int = 12) -> SingularVectors:
    return triples(columns, frame(n, columns.shape[1], 77), error)


def with_right(columns: Array, error: float | Array = 1e-12, m: int = 12) -> SingularVectors:
    return triples(frame(m, columns.shape[1], 78), columns, error)


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
            "inter-layer alignment needs singular vectors, but the first decomposition (3 x 3, "
            "flag None) has none; call decompose with vectors above 0",
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
