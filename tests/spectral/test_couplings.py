"""Couplings: what they may say, whether they fit the matrices, and the rows they become."""

import math

import numpy as np
import pytest
import torch

from spectral import Coupling, CouplingEnd, MatrixView, ScalarRow, SingularVectors
from spectral.alignment import inter_layer_alignment
from spectral.coupling_checks import check_couplings
from spectral.coupling_rows import alignment_rows
from spectral.metrics_vectors import ALIGNMENT_METRICS, ALIGNMENT_QUANTITIES
from tests.spectral.frames import frame, random_triples, triples

METRICS = (
    "alignment",
    "alignment/chance",
    "alignment/matched",
    "alignment/matched_chance",
    "subspace_overlap",
    "subspace_overlap/chance",
    "subspace_overlap/dimension",
)


def left(view: str, **fields: object) -> CouplingEnd:
    return CouplingEnd(view, "left", **fields)  # type: ignore[arg-type]


def right(view: str, **fields: object) -> CouplingEnd:
    return CouplingEnd(view, "right", **fields)  # type: ignore[arg-type]


def test_every_row_is_defined_and_every_definition_has_a_row() -> None:
    assert tuple(metric.name for metric in ALIGNMENT_METRICS) == METRICS
    assert [quantity.name for quantity in ALIGNMENT_QUANTITIES] == ["alignment/diagonal"]


# ---------------------------------------------------------------- what a coupling may say


def test_a_coupling_is_not_across_a_residual_stream_unless_it_says_so() -> None:
    assert not Coupling(left("a"), right("b"), 4).residual
    assert Coupling(left("a"), right("b"), 4, residual=True).residual


def test_a_coupling_is_not_left_out_for_single_heads_unless_it_says_so() -> None:
    assert not Coupling(left("a"), right("b"), 4).per_head
    assert Coupling(left("a"), right("b"), 4, per_head=True).per_head


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: right("v", reshape=(4, 3, 3), tap="centre"),
            "coupling end 'v': tap must be a tuple of indices or 'all', got 'centre'",
        ),
        (
            lambda: right("v", tap="all"),
            "coupling end 'v': reshape and tap go together, got reshape None and tap 'all'",
        ),
        (
            lambda: Coupling(left("a"), right("b"), 4, residual=1),  # type: ignore[arg-type]
            "coupling 'a->b': residual must be True or False, got 1",
        ),
        (
            lambda: Coupling(left("a"), right("b"), 4, per_head="no"),  # type: ignore[arg-type]
            "coupling 'a->b': per_head must be True or False, got 'no'",
        ),
        (
            lambda: Coupling(
                left("a", reshape=(4, 9), tap="all"), right("b", reshape=(4, 9), tap="all"), 36
            ),
            "coupling 'a->b': tap 'all' is for one end only, both have it",
        ),
    ],
)
def test_a_malformed_coupling_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=r"^coupling") as caught:
        make()

    assert str(caught.value) == message


# ---------------------------------------------------------------- whether they fit

SHAPES = {
    "embedding": (50, 16),
    "layers.0.in_proj": (48, 16),
    "layers.0.out_proj": (16, 16),
    "conv": (8, 48),
    "lstm": (64, 10),
}
VIEWS = [MatrixView(name, name) for name in SHAPES]


def problems(*couplings: Coupling) -> list[str]:
    return check_couplings(VIEWS, couplings, SHAPES)


def test_couplings_that_fit_have_no_problem() -> None:
    fitting = [
        Coupling(right("embedding"), right("layers.0.in_proj"), 16),
        Coupling(left("lstm", entries=(32, 48)), right("layers.0.out_proj"), 64),
        Coupling(left("layers.0.out_proj"), right("conv", reshape=(16, 3), tap="all"), 48),
    ]

    assert problems(*fitting) == []


