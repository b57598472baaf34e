"""No true value of a convolution's operator lies outside its interval."""

import math

import numpy as np
import pytest
import torch

from spectral import Decomposition, effective_rank
from spectral.geometry import ConvGeometry
from spectral.operators import conv_operator_spectrum, operator_rows
from tests.spectral.conv_zoo import conv_zoo, normal
from tests.spectral.matrix_zoo import Truth


def outside(result: Decomposition, truth: Truth, shrink: float = 1.0) -> bool:
    allowed = result.bounds / shrink + truth.singular_value_error * truth.scale
    wrong = np.abs(result.values - truth.singular_values * truth.scale) > allowed
    return bool(wrong.any())


@pytest.mark.parametrize("tolerance", [1e-5, math.inf, 0.0], ids=["default", "gram", "direct"])
def test_no_true_value_lies_outside_its_bound(tolerance: float) -> None:
    """Singular values and every metric, up to what the oracle itself may be off."""
    wrong, methods = [], set()
    for name, weight, geometry, truth in conv_zoo():
        result = conv_operator_spectrum(weight, geometry, tolerance=tolerance)
        if outside(result, truth):
            wrong.append(name)
        for row in operator_rows(name, result, None)[0]:
            assert row.lower is not None
            assert row.upper is not None
            true, error = truth.metrics[row.metric.removeprefix("operator_")]
            if not row.lower - error <= true <= row.upper + error:
                wrong.append(f"{name} {row.metric} {row.lower} {true} {row.upper}")
        methods.add(result.method)
    assert wrong == []
    assert len(conv_zoo()) > 250
    assert methods == {1e-5: {"fft_gram64", "fft_svd64"}, math.inf: {"fft_gram64"}}.get(
        tolerance, {"fft_svd64"}
    )


def test_the_default_leaves_no_effective_rank_less_certain_than_the_tolerance() -> None:
    for name, weight, geometry, _ in conv_zoo():
        rank = effective_rank(conv_operator_spectrum(weight, geometry))

        assert max(rank.upper - rank.value, rank.value - rank.lower) <= 1e-5 * rank.value, name


def test_bounds_shrunk_ten_thousandfold_would_be_caught() -> None:
    """Twin: the check of the singular values can fail."""
    wrong = [
        name
        for name, weight, geometry, truth in conv_zoo()
        if outside(conv_operator_spectrum(weight, geometry, tolerance=math.inf), truth, 1e4)
    ]

    assert len(wrong) > 20


def test_kernels_in_float32_would_be_caught() -> None:
    """Twin: an operator whose weights are off by 2^-24 is another one."""
    wrong = 0
    for _, weight, geometry, truth in conv_zoo():
        nudged = weight.double() * (1 + 2.0**-24)
        wrong += outside(conv_operator_spectrum(nudged, geometry), truth)

    assert wrong > 200


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_ranks_do_not_depend_on_the_scale_of_the_weights(scale: float) -> None:
    """To the bit where the scale is a power of two: everything is divided by one first."""
    weight, geometry = normal(4, 3, 3, 3), ConvGeometry((5, 6))
    power = 2.0 ** round(math.log2(scale))
    reference = conv_operator_spectrum(weight, geometry)

    result = conv_operator_spectrum(weight * power, geometry)

    np.testing.assert_array_equal(result.unit_values, reference.unit_values)
    np.testing.assert_array_equal(result.values, reference.values * power)
    rough = effective_rank(conv_operator_spectrum(weight * scale, geometry))
    assert rough.value == pytest.approx(effective_rank(reference).value, rel=1e-7)


def test_only_the_blocks_that_need_it_step_down() -> None:
    """A Gram is accurate enough for the one group that has full rank."""
    low = torch.outer(torch.arange(1.0, 33.0), torch.ones(32)).view(32, 32, 1).expand(-1, -1, 3)
    weight, geometry = torch.cat([normal(32, 32, 3), low]), ConvGeometry((4,), groups=2)
    gram = conv_operator_spectrum(weight, geometry, tolerance=math.inf)

    result = conv_operator_spectrum(weight, geometry)

    assert (gram.method, result.method) == ("fft_gram64", "fft_svd64")
    unchanged = np.isin(result.unit_values, gram.unit_values).sum()
    assert 96 <= unchanged < 256


def test_the_workspace_changes_no_value_beyond_its_bound() -> None:
    """Chunks of one block each, and everything at once."""
    weight, geometry = normal(8, 6, 3, 3), ConvGeometry((9, 10), (1, 2))
    whole = conv_operator_spectrum(weight, geometry)

    result = conv_operator_spectrum(weight, geometry, workspace=1)

    assert (np.abs(result.values - whole.values) <= whole.bounds).all()
    np.testing.assert_allclose(result.values, whole.values, rtol=1e-12)
