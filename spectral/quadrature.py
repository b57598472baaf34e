"""Sums over the singular values that nobody computed: stochastic Lanczos quadrature.

For a random unit vector v of dimension N, N E[v^T f(C) v] = tr f(C). Lanczos turns v^T f(C) v into
a quadrature rule; here C = W2^T W2, what `spectral.subspace` leaves of W^T W once the leading
vectors are set apart. Both functions needed have derivatives of alternating sign in lambda =
sigma^2 on (0, 1]: for sigma and for -sigma ln sigma the Gauss rule lies above and the Gauss-Radau
rule with a node at 0 below v^T f(C) v. So a run gives an interval that holds its own number, and
only the spread over runs is statistical. The energy tr C is known, which takes out the part of that
spread that sigma shares with sigma^2.

Shape legend: R singular values, k of them leading, d >= k set apart, N = R - d, M runs of K steps.

Source: Golub and Meurant, Matrices, Moments and Quadrature, 2010, chapters 6 and 11; Ubaru, Chen
and Saad, SIAM J. Matrix Anal. Appl. 38 (4), 2017.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.special import xlogy
from scipy.stats import t as student
from torch import Tensor

from spectral.bidiagonal import UnitMatrix, random_block
from spectral.bounded import ZERO, Bounded
from spectral.decompose import Tail
from spectral.entropy import UNIT_ROUNDOFF, Array

if TYPE_CHECKING:
    from spectral.subspace import Leading

CONFIDENCE = 0.99


@dataclass(frozen=True)
class Probes:
    """M Lanczos runs on W2 from random starts: W2^T W2 in their bases is T = B^T B.

    Attributes:
        alphas: shape (K, M), diagonals of the upper bidiagonal B.
        betas: shape (K, M), superdiagonals; the last one leads out of the basis.
        dimension: of the sphere that the starts were drawn from, R - d.
    """

    alphas: Array
    betas: Array
    dimension: int

    def bidiagonal(self, probe: int) -> Array:
        """[B, beta_K e_K] of one run, shape (K, K + 1)."""
        steps = len(self.alphas)
        result = np.zeros((steps, steps + 1))
        index = np.arange(steps)
        result[index, index] = self.alphas[:, probe]
        result[index, index + 1] = self.betas[:, probe]
        return result

    def largest(self, failure: float) -> float:
        """What ||W2||_2 does not exceed, but for a probability of `failure`; inf if that is open.

        One run of K steps finds less than (1 - e) of the largest eigenvalue with a probability of
        at most 1.648 sqrt(dimension) exp(-sqrt(e) (2K - 1)); M runs fail together.

        Source: Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (4), 1992, theorem 4.2.
        """
        steps, runs = self.alphas.shape
        found = max(np.linalg.norm(self.bidiagonal(probe), 2) for probe in range(runs))
        root = math.log(1.648 * math.sqrt(self.dimension)) - math.log(failure) / runs
        missed = (root / (2 * steps - 1)) ** 2
        return float(found) / math.sqrt(1.0 - missed) if missed < 1.0 else math.inf


def probe(unit: UnitMatrix, left: Tensor, right: Tensor, *, steps: int, runs: int) -> Probes:
    """Run Lanczos on W2 = (I - left left^T) W (I - right right^T) from random starts.

    Golub-Kahan bidiagonalisation with full reorthogonalisation, all runs in one product.

    Args:
        unit: the matrix.
        left: shape (L, d), orthonormal columns.
        right: shape (R, d), likewise, d < R.
        steps: K, at most R - d of them are made.
        runs: M.
    """
    long, short = unit.shape
    dimension = short - right.shape[1]
    steps = min(steps, dimension)
    floor = 64 * UNIT_ROUNDOFF * math.sqrt(unit.energy)
    ours, theirs = unit.zeros(steps, short, runs), unit.zeros(steps, long, runs)
    alphas, betas = unit.zeros(steps, runs), unit.zeros(steps, runs)
    start = random_block(unit, short, runs, "probes")
    for _ in range(2):
        start = start - right @ (right.mT @ start)
    vector = start / start.norm(dim=0)
    for step in range(steps):
        ours[step] = vector
        image = _outside(unit.apply(vector), left, theirs[:step])
        alphas[step], theirs[step] = _length_and_direction(image, floor)
        image = _outside(unit.adjoint(theirs[step]), right, ours[: step + 1])
        betas[step], vector = _length_and_direction(image, floor)
    return Probes(alphas.cpu().numpy(), betas.cpu().numpy(), dimension)


def _outside(block: Tensor, base: Tensor, earlier: Tensor) -> Tensor:
    """Each column without its part in `base` and along its own run's earlier vectors."""
    for _ in range(2):
        block = block - base @ (base.mT @ block)
        along = torch.einsum("srm,rm->sm", earlier, block)
        block = block - torch.einsum("srm,sm->rm", earlier, along)
    return block


