"""What tasks and data sets there are, and what may be said of each: `sweep tasks`, `sweep data`."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import to_jsonable_python

import tasks
from orchestrator.errors import UserError
from orchestrator.nodes import nearest, show
from tasks import Task, TrainingConfig, data, per_trial_fields
from tasks.text import TOKENIZER_BYTES, tokenizer_command, tokenizer_file

_LARGE = 2**31  # a bound from here on keeps a number in its type and tells a user nothing


@dataclass(frozen=True)
class Parameter:
    """One line about a parameter; `name` has a star if it may differ in a group."""

    name: str
    default: str
    meaning: str


def listing() -> Iterator[tuple[str, str, str]]:
    """(name, one line about it, module:Class) of every task that a name stands for."""
    for name, where in sorted(tasks.available().items()):
        try:
            about = _about(tasks.resolve(name))
        except tasks.TaskError as error:
            about = f"cannot be used: {error}"
        yield name, about, where


def _about(task_class: type[Task]) -> str:
    module = sys.modules.get(task_class.__module__)
    text = (module and module.__doc__) or inspect.getdoc(task_class) or ""
    return text.strip().partition("\n")[0]


def heading(name: str, task_class: type[Task]) -> str:
    """What a task is, and which data it can be trained on."""
    lines = [f"{name} (version {task_class.version})"]
    about = inspect.getdoc(task_class)
    if about and about != inspect.getdoc(Task):
        lines += ["", *_paragraphs(about)]
    if isinstance(task_class.splits, tuple):  # else it depends on the parameters
        lines += ["", f"splits: {', '.join(task_class.splits)}"]
    field = task_class.Config.model_fields.get("data")
    choices = _choices(field.annotation) if field is not None else []
    if choices:
        known = ", ".join(_presence(name, task_class) for name in choices)
        lines += [f"data sets: {known}{'; see `sweep data`' if '(missing)' in known else ''}"]
    return "\n".join(lines)


def _paragraphs(text: str) -> Iterator[str]:
    """The lines of a docstring, its paragraphs without line breaks: the terminal makes its own."""
    for number, block in enumerate(text.split("\n\n")):
        lines = block.split("\n")
        prose = not any(line.startswith((" ", "-", "*")) for line in lines)
        yield from [""] if number else []
        yield from [" ".join(lines)] if prose else lines


def _choices(annotation: Any) -> list[str]:
    """The texts that a parameter may be; none if it may be any text."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if isinstance(each, str)]
    if get_origin(annotation) in (Union, UnionType):
        members = [each for each in get_args(annotation) if each is not NoneType]
        return _choices(members[0]) if len(members) == 1 else []
    return []


def _presence(name: str, task_class: type[Task]) -> str:
    if name not in data.SETS:  # what else a user's task reads, only that task knows
        ours = task_class.__module__.partition(".")[0] == tasks.__name__
        return f"{name} (needs no download)" if ours else name
    return f"{name} ({'missing' if lacking(name) else 'here'})"


def parameters(task_class: type[Task]) -> tuple[list[Parameter], list[Parameter]]:
    """The task's own parameters, and those of `TrainingConfig`; seeds that it ignores left out."""
    config = task_class.Config
    try:
        schema = config.model_json_schema()
    except PydanticInvalidForJsonSchema:  # a type of the user's that JSON has no words for
        schema = {"properties": {}}
    marked = set(per_trial_fields(config))
    own, shared = list[Parameter](), list[Parameter]()
    for name, field in config.model_fields.items():
        stream = name.removesuffix("_seed")
        if stream in TrainingConfig.streams and stream not in config.streams:
            continue
        default = "required"
        if not field.is_required():
            default = _shown(field.get_default(call_default_factory=True, validated_data={}))
        of = schema["properties"].get(name, {})
        what, meaning = accepts(of, schema.get("$defs", {})), field.description or ""
        told = "enum" in of and all(str(choice) in meaning for choice in of["enum"])
        if what and not told:
            meaning = f"{meaning} [{what}]".strip()
        row = Parameter(name + "*" * (name in marked), default, meaning)
        (shared if name in TrainingConfig.model_fields else own).append(row)
    return own, shared


