"""Matrices that are hard on a decomposition, and an independent oracle for their spectra.

Shape legend: m x n the matrix, R = min(m, n).
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import mpmath
import numpy as np
import torch
from torch import Tensor

SHAPES = ((64, 64), (128, 32), (32, 128), (23, 17), (300, 5), (3, 3), (2, 5), (2, 2))


def with_spectrum(
    generator: np.random.Generator, m: int, n: int, singular_values: np.ndarray
) -> np.ndarray:
    left = np.linalg.qr(generator.normal(size=(m, len(singular_values))))[0]
    right = np.linalg.qr(generator.normal(size=(n, len(singular_values))))[0]
    return (left * singular_values) @ right.T


def kinds(generator: np.random.Generator, m: int, n: int) -> dict[str, np.ndarray]:
    r = min(m, n)
    index = np.arange(1, r + 1)
    half = with_spectrum(generator, m, n, np.where(index <= (r + 1) // 2, 1.0, 0.0))
    normal = generator.normal(size=(m, n))
    few = min(10, r)
    return {
        "normal": normal,
        "positive": generator.uniform(size=(m, n)),
        "1/i": with_spectrum(generator, m, n, 1.0 / index),
        "1/i^2": with_spectrum(generator, m, n, 1.0 / index**2),
        "geometric": with_spectrum(generator, m, n, np.geomspace(1.0, 1e-6, r)),
        "steep": with_spectrum(generator, m, n, np.geomspace(1.0, 1e-14, r)),
        # products of small whole numbers are exact in float32: the rank is exactly 1, or at most 10
        "rank 1": np.outer(generator.integers(1, 9, m), generator.integers(1, 9, n)),
        "rank 10": generator.integers(-4, 5, (m, few)) @ generator.integers(-4, 5, (few, n)),
        "half rank": half,
        "duplicated": with_spectrum(generator, m, n, np.where(index <= r // 2, 2.0, 1.0)),
        "orthogonal": with_spectrum(generator, m, n, np.ones(r)),
        "collapsed": normal * 1e-12,
        "1e-30": half * 1e-30,
        "1e20": half * 1e20,
        "subnormal": normal * 1e-42,
        "constant": np.full((m, n), generator.uniform(0.5, 1.0)),
        "graded": normal * np.geomspace(1.0, 1e-9, n),
        "sparse": normal * (generator.uniform(size=(m, n)) < 0.1) + np.eye(m, n),
        "repeated row": np.tile(normal[:1], (m, 1)),
    }


@functools.cache
def zoo() -> dict[str, Tensor]:
    """More than 200 float32 matrices, and some of other dtypes, by name."""
    generator = np.random.default_rng(20240830)
    matrices: dict[str, Tensor] = {}
    for m, n in SHAPES:
        for kind, entries in kinds(generator, m, n).items():
            matrices[f"{kind} {m}x{n}"] = torch.tensor(entries, dtype=torch.float32)
    for m, n in ((1, 1), (1, 2), (1, 500), (500, 1), (3, 1), (50_000, 1)):
        for kind in ("normal", "positive", "constant", "collapsed", "subnormal", "1e20"):
            entries = kinds(generator, m, n)[kind]
            matrices[f"{kind} {m}x{n}"] = torch.tensor(entries, dtype=torch.float32)
    for n in (8, 32):
        weights = {
            "rank 1": np.outer(generator.uniform(size=50_000), generator.uniform(size=n)),
            "rank 3": generator.uniform(size=(50_000, 3)) @ generator.uniform(size=(3, n)),
            "positive": generator.uniform(size=(50_000, n)),
            "constant": np.full((50_000, n), 0.7368),
        }
        for kind, entries in weights.items():
            matrices[f"tall {kind} 50000x{n}"] = torch.tensor(entries, dtype=torch.float32)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        for kind, entries in kinds(generator, 40, 24).items():
            matrix = torch.tensor(entries, dtype=dtype)
            if matrix.isfinite().all() and matrix.any():  # 1e20 and 1e-30 leave the half precisions
                matrices[f"{kind} 40x24 {dtype}"] = matrix
    return matrices


@dataclass(frozen=True)
class Truth:
    """What an independent solver says of W / scale, and how far it may be off itself."""

    scale: float
    singular_values: np.ndarray
    singular_value_error: float
    metrics: dict[str, tuple[float, float]]  # name -> (value, error of the oracle)


def oracle(matrix: Tensor) -> Truth:
    """float64 gesdd of NumPy (another LAPACK than torch's) on W scaled by a power of two.

    Its own error: gesdd is backward stable, |error| <= p(m, n) eps sigma_1 for every value. For p
    we allow 4 sqrt(max(m, n)): rounding errors of the orthogonal reductions add up like a random
    walk, and 4 sqrt(L) eps is 7e-15 at L = 64 and 2e-13 at L = 50,000, where the Gram's floor is
    above 1e-8. The tests of exact values do without it.
    """
    entries = matrix.to(torch.float64).numpy()
    scale = 2.0 ** math.floor(math.log2(np.abs(entries).max()))
    unit = entries / scale
    values = np.linalg.svd(unit, compute_uv=False)
    error = 4 * max(unit.shape) ** 0.5 * 2.0**-52 * values[0]
    shares = values / values.sum()
    positive = shares[shares > 0]
    entropy = -(positive * np.log(positive)).sum()
    # d(entropy) = -sum_i (ln p_i + H) d(sigma_i) / S, with p_i no smaller than its own error
    error_share = error / values.sum()
    entropy_error = (
        error_share * (np.abs(np.log(np.maximum(shares, error_share))) + entropy)
    ).sum()
    rank = math.exp(entropy)
    frobenius = math.sqrt(math.fsum((unit**2).ravel()))
    stable = (frobenius / values[0]) ** 2
    relative = error / values[0]
    metrics = {
        "effective_rank": (rank, rank * (2 * entropy_error + 1e-14)),
        "effective_rank/normalised": (
            rank / len(values),
            rank / len(values) * (2 * entropy_error + 1e-14),
        ),
        "stable_rank": (stable, stable * (2 * relative + 1e-14)),
        "norm/frobenius": (frobenius * scale, frobenius * scale * 1e-15),
        "norm/spectral": (values[0] * scale, error * scale),
    }
    return Truth(scale, values, error, metrics)


FAMILIES = (
    "normal",
    "positive",
    "1/i",
    "1/i^2",
    "geometric",
    "rank 1",
    "rank 10",
    "rank 10 + 1e-3 tail",
    "rank 10 + 1e-4 tail",
    "rank 10 + 1e-5 tail",
    "half rank",
    "duplicated",
    "graded",
    "constant",
)
FAMILY_SHAPES = ((96, 96), (40, 160), (160, 40), (33, 70), (64, 64), (16, 300))
FAMILY_SCALES = (1.0, 1e-18, 1e18)


def family(kind: str, generator: np.random.Generator, m: int, n: int) -> np.ndarray:
    """One matrix of a family, drawn anew at each call."""
    if " tail" not in kind:
        return kinds(generator, m, n)[kind]
    tail = float(kind.split()[3])
    index = np.arange(1, min(m, n) + 1)
    return with_spectrum(generator, m, n, np.where(index <= 10, 1.0, tail))


def thousand() -> Iterator[tuple[str, Tensor]]:
    """1,008 float32 matrices, (family, matrix), and six of 50,000 rows."""
    generator = np.random.default_rng(1021)
    for kind in FAMILIES:
        for m, n in FAMILY_SHAPES:
            for repeat in range(12):
                entries = family(kind, generator, m, n) * FAMILY_SCALES[repeat % 3]
                yield kind, torch.tensor(entries, dtype=torch.float32)
    for rank in (1, 2, 3):
        for n in (8, 32):
            tall = generator.uniform(size=(50_000, rank)) @ generator.uniform(size=(rank, n))
            yield "positive, 50,000 rows", torch.tensor(tall, dtype=torch.float32)


def exact_values(unit: np.ndarray) -> list[mpmath.mpf]:
    """Singular values of a tall float64 matrix whose products of entries are exact, to 40 digits.

    The Gram matrix is summed exactly (`math.fsum`, and again what its rounding leaves), and its
    eigenvalues are found in 50 digits. For float32 weights of a few columns: it is slow.
    """
    with mpmath.workdps(50):
        columns = unit.shape[1]
        gram = mpmath.matrix(columns, columns)
        for i in range(columns):
            for j in range(i, columns):
                products = (unit[:, i] * unit[:, j]).tolist()
                high = math.fsum(products)
                low = math.fsum([*products, -high])
                gram[i, j] = gram[j, i] = mpmath.mpf(high) + mpmath.mpf(low)
        squares = mpmath.eigsy(gram, eigvals_only=True)
        return sorted((mpmath.sqrt(max(s, mpmath.mpf(0))) for s in squares), reverse=True)


def exact_errors(values: np.ndarray, exact: list[mpmath.mpf]) -> np.ndarray:
    """|value - exact|, where float64 alone would lose the difference."""
    with mpmath.workdps(50):
        pairs = zip(values.tolist(), exact, strict=True)
        return np.array([float(abs(mpmath.mpf(value) - true)) for value, true in pairs])
