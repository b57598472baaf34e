"""docs/reproduction.md counts what it says it counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks import reproduction_chance as chance
from benchmarks import reproduction_counts as counts
from benchmarks import reproduction_summary as summary
from benchmarks.reproduction_counts import Count


@pytest.mark.parametrize(
    ("held", "total", "verdict"),
    [
        (10, 10, "yes"),
        (9, 10, "yes"),
        (8, 10, "partly"),
        (2, 10, "partly"),
        (1, 10, "no"),
        (0, 5, "no"),
        (0, 0, "-"),
    ],
)
def test_nine_cases_in_ten_are_a_yes_and_one_in_ten_is_a_no(held, total, verdict):
    """The bounds belong to yes and to no."""
    assert Count(held, total).verdict == verdict


def test_two_conditions_are_a_yes_only_together_and_a_no_without_the_first():
    """B2: near the full model first, close to it second."""
    yes, partly, no = Count(5, 5), Count(3, 5), Count(0, 5)

    assert counts.both(yes, yes) == "yes"
    assert [counts.both(yes, other) for other in (partly, no)] == ["partly", "partly"]
    assert [counts.both(no, other) for other in (yes, no)] == ["no", "no"]
    assert counts.both(Count(0, 0), yes) == "-"


def test_a_level_is_reached_from_the_step_after_which_values_stay_there():
    """A dip, or a value that is not known, starts again; the level itself is enough."""
    assert counts.reached([(0, 0.6), (1, 0.4), (2, 0.5), (3, 0.9)], 0.5) == 2
    assert counts.reached([(0, 0.6), (1, math.nan), (2, 0.7)], 0.5) == 2
    assert counts.reached([(0, 0.6), (1, 0.4)], 0.5) == math.inf


def _agreement(leading, last):
    """Twenty entries a step: ten of one value, ten of another."""
    return [
        (step, np.repeat([first, second], 10))
        for step, (first, second) in enumerate(zip(leading, last, strict=True))
    ]


@pytest.mark.parametrize(
    ("leading", "last", "order"),
    [
        ((0.1, 0.9, 1.0), (0.1, 0.1, 1.0), "earlier"),
        ((0.1, 0.1, 1.0), (0.1, 0.9, 1.0), "later"),
        ((0.1, 0.1, 1.0), (0.1, 0.1, 1.0), "together"),
        ((0.1, 0.1, 0.1), (0.1, 0.1, 0.1), "neither"),
        ((0.1, 0.1, 0.9), (0.9, 0.9, 0.1), "earlier"),
    ],
)
def test_vectors_settle_in_the_order_in_which_their_means_reach_a_level(leading, last, order):
    """Who falls back has not settled."""
    assert counts.order(_agreement(leading, last), 0.5) == order


def test_evenly_spaced_steps_leave_out_the_dense_ones_and_the_odd_end():
    """Multiples of the largest gap, as far as they are all there."""
    assert counts.even_steps([0, 1, 3, 100, 130, 200, 300, 350]) == [0, 100, 200, 300]
    assert counts.even_steps([0]) == [0]


def test_the_largest_drop_compares_equal_spans_after_a_step_only():
    """A longer span or an earlier one may hold more: neither counts."""
    series = {0: 9.0, 10: 5.0, 11: 2.0, 20: 4.0, 30: 1.0, 40: 0.5}

    assert counts.largest_drop(series, [0, 10, 20, 30, 40], since=10) == (30, -3.0)
    assert counts.largest_drop(series, [0, 10, 20, 30, 40], since=0) == (10, -4.0)
    assert counts.largest_drop(series, [0, 10, 20, 30, 40], since=40) is None
    assert counts.largest_drop(series, [0, 10, 20, 30, 40], since=math.inf) is None


def test_steps_coincide_within_a_tenth_of_all_steps_of_their_median():
    """The median of 90, 100 and 900 is 100."""
    assert counts.coincide([90, 100, 900], 200, 1000)
    assert not counts.coincide([90, 100, 900], 201, 1000)
    assert not counts.coincide([], 0, 1000)


def test_a_decay_trains_if_it_keeps_half_of_what_no_decay_gains_on_chance():
    """With chance at 2 and 0 without decay, 1 trains; nothing does after a level that fails."""
    assert counts.last_that_trains({0.0: 0.0, 0.1: 1.0, 1.0: 1.1}, 2.0) == 0.1
    assert counts.last_that_trains({0.0: 0.0, 0.1: 1.5, 1.0: 0.5}, 2.0) == 0.0
    assert counts.last_that_trains({1.0: 0.2, 0.0: 0.1}, 2.0) == 1.0


RANKS = {(0, 0): 0.9, (1, 0): 0.8, (2, 0): 0.7, (0, 1): 0.9, (1, 1): 1.0, (2, 1): 0.5, (0, 2): 0.1}
"""Seed 0 falls at each level, seed 1 rises and falls, seed 2 has no other level."""


def test_lower_at_a_level_counts_the_seeds_that_have_both():
    """Seed 2 has one value only."""
    assert counts.lower(RANKS, 0, 1) == Count(1, 2)
    assert counts.lower(RANKS, 0, 2) == Count(2, 2)


def test_monotone_wants_every_level_below_the_one_before():
    """Seed 1 rises first; equal is not lower; a level that a seed lacks is passed over."""
    assert counts.monotone(RANKS, [0, 1, 2]) == Count(1, 2)
    assert counts.monotone({(0, 0): 0.5, (1, 0): 0.5}, [0, 1]) == Count(0, 1)
    assert counts.monotone({(0, 0): 0.5, (2, 0): 0.4}, [0, 1, 2]) == Count(1, 1)


def test_the_top_half_is_near_and_close_by_distance_and_by_ratio():
    """1.2 is close to 1; 2 is not, but nearer to 1 than to 4; 3 is nearer to 4."""
    seeds = [{"full": 1.0, "top": top, "bottom": 4.0} for top in (1.2, 2.0, 3.0)]

    assert summary.closeness(seeds) == (Count(2, 3), Count(1, 3))


def test_chance_is_the_entropy_of_the_labels_frequencies():
    """ln 10 for ten equally frequent labels, 0 for one alone."""
    ten = torch.arange(10).repeat(7)

    # rtol: float64 sums of ten terms
    assert chance.entropy(ten) == pytest.approx(math.log(10), rel=1e-12)
    assert chance.entropy(torch.full((3, 4), 5)) == 0


def test_a_range_is_the_median_and_the_extremes_of_what_is_known():
    """NaN and nothing are left out."""
    assert counts.median_range([3.0, 1.0, math.nan, 2.0, None]) == "2 (1 to 3)"
    assert counts.median_range([]) == "-"