def _shown(value: Any) -> str:
    plain = to_jsonable_python(value, fallback=repr)
    return "none" if plain is None else plain if isinstance(plain, str) else show(plain)


def accepts(schema: Mapping[str, Any], defined: Mapping[str, Any]) -> str:
    """What a parameter may be: ``whole number >= 1 or none``; empty if nothing is known.

    Args:
        schema: of the parameter, as pydantic makes JSON Schema.
        defined: name -> schema of what it refers to.
    """
    if "$ref" in schema:
        return accepts(defined.get(schema["$ref"].rpartition("/")[2], {}), defined)
    if "anyOf" in schema:
        return " or ".join(filter(None, (accepts(each, defined) for each in schema["anyOf"])))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        *most, last = map(str, schema["enum"])
        return f"{', '.join(most)} or {last}" if most else last
    kind = schema.get("type")
    if kind == "array":
        return _list(schema, defined)
    words = {"integer": "whole number", "number": "number", "boolean": "true or false"}
    words |= {"string": "text", "null": "none"}
    return " ".join([words.get(str(kind), ""), _bounds(schema)]).strip()


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return ", ".join(
        f"{sign} {show(schema[key])}"
        for key, sign in signs.items()
        if key in schema and abs(schema[key]) < _LARGE
    )


def _list(schema: Mapping[str, Any], defined: Mapping[str, Any]) -> str:
    entries: Sequence[Any] = schema.get("prefixItems", ())
    if entries:
        kinds = list(dict.fromkeys(accepts(each, defined) for each in entries))
        return f"list of {len(entries)}: {', '.join(kinds)}"
    inner = accepts(schema.get("items", {}), defined)
    return f"list: {inner}" if inner else "list"


@dataclass(frozen=True)
class Found:
    """A data set on this machine, or not.

    Attributes:
        name: as the parameter `data` of a task calls it.
        here: it can be opened.
        place: where it lies, or would be looked for; empty: in the cache of `datasets`.
        num_bytes: on disk if it lies there, else about what is downloaded.
        command: downloads what is not here: the data set, a tokenizer that its text needs, or both;
            empty if it is here, and if only a package is missing.
        problem: why no task can be trained on it, a line each; empty if one can.
    """

    name: str
    here: bool
    place: str
    num_bytes: int
    command: str
    problem: str


def data_sets(name: str | None = None) -> list[Found]:
    """The data sets that our tasks can be trained on, or one of them.

    Raises:
        UserError: there is none of this name.
    """
    if name is not None and name not in data.SETS:
        known = f"there are {', '.join(data.SETS)}"
        raise UserError(f"no data set {name!r}{nearest(name, data.SETS)}: {known}")
    return [_found(each) for each in (data.SETS if name is None else [name])]


def reader_missing() -> bool:
    """Whether the package that opens data sets is not installed."""
    return importlib.util.find_spec("datasets") is None


def lacking(name: str) -> list[str]:
    """What keeps this machine from training on a data set, as the task of ours that reads it says.

    The task knows more than where the data lie: other forms that it reads, a tokenizer it needs.
    """
    for task_name in tasks.REGISTRY:
        task_class = tasks.resolve(task_name)
        field = task_class.Config.model_fields.get("data")
        if field is not None and name in _choices(field.annotation):
            return task_class.missing(task_class.Config.model_construct(data=name))
    return data.missing(name)


def _found(name: str) -> Found:
    known, place = data.SETS[name], data.folder() / name
    problems, num_bytes = lacking(name), 0
    if not problems:
        here = place.is_dir()
        num_bytes = _size(place) if here else known.num_bytes
        return Found(name, True, str(place) if here else "", num_bytes, "", "")
    commands = list[str]()
    if any(each.startswith(tuple(data.missing(name))) for each in problems):
        commands.append(known.command(place))
        num_bytes += known.num_bytes
    if name == "wikitext103" and not tokenizer_file().is_file():
        commands.append(tokenizer_command())
        num_bytes += TOKENIZER_BYTES
    if not commands:
        num_bytes = _size(place)
    command, problem = " && ".join(commands), "\n".join(problems)
    return Found(name, False, str(place), num_bytes, command, problem)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
