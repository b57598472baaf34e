"""Decompositions: known answers, odd input, and the ladder."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from spectral import Decomposition, decompose, effective_rank, frobenius_norm
from spectral.gram import gram, peaks_and_scales, row_blocks
from tests.spectral.matrix_zoo import with_spectrum


def one(matrix: Tensor) -> Decomposition:
    """Values only, from eigvalsh."""
    (result,) = decompose([matrix], vectors=0)
    return result


def graded(m: int = 24, n: int = 16) -> Tensor:
    generator = np.random.default_rng(5)
    values = np.geomspace(1.0, 0.1, min(m, n))
    return torch.tensor(with_spectrum(generator, m, n, values), dtype=torch.float32)


def fail(*args: object, **kwargs: object) -> Tensor:
    raise torch.linalg.LinAlgError("did not converge")


def fail_numpy(*args: object, **kwargs: object) -> np.ndarray:
    raise scipy.linalg.LinAlgError("did not converge")


def not_finite(matrix: Tensor) -> Tensor:
    return torch.full((min(matrix.shape),), math.nan, dtype=torch.float64)


def test_a_diagonal_matrix_has_its_absolute_entries_as_singular_values() -> None:
    result = one(torch.diag(torch.tensor([0.5, -4.0, 1.0])))

    np.testing.assert_array_equal(result.values, [4.0, 1.0, 0.5])
    assert result.method == "gram64"
    assert result.flag is None


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1)])
def test_a_vector_has_its_length_as_its_only_singular_value(shape: tuple[int, int]) -> None:
    matrix = torch.full(shape, 3.0)

    result = one(matrix)

    true = 3.0 * math.sqrt(matrix.numel())
    assert result.values.shape == (1,)
    assert abs(result.values[0] - true) <= result.bounds[0]
    assert effective_rank(result) == (1.0, 1.0, 1.0)


def test_the_zero_matrix_is_known_exactly() -> None:
    result = one(torch.zeros(4, 3))

    np.testing.assert_array_equal(result.values, np.zeros(3))
    np.testing.assert_array_equal(result.bounds, np.zeros(3))
    assert (result.method, result.flag) == ("none", "zero")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rows", [1, 4])
def test_a_matrix_that_is_not_finite_is_a_result(bad: float, rows: int) -> None:
    """Divergence is recorded as NaN rows, never raised; neighbours are not touched."""
    matrix = torch.ones(4, 3)
    matrix[:rows] = bad

    results = decompose([torch.eye(3), matrix, torch.eye(3)])

    assert np.isnan(results[1].values).all()
    assert np.isnan(results[1].bounds).all()
    assert (results[1].method, results[1].flag) == ("none", "diverged")
    np.testing.assert_array_equal(results[2].values, np.ones(3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_floating_dtype_is_taken_at_its_exact_entries(dtype: torch.dtype) -> None:
    """Entries are converted, never rounded: the float64 copy gives the same bits."""
    matrix = graded().to(dtype)

    ours, exact = decompose([matrix, matrix.double()])

    np.testing.assert_array_equal(ours.values, exact.values)
    assert ours.scale == exact.scale


@pytest.mark.parametrize("exponent", [-130, -60, 60, 110])
def test_powers_of_two_scale_values_and_bounds_to_the_bit(exponent: int) -> None:
    matrix = graded().double()

    plain, scaled = decompose([matrix, matrix * 2.0**exponent])

    np.testing.assert_array_equal(scaled.values, plain.values * 2.0**exponent)
    np.testing.assert_array_equal(scaled.bounds, plain.bounds * 2.0**exponent)
    np.testing.assert_array_equal(scaled.unit_values, plain.unit_values)


def test_float64_extremes_keep_their_effective_rank() -> None:
    """Neither squares nor sums leave float64: 1e-310 and 1e307 are as good as 1."""
    matrix = torch.diag(torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64))

    plain, large, small = decompose([matrix, matrix * 2.0**1021, matrix * 2.0**-1030])

    assert effective_rank(large) == effective_rank(plain)
    assert effective_rank(small) == effective_rank(plain)
    assert small.flag == "collapsed"
    assert (np.abs(small.values - [2.0**-1030, 2.0**-1031, 2.0**-1032]) <= small.bounds).all()


@pytest.mark.parametrize(
    ("dtype", "peak", "flag"),
    [
        (torch.float32, 2.0**-126, None),
        (torch.float32, 2.0**-127, "collapsed"),
        (torch.float16, 2.0**-14, None),
        (torch.float16, 2.0**-15, "collapsed"),
        (torch.float64, 2.0**-127, None),
    ],
)
def test_subnormal_weights_are_collapsed(dtype: torch.dtype, peak: float, flag: str | None) -> None:
    """Below the smallest normal number of its dtype a weight has lost digits."""
    assert one(torch.eye(3, dtype=dtype) * peak).flag == flag


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool])
def test_complex_and_integer_matrices_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError) as caught:
        decompose([torch.ones(2, 2, dtype=dtype)])

    assert str(caught.value) == (
        f"expected a matrix of real floating-point numbers, got {dtype}; the spectra of complex "
        "and integer weights are not defined here"
    )


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 4)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^expected a matrix \(m, n\) with m, n >= 1, got") as e:
        decompose([torch.ones(shape)])

    assert str(e.value) == f"expected a matrix (m, n) with m, n >= 1, got the shape {shape}"


def test_an_exact_low_rank_is_escalated_and_a_full_rank_is_not() -> None:
    low = torch.outer(torch.arange(1.0, 129.0), torch.arange(1.0, 65.0))

    assert [d.method for d in decompose([low, graded()], vectors=0)] == ["svd64", "gram64"]
    assert [d.method for d in decompose([low], tolerance=math.inf)] == ["gram64"]


def test_a_second_look_uses_the_eigenvectors_that_are_there() -> None:
    """With vectors, or for an elongated matrix, the small values come from deflation."""
    low = torch.outer(torch.arange(1.0, 129.0), torch.arange(1.0, 65.0))
    elongated = torch.outer(torch.arange(1.0, 200.0), torch.arange(1.0, 65.0))

    assert [d.method for d in decompose([low])] == ["deflated64"]
    assert [d.method for d in decompose([elongated], vectors=0)] == ["deflated64"]


@pytest.mark.parametrize("broken", [fail, not_finite], ids=["raises", "returns NaN"])
def test_first_rung_broken(monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Tensor]) -> None:
    """No eigenvalues: the values come from gesdd."""
    expected = one(graded())
    monkeypatch.setattr(torch.linalg, "eigvalsh", broken)

    result = one(graded())

    assert (result.method, result.flag) == ("svd64", None)
    assert (np.abs(result.values - expected.values) <= result.bounds + expected.bounds).all()


@pytest.mark.parametrize("broken", [fail, not_finite], ids=["raises", "returns NaN"])
def test_second_rung_broken(monkeypatch: pytest.MonkeyPatch, broken: Callable[..., Tensor]) -> None:
    """No gesdd either: the values come from gesvd."""
    expected = one(graded())
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    monkeypatch.setattr(torch.linalg, "svdvals", broken)

    result = one(graded())

    assert (result.method, result.flag) == ("gesvd64", None)
    assert (np.abs(result.values - expected.values) <= result.bounds + expected.bounds).all()


def test_every_rung_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rung is a NaN row with a reason; the Frobenius norm needs no solver."""
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    monkeypatch.setattr(scipy.linalg, "svd", fail_numpy)

    result = one(torch.eye(4))

    assert np.isnan(result.values).all()
    assert (result.method, result.flag) == ("none", "ill_posed")
    assert frobenius_norm(result).value == 2.0


