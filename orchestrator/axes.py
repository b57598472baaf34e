"""The parameters of a sweep file: base, grid, zip and exclude, read from nodes into blocks of axes.

What is checked here is the shape of the sections and the names in them; whether the task accepts
the values is found by `orchestrator.points.expand`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from orchestrator.nodes import Node, Problems, comparable, nearest, show
from orchestrator.sweep_schema import FIELDS

AXES = "a mapping of parameters to lists of values"
Claims = Mapping[str, tuple[str, Node]]  # parameters that stand elsewhere: section and key


@dataclass(frozen=True)
class Axis:
    """Parameters that move together: one name for an axis of the grid, several for the zip.

    Attributes:
        names: the parameters.
        rows: one node per name in each row; a point takes one row of every axis.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class Block:
    """The product of some axes, the last one fastest."""

    place: Node
    axes: tuple[Axis, ...]


@dataclass(frozen=True)
class Parameters:
    """What the four sections say; of use only if nothing was reported.

    Attributes:
        base: mapping of the usable parameters of the base; its keys are those of all parameters
            that the file names.
        blocks: at least one; with neither grid nor zip, one without axes.
        axes: the swept parameters in the order of the file, those of the zip last.
        exclude: the entries that can be applied.
    """

    base: Node
    blocks: list[Block]
    axes: tuple[str, ...]
    exclude: list[Node]

    def named(self, parameter: str) -> dict[Any, Node]:
        """Every value of a parameter that the file names, as `nodes.comparable`, and its place."""
        found = {}
        if (node := self.base.value.get(parameter)) is not None:
            found[comparable(node.plain)] = node
        for block in self.blocks:
            for axis in block.axes:
                if parameter in axis.names:
                    at = axis.names.index(parameter)
                    for row in axis.rows:
                        found.setdefault(comparable(row[at].plain), row[at])
        return found


def read_parameters(root: Node, task: type[Any] | None, problems: Problems) -> Parameters:
    """Read the sections that hold parameters.

    Args:
        root: the mapping at the top of the file.
        task: the class that knows the parameters; None if the file names none that can be found.
        problems: receives what is wrong.
    """
    reader = _Reader(root, task, problems)
    base = reader.base()
    blocks = reader.blocks(base)
    axes = tuple(dict.fromkeys(n for b in blocks for axis in b.axes for n in axis.names))
    exclude = reader.exclude(axes)
    return Parameters(replace(base, keys=reader.named), blocks, axes, exclude)


class _Reader:
    def __init__(self, root: Node, task: type[Any] | None, problems: Problems) -> None:
        self.root, self.task, self.problems = root, task, problems
        self.named: dict[str, Node] = {}  # keys of the parameters in base, grid and zip

    def parameters(self, node: Node, what: str) -> dict[str, Node]:
        """The valid entries of a mapping whose keys must be parameters of the task."""
        entries = self.problems.mapping(node, None, what)
        self.named |= node.keys
        if self.task is None:
            return entries
        known = self.task.Config.model_fields
        for key in [key for key in entries if key not in known]:
            del entries[key]
            hint = nearest(key, known) or f": it has {', '.join(known)}"
            if key == "seed" or key in FIELDS:
                field = "seeds" if key == "seed" else key
                hint = f": {field} stands at the top of the file, beside {node.path[2:] or 'base'}"
            self.problems.add(node.keys[key], f"{self.task.name} has no parameter {key!r}{hint}")
        return entries

    def value(self, node: Node) -> bool:
        """Whether a parameter can have this value at all; the task decides the rest."""
        if isinstance(node.value, dict):
            self.problems.expected(node, "a number, a text, true, false, null or a list of these")
            return False
        inner = node.value if isinstance(node.value, list) else []
        return all([self.value(item) for item in inner]) and node.valid  # all: report every item

    def base(self) -> Node:
        """The base with its usable values only."""
        if self.task is not None and any(not v.valid for v in self.root.value.values()):
            # a whole section may be lost, so that none of its parameters can be called missing
            self.named |= dict.fromkeys(self.task.Config.model_fields, self.root)
        node = self.root.entry("base") or replace(self.root, value={}, keys={})
        entries = self.parameters(node, "a mapping of parameters to values")
        return replace(node, value={key: v for key, v in entries.items() if self.value(v)})

    def blocks(self, base: Node) -> list[Block]:
        """The blocks of the grid, each multiplied with the zip."""
        claimed = {name: ("base", key) for name, key in base.keys.items()}
        together: tuple[Axis, ...] = ()
        zipped, grid = self.root.entry("zip"), self.root.entry("grid")
        if zipped is not None:
            together = self.zip(zipped, claimed)
            claimed |= {name: ("zip", key) for name, key in zipped.keys.items()}
        if grid is None:
            return [Block(zipped or base, together)]
        blocks = []
        several = not isinstance(grid.value, dict)
        for place in self.problems.items(grid, f"{AXES}, or a list of them") if several else [grid]:
            axes = [
                self.axis((name,), [(value,) for value in values])
                for name, values in self.axes(place, claimed).items()
            ]
            blocks.append(Block(place, (*axes, *together)))
        return blocks or [Block(grid, together)]

    def zip(self, node: Node, claimed: Claims) -> tuple[Axis, ...]:
        axes = self.axes(node, claimed)
        if not axes:
            return ()
        lengths = {name: len(values.value) for name, values in node.value.items() if name in axes}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            self.problems.add(node, f"axes that move together need equally many values: {counts}")
            return ()
        if len({len(values) for values in axes.values()}) > 1:
            return ()  # some values were reported already
        return (self.axis(tuple(axes), list(zip(*axes.values(), strict=True))),)

    def axis(self, names: tuple[str, ...], rows: list[tuple[Node, ...]]) -> Axis:
        return Axis(names, tuple(self.problems.unrepeated(rows, "the same trial twice")))

    def axes(self, node: Node, claimed: Claims) -> dict[str, list[Node]]:
        """The usable values of each axis; axes without any are left out."""
        axes = {}
        for name, values in self.parameters(node, AXES).items():
            if name in claimed:
                section, key = claimed[name]
                where = key.path if key.line is None else f"line {key.line}"
                message = f"{name} is swept here and also in {section} ({where}): choose one place"
                self.problems.add(node.keys[name], message)
            scalar = not isinstance(values.value, list | dict)
            write = f": write [{show(values.value)}]" if scalar and values.value is not None else ""
            if isinstance(values.value, list) and values.value:
                usable = [value for value in values.value if self.value(value)]
                if usable:
                    axes[name] = usable
            else:
                got = "an empty list" if values.value == [] else values.got
                self.problems.add(values, f"expected a list of values, got {got}{write}")
        return axes

    def exclude(self, axes: Collection[str]) -> list[Node]:
        """The entries that can be applied."""
        node = self.root.entry("exclude")
        if node is None or node.value == []:
            return []
        entries = []
        for item in self.problems.items(node, "a list of mappings of swept parameters to values"):
            found = self.problems.mapping(item, None, "a mapping of swept parameters to values")
            for key in [key for key in found if key not in axes]:
                swept = f"swept are {', '.join(axes)}" if axes else "nothing is"
                hint = nearest(key, axes) or f": {swept}"
                self.problems.add(item.keys[key], f"{key!r} is not swept{hint}")
            if isinstance(item.value, dict) and not item.value:
                self.problems.add(item, "excludes everything: name at least one value")
            elif found and len(found) == len(item.value) and all(key in axes for key in found):
                if all([self.value(value) for value in found.values()]):
                    entries.append(item)
        return entries
