"""Leading singular triples of matrices too large to decompose.

The functions work at any size: truth is NumPy's float64 SVD of matrices of a few hundred rows, and
algebra where the matrix is large. Shape legend: m x n the matrix, R = min(m, n).
"""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral.subspace import Leading, decompose_large, leading_triples
from tests.spectral.matrix_zoo import with_spectrum

K = 8
FAMILIES = ("gaussian", "1/i", "1/sqrt(i)", "1/i^2", "geometric", "rank 10", "rank 10 + tail")


def spectrum(family: str, r: int) -> np.ndarray:
    index = np.arange(1, r + 1)
    spectra = {
        "1/i": 1.0 / index,
        "1/sqrt(i)": index**-0.5,
        "1/i^2": 1.0 / index**2,
        "geometric": np.geomspace(1.0, 1e-6, r),
        "rank 10": np.where(index <= 10, 3.0 - index / 5, 0.0),
        "rank 10 + tail": np.where(index <= 10, 3.0 - index / 5, 0.01),
    }
    return spectra[family]


def sample(family: str, m: int, n: int, seed: int) -> Tensor:
    generator = np.random.default_rng([seed, m, n])
    if family == "gaussian":
        return torch.tensor(generator.normal(size=(m, n)))
    return torch.tensor(with_spectrum(generator, m, n, spectrum(family, min(m, n))))


class Case(NamedTuple):
    matrix: Tensor
    leading: Leading
    left: np.ndarray
    values: np.ndarray  # all R, of W / scale
    right: np.ndarray


def solved(matrix: Tensor, k: int = K, **options: int) -> Case:
    return compared(matrix, leading_triples(matrix, k, **options))[0]


def compared(matrix: Tensor, *found: Leading) -> list[Case]:
    left, values, right = np.linalg.svd(matrix.double().numpy() / found[0].scale, False)
    return [Case(matrix, leading, left, values, right.T) for leading in found]


@functools.cache
def cases() -> tuple[Case, ...]:
    """Converged and stopped early: 112 cases."""
    matrices = [
        sample(family, m, n, seed)
        for family in FAMILIES
        for m, n in ((240, 200), (200, 300))
        for seed in range(2)
    ]
    return tuple(
        case
        for matrix in matrices
        for case in compared(
            matrix,
            *(leading_triples(matrix, K, max_sweeps=sweeps, probes=8) for sweeps in (1, 2, 3, 48)),
        )
    )


def roundoff(case: Case) -> float:
    """What the oracle may be off itself: see `tests.spectral.matrix_zoo.oracle`."""
    return float(4 * max(case.matrix.shape) ** 0.5 * 2.0**-52 * case.values[0])


def outside(case: Case, divisor: float = 1.0) -> int:
    error = np.abs(case.leading.values - case.values[: len(case.leading.values)])
    return int((error > case.leading.bounds / divisor + roundoff(case)).sum())


def sines(true: np.ndarray, computed: Tensor) -> np.ndarray:
    """Sine of the angle between columns: length of what is left of one outside the other."""
    rest = computed.numpy() - true * (true * computed.numpy()).sum(axis=0)
    return np.linalg.norm(rest, axis=0)


def span_sines(true: np.ndarray, computed: Tensor) -> np.ndarray:
    """Sine of the largest principal angle between the spans of the first j columns, all j."""
    found = []
    for j in range(1, computed.shape[1] + 1):
        columns = computed.numpy()[:, :j]
        found.append(np.linalg.norm(columns - true[:, :j] @ (true[:, :j].T @ columns), 2))
    return np.array(found)


def test_every_true_value_lies_within_its_bound_converged_or_not() -> None:
    assert [outside(case) for case in cases()] == [0] * 112


def test_bounds_shrunk_tenfold_would_be_caught() -> None:
    """Twin: the check above can fail."""
    assert sum(outside(case, divisor=10.0) > 0 for case in cases()) >= 10


def test_values_come_from_below() -> None:
    """The certain half of the interval: Ritz values never exceed the true ones."""
    for case in cases():
        assert (case.leading.values <= case.values[:K] + roundoff(case)).all()


def test_the_remainder_is_at_most_its_bound() -> None:
    """The probable half, checked where it is made: W2 = (I - U U^T) W (I - Y Y^T)."""
    for case in cases():
        leading, matrix = case.leading, case.matrix / case.leading.scale
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
        rest = tall - leading.left @ (leading.left.mT @ tall)
        rest = rest - (rest @ leading.right) @ leading.right.mT
        assert torch.linalg.matrix_norm(rest, 2).item() <= leading.remainder


