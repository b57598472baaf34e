"""Modular addition: predict (i + j) mod p from the tokens i, j, "=". The task that groks."""

from __future__ import annotations

import itertools
import math
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spectral.views import Coupling, CouplingEnd, MatrixView
from tasks.config import TrainingConfig
from tasks.losses import cross_entropy, number_of
from tasks.models.mlp import MLP
from tasks.models.transformer import Transformer
from tasks.random import Streams, initialise_
from tasks.task import Batch, Forward, Task
from tasks.transformer_matrices import transformer_couplings, transformer_views

_FIELDS: dict[str, tuple[str, ...]] = {
    "transformer": ("width", "heads", "feed_forward", "layers", "positions", "layer_norm"),
    "mlp": ("mlp_width", "mlp_layers"),
}
"""The parameters that only one of the models reads."""


class ModularAdditionConfig(TrainingConfig):
    """Defaults of the model and the data are the paper's (Yunis et al., figure 2, rows 1 and 2)."""

    streams: ClassVar[tuple[str, ...]] = ("init", "split", "order")

    modulus: Annotated[int, Field(ge=2, le=2048)] = 113
    """p: numbers 0..p-1 are added modulo p"""
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """part of all p² pairs that is trained on, rounded down; the rest is val"""
    model: Literal["transformer", "mlp"] = "transformer"
    """transformer with cross-entropy, or mlp on one-hot inputs with mean squared error"""
    width: Annotated[int, Field(ge=1)] = 128
    """transformer: width of the residual stream; a multiple of `heads`"""
    heads: Annotated[int, Field(ge=1)] = 4
    """transformer: attention heads"""
    feed_forward: Annotated[int, Field(ge=1)] = 512
    """transformer: hidden width of the feed-forward part"""
    layers: Annotated[int, Field(ge=1)] = 1
    """transformer: layers"""
    positions: Literal["learned", "sinusoidal"] = "sinusoidal"
    """transformer: position vectors, a learned matrix or fixed sines and cosines"""
    layer_norm: bool = False
    """transformer: normalise the inputs of attention and feed-forward part"""
    mlp_width: Annotated[int, Field(ge=1)] = 100
    """mlp: width of the hidden layers"""
    mlp_layers: Annotated[int, Field(ge=2)] = 5
    """mlp: linear layers, the output's included"""

    @property
    def num_train(self) -> int:
        """floor(train_fraction p²)."""
        return math.floor(self.train_fraction * self.modulus**2)

    @model_validator(mode="after")
    def _model_reads_its_fields(self) -> Self:
        problems = []
        for name in _FIELDS["mlp" if self.model == "transformer" else "transformer"]:
            value = getattr(self, name)
            if value != type(self).model_fields[name].default:
                problems.append(
                    f"{name} ({value}) has no effect with model: {self.model}; leave it out"
                )
        return self._without(problems)

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        problems = []
        if self.width % self.heads:
            problems.append(f"width ({self.width}) is not divisible by heads ({self.heads})")
        if self.num_train == 0:
            problems.append(
                f"train_fraction ({self.train_fraction}) of {self.modulus**2} pairs leaves none to "
                "train on"
            )
        else:
            problems += self._batch_problems(self.num_train, "pairs", "leave it out")
        return self._without(problems)


