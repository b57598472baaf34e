"""Agreement of a matrix with itself at another time: known answers and intervals that hold."""

import math

import numpy as np
import pytest
import torch

from spectral import SingularVectors, decompose
from spectral.agreement import (
    Agreement,
    Compared,
    agreement_chance_row,
    agreement_rows,
    singular_vector_agreement,
    singular_vector_agreements,
)
from spectral.metrics_vectors import AGREEMENT_METRICS, AGREEMENT_QUANTITIES
from spectral.overlap import subspace_overlap
from tests.spectral.frames import frame, random_triples, triples, turned

VARIANTS = ("initial", "previous", "final")


def test_a_matrix_agrees_with_itself() -> None:
    vectors = random_triples(30, 20, 15, 0)

    agreed = singular_vector_agreement(vectors, vectors)

    np.testing.assert_allclose(agreed.diagonal, np.ones(15), atol=1e-14)
    assert np.all(agreed.diagonal <= 1.0)
    assert agreed.dimension == 10
    for number in (agreed.score, agreed.left_overlap, agreed.right_overlap):
        assert number.value == pytest.approx(1.0, abs=1e-14)
        assert (number.lower > 1.0 - 1e-10, number.upper) == (True, 1.0)
    assert not agreed.ill_posed


def test_a_decomposed_matrix_agrees_with_itself_and_with_a_multiple() -> None:
    weights = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))

    (one,), (other,) = decompose([weights], vectors=20), decompose([-4.0 * weights], vectors=20)
    agreed = singular_vector_agreement(one.vectors, other.vectors)  # type: ignore[arg-type]

    np.testing.assert_allclose(agreed.diagonal, np.ones(20), atol=1e-10)
    assert np.all(1.0 - agreed.diagonal <= agreed.bounds)


def test_it_is_the_inner_product_of_rank_one_terms() -> None:
    """|<u_j v_j^T, u*_j v*_j^T>|, entry by entry of the two matrices."""
    a, b = random_triples(9, 7, 6, 0), random_triples(9, 7, 6, 1)

    agreed = singular_vector_agreement(a, b)

    for j in range(6):
        terms = [torch.outer(x.left[:, j], x.right[:, j]) for x in (a, b)]
        slow = abs(float(torch.sum(terms[0] * terms[1])))
        assert agreed.diagonal[j] == pytest.approx(slow, abs=1e-15)
    assert agreed.score.value == pytest.approx(float(np.mean(agreed.diagonal)), abs=1e-15)
    for side, overlap in (("left", agreed.left_overlap), ("right", agreed.right_overlap)):
        expected = subspace_overlap(a, b, 6, side).value  # type: ignore[arg-type]
        assert overlap.value == pytest.approx(expected, abs=1e-14)


def test_it_is_symmetric_and_signs_do_not_matter() -> None:
    a, b = random_triples(9, 7, 3, 0), random_triples(9, 7, 3, 1)
    signs = np.array([-1.0, 1.0, -1.0])
    flipped = triples(b.left.numpy() * signs, b.right.numpy() * signs)

    expected = singular_vector_agreement(a, b)

    assert np.array_equal(singular_vector_agreement(a, flipped).diagonal, expected.diagonal)
    np.testing.assert_allclose(
        singular_vector_agreement(b, a).diagonal, expected.diagonal, atol=1e-15
    )


def test_swapped_vectors_lower_the_agreement_but_not_the_overlap() -> None:
    a = random_triples(9, 7, 2, 0)
    swapped = triples(a.left.numpy()[:, ::-1].copy(), a.right.numpy()[:, ::-1].copy())

    agreed = singular_vector_agreement(a, swapped)

    assert agreed.score.value == pytest.approx(0.0, abs=1e-14)
    assert agreed.left_overlap.value == pytest.approx(1.0, abs=1e-14)
    assert agreed.right_overlap.value == pytest.approx(1.0, abs=1e-14)


def test_in_a_cluster_only_the_subspaces_are_compared() -> None:
    """Three equal singular values: any rotation of their vectors is the same matrix."""
    left, right, rotation = frame(20, 3, 0), frame(14, 3, 1), frame(3, 3, 2)
    spans = np.array([1.0, 1.0, 1e-12])
    a = triples(left, right, 1.0, spans)
    b = triples(left @ rotation, right @ rotation, 1.0, spans)

    agreed = singular_vector_agreement(a, b)

    assert np.isnan(agreed.diagonal).all()
    assert np.isnan(agreed.bounds).all()
    assert math.isnan(agreed.score.value)
    assert agreed.ill_posed
    assert agreed.dimension == 3
    assert agreed.left_overlap.value == pytest.approx(1.0, abs=1e-14)
    assert agreed.right_overlap.value == pytest.approx(1.0, abs=1e-14)


