"""take_snapshot: rows, flags, state, independence of companions, and no side effects."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from spectral import (
    Coupling,
    CouplingEnd,
    MatrixView,
    ScalarRow,
    Snapshot,
    decompose,
    discover,
    effective_rank,
    take_snapshot,
)
from spectral.metrics import METRICS_OF
from spectral.rows import rounded_up
from tests.spectral.groups import MEASURE, VIEWS, companions, content, group

METRICS = tuple(metric.name for metric in METRICS_OF["ranks"])


def rows_of(snapshot: Snapshot, subject: str) -> dict[str, ScalarRow]:
    return {row.metric: row for row in snapshot.scalars if row.subject == subject}


def snapshot_of(matrix: Tensor) -> Snapshot:
    ((snapshot,), _) = take_snapshot([MatrixView("w", "w")], {"w": matrix[None]}, MEASURE, None)
    return snapshot


def test_a_snapshot_has_every_metric_of_every_view_in_order() -> None:
    snapshots, _ = take_snapshot(VIEWS, group(2), MEASURE, None)

    assert len(snapshots) == 2
    for snapshot in snapshots:
        assert [(r.subject, r.metric) for r in snapshot.scalars] == [
            (view.name, metric) for view in VIEWS for metric in METRICS
        ]
        assert [(r.subject, r.quantity) for r in snapshot.spectra] == [
            (view.name, "singular_values") for view in VIEWS
        ]


def test_rows_are_those_of_the_matrices_decomposed_alone() -> None:
    parameters = group(3)

    snapshots, _ = take_snapshot(VIEWS, parameters, MEASURE, None)

    for k, snapshot in enumerate(snapshots):
        for view, spectrum in zip(VIEWS, snapshot.spectra, strict=True):
            (alone,) = decompose([view.read(parameters, stacked=True)[k]], vectors=0)
            row = rows_of(snapshot, view.name)["effective_rank"]
            assert (row.value, row.lower, row.upper) == effective_rank(alone)
            assert (row.method, row.flag) == (alone.method, None)
            np.testing.assert_array_equal(spectrum.values, alone.values)


@pytest.mark.parametrize(
    ("measure", "scalars", "spectra"),
    [(("ranks",), 216, 0), (("spectrum",), 0, 9), (("spectrum", "ranks"), 216, 9), ((), 0, 0)],
)
def test_only_what_is_measured_is_returned(
    measure: tuple[str, ...], scalars: int, spectra: int
) -> None:
    """And the numbers do not depend on what else is measured."""
    (snapshot,), _ = take_snapshot(VIEWS, group(1), measure, None)
    (everything,), _ = take_snapshot(VIEWS, group(1), MEASURE, None)

    assert (len(snapshot.scalars), len(snapshot.spectra)) == (scalars, spectra)
    assert set(content(snapshot)) <= set(content(everything))


def test_a_model_without_matrices_has_empty_snapshots() -> None:
    snapshots, state = take_snapshot([], {"bias": torch.zeros(3, 5)}, MEASURE, None)

    assert snapshots == [Snapshot([], []), Snapshot([], []), Snapshot([], [])]
    assert state == {}


def test_discovered_views_can_be_measured() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Conv1d(2, 3, 2))
    parameters = {name: value[None] for name, value in model.named_parameters()}

    (snapshot,), _ = take_snapshot(discover(model), parameters, ("ranks",), None)

    assert {row.subject for row in snapshot.scalars} == {"0", "1"}


def test_a_zero_matrix_has_rank_zero_and_is_marked() -> None:
    snapshot = snapshot_of(torch.zeros(4, 3))

    assert [row[2:] for row in snapshot.scalars] == [(0.0, 0.0, 0.0, "none", "zero")] * 24
    assert snapshot.spectra[0].flag == "zero"
    assert not snapshot.spectra[0].bounds.any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_matrix_has_nan_rows_without_bounds(bad: float) -> None:
    matrix = torch.eye(4)
    matrix[2] = bad

    snapshot = snapshot_of(matrix)

    assert len(snapshot.scalars) == 24
    for row in snapshot.scalars:
        assert math.isnan(row.value)
        assert row[3:] == (None, None, "none", "diverged")
    assert np.isnan(snapshot.spectra[0].values).all()
    assert np.isnan(snapshot.spectra[0].bounds).all()
    assert snapshot.spectra[0].flag == "diverged"


def test_a_matrix_is_collapsed_below_a_millionth_of_its_first_norm() -> None:
    """The numbers stay the scale-invariant ones, to the bit: halving is exact."""
    views, start = [MatrixView("w", "w")], torch.randn(2, 20, 10)
    (first, _), state = take_snapshot(views, {"w": start}, MEASURE, None)
    later = start.clone()
    later[0] *= 2.0**-20  # 9.5e-7
    later[1] *= 2.0**-19  # 1.9e-6

    (small, larger), state = take_snapshot(views, {"w": later}, MEASURE, state)
    (again, _), _ = take_snapshot(views, {"w": start}, MEASURE, state)

    assert {row.flag for row in small.scalars} == {small.spectra[0].flag} == {"collapsed"}
    assert {row.flag for row in larger.scalars} == {larger.spectra[0].flag} == {None}
    assert {row.flag for row in again.scalars} == {None}
    for metric in METRICS[:3]:
        assert rows_of(small, "w")[metric][2:5] == rows_of(first, "w")[metric][2:5]


def test_a_dead_layer_does_not_look_full_rank() -> None:
    """What adding 1e-10 to every singular value gets wrong: rank 1 stays rank 1 at any size."""
    matrix = torch.outer(torch.arange(1.0, 65.0), torch.arange(1.0, 65.0)) * 2.0**-60

    row = rows_of(snapshot_of(matrix), "w")["effective_rank"]

    assert row.value == pytest.approx(1.0, abs=1e-9)
    shifted = np.linalg.svd(matrix.double().numpy(), compute_uv=False) + 1e-10
    shares = shifted / shifted.sum()
    assert math.exp(-(shares * np.log(shares)).sum()) > 60


def test_a_matrix_that_was_zero_or_not_finite_at_first_never_counts_as_collapsed() -> None:
    views = [MatrixView("w", "w")]
    start = torch.stack([torch.zeros(3, 3), torch.full((3, 3), math.nan)])
    _, state = take_snapshot(views, {"w": start}, MEASURE, None)

    snapshots, _ = take_snapshot(views, {"w": torch.eye(3).repeat(2, 1, 1)}, MEASURE, state)

    assert {row.flag for snapshot in snapshots for row in snapshot.scalars} == {None}


def test_state_is_plain_tensors_that_can_be_cut_by_trial(tmp_path: Path) -> None:
    """A checkpoint stores it as it is; a trial that moves to another group takes its slice."""
    parameters = group(3)
    _, state = take_snapshot(VIEWS, parameters, MEASURE, None)
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    later = {name: value * 2.0**-21 for name, value in parameters.items()}

    together, _ = take_snapshot(VIEWS, later, MEASURE, state)
    own = {name: value[1:2] for name, value in loaded.items()}
    (alone,), _ = take_snapshot(VIEWS, companions(later, [1]), MEASURE, own)

    assert content(alone) == content(together[1])
    assert {row.flag for row in alone.scalars} == {"collapsed"}


def test_bounds_are_rounded_up_to_float32() -> None:
    exact = np.array([0.0, 0.1, 1.0, 1e-50, 1e39, 1.0 + 2.0**-40, math.nan])

    with np.errstate(all="raise"):
        rounded = rounded_up(exact)

    assert rounded.dtype == np.float32
    assert (rounded[:-1].astype(np.float64) >= exact[:-1]).all()
    assert math.isnan(rounded[-1])
    assert rounded[0] == 0.0
    assert rounded[2] == 1.0
    assert rounded[4] == math.inf
    # no farther up than the next float32
    assert rounded[5] == np.nextafter(np.float32(1.0), np.float32(2.0))
    assert rounded[3] == np.nextafter(np.float32(0.0), np.float32(1.0))


@pytest.mark.parametrize(
    ("views", "parameters", "measure", "state", "message"),
    [
        (
            VIEWS,
            group(1),
            ["ranks", "alignement"],
            None,
            "unknown measurement 'alignement' (did you mean 'alignment'?); there are ranks, "
            "spectrum, alignment, agreement, pruned, update, operator",
        ),
        (
            [MatrixView("w", "a"), MatrixView("w", "b")],
            {"a": torch.ones(1, 2, 2), "b": torch.ones(1, 2, 2)},
            MEASURE,
            None,
            "more than one matrix view is named 'w'",
        ),
        (
            [MatrixView("a", "a"), MatrixView("b", "b")],
            {"a": torch.ones(1, 2, 2), "b": torch.ones(2, 2, 2)},
            MEASURE,
            None,
            "the views disagree about the number of trials in the group: a 1, b 2",
        ),
        (
            [MatrixView("a", "a")],
            {"a": torch.ones(1, 2, 2)},
            MEASURE,
            {},
            "the snapshot state is of other views or of another group: for 'a' it must hold the "
            "norms of 1 trials at step 0, but holds nothing",
        ),
        (
            [MatrixView("a", "a")],
            {"a": torch.ones(1, 2, 2)},
            MEASURE,
            {"initial_frobenius/a": torch.ones(2, dtype=torch.float64)},
            "the snapshot state is of other views or of another group: for 'a' it must hold the "
            "norms of 1 trials at step 0, but holds the shape (2,)",
        ),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(
    views: list[MatrixView],
    parameters: dict[str, Tensor],
    measure: list[str],
    state: dict[str, Tensor] | None,
    message: str,
) -> None:
    with pytest.raises(ValueError, match=r"^(unknown|more|the)") as caught:
        take_snapshot(views, parameters, measure, state)

    assert str(caught.value) == message


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int32])
def test_weights_that_are_not_real_numbers_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"^matrix view 'v'") as caught:
        take_snapshot(
            [MatrixView("v", "w")], {"w": torch.ones(1, 2, 2, dtype=dtype)}, MEASURE, None
        )

    assert str(caught.value) == (
        f"matrix view 'v': expected real floating-point weights, 'w' is {dtype}"
    )


EVERY_GROUP = ("ranks", "spectrum", "alignment", "agreement", "update")


def test_a_solver_that_fails_in_mid_training_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first, a later and the last snapshot: values from the ladder, vectors null."""
    views = [MatrixView("a", "a"), MatrixView("b", "b")]
    meets = [Coupling(CouplingEnd("a", "left"), CouplingEnd("b", "right"), 12)]
    original = torch.linalg.eigh

    def fail(*_: object) -> None:
        raise torch.linalg.LinAlgError("did not converge")

    state = None
    for step, broken in enumerate([True, False, True, False, True]):
        monkeypatch.setattr(torch.linalg, "eigh", fail if broken else original)
        parameters = {"a": torch.randn(1, 12, 8) * (step + 1), "b": torch.randn(1, 9, 12)}
        (snapshot,), state = take_snapshot(views, parameters, EVERY_GROUP, state, couplings=meets)

        rank = rows_of(snapshot, "a")["effective_rank"]
        agreement = rows_of(snapshot, "a")["agreement/initial"]
        assert rank.method == ("svd64" if broken else "gram64")
        assert rank.flag is None
        assert math.isfinite(rank.value)
        # step 0 had no vectors to agree with
        assert (agreement.flag, math.isnan(agreement.value)) == ("ill_posed", True)
        if step == 3:
            assert rows_of(snapshot, "a->b")["alignment"].flag is None


def test_only_what_rests_on_an_estimate_is_flagged_so() -> None:
    """R above 2048: norms and leading singular values are known, sums over all of them are not."""
    matrix = torch.randn(2049, 3) @ torch.randn(3, 2049) + 1e-3 * torch.randn(2049, 2049)
    views = [MatrixView("large", "large")]

    (snapshot,), _ = take_snapshot(
        views, {"large": matrix[None]}, ("ranks", "spectrum", "agreement"), None, vectors=5
    )

    rows = rows_of(snapshot, "large")
    estimated = {name for name, row in rows.items() if row.flag == "estimated"}
    assert "effective_rank" in estimated
    assert not estimated & {"norm/frobenius", "norm/spectral", "stable_rank", "agreement/initial"}
    assert snapshot.spectra[0].flag is None
    assert len(snapshot.spectra[0].values) == 5
    truth = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    off = np.abs(snapshot.spectra[0].values - truth[:5])
    assert (off <= snapshot.spectra[0].bounds + 1e-12 * truth[0]).all()
    shares = truth / truth.sum()
    rank = math.exp(-(shares * np.log(shares)).sum())
    assert rows["effective_rank"].lower <= rank <= rows["effective_rank"].upper
