"""What alignment and agreement are for vectors that have nothing to do with each other."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from spectral.bounded import Bounded
from spectral.entropy import Array

# Vectors drawn to simulate a chance level, which is then known to about 0.5 %: its interval says.
_DRAWN = 10_240


def alignment_chance(length: int) -> float:
    """sqrt(2 / pi) / sqrt(length): the expected |<a, b>| of random unit vectors of that length."""
    return math.sqrt(2.0 / math.pi / length)


def agreement_chance(shape: tuple[int, int]) -> float:
    """(2 / pi) / sqrt(m n): the expected |(u . u*) (v . v*)| of random unit vectors."""
    return 2.0 / math.pi / math.sqrt(shape[0] * shape[1])


@lru_cache(maxsize=4096)
def matched_chance(size: int, length: int, taps: int = 1) -> Bounded:
    """What optimal matching makes of vectors that have nothing to do with each other.

    Mean, over random orthonormal frames, of the best mean over permutations of `size` x `size`
    absolute inner products; simulated with a generator of its own. Frames longer than 256 (or 16
    times their size) are drawn at that length and scaled, as entries are then normal to 1 %.

    Args:
        size: how many vectors are matched.
        length: the unsliced length of the vectors: the square of an inner product is 1 / length on
            average.
        taps: absolute inner products are means over so many taps.

    Returns:
        the mean with three standard errors on both sides.
    """
    generator = np.random.default_rng(0)
    rows = max(min(length, max(256, 16 * size)), size)
    draws = max(_DRAWN // (size * taps), 64)
    best = np.empty(draws)
    for draw in range(draws):
        # against any fixed frame the inner products are those with the first coordinate axes
        frames = np.linalg.qr(generator.standard_normal((taps, rows, size)))[0]
        best[draw] = best_matching(np.abs(frames[:, :size]).mean(0))
    best *= math.sqrt(rows / length)
    error = 3.0 * float(best.std()) / math.sqrt(draws)
    value = float(best.mean())
    return Bounded(value, value - error, value + error)


def best_matching(similarity: Array) -> float:
    """The largest mean over permutations pi of similarity[j, pi(j)]."""
    return float(similarity[linear_sum_assignment(similarity, maximize=True)].mean())
