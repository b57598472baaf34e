"""The points of a sweep: grid, zip and exclude multiplied out, each point checked against its task.

Every value is checked once beside the first values of the other axes, then every point as a whole,
by the task's own pydantic model. What pydantic says becomes problems that stand at the value in the
file, each once, however many points share it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, to_jsonable_python

from orchestrator.axes import Axis, Parameters
from orchestrator.expansion import Configuration, Expansion, assignment, canonical
from orchestrator.nodes import Node, Problems, comparable, nearest, show

MAX_TRIALS = 1_000_000
MAX_STEPS = 100_000  # of one trial's snapshots
MAX_FAILURES = 100  # points whose parameters do not go together, before the search for more ends


def expand(
    expansion: Expansion,
    config: type[BaseModel],
    parameters: Parameters,
    num_seeds: int,
    problems: Problems,
) -> None:
    """Fill in the configurations: every point of every block, checked against the task's Config.

    Args:
        expansion: without its configurations.
        config: what the task accepts.
        parameters: whose names are all `config`'s. Every point of every block is expanded, in
            order, but for those that agree with an entry of `exclude`.
        num_seeds: how many trials each configuration becomes.
        problems: receives everything that is wrong; `expansion` is of use only if nothing was.
    """
    blocks = parameters.blocks
    points = sum(math.prod(len(axis.rows) for axis in block.axes) for block in blocks)
    if points * num_seeds > MAX_TRIALS:
        product = f"{points:,} configurations x {num_seeds:,} seeds = {points * num_seeds:,} trials"
        problems.add(blocks[0].place, f"{product}, at most {MAX_TRIALS:,}")
    else:
        _Expander(expansion, config, parameters, problems).run()


class _Expander:
    def __init__(
        self,
        expansion: Expansion,
        config: type[BaseModel],
        parameters: Parameters,
        problems: Problems,
    ) -> None:
        self.expansion, self.config, self.problems = expansion, config, problems
        self.base, self.blocks = parameters.base, parameters.blocks
        self.defaults = {
            name: to_jsonable_python(info.get_default(call_default_factory=True, validated_data={}))
            for name, info in config.model_fields.items()
            if not info.is_required()
        }
        self.base_json = _fragment(self.base.value.items())
        self.exclude = {place: _assignment(place.value.items()) for place in parameters.exclude}
        self.excluded: set[Node] = set()  # the entries that left something out
        self.twice: dict[tuple[int, int], list[str]] = {}  # (first block, later block): points
        self.first_of: dict[str, tuple[int, str]] = {}  # config_id: block and point
        self.failures: dict[tuple[int, str], list[str]] = {}  # (block, message): points
        self.num_failures = 0
        self.num_left = 0  # points that are not excluded
        self.lengths: dict[int, bool] = {}  # of trials in steps: whether they can be scheduled

    def run(self) -> None:
        before = len(self.problems)
        rows = [[_prepare(axis) for axis in block.axes] for block in self.blocks]
        for block_rows in rows:
            self.check_values(block_rows)
        names = [[n for axis in block.axes for n in axis.names] for block in self.blocks]
        ambiguous = any(len({*self.base.value, *n}) < len(self.base.value) + len(n) for n in names)
        if len(self.problems) == before and not ambiguous:  # ambiguous: was reported already
            for index, block_rows in enumerate(rows):
                for point in itertools.product(*block_rows):
                    if not self.leaves_out(point):
                        self.add(index, point)
                    if self.num_failures == MAX_FAILURES:
                        break
            self.report()

    def check_values(self, axes: Sequence[Sequence[_Row]]) -> None:
        """Check every value once, beside the first values of the other axes.

        So a bad value is found, and is one problem, without a walk over the whole product.
        """
        first = [rows[0] for rows in axes]
        others = ([*first[:i], r, *first[i + 1 :]] for i, rows in enumerate(axes) for r in rows[1:])
        for point in itertools.chain([first], others):
            try:
                self.validate(point)
            except ValidationError as error:
                self.report_values(error, point)

    def validate(self, point: Sequence[_Row]) -> BaseModel:
        # through JSON, because strict mode then still takes a list for a tuple, and 1 for 1.0
        text = ",".join(part for part in (self.base_json, *(row.json for row in point)) if part)
        return self.config.model_validate_json(f"{{{text}}}", strict=True)

    def leaves_out(self, point: Sequence[_Row]) -> bool:
        if not self.exclude:
            return False
        values = {name: value for row in point for name, value in row.assignment.items()}
        matching = [
            place
            for place, wanted in self.exclude.items()
            if all(
                values.get(name, comparable(self.defaults.get(name))) == value
                for name, value in wanted.items()
            )
        ]
        self.excluded.update(matching)
        return bool(matching)

    def add(self, block: int, point: Sequence[_Row]) -> None:
        self.num_left += 1
        try:
            model = self.validate(point)
        except ValidationError as error:
            self.num_failures += 1
            self.report_values(error, point)
            for detail in error.errors(include_url=False):
                if not detail["loc"]:
                    self.failures.setdefault((block, _sentence(detail)), []).append(_label(point))
            return
        made = self.expansion
        params = model.model_dump(mode="json", exclude_computed_fields=True)
        if not made.common:
            made.common.update(params)
        stated = {
            k: v for k, v in params.items() if k not in self.defaults or v != self.defaults[k]
        }
        if not self.countable(params["steps"]):
            return
        text = canonical(stated)
        config_id = made.identity(text, params["steps"], None)
        if config_id in self.first_of:
            earlier, label = self.first_of[config_id]
            self.twice.setdefault((earlier, block), []).append(label)
            return
        self.first_of[config_id] = block, _label(point)
        own = {k: v for k, v in params.items() if v != made.common[k]}
        made.configurations.append(Configuration(config_id, params["steps"], own, text))

    def report_values(self, error: ValidationError, point: Sequence[_Row]) -> None:
        """Report what is wrong with single parameters, at their place in the file."""
        nodes = {**self.base.value, **{n: v for row in point for n, v in row.nodes.items()}}
        wrong: dict[tuple[str | int, ...], list[ErrorDetails]] = {}
        for detail in error.errors(include_url=False):
            if detail["loc"]:
                # the parameter, or one entry of its list; the rest names a branch of a union
                wrong.setdefault(_place(detail["loc"]), []).append(detail)
        for place, details in wrong.items():
            name = str(place[0])
            if name not in nodes:
                if name in self.base.keys:
                    continue
                self.problems.add(self.base, f"missing parameter {name!r}{self.meaning(name)}")
                continue
            node: Node = nodes[name]
            if len(place) > 1 and isinstance(node.value, list) and int(place[1]) < len(node.value):
                node = node.value[int(place[1])]
            self.problems.add(node, _explain(details, node, self.may_be_null(name)))

    def countable(self, last: int) -> bool:
        """Whether trials of so many steps have few enough snapshots to make a list of them."""
        if last not in self.lengths:
            self.lengths[last] = True
            for schedule in self.expansion.schedules:
                if (count := schedule.count(last)) > MAX_STEPS:
                    message = f"chooses {count:,} of {last:,} steps, at most {MAX_STEPS:,}"
                    self.problems.add(schedule.place, message)
                    self.lengths[last] = False
        return self.lengths[last]

    def meaning(self, name: str) -> str:
        text = self.config.model_fields[name].description
        return f": {text}" if text else ""

    def may_be_null(self, name: str) -> bool:
        return type(None) in get_args(self.config.model_fields[name].annotation)

    def report(self) -> None:
        """Report what is wrong with whole points."""
        places = [block.place for block in self.blocks]
        for (block, message), labels in self.failures.items():
            where = f" (at {_and_more(labels)})" if labels[0] else ""
            self.problems.add(places[block] if labels[0] else self.base, message + where)
        if self.num_failures == MAX_FAILURES:
            stopped = f"stopped after {MAX_FAILURES} combinations that do not go together"
            self.problems.add(places[0], stopped)
            return
        for (earlier, later), labels in self.twice.items():
            also = "" if earlier == later else f", also in {places[earlier].path}"
            what = _and_more(labels) or "the task's defaults"
            self.problems.add(places[later], f"the same trial twice: {what}{also}")
        shortest = min(self.lengths, default=0)
        for schedule in self.expansion.schedules:
            if schedule.at_place is not None and self.lengths:
                for node in schedule.at_place.value:
                    if type(node.value) is int and node.value > shortest:
                        message = f"step {node.value} is after the last step, {shortest}"
                        self.problems.add(node, message)
        for place in self.exclude:
            if place not in self.excluded:
                self.problems.add(place, "excludes nothing: no combination has these values")
        if self.num_left == 0:
            self.problems.add(next(iter(self.exclude)), "every combination is excluded")


class _Row(NamedTuple):
    """One row of an axis, with what every point needs of it."""

    nodes: dict[str, Node]
    assignment: dict[str, Any]
    json: str
    label: str


def _prepare(axis: Axis) -> list[_Row]:
    prepared = []
    for row in axis.rows:
        nodes = dict(zip(axis.names, row, strict=True))
        label = " ".join(assignment(name, node.plain) for name, node in nodes.items())
        prepared.append(_Row(nodes, _assignment(nodes.items()), _fragment(nodes.items()), label))
    return prepared


def _assignment(entries: Iterable[tuple[str, Node]]) -> dict[str, Any]:
    return {name: comparable(node.plain) for name, node in entries}


def _fragment(entries: Iterable[tuple[str, Node]]) -> str:
    return ",".join(f"{json.dumps(name)}:{json.dumps(node.plain)}" for name, node in entries)


def _label(point: Iterable[_Row]) -> str:
    return " ".join(row.label for row in point)


def _and_more(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"


# What a parameter accepts, by pydantic's error type; for others, pydantic's words are kept.
_ACCEPTED = {
    "bool_type": "true or false",
    "enum": "{expected}",
    "float_type": "a number",
    "greater_than": "a number > {gt}",
    "greater_than_equal": "a number >= {ge}",
    "int_type": "a whole number",
    "less_than": "a number < {lt}",
    "less_than_equal": "a number <= {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "multiple_of": "a multiple of {multiple_of}",
    "none_required": "null",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "string_too_long": "a text of at most {max_length} characters",
    "string_too_short": "a text of at least {min_length} characters",
    "string_type": "a text",
    "too_long": "a list of at most {max_length} values",
    "too_short": "a list of at least {min_length} values",
    "tuple_type": "a list",
}


def _place(location: tuple[str | int, ...]) -> tuple[str | int, ...]:
    return location[:2] if len(location) > 1 and isinstance(location[1], int) else location[:1]


def _sentence(detail: ErrorDetails) -> str:
    """A validator's own words, which are meant for the user; otherwise pydantic's."""
    cause = detail.get("ctx", {}).get("error")
    return str(cause) if cause is not None else detail["msg"]


def _explain(details: Sequence[ErrorDetails], node: Node, may_be_null: bool) -> str:
    """What is accepted and what we got, from the errors about one value (several for a union)."""
    accepted: list[str] = []
    for detail in details:
        if detail["type"] == "missing":  # an entry of a tuple
            accepted.append("a longer list")
        elif detail["type"] in _ACCEPTED:
            accepted.append(_ACCEPTED[detail["type"]].format(**detail.get("ctx", {})))
        elif "error" in detail.get("ctx", {}):  # a validator of the task's own
            return _sentence(detail)
        else:
            accepted.append(detail["msg"].removeprefix("Input should be "))
    if may_be_null:
        accepted.append("null")
    expected = " or ".join(dict.fromkeys(accepted))
    hint = ""
    if isinstance(node.value, str):
        hint = nearest(node.value, re.findall(r"'([^']*)'", expected))
    return f"expected {expected}, got {show(node.plain)}{hint}"
