"""Every other metric of `ranks`: known answers, intervals that hold, rows that stand alone."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral import EFFECTIVE_RANK_TOLERANCE, Bounded, Decomposition, decompose
from spectral.baselines import baseline
from spectral.metrics_ranks import RANK_METRICS
from spectral.norms import (
    frobenius_norm,
    nuclear_norm,
    nuclear_norm_relative,
    spectral_norm,
    spectral_norm_relative,
)
from spectral.rank_rows import NAMES, rank_rows
from spectral.ranks import (
    effective_rank,
    entropy_over_log_rank,
    gini,
    gini_relative,
    mass_rank,
    normalised,
    numerical_rank,
    participation_rank,
    relative,
    spectral_entropy,
    stable_rank,
)
from spectral.rows import ScalarRow
from tests.spectral.spectra_truth import (
    corners,
    ends,
    known_spectrum,
    obvious,
    obvious_numerical_rank,
)

METRICS: dict[str, Callable[[Decomposition], Bounded]] = {
    "effective_rank": effective_rank,
    "spectral_entropy": spectral_entropy,
    "stable_rank": stable_rank,
    "participation_rank": participation_rank,
    "mass_rank": mass_rank,
    "gini": gini,
    "norm/frobenius": frobenius_norm,
    "norm/spectral": spectral_norm,
    "norm/nuclear": nuclear_norm,
}


def rows_of(decomposition: Decomposition, flag: str | None = None) -> dict[str, ScalarRow]:
    (rows,) = rank_rows(["w"], [decomposition], [flag])
    return {row.metric: row for row in rows}


def rows_of_matrix(matrix: Tensor) -> dict[str, ScalarRow]:
    (decomposition,) = decompose([matrix])
    return rows_of(decomposition, decomposition.flag)


# Singular values 4, 2, 2: p = 1/2, 1/4, 1/4; squares 16, 4, 4; fourth powers 256, 16, 16.
DIAGONAL = {
    "effective_rank": 2.0**1.5,
    "effective_rank/normalised": 2.0**1.5 / 3,
    "spectral_entropy": 1.5 * math.log(2),
    "spectral_entropy/over_rank": 0.5 * math.log(2),
    "spectral_entropy/over_log_rank": 1.5 * math.log(2) / math.log(3),
    "stable_rank": 1.5,
    "stable_rank/normalised": 0.5,
    "participation_rank": 2.0,
    "participation_rank/normalised": 2 / 3,
    "mass_rank": 3.0,
    "mass_rank/normalised": 1.0,
    "numerical_rank": 3.0,
    "numerical_rank/normalised": 1.0,
    # pairs differ by 2, 2, 0; (2 * 4) / (2 * 9 * 8 / 3)
    "gini": 1 / 6,
    "norm/frobenius": math.sqrt(24),
    "norm/spectral": 4.0,
    "norm/nuclear": 8.0,
}


@pytest.mark.parametrize("scale", [1.0, 2.0**-70, 2.0**60], ids=["1", "2^-70", "2^60"])
def test_a_diagonal_matrix_has_known_answers(scale: float) -> None:
    """Powers of two: the stored matrix is exactly the scaled one. 1e-13: some sixty roundings."""
    found = rows_of_matrix(torch.diag(torch.tensor([2.0, -4.0, 2.0])) * scale)

    for metric, true in DIAGONAL.items():
        expected = true * scale if found[metric].metric in NORMS else true
        row = found[metric]
        assert row.value == pytest.approx(expected, rel=1e-13), metric
        lower, upper = ends(row)
        assert lower <= expected * (1 + 1e-15), metric
        assert upper >= expected * (1 - 1e-15), metric


NORMS = ("norm/frobenius", "norm/spectral", "norm/nuclear")


@pytest.mark.parametrize(("m", "n"), [(8, 8), (16, 8), (3, 7)])
def test_orthogonal_rows_or_columns_have_every_rank_full(m: int, n: int) -> None:
    rank = min(m, n)

    found = rows_of_matrix(torch.eye(m, n) * 3.0)

    for metric in ("effective_rank", "stable_rank", "participation_rank", "numerical_rank"):
        assert found[metric].value == pytest.approx(rank, rel=1e-13)
        assert found[f"{metric}/normalised"].upper == 1.0
    assert found["spectral_entropy/over_log_rank"].value == pytest.approx(1.0, rel=1e-13)
    assert found["mass_rank"].value == math.floor(0.9 * rank) + 1
    assert found["gini"].value == pytest.approx(0.0, abs=1e-13)
    assert found["norm/nuclear"].value == pytest.approx(3.0 * rank, rel=1e-13)


def test_rank_one_has_every_rank_one() -> None:
    """Whole numbers: the stored matrix has rank 1 exactly. 1e-5: what the Gram may leave behind."""
    matrix = torch.outer(torch.arange(1.0, 13.0), torch.arange(3.0, 10.0))

    found = rows_of_matrix(matrix)

    true = {
        "effective_rank": 1.0,
        "spectral_entropy": 0.0,
        "stable_rank": 1.0,
        "participation_rank": 1.0,
        "mass_rank": 1.0,
        "numerical_rank": 1.0,
        "gini": 6 / 7,
    }
    for metric, expected in true.items():
        row = found[metric]
        assert row.value == pytest.approx(expected, abs=EFFECTIVE_RANK_TOLERANCE), metric
        lower, upper = ends(row)
        assert lower <= expected <= upper, metric


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1)])
def test_a_single_row_has_full_rank_and_no_inequality(shape: tuple[int, int]) -> None:
    """Where a metric would be 0 / 0 it is 1: what every matrix with equal values has."""
    found = rows_of_matrix(torch.full(shape, 0.3))

    ones = [name for name in NAMES if not name.startswith(("norm/", "gini", "spectral_entropy"))]
    for name in (*ones, "spectral_entropy/over_log_rank", "gini/relative"):
        assert found[name].value == pytest.approx(1.0, rel=1e-15), name
    for name in ("spectral_entropy", "spectral_entropy/over_rank", "gini"):
        assert found[name][2:5] == (0.0, 0.0, 0.0), name
    for name in ("norm/spectral_relative", "norm/nuclear_relative"):
        assert found[name].value == pytest.approx(1.0, rel=1e-13), name


@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (70, 64)])
def test_the_zero_matrix_has_zero_everywhere(shape: tuple[int, int]) -> None:
    found = rows_of_matrix(torch.zeros(shape))

    assert tuple(found) == NAMES
    assert {row[2:] for row in found.values()} == {(0.0, 0.0, 0.0, "none", "zero")}


def test_a_matrix_that_is_not_finite_has_no_numbers() -> None:
    found = rows_of_matrix(torch.tensor([[1.0, math.inf], [0.0, 1.0]]))

    assert tuple(found) == NAMES
    assert all(math.isnan(row.value) for row in found.values())
    assert {row[3:] for row in found.values()} == {(None, None, "none", "diverged")}


def test_a_matrix_that_no_solver_solved_has_a_frobenius_norm() -> None:
    nothing = np.full(2, math.nan)
    unsolved = Decomposition((2, 3), nothing, nothing, 5.0, 1e-15, 2.0, "none", "ill_posed")

    found = rows_of(unsolved, "ill_posed")

    assert found["norm/frobenius"].value == 10.0
    assert all(math.isnan(found[name].value) for name in NAMES if name != "norm/frobenius")


@pytest.mark.parametrize(
    "shape", [(9, 9), (20, 7), (3, 40), (2, 2), (1, 6), (64, 64), (100, 70)], ids=str
)
def test_every_metric_agrees_with_a_slow_obvious_version(shape: tuple[int, int]) -> None:
    """NumPy's float64 svd and plain sums; 1e-10: solvers on values down to 0.002 of the largest."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    slow, random, rank = obvious(values), baseline(*shape), min(shape)

    found = rows_of_matrix(matrix)

    expected = dict(slow)
    for name in ("effective_rank", "stable_rank", "participation_rank", "mass_rank"):
        expected[f"{name}/normalised"] = slow[name] / rank
        expected[f"{name}/relative"] = slow[name] / getattr(random, name)
    expected["spectral_entropy/over_rank"] = slow["spectral_entropy"] / rank
    expected["numerical_rank"] = obvious_numerical_rank(values, max(shape) * 2.0**-23)
    expected["numerical_rank/normalised"] = expected["numerical_rank"] / rank
    if rank > 1:
        expected["spectral_entropy/over_log_rank"] = slow["spectral_entropy"] / math.log(rank)
        expected["gini/relative"] = slow["gini"] / random.gini
    for norm in ("spectral", "nuclear"):
        share = slow[f"norm/{norm}"] / slow["norm/frobenius"]
        expected[f"norm/{norm}_relative"] = share / getattr(random, f"{norm}_share")
    for name, true in expected.items():
        assert found[name].value == pytest.approx(true, rel=1e-10, abs=1e-13), name
        lower, upper = ends(found[name])
        assert lower <= true * (1 + 1e-12) + 1e-13, name
        assert upper >= true * (1 - 1e-12) - 1e-13, name


