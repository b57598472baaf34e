"""A multi-layer perceptron."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with a ReLU between each two.

    Args:
        sizes: inputs, width of each hidden layer, outputs: at least two numbers.
        bias: whether the layers have biases.

    Attributes:
        layers: the linear layers, `layers.0` first.
    """

    def __init__(self, sizes: Sequence[int], bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(inputs, outputs, bias=bias) for inputs, outputs in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[examples, inputs] -> [examples, outputs]."""
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        output: Tensor = self.layers[-1](x)
        return output
