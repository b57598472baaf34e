"""Convolutions as linear operators, against the operators themselves, entry by entry."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from spectral import Decomposition, decompose, effective_rank, frobenius_norm, stable_rank
from spectral.fourier import fourier_blocks
from spectral.geometry import ConvGeometry
from spectral.metrics_operator import OPERATOR_METRICS, OPERATOR_QUANTITIES
from spectral.operators import MOST_STORED, conv_operator_spectrum, operator_rows
from tests.spectral.conv_zoo import explicit, normal

CASES = {
    "1x1": ((3, 2, 1, 1), ConvGeometry((4, 5))),
    "3x3 even": ((3, 2, 3, 3), ConvGeometry((6, 4))),
    "3x3 odd": ((2, 3, 3, 3), ConvGeometry((5, 7))),
    "3x3 square channels": ((3, 3, 3, 3), ConvGeometry((5, 4))),
    "5x5": ((2, 3, 5, 5), ConvGeometry((7, 6))),
    "one pixel": ((3, 2, 3, 3), ConvGeometry((1, 1))),
    "kernel larger than the grid": ((3, 2, 5, 5), ConvGeometry((3, 2))),
    "stride 2": ((3, 2, 3, 3), ConvGeometry((6, 4), (2, 2))),
    "stride 2, odd coarse grid": ((5, 2, 3, 3), ConvGeometry((6, 10), (2, 2))),
    "stride 3": ((3, 2, 5, 5), ConvGeometry((9, 6), (3, 3))),
    "stride 3 by 1": ((2, 3, 3, 3), ConvGeometry((9, 5), (3, 1))),
    "stride 2, 1x1": ((3, 2, 1, 1), ConvGeometry((4, 6), (2, 2))),
    "stride 2, 1x1, more outputs": ((5, 2, 1, 1), ConvGeometry((4, 4), (2, 2))),
    "stride 2, larger kernel than the grid": ((3, 2, 5, 5), ConvGeometry((4, 2), (2, 2))),
    "patches": ((4, 3, 4, 4), ConvGeometry((8, 12), (4, 4))),
    "stride that does not divide": ((2, 2, 3, 3), ConvGeometry((5, 7), (2, 3))),
    "dilation": ((3, 2, 3, 3), ConvGeometry((7, 6), (1, 1), (2, 3))),
    "dilation that wraps around": ((3, 3, 4, 3), ConvGeometry((5, 5), (1, 3), (2, 2))),
    "dilation and stride": ((3, 2, 3, 3), ConvGeometry((6, 8), (2, 2), (2, 1))),
    "groups": ((4, 3, 3, 3), ConvGeometry((5, 4), groups=2)),
    "depthwise": ((6, 1, 3, 3), ConvGeometry((5, 6), (1, 2), groups=6)),
    "transposed": ((3, 2, 3, 3), ConvGeometry((5, 4), transposed=True)),
    "transposed, stride 2": ((3, 2, 3, 3), ConvGeometry((3, 4), (2, 2), transposed=True)),
    "transposed, groups": ((4, 3, 3, 3), ConvGeometry((3, 2), (2, 3), (2, 1), 2, True)),
    "1-D": ((3, 4, 5), ConvGeometry((9,), (3,))),
    "3-D": ((2, 2, 2, 3, 2), ConvGeometry((3, 4, 2), (1, 2, 1))),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Tensor, ConvGeometry]:
    shape, geometry = CASES[request.param]
    return normal(*shape), geometry


def test_every_singular_value_is_that_of_the_explicit_matrix(
    case: tuple[Tensor, ConvGeometry],
) -> None:
    """To 1e-12 of the largest: random kernels, whose small values are not near the Gram's floor."""
    matrix = explicit(*case)

    result = conv_operator_spectrum(*case)

    assert result.shape == matrix.shape
    true = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(result.values, true, rtol=0, atol=1e-12 * true[0])
    assert result.complete
    assert (result.values[:-1] >= result.values[1:]).all()