def boxes() -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(21)
    result = []
    for _ in range(50):
        size = generator.integers(1, 6)
        spread = np.sort(10.0 ** generator.uniform(-6, 0, size))[::-1]
        close = np.sort(generator.uniform(0.9, 1.0, size))[::-1]
        twice = np.sort(generator.choice([1.0, 0.5, 0.1, 0.0], size))[::-1] + 0.0
        twice[0] = 1.0
        for values in (spread, close, twice):
            constant = np.full(size, 10.0 ** generator.uniform(-8, 0.3))
            own = values * 10.0 ** generator.uniform(-3, 0.5, size)
            result += [(values, constant), (values, own)]
    return result


def spectra_inside(values: np.ndarray, bounds: np.ndarray) -> list[np.ndarray]:
    """All corners, points inside, clipped constants and the middle of a box."""
    generator = np.random.default_rng(22)
    low, high = np.maximum(values - bounds, 0.0), values + bounds
    inside = (generator.uniform(low, high) for _ in range(10))
    clipped = (np.clip(t, low, high) for t in np.geomspace(1e-9, 10.0, 20))
    spectra = itertools.chain(corners(low, high), inside, clipped, [values])
    return [spectrum for spectrum in spectra if spectrum.sum() > 0.0]


def test_every_interval_holds_every_spectrum_in_the_box() -> None:
    """300 boxes, among them some as large as their values, equal values, and zeros."""
    for values, bounds in boxes():
        decomposition = known_spectrum(values, bounds)
        found = {name: metric(decomposition) for name, metric in METRICS.items()}
        for spectrum in spectra_inside(values, bounds):
            for name, true in obvious(spectrum).items():
                # 1e-13: rounding of the slow version
                assert found[name].lower <= true * (1 + 1e-13) + 1e-14, (name, values, bounds)
                assert found[name].upper >= true * (1 - 1e-13) - 1e-14, (name, values, bounds)


