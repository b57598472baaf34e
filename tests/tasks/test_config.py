"""TrainingConfig: strict values, nothing ignored, and the marks of per-trial fields."""

import math
from typing import Annotated, ClassVar

import pytest
import torch
from pydantic import Field, ValidationError

from tasks.config import (
    FullBatchConfig,
    PerTrial,
    TrainingConfig,
    per_trial_fields,
    structural_fields,
)
from tasks.modular_addition import ModularAdditionConfig


def problems(config, **values):
    """(field or "", message) of everything pydantic reports."""
    with pytest.raises(ValidationError) as caught:
        config(**values)
    return [(".".join(map(str, e["loc"])), e["msg"]) for e in caught.value.errors()]


def test_an_int_is_accepted_for_a_float_and_becomes_one():
    """So 1 and 1.0 in a sweep file are the same configuration."""
    config = TrainingConfig(lr=1, weight_decay=0, betas=[0, 0.5])

    assert [type(config.lr), type(config.weight_decay), type(config.betas[0])] == [float] * 3
    assert config == TrainingConfig(lr=1.0, weight_decay=0.0, betas=(0.0, 0.5))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"lr": True}, [("lr", "Input should be a valid number")]),
        ({"steps": True}, [("steps", "Input should be a valid integer")]),
        ({"init_seed": False}, [("init_seed", "Input should be a valid integer")]),
        ({"steps": 3.0}, [("steps", "Input should be a valid integer")]),
        ({"lr": "1e-3"}, [("lr", "Input should be a valid number")]),
        ({"lr": math.nan}, [("lr", "Input should be a finite number")]),
        ({"weight_decay": math.inf}, [("weight_decay", "Input should be a finite number")]),
        ({"lr": -1.0}, [("lr", "Input should be greater than or equal to 0")]),
        ({"betas": [0.9, 1]}, [("betas.1", "Input should be less than 1")]),
        ({"betas": [0.9]}, [("betas.1", "Field required")]),
        ({"clip": 0.0}, [("clip", "Input should be greater than 0")]),
        ({"optimizer": "adam"}, [("optimizer", "Input should be 'adamw' or 'sgd'")]),
        ({"weight_deccay": 1.0}, [("weight_deccay", "Extra inputs are not permitted")]),
        (
            {"lr": "x", "steps": 0},
            [
                ("lr", "Input should be a valid number"),
                ("steps", "Input should be greater than or equal to 1"),
            ],
        ),
    ],
    ids=str,
)
def test_values_of_the_wrong_kind_are_refused(values, expected):
    assert problems(TrainingConfig, **values) == expected


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (
            TrainingConfig,
            {"warmup": 20, "steps": 10},
            "warmup (20) is longer than the trial (steps: 10)",
        ),
        (
            TrainingConfig,
            {"momentum": 0.9},
            "momentum (0.9) has no effect with optimizer: adamw; leave it out",
        ),
        (
            TrainingConfig,
            {"optimizer": "sgd", "betas": (0.9, 0.98)},
            "betas ([0.9, 0.98]) has no effect with optimizer: sgd; leave it out",
        ),
        (
            TrainingConfig,
            {"optimizer": "sgd", "eps": 1e-6},
            "eps (1e-06) has no effect with optimizer: sgd; leave it out",
        ),
        (
            TrainingConfig,
            {"optimizer": "sgd", "eps": 1e-6, "schedule_floor": 0.1},
            "eps (1e-06) has no effect with optimizer: sgd; leave it out; "
            "schedule_floor (0.1) has no effect with schedule: constant; leave it out",
        ),
        (
            TrainingConfig,
            {"schedule": "steps", "milestones": [5], "schedule_steps": 4},
            "schedule_steps (4) has no effect with schedule: steps; leave it out",
        ),
        (
            TrainingConfig,
            {"schedule": "cosine", "milestones": [5, 8]},
            "milestones ([5, 8]) has no effect with schedule: cosine; leave it out",
        ),
        (
            TrainingConfig,
            {"schedule": "linear", "gamma": 0.5},
            "gamma (0.5) has no effect with schedule: linear; leave it out",
        ),
        (
            TrainingConfig,
            {"schedule_every": 5},
            "schedule_every (5) has no effect with schedule: constant and no warmup; leave it out",
        ),
        (
            TrainingConfig,
            {"warmup": 200, "schedule": "cosine", "schedule_every": 352},
            "schedule_every (352) is longer than the warmup (200): the learning rate would stay 0 "
            "until step 352; make the warmup longer or leave it out",
        ),
        (
            TrainingConfig,
            {"schedule": "steps"},
            "schedule: steps needs milestones, the steps at which lr is cut",
        ),
        (
            TrainingConfig,
            {"schedule": "steps", "milestones": [8, 5, 10], "steps": 10, "warmup": 6},
            "milestones ([8, 5, 10]) must increase; "
            "milestones ([8, 5, 10]) reach beyond the trial's last step (9); leave those out; "
            "milestones ([8, 5, 10]) begin before the warmup (6) ends",
        ),
        (
            FullBatchConfig,
            {"batch_size": 8},
            "batch_size (8) has no effect: this task always trains on all examples at once; "
            "leave it out",
        ),
        (
            FullBatchConfig,
            {"micro_batches": 2},
            "micro_batches (2) has no effect: this task always trains on all examples at once; "
            "leave it out",
        ),
        (
            ModularAdditionConfig,
            {"labels_seed": 1},
            "labels_seed has no effect: this task draws only from the streams init, split, order",
        ),
        (
            ModularAdditionConfig,
            {"order_seed": 1},
            "order_seed has no effect without batch_size: every step takes all training pairs",
        ),
        (
            ModularAdditionConfig,
            {"width": 10, "heads": 4},
            "width (10) is not divisible by heads (4)",
        ),
        (
            ModularAdditionConfig,
            {"modulus": 3, "train_fraction": 0.1},
            "train_fraction (0.1) of 9 pairs leaves none to train on",
        ),
        (
            ModularAdditionConfig,
            {"modulus": 5, "train_fraction": 0.5, "batch_size": 13},
            "batch_size (13) exceeds the 12 training pairs; leave it out to train on all of them",
        ),
        (
            ModularAdditionConfig,
            {"modulus": 5, "train_fraction": 0.5, "micro_batches": 5},
            "micro_batches (5) does not divide the 12 examples of a step",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_settings_that_contradict_or_would_be_ignored_are_refused(config, values, message):
    assert problems(config, **values) == [("", f"Value error, {message}")]


def test_what_was_dumped_is_accepted_again():
    """A worker rebuilds the configuration from its JSON form, in which tuples are lists."""
    config = ModularAdditionConfig(
        betas=[0.9, 0.98], clip=1, split_seed=3, schedule="steps", milestones=[5, 7], steps=9
    )

    assert ModularAdditionConfig(**config.model_dump(mode="json")) == config


def test_fields_are_marked_per_trial_or_are_structural():
    class Config(TrainingConfig):
        streams: ClassVar[tuple[str, ...]] = ("init",)
        smoothing: Annotated[float, Field(ge=0), PerTrial] = 0.0
        width: int = 3

    per_trial = (
        "lr weight_decay betas eps momentum warmup schedule_steps schedule_floor schedule_every "
        "milestones gamma init_seed split_seed labels_seed order_seed noise_seed dropout_seed "
        "smoothing"
    )
    structural = "optimizer schedule clip batch_size micro_batches steps precision width"
    assert per_trial_fields(Config) == tuple(per_trial.split())
    assert structural_fields(Config) == tuple(structural.split())


@pytest.mark.parametrize("config", [TrainingConfig, ModularAdditionConfig])
def test_every_field_says_what_it_is(config):
    """`sweep tasks NAME` prints the descriptions."""
    assert [name for name, field in config.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("float32", torch.float32),
        ("float64", torch.float64),
        ("bfloat16", torch.float32),
        ("float16", torch.float32),
    ],
)
def test_weights_are_kept_in_float32_unless_all_is_float64(precision, dtype):
    assert TrainingConfig(precision=precision).dtype == dtype
