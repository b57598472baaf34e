"""Optimisers against torch.optim, schedules against their formulas."""

import math

import pytest
import torch

from tasks import optimisers
from tasks.config import TrainingConfig
from tasks.optimisers import CHUNK, MOMENTS, Optimiser, learning_rate


def ours(configs, start, gradients, first_step=0):
    """Parameters [K, P] after one update per gradient [K, P]."""
    optimiser = Optimiser(configs)
    parameters = start.clone()
    moments = {name: torch.zeros_like(start) for name in MOMENTS[configs[0].optimizer]}
    for step, gradient in enumerate(gradients, first_step):
        optimiser.update_(parameters, gradient.clone(), moments, step)
    return parameters


def torchs(config, start, gradients):
    """The same for one trial, by torch.optim and torch.nn.utils, with the rate set by hand."""
    parameter = torch.nn.Parameter(start.clone())
    if config.optimizer == "adamw":
        settings = {"betas": config.betas, "eps": config.eps}
        optimiser = torch.optim.AdamW(
            [parameter], lr=config.lr, weight_decay=config.weight_decay, **settings
        )
    else:
        optimiser = torch.optim.SGD(
            [parameter],
            lr=config.lr,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
    for step, gradient in enumerate(gradients):
        optimiser.param_groups[0]["lr"] = learning_rate(config, step)
        parameter.grad = gradient.clone()
        if config.clip is not None:
            torch.nn.utils.clip_grad_norm_([parameter], config.clip)
        optimiser.step()
    return parameter.detach()


GROUPS = {
    "adamw": [
        {"lr": 1e-3, "weight_decay": 0.0},
        {"lr": 3e-2, "weight_decay": 1.0, "betas": (0.8, 0.98), "eps": 1e-3},
        {"lr": 0.5, "weight_decay": 0.1, "betas": (0.0, 0.5), "warmup": 3},
    ],
    "sgd": [
        {"lr": 1e-3},
        {"lr": 0.1, "weight_decay": 0.5, "momentum": 0.9},
        {"lr": 0.3, "weight_decay": 0.01, "momentum": 0.5, "warmup": 4},
    ],
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("most", [1, 7, 100])
def test_an_update_in_parts_is_the_update_bit_by_bit(kind, most, monkeypatch):
    """As a CPU makes it of a model that does not fit its cache; 100 leaves a part of 35."""
    configs = [TrainingConfig(optimizer=kind, clip=1.0, **own) for own in GROUPS[kind]]
    start, gradients = torch.randn(3, 101), torch.randn(4, 3, 101)
    whole = ours(configs, start, gradients)

    monkeypatch.setattr(optimisers, "IN_CACHE", most)

    assert torch.equal(ours(configs, start, gradients), whole)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_update_says_which_trials_are_finite(bad, monkeypatch):
    """Wherever the number is; 3e38 twice is finite, though its sum is not."""
    monkeypatch.setattr(optimisers, "IN_CACHE", 6)
    optimiser = Optimiser([TrainingConfig(optimizer="sgd", lr=1e-3)] * 3)
    parameters = torch.tensor([[1.0, 2.0, 3.0, 4.0], [3e38, 3e38, 0.0, 0.0], [0.0, 0.0, 0.0, bad]])
    moments = {"velocity": torch.zeros(3, 4)}

    probe = optimiser.update_(parameters, torch.zeros(3, 4), moments, 0)

    assert (probe == 0.0).tolist() == [True, True, False]


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize("shared", [{}, {"clip": 2.0}, {"schedule": "cosine"}], ids=str)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_group_with_different_settings_steps_as_torch_does_trial_by_trial(kind, shared, steps):
    """1e-12 in float64: the same formulas in another order of operations."""
    configs = [TrainingConfig(optimizer=kind, steps=20, **shared, **own) for own in GROUPS[kind]]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, 64, dtype=torch.float64, generator=generator)
    gradients = torch.randn(steps, 3, 64, dtype=torch.float64, generator=generator)

    found = ours(configs, start, gradients)

    for k, config in enumerate(configs):
        expected = torchs(config, start[k], gradients[:, k])
        torch.testing.assert_close(found[k], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [3, 13, 192])
def test_an_update_is_the_same_bits_alone_and_in_company(kind, dtype, size):
    """Also where the rows end in the middle of a vector register."""
    configs = [TrainingConfig(optimizer=kind, clip=1.0, **own) for own in GROUPS[kind]]
    start, gradients = torch.randn(3, size, dtype=dtype), torch.randn(6, 3, size, dtype=dtype)

    together = ours(configs, start, gradients, CHUNK - 3)

    for k, config in enumerate(configs):
        alone = ours([config], start[k : k + 1], gradients[:, k : k + 1], CHUNK - 3)
        assert torch.equal(together[k], alone[0])


def test_factors_do_not_depend_on_where_a_chunk_of_steps_begins():
    """A resumed trial computes its factors from the step alone."""
    config = TrainingConfig(schedule="cosine", steps=3 * CHUNK, weight_decay=1.0)
    like = torch.zeros(1, 1, dtype=torch.float64)
    running = Optimiser([config])

    for step in range(2 * CHUNK + 2):
        factors = running.factors(step, like)
        if step % (CHUNK - 1) == 0:
            assert factors == Optimiser([config]).factors(step, like)


def test_clipping_bounds_each_trials_own_norm():
    """A long gradient is cut to the norm `clip`, a short one in the same group is left alone."""
    configs = [TrainingConfig(optimizer="sgd", lr=1.0, clip=5.0) for _ in range(2)]
    gradient = torch.zeros(1, 2, 64, dtype=torch.float64)
    gradient[0, 0, :2] = torch.tensor([30.0, 40.0])
    gradient[0, 1, :2] = torch.tensor([0.375, 0.5])

    moved = -ours(configs, torch.zeros(2, 64, dtype=torch.float64), gradient)

    # 1e-7: the norm is enlarged by 1e-6, as torch does
    assert moved[0, :2].tolist() == pytest.approx([3.0, 4.0], rel=1e-7)
    assert moved[1, :2].tolist() == [0.375, 0.5]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [0.0, 1.0, 2.0, 2.0, 2.0, 2.0]),
        ({"schedule": "linear"}, [0.0, 1.0, 2.0, 1.5, 1.0, 0.5]),
        (
            {"schedule": "cosine"},
            [0.0, 1.0, 2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)],
        ),
        # half as long: at its end after two steps
        ({"schedule": "linear", "schedule_steps": 2}, [0.0, 1.0, 2.0, 1.0, 0.0, 0.0]),
        # down to 0.4 of 2, half way at 1.4
        ({"schedule": "linear", "schedule_floor": 0.4}, [0.0, 1.0, 2.0, 1.7, 1.4, 1.1]),
        (
            {"schedule": "cosine", "schedule_floor": 0.4, "schedule_steps": 2},
            [0.0, 1.0, 2.0, 1.4, 0.8, 0.8],
        ),
        (
            {"schedule": "steps", "milestones": (3, 5), "gamma": 0.25},
            [0.0, 1.0, 2.0, 0.5, 0.5, 0.125],
        ),
        # the rate of step 0 holds for 0 and 1, that of step 2 for 2 and 3
        ({"schedule": "linear", "schedule_every": 2}, [0.0, 0.0, 2.0, 2.0, 1.0, 1.0]),
    ],
    ids=str,
)
def test_the_learning_rate_rises_from_zero_and_then_follows_its_schedule(schedule, expected):
    """Two steps of warmup to a rate of 2, then four steps that would end at 0 if it decays."""
    config = TrainingConfig(lr=2.0, warmup=2, steps=6, **schedule)

    assert [learning_rate(config, s) for s in range(6)] == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("floor", [0.0, 0.25])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_decayed_learning_rate_stays_where_the_decay_ended(schedule, floor):
    config = TrainingConfig(lr=1.0, steps=4, schedule=schedule, schedule_floor=floor)
    assert [learning_rate(config, step) for step in (4, 5, 9)] == [floor] * 3


