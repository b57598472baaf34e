"""VGG-16 with batch normalisation, in the layout that studies of small images train."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PLAN: tuple[int | None, ...] = (
    *(1, 1, None),
    *(2, 2, None),
    *(4, 4, 4, None),
    *(8, 8, 8, None),
    *(8, 8, 8),
)
"""Output channels of each convolution as multiples of the first block's; None: max pooling."""


class ConvBlock(nn.Module):
    """A 3 x 3 convolution with bias, batch normalisation, ReLU.

    Args:
        inputs: channels that are read.
        outputs: channels that are written.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[examples, inputs, H, W] -> [examples, outputs, H, W]."""
        return torch.relu(self.bn(self.conv(x)))


class VGG16(nn.Module):
    """13 convolutions, four max poolings between their blocks, the mean over places, one layer.

    On 32 x 32 pixels the last convolutions see 2 x 2 and the mean is the average pooling of 2 x 2
    that Yunis et al. use. 14,728,266 parameters for 3 channels in, 64 in the first block and 10
    classes.

    Args:
        inputs: channels of the images, 1 or 3.
        channels: width of the first block; the others are 2, 4, 8 and 8 times as wide.
        classes: outputs.

    Attributes:
        layers: convolutions (`ConvBlock`) and poolings, numbered together: `layers.11` is the ninth
            convolution.
        fc: the linear layer.

    Source: open_lth (MIT), Frankle et al.; the architecture is of Simonyan & Zisserman, ICLR 2015.
    """

    def __init__(self, inputs: int, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = inputs
        for multiple in PLAN:
            if multiple is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers.append(ConvBlock(width, multiple * channels))
                width = multiple * channels
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[examples, inputs, H, W] with H, W >= 16 -> [examples, classes]."""
        features: Tensor = self.layers(x)
        logits: Tensor = self.fc(features.mean((-2, -1)))
        return logits
