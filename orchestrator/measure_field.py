"""The field `measure` of a sweep file, read from nodes; what is wrong with it is reported."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any

from orchestrator.measure import (
    DEFAULT_GROUPS,
    KEEP,
    OPTIONS,
    PRUNED_OPTIONS,
    USE_VECTORS,
    Keep,
    Measure,
)
from orchestrator.nodes import Node, Problems, nearest
from orchestrator.schedules import KINDS, schedule_of


def read_measure(node: Node | None, available: Collection[str], problems: Problems) -> Measure:
    """Read the field `measure`.

    Args:
        node: its value; None: it is not in the file.
        available: names of groups that there are.
        problems: receives what is wrong; the result is of use only if nothing was.
    """
    if node is None:
        return Measure(DEFAULT_GROUPS)
    if isinstance(node.value, list):
        found = Measure(_groups(node, available, problems))
        return replace(found, places=_places({"groups": node}, node))
    what = f"a list of measurements, or a mapping of {', '.join(OPTIONS[:-1])} and {OPTIONS[-1]}"
    if isinstance(node.value, str) and node.value in available:
        problems.add(node, f"expected {what}, got {node.got}: write [{node.value}]")
        return Measure(DEFAULT_GROUPS)
    entries = problems.mapping(node, OPTIONS, what)
    found = _Options(entries, available, problems).read()
    return replace(found, places=_places(entries, node))


def _places(entries: Mapping[str, Node], node: Node) -> dict[str, Node]:
    """What `Measure.places` holds, of valid entries of the mapping `node`."""
    found = {"measure": node}
    for name, entry in entries.items():
        found[name] = entry
        items = entry.value if name in ("groups", "views") else None
        for item in items if isinstance(items, list) else ():
            found.setdefault(f"{name}:{item.plain}", item)
    return found


def _items(node: Node, what: str, problems: Problems) -> list[Node]:
    """`Problems.items`, which for a text that should be in a list says how to write that."""
    if not isinstance(node.value, str) or not node.value.strip():
        return problems.items(node, what)
    plain = re.fullmatch(r"[A-Za-z_][\w.]*", node.value)
    written = node.value if plain else json.dumps(node.value, ensure_ascii=False)
    hint = f": write [{written}]" if len(written) <= 60 else ""
    problems.add(node, f"expected {what}, got {node.got}{hint}")
    return []


def _groups(node: Node, available: Collection[str], problems: Problems) -> tuple[str, ...]:
    accepted = f"one of {', '.join(available)}"
    usable = []
    for item in _items(node, "a list of at least one measurement", problems):
        if item.value in available:
            usable.append((item,))
        else:
            hint = nearest(item.value, available) if isinstance(item.value, str) else ""
            problems.add(item, f"unknown measurement {item.got}{hint}: {accepted}")
    chosen = problems.unrepeated(usable, "repeated measurement")
    return tuple(sorted(item.value for (item,) in chosen))


class _Options:
    """Reads the mapping form."""

    def __init__(
        self, entries: Mapping[str, Node], available: Collection[str], problems: Problems
    ) -> None:
        self.entries, self.available, self.problems = entries, available, problems

    def read(self) -> Measure:
        before = len(self.problems)
        groups = DEFAULT_GROUPS
        if "groups" in self.entries:
            groups = _groups(self.entries["groups"], self.available, self.problems)
        certain = len(self.problems) == before
        pruned = self.pruned()
        found = Measure(
            groups=groups,
            vectors=self.vectors(),
            views=self.views(),
            residual=self.switch("residual"),
            heads=self.switch("heads"),
            keep=self.keep(),
            workspace=self.workspace(),
            **pruned,
        )
        if certain:  # else a misspelt group would make its options look idle
            self.idle(found)
        return found

    def idle(self, found: Measure) -> None:
        """Report the options that would change nothing."""
        stated = {"vectors": found.vectors is not None, "keep": found.keep != "none"}
        for name in (name for name, given in stated.items() if given and not found.uses_vectors):
            users = f"{', '.join(USE_VECTORS[:-1])} or {USE_VECTORS[-1]}"
            message = f"{name} has no effect without singular vectors: add {users} to groups"
            self.problems.add(self.entries[name], message)
        switches = {"residual": found.residual, "heads": found.heads}
        for name in (name for name, on in switches.items() if on):
            if "alignment" not in found.groups:
                message = f"{name} has no effect without couplings: add alignment to groups"
                self.problems.add(self.entries[name], message)
        if found.views and found.groups == ("pruned",):
            message = (
                "views has no effect on pruned models, of which every matrix is cut: add another "
                "measurement to groups"
            )
            self.problems.add(self.entries["views"], message)
        if "pruned" in self.entries and "pruned" not in found.groups:
            message = "its options have no effect without the measurement: add pruned to groups"
            self.problems.add(self.entries["pruned"], message)

    def vectors(self) -> int | None:
        node = self.entries.get("vectors")
        return None if node is None else self.problems.whole(node, 1)

    def views(self) -> tuple[str, ...]:
        node = self.entries.get("views")
        if node is None:
            return ()
        what = "a list of at least one pattern of view names"
        items = _items(node, what, self.problems)
        usable = [(item,) for item in items if self.problems.text(item, "a pattern") is not None]
        patterns = self.problems.unrepeated(usable, "repeated pattern")
        return tuple(sorted(item.value for (item,) in patterns))

    def switch(self, name: str) -> bool:
        node = self.entries.get(name)
        if node is not None and not isinstance(node.value, bool):
            self.problems.expected(node, "true or false")
        return node is not None and node.value is True

    def keep(self) -> Keep:
        return self.choice(self.entries.get("keep"), KEEP) or "none"

    def choice(self, node: Node | None, accepted: Sequence[str]) -> Any:
        """The node's word if it is one of these; None if it is another or there is none."""
        if node is None or node.value in accepted:
            return None if node is None else node.value
        hint = nearest(node.value, accepted) if isinstance(node.value, str) else ""
        listed = f"{', '.join(accepted[:-1])} or {accepted[-1]}"
        self.problems.add(node, f"expected {listed}, got {node.got}{hint}")
        return None

    def workspace(self) -> int | None:
        node = self.entries.get("workspace")
        if node is None:
            return None
        found = node.value if type(node.value) is int else bytes_of(node.value)
        if found is not None and 1 <= found < _ADDRESSABLE:
            return found
        units = f"{', '.join([*_UNITS][:-1])} or {[*_UNITS][-1]}"
        what = f"a number of bytes >= 1, or one with a unit of {units}, like 256 MB"
        self.problems.expected(node, what)
        return None

    def pruned(self) -> dict[str, Any]:
        node = self.entries.get("pruned")
        if node is None:
            return {}
        what = f"a mapping of fractions, last, and one of {', '.join(KINDS[:-1])} and {KINDS[-1]}"
        entries = self.problems.mapping(node, PRUNED_OPTIONS, what)
        found: dict[str, Any] = {"pruned": schedule_of(entries, node, self.problems)}
        if "fractions" in entries:
            found["fractions"] = self.fractions(entries["fractions"])
        if "last" in entries:
            last = self.choice(entries["last"], ("exempt", "included"))
            found["exempt_last"] = last != "included"
        return found

    def fractions(self, node: Node) -> tuple[float, ...]:
        usable = []
        for item in self.problems.items(node, "a list of at least one fraction"):
            if type(item.value) in (int, float) and 0 < item.value < 1:
                usable.append((item,))
            else:
                self.problems.expected(item, "a number above 0 and below 1")
        rows = self.problems.unrepeated(usable, "repeated fraction")
        return tuple(sorted(float(item.value) for (item,) in rows))


_ADDRESSABLE = 2**63
_UNITS = {"kB": 1000, "MB": 1000**2, "GB": 1000**3, "MiB": 1024**2, "GiB": 1024**3}


def bytes_of(text: Any) -> int | None:
    """``256 MB`` -> 256000000; the units are kB, MB, GB, MiB and GiB.

    None for any other text, and for 2^63 bytes or more, which no machine addresses.
    """
    match = re.fullmatch(rf"(\d+(?:\.\d+)?) *({'|'.join(_UNITS)})", str(text).strip())
    if match is None:
        return None
    number = Decimal(match[1]) * _UNITS[match[2]]  # a float would overflow, and so would its int
    return round(number) if number < _ADDRESSABLE else None