@pytest.mark.parametrize(
    ("schedule", "torchs_schedule"),
    [
        (
            {"schedule": "steps", "milestones": [82, 123, 160], "gamma": 0.1},
            lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [82, 123, 160], 0.1),
        ),
        (
            {"schedule": "cosine", "schedule_floor": 0.1},
            lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 200, eta_min=0.01),
        ),
        (
            {"schedule": "linear", "schedule_steps": 50, "schedule_floor": 0.2},
            lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.2, 50),
        ),
    ],
    ids=["steps", "cosine", "linear"],
)
def test_schedules_are_those_of_torch(schedule, torchs_schedule):
    """1e-12: torch multiplies its way from step to step."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torchs_schedule(optimiser)
    config = TrainingConfig(lr=0.1, steps=200, **schedule)

    for step in range(200):
        rate = optimiser.param_groups[0]["lr"]
        assert learning_rate(config, step) == pytest.approx(rate, rel=1e-12)
        optimiser.step()
        scheduler.step()


def test_the_language_model_of_the_paper_ends_at_81_percent_of_its_peak():
    """2,220 steps of a cosine that is 6,660 long and ends at a tenth (their code)."""
    config = TrainingConfig(
        lr=1.0,
        steps=2220,
        warmup=200,
        schedule="cosine",
        schedule_steps=6660,
        schedule_floor=0.1,
    )
    assert learning_rate(config, config.steps - 1) == pytest.approx(0.81, rel=0.005)


def test_a_rate_that_is_set_once_per_epoch_is_that_of_its_first_step():
    """Speech recognition: 50 epochs of 892 steps, a cosine over epochs."""
    per_epoch, epochs = (
        TrainingConfig(lr=1.0, steps=50 * n, schedule="cosine", schedule_every=n) for n in (892, 1)
    )
    for step in (0, 891, 892, 893, 44599):
        assert learning_rate(per_epoch, step) == pytest.approx(
            learning_rate(epochs, step // 892), rel=1e-12
        )
