"""What every task owes the training loop, checked on all of them at their tiniest."""

import functools
import io
from pathlib import Path

import pytest
import torch

from tasks import (
    REGISTRY,
    evaluate,
    make_streams,
    per_trial_fields,
    resolve,
    start,
    train_step,
)

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "my_task.py") + ":Waves"
STEPS = 4

# Structural fields that make a task as small as it gets while everything in it is still used.
TINY = {
    "modular_addition": {
        "modulus": 5,
        "width": 8,
        "heads": 2,
        "feed_forward": 9,
        "train_fraction": 0.6,
        "positions": "learned",
        "layer_norm": True,
        "batch_size": 6,
        "micro_batches": 2,
    },
    "image_generation": {
        "num_images": 12,
        "train_fraction": 0.7,
        "image_size": 17,
        "channels": (4, 4, 4, 4),
        "groups": 2,
        "time_width": 4,
        "batch_size": 4,
        "micro_batches": 2,
    },
    "speech_recognition": {
        "num_utterances": 10,
        "train_fraction": 0.7,
        "max_words": 1,
        "hidden": 4,
        "layers": 2,
        "batch_size": 4,
        "micro_batches": 2,
    },
    "image_classification": {
        "model": "mlp",
        "image_size": 2,
        "hidden": 6,
        "layers": 3,
        "label_noise": 0.5,
        "batch_size": 6,
        "micro_batches": 2,
    },
    "language_modeling": {
        "context": 20,
        "layers": 2,
        "width": 8,
        "heads": 2,
        "feed_forward": 9,
        "train_fraction": 0.998,
        "train_examples": 30,
        "batch_size": 6,
        "micro_batches": 2,
    },
    EXAMPLE: {"points": 5, "width": 6},
}

# Models whose buffers move while they train. They are no more than resumed here: a part of a step's
# examples has other batch statistics than the whole, so micro-batches add up to another gradient,
# and what else a task owes is a matter of its data, which TINY covers.
WITH_BUFFERS = {
    "image_classification": {
        "model": "vgg16",
        "channels": 1,
        "val_fraction": 0.99,
        "batch_size": 4,
    },
}

# A value unlike the default for every per-trial field; those of TrainingConfig hold for all tasks.
OTHER = {
    "lr": 0.02,
    "weight_decay": 0.7,
    "betas": (0.5, 0.6),
    "eps": 0.1,
    "momentum": 0.5,
    "label_noise": 0.9,
    "warmup": 2,
    "schedule_steps": 3,
    "schedule_floor": 0.5,
    "schedule_every": 3,
    "milestones": (2, 3),
    "gamma": 0.5,
} | {f"{name}_seed": 77 for name in ("init", "split", "labels", "order", "noise", "dropout")}


# What a per-trial field needs beside it to have an effect.
BESIDE = {
    "momentum": {"optimizer": "sgd"},
    "schedule_steps": {"schedule": "cosine"},
    "schedule_floor": {"schedule": "cosine"},
    "schedule_every": {"schedule": "linear"},
    "milestones": {"schedule": "steps", "milestones": (3,)},
    "gamma": {"schedule": "steps", "milestones": (3,)},
}


@pytest.fixture(params=TINY, ids=lambda reference: reference.rpartition(":")[2])
def tiny(request):
    """(task class, tiny structural fields)."""
    return resolve(request.param), TINY[request.param]


def ids(references):
    return [reference.rpartition(":")[2] for reference in references]


def group(tiny, *own, seeds=None):
    task_class, fields = tiny
    configs = [task_class.Config(**{"steps": 10, **fields, **config}) for config in own]
    task = task_class(configs)
    streams = make_streams(configs, range(len(configs)) if seeds is None else seeds)
    return task, streams, *start(task, streams)


def trained(tiny, *own, seeds=None):
    task, streams, model, state = group(tiny, *own, seeds=seeds)
    for _ in range(STEPS):
        train_step(task, model, state, streams)
    return task, streams, model, state


