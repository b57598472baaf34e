"""The fields of a sweep file: what each may hold, read from nodes into values.

What is wrong is reported, and something usable is returned all the same, so that one pass finds
every problem of the file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from orchestrator.expansion import Schedule, comparable
from orchestrator.nodes import Node, Problems, nearest, show
from orchestrator.points import MAX_TRIALS, Axis, Block
from orchestrator.sweep_schema import FIELDS, REQUIRED, RESERVED


@dataclass(frozen=True)
class Resources:
    """What one trial is given; `auto` is decided by the driver on the machine it finds."""

    cpus: int = 1
    gpus: float | Literal["auto"] = "auto"
    group: int | Literal["auto"] = "auto"


@dataclass(frozen=True)
class Tracking:
    """Where MLflow is: by default (no uri) an SQLite file in the results folder."""

    uri: str | None = None
    experiment: str | None = None
    enabled: bool = True


AXES = "a mapping of parameters to lists of values"
Claims = Mapping[str, tuple[str, Node]]  # parameters that stand elsewhere: section and key


@dataclass(frozen=True)
class Fields:
    """What the file says, defaults filled in; of use only if nothing was reported.

    `base`, `blocks` and `exclude` still hold nodes: `orchestrator.points.expand` checks their
    values against the task. The keys of `base` are those of all parameters the file names.
    """

    name: str
    reference: str
    task: type[Any] | None
    base: Node
    blocks: list[Block]
    axes: tuple[str, ...]
    exclude: list[Node]
    seeds: tuple[int, ...]
    snapshots: Schedule
    evaluations: Schedule | None
    measure: tuple[str, ...]
    resources: Resources
    tracking: Tracking
    storage: str
    checkpoint_seconds: float


def read_fields(root: Node, folder: Path, problems: Problems) -> Fields:
    """Read every field of a sweep file.

    Args:
        root: the mapping at the top of the file.
        folder: where a task given by path is looked for first.
        problems: receives what is wrong.
    """
    reader = _Reader(root, folder, problems)
    reference, task = reader.task()
    reader.names(task)
    base = reader.base(task)
    blocks = reader.blocks(task, base)
    axes = tuple(dict.fromkeys(n for b in blocks for axis in b.axes for n in axis.names))
    return Fields(
        name=reader.name(),
        reference=reference,
        task=task,
        base=replace(base, keys=reader.named),
        blocks=blocks,
        axes=axes,
        exclude=reader.exclude(axes),
        seeds=reader.seeds(),
        snapshots=reader.schedule("snapshots") or Schedule("log_spaced", 40),
        evaluations=reader.schedule("evaluations"),
        measure=reader.measure(),
        resources=reader.resources(),
        tracking=reader.tracking(),
        storage=reader.storage(),
        checkpoint_seconds=reader.checkpoint_seconds(),
    )


class _Reader:
    """Reads the fields of one file."""

    def __init__(self, root: Node, folder: Path, problems: Problems) -> None:
        self.root, self.folder, self.problems = root, folder, problems
        self.named: dict[str, Node] = {}  # keys of the parameters in base, grid and zip

    def get(self, name: str) -> Node | None:
        """The field's node, unless it is missing or was reported already."""
        node = self.root.value.get(name)
        return node if node is not None and node.valid else None

    def expected(self, node: Node, what: str) -> None:
        self.problems.add(node, f"expected {what}, got {node.got}")

    def text(self, node: Node, what: str = "a text") -> str | None:
        if isinstance(node.value, str) and node.value.strip():
            return node.value
        quotes = "; put it in quotes" if isinstance(node.value, bool | int | float) else ""
        self.problems.add(node, f"expected {what}, got {node.got}{quotes}")
        return None

    def whole(self, node: Node, least: int) -> int | None:
        if type(node.value) is int and node.value >= least:
            return node.value
        self.expected(node, f"a whole number >= {least}")
        return None

    def real(self, node: Node, least: float, what: str) -> float | None:
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
                self.problems.add(node.keys[key], message)
            elif value.valid:
                entries[key] = value
        return entries

    def items(self, node: Node, what: str) -> list[Node]:
        """The valid items of a list that must not be empty."""
        if isinstance(node.value, list) and node.value:
            return [item for item in node.value if item.valid]
        got = "an empty list" if node.value == [] else node.got
        self.problems.add(node, f"expected {what}, got {got}")
        return []

    def unrepeated(self, rows: Sequence[tuple[Node, ...]], what: str) -> list[tuple[Node, ...]]:
        """The rows without those whose values stood before, which are reported."""
        first: dict[Any, tuple[Node, ...]] = {}
        for row in rows:
            earlier = first.setdefault(tuple(comparable(node.plain) for node in row), row)
            if earlier is not row:
                shown = " with ".join(show(node.plain) for node in row)
                self.problems.add(row[0], f"{what}: {shown} also stands at {earlier[0].path}")
        return list(first.values())

    def names(self, task: type[Any] | None) -> None:
        """Report fields that are unknown and those that are missing."""
        for key, place in self.root.keys.items():
            if key == "search":
                self.problems.add(place, "search is not available yet: sweep with grid or zip")
            elif key not in FIELDS:
                hint = nearest(key, FIELDS) or f": one of {', '.join(FIELDS)}"
                if task is not None and key in task.Config.model_fields:
                    hint = f": it is a parameter of {task.name}, put it in base"
                self.problems.add(place, f"unknown field {key!r}{hint}")
        for key in REQUIRED:
            if key not in self.root.value:
                message = f"missing field {key!r}: {FIELDS[key]['description']}"
                self.problems.add(self.root, message)

    def name(self) -> str:
        node = self.get("name")
        accepted = "a name of at most 100 characters a-z, 0-9, _ and -"
        if node is not None and (text := self.text(node, accepted)) is not None:
            if re.fullmatch(r"[a-z0-9_-]{1,100}", text):
                return text
            self.expected(node, accepted)
        return ""

    def task(self) -> tuple[str, type[Any] | None]:
        from tasks import TaskError, resolve  # here, because it loads torch

        node = self.get("task")
        if node is None or (reference := self.text(node, "a task")) is None:
            return "", None
        by_path = re.fullmatch(r"(.+\.py)(:[^:/]*)?", reference)
        try:
            if by_path:
                file = self.at_home(node, by_path[1])
                folders = dict.fromkeys([self.folder.absolute(), Path.cwd()])
                found = [folder / file for folder in folders if (folder / file).is_file()]
                if not found:
                    where = " or ".join(map(str, folders))
                    self.problems.add(node, f"no file {by_path[1]} in {where}")
                    return "", None
                reference = f"{found[0]}{by_path[2] or ''}"
            task = resolve(reference, base=self.folder)
        except (TaskError, OSError) as error:  # OSError: a path that is too long
            self.problems.add(node, str(error))
            return "", None
        for taken in sorted(RESERVED.intersection(task.Config.model_fields)):
            self.problems.add(
                node,
                f"{task.name} has a parameter {taken!r}, a column of the trials table: rename it",
            )
        return reference, task

    def storage(self) -> str:
        """An absolute path."""
        node = self.get("storage")
        if node is None or (text := self.text(node, "a folder")) is None:
            return str(Path("results").absolute())
        if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
            parts = urlsplit(text)
            if scheme[1].lower() != "file" or parts.netloc not in ("", "localhost"):
                message = f"object storage is not available yet; use a folder, got {show(text)}"
                self.problems.add(node, message)
                return ""
            text = unquote(parts.path)
        return str(self.at_home(node, text).absolute())

    def at_home(self, node: Node, text: str) -> Path:
        """The path, with a leading ~ or ~user replaced."""
        try:
            return Path(text).expanduser()
        except RuntimeError:  # ~nobody
            self.problems.add(node, f"there is no home folder for {show(text)}")
            return Path(text)

    def checkpoint_seconds(self) -> float:
        node = self.get("checkpoint_seconds")
        return 60.0 if node is None else self.real(node, 0, "a number of seconds >= 0") or 0.0

    def seeds(self) -> tuple[int, ...]:
        node = self.get("seeds")
        if node is None:
            return (0,)
        if not isinstance(node.value, list):
            if type(node.value) is not int or node.value < 1:
                self.expected(node, "a number of seeds >= 1 or a list of seeds")
            elif node.value > MAX_TRIALS:
                self.problems.add(node, f"{node.value:,} seeds, at most {MAX_TRIALS:,}")
            else:
                return tuple(range(node.value))
            return (0,)
        items = self.items(node, "at least one seed")
        usable = [(item,) for item in items if self.whole(item, 0) is not None]
        return tuple(item.value for (item,) in self.unrepeated(usable, "repeated seed")) or (0,)

    def schedule(self, name: str) -> Schedule | None:
        node = self.get(name)
        if node is None:
            return None
        what = "one of every: N, log_spaced: N and at: [steps]"
        entries = self.mapping(node, ("every", "log_spaced", "at"), what)
        if not isinstance(node.value, dict) or len(entries) != len(node.value):
            return None
        if len(entries) != 1:
            self.problems.add(node, f"expected {what}, got {' and '.join(entries) or 'nothing'}")
            return None
        if "at" in entries:
            items = self.items(entries["at"], "a list of steps")
            usable = [(item,) for item in items if self.whole(item, 0) is not None]
            steps = tuple(item.value for (item,) in self.unrepeated(usable, "repeated step"))
            return Schedule("at", steps, entries["at"])
        if "every" in entries:
            number = self.whole(entries["every"], 1)
            return None if number is None else Schedule("every", number, entries["every"])
        number = self.whole(entries["log_spaced"], 2)
        return None if number is None else Schedule("log_spaced", number, entries["log_spaced"])

    def measure(self) -> tuple[str, ...]:
        from spectral import MEASUREMENTS  # here, because it loads torch

        available = tuple(MEASUREMENTS)
        node = self.get("measure")
        if node is None:
            return ("ranks", "spectrum")
        accepted = f"one of {', '.join(available)}"
        usable = []
        for item in self.items(node, "a list of at least one measurement"):
            if item.value in available:
                usable.append((item,))
            else:
                hint = nearest(item.value, available) if isinstance(item.value, str) else ""
                self.problems.add(item, f"unknown measurement {item.got}{hint}: {accepted}")
        return tuple(sorted(i.value for (i,) in self.unrepeated(usable, "repeated measurement")))

    def resources(self) -> Resources:
        node = self.get("resources")
        if node is None:
            return Resources()
        found: dict[str, Any] = {}
        entries = self.mapping(node, ("cpus", "gpus", "group"), "a mapping of cpus, gpus and group")
        for key, entry in entries.items():
            if entry.value == "auto" and key != "cpus":
                found[key] = "auto"
            elif key == "gpus":
                what = "auto, 0, a share of a GPU below 1, or a whole number of GPUs"
                number = self.real(entry, 0, what)
                if number is not None and number > 1 and number % 1:
                    self.expected(entry, what)
                found[key] = number
            elif type(entry.value) is int and entry.value >= 1:
                found[key] = entry.value
            else:
                auto = "" if key == "cpus" else "auto or "
                self.expected(entry, f"{auto}a whole number >= 1")
        return Resources(**found)

    def tracking(self) -> Tracking:
        node = self.get("tracking")
        if node is None:
            return Tracking()
        if node.value == "none":
            return Tracking(enabled=False)
        entries = self.mapping(
            node, ("uri", "experiment"), "none, or a mapping of uri and experiment"
        )
        texts = {key: self.text(entry) for key, entry in entries.items()}
        return Tracking(uri=texts.get("uri"), experiment=texts.get("experiment"))

    def parameters(self, node: Node, task: type[Any] | None, what: str) -> dict[str, Node]:
        """The valid entries of a mapping whose keys must be parameters of the task."""
        entries = self.mapping(node, None, what)
        self.named |= node.keys
        if task is None:
            return entries
        known = task.Config.model_fields
        for key in [key for key in entries if key not in known]:
            del entries[key]
            hint = nearest(key, known) or f": it has {', '.join(known)}"
            if key == "seed" or key in FIELDS:
                field = "seeds" if key == "seed" else key
                hint = f": {field} stands at the top of the file, beside {node.path[2:] or 'base'}"
            self.problems.add(node.keys[key], f"{task.name} has no parameter {key!r}{hint}")
        return entries

    def value(self, node: Node) -> bool:
        """Whether a parameter can have this value at all; the task decides the rest."""
        if isinstance(node.value, dict):
            self.expected(node, "a number, a text, true, false, null or a list of these")
            return False
        inner = node.value if isinstance(node.value, list) else []
        return all([self.value(item) for item in inner]) and node.valid  # all: report every item

    def base(self, task: type[Any] | None) -> Node:
        """The base with its usable values only."""
        if task is not None and any(not v.valid for v in self.root.value.values()):
            # a whole section may be lost, so that none of its parameters can be called missing
            self.named |= dict.fromkeys(task.Config.model_fields, self.root)
        node = self.get("base") or replace(self.root, value={}, keys={})
        entries = self.parameters(node, task, "a mapping of parameters to values")
        return replace(node, value={key: v for key, v in entries.items() if self.value(v)})

    def blocks(self, task: type[Any] | None, base: Node) -> list[Block]:
        """The blocks of the grid, each multiplied with the zip."""
        claimed = {name: ("base", key) for name, key in base.keys.items()}
        together: tuple[Axis, ...] = ()
        zipped, grid = self.get("zip"), self.get("grid")
        if zipped is not None:
            together = self.zip(zipped, task, claimed)
            claimed |= {name: ("zip", key) for name, key in zipped.keys.items()}
        if grid is None:
            return [Block(zipped or base, together)]
        blocks = []
        several = not isinstance(grid.value, dict)
        for place in self.items(grid, f"{AXES}, or a list of them") if several else [grid]:
            axes = []
            for name, values in self.axes(place, task, claimed).items():
                rows = self.unrepeated([(value,) for value in values], "the same trial twice")
                axes.append(Axis((name,), tuple(rows)))
            blocks.append(Block(place, (*axes, *together)))
        return blocks or [Block(grid, together)]

    def zip(self, node: Node, task: type[Any] | None, claimed: Claims) -> tuple[Axis, ...]:
        axes = self.axes(node, task, claimed)
        if not axes:
            return ()
        lengths = {name: len(values.value) for name, values in node.value.items() if name in axes}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            self.problems.add(node, f"axes that move together need equally many values: {counts}")
            return ()
        if len({len(values) for values in axes.values()}) > 1:
            return ()  # some values were reported already
        rows = self.unrepeated(list(zip(*axes.values(), strict=True)), "the same trial twice")
        return (Axis(tuple(axes), tuple(rows)),)

    def axes(self, node: Node, task: type[Any] | None, claimed: Claims) -> dict[str, list[Node]]:
        """The usable values of each axis; axes without any are left out."""
        axes = {}
        for name, values in self.parameters(node, task, AXES).items():
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
        node = self.get("exclude")
        if node is None or node.value == []:
            return []
        entries = []
        for item in self.items(node, "a list of mappings of swept parameters to values"):
            found = self.mapping(item, None, "a mapping of swept parameters to values")
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