def test_a_direct_decomposition_of_every_block_agrees_too(
    case: tuple[Tensor, ConvGeometry],
) -> None:
    true = np.linalg.svd(explicit(*case), compute_uv=False)

    result = conv_operator_spectrum(*case, tolerance=0.0)

    assert result.method == "fft_svd64"
    np.testing.assert_allclose(result.values, true, rtol=0, atol=1e-13 * true[0])
    assert result.bounds.max() < 1e-12 * true[0] * math.sqrt(len(true))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False),
        nn.Conv2d(2, 3, 3, padding=1, stride=2, padding_mode="circular", bias=False),
        nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2, padding_mode="circular", bias=False),
        nn.Conv2d(3, 2, (1, 5), padding=(0, 2), padding_mode="circular", bias=False),
    ],
)
def test_the_explicit_matrix_is_what_torch_computes(layer: nn.Conv2d) -> None:
    """Padding shifts the grid, which is a permutation of the input: no singular value changes."""
    geometry = ConvGeometry((6, 8), layer.stride, layer.dilation, layer.groups)
    matrix = explicit(layer.weight.detach(), geometry)
    x = normal(1, layer.in_channels, 6, 8).double()

    ours = matrix @ torch.roll(x, tuple(map(int, layer.padding)), (2, 3)).flatten().numpy()

    theirs = layer.double()(x).detach().flatten().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_transposed_layer_is_the_adjoint_as_torch_computes_it() -> None:
    """On a grid padded with zeros as far as the kernel reaches, nothing wraps around."""
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False).double()
    geometry = ConvGeometry((4, 5), (2, 2), groups=2, transposed=True)
    x = torch.zeros(1, 4, 4, 5, dtype=torch.float64)
    x[:, :, :3, :4] = normal(1, 4, 3, 4)

    ours = explicit(layer.weight.detach(), geometry) @ x.flatten().numpy()

    theirs = layer(x).detach()[..., :8, :10].flatten().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 2, 3, 3), (2, 3, 3, 3), (5, 1, 5, 5)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 3), (2, 3)])
