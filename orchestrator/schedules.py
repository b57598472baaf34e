"""Which steps of a trial something happens at, and the field of a sweep file that says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from orchestrator.nodes import Node, Problems

KINDS = ("every", "log_spaced", "at")
_ACCEPTED = "one of every: N, log_spaced: N and at: [steps]"


@dataclass(frozen=True)
class Schedule:
    """Chooses steps: ``every: N``, ``log_spaced: N`` or ``at: [...]``; 0 and the last always.

    Picklable, without its place in the file.
    """

    kind: Literal["every", "log_spaced", "at"]
    value: int | tuple[int, ...]
    place: Node | None = field(default=None, repr=False, compare=False)

    def count(self, last: int) -> int:
        """An upper bound of how many steps there will be, without making them."""
        if isinstance(self.value, tuple):
            return len(self.value) + 2
        return last // self.value + 2 if self.kind == "every" else self.value + 2

    def steps(self, last: int) -> tuple[int, ...]:
        """The steps of a trial of `last` steps, ascending, without repetition."""
        chosen = {0, last}
        if isinstance(self.value, tuple):
            chosen.update(step for step in self.value if step <= last)
        elif self.kind == "every":
            chosen.update(range(0, last + 1, self.value))
        elif last > 0:
            # last ** (i / (N - 1)) is never exactly half-way between two integers (its N-1st power
            # is one), so that rounding does not depend on the last bit of the machine's pow
            intervals = max(self.value - 1, 1)
            chosen.update(round(last ** (i / intervals)) for i in range(self.value))
        return tuple(sorted(chosen))

    def __reduce__(self) -> tuple[type[Schedule], tuple[Any, ...]]:
        return type(self), (self.kind, self.value)


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
    given = {kind: entries[kind] for kind in entries if kind in KINDS}
    if len(given) != 1:
        if given:
            problems.add(node, f"expected {_ACCEPTED}, got {' and '.join(given)}")
        return None
    [(kind, entry)] = given.items()
    if kind == "at":
        items = problems.items(entry, "a list of steps")
        usable = [(item,) for item in items if problems.whole(item, 0) is not None]
        steps = problems.unrepeated(usable, "repeated step")
        return Schedule("at", tuple(item.value for (item,) in steps), entry)
    if kind == "every":
        number = problems.whole(entry, 1)
        return None if number is None else Schedule("every", number, entry)
    number = problems.whole(entry, 2)
    return None if number is None else Schedule("log_spaced", number, entry)
