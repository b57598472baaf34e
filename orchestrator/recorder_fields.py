"""What a `Recorder` is given, checked: every problem at once, before anything is written."""

from __future__ import annotations

import math
import operator
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from orchestrator import environment
from orchestrator.errors import RecordError
from orchestrator.measure import Measure
from orchestrator.measure_field import read_measure
from orchestrator.nodes import Node, Problems, child_path, show
from orchestrator.sweep_schema import RESERVED
from spectral import MEASUREMENTS, Coupling, MatrixView

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # what MLflow takes, and SQL in quotes
_ACCEPTED = "a name of at most 100 characters A-Z, a-z, 0-9, _, . and -"
_DEEPEST = 20  # lists in lists; one that holds itself is deeper than any


def node_of(value: Any, path: str) -> Node:
    """A Python value as the reader of a sweep file would have made it."""
    if isinstance(value, Mapping):
        entries = {
            str(key): node_of(item, child_path(path, str(key))) for key, item in value.items()
        }
        return Node(entries, path, keys={key: entry for key, entry in entries.items()})
    if isinstance(value, list | tuple | set | frozenset):
        return Node([node_of(item, f"{path}[{i}]") for i, item in enumerate(value)], path)
    return Node(value, path)


def read_measurements(
    measure: Any, couplings: Sequence[Coupling], example: Any, problems: Problems
) -> Measure:
    """What a snapshot holds: a list of groups, or the mapping that a sweep file takes.

    Args:
        measure: as it was given.
        couplings: likewise.
        example: likewise; None: there is none.
        problems: receives what is wrong; the result is of use only if nothing was.
    """
    found = read_measure(node_of(measure, "measure"), MEASUREMENTS, problems)
    if "pruned" in found.groups:
        problems.add(
            None,
            "pruned models are evaluated by a task, which a Recorder has not: leave pruned out of "
            "measure, or write a task",
        )
    if "alignment" in found.groups and not couplings:
        problems.add(None, "alignment needs to know which matrices meet: give couplings=[...]")
    if couplings and "alignment" not in found.groups:
        problems.add(None, "couplings have no effect: add alignment to measure")
    if "operator" in found.groups and example is None:
        problems.add(None, "operator needs an input of the model: give example=...")
    if example is not None and "operator" not in found.groups:
        problems.add(None, "example has no effect: add operator to measure")
    return found


def check_objects(
    views: Sequence[MatrixView] | None, couplings: Sequence[Coupling], problems: Problems
) -> None:
    """Report what is no matrix view or no coupling."""
    for given, of, kind in ((views, "views", MatrixView), (couplings, "couplings", Coupling)):
        for i, each in enumerate(given or ()):
            if not isinstance(each, kind):
                what = f"expected a spectral.{kind.__name__}, got {show(each)}"
                problems.add(Node(None, f"{of}[{i}]"), what)


def read_name(name: str | None, folder: str, known: str, problems: Problems) -> str:
    """What is trained.

    Args:
        name: as it was given; None: as before, or as the folder.
        folder: the folder's name.
        known: what the folder holds; empty: nothing yet.
        problems: receives what is wrong with it.
    """
    found = name if name is not None else known or folder
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        hint = "" if name is not None else ", the name of the folder: give name=..."
        problems.add(Node(None, "name"), f"expected {_ACCEPTED}, got {show(found)}{hint}")
        return ""
    return found


def read_seed(seed: Any, problems: Problems) -> int:
    """A whole number >= 0."""
    seed = _number(seed)
    if type(seed) is int and 0 <= seed < 2**63:
        return seed
    problems.add(Node(None, "seed"), f"expected a whole number >= 0, got {show(seed)}")
    return 0


