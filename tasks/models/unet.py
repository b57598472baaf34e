"""The UNet of score-based image generation, with skips that add: it predicts an image's noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from tasks.random import Streams, normal_

FIRST_GROUPS = 4
"""Groups of the first norm; all others have as many as the model is told."""


def map_sizes(size: int) -> tuple[int, int, int, int]:
    """Sides of the four feature maps of an image of `size` pixels a side: 28 -> 26, 12, 5, 2.

    A 3 x 3 convolution without padding leaves s - 2 of s at stride 1, floor((s - 3) / 2) + 1 at
    stride 2. The last is at least 1 from 17 pixels on.
    """
    first = size - 2
    second = (first - 3) // 2 + 1
    third = (second - 3) // 2 + 1
    return first, second, third, (third - 3) // 2 + 1


class FourierFeatures(nn.Module):
    """(sin 2 pi t w, cos 2 pi t w) for random frequencies w that are not trained.

    Args:
        width: number of features, even: half of them sines.
        scale: standard deviation of the frequencies, in turns per time step.

    Attributes:
        frequencies: [width / 2], a buffer that is part of the state.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", torch.zeros(width // 2))

    def initialise_(self, streams: Streams, prefix: str) -> None:
        """Draw w ~ N(0, scale²)."""
        normal_(self.frequencies, self.scale, streams, prefix + "frequencies")

    def forward(self, time: Tensor) -> Tensor:
        """int64 [N] -> [N, width], in the dtype of the frequencies."""
        # t w is up to 1e5 turns, of which float32 would keep two digits; in float64 the product of
        # a small whole number and a float32 is exact, and so is its fractional part.
        turns = torch.frac(time[:, None].double() * self.frequencies.double())
        angle = (2.0 * math.pi * turns).to(self.frequencies.dtype)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class UNet(nn.Module):
    """Four convolutions down, four transposed ones up; the way down is added on the way up.

    Every stage but the last is swish(norm(convolution + dense(e))), where e = swish(time(features))
    says how far the image is on its way to noise, and enters each channel as a constant. All
    convolutions are 3 x 3 without padding, at strides 1, 2, 2, 2 down and 2, 2, 2, 1 up; only the
    last has a bias. For the paper's channels, and images of 28 x 28 pixels: 4,085,505 parameters.

    Args:
        channels: of the four stages; each a multiple of `groups`, the first also of 4.
        size: pixels per side of an image, at least 17.
        time_width: of the time's features and of e; even.
        groups: of GroupNorm, but for the first stage's, which has 4.
        image_channels: of an image.
        scale: standard deviation of the time's frequencies.

    Attributes:
        features: `FourierFeatures`.
        time: linear layer from the features to e, before the swish.
        conv1: first convolution; likewise conv2, conv3, conv4.
        dense1: linear layer from e to the channels of `conv1`; likewise dense2, dense3, dense4, and
            dense5, dense6, dense7 for tconv4, tconv3, tconv2.
        norm1: GroupNorm after `conv1`; likewise norm2, norm3, norm4.
        tconv4: transposed convolution that undoes the shape of `conv4`; likewise tconv3, tconv2,
            tconv1.
        tnorm4: GroupNorm after `tconv4`; likewise tnorm3, tnorm2.

    Source: Yunis et al., arXiv 2408.11804 (their `UNet_res`), after the tutorials on Song et al.,
    "Score-based generative modeling through stochastic differential equations", ICLR 2021.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 256, 512),
        size: int = 28,
        time_width: int = 512,
        groups: int = 32,
        image_channels: int = 1,
        scale: float = 30.0,
    ) -> None:
        super().__init__()
        c1, c2, c3, c4 = channels
        s1, s2, s3, _ = map_sizes(size)
        self.features = FourierFeatures(time_width, scale)
        self.time = nn.Linear(time_width, time_width)

        # In the order of the reference code: the last matrix, tconv1, is the one never pruned.
        self.conv1 = nn.Conv2d(image_channels, c1, 3, bias=False)
        self.dense1 = nn.Linear(time_width, c1)
        self.norm1 = nn.GroupNorm(FIRST_GROUPS, c1)
        self.conv2 = nn.Conv2d(c1, c2, 3, stride=2, bias=False)
        self.dense2 = nn.Linear(time_width, c2)
        self.norm2 = nn.GroupNorm(groups, c2)
        self.conv3 = nn.Conv2d(c2, c3, 3, stride=2, bias=False)
        self.dense3 = nn.Linear(time_width, c3)
        self.norm3 = nn.GroupNorm(groups, c3)
        self.conv4 = nn.Conv2d(c3, c4, 3, stride=2, bias=False)
        self.dense4 = nn.Linear(time_width, c4)
        self.norm4 = nn.GroupNorm(groups, c4)

        self.tconv4 = _up(c4, c3, s3)
        self.dense5 = nn.Linear(time_width, c3)
        self.tnorm4 = nn.GroupNorm(groups, c3)
        self.tconv3 = _up(c3, c2, s2)
        self.dense6 = nn.Linear(time_width, c2)
        self.tnorm3 = nn.GroupNorm(groups, c2)
        self.tconv2 = _up(c2, c1, s1)
        self.dense7 = nn.Linear(time_width, c1)
        self.tnorm2 = nn.GroupNorm(groups, c1)
        self.tconv1 = nn.ConvTranspose2d(c1, image_channels, 3)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Images [N, C, size, size] and times int64 [N] -> the noise in them, as the images."""
        e = silu(self.time(self.features(time)))
        h1 = _stage(self.conv1(x), self.dense1(e), self.norm1)
        h2 = _stage(self.conv2(h1), self.dense2(e), self.norm2)
        h3 = _stage(self.conv3(h2), self.dense3(e), self.norm3)
        h4 = _stage(self.conv4(h3), self.dense4(e), self.norm4)
        h = _stage(self.tconv4(h4), self.dense5(e), self.tnorm4)
        h = _stage(self.tconv3(h + h3), self.dense6(e), self.tnorm3)
        h = _stage(self.tconv2(h + h2), self.dense7(e), self.tnorm2)
        noise: Tensor = self.tconv1(h + h1)
        return noise


def _up(inputs: int, outputs: int, size: int) -> nn.ConvTranspose2d:
    """To maps of `size`: a convolution at stride 2 makes equal maps of an odd size and the next."""
    extra = (size - 3) % 2
    return nn.ConvTranspose2d(inputs, outputs, 3, stride=2, bias=False, output_padding=extra)


def _stage(maps: Tensor, constant: Tensor, norm: nn.GroupNorm) -> Tensor:
    return silu(norm(maps + constant[:, :, None, None]))
