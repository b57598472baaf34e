"""Ranks of matrices whose largest singular values alone are known, against the full spectrum."""

import math
from dataclasses import replace

import numpy as np
import pytest

from spectral import Bounded, Decomposition
from spectral.decompose import Tail
from spectral.norms import nuclear_norm, nuclear_norm_relative, spectral_norm
from spectral.rank_rows import ESTIMATED, NAMES, rank_rows
from spectral.ranks import (
    effective_rank,
    gini,
    mass_rank,
    numerical_rank,
    participation_rank,
    spectral_entropy,
    stable_rank,
)
from tests.spectral.spectra_truth import known_spectrum, obvious

GAUSSIAN = np.sort(np.abs(np.random.default_rng(31).normal(size=60)))[::-1] + 0.01
POWER_LAW = 1.0 / np.arange(1, 61) ** 2
STEEP = np.geomspace(1.0, 1e-12, 60)
SPECTRA = {"half normal": GAUSSIAN, "1/i^2": POWER_LAW, "steep": STEEP, "equal": np.ones(60)}


def partly_known(
    values: np.ndarray, known: int, *, error: float = 1e-3, bound: float = 1e-9
) -> Decomposition:
    """The first `known` values, and sums over the others that may be off by a relative error."""
    rest = values[known:]
    sums = [math.fsum(rest), math.fsum(v * math.log(v) for v in rest if v > 0.0)]
    total, weighted = (
        # estimates that are off by two thirds of their interval
        Bounded(s + 2 / 3 * w, s - 1 / 3 * w, s + 5 / 3 * w)
        for s, w in ((s, abs(s) * error) for s in sums)
    )
    full = known_spectrum(values, np.zeros(len(values)))
    return replace(
        full,
        unit_values=values[:known],
        unit_bounds=np.full(known, bound),
        unit_frobenius_bound=full.unit_frobenius * 1e-13,
        tail=Tail(total, weighted, "slq"),
    )


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("known", [1, 10, 59])
def test_intervals_hold_the_metrics_of_the_full_spectrum(name: str, known: int) -> None:
    values = SPECTRA[name]
    true, decomposition = obvious(values), partly_known(values, known)

    found = {
        "effective_rank": effective_rank(decomposition),
        "spectral_entropy": spectral_entropy(decomposition),
        "stable_rank": stable_rank(decomposition),
        "participation_rank": participation_rank(decomposition),
        "norm/nuclear": nuclear_norm(decomposition),
        "norm/spectral": spectral_norm(decomposition),
    }

    for metric, number in found.items():
        assert number.lower <= number.value <= number.upper, metric
        assert number.lower * (1 - 1e-13) <= true[metric] <= number.upper * (1 + 1e-13), metric


@pytest.mark.parametrize("corner", ["low", "high", "both"])
def test_intervals_hold_every_spectrum_in_the_box_of_the_known_values(corner: str) -> None:
    """s ln s turns at 1 / e: values on either side of it, and intervals that hold it."""
    bound = 0.1
    values = np.array([3.0, 1.0, 0.42, 0.4, 0.38, 0.34, 0.3, 0.2, 0.1])
    signs = {"low": [-1.0] * 7, "high": [1.0] * 7, "both": [1.0, -1.0] * 3 + [1.0]}[corner]
    true = values + bound * np.array([*signs, 0.0, 0.0])
    decomposition = partly_known(values, 7, error=1e-6, bound=bound)
    norm = known_spectrum(true, np.zeros(9)).unit_frobenius
    decomposition = replace(decomposition, unit_frobenius=norm, unit_frobenius_bound=norm * 1e-13)

    found = obvious(true)

    for metric, function in (
        ("effective_rank", effective_rank),
        ("participation_rank", participation_rank),
        ("norm/nuclear", nuclear_norm),
    ):
        number = function(decomposition)
        assert number.lower <= found[metric] <= number.upper, metric


def test_the_sum_of_s_ln_s_is_enclosed_where_it_turns() -> None:
    """Two values at 1 / e, the lowest point, which is the lower end of their intervals.

    Many small others make the entropy fall with the sum, so the truth is the interval's upper end.
    """
    others = np.full(500, 0.01)
    at = math.exp(-1.0)
    true = np.array([at, at, *others])
    middle = np.array([at + 0.1, at + 0.1, *others])

    number = effective_rank(partly_known(middle, 2, error=0.0, bound=0.1))

    assert number.upper == pytest.approx(obvious(true)["effective_rank"], rel=1e-9)
    assert number.upper >= obvious(true)["effective_rank"]