def test_converged_values_are_known_to_ten_digits() -> None:
    for case in cases()[3::4]:
        assert case.leading.converged
        assert (case.leading.bounds <= 1e-10 * case.values[0]).all()


def test_an_iteration_stopped_early_says_so() -> None:
    case = solved(sample("gaussian", 240, 200, 0), max_sweeps=2)

    assert not case.leading.converged
    assert case.leading.sweeps == 2
    assert case.leading.bounds.max() > 1e-3 * case.values[0]


def test_every_vector_lies_within_its_angle_bound() -> None:
    checked = 0
    for case in cases():
        vectors, error = case.leading.vectors, 1e-11
        # the oracle's own vectors err by rounding over the gap; rank 10 has gaps of order one
        for true, own, bound, span_bound in (
            (case.left, vectors.left, vectors.left_errors, vectors.left_span_errors),
            (case.right, vectors.right, vectors.right_errors, vectors.right_span_errors),
        ):
            assert (sines(true[:, :K], own) <= bound + error).all()
            assert (span_sines(true, own) <= span_bound + error).all()
            checked += int((bound < 1.0).sum())
    assert checked > 1000


def test_angle_bounds_shrunk_a_hundredfold_would_be_caught() -> None:
    """Twin: bounds are within a factor of a hundred of the angle somewhere."""
    assert any(
        (sines(c.left[:, :K], c.leading.vectors.left) > c.leading.vectors.left_errors / 100).any()
        for c in cases()
    )


def test_signs_of_left_and_right_vectors_agree() -> None:
    for m, n in ((240, 200), (200, 300)):
        matrix = sample("1/i", m, n, 1)
        vectors = leading_triples(matrix, K).vectors

        product = matrix @ vectors.right

        expected = vectors.left * torch.tensor(vectors.values)
        # the residual that the iteration stops at
        torch.testing.assert_close(product, expected, rtol=0, atol=1e-6 * vectors.values[0])


def test_a_cluster_has_a_span_but_no_vectors() -> None:
    """Within three equal values every rotation is as good; all eleven together are determined."""
    values = np.concatenate([[4.0, 3.5, 3.0, 3.0, 3.0, 2.0], np.geomspace(1.0, 0.1, 200)])
    matrix = torch.tensor(with_spectrum(np.random.default_rng(1), 220, 206, values))

    vectors = leading_triples(matrix, 6).vectors

    np.testing.assert_array_equal(vectors.left_errors[2:5], 1.0)
    np.testing.assert_array_equal(vectors.determined, [True, True, False, False, False, True])
    assert vectors.left_span_errors[4] < 1e-5
    np.testing.assert_array_equal(vectors.left_span_errors[2:4], 1.0)


def test_an_orthogonal_matrix_is_one_cluster() -> None:
    matrix = torch.tensor(np.linalg.qr(np.random.default_rng(2).normal(size=(200, 200)))[0])

    case = solved(matrix)

    assert outside(case) == 0
    np.testing.assert_array_equal(case.leading.vectors.left_errors, np.ones(K))
    np.testing.assert_array_equal(case.leading.vectors.left_span_errors, np.ones(K))


@pytest.mark.parametrize("family", ["gaussian", "1/i", "1/sqrt(i)", "geometric"])
@pytest.mark.parametrize("shape", [(240, 200), (200, 300)])
def test_a_warm_start_needs_fewer_sweeps(family: str, shape: tuple[int, int]) -> None:
    """Weights that moved by 1e-3 of their norm."""
    matrix = sample(family, *shape, seed=3)
    before = leading_triples(matrix, K)
    step = sample("gaussian", *shape, seed=4)
    after = matrix + 1e-3 * before.vectors.values[0] * step / torch.linalg.matrix_norm(step, 2)

    cold, warm = leading_triples(after, K), leading_triples(after, K, start=before.block)

    assert warm.converged
    assert warm.sweeps < cold.sweeps
    assert (np.abs(warm.values - cold.values) <= warm.bounds + cold.bounds).all()
    assert before.block.shape == (shape[1], 2 * K)


def test_an_unchanged_matrix_needs_one_sweep() -> None:
    matrix = sample("1/i", 240, 200, 5)

    assert leading_triples(matrix, K, start=leading_triples(matrix, K).block).sweeps == 1


