"""Image classification: VGG-16, ResNet-18 or an MLP; labels given, permuted, random or noisy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spectral.views import Coupling
from tasks import images
from tasks.config import PerTrial, StreamSeed, TrainingConfig
from tasks.image_matrices import image_couplings
from tasks.images import SOURCES, ImageData
from tasks.losses import cross_entropy, number_of
from tasks.models.mlp import MLP
from tasks.models.resnet import ResNet18
from tasks.models.vgg import VGG16
from tasks.random import Streams, initialise_
from tasks.task import Batch, Forward, Task

SMALLEST = {"vgg16": 32, "resnet18": 16}
"""Pixels per side at which a model's last convolutions see 2 x 2: on 1 x 1 only the centre of their
kernels is trained, and the rank of the rest is that of the initial noise."""

ONLY = {"hidden": "mlp", "layers": "mlp"}
"""Fields that shape one model only; `channels` shapes the two others."""

READY_BYTES = 2**26
"""A pool whose normalised images take no more is normalised once; of a larger one, the images of
each step, which are the same bits."""
EVAL_BYTES = 2**27
"""How large the activations that live at one time may be in evaluation, about."""


class ImageClassificationConfig(TrainingConfig):
    """Defaults of the models are the paper's (Yunis et al., figures 3 and 8), the data digits."""

    streams: ClassVar[tuple[str, ...]] = ("init", "split", "labels", "order")

    data: ImageData = "digits"
    """digits (1,797 of scikit-learn, no download), cifar10, cifar100 or mnist: training splits"""
    image_size: Annotated[int, Field(ge=2, le=512)] | None = None
    """pixels per side that images are resized to; none: the set's, or as many as the model needs"""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """part of the images that is held back as val, rounded down; the rest is trained on"""
    labels: Literal["given", "permuted", "random"] = "given"
    """given with the data; permuted: one permutation of all, val included; random: drawn anew"""
    label_noise: Annotated[float, Field(ge=0, le=1), PerTrial] = 0.0
    """part of all labels, val included, that is drawn anew uniformly, rounded down"""
    model: Literal["vgg16", "mlp", "resnet18"] = "vgg16"
    """vgg16 and resnet18 with batch normalisation, or mlp: linear layers and ReLU"""
    channels: Annotated[int, Field(ge=1)] = 64
    """vgg16, resnet18: channels of the first block; the later ones are up to 8 times as wide"""
    hidden: Annotated[int, Field(ge=1)] = 256
    """mlp: width of the hidden layers"""
    layers: Annotated[int, Field(ge=2)] = 4
    """mlp: linear layers, the output included"""
    batch_size: Annotated[int, Field(ge=1)] | None = 128
    """examples per step; none: all of them"""
    labels_seed: StreamSeed = None
    """seed of labels that are permuted, random or noisy, unread with others; none: the trial's"""
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """equal parts in which a step is processed; batch normalisation sees one part at a time"""

    @property
    def pixels(self) -> int:
        """Height and width of the images that the model is given."""
        own = SOURCES[self.data].size
        return self.image_size or max(own, SMALLEST.get(self.model, own))

    @property
    def num_val(self) -> int:
        """floor(val_fraction N)."""
        return math.floor(self.val_fraction * SOURCES[self.data].count)

    @property
    def num_train(self) -> int:
        """N minus `num_val`."""
        return SOURCES[self.data].count - self.num_val

    @model_validator(mode="after")
    def _nothing_of_another_model(self) -> Self:
        problems = []
        for name in ("channels", "hidden", "layers"):
            value = getattr(self, name)
            if value == type(self).model_fields[name].default:
                continue
            if (ONLY.get(name) == "mlp") != (self.model == "mlp"):
                problems.append(
                    f"{name} ({value}) has no effect with model: {self.model}; leave it out"
                )
        if self.label_noise and self.labels != "given":
            problems.append(
                f"label_noise ({self.label_noise}) is for labels: given; labels: {self.labels} are "
                "randomised already"
            )
        smallest = SMALLEST.get(self.model, 0)
        if self.pixels < smallest:
            problems.append(
                f"image_size ({self.image_size}) is too small for model: {self.model}, whose last "
                f"convolutions would see single pixels; at least {smallest}"
            )
        return self._without(problems)

    @model_validator(mode="after")
    def _steps_fit(self) -> Self:
        problems = []
        if self.num_val == 0:
            problems.append(
                f"val_fraction ({self.val_fraction}) of {SOURCES[self.data].count} images leaves "
                "none for val"
            )
        problems += self._batch_problems(self.num_train, "images", "set it to null")
        return self._without(problems)


