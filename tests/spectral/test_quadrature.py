"""Sums over singular values that nobody computed one by one.

Shape legend: R = min(m, n) singular values, k of them leading, the tail is the other R - k.
"""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from scipy.special import xlogy

from spectral import quadrature
from spectral.bidiagonal import UnitMatrix, random_block
from spectral.decompose import Tail
from spectral.quadrature import probe, tail_sums
from spectral.subspace import leading_triples
from tests.spectral.test_subspace import FAMILIES, Case, sample, solved

K = 8


def true_sums(case: Case) -> tuple[float, float]:
    rest = case.values[len(case.leading.values) :]
    return float(rest.sum()), float(xlogy(rest, rest).sum())


def covers(case: Case, tail: Tail) -> tuple[bool, bool]:
    total, weighted = true_sums(case)
    return (
        tail.total.lower <= total <= tail.total.upper,
        tail.weighted.lower <= weighted <= tail.weighted.upper,
    )


@functools.cache
def cases() -> tuple[Case, ...]:
    """Matrices of seven families with different probes each: the draw depends on the shape."""
    return tuple(
        solved(sample(family, 200 + seed, 160, seed), k=K, probes=8, steps=16)
        for family in FAMILIES
        for seed in range(16)
    )


def family_of(name: str) -> tuple[Case, ...]:
    first = 16 * FAMILIES.index(name)
    return cases()[first : first + 16]


def test_intervals_hold_the_truth_at_the_stated_rate() -> None:
    """112 matrices at 99 %: more than 5 misses of a kind have a probability below 0.1 %."""
    covered = np.array([covers(case, tail_sums(case.matrix, case.leading)) for case in cases()])

    misses = (~covered).sum(axis=0)
    assert covered.shape == (112, 2)
    assert (misses <= 5).all(), misses


