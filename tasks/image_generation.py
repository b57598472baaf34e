"""Image generation: a UNet learns to tell the noise in an image, at every level of it (diffusion).

Shape legend: K trials, n examples, C channels, S pixels per side, T = 1,000 time steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from spectral.views import Coupling, CouplingEnd, MatrixView, discover
from tasks import images
from tasks.config import AsTuple, TrainingConfig
from tasks.diffusion import TIME_STEPS, noise_of, noised
from tasks.losses import number_of
from tasks.models.unet import FIRST_GROUPS, UNet, map_sizes
from tasks.random import Streams, initialise_
from tasks.task import Batch, Forward, Task

# Step of the `noise` stream: training takes two for every step of its own, all below 2^32.
_EVALUATION = 2**40

Channels = Annotated[int, Field(ge=1, le=4096)]


class ImageGenerationConfig(TrainingConfig):
    """Defaults of the model are the paper's (Yunis et al., arXiv 2408.11804, UNet on MNIST)."""

    streams: ClassVar[tuple[str, ...]] = ("init", "split", "order", "noise")

    batch_size: Annotated[int, Field(ge=1)] | None = 128
    """examples per step; none: all of them"""
    data: Literal["digits", "mnist"] = "digits"
    """images: digits (1,797 of scikit-learn, no download) or mnist (60,000)"""
    num_images: Annotated[int, Field(ge=2)] | None = None
    """how many images, drawn by the `split` stream, are used for train and val; none: all"""
    image_size: Annotated[int, Field(ge=17, le=128)] = 28
    """pixels per side that the images are resized to; MNIST has 28"""
    train_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """part of the images that is trained on, rounded down; the rest is val"""
    train_examples: Annotated[int, Field(ge=1)] | None = None
    """how many training images, the first of the split, train metrics are taken on; none: all"""
    channels: Annotated[tuple[Channels, Channels, Channels, Channels], AsTuple] = (
        64,
        128,
        256,
        512,
    )
    """channels of the UNet's four stages; multiples of `groups`, the first also of 4"""
    groups: Annotated[int, Field(ge=1)] = 32
    """groups of each GroupNorm but the first, which has 4"""
    time_width: Annotated[int, Field(ge=2, multiple_of=2)] = 512
    """width of the time's Fourier features and of its embedding, even"""

    @property
    def used(self) -> int:
        """How many images are used, train and val together."""
        return self.num_images or images.SOURCES[self.data].count

    @property
    def num_train(self) -> int:
        """floor(train_fraction · used)."""
        return math.floor(self.train_fraction * self.used)

    @model_validator(mode="after")
    def _examples_fit(self) -> Self:
        held, train = images.SOURCES[self.data].count, self.num_train
        problems = []
        if self.used > held:
            problems.append(
                f"num_images ({self.num_images}) exceeds the {held} images of {self.data}"
            )
        if train == 0:
            problems.append(
                f"train_fraction ({self.train_fraction}) of {self.used} images leaves none "
                "to train on"
            )
            return self._without(problems)
        if self.train_examples is not None and self.train_examples > train:
            problems.append(
                f"train_examples ({self.train_examples}) exceeds the {train} training images; "
                "set it to null to take metrics on all of them"
            )
        return self._without([*problems, *self._batch_problems(train, "images", "set it to null")])

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        first, *_, last = self.channels
        odd = [c for c in self.channels if c % self.groups]
        if odd or first % FIRST_GROUPS:
            raise ValueError(
                f"channels ({', '.join(map(str, self.channels))}): each must be a multiple of "
                f"groups ({self.groups}), and the first also of {FIRST_GROUPS}"
            )
        side = map_sizes(self.image_size)[-1]
        if last // self.groups * side**2 < 2:
            raise ValueError(
                f"image_size ({self.image_size}): the last feature map is {side} x {side}, and "
                f"{self.groups} groups of its {last} channels are one number each, whose norm is "
                "always 0; take larger images or fewer groups"
            )
        return self


