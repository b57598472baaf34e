"""The UNet of image generation: its layout, and its arithmetic against a slow plain version."""

import math

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view

from tasks.models.unet import FourierFeatures, UNet, map_sizes
from tasks.random import Streams, initialise_
from tests.tasks.initial_ranks import normalised_effective_rank

TINY = {"channels": (4, 8, 8, 12), "size": 18, "time_width": 6, "groups": 2}


def unet(seed=0, **settings):
    model = initialise_(UNet(**TINY | settings), Streams([seed]))
    # norms start at 1 and 0: move them, so that a test sees where they enter
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    return model.double()


@pytest.fixture(scope="module")
def papers():
    """At full size, with its initial values."""
    return initialise_(UNet(), Streams([0]))


def test_the_papers_unet_has_its_number_of_parameters(papers):
    """4.09 million: convolutions, tconv1's bias, time, dense layers and norms of its code."""
    channels = 64 + 128 + 256 + 512 + 256 + 128 + 64  # of the seven stages with dense layers
    convolutions = 9 * 2 * (1 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 1
    expected = convolutions + 512 * 513 + channels * 513 + 2 * channels

    assert sum(p.numel() for p in papers.parameters()) == expected == 4_085_505


def test_the_papers_feature_maps_have_its_sizes():
    """28 > 26 > 12 > 5 > 2 pixels: no padding, strides 1, 2, 2, 2."""
    assert map_sizes(28) == (26, 12, 5, 2)


@pytest.mark.parametrize("size", range(17, 33))
def test_images_of_every_size_from_17_on_come_out_as_large_as_they_went_in(size):
    model = initialise_(UNet(**TINY | {"size": size}), Streams([0]))
    x, sizes = torch.randn(2, 1, size, size), []
    for layer in (model.conv1, model.conv2, model.conv3, model.conv4):
        layer.register_forward_hook(lambda _layer, _inputs, y: sizes.append(y.shape[-1]))

    y = model(x, torch.tensor([3, 999]))

    assert y.shape == x.shape
    assert tuple(sizes) == map_sizes(size)


@pytest.mark.parametrize(
    ("name", "rank", "tolerance"),
    [
        ("time", 0.805, 0.005),
        ("conv1", 0.982, 4 * 0.0041),
        ("conv2", 0.970, 0.005),
        ("conv3", 0.970, 0.005),
        ("conv4", 0.970, 0.005),
        ("dense1", 0.984, 0.005),
        ("dense2", 0.966, 0.005),
        ("dense3", 0.926, 0.005),
        ("dense4", 0.805, 0.005),
        ("dense5", 0.926, 0.005),
        ("dense6", 0.966, 0.005),
        ("dense7", 0.984, 0.005),
        ("tconv4", 0.993, 0.005),
        ("tconv3", 0.993, 0.005),
        ("tconv2", 0.993, 0.005),
        ("tconv1", 1.0, 1e-12),
    ],
)
def test_matrices_start_with_the_papers_normalised_effective_rank(papers, name, rank, tolerance):
    """Of uniform random matrices of their shapes; transposed convolutions with axes swapped."""
    weight = papers.get_submodule(name).weight
    if name.startswith("tconv"):
        weight = weight.transpose(0, 1)

    assert normalised_effective_rank(weight) == pytest.approx(rank, abs=tolerance)


def test_time_becomes_sines_and_cosines_of_random_frequencies():
    """Against exact arithmetic: whole turns are taken off t w as a fraction of whole numbers."""
    features = FourierFeatures(10, 30.0)
    features.initialise_(Streams([3]), "")
    times = torch.tensor([0, 1, 37, 999])

    computed = features(times)

    for n, time in enumerate(times.tolist()):
        for j, frequency in enumerate(features.frequencies.tolist()):
            numerator, denominator = frequency.as_integer_ratio()
            angle = 2 * math.pi * (time * numerator % denominator / denominator)
            assert float(computed[n, j]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(computed[n, 5 + j]) == pytest.approx(math.cos(angle), abs=1e-6)


def test_frequencies_are_drawn_from_the_init_stream_saved_and_not_trained(papers):
    """N(0, 30²): the mean square of 256 draws has a relative standard deviation of 9 %."""
    frequencies = papers.features.frequencies

    assert frequencies.shape == (256,)
    assert float(frequencies.square().mean()) == pytest.approx(900, rel=4 * 0.09)
    assert "features.frequencies" in papers.state_dict()
    assert "features.frequencies" not in dict(papers.named_parameters())
    assert torch.equal(unet(1).features.frequencies, unet(1).features.frequencies)
    assert not torch.equal(unet(1).features.frequencies, unet(2).features.frequencies)


def silu(x):
    return x / (1 + np.exp(-x))


def convolution(x, weight, stride):
    """y[o, i, j] = sum over c, a, b of weight[o, c, a, b] x[c, stride i + a, stride j + b]."""
    windows = sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("cijab,ocab->oij", windows, weight)


def transposed(x, weight, stride, size):
    """Each x[c, i, j] adds weight[c, o] to the 3 x 3 pixels from (stride i, stride j) on."""
    y = np.zeros((weight.shape[1], size, size))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            rows, columns = slice(stride * i, stride * i + 3), slice(stride * j, stride * j + 3)
            y[:, rows, columns] += np.einsum("c,coab->oab", x[:, i, j], weight)
    return y


def group_norm(x, groups, gain, shift):
    """Each group of channels has mean 0 and variance 1, before gain and shift of each channel."""
    parts = [(g - g.mean()) / np.sqrt(g.var() + 1e-5) for g in np.split(x, groups)]
    return np.concatenate(parts) * gain[:, None, None] + shift[:, None, None]


def test_the_unet_is_its_slow_plain_version():
    """All seven stages, the skips and the last layer, on one image, with NumPy and loops."""
    model, time = unet(), 37
    x = np.random.default_rng(0).standard_normal((1, 18, 18))
    p = {name: t.numpy() for name, t in model.state_dict().items()}
    angle = 2 * np.pi * ((time * p["features.frequencies"]) % 1)
    features = np.concatenate([np.sin(angle), np.cos(angle)])
    e = silu(p["time.weight"] @ features + p["time.bias"])

    def stage(maps, dense, norm, groups):
        maps = maps + (p[f"{dense}.weight"] @ e + p[f"{dense}.bias"])[:, None, None]
        return silu(group_norm(maps, groups, p[f"{norm}.weight"], p[f"{norm}.bias"]))

    h1 = stage(convolution(x, p["conv1.weight"], 1), "dense1", "norm1", 4)
    h2 = stage(convolution(h1, p["conv2.weight"], 2), "dense2", "norm2", 2)
    h3 = stage(convolution(h2, p["conv3.weight"], 2), "dense3", "norm3", 2)
    h4 = stage(convolution(h3, p["conv4.weight"], 2), "dense4", "norm4", 2)
    h = stage(transposed(h4, p["tconv4.weight"], 2, 3), "dense5", "tnorm4", 2)
    h = stage(transposed(h + h3, p["tconv3.weight"], 2, 7), "dense6", "tnorm3", 2)
    h = stage(transposed(h + h2, p["tconv2.weight"], 2, 16), "dense7", "tnorm2", 2)
    expected = transposed(h + h1, p["tconv1.weight"], 1, 18) + p["tconv1.bias"]

    with torch.no_grad():
        computed = model(torch.from_numpy(x)[None], torch.tensor([time]))[0].numpy()

    np.testing.assert_allclose(computed, expected, rtol=1e-10, atol=1e-10)
