"""Where symmetric eigenvalue problems are solved: on the accelerator or on the CPU, as probed.

Which is faster depends on the size, on the number of problems, on the card, and by up to a hundred
times on the versions of torch and CUDA; so it is measured once per process and size, not believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from spectral.entropy import Array
from spectral.solvers import LINALG_ERRORS, Eigen, eigen, in_order

Solver = Callable[[Tensor, bool], list[Eigen | None]]


def solve(grams: Tensor, *, vectors: bool) -> list[Eigen | None]:
    """Eigenvalues, and eigenvectors if asked for, of symmetric matrices on one device.

    Args:
        grams: shape (B, R, R), float64.
        vectors: whether eigenvectors are wanted; they come back on the device of `grams`.

    Returns:
        one result per matrix; None where its solver failed.
    """
    if len(grams) == 0:
        return []
    if grams.device.type == "cpu":
        return one_by_one(grams, vectors)
    # batches of like size share a probe
    count = 1 << (len(grams) - 1).bit_length()
    return SOLVERS[fastest(grams.device, grams.shape[-1], count, vectors)](grams, vectors)


def one_by_one(grams: Tensor, vectors: bool) -> list[Eigen | None]:
    """A call per matrix, on the device of the matrices."""
    return [eigen(gram, vectors=vectors) for gram in grams]


def batched(grams: Tensor, vectors: bool) -> list[Eigen | None]:
    """One call for all, on the device of the matrices; a call per matrix if that fails."""
    try:
        if vectors:
            values, columns = torch.linalg.eigh(grams)
            found: list[Array] = list(values.cpu().numpy())
            return [in_order(v, c) for v, c in zip(found, columns, strict=True)]
        return [in_order(v, None) for v in torch.linalg.eigvalsh(grams).cpu().numpy()]
    except LINALG_ERRORS:  # of any one of them
        return one_by_one(grams, vectors)


def on_cpu(grams: Tensor, vectors: bool) -> list[Eigen | None]:
    """Copied to the CPU, solved there, eigenvectors copied back."""
    found = one_by_one(grams.cpu(), vectors)
    return [
        result._replace(vectors=result.vectors.to(grams.device))
        if result is not None and result.vectors is not None
        else result
        for result in found
    ]


SOLVERS: dict[str, Solver] = {"cpu": on_cpu, "device": one_by_one, "device batched": batched}


@cache
def fastest(device: torch.device, size: int, count: int, vectors: bool) -> str:
    """The name in `SOLVERS` of the fastest solver for `count` matrices of `size` x `size`.

    Each is run twice on random Gram matrices and timed the second time.
    """
    generator = torch.Generator(device).manual_seed(size)
    factors = torch.randn(
        count, size, size, generator=generator, device=device, dtype=torch.float64
    )
    grams = factors.mT @ factors
    seconds = {}
    for name, solver in SOLVERS.items():
        for _ in range(2):
            _wait(device)
            began = time.perf_counter()
            solver(grams, vectors)
            _wait(device)
            seconds[name] = time.perf_counter() - began
    return min(seconds, key=lambda name: seconds[name])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