def _length_and_direction(block: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Columns' lengths and unit vectors; both zero where only rounding is left."""
    lengths = block.norm(dim=0)
    kept = lengths > floor
    ones = torch.ones_like(lengths)
    return lengths * kept, block / torch.where(kept, lengths, ones) * kept


def tail_sums(
    matrix: Tensor, leading: Leading, *, steps: int | None = None, probes: int | None = None
) -> Tail:
    """Sums of sigma_i and of sigma_i ln sigma_i over i = k + 1, ..., R, of W / scale.

    Args:
        matrix: shape (m, n), the matrix that `leading` is of; not modified.
        leading: its k leading triples, and what was set apart with them.
        steps: K, Lanczos steps of each run.
        probes: M, runs, at least 3. None for both: the runs that `leading` holds already.

    Returns:
        `Tail`, method ``slq``: Student intervals at 99 % confidence over the runs, widened by what
        quadrature, rounding and an inexact separation may have done, and cut to what is certain
        from the energy sum sigma_i^2 and from the upper end of sigma_{k + 1}.

    Raises:
        ValueError: if fewer than 3 probes or fewer than 1 step are asked for.
    """
    if (probes is not None and probes < 3) or (steps is not None and steps < 1):
        raise ValueError(
            f"expected at least 3 probes of at least 1 step, got probes={probes}, steps={steps}"
        )
    k, rank = len(leading.values), leading.right.shape[0]
    if k == rank:
        return Tail(ZERO, ZERO, "slq")
    runs = leading.probes
    if runs is not None and (steps or probes):
        unit = UnitMatrix(matrix)
        counts = runs.alphas.shape
        runs = probe(
            unit, leading.left, leading.right, steps=steps or counts[0], runs=probes or counts[1]
        )
    total, weighted = ZERO, ZERO
    if runs is not None:
        total, weighted = _remainder_sums(leading, runs)
    between = leading.found[k:]
    total = _moved(total, float(between.sum()), 0.0)
    weighted = _moved(weighted, float(xlogy(between, between).sum()), 0.0)
    # What F may do to the values: at most its nuclear norm in all, by Mirsky; to their sum, only up
    shift = float(np.linalg.svd(leading.missing, compute_uv=False).sum())
    rounding = (rank + k) * leading.slack
    leaders = float(leading.bounds.sum())
    total = Bounded(
        total.value, total.lower - leaders - rounding, total.upper + leaders + rounding + shift
    )
    blur = _blur(shift + 2 * leaders + rounding, rank, leading)
    weighted = Bounded(weighted.value, weighted.lower - blur, weighted.upper + blur)
    return Tail(*_certain(total, weighted, leading), "slq")


class _Rules(NamedTuple):
    """Quadrature rules of every run, each array of shape (M,)."""

    sums: tuple[Array, Array]  # of sigma: below, above
    entropies: tuple[Array, Array]  # of -(sigma / top) ln(sigma / top)
    squares: Array  # of sigma^2, exact
    slopes: tuple[float, float]  # how `sums` and `entropies` go with `squares` between runs


def _remainder_sums(leading: Leading, runs: Probes) -> tuple[Bounded, Bounded]:
    """Statistical intervals of both sums over the singular values of W2."""
    top, count = leading.remainder, runs.dimension
    rules = _rules(runs, top)
    energy, error = leading.energy
    energy -= float((leading.found**2).sum() + (leading.missing**2).sum())
    # where the rest is rounding its energy is not known, and cannot serve as a control
    surplus = rules.squares - energy / count if energy > 1e6 * error else 0.0 * rules.squares
    (sums_low, sums_high), (entropies_low, entropies_high) = rules.sums, rules.entropies
    log_top = math.log(top)
    ends = (sums_low, sums_high) if log_top > 0 else (sums_high, sums_low)
    slope, entropy_slope = rules.slopes
    weighted_slope = log_top * slope - top * entropy_slope
    total = _interval(sums_low - slope * surplus, sums_high - slope * surplus, count)
    weighted = _interval(
        log_top * ends[0] - top * entropies_high - weighted_slope * surplus,
        log_top * ends[1] - top * entropies_low - weighted_slope * surplus,
        count,
    )
    return total, weighted


def _rules(runs: Probes, top: float) -> _Rules:
    columns: list[tuple[float, ...]] = []
    for run in range(runs.alphas.shape[1]):
        radau = runs.bidiagonal(run)
        row: list[float] = []
        for bidiagonal in (radau, radau[:, :-1]):
            _, nodes, rows = np.linalg.svd(bidiagonal, full_matrices=False)
            weights = rows[:, 0] ** 2
            shares = np.minimum(nodes / top, 1.0)
            row += [float(weights @ nodes), float(-weights @ xlogy(shares, shares))]
        square = nodes**2  # of the Gauss rule, as `weights` and `shares` are
        row += [float(radau[0, 0] ** 2), float(weights @ square**2), float(weights @ nodes**3)]
        row += [float(-weights @ (square * xlogy(shares, shares)))]
        columns.append(tuple(row))
    low, low_entropy, high, high_entropy, squares, fourth, third, mixed = np.array(columns).T
    # Covariances of v^T f(C) v over the sphere are those of f(lambda) over the spectrum, all by the
    # same factor; the spectrum is what the runs say together.
    spread = fourth.mean() - squares.mean() ** 2
    slopes = (0.0, 0.0)
    if spread > 1e-12 * fourth.mean():
        slopes = (
            float((third.mean() - high.mean() * squares.mean()) / spread),
            float((mixed.mean() - high_entropy.mean() * squares.mean()) / spread),
        )
    return _Rules((low, high), (low_entropy, high_entropy), squares, slopes)


def _interval(low: Array, high: Array, count: int) -> Bounded:
    """N times E[run], N = `count`, for runs known to lie in [low, high], by Student's t."""
    runs = len(low)
    # one degree of freedom less: the slope against the energy comes from the same runs
    reach = float(student.ppf(0.5 + CONFIDENCE / 2, runs - 2)) / math.sqrt(runs)
    lower = float(low.mean() - reach * low.std(ddof=1))
    upper = float(high.mean() + reach * high.std(ddof=1))
    value = float((low.mean() + high.mean()) / 2)
    return Bounded(count * value, count * lower, count * upper)


def _moved(number: Bounded, by: float, widened: float) -> Bounded:
    return Bounded(number.value + by, number.lower + by - widened, number.upper + by + widened)


def _blur(distance: float, count: int, leading: Leading) -> float:
    """How far sum sigma ln sigma moves if `count` values move by `distance` in all.

    A value that moves by x moves sigma ln sigma by at most x (2 + |ln x| + |ln sigma_1|), which is
    concave in x: the worst is to move all by the same amount.
    """
    if distance == 0.0:
        return 0.0
    each = distance / count
    largest = float(leading.values[0] + leading.bounds[0])
    return distance * (2.0 + abs(math.log(each)) + abs(math.log(largest)))


def _certain(total: Bounded, weighted: Bounded, leading: Leading) -> tuple[Bounded, Bounded]:
    """Cut both intervals to what the energy E of N values in [0, top] allows.

    E / top <= sum sigma <= sqrt(N E); and for T = sum sigma, by Jensen's inequality for x ln x and
    for ln with weights sigma / T, T ln(T / N) <= sum sigma ln sigma <= min(T ln(E / T), T ln top).
    """
    top, count = leading.next_upper, leading.right.shape[0] - len(leading.values)
    energy, error = leading.energy
    values, bounds = leading.values, leading.bounds
    least = energy - error - float(((values + bounds) ** 2).sum())
    most = energy + error - float((np.maximum(values - bounds, 0.0) ** 2).sum())
    widen = 1.0 + 64 * UNIT_ROUNDOFF
    most = max(most, 0.0) * widen
    low = max(least, 0.0) / top / widen
    high = min(math.sqrt(count * most), count * top) * widen
    total = _cut(total, low, high)
    ends = [total.lower, total.upper]
    inner = [x for x in (count / math.e, most / math.e, most / top) if ends[0] < x < ends[1]]
    tried = [*ends, *inner]
    lower = min(float(xlogy(x, x / count)) for x in tried)
    upper = max(min(float(xlogy(x, most / x)), x * math.log(top)) if x else 0.0 for x in tried)
    slack = 64 * UNIT_ROUNDOFF * (abs(lower) + abs(upper))
    return total, _cut(weighted, lower - slack, upper + slack)


def _cut(number: Bounded, low: float, high: float) -> Bounded:
    """The part of an interval in [low, high], and the value nearest to its own in there."""
    lower, upper = (min(max(end, low), high) for end in (number.lower, number.upper))
    return Bounded(min(max(number.value, lower), upper), lower, upper)
