"""No true value lies outside its bound, over a thousand random and adversarial matrices.

The truth is NumPy's float64 SVD (another LAPACK than torch's), with an allowance for its own error.
`python -m benchmarks bounds` reports how wide the bounds are beside the errors.
"""

import math

import numpy as np
import pytest
import torch

from spectral import Decomposition, decompose, effective_rank
from spectral.vectors import SMALLEST_SHARE
from tests.spectral.matrix_zoo import FAMILIES, exact_errors, exact_values, oracle, thousand

# The families whose effective rank must be right to 1e-6, whatever the scale.
ACCURATE = {kind for kind in FAMILIES if "1/i" in kind or "rank" in kind or kind == "geometric"}


@pytest.fixture(scope="module")
def measured() -> list[tuple[str, torch.Tensor, Decomposition]]:
    pairs = list(thousand())
    found = decompose([matrix for _, matrix in pairs])
    return [(kind, matrix, each) for (kind, matrix), each in zip(pairs, found, strict=True)]


def test_there_are_more_than_a_thousand(
    measured: list[tuple[str, torch.Tensor, Decomposition]],
) -> None:
    assert len(measured) > 1000
    assert {each.method for _, _, each in measured} == {"gram64", "deflated64"}


def test_no_singular_value_and_no_effective_rank_lies_outside_its_bound(
    measured: list[tuple[str, torch.Tensor, Decomposition]],
) -> None:
    wrong = []
    for kind, matrix, found in measured:
        truth = oracle(matrix)
        off = np.abs(found.unit_values - truth.singular_values)
        outside = off > found.unit_bounds + truth.singular_value_error
        rank, (true, error) = effective_rank(found), truth.metrics["effective_rank"]
        if outside.any() or not rank.lower - error <= true <= rank.upper + error:
            wrong.append((kind, tuple(matrix.shape), int(outside.sum()), rank, true))
    assert wrong == []


def test_the_effective_rank_is_right_to_a_millionth(
    measured: list[tuple[str, torch.Tensor, Decomposition]],
) -> None:
    """Power laws, exact low ranks and low ranks with tails, at scales 1e-18, 1 and 1e18."""
    worst = {}
    for kind, matrix, found in measured:
        if kind in ACCURATE:
            true, _ = oracle(matrix).metrics["effective_rank"]
            error = abs(effective_rank(found).value / true - 1.0)
            worst[kind] = max(worst.get(kind, 0.0), error)
    assert set(worst) == ACCURATE
    assert max(worst.values()) < 1e-6


def test_no_singular_vector_turns_further_than_its_bound(
    measured: list[tuple[str, torch.Tensor, Decomposition]],
) -> None:
    """The sine of the angle to the true vector, on either side; and the same of leading spans."""
    wrong = []
    determined = 0
    for kind, matrix, found in measured[::3]:
        vectors = found.vectors
        assert vectors is not None
        unit = matrix.double().numpy() / found.scale
        left, values, right = np.linalg.svd(unit, full_matrices=False)
        k = vectors.k
        # what the oracle's own vectors and spans may be off: its error over the gap
        error = 8 * max(unit.shape) ** 0.5 * 2.0**-52 * values[0]
        padded = np.concatenate([[np.inf], values, [-np.inf]])
        with np.errstate(divide="ignore"):
            gaps = np.minimum(padded[:-2] - padded[1:-1], padded[1:-1] - padded[2:])[:k]
            own = error / np.maximum(gaps, 0.0)
            own_span = error / np.maximum(padded[1:-1] - padded[2:], 0.0)[:k]
        sides = (
            (vectors.left, left, vectors.left_errors, vectors.left_span_errors),
            (vectors.right, right.T, vectors.right_errors, vectors.right_span_errors),
        )
        for side, true, errors, spans in sides:
            ours = side.numpy()
            inner = np.einsum("ij,ij->j", ours, true[:, :k])
            sines = np.linalg.norm(ours - true[:, :k] * inner, axis=0)
            usable = (errors < 1.0) & (own < 0.1)
            determined += int(usable.sum())
            if (sines[usable] > errors[usable] + 2 * own[usable]).any():
                wrong.append((kind, tuple(unit.shape), "vector"))
            for j in {0, 1, 4, 9, k - 1} & set(range(k)):
                if spans[j] < 1.0 and own_span[j] < 0.1:
                    basis = np.linalg.qr(ours[:, : j + 1])[0]
                    part = basis - true[:, : j + 1] @ (true[:, : j + 1].T @ basis)
                    sine = np.linalg.norm(part, 2)
                    if sine > spans[j] + 2 * math.sqrt(j + 1) * own_span[j] + 1e-14:
                        wrong.append((kind, tuple(unit.shape), f"span {j}", sine, spans[j]))
    assert wrong == []
    assert determined > 5000


def test_vectors_of_tiny_or_equal_singular_values_are_not_claimed(
    measured: list[tuple[str, torch.Tensor, Decomposition]],
) -> None:
    for kind, _, found in measured:
        vectors = found.vectors
        assert vectors is not None
        tiny = found.unit_values[: vectors.k] < SMALLEST_SHARE * found.unit_values[0]
        assert not vectors.determined[tiny].any()
        if kind == "constant":
            assert vectors.determined.tolist() == [True] + [False] * (vectors.k - 1)


def test_vectors_reconstruct_the_matrix(
    measured: list[tuple[str, torch.Tensor, Decomposition]],
) -> None:
    """Signs agree: sum_j s_j u_j v_j^T is W, where all R vectors are there."""
    for kind, matrix, found in measured:
        vectors = found.vectors
        if vectors is None or vectors.k < min(matrix.shape) or kind not in ("normal", "1/i"):
            continue
        scaled = torch.tensor(vectors.values) / found.scale
        rebuilt = (vectors.left * scaled) @ vectors.right.T
        torch.testing.assert_close(rebuilt, matrix.double() / found.scale, rtol=0, atol=1e-10)


@pytest.mark.parametrize("divisor", [1e3, 1e5])
def test_vector_bounds_that_are_much_smaller_would_be_caught(
    measured: list[tuple[str, torch.Tensor, Decomposition]], divisor: float
) -> None:
    """Twin: the comparison of vectors can fail."""
    caught = 0
    for _, matrix, found in measured[:200]:
        vectors = found.vectors
        assert vectors is not None
        unit = matrix.double().numpy() / found.scale
        true = np.linalg.svd(unit, full_matrices=False)[0][:, : vectors.k]
        ours = vectors.left.numpy()
        sines = np.linalg.norm(ours - true * np.einsum("ij,ij->j", ours, true), axis=0)
        caught += int((sines > vectors.left_errors / divisor)[vectors.determined].sum())
    assert caught > 100


@pytest.mark.parametrize("tolerance", [1e-5, math.inf], ids=["deflated", "gram only"])
def test_fifty_thousand_positive_rows_are_known_against_exact_sums(
    measured: list[tuple[str, torch.Tensor, Decomposition]], tolerance: float
) -> None:
    """Where NumPy's SVD is less certain than ours: the truth is summed exactly, in 50 digits."""
    tall = [m for _, m, _ in measured if m.shape == (50_000, 8)]
    assert len(tall) == 3
    for found, matrix in zip(decompose(tall, tolerance=tolerance), tall, strict=True):
        errors = exact_errors(
            found.unit_values, exact_values(matrix.double().numpy() / found.scale)
        )

        assert (errors <= found.unit_bounds).all()
        # and the bounds say something: they are not a million times too wide
        assert (errors > found.unit_bounds / 1e6).any()