def test_intervals_hold_their_values_and_stay_in_range() -> None:
    for values, bounds in boxes():
        decomposition, rank = known_spectrum(values, bounds), len(values)
        for name, metric in METRICS.items():
            number = metric(decomposition)
            assert number.lower <= number.value <= number.upper, name
            if name.endswith("rank"):
                assert 1.0 <= number.lower, name
                assert number.upper <= rank, name
        assert gini(decomposition).lower >= 0.0
        assert gini(decomposition).upper <= 1.0 - 1.0 / rank
        assert entropy_over_log_rank(decomposition).upper <= 1.0


def test_numerical_rank_intervals_hold_every_spectrum_in_the_box() -> None:
    for values, bounds in boxes():
        for precision in (2.0**-23, 2.0**-7, 2.0):
            found = numerical_rank(known_spectrum(values, bounds, precision=precision))
            assert found.lower <= found.value <= found.upper
            for spectrum in spectra_inside(values, bounds):
                true = obvious_numerical_rank(spectrum, len(values) * precision)
                assert found.lower <= true <= found.upper, (values, bounds, precision)


def derivative(metric: str, values: np.ndarray) -> np.ndarray:
    """By central differences, which are exact to 1e-9 here."""
    gradient = []
    for i in range(len(values)):
        step = np.zeros(len(values))
        step[i] = 1e-6
        above, below = obvious(values + step)[metric], obvious(values - step)[metric]
        gradient.append((above - below) / 2e-6)
    return np.array(gradient)


@pytest.mark.parametrize("metric", ["effective_rank", "spectral_entropy", "gini", "norm/nuclear"])
def test_intervals_of_small_boxes_are_as_tight_as_first_order(metric: str) -> None:
    """Twin: an interval that is always the whole range would pass the tests above."""
    values, bounds = np.geomspace(1.0, 0.01, 12), np.full(12, 1e-7)

    found = METRICS[metric](known_spectrum(values, bounds))

    first_order = (np.abs(derivative(metric, values)) * bounds).sum()
    assert found.upper - found.value == pytest.approx(first_order, rel=1e-2)
    assert found.value - found.lower == pytest.approx(first_order, rel=1e-2)


