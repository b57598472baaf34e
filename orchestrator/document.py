"""YAML text -> a tree of plain values that know where they stand. The only importer of ruamel.yaml.

Read is YAML 1.2 with its core schema and nothing else: ``1e-3`` is a number; ``no``, ``1_000`` and
``2026-01-31`` are texts; ``010`` is ten. ruamel splits the text into events and the tree is built
here, so that no tag can construct anything and no alias can be expanded. Refused are tags, anchors
and aliases (so every value has one place in the file), merge keys, repeated keys, keys that are no
text, several documents, ``%YAML 1.1``, numbers that are not finite or do not fit 64 bits, and
nesting deeper than 20.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from orchestrator.nodes import Node, Problems, child_path

MAX_DEPTH = 20  # ours need 5; a tower of brackets must not exhaust Python's stack

# YAML 1.2.2, section 10.3.2 (core schema)
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {word: word.lower() == "true" for word in "true True TRUE false False FALSE".split()}
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read(text: str, problems: Problems, *, option: str | None = None) -> Node | None:
    """Build the tree of one YAML document.

    Args:
        text: the document.
        problems: receives what is wrong with it.
        option: the command-line option the text came from; every node then has it as its path.

    Returns:
        The root, or None if there is none: an empty document, or one with a syntax error.
    """
    reader = _Reader(text, problems, option)
    try:
        return reader.document()
    except _Abandoned:
        return None
    except ReaderError as error:
        place = reader.place("$", *_line_and_column(text, error.position))
        problems.add(place, f"not YAML: the character U+{ord(text[error.position]):04X} is refused")
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = reader.place("$", mark.line, mark.column) if mark else reader.place("$", 0, 0)
        what = ": ".join(part for part in (error.context, error.problem) if part)
        problems.add(place, f"not YAML: {what}")
    except (ValueError, OverflowError):  # what chr() raises inside ruamel, which knows no place
        problems.add(None, "not YAML: an escape such as \\U00110000 that is no character")
    return None


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n"), position - (before.rfind("\n") + 1)


class _Abandoned(Exception):
    """The rest of the document cannot be read; the problem was reported."""


class _Reader:
    def __init__(self, text: str, problems: Problems, option: str | None) -> None:
        self.text, self.problems, self.option = text, problems, option
        self.events: Iterator[Any] = iter(())
        self.aliases_reported = False

    def place(self, path: str, line: int, column: int, value: Any = None, **more: Any) -> Node:
        """A node; `line` and `column` count from 0, as ruamel does."""
        if self.option is not None:
            return Node(value, self.option, **more)
        return Node(value, path, line + 1, column + 1, **more)

    def at(self, event: Any, path: str, value: Any = None, **more: Any) -> Node:
        return self.place(path, event.start_mark.line, event.start_mark.column, value, **more)

    def document(self) -> Node | None:
        self.events = iter(YAML(typ="safe", pure=True).parse(self.text))
        root: Node | None = None
        for event in self.events:
            if isinstance(event, DocumentStartEvent):
                if event.version not in (None, (1, 2)):
                    self.problems.add(self.at(event, "$"), "only YAML 1.2 is read: drop the %YAML")
                if root is not None:
                    self.problems.add(
                        self.at(event, "$"), "expected one document, got a second one after '---'"
                    )
                    raise _Abandoned
                root = self.node(next(self.events), "$", 0)
        return root

    def node(self, event: Any, path: str, depth: int) -> Node:
        valid = self.check_decorations(event, path)
        if depth > MAX_DEPTH:
            self.problems.add(self.at(event, path), f"nested deeper than {MAX_DEPTH} levels")
            raise _Abandoned
        if isinstance(event, ScalarEvent):
            return self.scalar(event, path, valid)
        if isinstance(event, SequenceStartEvent):
            items: list[Node] = []
            while not isinstance(inner := next(self.events), SequenceEndEvent):
                items.append(self.node(inner, f"{path}[{len(items)}]", depth + 1))
            return self.at(event, path, items, valid=valid)
        if isinstance(event, MappingStartEvent):
            return self.mapping(event, path, depth, valid)
        return self.at(event, path, valid=False)  # an alias

    def check_decorations(self, event: Any, path: str) -> bool:
        if isinstance(event, AliasEvent) or event.anchor is not None:
            if not self.aliases_reported:  # once: a file that uses them does so everywhere
                self.aliases_reported = True
                self.problems.add(
                    self.at(event, path),
                    "anchors (&) and aliases (*) are not read: write the value out",
                )
            return False
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.add(
                self.at(event, path), f"tags are not read, got {tag}: write a plain value"
            )
            return False
        return True

    def mapping(self, event: Any, path: str, depth: int, valid: bool) -> Node:
        entries: dict[str, Node] = {}
        keys: dict[str, Node] = {}
        while not isinstance(inner := next(self.events), MappingEndEvent):
            key = self.node(inner, path, depth + 1)
            if key.valid and not isinstance(key.value, str):
                self.problems.add(key, f"expected a name as key, got {key.got}")
                key = replace(key, valid=False)
            name = key.value if isinstance(key.value, str) else ""
            where = child_path(path, name)
            value = self.node(next(self.events), where, depth + 1)
            if value.value is None and value.line is not None:
                value = replace(value, line=key.line, column=key.column)  # nothing has no place
            key = replace(key, path=key.path if self.option is not None else where)
            if not key.valid:
                continue
            if name == "<<":
                self.problems.add(key, "merge keys (<<) are not read: write the entries out")
            elif name in keys:
                first = keys[name]
                also = "" if first.line is None else f", first in line {first.line}"
                self.problems.add(key, f"repeated key {name!r}{also}")
            else:
                entries[name], keys[name] = value, key
        return self.at(event, path, entries, keys=keys, valid=valid)

    def scalar(self, event: ScalarEvent, path: str, valid: bool) -> Node:
        text: str = event.value
        try:
            value = _resolve(text) if event.style is None else text
            if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
                raise ValueError("expected a text without NUL and half characters")
        except ValueError as error:
            if valid:
                self.problems.add(self.at(event, path), str(error))
            return self.at(event, path, valid=False)
        return self.at(event, path, value, valid=valid)


def _resolve(text: str) -> bool | int | float | str | None:
    """What an unquoted scalar means. Raises ValueError with the message for the user."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        # the length first: Python itself refuses to read integers of thousands of digits
        if len(text) <= 40 and abs(number := int(text, base)) < 2**63:
            return number
        raise ValueError(f"expected a number that fits 64 bits, got {text[:40]}")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"expected a finite number, got {text}")
    if _FLOAT.fullmatch(text):
        real = float(text) + 0.0  # -0.0 + 0.0 is 0.0: one zero, one identity
        if abs(real) == float("inf"):
            raise ValueError(f"expected a finite number, got {text[:40]}")
        return real
    return text


