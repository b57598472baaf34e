"""Every fit against a known answer: a line, a hand count, an enumeration, or scipy's slow loop."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from orchestrator import fits
from orchestrator.fits import kendall_tau, largest_drop, spearman_in_blocks, theil_sen

# along one trajectory


def test_theil_sen_finds_an_exact_line_under_outliers():
    """28 % of the points are arbitrary: fewer than the 29 % that break a median of pair slopes."""
    x = np.arange(25.0)
    values = 3.0 - 0.5 * x
    values[[0, 4, 9, 13, 18, 20, 24]] = [1e6, -1e3, 77.0, 1e9, -5.0, 0.0, -1e9]

    assert theil_sen(x, values[None]) == pytest.approx([-0.5], abs=1e-12)


def test_many_theil_sen_slopes_equal_scipys_one_by_one(monkeypatch):
    """In chunks of two series, and with ties; rtol: the same quotients, the same median."""
    monkeypatch.setattr(fits, "_CHUNK", 2 * 17 * 16 // 2)
    generator = np.random.default_rng(0)
    x = np.log10(np.arange(17) * 3 + 1.0)
    values = np.concatenate([generator.normal(size=(4, 17)), generator.integers(0, 3, (3, 17))])

    found = theil_sen(x, values)

    assert found == pytest.approx([stats.theilslopes(y, x).slope for y in values], rel=1e-13)


def test_kendall_tau_of_four_points_by_hand():
    """1 3 2 4: five pairs rise, one falls, of six. 1 2 2 3: five rise, one is tied."""
    values = np.array([[1.0, 3.0, 2.0, 4.0], [1.0, 2.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0]])

    assert kendall_tau(values) == pytest.approx([4 / 6, 5 / math.sqrt(6 * 5), -1.0], rel=1e-15)


def test_many_kendall_taus_equal_scipys_one_by_one(monkeypatch):
    monkeypatch.setattr(fits, "_CHUNK", 1)
    values = np.random.default_rng(0).integers(0, 6, size=(8, 15)).astype(float)

    expected = [stats.kendalltau(np.arange(15), y).statistic for y in values]

    assert kendall_tau(values) == pytest.approx(expected, rel=1e-12)


def test_a_constant_or_single_point_has_no_tau_and_no_slope():
    assert np.isnan(kendall_tau(np.ones((1, 5)))).all()
    assert np.isnan(kendall_tau(np.ones((1, 1)))).all()
    assert np.isnan(theil_sen(np.ones(1), np.ones((1, 1)))).all()
    assert theil_sen(np.arange(5.0), np.ones((1, 5))) == pytest.approx([0.0], abs=0)


def test_the_largest_drop_is_between_neighbours_and_dated_by_the_later():
    steps = np.array([0, 10, 100, 1000])
    values = np.array([[9.0, 8.0, 3.0, 1.0], [5.0, 3.0, 4.0, 2.0], [1.0, 2.0, 2.0, 3.0]])

    drop, at = largest_drop(steps, values)

    assert drop.tolist() == [5.0, 2.0, 0.0]
    assert at[:2].tolist() == [100.0, 10.0]  # 2 -> drops twice by 2.0: the first counts
    assert np.isnan(at[2])


# permutation tests


def test_the_permutation_p_of_a_tiny_case_is_an_enumeration():
    """Two seeds, three levels: all 3! x 3! = 36 arrangements, ranked by scipy one by one."""
    levels = np.array([0.0, 0.3, 1.0, 0.0, 0.3, 1.0])
    outcome = np.array([5.0, 4.0, 1.0, 6.0, 2.0, 3.0])
    observed = stats.spearmanr(levels, outcome).statistic
    everything = [
        abs(stats.spearmanr([*first, *second], outcome).statistic)
        for first in itertools.permutations([0.0, 0.3, 1.0])
        for second in itertools.permutations([0.0, 0.3, 1.0])
    ]

    found = spearman_in_blocks(levels, outcome[:, None], np.array([0, 0, 0, 1, 1, 1]))

    assert (found.num_permutations, found.exact) == (36, True)
    assert found.rho[0] == pytest.approx(observed, rel=1e-12)
    assert found.p[0] == np.mean(np.array(everything) >= abs(observed) - 1e-9)
    assert found.smallest_p[0] == np.mean(np.array(everything) >= max(everything) - 1e-9)


def test_three_trials_can_never_be_significant():
    """One seed, three levels: a perfect order has 2 of 6 arrangements as extreme, up and down."""
    found = spearman_in_blocks(np.arange(3.0), np.array([[9.0], [5.0], [2.0]]), np.zeros(3, int))

    assert (found.rho[0], found.p[0], found.smallest_p[0]) == (-1.0, 2 / 6, 2 / 6)


def test_differences_between_seeds_cannot_make_a_small_p():
    """Permuting across blocks would see a strong trend here: seed 1 has higher levels and values.

    Inside a block nothing is related, by construction: both arrangements of the tie are equal.
    """
    levels = np.array([0.0, 1.0, 10.0, 11.0])
    outcome = np.array([[1.0], [1.0], [5.0], [5.0]])

    found = spearman_in_blocks(levels, outcome, np.array([0, 0, 1, 1]))

    assert found.rho[0] > 0.8
    assert (found.p[0], found.num_permutations) == (1.0, 4)


def test_blocks_need_not_be_contiguous():
    generator = np.random.default_rng(0)
    levels, outcome = generator.permutation(9) * 1.0, generator.normal(size=(9, 2))
    blocks = np.array([2, 0, 1, 1, 2, 0, 0, 1, 2])
    sort = np.argsort(blocks)

    shuffled = spearman_in_blocks(levels, outcome, blocks)
    sorted_ = spearman_in_blocks(levels[sort], outcome[sort], blocks[sort])

    assert shuffled.p.tolist() == sorted_.p.tolist()
    assert shuffled.rho.tolist() == sorted_.rho.tolist()


def test_sampled_permutations_agree_with_the_enumeration(monkeypatch):
    """4!^3 = 13,824 arrangements against 10,000 draws in ten chunks: 4 standard errors of p."""
    monkeypatch.setattr(fits, "_CHUNK", 12 * 1000)
    generator = np.random.default_rng(0)
    levels = np.tile([0.0, 0.3, 1.0, 2.0], 3)
    outcomes = generator.normal(size=(12, 20)) - levels[:, None]
    blocks = np.repeat([0, 1, 2], 4)

    exact = spearman_in_blocks(levels, outcomes, blocks, max_permutations=13_824)
    sampled = spearman_in_blocks(levels, outcomes, blocks)

    assert (exact.exact, exact.num_permutations) == (True, 13_824)
    assert (sampled.exact, sampled.num_permutations) == (False, 10_001)
    assert sampled.smallest_p.tolist() == [1 / 10_001] * 20
    error = 4 * np.sqrt(exact.p * (1 - exact.p) / 10_000) + 1e-4
    assert np.all(np.abs(sampled.p - exact.p) <= error)
    assert sampled.p.tolist() == spearman_in_blocks(levels, outcomes, blocks).p.tolist()


def test_the_permutation_test_is_honest_under_the_null():
    """400 null outcomes: P(p <= 0.05) <= 0.05, here with 4 standard errors of sampling."""
    outcomes = np.random.default_rng(1).normal(size=(9, 400)) + np.repeat([0, 5, 50], 3)[:, None]

    found = spearman_in_blocks(np.tile([0.0, 1.0, 2.0], 3), outcomes, np.repeat([0, 1, 2], 3))

    assert np.mean(found.p <= 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)
    assert np.mean(found.p) > 0.4  # and it is not simply always large or small
    assert np.mean(found.p <= 0.05) > 0.0
