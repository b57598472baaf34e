"""What a snapshot may be asked: every problem in one message, before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from spectral import (
    ConvGeometry,
    Coupling,
    CouplingEnd,
    MatrixView,
    Request,
    begin_snapshot,
    decompose,
    take_snapshot,
)

VIEWS = [MatrixView("first", "first"), MatrixView("second", "second")]
PARAMETERS = {"first": torch.eye(6, 4)[None], "second": torch.eye(8, 5)[None]}


def problems(measure: Sequence[str], **options: object) -> list[str]:
    views = options.pop("views", VIEWS)
    return Request(views, measure, **options).problems(PARAMETERS)  # type: ignore[arg-type]


def test_a_sensible_request_has_no_problems() -> None:
    met = Coupling(CouplingEnd("first", "left", entries=(0, 5)), CouplingEnd("second", "right"), 6)

    assert problems(["ranks", "alignment", "agreement"], couplings=[met], vectors=5) == []


def test_a_misspelt_measurement_is_named_with_the_nearest_one() -> None:
    assert problems(["rank", "agrement"]) == [
        "unknown measurement 'rank' (did you mean 'ranks'?); there are ranks, spectrum, alignment, "
        "agreement, pruned, update, operator",
        "unknown measurement 'agrement' (did you mean 'agreement'?); there are ranks, spectrum, "
        "alignment, agreement, pruned, update, operator",
    ]


def test_more_vectors_than_any_matrix_has_are_refused() -> None:
    """Fewer than asked for is fine for the smaller ones, as in the paper's figures."""
    assert problems(["agreement"], vectors=5) == []
    assert problems(["agreement"], vectors=6) == [
        "vectors: 6 exceeds the largest rank, 5 (second, 8 x 5)"
    ]


def test_slices_that_cannot_meet_are_told_with_both_shapes() -> None:
    met = Coupling(CouplingEnd("first", "left"), CouplingEnd("second", "right"), 6)

    [problem] = problems(["alignment"], couplings=[met])

    for part in ("'first->second'", "6 x 4", "8 x 5", "left", "right"):
        assert part in problem


def test_an_unknown_view_in_a_coupling_is_named() -> None:
    met = Coupling(CouplingEnd("frist", "left"), CouplingEnd("second", "right"), 6)

    assert problems(["alignment"], couplings=[met]) == [
        "coupling 'frist->second': there is no matrix view 'frist'; similar: first"
    ]


def test_an_operator_needs_a_spatial_size() -> None:
    kernel = {"kernel": torch.zeros(1, 3, 2, 3, 3)}
    views = [MatrixView("conv", "kernel", layout="conv")]

    assert Request(views, ["operator"]).problems(kernel) == [
        "operator: no spatial size is known for 'kernel' (view 'conv'): no torch.nn convolution "
        "with these weights was reached by a forward pass"
    ]
    known = Request(views, ["operator"], geometries={"kernel": ConvGeometry((8, 8))})
    assert known.problems(kernel) == []


def test_all_problems_of_views_come_together() -> None:
    views = [MatrixView("a", "first", rows=(0, 9)), MatrixView("b", "third")]

    assert len(problems(["ranks"], views=views)) == 2


def test_matrices_that_are_too_large_to_prune_are_named() -> None:
    large = {"large": torch.zeros(1, 2049, 2049)}
    view = MatrixView("large", "large")

    assert Request([view], ["ranks"], prune=[view]).problems(large) == [
        "pruned: large (2049 x 2049) has more than 2048 singular directions, of which only the "
        "leading ones are computed"
    ]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_complex_and_integer_weights_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError) as caught:
        take_snapshot([VIEWS[0]], {"first": torch.ones(1, 3, 3, dtype=dtype)}, ["ranks"], None)

    assert str(caught.value) == (
        f"matrix view 'first': expected real floating-point weights, 'first' is {dtype}"
    )


def test_k_above_the_rank_is_refused_by_the_decomposition_too() -> None:
    with pytest.raises(ValueError, match=r"^expected at most 4 singular vectors") as caught:
        decompose([torch.eye(6, 4)], vectors=5)

    assert str(caught.value) == (
        "expected at most 4 singular vectors of a matrix of the shape (6, 4), got vectors=5"
    )


@pytest.mark.parametrize("number", [0, -1])
def test_no_vectors_at_all_are_refused_where_some_are_needed(number: int) -> None:
    assert problems(["agreement"], vectors=number) == [
        f"vectors: expected at least 1, got {number}"
    ]


@pytest.mark.parametrize("copy", [False, True], ids=["one after the other", "beside training"])
def test_smaller_matrices_have_as_many_vectors_as_they_can(copy: bool) -> None:
    """`vectors: 5` of a 6 x 4 and an 8 x 5 matrix: four of the first, on every path."""
    request = Request(VIEWS, ["agreement"], vectors=5)

    (snapshot,), _ = begin_snapshot(request, PARAMETERS, copy=copy).finish(None)

    assert {name: each.k for name, each in snapshot.factors.items()} == {"first": 4, "second": 5}


def test_a_view_without_entries_is_named() -> None:
    view = MatrixView("empty", "empty")

    assert Request([view], ["ranks"]).problems({"empty": torch.zeros(2, 0, 5)}) == [
        "matrix view 'empty' has no entries: its shape is (0, 5)"
    ]


def test_eight_bit_weights_are_refused_with_what_is_accepted() -> None:
    with pytest.raises(TypeError) as caught:
        decompose([torch.zeros(2, 2, dtype=torch.float8_e4m3fn)])

    assert str(caught.value) == (
        "expected one of float64, float32, bfloat16, float16, got torch.float8_e4m3fn: convert it "
        "first"
    )