def test_aliased_frequencies_side_by_side_say_the_same(
    shape: tuple[int, ...], stride: tuple[int, int]
) -> None:
    """The other form of the theorem: K^ at the frequencies that fold together, over sqrt(s s')."""
    sides, kernel = (6, 12), normal(*shape).double()
    w, v = (2 * math.pi * np.arange(n) / n for n in sides)
    a, b = np.indices(shape[2:]).reshape(2, 1, 1, -1)
    waves = np.exp(-1j * (w[:, None, None] * a + v[:, None] * b))
    transform = np.einsum("oit,hwt->hwoi", kernel.flatten(2).numpy(), waves)
    coarse = [n // s for n, s in zip(sides, stride, strict=True)]
    true = []
    for h in range(coarse[0]):
        for k in range(coarse[1]):
            aliases = transform[h :: coarse[0], k :: coarse[1]].reshape(-1, *shape[:2])
            block = np.concatenate(list(aliases), axis=1) / math.sqrt(math.prod(stride))
            true += np.linalg.svd(block, compute_uv=False).tolist()

    result = conv_operator_spectrum(kernel, ConvGeometry(sides, stride))

    np.testing.assert_allclose(result.values, sorted(true)[::-1], rtol=0, atol=1e-12 * max(true))


def test_the_squares_add_up_to_the_kernel_s_times_the_positions_of_the_smaller_grid() -> None:
    """Exactly: for whole numbers ||A||_F^2 is a whole number, with stride and wrapping too."""
    for shape, geometry in CASES.values():
        weight = (normal(*shape) * 50).round()
        whole = int((explicit(weight, geometry) ** 2).sum())

        result = conv_operator_spectrum(weight, geometry)

        norm = frobenius_norm(result)
        assert Fraction(norm.lower) ** 2 <= whole <= Fraction(norm.upper) ** 2
        assert norm.upper - norm.lower < 1e-12 * norm.value
        assert (result.values**2).sum() == pytest.approx(whole, rel=1e-13)
        kernel_fits = all(k <= n for k, n in zip(shape[2:], geometry.fine, strict=True))
        if kernel_fits and max(geometry.dilation) == 1:
            assert whole == math.prod(geometry.coarse) * int((weight**2).sum())


def test_a_kernel_of_size_one_is_one_matrix_at_every_position() -> None:
    """N^2 copies of the matrix's own spectrum, from one block."""
    weight, geometry = normal(7, 5, 1, 1), ConvGeometry((6, 9))
    (matrix,) = decompose([weight.flatten(1)])

    result = conv_operator_spectrum(weight, geometry)

    np.testing.assert_allclose(result.values, np.repeat(matrix.values, 54), rtol=1e-13)
    assert fourier_blocks(weight.double(), geometry).multiplicities.tolist() == [54]
    ours, theirs = effective_rank(result), effective_rank(matrix)
    assert ours.value == pytest.approx(54 * theirs.value, rel=1e-13)
    assert stable_rank(result).value == pytest.approx(54 * stable_rank(matrix).value, rel=1e-13)


@pytest.mark.parametrize(("side", "different", "real"), [(4, 10, 4), (6, 20, 4), (5, 13, 1)])
def test_of_opposite_frequencies_only_one_is_computed(side: int, different: int, real: int) -> None:
    """N^2 / 2 + 2 blocks for even N, 4 of them real; (N^2 + 1) / 2 for odd N, 1 of them real."""
    blocks = fourier_blocks(normal(2, 2, 3, 3).double(), ConvGeometry((side, side)))

    assert len(blocks.multiplicities) == different
    assert blocks.num_real == real
    assert blocks.multiplicities.sum() == side * side
    assert set(blocks.multiplicities[:real].tolist()) == {1}
    assert set(blocks.multiplicities[real:].tolist()) == {2}


def test_the_spectrum_of_groups_is_that_of_each_group_together() -> None:
    weight, geometry = normal(6, 2, 3, 3), ConvGeometry((4, 5), (1, 1))

    result = conv_operator_spectrum(weight, ConvGeometry((4, 5), groups=3))

    parts = [conv_operator_spectrum(part, geometry).values for part in weight.split(2)]
    together = np.sort(np.concatenate(parts))[::-1]
    np.testing.assert_allclose(result.values, together, rtol=1e-12)


def test_random_kernels_have_the_published_norm_and_rank() -> None:
    """One 16 x 16 x 3 x 3 kernel of variance 1 / 144 on 16 x 16 had norm 2.087 and normalised rank
    0.806; as a 16 x 144 matrix 1.227 and 0.988. Tolerances: 0.01 for ranks, and three standard
    deviations over kernels for norms (0.079 and 0.035, measured over 40)."""
    published = {"norm": 2.087, "rank": 0.806, "matrix norm": 1.227, "matrix rank": 0.988}
    means = dict.fromkeys(published, 0.0)
    for seed in range(8):
        weight = normal(16, 16, 3, 3, seed=seed) / 12.0
        (matrix,) = decompose([weight.flatten(1)])

        operator = conv_operator_spectrum(weight, ConvGeometry((16, 16)))

        assert operator.shape == (4096, 4096)
        assert matrix.values[0] < operator.values[0] <= 3.0 * matrix.values[0]
        means["norm"] += operator.values[0] / 8
        means["rank"] += effective_rank(operator).value / 4096 / 8
        means["matrix norm"] += matrix.values[0] / 8
        means["matrix rank"] += effective_rank(matrix).value / 16 / 8
    assert abs(means["rank"] - published["rank"]) < 0.01
    assert abs(means["matrix rank"] - published["matrix rank"]) < 0.01
    assert abs(means["norm"] - published["norm"]) < 3 * 0.079
    assert abs(means["matrix norm"] - published["matrix norm"]) < 3 * 0.035


def test_convolutions_padded_with_zeros_are_bounded_by_a_larger_circular_one() -> None:
    """Their matrix is a part of the circular one's, on a grid with room for the padding."""
    weight = normal(3, 2, 3, 3)
    layer = nn.Conv2d(2, 3, 3, padding=1, bias=False).double()
    units = torch.eye(2 * 5 * 4, dtype=torch.float64).view(-1, 2, 5, 4)
    with torch.no_grad():
        layer.weight.copy_(weight)
        padded = layer(units).flatten(1)

    circular = conv_operator_spectrum(weight, ConvGeometry((7, 6)))

    assert 0.8 < torch.linalg.matrix_norm(padded, 2).item() / circular.values[0] < 1.0


# --- results that are not numbers, and failures ---------------------------------------------------


def metrics_of(result: Decomposition) -> dict[str, float]:
    return {row.metric: row.value for row in operator_rows("conv", result, None)[0]}


def test_a_zero_kernel_has_rank_zero() -> None:
    result = conv_operator_spectrum(torch.zeros(3, 2, 3, 3), ConvGeometry((4, 4)))

    assert (result.flag, result.method, result.shape) == ("zero", "none", (48, 32))
    assert result.values.tolist() == result.bounds.tolist() == [0.0] * 32
    assert set(metrics_of(result).values()) == {0.0}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_kernel_that_is_not_finite_is_a_result(bad: float) -> None:
    weight = normal(3, 2, 3, 3)
    weight[1, 1, 2, 2] = bad

    result = conv_operator_spectrum(weight, ConvGeometry((4, 4)))

    assert (result.flag, result.method) == ("diverged", "none")
    assert np.isnan(result.values).all()
    scalars, (spectrum,) = operator_rows("conv", result, "collapsed")
    assert {row.flag for row in scalars} == {"diverged"}
    assert all(math.isnan(row.value) and row.lower is None for row in scalars)
    assert np.isnan(spectrum.values).all()


def test_a_subnormal_kernel_is_flagged_and_measured() -> None:
    result = conv_operator_spectrum(normal(3, 2, 3, 3) * 1e-40, ConvGeometry((4, 4)))

    assert (result.flag, result.method) == ("collapsed", "fft_gram64")


def test_a_kernel_that_cancels_itself_on_its_grid_is_ill_posed() -> None:
    """On one pixel every position of the kernel meets: what is left of 1 - 1 is rounding."""
    weight = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)

    result = conv_operator_spectrum(weight, ConvGeometry((1, 1)))

    assert (result.flag, result.method) == ("ill_posed", "none")
    assert np.isnan(result.values).all()
    norm = frobenius_norm(result)
    assert (norm.value, norm.lower) == (0.0, 0.0)
    assert 0.0 < norm.upper < 1e-14