def test_every_registered_task_is_under_contract():
    assert set(REGISTRY) <= set(TINY)


def test_a_model_is_a_function_of_its_streams(tiny):
    """Equal seeds give equal bits, others do not; whatever state the global generator is in."""
    first = group(tiny, {}, seeds=[3])[3]
    torch.manual_seed(12345)
    again, other = group(tiny, {}, {}, seeds=[3, 4])[3].flat

    assert torch.equal(first.flat[0], again)
    assert not torch.equal(first.flat[0], other)


def test_batches_have_equal_shapes_and_depend_on_the_step_alone(tiny):
    """Asked again, out of order and of a fresh task, a batch is the same; [K, examples] leads."""
    task, streams, _, _ = group(tiny, {}, {})
    asked = [(step, micro) for step in range(5) for micro in range(task.config.micro_batches)]
    first = {key: task.batch(streams, *key) for key in asked}
    task, streams, _, _ = group(tiny, {}, {})
    shapes = set()
    for key in reversed(asked):
        again = task.batch(streams, *key)
        assert again.keys() == first[key].keys()
        assert all(torch.equal(again[name], first[key][name]) for name in again)
        shapes.add(tuple((name, t.shape, t.dtype) for name, t in sorted(again.items())))
        assert len({t.shape[:2] for t in again.values()}) == 1

    assert len(shapes) == 1


def test_a_step_is_finite_and_changes_every_parameter(tiny):
    task, streams, model, state = group(tiny, {"lr": 0.01})
    before = state.state_dict()["parameters"]
    for _ in range(2):
        train_step(task, model, state, streams)

    assert state.first_bad.tolist() == [-1]
    same = [name for name, p in state.parameters.items() if torch.equal(p, before[name])]
    assert same == []


def test_metrics_are_finite_and_of_every_split(tiny):
    task, streams, model, state = trained(tiny, {}, {})
    metrics = evaluate(task, model, state, streams)

    assert {split for split, _ in metrics} == set(task.splits)
    assert {"loss"} <= {metric for _, metric in metrics}
    for value in metrics.values():
        assert value.shape == (2,)
        assert value.dtype == torch.float64
        assert torch.isfinite(value).all()


@functools.cache
def trained_alone(reference, precision, k):
    """(parameters, metrics) of trial k by itself; every size of company is compared with it."""
    tiny = resolve(reference), TINY[reference]
    task, streams, model, state = trained(tiny, companion(precision, k), seeds=[k])
    return state.flat[0], evaluate(task, model, state, streams)


def companion(precision, k):
    return {"lr": 0.01 * (k + 1), "weight_decay": 0.3 * k, "precision": precision}


COMPANY = [*((p, k) for p in ("float32", "float64") for k in (2, 3, 4)), ("bfloat16", 3)]


@pytest.mark.parametrize(("precision", "count"), COMPANY)
@pytest.mark.parametrize("reference", TINY, ids=ids(TINY))
def test_a_trial_has_the_same_bits_alone_and_in_company(reference, precision, count):
    """Groups of two, three and four; with mixed precision too."""
    own = [companion(precision, k) for k in range(count)]
    task, streams, model, together = trained((resolve(reference), TINY[reference]), *own)
    metrics = evaluate(task, model, together, streams)

    assert together.first_bad.tolist() == [-1] * count
    for k in range(count):
        parameters, alone = trained_alone(reference, precision, k)
        assert torch.equal(together.flat[k], parameters)
        for key, value in alone.items():
            assert torch.equal(metrics[key][k], value[0])


PARTED = [name for name, fields in TINY.items() if fields.get("micro_batches", 1) > 1]


