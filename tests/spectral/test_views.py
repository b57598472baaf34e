"""Matrix views and couplings: what they read, and what they refuse."""

import pytest
import torch
from torch import nn

from spectral import Coupling, CouplingEnd, MatrixView, discover


def numbered(*shape: int) -> torch.Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


def test_rows_and_columns_are_half_open_slices_of_the_matrix() -> None:
    weight = numbered(6, 4)
    view = MatrixView("q", "w", rows=(2, 4), columns=(1, 4))

    torch.testing.assert_close(view.read({"w": weight}), weight[2:4, 1:4])
    assert view.shape({"w": weight}) == (2, 3)


def test_a_convolution_is_flattened_behind_its_output_channels() -> None:
    weight = numbered(5, 3, 2, 2)

    matrix = MatrixView("c", "w", layout="conv").read({"w": weight})

    assert matrix.shape == (5, 12)
    # column = ((input channel) * 2 + row of the kernel) * 2 + column of the kernel
    assert matrix[4, (2 * 2 + 1) * 2 + 0] == weight[4, 2, 1, 0]


def test_a_transposed_convolution_swaps_its_first_two_axes_first() -> None:
    weight = numbered(3, 5, 2, 2)

    matrix = MatrixView("c", "w", layout="conv_transpose").read({"w": weight})

    assert matrix.shape == (5, 12)
    assert matrix[4, (2 * 2 + 1) * 2 + 0] == weight[2, 4, 1, 0]


def test_transpose_comes_last() -> None:
    weight = numbered(6, 4)
    view = MatrixView("t", "w", rows=(0, 2), transpose=True)

    torch.testing.assert_close(view.read({"w": weight}), weight[:2].T)


@pytest.mark.parametrize(
    ("view", "shape"),
    [
        (MatrixView("a", "w", rows=(1, 3), columns=(0, 2)), (4, 5)),
        (MatrixView("b", "w", transpose=True), (4, 5)),
        (MatrixView("c", "w", layout="conv", columns=(3, 9)), (4, 5, 3)),
        (MatrixView("d", "w", layout="conv_transpose"), (4, 5, 2, 3)),
    ],
)
def test_a_stacked_view_reads_each_trial_as_it_reads_one(
    view: MatrixView, shape: tuple[int, ...]
) -> None:
    weights = numbered(3, *shape)

    stacked = view.read({"w": weights}, stacked=True)

    assert stacked.shape == (3, *view.shape({"w": weights[0]}))
    assert view.shape({"w": weights}, stacked=True) == view.shape({"w": weights[0]})
    for k in range(3):
        torch.testing.assert_close(stacked[k], view.read({"w": weights[k]}))


def test_reading_a_slice_copies_nothing() -> None:
    weight = numbered(6, 4)

    matrix = MatrixView("q", "w", rows=(2, 4)).read({"w": weight})

    assert matrix.data_ptr() == weight[2:].data_ptr()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "matrix view: name must be a non-empty string, got ''"),
        (
            {"parameter": ""},
            "matrix view 'v': parameter must be a non-empty string, got ''",
        ),
        (
            {"rows": (3, 3)},
            "matrix view 'v': rows must be a half-open slice (start, stop) of whole numbers with "
            "0 <= start < stop, got (3, 3)",
        ),
        (
            {"columns": (-1, 2)},
            "matrix view 'v': columns must be a half-open slice (start, stop) of whole numbers "
            "with 0 <= start < stop, got (-1, 2)",
        ),
        (
            {"rows": [0, 2]},
            "matrix view 'v': rows must be a half-open slice (start, stop) of whole numbers with "
            "0 <= start < stop, got [0, 2]",
        ),
        (
            {"layout": "lstm"},
            "matrix view 'v': layout must be one of matrix, conv, conv_transpose; got 'lstm'",
        ),
        ({"on_demand": 1}, "matrix view 'v': on_demand must be True or False, got 1"),
    ],
)
def test_a_malformed_view_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^matrix view") as caught:
        MatrixView(**{"name": "v", "parameter": "w", **fields})  # type: ignore[arg-type]

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("view", "stacked", "message"),
    [
        (
            MatrixView("v", "weights"),
            False,
            "matrix view 'v': there is no parameter 'weights'; there are conv, w",
        ),
        (
            MatrixView("v", "w", rows=(2, 7)),
            False,
            "matrix view 'v': rows (2, 7) reach beyond the 6 rows of 'w'",
        ),
        (
            MatrixView("v", "w", columns=(2, 5)),
            False,
            "matrix view 'v': columns (2, 5) reach beyond the 4 columns of 'w'",
        ),
        (
            MatrixView("v", "conv"),
            False,
            "matrix view 'v': layout matrix needs 2 dimensions, but 'conv' has the shape (5, 3, 2)",
        ),
        (
            MatrixView("v", "w", layout="conv"),
            True,
            "matrix view 'v': layout conv needs at least 2 dimensions after the group dimension, "
            "but 'w' has the shape (6, 4)",
        ),
    ],
)
def test_a_view_that_does_not_fit_is_refused(view: MatrixView, stacked: bool, message: str) -> None:
    parameters = {"w": numbered(6, 4), "conv": numbered(5, 3, 2)}

    with pytest.raises(ValueError, match=r"^matrix view 'v'") as caught:
        view.read(parameters, stacked=stacked)

    assert str(caught.value) == message


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.conv = nn.Conv2d(3, 5, 2)
        self.up = nn.ConvTranspose2d(5, 3, 2)
        self.lstm = nn.LSTM(4, 6)
        self.decoder = nn.Linear(4, 7)
        self.decoder.weight = self.embedding.weight