@pytest.mark.parametrize("kind", ["smallest", "zeros", "not finite"])
def test_a_start_that_misses_everything_does_no_harm(kind: str) -> None:
    """Orthogonal to all leading vectors, zero, or of a snapshot that had diverged."""
    matrix = sample("1/i", 240, 200, 6)
    smallest = torch.tensor(np.linalg.svd(matrix.numpy())[2][-2 * K :].T.copy())
    starts = {"smallest": smallest, "zeros": smallest * 0, "not finite": smallest * np.nan}

    leading = leading_triples(matrix, K, start=starts[kind])

    true = np.linalg.svd(matrix.numpy() / leading.scale, compute_uv=False)[:K]
    assert leading.converged
    assert (np.abs(leading.values - true) <= leading.bounds + 1e-12).all()


def test_fewer_values_than_asked_for_are_filled_with_zeros() -> None:
    case = solved(sample("rank 10", 240, 200, 7), k=13)

    vectors = case.leading.vectors
    np.testing.assert_array_equal(case.leading.values[10:], np.zeros(3))
    assert outside(case) == 0
    assert case.leading.bounds[10:].max() < 1e-11
    np.testing.assert_array_equal(vectors.determined, [True] * 10 + [False] * 3)
    for side in (vectors.left, vectors.right):
        torch.testing.assert_close(side.mT @ side, torch.eye(13).double(), rtol=0, atol=1e-12)


def test_all_values_can_be_asked_for() -> None:
    case = solved(sample("geometric", 60, 40, 8), k=40)

    assert outside(case) == 0
    assert case.leading.bounds.max() < 1e-12
    assert case.leading.next_upper == 0.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_tiny_matrices_are_no_special_case(shape: tuple[int, int]) -> None:
    case = solved(torch.arange(1.0, 1.0 + shape[0] * shape[1]).reshape(shape), k=1)

    assert outside(case) == 0
    assert case.leading.converged


@pytest.mark.parametrize("exponent", [-60, 60, -900, 900])
def test_powers_of_two_change_no_bit(exponent: int) -> None:
    matrix = sample("1/i", 200, 240, 9)

    plain, scaled = leading_triples(matrix, K), leading_triples(matrix * 2.0**exponent, K)

    np.testing.assert_array_equal(plain.values, scaled.values)
    np.testing.assert_array_equal(plain.bounds, scaled.bounds)
    assert scaled.scale == plain.scale * 2.0**exponent
    np.testing.assert_array_equal(scaled.vectors.values, plain.vectors.values * 2.0**exponent)


@pytest.mark.parametrize("factor", [1e-18, 1e18])
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_hold_at_every_scale(factor: float, family: str) -> None:
    case = solved((sample(family, 240, 200, 10) * factor).float())

    assert outside(case) == 0
    assert case.leading.converged


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transposed_matrix_has_the_same_values(family: str) -> None:
    matrix = sample(family, 240, 200, 11)

    plain, turned = leading_triples(matrix, K), leading_triples(matrix.mT, K)

    assert (np.abs(plain.values - turned.values) <= plain.bounds + turned.bounds).all()
    assert turned.vectors.shape == (200, 240)


def test_a_small_workspace_changes_nothing_beyond_rounding() -> None:
    """Blocks of rows converted one after another, and a basis that begins again and again."""
    matrix = sample("1/sqrt(i)", 300, 240, 12).float()

    plain = leading_triples(matrix, K)
    frugal = leading_triples(matrix, K, workspace=2**16)

    assert frugal.converged
    assert frugal.sweeps > plain.sweeps
    assert (np.abs(plain.values - frugal.values) <= plain.bounds + frugal.bounds).all()
    assert frugal.energy[0] == pytest.approx(plain.energy[0], rel=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("workspace", [2**12, 2**28])
def test_neither_the_matrix_nor_random_numbers_are_touched(
    dtype: torch.dtype, workspace: int
) -> None:
    matrix = torch.nn.Parameter(sample("1/i", 60, 50, 13).to(dtype))
    copy, state = matrix.detach().clone(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].copy()

    leading = leading_triples(matrix, 3, workspace=workspace)
    decompose_large(matrix, 3, start=leading.block, workspace=workspace)

    assert torch.equal(matrix.detach(), copy)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert not leading.vectors.left.requires_grad
    assert matrix.grad is None


def test_the_same_matrix_gives_the_same_bits() -> None:
    one, two = (leading_triples(sample("gaussian", 240, 200, 14), K) for _ in range(2))

    np.testing.assert_array_equal(one.values, two.values)
    np.testing.assert_array_equal(one.bounds, two.bounds)


@pytest.mark.parametrize("k", [0, 5])
def test_more_values_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="expected k") as caught:
        leading_triples(torch.ones(4, 6), k)

    assert str(caught.value) == f"expected k between 1 and min(m, n) = 4, got {k}"


