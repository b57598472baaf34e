"""The weight update since the last snapshot: its spectrum, and its share in leading directions."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral import ScalarRow, SingularVectors, decompose
from spectral.update import update_rows, update_share, weight_update

NAMES = [
    "update_norm/frobenius",
    "update_norm/spectral",
    "update_effective_rank",
    "update_effective_rank/normalised",
    "update_stable_rank",
    "update_share/top_10",
    "update_share/top_10_chance",
]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def vectors_of(matrix: Tensor, k: int = 10, error: float = 1e-12) -> SingularVectors:
    """The k leading triples of NumPy's SVD in float64."""
    u, s, vh = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    k = min(k, len(s))
    errors = np.full(k, error)
    left, right = torch.from_numpy(u[:, :k].copy()), torch.from_numpy(vh[:k].T.copy())
    return SingularVectors(s[:k], left, right, errors, errors, errors, errors)


def rows_of(delta: Tensor, vectors: SingularVectors | None) -> dict[str, ScalarRow]:
    (decomposition,) = decompose([delta], vectors=0)
    [(scalars, _)] = update_rows(["w"], [vectors], [decomposition], [delta])
    assert [row.metric for row in scalars] == NAMES
    assert {row.subject for row in scalars} == {"w"}
    return {row.metric: row for row in scalars}


def share(delta: Tensor, vectors: SingularVectors | None) -> tuple[float, float, float]:
    row = rows_of(delta, vectors)["update_share/top_10"]
    assert row.lower is not None
    assert row.upper is not None
    return row.value, row.lower, row.upper


def test_an_update_is_the_difference_in_float64() -> None:
    """0.1 and 0.3 as float32 numbers, subtracted without rounding."""
    now, before = torch.full((2, 3), 0.1), torch.full((2, 3), 0.3)
    delta = weight_update(now, before)
    exact = Fraction(float(now[0, 0])) - Fraction(float(before[0, 0]))
    assert delta.dtype == torch.float64
    assert Fraction(float(delta[0, 0])) == exact
    # twin: float32 rounds
    assert Fraction(float((now - before)[0, 0])) != exact