def test_discover_finds_every_matrix_once_in_parameter_order() -> None:
    """Embeddings included, one-dimensional parameters ignored, shared ones under the first name."""
    model = Model()

    views = discover(model)

    found = [(v.name, v.layout, v.shape(dict(model.named_parameters()))) for v in views]
    assert found == [
        ("embedding", "matrix", (7, 4)),
        ("attention.in_proj_weight", "matrix", (12, 4)),
        ("attention.out_proj", "matrix", (4, 4)),
        ("conv", "conv", (5, 12)),
        ("up", "conv_transpose", (3, 20)),
        ("lstm.weight_ih_l0", "matrix", (24, 4)),
        ("lstm.weight_hh_l0", "matrix", (24, 6)),
    ]


def test_discover_names_the_parameter_of_a_bare_module() -> None:
    assert discover(nn.Linear(3, 2)) == [MatrixView("weight", "weight")]


def test_a_coupling_is_named_for_its_two_views() -> None:
    heads = Coupling(CouplingEnd("q[0]", "left"), CouplingEnd("k[0]", "left"), 32, group="q-k")
    tap = Coupling(
        CouplingEnd("conv1", "left"),
        CouplingEnd("conv2", "right", reshape=(512, 3, 3), tap=(1, 1)),
        4608,
        name="conv1->conv2[1,1]",
    )

    assert (heads.name, tap.name) == ("q[0]->k[0]", "conv1->conv2[1,1]")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"view": ""}, "coupling end: view must be a non-empty string, got ''"),
        ({"side": "top"}, "coupling end 'v': side must be one of left, right; got 'top'"),
        (
            {"entries": (4, 2)},
            "coupling end 'v': entries must be a half-open slice (start, stop) of whole numbers "
            "with 0 <= start < stop, got (4, 2)",
        ),
        (
            {"tap": (1, 1)},
            "coupling end 'v': reshape and tap go together, got reshape None and tap (1, 1)",
        ),
        (
            {"entries": (0, 2), "reshape": (4, 3, 3), "tap": (1, 1)},
            "coupling end 'v': entries and reshape exclude each other, got both",
        ),
        (
            {"reshape": (4,), "tap": ()},
            "coupling end 'v': reshape must be at least two positive whole numbers, got (4,)",
        ),
        (
            {"reshape": (4, 3, 3), "tap": (1, 3)},
            "coupling end 'v': tap must index the axes (3, 3) of reshape, got (1, 3)",
        ),
    ],
)
def test_a_malformed_coupling_end_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=r"^coupling end") as caught:
        CouplingEnd(**{"view": "v", "side": "left", **fields})  # type: ignore[arg-type]

    assert str(caught.value) == message


@pytest.mark.parametrize("length", [0, -3, 2.0, True])
def test_a_coupling_needs_a_length_for_its_chance_level(length: object) -> None:
    ends = (CouplingEnd("a", "left"), CouplingEnd("b", "right"))

    with pytest.raises(ValueError, match=r"^coupling") as caught:
        Coupling(*ends, length)  # type: ignore[arg-type]

    assert str(caught.value) == (
        f"coupling 'a->b': length must be a positive whole number, got {length!r}"
    )