@pytest.mark.parametrize("shape", [(4, 2), (6,), (6, 0)])
def test_a_start_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a start") as caught:
        leading_triples(torch.ones(4, 6), 2, start=torch.ones(shape))

    assert str(caught.value) == (
        f"expected a start of shape (6, p) for a matrix 4 x 6, got {shape}"
    )


@pytest.mark.parametrize(
    ("entry", "what"), [(0.0, "zeros only"), (np.nan, "an entry that is not"), (np.inf, None)]
)
def test_zero_and_not_finite_have_no_leading_triples(entry: float, what: str | None) -> None:
    with pytest.raises(ValueError, match="finite") as caught:
        leading_triples(torch.full((4, 6), entry), 2)

    got = what or "an entry that is not"
    assert str(caught.value) == f"expected a matrix of finite numbers, not all zero, got {got}"


def reflected(values: np.ndarray, m: int, n: int, seed: int) -> Tensor:
    """(I - 2 u u^T) diag(values) (I - 2 v v^T): known singular values, no SVD."""
    generator = np.random.default_rng(seed)
    matrix = np.zeros((m, n))
    matrix[np.arange(len(values)), np.arange(len(values))] = values
    u, v = generator.normal(size=m), generator.normal(size=n)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    matrix -= 2 * np.outer(u, u @ matrix)
    matrix -= 2 * np.outer(matrix @ v, v)
    return torch.tensor(matrix)


def test_a_large_matrix_is_decomposed_in_part() -> None:
    """Rank 20 over a broad tail, 2100 x 2200, in float32.

    Rounding the entries to 24 bits moves no value by more than 2^-24 ||W||_F (Weyl).
    """
    values = np.concatenate([np.linspace(3.0, 1.0, 20), np.linspace(0.2, 0.0, 2080)])
    matrix = reflected(values, 2100, 2200, 15).float()
    error = 2.0**-24 * np.linalg.norm(values)

    result = decompose_large(matrix, 16)

    assert (result.method, result.flag, result.complete) == ("subspace64", "estimated", False)
    assert (np.abs(result.values - values[:16]) <= result.bounds + error).all()
    assert (result.bounds < 1e-9).all()
    assert result.unit_frobenius * result.scale == pytest.approx(np.linalg.norm(values), rel=1e-7)
    assert result.vectors is not None
    assert result.vectors.determined.all()
    assert result.tail is not None
    total = values[16:].sum() / result.scale
    assert result.tail.total.lower <= total <= result.tail.total.upper
    assert result.tail.total.upper - result.tail.total.lower < 0.03 * total


def test_the_frobenius_norm_has_its_bound() -> None:
    matrix = sample("gaussian", 240, 200, 16)

    result = decompose_large(matrix, 3)

    true = np.sqrt(np.square(matrix.numpy() / result.scale).astype(np.longdouble).sum())
    assert abs(result.unit_frobenius - true) <= result.unit_frobenius_bound
    assert result.unit_frobenius_bound < 1e-12 * result.unit_frobenius


@pytest.mark.parametrize(("entry", "flag"), [(0.0, "zero"), (np.nan, "diverged")])
def test_zero_and_not_finite_are_results(entry: float, flag: str) -> None:
    result = decompose_large(torch.full((4, 6), entry), 2)

    assert (result.method, result.flag, result.tail) == ("none", flag, None)
    np.testing.assert_array_equal(result.unit_values, np.full(4, entry))
    assert result.vectors is not None
    np.testing.assert_array_equal(result.vectors.left_errors, np.ones(2))


def test_subnormal_weights_are_collapsed() -> None:
    assert decompose_large(torch.eye(6) * 2.0**-127, 2).flag == "collapsed"


def test_a_solver_that_fails_leaves_the_frobenius_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> Tensor:
        raise torch.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fail)

    result = decompose_large(torch.eye(4), 2)

    assert (result.method, result.flag, result.tail) == ("none", "ill_posed", None)
    assert np.isnan(result.unit_values).all()
    assert result.unit_frobenius == 2.0