def override(root: Node, options: Sequence[str], problems: Problems) -> Node:
    """The document with ``--set`` options such as ``base.steps=100`` put in its place.

    A value is read as YAML 1.2, like the file; mappings on the way are made where there are none.
    """
    done: dict[tuple[str, ...], str] = {}
    for option in options:
        place = Node(None, show_option(option))
        dotted, equals, text = option.partition("=")
        names = tuple(part.strip() for part in dotted.split("."))
        if not equals or not all(names):
            problems.add(place, "expected a path and a value, such as base.steps=100")
            continue
        lost = [earlier for earlier in done if earlier[: len(names)] == names]
        if lost:
            problems.add(place, f"replaces {show_option(done[lost[0]])}: give one of them")
            continue
        done[names] = option
        value = read(text, problems, option=place.path) or place
        root = _put(root, names, value, place, problems)
    return root


def show_option(option: str) -> str:
    """An override as messages name it."""
    return "--set " + (option if len(option) <= 80 else option[:77] + "...")


def _put(node: Node, names: tuple[str, ...], value: Node, place: Node, problems: Problems) -> Node:
    if not names:
        return value
    name, *rest = names
    if node.value is None:
        node = replace(place, value={})
    if not isinstance(node.value, dict):
        problems.add(place, f"{node.path} is no mapping: {name} cannot be set in it")
        return node
    inner = _put(node.value.get(name, place), tuple(rest), value, place, problems)
    return replace(
        node,
        value={**node.value, name: inner},
        keys={**node.keys, name: replace(place, value=name)},
    )


def tracking(text: str, overrides: Sequence[str] = ()) -> tuple[str | None, str | None]:
    """The tracking server's URI and the experiment that a sweep file names, None where it does not.

    Read without the file's task, whose code need not be there to follow its results.
    """
    problems = Problems()
    root = read(text, problems)
    node = root and override(root, overrides, problems)
    node = node.value.get("tracking") if node and isinstance(node.value, dict) else None
    named = node.value if node and isinstance(node.value, dict) else {}
    uri, experiment = (named[key].value if key in named else None for key in ("uri", "experiment"))
    return uri, experiment