def test_the_sum_of_s_ln_s_is_enclosed_at_the_lower_end_of_an_interval() -> None:
    """s ln s is 0 at 0 and negative at 0.2; large values make the entropy rise with the sum."""
    true = np.array([3.0, 3.0, 3.0, 0.0, 0.0])
    decomposition = partly_known(np.array([3.0, 3.0, 3.0, 0.1, 0.0]), 4)
    decomposition = replace(decomposition, unit_bounds=np.array([0.0, 0.0, 0.0, 0.1]))

    number = effective_rank(decomposition)

    assert number.lower == pytest.approx(obvious(true)["effective_rank"], rel=1e-9)
    assert number.lower <= obvious(true)["effective_rank"] * (1 + 1e-15)


@pytest.mark.parametrize("known", [20, 40])
def test_intervals_narrow_with_the_tails(known: int) -> None:
    """Twin: the intervals above are not simply the whole range."""
    wide = effective_rank(partly_known(GAUSSIAN, known, error=1e-2))
    narrow = effective_rank(partly_known(GAUSSIAN, known, error=1e-4))

    assert (narrow.upper - narrow.lower) * 50 < wide.upper - wide.lower < 5.0


def test_participation_needs_no_estimate_where_the_known_values_hold_the_energy() -> None:
    """1/i^2, 10 of 60 known: the others hold 2e-4 of sum s^2, and no more than 3e-8 of sum s^4."""
    decomposition = partly_known(POWER_LAW, 10)
    nothing = Tail(Bounded(*[math.nan] * 3), Bounded(*[math.nan] * 3), "none")

    found = participation_rank(decomposition)

    assert found.upper - found.lower < 1e-6
    assert participation_rank(replace(decomposition, tail=nothing)) == found


def test_mass_rank_is_known_where_the_known_values_hold_nine_tenths() -> None:
    true = obvious(POWER_LAW)["mass_rank"]

    assert mass_rank(partly_known(POWER_LAW, 20)) == Bounded(true, true, true)
    assert math.isnan(mass_rank(partly_known(GAUSSIAN, 20)).value)


def test_numerical_rank_is_known_where_the_known_values_reach_the_threshold() -> None:
    threshold = 60 * 2.0**-23
    true = float((STEEP > threshold).sum())

    certain = partly_known(STEEP, 40)
    certain = replace(certain, unit_bounds=np.full(40, 1e-13))
    assert numerical_rank(certain) == Bounded(true, true, true)
    assert math.isnan(numerical_rank(partly_known(STEEP, 10)).value)


def test_what_nothing_settles_is_unknown() -> None:
    unknown = Bounded(math.nan, math.nan, math.nan)
    decomposition = replace(partly_known(GAUSSIAN, 20), tail=Tail(unknown, unknown, "none"))

    for metric in (effective_rank, spectral_entropy, mass_rank, nuclear_norm, gini):
        assert all(math.isnan(end) for end in metric(decomposition)), metric
    assert math.isnan(nuclear_norm_relative(decomposition).value)


def test_what_rests_on_estimates_says_so() -> None:
    """Every other row keeps the flag of the matrix, as all do where that is not None."""
    decomposition = partly_known(POWER_LAW, 20)

    (rows,) = rank_rows(["w"], [decomposition], [None])
    (collapsed,) = rank_rows(["w"], [decomposition], ["collapsed"])

    assert tuple(row.metric for row in rows) == NAMES
    estimated = {row.metric.split("/")[0] for row in rows if row.flag == ESTIMATED}
    certain = {row.metric.split("/")[0] for row in rows if row.flag is None}
    assert estimated == {"effective_rank", "spectral_entropy", "mass_rank", "norm"}
    assert certain == {"stable_rank", "participation_rank", "numerical_rank", "gini", "norm"}
    assert {row.flag for row in collapsed} == {"collapsed"}


def test_whole_and_partly_known_matrices_may_be_measured_together() -> None:
    partly, whole = partly_known(GAUSSIAN, 20), known_spectrum(GAUSSIAN, np.full(60, 1e-9))

    together = rank_rows(["a", "b"], [partly, whole], [None, None])

    alone = [rank_rows(["a"], [partly], [None])[0], rank_rows(["b"], [whole], [None])[0]]
    assert repr(together) == repr(alone)
