"""A bidirectional LSTM with a linear layer on top, for labelling every frame of a sequence."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class LSTM(nn.LSTM):
    """`nn.LSTM` over sequences of equal length from a zero state, on whatever its parameters are.

    `nn.LSTM` keeps a second list of its weights, and on a GPU writes them into one buffer, to spare
    a copy. A training loop that puts other tensors in the parameters' places must not depend on
    when that list is renewed, so the weights are looked up at every call.
    """

    def forward(self, x: Tensor, hx: None = None) -> Tensor:  # type: ignore[override]
        """[examples, frames, inputs] -> [examples, frames, directions * hidden]."""
        weights: list[Tensor] = [weight for layer in self.all_weights for weight in layer]
        zero = x.new_zeros(self.num_layers * (1 + self.bidirectional), len(x), self.hidden_size)
        with _supported(x.device):
            output: Tensor = torch.lstm(
                x,
                (zero, zero),
                weights,
                self.bias,
                self.num_layers,
                0.0,
                self.training,
                self.bidirectional,
                True,  # examples come first
            )[0]
        return output


@contextmanager
def _supported(device: torch.device) -> Iterator[None]:
    kind = device.type
    with warnings.catch_warnings():
        # cuDNN wants its own buffer and says at every call that it copies the weights there.
        warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous")
        if kind == "cpu" and torch.is_autocast_enabled(kind):
            # CPUs have no LSTM in float16; it runs in float32 there.
            half = torch.get_autocast_dtype(kind) == torch.float16
            with torch.autocast(kind, torch.bfloat16, enabled=not half):
                yield
        else:
            yield


class BidirectionalLSTM(nn.Module):
    """LSTM layers in both directions, then a linear layer on each frame.

    Args:
        inputs: features of a frame.
        hidden: width of one direction of a layer.
        layers: LSTM layers.
        outputs: logits of a frame.

    Attributes:
        lstm: parameters `weight_ih_l0`, `weight_hh_l0`, ..., `_reverse` for the second direction;
            rows in four blocks of `hidden`: gates i, f, g, o.
        linear: reads the forward direction in its first `hidden` columns, the reverse one in the
            others.
    """

    def __init__(self, inputs: int, hidden: int, layers: int, outputs: int) -> None:
        super().__init__()
        self.lstm = LSTM(inputs, hidden, layers, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(2 * hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[examples, frames, inputs] -> [examples, frames, outputs]."""
        logits: Tensor = self.linear(self.lstm(x))
        return logits
