"""Solvers of symmetric eigenvalue problems: they agree, they fail alone, the fastest is chosen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral import backend
from spectral.backend import SOLVERS, fastest, solve
from spectral.solvers import Eigen

CPU = torch.device("cpu")


def grams(count: int = 5, size: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    factors = torch.randn(count, 30, size, generator=generator, dtype=torch.float64)
    return factors.mT @ factors


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_eigenvalues_of_each_matrix(name: str) -> None:
    """Largest first, and orthonormal eigenvectors in the same order: G v = lambda v."""
    stack = grams()

    found = SOLVERS[name](stack, True)
    values = SOLVERS[name](stack, False)

    assert len(found) == len(values) == len(stack)
    for gram, both, alone in zip(stack, found, values, strict=True):
        assert both is not None
        assert alone is not None
        assert both.vectors is not None
        assert alone.vectors is None
        np.testing.assert_allclose(both.values, np.linalg.eigvalsh(gram.numpy())[::-1], rtol=1e-12)
        np.testing.assert_allclose(both.values, alone.values, rtol=1e-12)
        scaled = both.vectors * torch.tensor(both.values.copy())
        torch.testing.assert_close(gram @ both.vectors, scaled, rtol=0, atol=1e-11)
        eye = both.vectors.mT @ both.vectors
        torch.testing.assert_close(eye, torch.eye(12, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_matrix_that_cannot_be_solved_does_not_take_the_others_along(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = grams(3)
    original = torch.linalg.eigh

    def fails_on_the_second(matrix: Tensor) -> object:
        if matrix.dim() == 3 or torch.equal(matrix, stack[1]):
            raise torch.linalg.LinAlgError("did not converge")
        return original(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", fails_on_the_second)

    found = SOLVERS[name](stack, True)

    assert [result is None for result in found] == [False, True, False]


@pytest.mark.parametrize("vectors", [True, False])
def test_the_probe_names_a_solver_and_is_made_once(vectors: bool) -> None:
    fastest.cache_clear()

    chosen = [fastest(CPU, 8, 4, vectors) for _ in range(3)]

    assert set(chosen) <= set(SOLVERS)
    assert len(set(chosen)) == 1
    assert fastest.cache_info().misses == 1


def test_the_probe_chooses_the_faster_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One solver does the work of another twenty times over."""

    def slow(stack: Tensor, vectors: bool) -> list[Eigen | None]:
        for _ in range(20):
            backend.one_by_one(stack, vectors)
        return backend.one_by_one(stack, vectors)

    solvers = {"device": slow, "cpu": backend.one_by_one}
    monkeypatch.setattr(backend, "SOLVERS", solvers)
    fastest.cache_clear()
    try:
        assert fastest(CPU, 48, 8, True) == "cpu"
    finally:
        fastest.cache_clear()


def test_the_probe_leaves_the_global_generator_alone() -> None:
    fastest.cache_clear()
    before = torch.random.get_rng_state()

    fastest(CPU, 6, 2, False)

    assert torch.equal(torch.random.get_rng_state(), before)


def test_nothing_to_solve_is_no_problem() -> None:
    assert solve(grams(0), vectors=True) == []
