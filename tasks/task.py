"""The Task contract: what is trained, in full.

A task names a model, its data, its loss, its evaluation and where its matrices are. It is written
for ONE trial wherever the mathematics is (`loss`, `evaluate`: no dimension for trials) and for K
trials at once wherever the data is (`batch`, `eval_data`: a leading dimension K). The training
loop stacks the parameters of a group of K >= 1 trials of equal shape and maps `loss` over them; a
trial alone is a group of one and takes the same path, so its numbers are the same bits alone and in
company, provided the task keeps three promises:

1. Everything random comes from the streams (`tasks.random.Streams`), never from a generator of
   torch, numpy or Python. `batch(streams, step, micro)` is a function of the streams, the step and
   the micro-batch alone: no state moves on from step to step, so a trial resumes anywhere.
2. What trial k gets depends on entry k of the streams and on configuration k only.
3. All shapes depend on structural fields only, and are equal at every step.
4. Where sigmoid, SiLU, GELU, softplus, exp2 or pow is applied, the last dimension is a multiple of
   16: torch computes the last few numbers of an array with other instructions, which for these
   functions round differently (measured), and where the array of one trial ends depends on K.
   exp, log, sin, cos, tanh, erf, (log_)softmax and the four operations are free of this. So are
   linear layers, embeddings and LayerNorm. `nn.BatchNorm` is not: under vmap the gradient of its
   input takes another kernel at K = 1 than at K >= 2 (torch 2.13), one rounding apart.

A field of `Config` is *structural* (decides shapes, dtypes or which operations run; equal
within a group) unless it is marked `Annotated[..., PerTrial]`: then it may differ inside a group
and reaches the computation as a tensor, `self.per_trial(name)`, usually as an entry of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spectral.views import Coupling, MatrixView, discover
from tasks.config import TrainingConfig, structural_fields
from tasks.random import Streams

Forward = Callable[..., Any]
"""Runs the model on inputs, `forward(*inputs)`, in the mode and on the parameters and buffers that
the caller chose: those of one trial under vmap, pruned ones, or ones between two models."""

Batch = dict[str, Tensor]


class TaskError(ValueError):
    """A task that cannot be found, imported or used; the text is written for the user."""


class Task(ABC):
    """One task, for one group of trials.

    Args:
        configs: the configuration of each trial of the group, K >= 1. Structural fields agree.

    Attributes:
        configs: as given.
        config: `configs[0]`, from which structural fields are read.

    Raises:
        ValueError: no configuration, one of another class, or structural fields that differ.
    """

    Config: ClassVar[type[TrainingConfig]]
    """Every parameter that may stand in a sweep file, with bounds and a description."""

    version: ClassVar[int] = 1
    """Raised when the task's numbers change; part of a trial's identity."""

    stackable: bool = True
    """Whether `loss` and `evaluate` run under `torch.vmap`. Not: recurrent layers, `nn.Transformer`
    layers and CTC. Trials of a task that is not stackable are trained one after the other. A task
    whose models differ in this sets it in its constructor, from structural fields."""

    eval_chunk: int = 4096
    """Examples of a trial that `evaluate` is given at once; bounds its memory. A task with large
    examples sets fewer, on the class or in its constructor, from structural fields."""

    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    """The names `eval_data` knows; they become subjects of the metrics."""

    generalises_below: ClassVar[float | None] = 0.05
    """The metric `error` on val below which a trial counts as having generalised, in the table that
    a run ends with and in MLflow. None: errors are not judged, as where no model can come near 0.
    Recorded with the sweep when it is run; part of no identity."""

    name: ClassVar[str]
    """The registered name; by default the class's name."""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__

    def __init__(self, configs: Sequence[TrainingConfig]) -> None:
        if not configs:
            raise ValueError(f"task {self.name} needs at least one configuration, got none")
        for config in configs:
            if not isinstance(config, self.Config):
                raise ValueError(
                    f"task {self.name} expects configurations of class {self.Config.__qualname__}, "
                    f"got {type(config).__qualname__}"
                )
        differing = [
            field
            for field in structural_fields(self.Config)
            if any(getattr(c, field) != getattr(configs[0], field) for c in configs)
        ]
        if differing:
            raise ValueError(
                f"the trials of a group differ in structural fields: {', '.join(differing)}"
            )
        self.configs = tuple(configs)
        self.config = self.configs[0]

    def per_trial(self, field: str, device: torch.device | str = "cpu") -> Tensor:
        """The values of one per-trial field: [K], or [K, n] for a field that is an n-tuple.

        float64 for floats, int64 for ints, bool for bools.
        """
        values = [getattr(config, field) for config in self.configs]
        first = values[0][0] if isinstance(values[0], tuple) else values[0]
        dtype = torch.float64 if isinstance(first, float) else None
        return torch.tensor(values, dtype=dtype, device=device)

    @classmethod
    def missing(cls, config: Any) -> list[str]:
        """What this machine lacks for trials of a configuration, such as a data set.

        By default nothing.

        Asked on the machine that launches a sweep, before anything is launched, and cheap: it looks
        whether files are there, and does not read them. Each text says what is missing, how large
        it is and what provides it.
        """
        return []

    @abstractmethod
    def build(self, streams: Streams) -> nn.Module:
        """One freshly initialised model, on the CPU and in float32.

        `streams` is that of one trial (K = 1). Every parameter is filled from its `init`
        stream: `tasks.random.initialise_(model, streams)` does it with torch's distributions. The
        training loop converts to the trial's precision and device, so a float64 trial starts
        exactly where the float32 trial does. Buffers that are part of the state dict belong to the
        trial (BatchNorm statistics); non-persistent buffers are constants shared by the group.
        """

    @abstractmethod
    def batch(self, streams: Streams, step: int, micro: int) -> Batch:
        """Micro-batch `micro` (from 0) of step `step` (from 0), for all K trials.

        Everything random is already in it: indices, noise, dropout masks or their keys. Leading
        dimensions [K, examples], on `streams.device`; shapes equal at every step. The caller does
        not modify the tensors, so they may be cached (`Streams.remember`).
        """

    @abstractmethod
    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum, weight) of ONE trial: what is minimised is sum / weight, over all micro-batches.

        `batch` lacks the dimension K here. Usually the sum of the examples' losses and their
        number; the weight may depend on the data (tokens that count), not on the parameters: no
        gradient flows through it. Both are 0-dimensional and best on the batch's device
        (`tasks.losses.number_of`): a weight on the CPU makes a GPU wait at every step. No
        `.item()`, no branch on values.
        """

    @abstractmethod
    def eval_data(self, streams: Streams, split: str) -> Batch:
        """The data of one of `splits`, for all K trials: leading dimensions [K, examples].

        A pure function of the streams, computed once per group and kept. Noise in it is fixed, so
        that models evaluated on it (a full and a pruned one) are compared on the same.
        """

    @abstractmethod
    def evaluate(self, forward: Forward, data: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Metric -> (sum, weight) of ONE trial over some of the examples of a split.

        "loss", "error", ... Sums over examples are best taken in float64. The caller adds sums and
        weights over slices of the examples in float64 and divides once; for a corpus metric
        such as a word error rate they are errors and lengths. The model is in eval mode and no
        gradient is recorded.
        """

    def views(self, model: nn.Module) -> list[MatrixView]:
        """Where the model's matrices are; by default every parameter of two or more dimensions."""
        return discover(model)

    def couplings(self, model: nn.Module) -> list[Coupling]:
        """Which vectors of one view meet which of another; by default none are declared."""
        return []
