"""The transformer of the grokking and language-modelling experiments: pre-norm and causal.

Shapes: N sequences, S positions, D width, H heads, C tokens of the vocabulary.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks.random import Streams, initialise_, uniform_


class Attention(nn.Module):
    """Causal multi-head self-attention, parametrised as `torch.nn.MultiheadAttention`.

    Query, key and value projections are one fused matrix `in_proj_weight` [3D, D], in that order;
    head h owns rows h D/H to (h + 1) D/H of each. Written out in matrix products, unless `fused`:
    torch's fused attention never holds the [N, H, S, S] weights, which at S = 2048 are 200 MB per
    sequence and layer, but it has no batching rule on the CPU and would run as a loop under vmap.
    """

    def __init__(self, width: int, heads: int, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def initialise_(self, streams: Streams, prefix: str) -> None:
        """As torch's: Xavier uniform over the fused [3D, D] matrix, both biases zero."""
        outputs, inputs = self.in_proj_weight.shape
        bound = math.sqrt(6.0 / (inputs + outputs))
        uniform_(self.in_proj_weight, bound, streams, prefix + "in_proj_weight")
        initialise_(self.out_proj, streams, prefix + "out_proj.")
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, last: bool) -> Tensor:
        """[N, S, D] -> [N, S, D], or [N, D] if only the last position's output is wanted."""
        width = x.shape[-1]
        if last:
            # The last query sees every position: no mask, and no other query has to be computed.
            weight, bias = self.in_proj_weight, self.in_proj_bias
            query = F.linear(x[:, -1], weight[:width], bias[:width])
            key, value = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        else:
            fused = F.linear(x, self.in_proj_weight, self.in_proj_bias)
            query, key, value = fused.chunk(3, dim=-1)
        query = query / math.sqrt(width // self.heads)
        query, key, value = (t.reshape(*t.shape[:-1], self.heads, -1) for t in (query, key, value))
        attend = _attend_one if last else _attend_fused if self.fused else _attend_all
        attended = attend(query, key, value)
        output: Tensor = self.out_proj(attended.flatten(-2))
        return output


def _attend_all(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of every position to itself and those before; all [N, S, H, D/H]."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    scores = query @ key.transpose(-1, -2)
    size = scores.shape[-1]
    later = torch.ones(size, size, dtype=torch.bool, device=scores.device).triu(1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def _attend_fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What `_attend_all` computes, up to rounding, in one kernel."""
    query, key, value = (t.transpose(1, 2) for t in (query, key, value))
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
    return attended.transpose(1, 2)


def _attend_one(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one query [N, H, D/H] to all positions of key and value [N, S, H, D/H].

    Products and sums over whole arrays: with N H tiny matrix products a training step of the small
    grokking model takes 17 % longer (p = 31, 672 pairs, one thread, measured).
    """
    weights = (query[:, None] * key).sum(-1, keepdim=True).softmax(1)
    return (weights * value).sum(1)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + linear2(relu(linear1(norm(x))))."""

    def __init__(
        self, width: int, heads: int, feed_forward: int, layer_norm: bool, fused: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.attention = Attention(width, heads, fused)
        self.norm2 = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.linear1 = nn.Linear(width, feed_forward)
        self.linear2 = nn.Linear(feed_forward, width)

    def forward(self, x: Tensor, last: bool) -> Tensor:
        """[N, S, D] -> [N, S, D], or [N, D] if only the last position's output is wanted."""
        residual = x[:, -1] if last else x
        x = residual + self.attention(self.norm1(x), last)
        output: Tensor = x + self.linear2(torch.relu(self.linear1(self.norm2(x))))
        return output


class Transformer(nn.Module):
    """Token ids to logits. Embedding times sqrt(D), plus positions, layers, decoder; no final norm.

    Initial values: embedding, learned positions and decoder U(±0.1), decoder bias 0, the rest
    torch's defaults. The reference code has no learned positions, so theirs is our choice: with
    N(0, 1), p = 31 and no weight decay the validation error was still 0.97 after 3,000 steps, with
    U(±0.1) it was 0.35.

    Args:
        tokens: size of the vocabulary, and number of outputs.
        length: largest number of positions.
        width: D.
        heads: divides the width.
        feed_forward: hidden width of the feed-forward part.
        layers: number of layers.
        positions: a learned [length, D] matrix, or fixed sines and cosines.
        layer_norm: whether attention and feed-forward part normalise their input.
        fused: whether attention over all positions is torch's fused one; see `Attention`.
        equal_layers: whether all layers start with the values of the first, as those of
            `torch.nn.TransformerEncoder` do, which copies one layer.
    """

    def __init__(
        self,
        tokens: int,
        length: int,
        width: int,
        heads: int,
        feed_forward: int,
        layers: int = 1,
        positions: Literal["learned", "sinusoidal"] = "sinusoidal",
        layer_norm: bool = False,
        fused: bool = False,
        equal_layers: bool = False,
    ) -> None:
        super().__init__()
        self.equal_layers = equal_layers
        self.scale = math.sqrt(width)
        self.embedding = nn.Embedding(tokens, width)
        self.positions: Tensor
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(length, width))
        else:
            self.register_buffer("positions", sinusoids(length, width), persistent=False)
        self.layers = nn.ModuleList(
            Layer(width, heads, feed_forward, layer_norm, fused) for _ in range(layers)
        )
        self.decoder = nn.Linear(width, tokens)

    def initialise_(self, streams: Streams, prefix: str = "") -> None:
        """Fill all parameters from one trial's `init` stream."""
        for index, layer in enumerate(self.layers):
            # A parameter's name decides its numbers: under one name, all layers draw the same.
            initialise_(layer, streams, f"{prefix}layers.{0 if self.equal_layers else index}.")
        uniform_(self.embedding.weight, 0.1, streams, prefix + "embedding.weight")
        uniform_(self.decoder.weight, 0.1, streams, prefix + "decoder.weight")
        nn.init.zeros_(self.decoder.bias)
        if isinstance(self.positions, nn.Parameter):
            uniform_(self.positions, 0.1, streams, prefix + "positions")

    def forward(self, tokens: Tensor, last: bool = False) -> Tensor:
        """Logits of the next token, [N, S] int64 -> [N, S, C].

        With `last` only those of the last position, [N, C]: the same numbers up to rounding,
        without the work on outputs that nothing depends on.
        """
        # Scaling the rows of the matrix, not the embedded tokens: there are fewer of them here.
        embedded = F.embedding(tokens, self.embedding.weight * self.scale)
        x = embedded + self.positions[: tokens.shape[-1]]
        for layer in self.layers[:-1]:
            x = layer(x, False)
        x = self.layers[-1](x, last)
        logits: Tensor = self.decoder(x)
        return logits


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed positions [length, width], float32: sin(p / 10000^(2i/width)) and its cosine in turn.

    Source: Vaswani et al., "Attention is all you need", 2017, section 3.5.
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]
    rate = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = position * rate
    pairs = torch.stack([angle.sin(), angle.cos()], dim=-1)
    return pairs.flatten(1)[:, :width].float()
