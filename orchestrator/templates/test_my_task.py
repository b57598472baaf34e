"""What sweeps rely on, checked for the task `my_task`: run `pytest test_my_task.py`."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")  # before torch is imported: bits that repeat

import torch
from torch import nn

from tasks import GroupState, Streams, Task, evaluate, make_streams, resolve, start, train_step

torch.set_num_threads(1)

MyTask = resolve("my_task.py:MyTask", base=Path(__file__).parent)

TINY: dict[str, Any] = {"points": 8, "width": 6, "lr": 0.01, "steps": 10}
"""Parameters that make the task as small as it gets. Change them with the task."""
TWO: tuple[dict[str, Any], ...] = ({"weight_decay": 0.0}, {"weight_decay": 0.5})
"""What two trials differ in, besides their seeds."""

Group = tuple[Task, Streams, nn.Module, GroupState]


def group(own: Sequence[dict[str, Any]], seeds: Sequence[int]) -> Group:
    """Trials that are trained together, before their first step."""
    configs = [MyTask.Config(**{**TINY, **each}) for each in own]
    task, streams = MyTask(configs), make_streams(configs, seeds)
    return task, streams, *start(task, streams)


def trained(own: Sequence[dict[str, Any]], seeds: Sequence[int], steps: int = 3) -> Group:
    """The same after some steps."""
    task, streams, model, state = group(own, seeds)
    for _ in range(steps):
        train_step(task, model, state, streams)
    return task, streams, model, state


def test_a_step_is_finite_and_changes_every_parameter() -> None:
    """A parameter that no step changes has no part in the loss."""
    before = group(TWO, [0, 1])[3].state_dict()["parameters"]
    state = trained(TWO, [0, 1], steps=2)[3]

    assert state.first_bad.tolist() == [-1, -1]  # the first step with a loss that is not finite
    assert [name for name, p in state.parameters.items() if torch.equal(p, before[name])] == []


def test_every_metric_is_finite_on_every_split() -> None:
    """One number per trial; a metric called `loss` is there."""
    task, streams, model, state = trained(TWO, [0, 1])
    found = evaluate(task, model, state, streams)

    assert {split for split, _ in found} == set(task.splits)
    assert "loss" in {metric for _, metric in found}
    assert all(value.shape == (2,) and value.isfinite().all() for value in found.values())


def test_a_batch_depends_on_its_step_alone() -> None:
    """Asked again, later and in another order, it is the same: so a trial resumes anywhere."""
    task, streams, _, _ = group(TWO, [0, 1])
    first = [task.batch(streams, step, 0) for step in range(3)]
    task, streams, _, _ = group(TWO, [0, 1])

    for step in (2, 0, 1):
        again = task.batch(streams, step, 0)
        assert again.keys() == first[step].keys()
        assert all(torch.equal(again[name], first[step][name]) for name in again)


def test_a_trial_has_the_same_bits_alone_and_in_company() -> None:
    """A difference means that one trial reads what belongs to another."""
    task, streams, model, both = trained(TWO, [0, 1])
    together = evaluate(task, model, both, streams)

    for k in range(2):
        task, streams, model, alone = trained(TWO[k : k + 1], [k])
        assert torch.equal(both.flat[k], alone.flat[0])
        for key, value in evaluate(task, model, alone, streams).items():
            assert torch.equal(together[key][k], value[0])


def test_a_resumed_trial_goes_on_with_the_same_bits() -> None:
    """Saved after three steps and continued, it equals one that was never stopped."""
    file = io.BytesIO()
    torch.save(trained(TWO[1:], [1], steps=3)[3].state_dict(0), file)
    file.seek(0)
    task, streams, model, resumed = group(TWO[1:], [1])
    resumed.load(torch.load(file, weights_only=True))
    for _ in range(3):
        train_step(task, model, resumed, streams)

    assert torch.equal(resumed.flat, trained(TWO[1:], [1], steps=6)[3].flat)
