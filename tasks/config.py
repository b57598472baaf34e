"""TrainingConfig: what every task's trials can be told, and which of it may differ in a group."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tasks.random import STREAMS


class PerTrial:
    """Marks a field that may differ between the trials of one group.

    Written in the annotation, `Annotated[float, PerTrial]`; its value reaches the computation as a
    tensor with one entry per trial. A field without the mark is *structural*: it decides shapes,
    dtypes or which operations run, and trials that differ in it never share a group.
    """


def _listed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


AsTuple = BeforeValidator(_listed)
"""Lets a tuple field accept a list, which is what YAML and JSON have."""

StreamSeed = Annotated[int | None, Field(ge=0, lt=2**63), PerTrial]


class TrainingConfig(BaseModel):
    """The part of a configuration that every task shares; a task's own Config derives from it.

    Strict: an int is accepted for a float and becomes one, a list for a tuple; nothing else is
    converted, a bool is never a number, NaN and infinities are refused, and so is a setting that
    the trial would ignore. Instances are frozen.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    streams: ClassVar[tuple[str, ...]] = tuple(STREAMS)
    """The streams a task draws from: a task narrows it, and the seed of another one is refused."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """adamw (decoupled weight decay) or sgd (weight decay added to the gradient)"""
    lr: Annotated[float, Field(ge=0), PerTrial] = 1e-3
    """learning rate, before the schedule"""
    weight_decay: Annotated[float, Field(ge=0), PerTrial] = 0.0
    """decay of every parameter, biases, norms and embeddings included"""
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        AsTuple,
        PerTrial,
    ] = (0.9, 0.999)
    """adamw: decay per step of the first and second moments"""
    eps: Annotated[float, Field(gt=0), PerTrial] = 1e-8
    """adamw: added to the root of the second moment"""
    momentum: Annotated[float, Field(ge=0, lt=1), PerTrial] = 0.0
    """sgd: decay per step of the accumulated gradient"""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """course of the learning rate after the warmup: constant, or to 0 at `steps`"""
    warmup: Annotated[int, Field(ge=0), PerTrial] = 0
    """steps over which the learning rate rises linearly, from 0 at the first step"""
    clip: Annotated[float, Field(gt=0)] | None = None
    """largest norm of the gradient over all parameters of the trial; none: no clipping"""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """examples per step; none: all of them"""
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """equal parts in which a step's examples are processed, to save memory"""
    steps: Annotated[int, Field(ge=1, lt=2**31)] = 1000
    """optimiser steps of the trial"""
    precision: Literal["float32", "float64"] = "float32"
    """dtype of parameters, activations and optimiser state"""
    init_seed: StreamSeed = None
    """seed of the initial parameters, the same for every trial; none: the trial's seed"""
    split_seed: StreamSeed = None
    """seed of the split into train and val; none: the trial's seed"""
    labels_seed: StreamSeed = None
    """seed of random labels; none: the trial's seed"""
    order_seed: StreamSeed = None
    """seed of the order of the examples; none: the trial's seed"""
    noise_seed: StreamSeed = None
    """seed of noise in the data or the loss; none: the trial's seed"""
    dropout_seed: StreamSeed = None
    """seed of the dropout masks; none: the trial's seed"""

    @property
    def dtype(self) -> torch.dtype:
        """The torch dtype named by `precision`."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        other = ("momentum",) if self.optimizer == "adamw" else ("betas", "eps")
        for name in other:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(
                    f"{name} ({value}) has no effect with optimizer: {self.optimizer}; leave it out"
                )
        for name in STREAMS:
            if getattr(self, f"{name}_seed") is not None and name not in type(self).streams:
                raise ValueError(
                    f"{name}_seed has no effect: this task draws only from the streams "
                    f"{', '.join(type(self).streams)}"
                )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(
                f"warmup ({self.warmup}) is longer than the trial (steps: {self.steps})"
            )
        return self


class FullBatchConfig(TrainingConfig):
    """For a task whose every step uses all examples at once: refuses what that would ignore."""

    @model_validator(mode="after")
    def _all_at_once(self) -> Self:
        if self.batch_size is not None:
            raise ValueError(
                f"batch_size ({self.batch_size}) has no effect: this task always trains on all "
                "examples at once; leave it out"
            )
        if self.micro_batches != 1:
            raise ValueError(
                f"micro_batches ({self.micro_batches}) has no effect: this task always trains on "
                "all examples at once; leave it out"
            )
        return self


def per_trial_fields(config: type[TrainingConfig]) -> tuple[str, ...]:
    """Names of the fields that may differ between the trials of one group, in field order."""
    return tuple(n for n, field in config.model_fields.items() if PerTrial in field.metadata)


def structural_fields(config: type[TrainingConfig]) -> tuple[str, ...]:
    """Names of the fields that all trials of a group agree in, in field order."""
    marked = set(per_trial_fields(config))
    return tuple(name for name in config.model_fields if name not in marked)