def test_matrices_of_different_shapes_have_no_difference() -> None:
    with pytest.raises(ValueError, match=r"^an update is the difference of two matrices of one"):
        weight_update(torch.zeros(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize("shape", [(12, 12), (30, 12), (12, 30), (1, 9), (3, 3)])
def test_the_rows_are_those_of_numpys_svd_of_the_difference(shape: tuple[int, int]) -> None:
    """Values to 1e-9, each inside its interval; the share from the products written out."""
    before = random(*shape).float()
    now = before + 1e-3 * random(*shape, seed=1).float()
    delta = weight_update(now, before)
    vectors = vectors_of(before)
    (decomposition,) = decompose([delta], vectors=0)

    [(scalars, spectra)] = update_rows(["layer"], [vectors], [decomposition], [delta])

    sigma = np.linalg.svd(now.double().numpy() - before.double().numpy(), compute_uv=False)
    p = sigma / sigma.sum()
    erank = math.exp(-(p * np.log(p)).sum())
    k = min(10, *shape)
    inside = np.linalg.norm(vectors.left.numpy().T @ delta.numpy() @ vectors.right.numpy()) ** 2
    expected = [
        math.sqrt((sigma**2).sum()),
        sigma[0],
        erank,
        erank / min(shape),
        (sigma**2).sum() / sigma[0] ** 2,
        inside / (sigma**2).sum(),
        k * k / (shape[0] * shape[1]),
    ]
    assert [row.metric for row in scalars] == NAMES
    for row, number in zip(scalars, expected, strict=True):
        assert row.value == pytest.approx(number, rel=1e-9)
        assert row.flag is None
        assert row.lower is not None
        assert row.upper is not None
        assert row.lower <= row.value <= row.upper
        assert row.lower * (1 - 1e-12) <= number <= row.upper * (1 + 1e-12)
        assert row.method == decomposition.method
    (row,) = spectra
    assert (row.subject, row.quantity, row.flag) == ("layer", "update/singular_values", None)
    assert (np.abs(row.values - sigma) <= row.bounds + 1e-15 * sigma[0]).all()


def test_the_interval_holds_the_exact_difference_where_float64_rounds_it() -> None:
    """1 - 2^-60 is 1 in float64: the norm of the true difference is inside, exactly."""
    now, before = torch.ones(1, 1), torch.full((1, 1), 2.0**-60)
    delta = weight_update(now, before)
    assert float(delta[0, 0]) == 1.0
    exact = Fraction(1) - Fraction(1, 2**60)
    (decomposition,) = decompose([delta], vectors=0)
    # the smallest interval a solver could state: only the widening can make it hold
    sharp = replace(decomposition, unit_bounds=np.zeros(1), unit_frobenius_bound=0.0)

    [(scalars, [spectrum])] = update_rows(["w"], [None], [sharp], [delta])

    for row in scalars[:2]:
        assert row.lower is not None
        assert Fraction(row.lower) <= exact <= Fraction(row.upper or 0.0)
    assert abs(Fraction(float(spectrum.values[0])) - exact) <= Fraction(float(spectrum.bounds[0]))
    assert sharp.bounds[0] == 0.0  # twin: without it, the exact value would be outside


@pytest.mark.parametrize("shape", [(40, 40), (25, 60), (60, 25)])
def test_an_update_in_the_leading_directions_has_share_one(shape: tuple[int, int]) -> None:
    vectors = vectors_of(random(*shape))
    delta = vectors.left @ random(10, 10, seed=1) @ vectors.right.mT
    value, lower, upper = share(delta, vectors)
    assert value == pytest.approx(1.0, abs=1e-12)
    assert lower > 1.0 - 1e-10
    assert upper == 1.0


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_an_update_orthogonal_to_the_leading_directions_has_share_zero(side: str) -> None:
    """Orthogonal to either side is enough: U^T dW V is zero."""
    vectors = vectors_of(random(40, 30))
    delta = random(40, 30, seed=1)
    if side != "right":
        delta = delta - vectors.left @ (vectors.left.mT @ delta)
    if side != "left":
        delta = delta - (delta @ vectors.right) @ vectors.right.mT
    value, lower, upper = share(delta, vectors)
    assert value < 1e-28
    assert lower == 0.0
    assert upper < 1e-20


def test_the_share_of_a_mixture_is_its_squared_weight() -> None:
    """3 parts inside and 4 outside, of one unit each: 9 / 25."""
    vectors = vectors_of(random(20, 30))
    u, v = vectors.left, vectors.right
    outside = random(20, 30, seed=1)
    outside = outside - u @ (u.mT @ outside)
    inside = u @ random(10, 10, seed=2) @ v.mT
    delta = 3 * inside / inside.norm() + 4 * outside / outside.norm()
    value, lower, upper = share(delta, vectors)
    assert value == pytest.approx(9 / 25, abs=1e-13)
    assert lower < 9 / 25 < upper
    assert upper - lower < 1e-10


def test_updates_without_a_direction_have_the_share_of_chance_on_average() -> None:
    """400 Gaussian updates: the mean is within four of its own standard errors of k^2 / (m n)."""
    vectors = vectors_of(random(24, 40))
    deltas = [random(24, 40, seed=100 + i) for i in range(400)]
    shares, chances = [], set()
    for delta, d in zip(deltas, decompose(deltas, vectors=0), strict=True):
        found, chance = update_share(vectors, d, delta)
        shares.append(found.value)
        chances.add(chance.value)
    assert chances == {100 / 960}
    error = np.std(shares) / math.sqrt(len(shares))
    assert abs(np.mean(shares) - 100 / 960) < 4 * error
    # twin: it would notice chance levels that are 5 % off
    assert 4 * error < 0.05 * 100 / 960


@pytest.mark.parametrize("scale", [2.0**-120, 2.0**90])
def test_the_share_does_not_depend_on_the_scale(scale: float) -> None:
    vectors = vectors_of(random(20, 30))
    delta = random(20, 30, seed=1)
    assert share(delta * scale, vectors) == share(delta, vectors)


def turned(vectors: SingularVectors, angle: float) -> SingularVectors:
    """The span of the left vectors turned by `angle`: the last one, out of the span."""
    left = vectors.left.clone()
    outside = random(len(left), 1, seed=9)
    outside = outside - left @ (left.mT @ outside)
    outside = outside / outside.norm()
    left[:, -1:] = math.cos(angle) * left[:, -1:] + math.sin(angle) * outside
    return replace(vectors, left=left)


def test_the_interval_allows_for_what_is_not_known_of_the_directions() -> None:
    """Spans turned by 5e-4, and saying so: the true share is inside. Saying less, it is not."""
    vectors = vectors_of(random(20, 30), error=5e-4)
    for seed in range(20):
        delta = random(20, 30, seed=seed)
        true = share(delta, vectors)[0]
        _, lower, upper = share(delta, turned(vectors, 5e-4))
        assert lower <= true <= upper
    sure = replace(turned(vectors, 5e-4), left_span_errors=np.full(10, 1e-12))
    sure = replace(sure, right_span_errors=np.full(10, 1e-12))
    _, lower, upper = share(delta, sure)
    assert not lower <= true <= upper


def test_vectors_kept_in_float32_say_what_that_costs() -> None:
    vectors = vectors_of(random(50, 40))
    delta = random(50, 40, seed=1)
    true, *_ = share(delta, vectors)
    value, lower, upper = share(delta, vectors.rounded())
    assert value == pytest.approx(true, abs=1e-6)
    assert lower <= true <= upper
    assert upper - lower < 1e-5


def test_a_cluster_across_the_tenth_place_makes_the_subspace_smaller() -> None:
    """The first six directions are determined as a span, seven to ten are not: k = 6."""
    matrix, delta = random(20, 30), random(20, 30, seed=1)
    errors = np.array([1e-12] * 6 + [0.3] * 4)
    cluster = replace(vectors_of(matrix), left_span_errors=errors)

    rows = rows_of(delta, cluster)

    assert rows["update_share/top_10_chance"].value == 36 / 600
    assert rows["update_share/top_10"].value == share(delta, vectors_of(matrix, k=6))[0]
    assert rows["update_share/top_10"].flag is None
    # a single index may be undetermined inside a span that is
    inner = np.array([1e-12, 0.9, 0.9] + [1e-12] * 7)
    assert share(delta, replace(vectors_of(matrix), right_span_errors=inner)) == share(
        delta, vectors_of(matrix)
    )


@pytest.mark.parametrize("vectors", ["none", "undetermined"])
def test_without_determined_directions_there_is_no_share(vectors: str) -> None:
    matrix, delta = random(20, 30), random(20, 30, seed=1)
    given = None if vectors == "none" else vectors_of(matrix, error=0.5)
    rows = rows_of(delta, given)
    for name in ("update_share/top_10", "update_share/top_10_chance"):
        row = rows[name]
        assert math.isnan(row.value)
        assert (row.lower, row.upper, row.flag) == (None, None, "ill_posed")
    assert rows["update_norm/frobenius"].flag is None


def test_all_directions_of_a_small_matrix_are_known_whatever_their_gaps() -> None:
    """Ten vectors of a 4 x 4 matrix are all there are: every update lies in their span."""
    matrix = torch.eye(4, dtype=torch.float64)
    value, lower, upper = share(random(4, 4, seed=1), vectors_of(matrix, error=1.0))
    assert (value, upper) == (pytest.approx(1.0, abs=1e-14), 1.0)
    assert lower > 1 - 1e-11


def test_weights_that_did_not_change_have_no_share() -> None:
    weights = random(12, 30).float()
    rows = rows_of(weight_update(weights, weights), vectors_of(weights))
    assert {row.flag for row in rows.values()} == {"zero"}
    for name in NAMES[:5]:
        assert (rows[name].value, rows[name].lower, rows[name].upper) == (0.0, 0.0, 0.0)
    assert math.isnan(rows["update_share/top_10"].value)
    assert rows["update_share/top_10"].lower is None
    assert rows["update_share/top_10_chance"].value == 100 / 360


def test_an_update_that_is_not_finite_is_a_result() -> None:
    weights = random(12, 30).float()
    now = weights.clone()
    now[0, 0] = math.inf
    delta = weight_update(now, weights)
    rows = rows_of(delta, vectors_of(weights))
    assert {row.flag for row in rows.values()} == {"diverged"}
    assert all(math.isnan(rows[name].value) for name in NAMES[:6])
    [(_, [spectrum])] = update_rows(["w"], [None], decompose([delta], vectors=0), [delta])
    assert np.isnan(spectrum.values).all()
    assert spectrum.flag == "diverged"


def test_only_the_effective_rank_of_an_update_is_estimated() -> None:
    """Above R = 2048: norms, stable rank and share do not rest on sums over all singular values."""
    delta = random(20, 30)
    (d,) = decompose([delta], vectors=0)
    estimate = replace(d, flag="estimated")
    [(scalars, _)] = update_rows(["w"], [vectors_of(delta)], [estimate], [delta])
    estimated = [row.metric for row in scalars if row.flag == "estimated"]
    assert estimated == ["update_effective_rank", "update_effective_rank/normalised"]
    assert {row.flag for row in scalars} == {"estimated", None}


def test_many_updates_at_once_are_those_one_by_one() -> None:
    """To the bit, of different shapes, one of them zero."""
    deltas = [random(12, 12), random(12, 30, seed=1), torch.zeros(12, 12), random(12, 12, seed=2)]
    vectors = [vectors_of(random(12, 12, seed=3)), None, None, vectors_of(random(12, 12, seed=4))]
    found = decompose(deltas, vectors=0)
    deltas = [delta.double() for delta in deltas]
    together = update_rows(list("abcd"), vectors, found, deltas)
    for i, name in enumerate("abcd"):
        [(scalars, [spectrum])] = update_rows([name], [vectors[i]], [found[i]], [deltas[i]])
        expected, (other,) = together[i]
        assert repr(scalars) == repr(expected)
        assert spectrum.values.tobytes() == other.values.tobytes()
        assert spectrum.bounds.tobytes() == other.bounds.tobytes()


def test_matrices_of_different_shapes_are_refused() -> None:
    delta = random(12, 30)
    with pytest.raises(ValueError, match="update is") as caught:
        update_rows(["w"], [vectors_of(random(30, 12))], decompose([delta], vectors=0), [delta])
    assert str(caught.value) == (
        "the update is (12, 30), its decomposition of (12, 30) and the vectors of (30, 12)"
    )