def test_a_failed_escalation_keeps_the_gram_with_its_wide_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    low = torch.outer(torch.arange(1.0, 129.0), torch.arange(1.0, 65.0))
    (first,) = decompose([low], tolerance=math.inf, vectors=0)
    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    monkeypatch.setattr(scipy.linalg, "svd", fail_numpy)

    result = one(low)

    assert result.method == "gram64"
    np.testing.assert_array_equal(result.values, first.values)
    np.testing.assert_array_equal(result.bounds, first.bounds)


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only failed convergence is expected; running out of memory is not."""

    def out_of_memory(matrix: Tensor) -> Tensor:
        raise MemoryError("no memory")

    monkeypatch.setattr(torch.linalg, "eigvalsh", out_of_memory)

    with pytest.raises(MemoryError, match=r"^no memory$"):
        one(graded())


def test_each_matrix_is_decomposed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    original = torch.linalg.eigvalsh

    def counting(matrix: Tensor) -> Tensor:
        calls.append(tuple(matrix.shape))
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", counting)
    decompose([graded(24, 16), graded(8, 30), torch.zeros(3, 3)], vectors=0)

    assert sorted(calls) == [(8, 8), (16, 16)]


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (600, 7)])
def test_grams_of_equal_shapes_can_be_formed_in_one_call(shape: tuple[int, int]) -> None:
    """What an accelerator does: the same peaks and scales, the same Grams up to rounding."""
    generator = torch.Generator().manual_seed(1)
    matrices = [torch.randn(shape, generator=generator) * 10.0**k for k in (-30, 0, 12)]
    matrices.append(torch.full(shape, math.nan))

    stack = torch.stack(matrices)
    peaks, scales = peaks_and_scales(stack)
    grams = gram(row_blocks(stack, scales))

    for i, matrix in enumerate(matrices[:3]):
        peak, scale = peaks_and_scales(matrix)
        alone = gram(row_blocks(matrix, scale))
        assert (peaks[i], scales[i]) == (peak, scale)
        # sums of at most 600 products of numbers below 4: 600 * 600 * 4 * 1e-16 at the very worst
        torch.testing.assert_close(grams[i], alone, rtol=0, atol=1e-10)
    assert math.isnan(peaks[3])


def test_a_matrix_does_not_depend_on_its_company() -> None:
    """Bitwise: alone, beside others, and in another order."""
    matrices = [graded(24, 16), graded(16, 24), torch.eye(16), graded(24, 16) * 3.0]
    together = decompose(matrices, vectors=0)

    for matrix, result in zip(matrices, together, strict=True):
        np.testing.assert_array_equal(one(matrix).values, result.values)
        np.testing.assert_array_equal(one(matrix).bounds, result.bounds)
    np.testing.assert_array_equal(
        decompose(matrices[::-1], vectors=0)[3].values, together[0].values
    )


def test_an_eigenvalue_solver_that_fails_leaves_values_and_no_vectors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ladder is for values; vectors that nobody found are not determined, and say so."""
    expected = one(graded())
    monkeypatch.setattr(torch.linalg, "eigh", fail)

    (result,) = decompose([graded()])

    assert (result.method, result.flag) == ("svd64", None)
    assert (np.abs(result.values - expected.values) <= result.bounds + expected.bounds).all()
    assert result.vectors is not None
    assert not result.vectors.determined.any()


