"""TrainingConfig: what every task's trials can be told, and which of it may differ in a group."""

from __future__ import annotations

import itertools
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

_IGNORED: dict[str, dict[str, tuple[str, ...]]] = {
    "optimizer": {"adamw": ("momentum",), "sgd": ("betas", "eps")},
    "schedule": {
        "constant": ("schedule_steps", "schedule_floor", "milestones", "gamma"),
        "cosine": ("milestones", "gamma"),
        "linear": ("milestones", "gamma"),
        "steps": ("schedule_steps", "schedule_floor"),
    },
}
"""For each choice, the parameters that nothing would read."""


def _shown(value: Any) -> str:
    """As a sweep file would have it: a tuple of any length is a list there."""
    return str([*value]) if isinstance(value, tuple) else str(value)


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
    schedule: Literal["constant", "cosine", "linear", "steps"] = "constant"
    """course of the learning rate after the warmup: constant, a decay, or cut at milestones"""
    warmup: Annotated[int, Field(ge=0), PerTrial] = 0
    """steps over which the learning rate rises linearly, from 0 at the first step"""
    schedule_steps: Annotated[Annotated[int, Field(ge=1)] | None, PerTrial] = None
    """cosine, linear: length of the decay after the warmup; none: to `steps`"""
    schedule_floor: Annotated[float, Field(ge=0, lt=1), PerTrial] = 0.0
    """cosine, linear: part of lr that is left at the end of the decay"""
    schedule_every: Annotated[int, Field(ge=1), PerTrial] = 1
    """the learning rate changes at multiples of so many steps only, such as once per epoch"""
    milestones: Annotated[tuple[Annotated[int, Field(ge=1)], ...], AsTuple, PerTrial] = ()
    """steps: the steps from which on the learning rate is multiplied by gamma once more"""
    gamma: Annotated[float, Field(gt=0), PerTrial] = 0.1
    """steps: factor of the learning rate at each milestone"""
    clip: Annotated[float, Field(gt=0)] | None = None
    """largest norm of the gradient over all parameters of the trial; none: no clipping"""
    batch_size: Annotated[int, Field(ge=1)] | None = None
    """examples per step; none: all of them"""
    micro_batches: Annotated[int, Field(ge=1)] = 1
    """equal parts in which a step's examples are processed, to save memory"""
    steps: Annotated[int, Field(ge=1, lt=2**31)] = 1000
    """optimiser steps of the trial"""
    precision: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """dtype of the computation; the 16-bit ones keep weights, moments and losses in float32"""
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
        """The dtype of parameters, gradients and moments: float64 or float32."""
        return torch.float64 if self.precision == "float64" else torch.float32

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        problems = []
        for setting in ("optimizer", "schedule"):
            chosen = getattr(self, setting)
            for name in _IGNORED[setting][chosen]:
                value, default = getattr(self, name), type(self).model_fields[name].default
                if value != default:
                    problems.append(
                        f"{name} ({_shown(value)}) has no effect with {setting}: {chosen}; "
                        "leave it out"
                    )
        for name in STREAMS:
            if getattr(self, f"{name}_seed") is not None and name not in type(self).streams:
                problems.append(
                    f"{name}_seed has no effect: this task draws only from the streams "
                    f"{', '.join(type(self).streams)}"
                )
        return self._without(problems)

    @model_validator(mode="after")
    def _schedule_fits(self) -> Self:
        problems = []
        if self.warmup > self.steps:
            problems.append(
                f"warmup ({self.warmup}) is longer than the trial (steps: {self.steps})"
            )
        if self.schedule_every > 1 and self.schedule == "constant" and not self.warmup:
            problems.append(
                f"schedule_every ({self.schedule_every}) has no effect with schedule: constant "
                "and no warmup; leave it out"
            )
        if self.schedule_every > self.warmup > 0:
            problems.append(
                f"schedule_every ({self.schedule_every}) is longer than the warmup "
                f"({self.warmup}): the learning rate would stay 0 until step "
                f"{self.schedule_every}; make the warmup longer or leave it out"
            )
        if self.schedule == "steps":
            problems += self._milestone_problems()
        return self._without(problems)

    def _milestone_problems(self) -> list[str]:
        given = self.milestones
        shown = _shown(given)
        if not given:
            return ["schedule: steps needs milestones, the steps at which lr is cut"]
        problems = []
        if any(later <= earlier for earlier, later in itertools.pairwise(given)):
            problems.append(f"milestones ({shown}) must increase")
        if max(given) >= self.steps:
            problems.append(
                f"milestones ({shown}) reach beyond the trial's last step ({self.steps - 1}); "
                "leave those out"
            )
        if min(given) < self.warmup:
            problems.append(f"milestones ({shown}) begin before the warmup ({self.warmup}) ends")
        return problems

    def _batch_problems(self, count: int, what: str, advice: str) -> list[str]:
        """Why `count` training examples, called `what`, cannot be made into batches: each reason.

        `advice` says how a sweep file asks for all of them.
        """
        problems = []
        if self.batch_size is not None and self.batch_size > count:
            problems.append(
                f"batch_size ({self.batch_size}) exceeds the {count} training {what}; "
                f"{advice} to train on all of them"
            )
        if self.batch_size is None and self.order_seed is not None:
            problems.append(
                f"order_seed has no effect without batch_size: every step takes all training {what}"
            )
        per_step = self.batch_size or count
        if per_step % self.micro_batches:
            problems.append(
                f"micro_batches ({self.micro_batches}) does not divide the {per_step} examples "
                "of a step"
            )
        return problems

    def _without(self, problems: list[str]) -> Self:
        if problems:
            raise ValueError("; ".join(problems))
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
