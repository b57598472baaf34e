"""What every task owes the training loop, checked on all of them at their tiniest."""

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
    EXAMPLE: {"points": 5, "width": 6},
}

# A value unlike the default for every per-trial field; those of TrainingConfig hold for all tasks.
OTHER = {
    "lr": 0.02,
    "weight_decay": 0.7,
    "betas": (0.5, 0.6),
    "eps": 0.1,
    "momentum": 0.5,
    "warmup": 2,
} | {f"{name}_seed": 77 for name in ("init", "split", "labels", "order", "noise", "dropout")}


@pytest.fixture(params=TINY, ids=lambda reference: reference.rpartition(":")[2])
def tiny(request):
    """(task class, tiny structural fields)."""
    return resolve(request.param), TINY[request.param]


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


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_trial_has_the_same_bits_alone_and_in_company(tiny, precision, count):
    own = [{"lr": 0.01 * (k + 1), "weight_decay": 0.3 * k} for k in range(count)]
    own = [{**config, "precision": precision} for config in own]
    task, streams, model, together = trained(tiny, *own)
    metrics = evaluate(task, model, together, streams)

    for k, config in enumerate(own):
        task, streams, model, alone = trained(tiny, config, seeds=[k])
        assert torch.equal(together.flat[k], alone.flat[0])
        for key, value in evaluate(task, model, alone, streams).items():
            assert torch.equal(metrics[key][k], value[0])


def test_a_resumed_trial_goes_on_with_the_same_bits(tiny):
    """Saved in company, resumed alone."""
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
    assert resumed.step == state.step


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
    for field in per_trial_fields(task_class.Config):
        if field.endswith("_seed") and field.removesuffix("_seed") not in task_class.Config.streams:
            continue
        shared = {"optimizer": "sgd"} if field == "momentum" else {}
        plain = trained(tiny, {"lr": 0.01, **shared})[3]
        varied = trained(tiny, {"lr": 0.01, **shared, field: OTHER[field]})[3]
        if torch.equal(plain.flat, varied.flat):
            ignored.append(field)

    assert ignored == []


def test_equal_settings_give_equal_bits(tiny):
    """Twin of the test above: without it, noise between two trainings would look like an effect."""
    first, second = (trained(tiny, {"lr": 0.01})[3] for _ in range(2))

    assert torch.equal(first.flat, second.flat)