def fail(*args: object, **kwargs: object) -> Tensor:
    raise torch.linalg.LinAlgError("forced")


def fail_numpy(*args: object, **kwargs: object) -> np.ndarray:
    raise np.linalg.LinAlgError("forced")


def fail_for_batches(solver: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def solve(gram: Tensor) -> Tensor:
        if gram.dim() > 2:
            raise torch.linalg.LinAlgError("forced")
        return solver(gram)

    return solve


def test_the_ladder_is_walked_rung_by_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, geometry = normal(4, 3, 3, 3), ConvGeometry((5, 4))
    expected = conv_operator_spectrum(weight, geometry)

    def measured(method: str) -> None:
        result = conv_operator_spectrum(weight, geometry)
        assert (result.method, result.flag) == (method, None)
        assert (np.abs(result.values - expected.values) <= result.bounds + expected.bounds).all()

    monkeypatch.setattr(torch.linalg, "eigvalsh", fail_for_batches(torch.linalg.eigvalsh))
    measured("fft_gram64")
    monkeypatch.setattr(torch.linalg, "eigvalsh", fail)
    measured("fft_svd64")
    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    measured("fft_gesvd64")
    monkeypatch.setattr(scipy.linalg, "svd", fail_numpy)
    result = conv_operator_spectrum(weight, geometry)
    assert (result.method, result.flag) == ("none", "ill_posed")
    assert np.isnan(result.values).all()
    assert metrics_of(result)["operator_norm/frobenius"] == frobenius_norm(expected).value


def test_a_failed_escalation_keeps_the_gram_with_its_wide_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weight, geometry = torch.ones(32, 32, 3), ConvGeometry((5,))
    gram = conv_operator_spectrum(weight, geometry, tolerance=math.inf)
    assert conv_operator_spectrum(weight, geometry).method == "fft_svd64"
    monkeypatch.setattr(torch.linalg, "svdvals", fail)
    monkeypatch.setattr(scipy.linalg, "svd", fail_numpy)

    result = conv_operator_spectrum(weight, geometry)

    assert (result.method, result.flag) == ("fft_gram64", None)
    np.testing.assert_array_equal(result.values, gram.values)
    np.testing.assert_array_equal(result.bounds, gram.bounds)


@pytest.mark.parametrize(
    ("weight", "geometry", "error", "message"),
    [
        (
            torch.ones(2, 2, 3, 3, dtype=torch.int32),
            ConvGeometry((4, 4)),
            TypeError,
            "expected a kernel of real floating-point numbers, got torch.int32; the spectra of "
            "complex and integer weights are not defined here",
        ),
        (
            torch.ones(2, 2, 3),
            ConvGeometry((4, 4)),
            ValueError,
            "expected the weights of a convolution of 2 directions, not empty, with 4 dimensions; "
            "got the shape (2, 2, 3)",
        ),
        (
            torch.ones(3, 2, 3),
            ConvGeometry((4,), groups=2),
            ValueError,
            "the 3 channels of weights of shape (3, 2, 3) do not fall into 2 equal groups",
        ),
    ],
)
def test_weights_that_cannot_be_applied_are_refused(
    weight: Tensor, geometry: ConvGeometry, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        conv_operator_spectrum(weight, geometry)

    assert str(caught.value) == message


def test_weights_and_generators_are_left_alone() -> None:
    """float64 too, which needs no conversion, hence no copy."""
    for dtype in (torch.float32, torch.float64):
        weight = (normal(3, 2, 3, 3) * 100).to(dtype).requires_grad_()
        weight.square().sum().backward()
        before, gradient = weight.detach().clone(), weight.grad
        state = torch.get_rng_state()

        result = conv_operator_spectrum(weight, ConvGeometry((2, 2)), tolerance=0.0)
        operator_rows("conv", result, None)

        assert torch.equal(weight, before)
        assert weight.grad is gradient
        assert weight.requires_grad
        assert torch.equal(torch.get_rng_state(), state)


def test_slices_of_larger_tensors_give_the_same_numbers() -> None:
    """Weights need not be contiguous: a group trains in one flat buffer."""
    stack = normal(3, 2, 3, 3, 5)

    result = conv_operator_spectrum(stack[..., 2], ConvGeometry((4, 3)))

    reference = conv_operator_spectrum(stack[..., 2].contiguous(), ConvGeometry((4, 3)))
    np.testing.assert_array_equal(result.values, reference.values)


# --- rows -----------------------------------------------------------------------------------------


def test_rows_are_the_documented_ones() -> None:
    result = conv_operator_spectrum(normal(4, 3, 3, 3), ConvGeometry((5, 5)))

    scalars, spectra = operator_rows("conv1", result, "collapsed")

    assert [row.metric for row in scalars] == [metric.name for metric in OPERATOR_METRICS]
    assert [row.quantity for row in spectra] == [metric.name for metric in OPERATOR_QUANTITIES]
    assert {(r.subject, r.method, r.flag) for r in (*scalars, *spectra)} == {
        ("conv1", "fft_gram64", "collapsed")
    }
    assert len(spectra[0].values) == 75


def test_only_the_largest_singular_values_are_stored() -> None:
    result = conv_operator_spectrum(normal(5, 4, 3, 3), ConvGeometry((17, 17)))

    _, (spectrum,) = operator_rows("conv1", result, None)

    assert len(result.values) == 4 * 17 * 17
    np.testing.assert_array_equal(spectrum.values, result.values[:MOST_STORED])
    assert len(spectrum.values) == MOST_STORED == 1000
    assert (spectrum.bounds >= result.bounds[:MOST_STORED]).all()
    assert spectrum.bounds.dtype == np.float32
