"""Which steps of a trial something happens at, and the field of a sweep file that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.nodes import Node, Problems

KINDS = ("every", "log_spaced", "at")
_ACCEPTED = "every: N, log_spaced: N or at: [steps], or several of them"


@dataclass(frozen=True)
class Schedule:
    """Chooses steps: ``every``, ``log_spaced`` and ``at`` together; 0 and the last always.

    Picklable, without its places in the file.

    Attributes:
        every: all multiples of it; 0: none.
        log_spaced: so many steps, evenly spaced by their logarithm; 0: none.
        at: these.
        place: the field in the file.
        at_place: its list of steps.
    """

    every: int = 0
    log_spaced: int = 0
    at: tuple[int, ...] = ()
    place: Node | None = field(default=None, repr=False, compare=False)
    at_place: Node | None = field(default=None, repr=False, compare=False)

    def count(self, last: int) -> int:
        """An upper bound of how many steps there will be, without making them."""
        regular = last // self.every if self.every else 0
        return regular + self.log_spaced + len(self.at) + 2

    def steps(self, last: int) -> tuple[int, ...]:
        """The steps of a trial of `last` steps, ascending, without repetition."""
        chosen = {0, last, *(step for step in self.at if step <= last)}
        if self.every:
            chosen.update(range(0, last + 1, self.every))
        if self.log_spaced and last > 0:
            # last ** (i / (N - 1)) is never exactly half-way between two integers (its N-1st power
            # is one), so that rounding does not depend on the last bit of the machine's pow
            intervals = max(self.log_spaced - 1, 1)
            chosen.update(round(last ** (i / intervals)) for i in range(self.log_spaced))
        return tuple(sorted(chosen))

    def __reduce__(self) -> tuple[type[Schedule], tuple[Any, ...]]:
        return type(self), (self.every, self.log_spaced, self.at)


def read_schedule(node: Node, problems: Problems) -> Schedule | None:
    """Read a field that is a schedule; None, and problems, if it is none."""
    entries = problems.mapping(node, KINDS, _ACCEPTED)
    if not isinstance(node.value, dict) or len(entries) != len(node.value):
        return None
    if not entries:
        problems.add(node, f"expected {_ACCEPTED}, got nothing")
    return schedule_of(entries, node, problems)


def schedule_of(entries: Mapping[str, Node], node: Node, problems: Problems) -> Schedule | None:
    """The schedule that those of `KINDS` among the entries of a mapping make; None without any.

    Args:
        entries: valid entries of the mapping, by name.
        node: the mapping.
        problems: receives what is wrong with them.
    """
    given = {kind: entries[kind] for kind in KINDS if kind in entries}
    if not given:
        return None
    read: dict[str, Any] = {}
    for kind, entry in given.items():
        if kind == "at":
            items = problems.items(entry, "a list of steps")
            usable = [(item,) for item in items if problems.whole(item, 0) is not None]
            steps = problems.unrepeated(usable, "repeated step")
            read[kind] = tuple(item.value for (item,) in steps)
        else:
            read[kind] = problems.whole(entry, 1 if kind == "every" else 2)
    if any(value is None for value in read.values()):
        return None
    alone = next(iter(given.values())) if len(given) == 1 else node
    return Schedule(**read, place=alone, at_place=given.get("at"))
