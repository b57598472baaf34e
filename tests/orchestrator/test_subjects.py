"""Which matrices are parts of others: what their names tell is what their slices are."""

import pytest
import torch

import tasks
from orchestrator.subjects import natural, whole, without_brackets
from tasks.random import Streams
from tasks.transformer_matrices import transformer_couplings, transformer_views

SMALL = {
    "modular_addition": {},
    "image_classification": {"channels": 4},
    "image_generation": {"channels": (4, 4, 4, 4), "groups": 2, "time_width": 4},
    "speech_recognition": {"hidden": 4},
    "language_modeling": {"layers": 12, "width": 8, "heads": 2, "feed_forward": 16},
}
PAPER = {
    "modular_addition": 6,
    "image_classification": 14,
    "image_generation": 16,
    "speech_recognition": 17,
    "language_modeling": 50,
}


def views_of(name):
    """Of a small model with as many layers as the paper's."""
    task_class = tasks.resolve(name)
    task = task_class([task_class.Config(**SMALL[name])])
    model = task.build(Streams([0]))
    return task.views(model), dict(model.named_parameters())


def rectangle(view, parameters):
    """The entries of its parameter that a view is of: a set of (row, column)."""
    numbers = torch.arange(parameters[view.parameter].numel())
    stored = {view.parameter: numbers.view_as(parameters[view.parameter]).float()}
    return frozenset(view.read(stored).long().flatten().tolist())


@pytest.mark.parametrize("name", PAPER)
def test_what_names_call_a_part_is_a_slice_of_another_measured_matrix(name):
    """Found slowly: a view is a part if another one of the same parameter has all it has, and more.

    What is left is as many as the paper counts.
    """
    views, parameters = views_of(name)
    entries = {view.name: (view.parameter, rectangle(view, parameters)) for view in views}
    slow = [
        one
        for one, (parameter, mine) in entries.items()
        if not any(of == parameter and mine < theirs for of, theirs in entries.values())
    ]

    assert whole(entries) == slow
    assert len(slow) == PAPER[name]


def test_a_query_without_a_fused_matrix_is_a_matrix_of_its_own():
    names = ["encoder.0.query", "encoder.0.key", "encoder.0.value", "encoder.0.query[0]"]

    assert whole(names) == names[:3]
    assert whole(["query", "in_proj", "1.in_proj", "2.key"]) == ["in_proj", "1.in_proj", "2.key"]


def test_parts_are_shown_where_there_is_nothing_else():
    assert whole(["a.query[0]", "a.query[1]", "a.query[0]"]) == ["a.query[0]", "a.query[1]"]
    assert whole([]) == []


def test_couplings_of_thirds_are_no_parts():
    """The paper's 61 of the language model; heads are left out beside the mean over them."""
    couplings = [
        each
        for each in transformer_couplings(12, 8, 2, 16)
        if not (each.residual or each.per_head)  # what is measured by default
    ]
    measured = [name for each in couplings for name in (each.name, each.group) if name]

    assert whole(measured) == without_brackets(measured)
    assert len(whole(measured)) == 61


def test_the_overview_at_the_end_of_a_run_keeps_thirds():
    names = [view.name for view in transformer_views(1, 8, 2)]

    assert set(without_brackets(names)) - set(whole(names)) == {
        f"layers.0.attention.{third}" for third in ("query", "key", "value")
    }


def test_names_are_in_the_order_of_their_numbers():
    names = [
        "layers.10.a",
        "layers.3.b",
        "layers.3.a",
        "decoder",
        "layers.0.a[10]",
        "layers.0.a[9]",
    ]

    assert sorted(names, key=natural) == [
        "decoder", "layers.0.a[9]", "layers.0.a[10]", "layers.3.a", "layers.3.b", "layers.10.a",
    ]  # fmt: skip