class ImageClassification(Task):
    """The training split of an image set, split again into train and val by the `split` stream.

    No augmentation. Metrics on train and val: `loss`, the mean over images of the cross-entropy in
    nats, and `error`, the fraction of images whose largest logit is not the label's. Where labels
    are randomised they are in val, too. Images are normalised with the constants of their set,
    also where they were resized.
    """

    Config = ImageClassificationConfig
    name = "image_classification"
    config: ImageClassificationConfig
    configs: tuple[ImageClassificationConfig, ...]

    def __init__(self, configs: Sequence[TrainingConfig]) -> None:
        super().__init__(configs)
        c = self.config
        # batch normalisation rounds differently under vmap
        self.stackable = c.model == "mlp"
        self.eval_chunk = _eval_chunk(c)
        self._pools: dict[torch.device, Tensor] = {}  # of each device, looked up at every step

    @classmethod
    def missing(cls, config: ImageClassificationConfig) -> list[str]:
        """The data set, unless it is the embedded one."""
        return images.missing(config.data)

    def build(self, streams: Streams) -> nn.Module:
        """The model for the set's channels and classes, at torch's default distributions."""
        c, source = self.config, SOURCES[self.config.data]
        if c.model == "mlp":
            inputs = source.channels * c.pixels**2
            widths = [c.hidden] * (c.layers - 1)
            return initialise_(MLP([inputs, *widths, source.num_classes]), streams)
        kind = VGG16 if c.model == "vgg16" else ResNet18
        return initialise_(kind(source.channels, c.channels, source.num_classes), streams)

    def batch(self, streams: Streams, step: int, micro: int) -> Batch:
        """`index` int64 [K, examples] into the pool and `labels` int64 [K, examples]."""
        c, data = self.config, self.eval_data(streams, "train")
        if c.batch_size is None:
            size = c.num_train // c.micro_batches
            return {name: t[:, micro * size : (micro + 1) * size] for name, t in data.items()}
        size = c.batch_size // c.micro_batches
        chosen = streams.examples(step, c.num_train, c.batch_size)
        chosen = chosen[:, micro * size : (micro + 1) * size]
        return {name: t.gather(1, chosen) for name, t in data.items()}

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        """Cross-entropy, summed over the images."""
        labels = batch["labels"]
        logits = forward(self._inputs(batch["index"]))
        losses = cross_entropy(logits, labels)
        return losses.sum(), number_of(losses)

    def eval_data(self, streams: Streams, split: str) -> Batch:
        """`index` int64 [K, images] into the pool and `labels` int64 [K, images]."""
        c = self.config
        key = ("image_classification", c.data, c.val_fraction, c.labels, *self._noise())

        def make() -> dict[str, Batch]:
            index = streams.permutation("split", 0, SOURCES[c.data].count)
            labels = self._labels(streams).gather(1, index)
            cut = c.num_train
            return {
                "train": {"index": index[:, :cut], "labels": labels[:, :cut]},
                "val": {"index": index[:, cut:], "labels": labels[:, cut:]},
            }

        return streams.remember(key, make)[split]

    def evaluate(self, forward: Forward, data: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Sums of cross-entropy and of wrong answers over the images."""
        labels = data["labels"]
        logits = forward(self._inputs(data["index"]))
        losses = cross_entropy(logits, labels)
        wrong = logits.argmax(-1) != labels
        count = number_of(losses)
        return {"loss": (losses.double().sum(), count), "error": (wrong.double().sum(), count)}

    def couplings(self, model: nn.Module) -> list[Coupling]:
        """Consecutive matrices: 13 of VGG-16, 3 of four linear layers; see `image_couplings`."""
        return image_couplings(model)

    def _inputs(self, index: Tensor) -> Tensor:
        """Normalised images of indices [n]: [n, C, H, W], or for the MLP [n, C H W]."""
        c, device = self.config, index.device
        if device not in self._pools:
            pool = images.pool(c.data, c.pixels, device)
            small = pool.numel() * c.dtype.itemsize <= READY_BYTES
            self._pools[device] = images.normalised(pool, c.data, c.dtype) if small else pool
        chosen = self._pools[device][index]
        if chosen.dtype == torch.uint8:
            chosen = images.normalised(chosen, c.data, c.dtype)
        return chosen.flatten(1) if c.model == "mlp" else chosen

    def _noise(self) -> list[float]:
        """`label_noise` of each trial: `config` is that of the first one only."""
        return [config.label_noise for config in self.configs]

    def _labels(self, streams: Streams) -> Tensor:
        """The labels of all images for each trial, int64 [K, N], in the order of the set.

        From the `labels` stream: step 0 orders the images, step 1 draws labels. One draw of an
        order serves both options, which exclude each other.
        """
        c, source = self.config, SOURCES[self.config.data]
        given = images.image_set(c.data).labels.to(streams.device).expand(len(streams), -1)
        if c.labels == "permuted":
            return given.gather(1, streams.permutation("labels", 0, source.count))
        if c.labels == "given" and not any(self._noise()):
            return given
        uniform = streams.uniform("labels", 1, (source.count,), torch.float64)
        drawn = (uniform * source.num_classes).to(torch.int64)
        if c.labels == "random":
            return drawn
        # of each trial, the first images of its order; the next ones would follow with more noise
        order = streams.permutation("labels", 0, source.count)
        place = torch.empty_like(order).scatter_(
            1, order, torch.arange(source.count, device=order.device).expand_as(order)
        )
        redrawn = (self.per_trial("label_noise", order.device) * source.count).floor()
        return torch.where(place < redrawn[:, None], drawn, given)


def _eval_chunk(config: ImageClassificationConfig) -> int:
    """Examples whose three widest tensors of activations in float32 fill `EVAL_BYTES`.

    Three: what a layer reads, what it writes, and what the next one makes of that. A power of two,
    128 for the paper's VGG-16. Convolutions take at most 512, because larger slices were slower on
    CPUs, whose caches they overflow. The same for every precision: statistics of batch
    normalisation are re-estimated over such slices, and should not depend on it.
    """
    channels = SOURCES[config.data].channels
    if config.model == "mlp":
        most, widest = 4096, max(channels * config.pixels**2, config.hidden)
    else:
        most, widest = 512, max(channels, config.channels) * config.pixels**2
    fitting = max(1, EVAL_BYTES // (3 * 4 * widest))
    return min(most, 1 << (fitting.bit_length() - 1))