class ModularAddition(Task):
    """All p² pairs (i, j), token "=" is p; the label stands at the last position.

    The order of the pairs is one permutation of the `split` stream, its first floor(fraction p²)
    entries are the training set. Metrics on train and val: `loss`, the mean of what is minimised,
    and `error`, the fraction of pairs whose largest output is not the label's.

    With the transformer, `loss` is the cross-entropy in nats. The MLP reads i and j as two one-hot
    vectors side by side, [2p], and its p outputs are compared with the label's one-hot vector: the
    squared error, mean over the outputs, so 1/p for a model that answers 0.

    Source: Yunis et al., arXiv 2408.11804, section 3 and appendix; the MLP is in their code.
    """

    Config = ModularAdditionConfig
    name = "modular_addition"
    config: ModularAdditionConfig

    def build(self, streams: Streams) -> nn.Module:
        """The transformer with p + 1 tokens and outputs on three positions, or the MLP."""
        c = self.config
        if c.model == "mlp":
            hidden = [c.mlp_width] * (c.mlp_layers - 1)
            return initialise_(MLP([2 * c.modulus, *hidden, c.modulus]), streams)
        model = Transformer(
            c.modulus + 1, 3, c.width, c.heads, c.feed_forward, c.layers, c.positions, c.layer_norm
        )
        model.initialise_(streams)
        return model

    def batch(self, streams: Streams, step: int, micro: int) -> Batch:
        """All training pairs, or a mini-batch in the order of the `order` stream."""
        c = self.config
        if c.batch_size is None:
            size = c.num_train // c.micro_batches
            key = ("modular_addition micro", c.modulus, c.train_fraction, size, micro)
            part = slice(micro * size, (micro + 1) * size)
            return streams.remember(
                key, lambda: {n: t[:, part] for n, t in self.eval_data(streams, "train").items()}
            )
        chosen = streams.examples(step, c.num_train, c.batch_size)
        size = c.batch_size // c.micro_batches
        chosen = chosen[:, micro * size : (micro + 1) * size]
        data = self.eval_data(streams, "train")
        return {
            "tokens": data["tokens"].gather(1, chosen[:, :, None].expand(-1, -1, 3)),
            "labels": data["labels"].gather(1, chosen),
        }

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy at the last position, or the mean squared error of the outputs."""
        losses, _ = self._losses(forward, batch)
        return losses.sum(), number_of(losses)

    def _losses(self, forward: Forward, data: Batch) -> tuple[Tensor, Tensor]:
        """The loss of each pair, [N], and the outputs, [N, p + 1] or [N, p]."""
        tokens, labels = data["tokens"], data["labels"]
        if self.config.model == "transformer":
            logits = forward(tokens, True)
            return cross_entropy(logits, labels), logits
        outputs = forward(self._one_hot(tokens[:, :2]).flatten(1))
        return (outputs - self._one_hot(labels)).square().mean(-1), outputs

    def _one_hot(self, numbers: Tensor) -> Tensor:
        """[...] -> [..., p]; torch's own looks at the values, which vmap does not allow."""
        every = torch.arange(self.config.modulus, device=numbers.device)
        return (numbers[..., None] == every).to(self.config.dtype)

    def eval_data(self, streams: Streams, split: str) -> Batch:
        """`tokens` int64 [K, pairs, 3] and `labels` int64 [K, pairs]."""
        c = self.config

        def make() -> dict[str, Batch]:
            pair = streams.permutation("split", 0, c.modulus**2)
            i, j = pair // c.modulus, pair % c.modulus
            tokens = torch.stack([i, j, torch.full_like(i, c.modulus)], dim=-1)
            labels = (i + j) % c.modulus
            cut = c.num_train
            return {
                "train": {"tokens": tokens[:, :cut], "labels": labels[:, :cut]},
                "val": {"tokens": tokens[:, cut:], "labels": labels[:, cut:]},
            }

        return streams.remember(("modular_addition", c.modulus, c.train_fraction), make)[split]

    def evaluate(self, forward: Forward, data: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums of the losses and of wrong answers over the pairs."""
        losses, outputs = self._losses(forward, data)
        wrong = outputs.argmax(-1) != data["labels"]
        count = number_of(losses)
        return {"loss": (losses.double().sum(), count), "error": (wrong.double().sum(), count)}

    def views(self, model: nn.Module) -> list[MatrixView]:
        """Embedding, attention (fused, query, key, value, their heads), feed-forward, decoder.

        Of the MLP its layers, `layers.0` first.
        """
        c = self.config
        if c.model == "mlp":
            return [MatrixView(f"layers.{i}", f"layers.{i}.weight") for i in range(c.mlp_layers)]
        return transformer_views(c.layers, c.width, c.heads)

    def couplings(self, model: nn.Module) -> list[Coupling]:
        """The paper's six per layer and into the decoder; see `transformer_couplings`.

        Of the MLP each layer and the next.
        """
        c = self.config
        if c.model == "mlp":
            names = [f"layers.{i}" for i in range(c.mlp_layers)]
            return [
                Coupling(CouplingEnd(first, "left"), CouplingEnd(second, "right"), c.mlp_width)
                for first, second in itertools.pairwise(names)
            ]
        return transformer_couplings(c.layers, c.width, c.heads, c.feed_forward)