def test_the_workspace_changes_no_number() -> None:
    """One matrix at a time, or all at once: the same bits."""
    matrices = [graded(24, 16), torch.eye(16), graded(16, 40), graded(40, 16) * 2.0]
    low = torch.outer(torch.arange(1.0, 65.0), torch.arange(1.0, 33.0))

    at_once = decompose([*matrices, low], basis=True)
    one_by_one = decompose([*matrices, low], basis=True, workspace=1)

    for a, b in zip(at_once, one_by_one, strict=True):
        np.testing.assert_array_equal(a.values, b.values)
        np.testing.assert_array_equal(a.bounds, b.bounds)
        assert a.vectors is not None
        assert b.vectors is not None
        assert torch.equal(a.vectors.left, b.vectors.left)
        assert torch.equal(a.vectors.right, b.vectors.right)
        np.testing.assert_array_equal(a.vectors.left_errors, b.vectors.left_errors)
        assert a.basis is not None
        assert b.basis is not None
        assert torch.equal(a.basis, b.basis)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_the_basis_is_that_of_the_shorter_side(shape: tuple[int, int]) -> None:
    """Left singular vectors if m <= n, else right ones; all R of them, in order."""
    (result,) = decompose([graded(*shape)], vectors=3, basis=True)

    assert result.basis is not None
    assert result.vectors is not None
    side = result.vectors.left if shape[0] <= shape[1] else result.vectors.right
    assert torch.equal(result.basis[:, :3], side)
    eye = torch.eye(16, dtype=torch.float64)
    torch.testing.assert_close(result.basis.mT @ result.basis, eye, rtol=0, atol=1e-13)


def test_values_do_not_depend_on_whether_vectors_are_asked_for_beyond_their_bounds() -> None:
    plain, both = one(graded()), decompose([graded()])[0]

    assert (np.abs(plain.values - both.values) <= plain.bounds + both.bounds).all()


def test_a_negative_number_of_vectors_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^expected at most 16 singular vectors") as caught:
        decompose([graded()], vectors=-1)

    assert str(caught.value) == (
        "expected at most 16 singular vectors of a matrix of the shape (24, 16), got vectors=-1"
    )


def test_what_is_no_list_of_tensors_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError) as one_tensor:
        decompose(torch.eye(3))  # type: ignore[arg-type]
    with pytest.raises(TypeError) as an_array:
        decompose([np.eye(3)])  # type: ignore[list-item]

    assert str(one_tensor.value) == (
        "expected a list of matrices, got one tensor: write decompose([matrix])"
    )
    assert str(an_array.value) == (
        "expected torch tensors, got ndarray; torch.as_tensor makes one of an array, "
        "spectral.discover finds the matrices of a module"
    )


def test_a_value_beyond_float64_has_no_finite_bound() -> None:
    """The true norm is 3 times 1.7e308: a finite bound around inf would be no bound."""
    (result,) = decompose([torch.full((3, 3), 1.7e308, dtype=torch.float64)])

    assert math.isinf(result.values[0])
    assert math.isinf(result.bounds[0])
    assert math.isfinite(result.unit_bounds[0])