@pytest.mark.parametrize(
    ("coupling", "expected"),
    [
        (
            Coupling(right("embeding"), right("layers.0.in_proj"), 16),
            "coupling 'embeding->layers.0.in_proj': there is no matrix view 'embeding'; similar: "
            "embedding",
        ),
        (
            Coupling(right("?"), right("conv"), 16),
            "coupling '?->conv': there is no matrix view '?'; there are embedding, "
            "layers.0.in_proj, layers.0.out_proj, conv, lstm",
        ),
        (
            Coupling(left("lstm", entries=(48, 80)), right("layers.0.in_proj"), 64),
            "coupling 'lstm->layers.0.in_proj': entries (48, 80) reach beyond the 64 entries of "
            "the left vectors of 'lstm' (64 x 10)",
        ),
        (
            Coupling(left("layers.0.out_proj"), right("conv", reshape=(3, 3), tap=(1,)), 27),
            "coupling 'layers.0.out_proj->conv': reshape (3, 3) takes 9 entries, but the right "
            "vectors of 'conv' (8 x 48) have 48",
        ),
        (
            Coupling(left("embedding"), right("conv"), 50),
            "coupling 'embedding->conv': the left vectors of 'embedding' (50 x 16) have 50 "
            "entries, its rows, but the right vectors of 'conv' (8 x 48) have 48 entries, its "
            "columns; both must have equally many",
        ),
        (
            Coupling(left("lstm", entries=(0, 20)), right("conv", reshape=(16, 3), tap=(0,)), 64),
            "coupling 'lstm->conv': the left vectors of 'lstm' (64 x 10) have 20 of 64 entries, by "
            "entries (0, 20), but the right vectors of 'conv' (8 x 48) have 16 of 48 entries, by "
            "reshape (16, 3); both must have equally many",
        ),
        (
            Coupling(right("embedding"), right("layers.0.in_proj"), 15),
            "coupling 'embedding->layers.0.in_proj': length 15 is below 16, the entries of the "
            "right vectors of 'embedding' (50 x 16) before slicing: chance levels would be too "
            "high",
        ),
        (
            Coupling(left("layers.0.out_proj"), right("conv", reshape=(16, 3), tap=(0,)), 16),
            "coupling 'layers.0.out_proj->conv': length 16 is below 48, the entries of the right "
            "vectors of 'conv' (8 x 48) before slicing: chance levels would be too high",
        ),
    ],
)
def test_a_coupling_that_cannot_be_measured_is_explained(coupling: Coupling, expected: str) -> None:
    assert problems(coupling) == [expected]


def test_all_problems_are_listed_at_once() -> None:
    found = problems(
        Coupling(left("x"), right("y"), 4),
        Coupling(left("lstm", entries=(60, 70)), right("conv", reshape=(3, 3), tap=(1,)), 64),
        Coupling(left("layers.0.out_proj"), right("layers.0.in_proj"), 16, name="twice"),
        Coupling(left("layers.0.out_proj"), right("layers.0.out_proj"), 16, name="twice"),
        Coupling(left("layers.0.out_proj"), right("embedding"), 16, group="twice"),
    )

    assert [problem.split(":")[0] for problem in found] == [
        "coupling 'x->y'",
        "coupling 'x->y'",
        "coupling 'lstm->conv'",
        "coupling 'lstm->conv'",
        "2 couplings are named 'twice'",
        "both a coupling and a group are named 'twice'",
    ]


# ---------------------------------------------------------------- rows

HEADS = [
    Coupling(left(f"q[{h}]"), left(f"k[{h}]"), 8, group="q->k", name=f"q->k[{h}]") for h in range(3)
]
OUTPUT = Coupling(left("v"), right("o"), 24)
ALL = [HEADS[0], OUTPUT, *HEADS[1:]]


def head_vectors() -> dict[str, SingularVectors | None]:
    found: dict[str, SingularVectors | None] = {
        f"{part}[{h}]": random_triples(8, 24, 8, 10 * h + i)
        for h in range(3)
        for i, part in enumerate("qk")
    }
    return {
        **found,
        "v": triples(frame(24, 12, 98), frame(24, 12, 97)),
        "o": triples(frame(24, 12, 95), frame(24, 12, 94)),
    }


def methods(vectors: dict[str, SingularVectors | None]) -> dict[str, str]:
    return dict.fromkeys(vectors, "gram64")


def of(rows: list[ScalarRow], subject: str) -> dict[str, ScalarRow]:
    return {row.metric: row for row in rows if row.subject == subject}


def test_every_coupling_and_every_group_has_seven_numbers_and_a_diagonal() -> None:
    vectors = head_vectors()

    scalars, spectra = alignment_rows(ALL, vectors, {}, methods(vectors))

    subjects = ["q->k[0]", "v->o", "q->k[1]", "q->k[2]", "q->k"]
    assert [(row.subject, row.metric) for row in scalars] == [
        (subject, metric) for subject in subjects for metric in METRICS
    ]
    assert [row.subject for row in spectra] == subjects
    assert {row.quantity for row in spectra} == {"alignment/diagonal"}
    assert {row.flag for row in [*scalars, *spectra]} == {None}
    assert {row.method for row in [*scalars, *spectra]} == {"gram64"}
    assert [len(row.values) for row in spectra] == [8, 12, 8, 8, 8]


def test_a_couplings_rows_are_its_alignment() -> None:
    vectors = head_vectors()
    scalars, spectra = alignment_rows(ALL, vectors, {}, methods(vectors))
    for coupling, row in zip(ALL, spectra, strict=False):
        first, second = vectors[coupling.first.view], vectors[coupling.second.view]
        assert first is not None
        assert second is not None
        alone = inter_layer_alignment(first, second, coupling)
        rows = of(scalars, coupling.name)
        for metric, number in (
            ("alignment", alone.score),
            ("alignment/matched", alone.matched),
            ("alignment/matched_chance", alone.matched_chance),
            ("subspace_overlap", alone.overlap),
        ):
            np.testing.assert_allclose(rows[metric][2:5], number, atol=1e-14)
        assert rows["alignment/chance"].value == alone.chance
        assert rows["subspace_overlap/chance"].value == alone.overlap_chance
        assert rows["subspace_overlap/dimension"].value == alone.dimension
        np.testing.assert_allclose(row.values, alone.diagonal, atol=1e-15)
        assert np.all(row.bounds >= 0.99 * alone.bounds)


