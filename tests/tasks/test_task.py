"""What the Task base class itself checks and offers."""

import pytest
import torch
from torch import nn

from tasks import Task, TrainingConfig
from tests.tasks.toys import Line


def test_a_task_is_named_for_its_class_unless_it_says_else():
    class Named(Line):
        name = "given"

    class Derived(Named):
        pass

    assert [Line.name, Named.name, Derived.name] == ["Line", "given", "Derived"]


def test_a_group_may_differ_in_per_trial_fields_only():
    Line([Line.Config(lr=0.1, slope=1.0), Line.Config(lr=0.2, slope=2.0)])

    with pytest.raises(ValueError, match="differ") as caught:
        Line([Line.Config(steps=1), Line.Config(steps=2, examples=4)])
    assert str(caught.value) == (
        "the trials of a group differ in structural fields: steps, examples"
    )


def test_a_group_needs_configurations_of_the_tasks_own_class():
    with pytest.raises(ValueError, match=r"^task Line needs at least one configuration, got none$"):
        Line([])
    with pytest.raises(
        ValueError,
        match=r"^task Line expects configurations of class LineConfig, got TrainingConfig$",
    ):
        Line([TrainingConfig()])


def test_per_trial_values_become_tensors():
    """[K] for a number, [K, n] for a tuple; float64, so that nothing is lost before its use."""
    task = Line([Line.Config(lr=1, betas=(0.1, 0.2)), Line.Config(lr=0.5, warmup=3)])

    assert task.per_trial("lr").tolist() == [1.0, 0.5]
    assert task.per_trial("lr").dtype == torch.float64
    assert task.per_trial("betas").tolist() == [[0.1, 0.2], [0.9, 0.999]]
    assert task.per_trial("warmup").tolist() == [0, 3]
    assert task.per_trial("warmup").dtype == torch.int64


def test_by_default_every_matrix_is_a_view_and_no_coupling_is_declared():
    task = Line([Line.Config()])
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Embedding(4, 2))

    assert [(v.name, v.parameter) for v in task.views(model)] == [
        ("0", "0.weight"),
        ("2", "2.weight"),
    ]
    assert task.couplings(model) == []


def test_a_task_that_lacks_a_member_cannot_be_made():
    class Half(Task):
        Config = TrainingConfig

        def build(self, streams):
            return nn.Linear(1, 1)

    with pytest.raises(TypeError, match="abstract"):
        Half([TrainingConfig()])
