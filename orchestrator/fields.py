"""The fields of a sweep file: what each may hold, read from nodes into values.

What is wrong is reported, and something usable is returned all the same, so that one pass finds
every problem of the file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from orchestrator.axes import Parameters, read_parameters
from orchestrator.measure import Measure
from orchestrator.measure_field import read_measure
from orchestrator.nodes import Node, Problems, nearest, show
from orchestrator.points import MAX_TRIALS
from orchestrator.schedules import Schedule, read_schedule
from orchestrator.sweep_schema import FIELDS, REQUIRED, RESERVED


@dataclass(frozen=True)
class Resources:
    """What one trial is given; `auto` is decided by the driver on the machine it finds."""

    cpus: int = 1
    gpus: float | Literal["auto"] = "auto"
    group: int | Literal["auto"] = "auto"
    custom: tuple[tuple[str, float], ...] = ()  # named by the cluster's owner, for example v100


@dataclass(frozen=True)
class Tracking:
    """Where MLflow is: by default (no uri) an SQLite file in the results folder."""

    uri: str | None = None
    experiment: str | None = None
    enabled: bool = True


@dataclass(frozen=True)
class Fields:
    """What the file says, defaults filled in; of use only if nothing was reported.

    `parameters` still holds nodes, whose values `orchestrator.points.expand` checks. `places` are
    the nodes of the fields that are there.
    """

    name: str
    reference: str
    task: type[Any] | None
    parameters: Parameters
    seeds: tuple[int, ...]
    snapshots: Schedule
    evaluations: Schedule | None
    measure: Measure
    resources: Resources
    tracking: Tracking
    storage: str
    data: str | None
    checkpoint_seconds: float
    places: Mapping[str, Node]


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
    return Fields(
        name=reader.name(),
        reference=reference,
        task=task,
        parameters=read_parameters(root, task, problems),
        seeds=reader.seeds(),
        snapshots=reader.schedule("snapshots") or Schedule(log_spaced=40),
        evaluations=reader.schedule("evaluations"),
        measure=reader.measure(),
        resources=reader.resources(),
        tracking=reader.tracking(),
        storage=reader.storage(),
        data=reader.data(task),
        checkpoint_seconds=reader.checkpoint_seconds(),
        places=root.value,
    )


class _Reader:
    """Reads the fields of one file."""

    def __init__(self, root: Node, folder: Path, problems: Problems) -> None:
        self.root, self.folder, self.problems = root, folder, problems

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
        node = self.root.entry("name")
        accepted = "a name of at most 100 characters a-z, 0-9, _ and -"
        if node is not None and (text := self.problems.text(node, accepted)) is not None:
            if re.fullmatch(r"[a-z0-9_-]{1,100}", text):
                return text
            self.problems.expected(node, accepted)
        return ""

    def task(self) -> tuple[str, type[Any] | None]:
        from tasks import TaskError, resolve  # here, because it loads torch

        node = self.root.entry("task")
        if node is None or (reference := self.problems.text(node, "a task")) is None:
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
        return self.folder_at("storage") or str(Path("results").absolute())

    def data(self, task: type[Any] | None) -> str | None:
        """An absolute path, or None where the file leaves it to the environment."""
        node = self.root.entry("data")
        parameter = task.Config.model_fields.get("data") if task is not None else None
        if node is not None and parameter is not None:
            if node.value in get_args(parameter.annotation):
                message = f"{show(node.value)} is a data set, not the folder that holds it: write "
                self.problems.add(node, f"{message}base: {{data: {node.value}}}")
                return None
        return self.folder_at("data")

    def folder_at(self, field: str) -> str | None:
        """The absolute path of a folder; None, and a problem, if there stands something else."""
        node = self.root.entry(field)
        if node is None or (text := self.problems.text(node, "a folder")) is None:
            return None
        if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
            parts = urlsplit(text)
            if scheme[1].lower() != "file" or parts.netloc not in ("", "localhost"):
                message = f"object storage is not available yet; use a folder, got {show(text)}"
                self.problems.add(node, message)
                return None
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
        node = self.root.entry("checkpoint_seconds")
        if node is None:
            return 60.0
        return self.problems.real(node, 0, "a number of seconds >= 0") or 0.0

    def seeds(self) -> tuple[int, ...]:
        node = self.root.entry("seeds")
        if node is None:
            return (0,)
        if not isinstance(node.value, list):
            if type(node.value) is not int or node.value < 1:
                self.problems.expected(node, "a number of seeds >= 1 or a list of seeds")
            elif node.value > MAX_TRIALS:
                self.problems.add(node, f"{node.value:,} seeds, at most {MAX_TRIALS:,}")
            else:
                return tuple(range(node.value))
            return (0,)
        items = self.problems.items(node, "at least one seed")
        usable = [(item,) for item in items if self.problems.whole(item, 0) is not None]
        seeds = self.problems.unrepeated(usable, "repeated seed")
        return tuple(item.value for (item,) in seeds) or (0,)

    def schedule(self, name: str) -> Schedule | None:
        node = self.root.entry(name)
        return None if node is None else read_schedule(node, self.problems)

    def measure(self) -> Measure:
        from spectral import MEASUREMENTS  # here, because it loads torch

        return read_measure(self.root.entry("measure"), tuple(MEASUREMENTS), self.problems)

    def resources(self) -> Resources:
        node = self.root.entry("resources")
        if node is None:
            return Resources()
        found: dict[str, Any] = {}
        what = "a mapping of cpus, gpus, group and custom"
        entries = self.problems.mapping(node, ("cpus", "gpus", "group", "custom"), what)
        for key, entry in entries.items():
            if key == "custom":
                found[key] = self._custom(entry)
            elif entry.value == "auto" and key != "cpus":
                found[key] = "auto"
            elif key == "gpus":
                what = "auto, 0, a share of a GPU below 1, or a whole number of GPUs"
                number = self.problems.real(entry, 0, what)
                if number is not None and number > 1 and number % 1:
                    self.problems.expected(entry, what)
                found[key] = number
            elif key == "group" and type(entry.value) is int and entry.value > 1:
                self.problems.add(
                    entry, "groups of several trials are not available yet; use auto or 1"
                )
            elif type(entry.value) is int and entry.value >= 1:
                found[key] = entry.value
            else:
                auto = "" if key == "cpus" else "auto or "
                self.problems.expected(entry, f"{auto}a whole number >= 1")
        return Resources(**found)

    def _custom(self, node: Node) -> tuple[tuple[str, float], ...]:
        if not isinstance(node.value, dict):
            self.problems.expected(node, "a mapping of resource names to amounts, like {v100: 1}")
            return ()
        found = []
        for name, entry in node.value.items():
            if name in ("CPU", "GPU"):
                self.problems.add(entry, f"{name}s are asked for with {name.lower()}s:")
                continue
            what = "a share below 1 or a whole number >= 1"
            amount = self.problems.real(entry, 0, what)
            if amount == 0 or (amount is not None and amount > 1 and amount % 1):
                self.problems.expected(entry, what)
            elif amount is not None:
                found.append((name, amount))
        return tuple(sorted(found))

    def tracking(self) -> Tracking:
        node = self.root.entry("tracking")
        if node is None:
            return Tracking()
        if node.value == "none":
            return Tracking(enabled=False)
        what = "none, or a mapping of uri and experiment"
        entries = self.problems.mapping(node, ("uri", "experiment"), what)
        texts = {key: self.problems.text(entry) for key, entry in entries.items()}
        return Tracking(uri=texts.get("uri"), experiment=texts.get("experiment"))