def test_gini_intervals_end_where_corners_do() -> None:
    """Attained: for intervals that do not overlap both ends are a corner's, to rounding."""
    generator = np.random.default_rng(23)
    for _ in range(50):
        values = np.sort(generator.uniform(0.1, 1.0, 6))[::-1]
        bounds = np.full(6, np.diff(values[::-1]).min() / 2.01)
        low, high = values - bounds, values + bounds
        attained = [obvious(corner)["gini"] for corner in corners(low, high)]

        found = gini(known_spectrum(values, bounds))

        assert found.lower == pytest.approx(min(attained), rel=1e-12)
        assert found.upper == pytest.approx(max(attained), rel=1e-12)


def test_mass_rank_intervals_end_where_corners_do() -> None:
    generator = np.random.default_rng(24)
    wide = 0
    for _ in range(50):
        values = np.sort(generator.uniform(0.01, 1.0, 8))[::-1]
        bounds = np.full(8, np.diff(values[::-1]).min() / 2.01)
        low, high = values - bounds, values + bounds
        attained = [obvious(corner)["mass_rank"] for corner in corners(low, high)]

        found = mass_rank(known_spectrum(values, bounds))

        assert (found.lower, found.upper) == (min(attained), max(attained))
        wide += found.lower < found.upper
    assert wide >= 3


def with_exact_norm(values: np.ndarray, bound: float) -> Decomposition:
    rank = len(values)
    norm = math.sqrt(math.fsum(values**2))
    bounds = np.full(rank, bound)
    return Decomposition((rank, rank), values, bounds, norm, norm * 1e-14, 1.0, "gram64", None)


def test_participation_stays_certain_where_most_values_are_as_small_as_their_bounds() -> None:
    """Rank 3 of 512 with the Gram's floor under the rest: as certain as the three values are."""
    values = np.concatenate([[1.0, 0.5, 0.25], np.zeros(509)])
    decomposition = with_exact_norm(values, 1e-8)

    found = participation_rank(decomposition)

    true = (1 + 1 / 4 + 1 / 16) ** 2 / (1 + 1 / 16 + 1 / 256)
    # d ln(sum s^4) = 4 sum s^3 d / sum s^4, with d = 1e-8
    first_order = 4e-8 * (1 + 1 / 8 + 1 / 64) / (1 + 1 / 16 + 1 / 256)
    assert found.value == pytest.approx(true, rel=1e-13)
    assert found.upper / found.value - 1 == pytest.approx(first_order, rel=1e-3)
    assert 1 - found.lower / found.value == pytest.approx(first_order, rel=1e-3)


def test_a_tie_at_nine_tenths_is_reported_by_both_ends() -> None:
    """Ten equal values: nine of them hold exactly 0.9, which is not more than 0.9."""
    found = mass_rank(with_exact_norm(np.ones(10), 1e-12))

    assert found == Bounded(10.0, 9.0, 10.0)


def test_a_value_at_the_threshold_is_reported_by_both_ends() -> None:
    threshold = 4 * 2.0**-23
    values = np.array([1.0, 0.5, threshold * 1.001, threshold * 0.5])

    assert numerical_rank(known_spectrum(values, np.full(4, 1e-12))) == Bounded(3.0, 3.0, 3.0)
    assert numerical_rank(known_spectrum(values, np.full(4, 1e-8))) == Bounded(3.0, 2.0, 3.0)
    assert numerical_rank(known_spectrum(values, np.full(4, 1e-6))) == Bounded(3.0, 2.0, 4.0)


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_the_numerical_rank_of_a_product_is_its_inner_dimension(scale: float) -> None:
    """Small whole numbers: the stored product has rank 5 exactly, at scale 1; rounding hides it."""
    generator = torch.Generator().manual_seed(25)
    left = torch.randint(-4, 5, (40, 5), generator=generator).float()
    right = torch.randint(-4, 5, (5, 30), generator=generator).float()

    found = rows_of_matrix((left @ right) * scale)["numerical_rank"]

    assert found[2:5] == (5.0, 5.0, 5.0)


def test_the_precision_of_the_weights_sets_the_numerical_rank() -> None:
    """The same values: 2^-10 of the largest is seen by float32, and by bfloat16 it is not."""
    values = np.array([1.0, 2.0**-10])
    bounds = np.full(2, 1e-15)

    assert numerical_rank(known_spectrum(values, bounds)).value == 2.0
    assert numerical_rank(known_spectrum(values, bounds, precision=2.0**-7)).value == 1.0
    wide = known_spectrum(values, bounds, precision=2.0**-7, long_side=128)
    assert numerical_rank(wide) == Bounded(0.0, 0.0, 0.0)


