"""Levels of a parameter; the checks of rows are tested where they are used, in `test_aggregate`."""

import pytest

from orchestrator.comparable import level_of, level_order


@pytest.mark.parametrize(
    ("values", "ordered"),
    [
        ([10, 9.5, -1], [-1, 9.5, 10]),
        ([True, None, False], [False, True, None]),
        (["sgd", None, "adamw"], [None, "adamw", "sgd"]),
        ([[0.9, 0.99], [0.9, 0.98]], ["[0.9, 0.98]", "[0.9, 0.99]"]),
    ],
    ids=["numbers", "booleans", "words", "lists"],
)
def test_levels_are_keys_and_stand_in_order(values, ordered):
    """As text, True would stand after None and 10 before 9.5."""
    assert sorted({level_of(value) for value in values}, key=level_order) == ordered