def read_params(name: str, params: Any, problems: Problems) -> dict[str, Any]:
    """The parameters in JSON types.

    Args:
        name: of what is trained, for messages; empty: it has none yet.
        params: as they were given.
        problems: receives what is wrong with them.
    """
    if not isinstance(params, Mapping):
        what = f"expected a mapping of parameters to values, got {show(params)}"
        problems.add(Node(None, "params"), what)
        return {}
    found: dict[str, Any] = {}
    lower: dict[str, str] = {}
    for key, value in params.items():
        place = Node(None, child_path("params", str(key)))
        if not isinstance(key, str) or not _NAME.fullmatch(key):
            problems.add(place, f"expected {_ACCEPTED}, got {show(key)}")
            continue
        if key.lower() in RESERVED:
            what = f"has a parameter {key!r}, a column of the trials table: rename it"
            problems.add(place, f"{name or 'the trial'} {what}")
        elif key.lower() in lower:  # SQL does not tell them apart
            first = lower[key.lower()]
            problems.add(
                place, f"{key} and {first} differ in upper and lower case only: rename one"
            )
        lower[key.lower()] = key
        try:
            found[key] = _value(value)
        except ValueError as error:
            problems.add(place, str(error))
    return found


def _value(value: Any, depth: int = 0) -> Any:
    value = _number(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"expected a number that fits 64 bits, got {show(value)}")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"expected a finite number, got {show(value)}")
        return float(value) + 0.0  # -0.0 + 0.0 is 0.0: one zero, one identity
    if isinstance(value, str):
        if not value.isprintable():
            raise ValueError(
                f"expected a text of printable characters, got {show(value)}: give a text without "
                "control characters, such as a name for it"
            )
        return str(value)
    if isinstance(value, list | tuple):
        if depth == _DEEPEST:
            raise ValueError(f"expected lists in lists at most {_DEEPEST} deep, got deeper ones")
        return [_value(item, depth + 1) for item in value]
    what = "a number, a text, true, false, None or a list of them"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        raise ValueError(f"expected {what}, got a mapping: give its entries names of their own")
    raise ValueError(f"expected {what}, got {show(value)} ({kind}): give a text of it")


def _number(value: Any) -> Any:
    """A plain Python value for a numpy scalar or a 0-dimensional tensor or array."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def read_step(step: Any) -> int:
    """A whole number >= 0.

    Raises:
        RecordError: it is none.
    """
    try:
        found = -1 if isinstance(step, bool) else operator.index(step)
    except TypeError:
        found = -1
    if not 0 <= found < 2**63:
        raise RecordError("Recorder", [f"expected a step, a whole number >= 0, got {show(step)}"])
    return found


def origin() -> dict[str, Any]:
    """What code records: the script, and the state of the repository that it lies in.

    A script of the installation (a notebook's kernel, `python -m` of a package) is none of the
    user's: the working directory stands for it.
    """
    script = Path(sys.argv[0]) if sys.argv else Path()
    own = script.is_file() and Path(sys.prefix).resolve() not in script.resolve().parents
    folder = script.absolute().parent if own else Path.cwd()
    return {**environment.git_facts(folder), "recorded_by": script.name}


def environment_of(root: Path, facts: str, device: str, error: BaseException | None) -> str:
    """The column `environment`: what recorded a trial, see `orchestrator.environment.record`.

    Args:
        root: the store's folder.
        facts: what `origin` found, as JSON.
        device: "cpu" or "cuda".
        error: what ended the trial before its time; then a device may not answer any more, and is
            left out.
    """
    threads = torch.get_num_threads()
    try:
        return environment.record(root, facts, threads=threads, device=device)
    except Exception:
        if error is None:
            raise
        return environment.record(root, facts, threads=threads, device="cpu")


def failure(error: BaseException | None) -> dict[str, str]:
    """The columns of the trials table that say what ended a trial before its time, if it did."""
    if error is None:
        return {}
    text = "".join(traceback.format_exception(error))
    # half characters are no UTF-8
    return {"error_kind": type(error).__name__, "error": text.encode("utf-8", "replace").decode()}


def rank() -> int:
    """Of this process in distributed training; 0 if there is none.

    Before torch.distributed is initialised, what torchrun and accelerate (RANK) and Lightning
    (LOCAL_RANK and NODE_RANK) have put into the environment tells.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    names = ["RANK"] if "RANK" in os.environ else []
    if not names and "LOCAL_RANK" in os.environ:
        names = ["LOCAL_RANK", "NODE_RANK"]
    texts = [os.environ.get(name, "0") for name in names]
    return max((int(text) for text in texts if text.isdecimal()), default=0)
