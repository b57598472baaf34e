"""What each rank is for a random matrix, by shape: aspect ratio alone sets where training starts.

The values are means for m x n matrices of independent Gaussian entries. Below R = min(m, n) = 64
they are simulated at that size; from 64 on they are integrals over the limiting density of singular
values (Marchenko and Pastur), with the largest one corrected for finite size (Johnstone), as it is
the only one that nears its limit slowly: 3 % off at R = 64.

Shape legend: R = min(m, n), L = max(m, n), gamma = R / L.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg.lapack import dsterf
from scipy.optimize import brentq
from scipy.special import digamma

from spectral.entropy import Array

# From this R on the limiting density is used.
SMALLEST_LIMIT = 64

# Mean of the Tracy-Widom law of real symmetric matrices (Bornemann, Math. Comp. 79, 2010).
_TRACY_WIDOM_MEAN = -1.2065335745820

_SEED = 20240830

# Gauss-Legendre nodes; with `_NODES` of them the constants are right to 1e-9 for every gamma.
_NODES = 128

# Entries of the simulated matrix, from the top left corner, that serve as control variates.
_CONTROLS = 12


@dataclass(frozen=True)
class Baseline:
    """Means over random Gaussian matrices of one shape.

    Attributes:
        effective_rank: exp(-sum_i p_i ln p_i), p_i = sigma_i / sum_j sigma_j.
        stable_rank: ||G||_F^2 / sigma_1^2.
        participation_rank: (sum_i sigma_i^2)^2 / sum_i sigma_i^4.
        mass_rank: smallest k whose first k sigma hold more than 0.9 of their sum (not whole here).
        gini: Gini coefficient of the sigma; 0 for R = 1.
        spectral_share: sigma_1 / ||G||_F.
        nuclear_share: sum_i sigma_i / ||G||_F.
    """

    effective_rank: float
    stable_rank: float
    participation_rank: float
    mass_rank: float
    gini: float
    spectral_share: float
    nuclear_share: float


@lru_cache(maxsize=4096)
def baseline(m: int, n: int) -> Baseline:
    """The mean of each rank over random Gaussian matrices of a shape.

    Standard errors of the simulation (R below 64) are about 1e-3 of the value or less, and it takes
    some 50 ms per shape. Above, the values are within 1 % of those at the size itself: effective
    rank 0.4 %, Gini 0.8 %, mass rank 0.8 %, the others 0.3 % at R = 64, and less beyond.

    Args:
        m: rows, at least 1.
        n: columns, at least 1.

    Returns:
        the same for (m, n) and (n, m), always the same; no global generator is touched.

    Raises:
        ValueError: if a side is smaller than 1.

    Source: Marchenko and Pastur, Math. USSR-Sbornik 1, 1967; Johnstone, Ann. Statist. 29, 2001
    (largest singular value); Dumitriu and Edelman, J. Math. Phys. 43, 2002 (simulation).
    """
    if m < 1 or n < 1:
        raise ValueError(f"expected a shape (m, n) with m, n >= 1, got ({m}, {n})")
    short, long = min(m, n), max(m, n)
    if short == 1:
        return Baseline(1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0)
    if short < SMALLEST_LIMIT:
        means, _ = simulate(short, long)
        # whatever a threaded BLAS does to the last digits
        return Baseline(*(float(f"{mean:.9g}") for mean in means))
    of_limit = limit(short / long)
    edge, width = math.sqrt(long - 1) + math.sqrt(short), 1 / math.sqrt(long - 1) + short**-0.5
    largest = edge**2 + edge * width ** (1 / 3) * _TRACY_WIDOM_MEAN
    return Baseline(
        effective_rank=of_limit.effective_rank * short,
        stable_rank=short * long / largest,
        # 1 / E[sum sigma^4 / ||G||_F^4], exact at every size
        participation_rank=(short * long + 2) / (short + long + 1),
        # k is the next whole number
        mass_rank=of_limit.mass_rank * short + 0.5,
        gini=of_limit.gini,
        spectral_share=math.sqrt(largest / (short * long)),
        nuclear_share=of_limit.nuclear_share * math.sqrt(short),
    )


@lru_cache(maxsize=4096)
def limit(gamma: float) -> Baseline:
    """Ranks over R, and norms as ||.|| / ||G||_F, of infinitely large random matrices.

    s = sigma / sqrt(L) has the density sqrt((b - s^2) (s^2 - a)) / (pi gamma s) between sqrt(a) and
    sqrt(b), a, b = (1 -+ sqrt(gamma))^2. With s^2 = 1 + gamma + 2 sqrt(gamma) cos(theta) it becomes
    (2 / pi) sin(theta)^2 / s^2 in theta, from 0 (the largest) to pi; theta = pi (1 - (1 - x)^3)
    puts nodes where square matrices have their smallest values.

    Args:
        gamma: R / L, in (0, 1].

    Returns:
        effective, stable, participation and mass rank over R; gini; spectral_share times sqrt(R),
        that is 1 + sqrt(gamma); nuclear_share over sqrt(R). Quadrature errors are below 1e-8.

    Raises:
        ValueError: if gamma is not in (0, 1].

    Source: Marchenko and Pastur, Math. USSR-Sbornik 1, 1967.
    """
    if not 0.0 < gamma <= 1.0:
        raise ValueError(f"expected gamma = min(m, n) / max(m, n) in (0, 1], got {gamma}")
    nodes, node_weights = np.polynomial.legendre.leggauss(_NODES)
    x, dx = (nodes + 1) / 2, node_weights / 2

    def density(at: Array) -> tuple[Array, Array]:
        """s, and the density of singular values in x, the smaller ones at larger x."""
        back = math.pi * (1.0 - at) ** 3  # pi - theta
        # 1 + gamma - 2 sqrt(gamma) cos(back), without cancellation
        squares = (1 - math.sqrt(gamma)) ** 2 + 4 * math.sqrt(gamma) * np.sin(back / 2) ** 2
        stretch = 3 * math.pi * (1.0 - at) ** 2
        return np.sqrt(squares), 2 / math.pi * np.sin(back) ** 2 / squares * stretch

    def up_to(end: float) -> tuple[float, float]:
        """Share of the singular values before `end`, and their sum over R."""
        s, share = density(end * x)
        return float(end * (share * dx).sum()), float(end * (share * s * dx).sum())

    s, share = density(x)
    mean = float((share * s * dx).sum())
    log_mean = float((share * s * np.log(s) * dx).sum())
    cut = brentq(lambda end: up_to(end)[1] - 0.9 * mean, 0.0, 1.0, xtol=1e-14)
    # Gini = E[s (P(smaller) - P(larger))] / mean
    larger = np.array([up_to(end)[0] for end in x])
    return Baseline(
        effective_rank=mean * math.exp(-log_mean / mean),
        stable_rank=1 / (1 + math.sqrt(gamma)) ** 2,
        participation_rank=1 / (1 + gamma),
        mass_rank=up_to(cut)[0],
        gini=float((share * s * (1 - 2 * larger) * dx).sum()) / mean,
        spectral_share=1 + math.sqrt(gamma),
        nuclear_share=mean,
    )


def simulate(short: int, long: int) -> tuple[list[float], list[float]]:
    """Means over random matrices of a given size, and their standard errors.

    The singular values of a Gaussian R x L matrix are distributed as those of a bidiagonal matrix
    with chi-distributed entries, so the cost depends on R alone. Deviations of the metrics are
    regressed on deviations whose means are known exactly: those of sum_i sigma_i^4 / ||G||_F^4, of
    ln det(G G^T) - R ln ||G||_F^2, and of the first few squared entries.

    Args:
        short: R, at least 2.
        long: L, at least R.

    Returns:
        (means, standard errors), in the order of `Baseline`.

    Source: Dumitriu and Edelman, J. Math. Phys. 43, 2002 (bidiagonal form).
    """
    draws = 24_000 if short <= 3 else 56_000 // short
    generator = np.random.default_rng((_SEED, short, long))
    diagonal_freedom = np.arange(long, long - short, -1)
    other_freedom = np.arange(short - 1, 0, -1)
    diagonal = generator.chisquare(diagonal_freedom, (draws, short))
    other = generator.chisquare(other_freedom, (draws, short - 1))
    squares = _eigenvalues(diagonal, other)
    energy = squares.sum(-1)
    purity = np.square(squares).sum(-1) / energy**2
    log_det = np.log(diagonal).sum(-1) - short * np.log(energy)
    # E ln chi2_k = digamma(k / 2) + ln 2; the ln 2 of both terms cancel
    log_det_mean = digamma(diagonal_freedom / 2).sum() - short * digamma(short * long / 2)
    controls = np.column_stack(
        [
            purity - (short + long + 1) / (short * long + 2),
            log_det - log_det_mean,
            (diagonal / diagonal_freedom - 1.0)[:, :_CONTROLS],
            (other / other_freedom - 1.0)[:, :_CONTROLS],
        ]
    )
    metrics = np.column_stack(_metrics(np.sqrt(squares), energy, purity))
    explained = np.column_stack([np.ones(draws), controls])
    solution, *_ = np.linalg.lstsq(explained, metrics, rcond=None)
    residuals = metrics - explained @ solution
    errors = np.sqrt(np.square(residuals).sum(0) / (draws - explained.shape[1]) / draws)
    return solution[0].tolist(), errors.tolist()


def _eigenvalues(diagonal: Array, other: Array) -> Array:
    """Eigenvalues of B B^T, descending, for lower bidiagonal B given by its squared entries."""
    main = diagonal.copy()
    main[:, 1:] += other
    beside = np.sqrt(diagonal[:, :-1] * other)
    rows = []
    for row, beside_row in zip(main, beside, strict=True):
        eigenvalues, info = dsterf(row, beside_row)
        if info != 0:
            raise np.linalg.LinAlgError(f"dsterf did not converge on {info} eigenvalues")
        rows.append(eigenvalues[::-1])
    squares: Array = np.maximum(np.stack(rows), 0.0)
    return squares


def _metrics(values: Array, energy: Array, purity: Array) -> list[Array]:
    """The fields of `Baseline`, each for every draw."""
    rank = values.shape[1]
    total = values.sum(-1)
    shares = values / total[:, None]
    # the smallest share of a square matrix may be 0 by rounding, and 0 ln 0 = 0
    entropy = -(shares * np.log(np.maximum(shares, 1e-300))).sum(-1)
    weights = np.arange(rank - 1, -rank, -2) / rank
    norm = np.sqrt(energy)
    return [
        np.exp(entropy),
        energy / np.square(values[:, 0]),
        1.0 / purity,
        1.0 + (np.cumsum(shares, axis=-1)[:, :-1] <= 0.9).sum(-1),
        (weights * shares).sum(-1),
        values[:, 0] / norm,
        total / norm,
    ]
