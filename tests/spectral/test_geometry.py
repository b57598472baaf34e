"""On which grids a model's convolutions work, found by watching a forward pass."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from spectral import MatrixView, discover
from spectral.geometry import ConvGeometry, conv_geometries, missing_geometries


class Pyramid(nn.Module):
    """Strides, a transposed layer, groups, a normalisation, and a branch that is not taken."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.norm = nn.GroupNorm(2, 4)
        self.conv2 = nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=(1, 2))
        self.back = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.unused = nn.Conv2d(2, 2, 1)
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor, *, fail: bool = False) -> Tensor:
        x = self.conv2(self.norm(self.conv1(x)))
        if fail:
            raise RuntimeError("no luck")
        return self.linear(self.back(x).mean((-1, -2)))


EXPECTED = {
    "conv1.weight": ConvGeometry((28, 20)),
    "conv2.weight": ConvGeometry((26, 18), (2, 2), (1, 2), groups=2),
    "back.weight": ConvGeometry((12, 7), (2, 2), transposed=True),
}


def num_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


def test_every_convolution_that_is_reached_has_the_size_of_its_input() -> None:
    model = Pyramid()

    found = conv_geometries(model, lambda: model(torch.zeros(5, 3, 28, 20)))

    assert found == EXPECTED
    assert list(found) == list(EXPECTED)
    assert num_hooks(model) == 0


def test_one_input_without_a_batch_dimension_says_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))

    found = conv_geometries(model, lambda: model(torch.zeros(3, 9, 8)))

    assert found == {"0.weight": ConvGeometry((9, 8)), "1.weight": ConvGeometry((7, 6))}


def test_a_group_of_models_under_vmap_says_the_same() -> None:
    """Inside `torch.vmap` a tensor has no group dimension."""
    model = Pyramid()
    parameters, buffers = stack_module_state([copy.deepcopy(model) for _ in range(3)])

    def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, (parameters, buffers), (x,))

    images = torch.zeros(3, 2, 3, 28, 20)
    found = conv_geometries(model, lambda: torch.vmap(one)(parameters, buffers, images))

    assert found == EXPECTED
    assert num_hooks(model) == 0


def test_gradients_under_vmap_are_watched_too() -> None:
    model = nn.Conv1d(2, 3, 5)
    parameters = dict(model.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(model, parameters, (x,)).sum()

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))
    found = conv_geometries(model, lambda: gradients(parameters, torch.zeros(4, 1, 2, 11)))

    assert found == {"weight": ConvGeometry((11,))}


@pytest.mark.parametrize(
    ("layer", "shape", "geometry"),
    [
        (nn.Conv1d(2, 3, 3), (1, 2, 9), ConvGeometry((9,))),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6), ConvGeometry((4, 5, 6))),
        (nn.ConvTranspose1d(2, 3, 3), (1, 2, 9), ConvGeometry((9,), transposed=True)),
        (nn.ConvTranspose3d(2, 3, 2), (1, 2, 4, 5, 6), ConvGeometry((4, 5, 6), transposed=True)),
    ],
)
def test_all_six_classes_of_convolution_are_watched(
    layer: nn.Module, shape: tuple[int, ...], geometry: ConvGeometry
) -> None:
    assert conv_geometries(layer, lambda: layer(torch.zeros(shape))) == {"weight": geometry}
    assert conv_geometries(layer, lambda: layer(input=torch.zeros(shape))) == {"weight": geometry}


def test_hooks_are_removed_when_the_forward_pass_fails() -> None:
    model = Pyramid()

    with pytest.raises(RuntimeError, match=r"^no luck$"):
        conv_geometries(model, lambda: model(torch.zeros(1, 3, 28, 20), fail=True))

    assert num_hooks(model) == 0


def test_hooks_are_there_while_the_forward_pass_runs() -> None:
    """Twin: counting hooks would notice one that stays. Those of others do stay."""
    model = Pyramid()
    other = model.conv1.register_forward_pre_hook(lambda module, args: None)
    counts = []

    conv_geometries(model, lambda: counts.append(num_hooks(model)))

    assert counts == [5]
    assert num_hooks(model) == 1
    other.remove()