def test_the_identity_matrix_has_no_vectors_of_its_own_but_a_space() -> None:
    (eye,) = decompose([torch.eye(6)], vectors=6)

    agreed = singular_vector_agreement(eye.vectors, eye.vectors)  # type: ignore[arg-type]

    assert agreed.ill_posed
    assert np.isnan(agreed.diagonal).all()
    assert agreed.dimension == 6
    assert agreed.left_overlap.value == pytest.approx(1.0, abs=1e-12)


def test_random_matrices_agree_by_chance() -> None:
    """(2 / pi) / sqrt(m n); 2,000 entries, standard error 3 %."""
    m, n = 40, 30
    pairs = [(random_triples(m, n, 10, s), random_triples(m, n, 10, 900 + s)) for s in range(200)]

    agreed = singular_vector_agreements(pairs)

    mean = np.mean([a.score.value for a in agreed])
    assert mean == pytest.approx(agreed[0].chance, rel=0.1)
    assert agreed[0].chance == pytest.approx(2 / math.pi / math.sqrt(m * n))
    assert np.mean([a.left_overlap.value for a in agreed]) == pytest.approx(10 / m, rel=0.03)
    assert np.mean([a.right_overlap.value for a in agreed]) == pytest.approx(10 / n, rel=0.03)
    for one in agreed:
        assert np.all((one.diagonal >= 0.0) & (one.diagonal <= 1.0))
        for value, lower, upper in (one.score, one.left_overlap, one.right_overlap):
            assert 0.0 <= lower <= value <= upper <= 1.0


def moved(seed: int, angle: float, claimed: float) -> tuple[Agreement, Agreement]:
    """Agreement of true triples, and of triples whose four vectors are turned by `angle`."""
    rng, k = np.random.default_rng(seed), 5
    true, found = [], []
    cosines = [rng.uniform(0.2, 1.0, k) for _ in range(2)]
    bases = [frame(length, 3 * k, 10 * seed + length) for length in (40, 30)]
    for now in (True, False):
        sides = [
            b[:, :k] if now else c * b[:, :k] + np.sqrt(1 - c**2) * b[:, k : 2 * k]
            for b, c in zip(bases, cosines, strict=True)
        ]
        # both away from each other, so that errors add up
        towards = [-b[:, k : 2 * k] if now else b[:, 2 * k :] for b in bases]
        turned_sides = [turned(s, t, angle) for s, t in zip(sides, towards, strict=True)]
        true.append(triples(sides[0], sides[1]))
        found.append(triples(turned_sides[0], turned_sides[1], claimed))
    return singular_vector_agreement(*true), singular_vector_agreement(*found)


@pytest.mark.parametrize("angle", [1e-12, 1e-8, 1e-5, 0.9e-3])
def test_intervals_enclose_the_agreement_of_the_true_vectors(angle: float) -> None:
    for seed in range(60):
        truth, found = moved(seed, angle, math.sin(angle) * (1 + 1e-12))
        off = np.abs(found.diagonal - truth.diagonal)
        assert np.all(off <= found.bounds)
        assert np.all(found.bounds < 5 * angle + 1e-10)
        for name in ("score", "left_overlap", "right_overlap"):
            _, lower, upper = getattr(found, name)
            assert lower <= getattr(truth, name).value <= upper, name


def test_errors_that_claim_too_little_would_be_noticed() -> None:
    """Twin: turned by 1e-4, said to be known to 1e-6."""
    truth, found = moved(0, 1e-4, 1e-6)

    off = np.abs(found.diagonal - truth.diagonal)
    assert np.any(off > found.bounds)


def test_vectors_kept_in_float32_lose_seven_digits_and_say_so() -> None:
    a, b = random_triples(200, 40, 20, 0), random_triples(200, 40, 20, 1)
    exact = singular_vector_agreement(a, b)

    for kept in (
        singular_vector_agreement(a.rounded(), b),
        singular_vector_agreement(a, b.rounded()),
        singular_vector_agreement(a.rounded(), b.rounded()),
    ):
        off = np.abs(kept.diagonal - exact.diagonal)
        assert np.all(off <= kept.bounds)
        assert np.all(off < 1e-7)
        assert np.all(kept.bounds < 1e-6)
        assert not kept.ill_posed


