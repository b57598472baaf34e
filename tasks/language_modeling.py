"""Language modelling: predict each next token of English text. The paper's decoder Transformer."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spectral.views import Coupling, MatrixView
from tasks import text
from tasks.config import TrainingConfig
from tasks.data import folder
from tasks.losses import cross_entropy, number_of
from tasks.models.transformer import Transformer
from tasks.random import Streams
from tasks.task import Batch, Forward, Task, TaskError
from tasks.transformer_matrices import transformer_couplings, transformer_views

EVAL_LOGITS = 4 * 2048 * text.GPT_NEOX_TOKENS
"""Logits that one evaluation holds at most: four examples of the full size, 1.6 GB in float32."""

EVAL_EXAMPLES = 64
"""Examples that one evaluation takes at most."""


class LanguageModelingConfig(TrainingConfig):
    """Defaults of the model are the paper's (Yunis et al., section 3), 119.8 million parameters.

    On the embedded text they are slow: give it a model of a few layers and a short context.
    """

    streams: ClassVar[tuple[str, ...]] = ("init", "split", "order")

    data: Literal["python_docs", "wikitext103"] = "python_docs"
    """text: the documentation that ships with Python, or WikiText-103 in GPT-NeoX's tokens"""
    vocabulary: Annotated[int, Field(ge=64, le=4096)] | None = None
    """python_docs: size of a byte-pair vocabulary trained on it; none: its 37 characters"""
    clean: bool = True
    """wikitext103: lower case without punctuation, as the paper says; false: raw, as its code"""
    context: Annotated[int, Field(ge=1, le=65536)] = 2048
    """tokens that the model sees; an example is one more, its last only predicted"""
    width: Annotated[int, Field(ge=1)] = 768
    """width of the residual stream; a multiple of `heads`"""
    heads: Annotated[int, Field(ge=1)] = 12
    """attention heads"""
    feed_forward: Annotated[int, Field(ge=1)] = 768
    """hidden width of the feed-forward parts"""
    layers: Annotated[int, Field(ge=1)] = 12
    """transformer layers"""
    equal_layers: bool = False
    """all layers start with the same weights, as in the paper's code; else each with its own"""
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """python_docs: part of the examples that is trained on, rounded down; the rest is val"""
    train_examples: Annotated[int, Field(ge=1)] = 1000
    """examples, evenly spaced over the training set, that train metrics are taken on"""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """examples per step"""

    @property
    def tokens(self) -> int:
        """Size of the vocabulary."""
        if self.data == "wikitext103":
            return text.GPT_NEOX_TOKENS
        return self.vocabulary or len(text.ALPHABET)

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        problems = []
        if self.width % self.heads:
            problems.append(f"width ({self.width}) is not divisible by heads ({self.heads})")
        if self.batch_size % self.micro_batches:
            problems.append(
                f"micro_batches ({self.micro_batches}) does not divide the {self.batch_size} "
                "examples of a step"
            )
        if self.data == "wikitext103":
            for name in ("vocabulary", "train_fraction", "split_seed"):
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    problems.append(
                        f"{name} ({value}) has no effect with data: wikitext103, whose tokens and "
                        "split are given; leave it out"
                    )
        elif not self.clean:
            problems.append(
                f"clean (False) has no effect with data: {self.data}, a text that is always "
                "cleaned; leave it out"
            )
        return self._without(problems)