def test_a_layer_that_is_used_at_two_sizes_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1, stride=2))

    def run() -> None:
        model(torch.zeros(1, 3, 28, 28))
        model(torch.zeros(1, 3, 28, 28))
        model(torch.zeros(1, 3, 14, 12))

    with pytest.raises(ValueError, match=r"^operator: ") as caught:
        conv_geometries(model, run)

    assert str(caught.value) == (
        "operator: a convolution is one linear operator only on one grid\n"
        "  '0.weight' is applied on more than one grid: "
        "(28, 28) with stride (1, 1), dilation (1, 1); "
        "(14, 12) with stride (1, 1), dilation (1, 1)\n"
        "  '1.weight' is applied on more than one grid: "
        "(26, 26) with stride (2, 2), dilation (1, 1); "
        "(12, 10) with stride (2, 2), dilation (1, 1)"
    )
    assert num_hooks(model) == 0


def test_tied_weights_go_by_their_first_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    model[1].weight = model[0].weight

    found = conv_geometries(model, lambda: model(torch.zeros(1, 3, 4, 4)))

    assert found == {"0.weight": ConvGeometry((4, 4))}
    assert missing_geometries(discover(model), found) == []


def test_watching_changes_nothing_that_running_does_not() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Dropout(0.5)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()

    conv_geometries(model, lambda: model(torch.zeros(1, 3, 8, 8)))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_convolutions_that_were_not_reached_are_named() -> None:
    model = Pyramid()
    views = [*discover(model), MatrixView("kernel", "bank.kernel", layout="conv_transpose")]

    found = conv_geometries(model, lambda: model(torch.zeros(1, 3, 28, 20)))

    assert missing_geometries(views, found) == [
        "operator: no spatial size is known for 'unused.weight' (view 'unused'): no torch.nn "
        "convolution with these weights was reached by a forward pass",
        "operator: no spatial size is known for 'bank.kernel' (view 'kernel'): no torch.nn "
        "convolution with these weights was reached by a forward pass",
    ]


@pytest.mark.parametrize(
    ("geometry", "coarse", "fine"),
    [
        (ConvGeometry((6, 4)), (6, 4), (6, 4)),
        (ConvGeometry((6, 4), (2, 1)), (3, 4), (6, 4)),
        (ConvGeometry((5, 7), (2, 3)), (3, 3), (6, 9)),
        (ConvGeometry((5, 7), (2, 3), transposed=True), (5, 7), (10, 21)),
    ],
)
def test_grids_are_rounded_up_to_multiples_of_the_stride(
    geometry: ConvGeometry, coarse: tuple[int, ...], fine: tuple[int, ...]
) -> None:
    assert (geometry.coarse, geometry.fine) == (coarse, fine)


def test_the_operator_has_as_many_rows_as_the_output_and_columns_as_the_input_has_entries() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    back = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
    x = torch.zeros(1, 4, 10, 8)
    y = layer(x)

    forward = ConvGeometry((10, 8), (2, 2), groups=2).operator_shape(tuple(layer.weight.shape))
    backward = ConvGeometry((5, 4), (2, 2), groups=2, transposed=True)

    assert forward == (y.numel(), x.numel())
    assert backward.operator_shape(tuple(back.weight.shape)) == (back(y).numel(), y.numel())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"spatial": (0, 4)},
            "convolution geometry: spatial must hold positive whole numbers, got (0, 4)",
        ),
        ({"spatial": ()}, "convolution geometry: spatial must hold positive whole numbers, got ()"),
        (
            {"spatial": (4, 4), "stride": (2.0, 2)},
            "convolution geometry: stride must hold positive whole numbers, got (2.0, 2)",
        ),
        (
            {"spatial": (4, 4), "dilation": (2,)},
            "convolution geometry: dilation must have one number for each of the 2 directions of "
            "spatial (4, 4), got (2,)",
        ),
        (
            {"spatial": (4, 4), "groups": 0},
            "convolution geometry: groups must hold positive whole numbers, got (0,)",
        ),
    ],
)
def test_geometries_that_make_no_sense_are_refused(
    arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^convolution geometry: ") as caught:
        ConvGeometry(**arguments)  # type: ignore[arg-type]

    assert str(caught.value) == message
