"""Values that know where in a sweep file they stand, and the problems reported about them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.errors import Problem, SweepError


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the document and its place.

    Attributes:
        value: None, bool, int, float, str, a list of nodes, or a dict of nodes by key.
        path: for example ``$.grid.lr[1]``, or the ``--set`` option the value came from.
        line: 1-based; None for a value from an option.
        column: 1-based; None for a value from an option.
        keys: of a mapping: the place of each key (their values are the key texts).
        valid: False where a problem was reported already: skip it silently.
    """

    value: Any
    path: str
    line: int | None = None
    column: int | None = None
    keys: Mapping[str, Node] = field(default_factory=dict)
    valid: bool = True

    @property
    def plain(self) -> Any:
        """The value without places: scalars, lists and dicts."""
        if isinstance(self.value, list):
            return [item.plain for item in self.value]
        if isinstance(self.value, dict):
            return {key: item.plain for key, item in self.value.items()}
        return self.value

    def entry(self, key: str) -> Node | None:
        """A mapping's value, unless there is none or it was reported already."""
        node: Node | None = self.value.get(key)
        return node if node is not None and node.valid else None

    @property
    def got(self) -> str:
        """What stands here, in the words of a message: ``a list``, ``0.3``, ``'no'``."""
        return "a list" if isinstance(self.value, list) else show(self.value)


class Problems:
    """Collects what is wrong, so that a user sees all of it at once, and reads nodes into values.

    What a method cannot read it reports; it then returns something that the caller can go on with.
    """

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}  # a dict as an ordered set

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._found)

    def add(self, place: Node | None, message: str) -> None:
        """Report a problem at a node (None: it has no place)."""
        at = ("", None, None) if place is None else (place.path, place.line, place.column)
        self._found.setdefault(Problem(message, *at))

    def check(self, source: str) -> None:
        """Raise what was collected.

        Raises:
            SweepError: with every problem, in file order; those of options come last.
        """
        if self._found:
            last = (float("inf"), 0)
            order = sorted(self._found, key=lambda p: (p.line, p.column or 0) if p.line else last)
            raise SweepError(source, order)

    def expected(self, node: Node, what: str) -> None:
        """Report that something else stands here than `what`."""
        self.add(node, f"expected {what}, got {node.got}")

    def text(self, node: Node, what: str = "a text") -> str | None:
        """The node's text; None, and a problem, if it has none."""
        if isinstance(node.value, str) and node.value.strip():
            return node.value
        quotes = "; put it in quotes" if isinstance(node.value, bool | int | float) else ""
        self.add(node, f"expected {what}, got {node.got}{quotes}")
        return None

    def whole(self, node: Node, least: int) -> int | None:
        """The node's whole number; None, and a problem, if it is none or less than `least`."""
        if type(node.value) is int and node.value >= least:
            return node.value
        self.expected(node, f"a whole number >= {least}")
        return None

    def real(self, node: Node, least: float, what: str) -> float | None:
        """The node's number; None, and a problem, if it is none or less than `least`."""
        if type(node.value) in (int, float) and node.value >= least:
            return float(node.value)
        self.expected(node, what)
        return None

    def mapping(self, node: Node, keys: Collection[str] | None, what: str) -> dict[str, Node]:
        """The valid entries; with `keys`, any other one is reported."""
        if not isinstance(node.value, dict):
            self.expected(node, what)
            return {}
        entries = {}
        for key, value in node.value.items():
            if keys is not None and key not in keys:
                message = f"unknown field {key!r}{nearest(key, keys)}: one of {', '.join(keys)}"
                self.add(node.keys[key], message)
            elif value.valid:
                entries[key] = value
        return entries

    def items(self, node: Node, what: str) -> list[Node]:
        """The valid items of a list that must not be empty."""
        if isinstance(node.value, list) and node.value:
            return [item for item in node.value if item.valid]
        got = "an empty list" if node.value == [] else node.got
        self.add(node, f"expected {what}, got {got}")
        return []

    def unrepeated(self, rows: Sequence[tuple[Node, ...]], what: str) -> list[tuple[Node, ...]]:
        """The rows without those whose values stood before, which are reported."""
        first: dict[Any, tuple[Node, ...]] = {}
        for row in rows:
            earlier = first.setdefault(tuple(comparable(node.plain) for node in row), row)
            if earlier is not row:
                shown = " with ".join(show(node.plain) for node in row)
                self.add(row[0], f"{what}: {shown} also stands at {earlier[0].path}")
        return list(first.values())


def show(value: Any) -> str:
    """A value as a message names it: ``0.3``, ``'no'``, ``true``, ``[0.9, 0.98]``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        text = "[" + ", ".join(show(item) for item in value[:20]) + "]"
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def comparable(value: Any) -> Any:
    """A hashable stand-in: equal exactly if the values are, 1 and 1.0 included, true and 1 not."""
    if isinstance(value, list | tuple):
        return tuple(comparable(item) for item in value)
    if isinstance(value, dict):
        return dict, tuple((key, comparable(item)) for key, item in value.items())
    return (bool, value) if isinstance(value, bool) else value


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` (did you mean lr?)``, or nothing when no valid name is near."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def child_path(path: str, key: str) -> str:
    """The path of a mapping's entry."""
    return f"{path}.{key}" if re.fullmatch(r"[\w-]+", key) else f"{path}[{key[:40]!r}]"
