"""ResNet-18 for small images: its first convolution is 3 x 3, and no pooling follows."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to what came in.

    Args:
        inputs: channels that are read.
        outputs: channels that are written.
        stride: of the first convolution.

    Attributes:
        downsample: where shapes change, the 1 x 1 convolution with batch normalisation that brings
            what came in to the shape of the result; else None.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[examples, inputs, H, W] -> [examples, outputs, ceil(H / stride), ceil(W / stride)]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        written = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(written + shortcut)


class ResNet18(nn.Module):
    """A convolution, four stages of two blocks, the mean over places, one linear layer.

    11,173,962 parameters for 3 channels in, 64 in the first stage and 10 classes.

    Args:
        inputs: channels of the images, 1 or 3.
        channels: width of the first stage; each later one is twice as wide.
        classes: outputs.

    Attributes:
        conv1: the first convolution.
        layer1: the first stage, up to `layer4`; blocks are `layer1.0` and `layer1.1`.
        fc: the linear layer.

    Source: He et al., CVPR 2016 (section 4.2 for the stem on small images).
    """

    def __init__(self, inputs: int, channels: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = self._stage(channels, channels, 1)
        self.layer2 = self._stage(channels, 2 * channels, 2)
        self.layer3 = self._stage(2 * channels, 4 * channels, 2)
        self.layer4 = self._stage(4 * channels, 8 * channels, 2)
        self.fc = nn.Linear(8 * channels, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[examples, inputs, H, W] -> [examples, classes]."""
        x = torch.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        logits: Tensor = self.fc(x.mean((-2, -1)))
        return logits