def test_a_groups_rows_are_the_means_of_its_members() -> None:
    vectors = head_vectors()
    scalars, spectra = alignment_rows(ALL, vectors, {}, methods(vectors))
    group = of(scalars, "q->k")
    members = [of(scalars, head.name) for head in HEADS]

    for metric in METRICS:
        for field in ("value", "lower", "upper"):
            mean = np.mean([getattr(member[metric], field) for member in members])
            assert getattr(group[metric], field) == pytest.approx(mean, abs=1e-15)
    heads = [row.values for row in spectra if row.subject.startswith("q->k[")]
    np.testing.assert_allclose(spectra[-1].values, np.mean(heads, axis=0), atol=1e-15)


def test_an_undetermined_head_is_left_out_of_the_mean_and_flags_the_group() -> None:
    vectors = head_vectors()
    whole, _ = alignment_rows(ALL, vectors, {}, methods(vectors))
    query = vectors["q[1]"]
    assert query is not None
    errors = np.full(8, 1e-12)
    errors[2] = 1.0
    vectors["q[1]"] = triples(query.left.numpy(), query.right.numpy(), errors, 1e-12)

    scalars, spectra = alignment_rows(ALL, vectors, {}, methods(vectors))

    diagonals = {row.subject: row for row in spectra}
    assert np.flatnonzero(np.isnan(diagonals["q->k[1]"].values)).tolist() == [2]
    others = [diagonals[f"q->k[{h}]"].values[2] for h in (0, 2)]
    assert diagonals["q->k"].values[2] == pytest.approx(np.mean(others), abs=1e-15)
    assert not np.isnan(diagonals["q->k"].values).any()
    assert [row.flag for row in spectra] == [None, None, "ill_posed", None, "ill_posed"]
    assert of(scalars, "q->k")["alignment"].flag == "ill_posed"
    assert of(scalars, "q->k")["alignment/chance"].flag is None
    # the subspaces are still determined
    assert of(scalars, "q->k")["subspace_overlap"] == of(whole, "q->k")["subspace_overlap"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"v": "collapsed"}, "collapsed"),
        ({"v": "collapsed", "o": "zero"}, "zero"),
        ({"v": "diverged", "o": "zero"}, "diverged"),
        ({"v": None, "o": "ill_posed"}, "ill_posed"),
    ],
)
def test_a_coupling_has_the_graver_flag_of_its_two_views(
    flags: dict[str, str | None], expected: str
) -> None:
    vectors = head_vectors()

    scalars, spectra = alignment_rows([OUTPUT], vectors, flags, methods(vectors))

    assert {row.flag for row in [*scalars, *spectra]} == {expected}


@pytest.mark.parametrize("gone", ["missing", "none", "unknown"])
def test_a_view_without_vectors_leaves_null_rows_with_its_flag(gone: str) -> None:
    vectors = head_vectors()
    if gone == "missing":
        del vectors["k[1]"]
    else:
        unknown = SingularVectors.unknown(torch.zeros(8, 24), 8)
        vectors["k[1]"] = None if gone == "none" else unknown

    scalars, spectra = alignment_rows(ALL, vectors, {"k[1]": "zero"}, methods(head_vectors()))

    own, group = of(scalars, "q->k[1]"), of(scalars, "q->k")
    assert math.isnan(own["alignment"].value)
    assert own["alignment"][3:] == (None, None, "gram64", "zero")
    assert own["alignment/chance"].value == pytest.approx(0.8 / math.sqrt(8), rel=0.003)
    assert own["subspace_overlap/dimension"].value == 0.0
    diagonal = next(row for row in spectra if row.subject == "q->k[1]")
    assert np.isnan(diagonal.values).all()
    assert len(diagonal.values) == 8
    others = [of(scalars, f"q->k[{h}]")["alignment"].value for h in (0, 2)]
    assert group["alignment"].value == pytest.approx(np.mean(others), abs=1e-15)
    assert group["alignment"].flag == "zero"


def test_two_methods_are_both_named() -> None:
    vectors = head_vectors()

    scalars, _ = alignment_rows([OUTPUT], vectors, {}, {"v": "gram64", "o": "svd64"})

    assert {row.method for row in scalars} == {"gram64+svd64"}


def test_no_couplings_make_no_rows() -> None:
    assert alignment_rows([], {}, {}, {}) == ([], [])
