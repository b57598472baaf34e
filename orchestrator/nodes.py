"""Values that know where in a sweep file they stand, and the problems reported about them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
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

    @property
    def got(self) -> str:
        """What stands here, in the words of a message: ``a list``, ``0.3``, ``'no'``."""
        return "a list" if isinstance(self.value, list) else show(self.value)


class Problems:
    """Collects what is wrong, so that a user sees all of it at once."""

    def __init__(self) -> None:
        self._found: dict[Problem, None] = {}  # a dict as an ordered set

    def __len__(self) -> int:
        return len(self._found)

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


def nearest(name: str, valid: Iterable[str]) -> str:
    """`` (did you mean lr?)``, or nothing when no valid name is near."""
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def child_path(path: str, key: str) -> str:
    """The path of a mapping's entry."""
    return f"{path}.{key}" if re.fullmatch(r"[\w-]+", key) else f"{path}[{key[:40]!r}]"