def test_pairs_in_one_call_have_the_numbers_they_have_alone() -> None:
    shapes = [(9, 7, 3), (12, 30, 9), (9, 7, 3), (9, 7, 2), (12, 30, 9)]
    pairs = [
        (random_triples(*shape, s), random_triples(*shape, 40 + s))
        for s, shape in enumerate(shapes)
    ]

    for pair, found in zip(pairs, singular_vector_agreements(pairs), strict=True):
        alone = singular_vector_agreement(*pair)
        np.testing.assert_allclose(found.diagonal, alone.diagonal, atol=1e-15)
        np.testing.assert_allclose(found.left_overlap, alone.left_overlap, atol=1e-14)
        assert found.chance == alone.chance


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (
            (9, 7),
            (7, 9),
            {},
            "agreement needs two matrices of one shape, got 9 x 7 and 7 x 9",
        ),
        ((9, 7), (9, 7), {"entries": 0}, "agreement: entries must be at least 1, got 0"),
        ((9, 7), (9, 7), {"score": 0}, "agreement: score must be at least 1, got 0"),
    ],
)
def test_what_cannot_agree_is_refused(
    a: tuple[int, int], b: tuple[int, int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^agreement") as caught:
        singular_vector_agreement(random_triples(*a, 3, 0), random_triples(*b, 3, 1), **options)

    assert str(caught.value) == message


# ---------------------------------------------------------------- rows


def test_the_rows_of_a_view_are_its_score_both_overlaps_and_the_diagonal() -> None:
    a, b = random_triples(9, 7, 3, 0), random_triples(9, 7, 3, 1)
    agreed = singular_vector_agreement(a, b)

    scalars, [diagonal] = agreement_rows("initial", [Compared("w", a, b, "gram64", None)])

    assert [
        (r.subject, r.metric, r.value, r.lower, r.upper, r.method, r.flag) for r in scalars
    ] == [
        ("w", "agreement/initial", *agreed.score, "gram64", None),
        ("w", "subspace_overlap/initial_left", *agreed.left_overlap, "gram64", None),
        ("w", "subspace_overlap/initial_right", *agreed.right_overlap, "gram64", None),
        ("w", "subspace_overlap/initial_dimension", 3.0, 3.0, 3.0, "gram64", None),
    ]
    assert (diagonal.subject, diagonal.quantity) == ("w", "agreement/initial")
    assert (diagonal.method, diagonal.flag) == ("gram64", None)
    assert np.array_equal(diagonal.values, agreed.diagonal)
    assert diagonal.bounds.dtype == np.float32
    assert np.all(diagonal.bounds >= agreed.bounds)


def test_rows_of_undetermined_vectors_are_null_and_flagged() -> None:
    a = triples(frame(20, 3, 0), frame(14, 3, 1), 1.0, np.array([1.0, 1.0, 1e-12]))

    scalars, [diagonal] = agreement_rows("final", [Compared("w", a, a, "gram64", None)])

    score, left, right, dimension = scalars
    assert math.isnan(score.value)
    assert (score.lower, score.upper, score.flag) == (None, None, "ill_posed")
    assert [row.flag for row in (left, right, dimension)] == [None, None, None]
    assert np.isnan(diagonal.values).all()
    assert diagonal.flag == "ill_posed"


@pytest.mark.parametrize("flag", ["zero", "diverged"])
@pytest.mark.parametrize("known", ["one", "neither", "undetermined"])
def test_a_matrix_without_vectors_has_null_rows_with_its_flag(flag: str, known: str) -> None:
    a = random_triples(9, 7, 3, 0)
    other: SingularVectors | None = None
    if known == "undetermined":
        other = SingularVectors.unknown(torch.zeros(9, 7), 3)

    given = None if known == "neither" else a
    compared = Compared("w", given, other, "none", flag)
    scalars, [diagonal] = agreement_rows("previous", [compared])

    assert all(math.isnan(row.value) for row in scalars[:3])
    assert scalars[3].value == 0.0
    assert {row.flag for row in scalars} == {diagonal.flag} == {flag}
    assert len(diagonal.values) == len(diagonal.bounds) == (0 if known == "neither" else 3)
    assert np.isnan(diagonal.values).all()


def test_rows_of_several_views_come_in_their_order() -> None:
    a, b = random_triples(9, 7, 3, 0), random_triples(12, 5, 4, 1)

    scalars, spectra = agreement_rows(
        "previous",
        [
            Compared("a", a, a, "gram64", None),
            Compared("gone", None, None, "none", "zero"),
            Compared("b", b, b, "svd64", "collapsed"),
        ],
    )

    assert [row.subject for row in spectra] == ["a", "gone", "b"]
    assert [row.subject for row in scalars] == ["a"] * 4 + ["gone"] * 4 + ["b"] * 4
    assert [row.flag for row in spectra] == [None, "zero", "collapsed"]
    assert len(spectra[2].values) == 4


def test_the_chance_level_is_a_row_of_its_own() -> None:
    row = agreement_chance_row("w", (40, 30), "gram64", None)

    assert row[:2] == ("w", "agreement/chance")
    assert row.value == row.lower == row.upper == pytest.approx(2 / math.pi / math.sqrt(1200))


def test_every_row_is_defined_and_every_definition_has_a_row() -> None:
    a = random_triples(9, 7, 3, 0)
    compared = [Compared("w", a, a, "gram64", None)]
    rows = [agreement_rows(variant, compared) for variant in VARIANTS]
    metrics = [row.metric for scalars, _ in rows for row in scalars]

    assert [*metrics, "agreement/chance"] == [metric.name for metric in AGREEMENT_METRICS]
    assert [row.quantity for _, [row] in rows] == [metric.name for metric in AGREEMENT_QUANTITIES]