@pytest.mark.parametrize("reference", PARTED, ids=ids(PARTED))
def test_micro_batches_are_the_parts_of_the_step_and_their_sums_make_its_gradient(reference):
    """One step in float64 with all examples at once: 1e-9, sums in another order."""
    own = {"precision": "float64", "optimizer": "sgd", "lr": 1.0}
    tiny = resolve(reference), TINY[reference]
    begun = group(tiny, own)[3].flat
    moved = []
    for settings in (own, {**own, "micro_batches": 1}):
        task, streams, model, state = group(tiny, settings)
        train_step(task, model, state, streams)
        moved.append(state.flat - begun)
    parts, whole = moved

    assert (parts - whole).norm() <= 1e-9 * whole.norm()
    task, streams, _, _ = group(tiny, own)
    first, second = (task.batch(streams, 0, micro) for micro in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


RESUMED = [*TINY.items(), *WITH_BUFFERS.items()]
RESUMED_IDS = [*ids(TINY), *(f"{name}, buffers" for name in WITH_BUFFERS)]


@pytest.mark.parametrize(("reference", "fields"), RESUMED, ids=RESUMED_IDS)
def test_a_resumed_trial_goes_on_with_the_same_bits(reference, fields):
    """Saved in company, resumed alone: parameters, moments and buffers."""
    tiny = resolve(reference), fields
    own = [{"lr": 0.01}, {"lr": 0.02}]
    task, streams, model, state = trained(tiny, *own)
    file = io.BytesIO()
    torch.save(state.state_dict(1), file)
    for _ in range(STEPS):
        train_step(task, model, state, streams)

    task, streams, model, resumed = group(tiny, own[1], seeds=[1])
    file.seek(0)
    resumed.load(torch.load(file, weights_only=True))
    for _ in range(STEPS):
        train_step(task, model, resumed, streams)

    assert torch.equal(resumed.flat[0], state.flat[1])
    for kept, others in ((resumed.buffers, state.buffers), (resumed.optimizer, state.optimizer)):
        assert kept.keys() == others.keys()
        assert all(torch.equal(kept[name][0], others[name][1]) for name in kept)
    assert resumed.step == state.step


@pytest.mark.parametrize(("reference", "fields"), WITH_BUFFERS.items(), ids=ids(WITH_BUFFERS))
def test_buffers_belong_to_the_trial_and_move_while_it_trains(reference, fields):
    """Twin of the test above: buffers that stood still, or were shared, would be equal anyway."""
    tiny = resolve(reference), fields
    begun = group(tiny, {"lr": 0.01}, {"lr": 0.02})[3].buffers
    state = trained(tiny, {"lr": 0.01}, {"lr": 0.02})[3]

    assert begun.keys() == state.buffers.keys() != set()
    for name, buffer in state.buffers.items():
        assert not torch.equal(buffer, begun[name])
        if not name.endswith("num_batches_tracked"):
            assert not torch.equal(buffer[0], buffer[1])


def test_every_view_and_coupling_resolves(tiny):
    task, _, model, state = group(tiny, {}, {})
    views = task.views(model)
    names = [view.name for view in views]

    assert len(names) == len(set(names)) > 0
    for view in views:
        shape = view.shape(dict(model.named_parameters()))
        assert view.read(state.parameters, stacked=True).shape == (2, *shape)
    for coupling in task.couplings(model):
        assert {coupling.first.view, coupling.second.view} <= set(names)


def test_every_per_trial_field_changes_the_result(tiny):
    """One that did not reach the computation would silently give equal trials."""
    task_class, _ = tiny
    ignored = []
    plain = functools.cache(lambda beside: trained(tiny, {"lr": 0.01, **dict(beside)})[3].flat)
    for field in per_trial_fields(task_class.Config):
        if field.endswith("_seed") and field.removesuffix("_seed") not in task_class.Config.streams:
            continue
        beside = BESIDE.get(field, {})
        varied = trained(tiny, {"lr": 0.01, **beside, field: OTHER[field]})[3]
        if torch.equal(plain(tuple(beside.items())), varied.flat):
            ignored.append(field)

    assert ignored == []


def test_equal_settings_give_equal_bits(tiny):
    """Twin of the test above: without it, noise between two trainings would look like an effect."""
    first, second = (trained(tiny, {"lr": 0.01})[3] for _ in range(2))

    assert torch.equal(first.flat, second.flat)
