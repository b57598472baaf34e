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
        """[examples, inputs] -> [examples, outputs].

        W x^T + b for each layer and not x W^T + b, as torch has it: under vmap its gradient of W
        arrives transposed, and to turn that takes a tenth of a step.
        """
        x = x.mT
        for place, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            x = layer.weight @ (torch.relu(x) if place else x)
            if layer.bias is not None:
                x = x + layer.bias.to(x.dtype)[:, None]  # as autocast has it
        return x.mT