def test_at_even_odds_a_fair_share_of_intervals_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twin: intervals are no wider than their confidence needs, so the check above can fail."""
    monkeypatch.setattr(quadrature, "CONFIDENCE", 0.5)
    broad = [*family_of("1/i"), *family_of("1/sqrt(i)")]

    covered = [covers(case, tail_sums(case.matrix, case.leading))[0] for case in broad]

    assert 0.25 <= np.mean(covered) <= 0.85


def test_the_estimate_lies_in_its_own_interval() -> None:
    for case in cases():
        tail = tail_sums(case.matrix, case.leading)
        for number in (tail.total, tail.weighted):
            assert number.lower <= number.value <= number.upper
        assert tail.method == "slq"


@pytest.mark.parametrize(("family", "error"), [("gaussian", 0.03), ("1/i", 0.06), ("1/i^2", 0.01)])
def test_intervals_are_narrow_beside_the_whole_sum(family: str, error: float) -> None:
    for case in family_of(family):
        total = tail_sums(case.matrix, case.leading).total
        assert total.upper - total.lower <= 2 * error * case.values.sum()


def test_each_run_encloses_its_own_quadratic_form() -> None:
    """Gauss lies above and Gauss-Radau below v^T f(C) v, for sigma and for -sigma ln sigma."""
    matrix = sample("1/sqrt(i)", 80, 60, 1)
    unit = UnitMatrix(matrix)
    left, values, right = np.linalg.svd(matrix.numpy() / unit.scale, full_matrices=False)
    apart = [torch.tensor(side) for side in (left[:, :5], right[:5].T.copy())]
    start = random_block(unit, 60, 4, "probes").numpy()
    start -= right[:5].T @ (right[:5] @ start)
    weights = (right[5:] @ (start / np.linalg.norm(start, axis=0))) ** 2
    top = values[5] * 1.01
    widths = []
    for steps in (2, 5, 20):
        rules = quadrature._rules(probe(unit, *apart, steps=steps, runs=4), top)

        shares = values[5:] / top
        exact = (values[5:] @ weights, -xlogy(shares, shares) @ weights)
        for (below, above), truth in zip((rules.sums, rules.entropies), exact, strict=True):
            assert (below <= truth + 1e-12).all()
            assert (truth <= above + 1e-12).all()
        np.testing.assert_allclose(rules.squares, values[5:] ** 2 @ weights, rtol=1e-12)
        widths.append(float((rules.sums[1] - rules.sums[0]).mean()))
    assert widths[0] > 3 * widths[1] > 9 * widths[2]


@pytest.mark.parametrize("family", ["rank 10", "rank 10 + tail"])
def test_no_tail_and_a_flat_tail_are_known_almost_exactly(family: str) -> None:
    """A flat spectrum has v^T f(C) v = f for every v: there is no spread to speak of."""
    case = solved(sample(family, 240, 200, 2), k=10)
    total, weighted = true_sums(case)

    tail = tail_sums(case.matrix, case.leading)

    assert covers(case, tail) == (True, True)
    assert abs(tail.total.value - total) <= 1e-9
    assert abs(tail.weighted.value - weighted) <= 1e-9
    assert tail.total.upper - tail.total.lower <= 1e-6


def test_where_all_values_are_known_the_tail_is_nothing() -> None:
    matrix = sample("1/i", 30, 20, 3)

    tail = tail_sums(matrix, leading_triples(matrix, 20))

    assert (tail.total, tail.weighted) == ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))


def test_energy_cuts_what_too_few_runs_leave_open() -> None:
    """E / sigma_{k+1} <= sum sigma <= sqrt((R - k) E) whatever the runs say."""
    case = solved(sample("gaussian", 240, 200, 4), k=K)
    rest = case.values[K:]
    energy = (rest**2).sum()

    total = tail_sums(case.matrix, case.leading, steps=1, probes=3).total

    assert total.lower >= energy / rest[0] * 0.95
    assert total.upper <= np.sqrt(len(rest) * energy) * 1.05


def test_more_runs_narrow_the_interval() -> None:
    case = solved(sample("1/sqrt(i)", 240, 200, 5), k=K)

    few, many = (tail_sums(case.matrix, case.leading, probes=probes) for probes in (4, 64))

    assert covers(case, many) == (True, True)
    assert many.total.upper - many.total.lower < 0.5 * (few.total.upper - few.total.lower)


def test_the_runs_that_bounded_the_remainder_serve_again() -> None:
    """The same numbers, to the bit, from the runs that `leading` holds and from new ones."""
    matrix = sample("1/i", 240, 200, 6)
    leading = leading_triples(matrix, K, steps=12, probes=6)

    assert tail_sums(matrix, leading) == tail_sums(matrix, leading, steps=12, probes=6)


@pytest.mark.parametrize("factor", [1e-18, 1e18])
def test_sums_of_unit_values_hold_at_every_scale(factor: float) -> None:
    case = solved((sample("1/i", 240, 200, 7) * factor).float(), k=K)

    assert covers(case, tail_sums(case.matrix, case.leading)) == (True, True)


def test_neither_the_matrix_nor_random_numbers_are_touched() -> None:
    matrix = sample("1/i", 240, 200, 8).float()
    leading = leading_triples(matrix, K)
    copy, state = matrix.clone(), torch.get_rng_state()
    left = leading.left.clone()

    tail_sums(matrix, leading, steps=6, probes=5)

    assert torch.equal(matrix, copy)
    assert torch.equal(leading.left, left)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("steps", "probes"), [(None, 2), (0, None)])
def test_too_few_runs_or_steps_are_refused(steps: int | None, probes: int | None) -> None:
    matrix = sample("1/i", 30, 20, 9)
    leading = leading_triples(matrix, 2)

    with pytest.raises(ValueError, match="expected at least") as caught:
        tail_sums(matrix, leading, steps=steps, probes=probes)

    assert str(caught.value) == (
        f"expected at least 3 probes of at least 1 step, got probes={probes}, steps={steps}"
    )


def test_an_estimate_of_other_values_would_be_caught() -> None:
    """Twin: with the values between k and d half as large again, the sums are not covered."""
    case = solved(sample("1/i", 240, 200, 10), k=K)
    leading = dataclasses.replace(case.leading, found=case.leading.found * 1.5)

    assert covers(case, tail_sums(case.matrix, case.leading)) == (True, True)
    assert covers(case, tail_sums(case.matrix, leading)) == (False, False)