class ImageGeneration(Task):
    """Predict the noise e in sqrt(a_t) x + sqrt(1 - a_t) e, for times t that are equally likely.

    Images x are normalised with the data set's mean and standard deviation. The metric on train
    and val, `loss`, is the mean over images of the mean squared error over the pixels; predicting
    no noise at all gives 1 on average. Time and noise of an image of train or val are drawn once
    per trial: every evaluation, of the model as it is and of pruned ones, sees the same.
    """

    Config = ImageGenerationConfig
    name = "image_generation"
    stackable = False  # GroupNorm and swish: see the promises in `tasks.task`
    config: ImageGenerationConfig

    def __init__(self, configs: Sequence[TrainingConfig]) -> None:
        super().__init__(configs)
        # Maps that outgrow a CPU's cache make it slower: at 16 channels a slice of 1,600 examples
        # took twice as long per example as one of 128. Never below 128, for the sake of a GPU.
        per_example = self.config.channels[0] * map_sizes(self.config.image_size)[0] ** 2
        self.eval_chunk = max(128, 2**21 // per_example)

    @classmethod
    def missing(cls, config: ImageGenerationConfig) -> list[str]:
        """The data set, if it is not on this machine."""
        return images.missing(config.data)

    def build(self, streams: Streams) -> nn.Module:
        """The UNet for one-channel images."""
        c = self.config
        return initialise_(UNet(c.channels, c.image_size, c.time_width, c.groups), streams)

    def batch(self, streams: Streams, step: int, micro: int) -> Batch:
        """`image`, `time` and `noise` as in `eval_data`, [K, examples of the micro-batch]."""
        c = self.config
        index = self._split(streams)["train"]
        if c.batch_size is not None:
            index = index.gather(1, streams.examples(step, c.num_train, c.batch_size))
        whole = _drawn(streams, index, 2 * step)
        size = index.shape[1] // c.micro_batches
        return {name: t[:, micro * size : (micro + 1) * size] for name, t in whole.items()}

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum over the images of the mean squared error over the pixels."""
        errors = self._errors(forward, batch)
        return errors.sum(), number_of(errors)

    def eval_data(self, streams: Streams, split: str) -> Batch:
        """What becomes noisy images, each int64 [K, n].

        `image` is the place in the pool, `time` is 0..999, and `noise` the key that the pixels'
        noise is drawn from when it is needed: it takes four bytes a pixel, a key eight in all.
        """
        index = self._split(streams)[split]
        if split == "train":
            index = index[:, : self.config.train_examples]
        return _drawn(streams, index, _EVALUATION + 2 * self.splits.index(split))

    def evaluate(self, forward: Forward, data: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """The same sum, in float64."""
        errors = self._errors(forward, data)
        return {"loss": (errors.double().sum(), number_of(errors))}

    def views(self, model: nn.Module) -> list[MatrixView]:
        """`time`, `conv1` ... `conv4`, `dense1` ... `dense7`, `tconv4` ... `tconv1`: 16."""
        return discover(model)

    def couplings(self, model: nn.Module) -> list[Coupling]:
        """The paper's 17; see `unet_couplings`."""
        return unet_couplings(self.config.channels)

    def _split(self, streams: Streams) -> Batch:
        """Places in the pool, int64 [K, n] each: the first of a permutation are train."""
        c = self.config

        def make() -> Batch:
            held = images.SOURCES[c.data].count
            order = streams.permutation("split", 0, held)[:, : c.used]
            return {"train": order[:, : c.num_train], "val": order[:, c.num_train :]}

        key = ("image_generation split", c.data, c.used, c.num_train)
        return streams.remember(key, make)

    def _errors(self, forward: Forward, data: Batch) -> Tensor:
        """The mean squared error over the pixels of each of n images, [n]."""
        c = self.config
        pool = images.pool(c.data, c.image_size, data["image"].device)
        clean = images.normalised(pool[data["image"]], c.data, c.dtype)
        noise = noise_of(data["noise"], clean.shape[1:], c.dtype)
        predicted: Tensor = forward(noised(clean, data["time"], noise), data["time"])
        return (predicted - noise).square().mean(dim=(1, 2, 3))


def _drawn(streams: Streams, index: Tensor, step: int) -> Batch:
    """Times and noise keys of the `noise` stream for the images, from its steps `step` and + 1."""
    shape = index.shape[1:]
    time = (streams.uniform("noise", step, shape, torch.float64) * TIME_STEPS).long()
    keys = streams.bits("noise", step + 1, shape) & (2**63 - 1)
    return {"image": index, "time": time, "noise": keys}


def unet_couplings(channels: tuple[int, int, int, int]) -> list[Coupling]:
    """The paper's 17: what each stage writes, and the convolutions that read it.

    A stage writes the left vectors of its convolution and of its dense layer to its channels. The
    next stage's convolution reads them, and over the skip the transposed one of the same number;
    what is compared with are the centre taps of their right vectors. The dense layers of the way
    up are in no coupling, nor is `time`.

    Source: Yunis et al., arXiv 2408.11804 (their code).
    """
    read_by = {
        "conv1": ("conv2", "tconv1"),
        "conv2": ("conv3", "tconv2"),
        "conv3": ("conv4", "tconv3"),
        "conv4": ("tconv4",),
        "tconv4": ("tconv3",),
        "tconv3": ("tconv2",),
        "tconv2": ("tconv1",),
    }
    written = dict(zip(read_by, (*channels, *channels[-2::-1]), strict=True))
    return [
        _coupling(writer, reader, written[stage])
        for stage, readers in read_by.items()
        for reader in readers
        for writer in ((stage, stage.replace("conv", "dense")) if stage[0] == "c" else (stage,))
    ]


def _coupling(writer: str, reader: str, width: int) -> Coupling:
    centre = CouplingEnd(reader, "right", reshape=(width, 3, 3), tap=(1, 1))
    return Coupling(CouplingEnd(writer, "left"), centre, length=9 * width)
