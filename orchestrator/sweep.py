"""YAML -> Sweep -> Trials: load a sweep file, refuse it with every problem at once, select trials.

`document` turns the text into values that know their place, `fields` reads the fields of the file,
`points` checks each configuration against the task, `expansion` makes the trials. Problems are
collected on the way; a Sweep exists only if there were none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.axes import Parameters
from orchestrator.document import override, read
from orchestrator.errors import Problem, SweepError
from orchestrator.expansion import Expansion, Trial, assignment
from orchestrator.fields import Resources, Tracking, read_fields
from orchestrator.measure import Measure
from orchestrator.nodes import Node, Problems, comparable, nearest, show
from orchestrator.points import expand
from orchestrator.sweep_schema import schema

__all__ = ["Resources", "Sweep", "Tracking", "Trial", "load", "parse", "schema"]

MAX_BYTES = 4 << 20  # of a sweep file; it also ends the reading of a file that has no end


@dataclass(frozen=True)
class Sweep:
    """One sweep file, fully validated. Made by :func:`load` and :func:`parse` only.

    Attributes:
        name: of the results folder inside `storage`.
        task: reference that ``tasks.resolve`` understands from any working directory.
        task_class: what it resolves to.
        task_name: the task's own name.
        source: the file as it was given, or ``<string>``.
        base: the folder against which a task's path was read.
        text: the file, verbatim.
        overrides: the ``--set`` options, verbatim.
        seeds: in the order of the file.
        axes: the swept parameters in the order of the file, those of the zip last.
        measure: what a snapshot holds.
        storage: an absolute path.
        data: the folder of real data sets, absolute; None: as the environment says.
        checkpoint_seconds: >= 0.
        num_configurations: points that are not excluded.
        num_trials: configurations times seeds.
    """

    name: str
    task: str
    task_class: type[Any]
    task_name: str
    source: str
    base: Path
    text: str = field(repr=False)
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    axes: tuple[str, ...]
    measure: Measure
    resources: Resources
    tracking: Tracking
    storage: str
    data: str | None
    checkpoint_seconds: float
    num_configurations: int
    num_trials: int
    _expansion: Expansion = field(repr=False, compare=False)
    _places: Mapping[str, Node] = field(repr=False, compare=False)
    _parameters: Parameters = field(repr=False, compare=False)

    @property
    def root(self) -> Path:
        """The results folder, absolute; it need not exist."""
        return Path(self.storage) / self.name

    def place(self, field: str, parameter: str | None = None, value: Any = None) -> Node | None:
        """Where a value of a parameter stands in the file; where it does not, the field.

        Args:
            field: of the file; its place is the answer if the parameter has none.
            parameter: of the task.
            value: of the parameter, as a trial has it.
        """
        named = {} if parameter is None else self._parameters.named(parameter)
        return named.get(comparable(value)) or self._places.get(field)

    def trials(self) -> Iterator[Trial]:
        """Every trial, made one by one: all configurations of the first seed, then of the next."""
        return self._expansion.trials(self.seeds)

    def select(self, expression: str) -> list[Trial]:
        """The trials that ``--only`` names.

        Args:
            expression: the beginning of one trial's id, or assignments of swept parameters and the
                seed, such as ``weight_decay=1.0,seed=0``.

        Returns:
            At least one trial, in the sweep's order.

        Raises:
            SweepError: it names nothing, or nothing that exists; the message lists what does.
        """
        found = self._by_value(expression) if "=" in expression else self._by_id(expression.strip())
        if isinstance(found, str):
            raise SweepError(f"--only {expression}", [found])
        return found

    def _by_id(self, prefix: str) -> list[Trial] | str:
        swept = assignment((*self.axes, "seed")[0], "...")
        if not re.fullmatch(r"[0-9a-fA-F]{1,16}", prefix):
            return f"expected the beginning of a trial id, or values such as {swept}"
        found = [t for t in self.trials() if t.trial_id.startswith(prefix.lower())]
        if len(found) == 1:
            return found
        if not found:
            return f"no trial id begins with {prefix}; select by values such as {swept}"
        listed = "; ".join(f"{trial.trial_id} {trial.label(self.axes)}" for trial in found[:5])
        more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
        return f"{len(found)} trial ids begin with {prefix}: {listed}{more}"

    def _by_value(self, expression: str) -> list[Trial] | str:
        names = (*self.axes, "seed")
        wanted: dict[str, Any] = {}
        # a comma ends a value only if another assignment follows: betas=[0.9,0.98],seed=0
        for part in re.split(r",(?=\s*\w+\s*=)", expression):
            name, _, text = (piece.strip() for piece in part.partition("="))
            if name in wanted:
                return f"{name} is given twice"
            if name not in names:
                return f"{name!r} is not swept; select by {', '.join(names)}{nearest(name, names)}"
            problems = Problems()
            node = read(text, problems, option=part)
            wanted[name] = node.plain if node and not problems else text
        for name, value in wanted.items():
            values = self._values(name)
            if comparable(value) not in values:
                listed = ", ".join(list(values.values())[:20])
                return f"no trial has {assignment(name, value)}; {name} is one of {listed}"
        found = [
            trial
            for trial in self.trials()
            if all(
                comparable(trial.seed if name == "seed" else trial.params[name])
                == comparable(value)
                for name, value in wanted.items()
            )
        ]
        return found or f"no trial has all of {expression}: this combination is not in the sweep"

    def _values(self, name: str) -> dict[Any, str]:
        if name == "seed":
            return {seed: str(seed) for seed in self.seeds}
        common = self._expansion.common[name]
        values = [each.own.get(name, common) for each in self._expansion.configurations]
        return {comparable(v): v if isinstance(v, str) else show(v) for v in values}


def load(path: str | Path, overrides: Sequence[str] = ()) -> Sweep:
    """Read and validate a sweep file.

    Args:
        path: the file. A task given by path is looked for in the file's folder, then in the working
            directory.
        overrides: ``--set`` options, such as ``base.steps=100``.

    Raises:
        SweepError: every problem at once, with its place in the file.
    """
    try:
        with Path(path).open("rb") as file:
            payload = file.read(MAX_BYTES + 1)
        if len(payload) > MAX_BYTES:
            raise SweepError(str(path), [f"longer than {MAX_BYTES:,} bytes: not a sweep file"])
        text = payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = payload[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        byte = f"not UTF-8: the byte 0x{payload[error.start]:02x}"
        raise SweepError(str(path), [Problem(byte, line=line, column=column)]) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise SweepError(str(path), [f"cannot be read: {reason}"]) from error
    return parse(text, source=str(path), base=Path(path).absolute().parent, overrides=overrides)


def parse(
    text: str, *, source: str = "<string>", base: Path | None = None, overrides: Sequence[str] = ()
) -> Sweep:
    """Validate the text of a sweep file.

    Args:
        text: YAML 1.2.
        source: what error messages call it.
        base: the folder in which a task given by path is looked for first; default: the working
            directory.
        overrides: ``--set`` options, such as ``base.steps=100``.

    Raises:
        SweepError: every problem at once.
    """
    problems = Problems()
    root = read(text, problems)
    if root is None or not isinstance(root.value, dict):
        if not problems:
            got = "nothing" if root is None or root.value is None else root.got
            problems.add(root, f"expected a mapping with the fields of a sweep, got {got}")
        problems.check(source)
    assert root is not None
    root = override(root, overrides, problems)
    folder = base or Path.cwd()
    fields = read_fields(root, folder, problems)
    if fields.task is None:
        problems.check(source)
    assert fields.task is not None, "no task although nothing is wrong with it"
    from spectral import METHOD_VERSION  # here, because it loads torch

    expansion = Expansion(
        task=fields.reference,
        task_name=fields.task.name,
        version=fields.task.version,
        method=METHOD_VERSION,
        snapshots=fields.snapshots,
        evaluations=fields.evaluations,
        measure=fields.measure,
    )
    num_seeds = len(fields.seeds)
    parameters = fields.parameters
    expand(expansion, fields.task.Config, parameters, num_seeds, problems)
    problems.check(source)
    num = len(expansion.configurations)
    return Sweep(
        name=fields.name,
        task=fields.reference,
        task_class=fields.task,
        task_name=fields.task.name,
        source=source,
        base=folder,
        text=text,
        overrides=tuple(overrides),
        seeds=fields.seeds,
        axes=parameters.axes,
        measure=fields.measure,
        resources=fields.resources,
        tracking=fields.tracking,
        storage=fields.storage,
        data=fields.data,
        checkpoint_seconds=fields.checkpoint_seconds,
        num_configurations=num,
        num_trials=num * num_seeds,
        _expansion=expansion,
        _places=fields.places,
        _parameters=parameters,
    )