@pytest.mark.parametrize("shape", [(128, 128), (40, 90), (300, 64), (8, 500)], ids=str)
def test_random_weights_are_one_relative_to_random_weights(shape: tuple[int, int]) -> None:
    """Means of 20 draws, within 4 standard errors and the baselines' 1 %."""
    generator = torch.Generator().manual_seed(26)
    decompositions = decompose([torch.randn(shape, generator=generator) for _ in range(20)])
    rows = rank_rows(["w"] * 20, decompositions, [None] * 20)

    for i, name in enumerate(NAMES):
        if name.endswith("relative"):
            found = np.array([draw[i].value for draw in rows])
            error = found.std() / math.sqrt(20)
            assert found.mean() == pytest.approx(1.0, abs=0.01 + 4 * error), name


def assorted() -> list[Decomposition]:
    generator = torch.Generator().manual_seed(27)
    shapes = ((16, 64), (64, 64), (64, 16), (1, 5), (33, 40), (128, 128), (2, 2), (3, 1), (16, 16))
    matrices = [torch.randn(s, generator=generator) for s in shapes * 3]
    for matrix in matrices[9:18]:
        matrix[:, 1:] = matrix[:, :1]
    extra = [torch.zeros(16, 16), torch.full((16, 16), math.nan), torch.full((64, 9), 1e-42)]
    return decompose([*matrices, *extra])


def test_rows_computed_together_equal_those_computed_alone() -> None:
    """Bitwise, in either order: otherwise a trial's numbers would depend on its company."""
    decompositions = assorted()
    subjects = [f"view{i}" for i in range(len(decompositions))]
    flags = [decomposition.flag for decomposition in decompositions]

    together = rank_rows(subjects, decompositions, flags)

    backwards = rank_rows(subjects[::-1], decompositions[::-1], flags[::-1])[::-1]
    each = zip(subjects, decompositions, flags, strict=True)
    alone = [rank_rows([s], [d], [f])[0] for s, d, f in each]
    assert repr(together) == repr(backwards) == repr(alone)


def test_rows_hold_what_the_functions_say() -> None:
    for decomposition in assorted():
        random = baseline(*decomposition.shape)
        numbers = {name: metric(decomposition) for name, metric in METRICS.items()}
        numbers["numerical_rank"] = numerical_rank(decomposition)
        for name in ("effective_rank", "stable_rank", "participation_rank", "mass_rank"):
            numbers[f"{name}/relative"] = relative(numbers[name], getattr(random, name))
        for name in ("effective_rank", "mass_rank", "numerical_rank"):
            numbers[f"{name}/normalised"] = normalised(numbers[name], decomposition)
        entropy = numbers["spectral_entropy"]
        numbers["spectral_entropy/over_rank"] = normalised(entropy, decomposition)
        numbers["spectral_entropy/over_log_rank"] = entropy_over_log_rank(decomposition)
        numbers["gini/relative"] = gini_relative(decomposition)
        numbers["norm/spectral_relative"] = spectral_norm_relative(decomposition)
        numbers["norm/nuclear_relative"] = nuclear_norm_relative(decomposition)

        found = rows_of(decomposition)

        for name, number in numbers.items():
            if math.isnan(number.value):
                assert math.isnan(found[name].value), name
            else:
                assert found[name][2:5] == tuple(number), name


def test_rows_come_in_the_order_of_their_definitions() -> None:
    (decomposition,) = decompose([torch.eye(3)])
    (rows,) = rank_rows(["layer"], [decomposition], ["collapsed"])

    assert [row.metric for row in rows] == [metric.name for metric in RANK_METRICS]
    assert {(row.subject, row.method, row.flag) for row in rows} == {
        ("layer", decomposition.method, "collapsed")
    }


def test_every_matrix_needs_a_subject_and_a_flag() -> None:
    (decomposition,) = decompose([torch.eye(3)])

    message = "expected a subject and a flag for each of 1 matrices, got 2 subjects and 0 flags"

    with pytest.raises(ValueError, match=f"^{message}$"):
        rank_rows(["a", "b"], [decomposition], [])


def test_norms_beyond_float64_keep_an_interval_of_numbers() -> None:
    """The Frobenius norm of sixteen of the largest numbers is 4 times as large."""
    found = rows_of_matrix(torch.full((4, 4), 1.7e308, dtype=torch.float64))

    for name in NORMS:
        assert found[name].value == math.inf
        assert found[name].lower == pytest.approx(1.797e308, rel=1e-3)
    assert found["stable_rank"].value == pytest.approx(1.0, rel=1e-9)