class LanguageModeling(Task):
    """Every chunk of context + 1 tokens is an example; chunks do not overlap.

    python_docs: the order of its chunks is one permutation of the `split` stream, its first
    floor(train_fraction n) are the training set. wikitext103: its own train and validation splits.
    Metrics on train (`train_examples` chunks) and val (all): `loss`, the mean cross-entropy in nats
    per token, and `error`, the fraction of tokens that are not the one with the largest logit.
    Perplexity is exp(loss): no ratio of sums, so it is not a metric of its own.
    """

    Config = LanguageModelingConfig
    name = "language_modeling"
    generalises_below = None  # most tokens of a text cannot be known from those before
    config: LanguageModelingConfig

    # Torch's fused attention has no batching rule on the CPU. Explicit attention under vmap takes
    # 1.05, 1.4 and 1.6 times as long per trial at contexts 32, 64 and 64 (2, 2 and 4 layers, four
    # trials, one thread), and at 2048 its weights alone are 2.4 GB per example of 12 layers.
    stackable = False

    def __init__(self, configs: Sequence[TrainingConfig]) -> None:
        super().__init__(configs)
        c = self.config
        per_example = c.context * max(c.tokens, c.width, c.feed_forward)
        self.eval_chunk = min(max(EVAL_LOGITS // per_example, 1), EVAL_EXAMPLES)

    @classmethod
    def missing(cls, config: LanguageModelingConfig) -> list[str]:
        """The data set, its tokenizer, or the package that makes tokens."""
        return text.missing(config.data, config.vocabulary)

    def build(self, streams: Streams) -> nn.Module:
        """The pre-norm decoder Transformer, embedding and decoder untied."""
        c = self.config
        model = Transformer(
            c.tokens,
            c.context,
            c.width,
            c.heads,
            c.feed_forward,
            c.layers,
            layer_norm=True,
            fused=True,
            equal_layers=c.equal_layers,
        )
        model.initialise_(streams)
        return model

    def batch(self, streams: Streams, step: int, micro: int) -> Batch:
        """`tokens` int64 [K, examples, context + 1], in the order of the `order` stream."""
        c = self.config
        starts = self._starts(streams, "train")
        count = starts.shape[1]
        if c.batch_size > count:
            raise TaskError(
                f"batch_size ({c.batch_size}) exceeds the {count} training examples of "
                f"{c.context + 1} tokens that {c.data} has; lower batch_size or context"
            )
        chosen = streams.examples(step, count, c.batch_size)
        size = c.batch_size // c.micro_batches
        chosen = chosen[:, micro * size : (micro + 1) * size]
        return {"tokens": self._tokens(streams, "train", starts.gather(1, chosen))}

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy at every position."""
        logits, labels = _predicted(forward, batch["tokens"])
        losses = cross_entropy(logits, labels)
        return losses.sum(), number_of(losses)

    def eval_data(self, streams: Streams, split: str) -> Batch:
        """`tokens` int64 [K, examples, context + 1]."""
        starts = self._starts(streams, split)
        if split == "train" and (count := starts.shape[1]) > self.config.train_examples:
            wanted = self.config.train_examples
            spaced = torch.arange(wanted, device=streams.device) * count // wanted
            starts = starts[:, spaced]
        return {"tokens": self._tokens(streams, split, starts)}

    def evaluate(self, forward: Forward, data: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums of cross-entropy and of wrong predictions over the tokens."""
        logits, labels = _predicted(forward, data["tokens"])
        losses = cross_entropy(logits, labels)
        wrong = logits.argmax(-1) != labels
        count = number_of(losses)
        return {"loss": (losses.double().sum(), count), "error": (wrong.double().sum(), count)}

    def views(self, model: nn.Module) -> list[MatrixView]:
        """Embedding, attention (fused, query, key, value, their heads), feed-forward, decoder."""
        c = self.config
        return transformer_views(c.layers, c.width, c.heads)

    def couplings(self, model: nn.Module) -> list[Coupling]:
        """The paper's five per layer and into the first; see `transformer_couplings`."""
        c = self.config
        return transformer_couplings(c.layers, c.width, c.heads, c.feed_forward)

    def _pool(self, streams: Streams, split: str) -> tuple[Tensor, Tensor]:
        c = self.config
        own = {"train": "train", "val": "validation"}[split]
        # python_docs is one text, of which both splits are parts: one entry, not two.
        named = own if c.data == "wikitext103" else "train"
        which = (c.data, named, c.vocabulary, c.clean)
        return _pool(*which, c.context + 1, streams.device, folder())

    def _starts(self, streams: Streams, split: str) -> Tensor:
        """Where the examples of a split begin in its text, int64 [K, examples]."""
        c = self.config
        _, starts = self._pool(streams, split)
        if c.data == "wikitext103":
            return starts.expand(len(streams), -1)

        def make() -> dict[str, Tensor]:
            mixed = starts[streams.permutation("split", 0, len(starts))]
            cut = math.floor(c.train_fraction * len(starts))
            if not 0 < cut < len(starts):
                raise TaskError(
                    f"train_fraction ({c.train_fraction}) of the {len(starts)} examples of "
                    f"{c.context + 1} tokens that {c.data} has leaves none for train or none for "
                    "val; change it, or lower context"
                )
            return {"train": mixed[:, :cut], "val": mixed[:, cut:]}

        key = ("language_modeling", c.data, c.vocabulary, c.context, c.train_fraction)
        return streams.remember(key, make)[split]

    def _tokens(self, streams: Streams, split: str, starts: Tensor) -> Tensor:
        """The examples that begin at `starts` [K, n], int64 [K, n, context + 1]."""
        pool, _ = self._pool(streams, split)
        places = torch.arange(self.config.context + 1, device=streams.device)
        # Ids up to 65,535 lie in the pool's int16 as they are; the mask drops the sign's copies.
        return pool[starts[..., None] + places].to(torch.int64) & 0xFFFF


def _predicted(forward: Forward, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n context, tokens] of all positions of n chunks, and the tokens that follow."""
    return forward(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()


@functools.lru_cache(maxsize=4)
def _pool(
    data: str,
    split: str,
    vocabulary: int | None,
    clean: bool,
    length: int,
    device: torch.device,
    place: Path,
) -> tuple[Tensor, Tensor]:
    """A text's token ids as int16 bits, and where its chunks begin; one per process and device.

    `place`, the folder of data sets, only tells texts in different folders apart.

    Raises:
        TaskError: the text is too short for one chunk, or cannot be had.
    """
    corpus = text.corpus(data, split, vocabulary, clean)
    starts = corpus.starts(length)
    if not len(starts):
        raise TaskError(
            f"data set {data}, split {split}: its {len(corpus.tokens)} tokens give no example of "
            f"{length}; lower context"
        )
    pool = torch.from_numpy(corpus.tokens.view("int16")).to(device)
    return pool, torch.from_numpy(starts).to(device)
