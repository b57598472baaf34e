"""`sweep new-task`: a task of one's own that works from the start, its sweep file and its test.

The three files are copies of those in `templates/`, which are code like any other, under another
name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import keyword
import re
import sys
import tokenize
from pathlib import Path

from orchestrator.errors import UserError

TEMPLATES = Path(__file__).with_name("templates")
_FILES = ("my_task.py", "my_task.yaml", "test_my_task.py")
_NAME, _CLASS = "my_task", "MyTask"  # in the templates
MAX_NAME = 60  # characters
_YAML = ("true", "false", "null")
"""What YAML 1.2 reads as something else than text, of what a name may be."""


def write(name: str, folder: Path) -> list[Path]:
    """Write NAME.py, NAME.yaml and test_NAME.py.

    Args:
        name: of the task: a-z, 0-9 and _, a letter first.
        folder: for the files; made if it is not there.

    Returns:
        The three files.

    Raises:
        UserError: the name does not do, a file is in the way, or the folder cannot be written.
            Nothing is left of what was written then.
    """
    if reason := objection(name, folder):
        other = f"; try {suggestion(name, folder)}"
        raise UserError(f"{name!r} cannot be the name of a task: {reason}{other}")
    texts = {folder / template.replace(_NAME, name): renamed(template, name) for template in _FILES}
    taken = [path for path in texts if path.exists() or path.is_symlink()]
    if taken:
        there = ", ".join(map(str, taken))
        are = "is there already" if len(taken) == 1 else "are there already"
        raise UserError(
            f"{there} {are}, and nothing is overwritten; choose another name, or another folder "
            "with --folder"
        )
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first reason is the one to be told
            for path in written:
                path.unlink()
            for each in missing:
                each.rmdir()
        why = error.strerror or error
        raise UserError(
            f"{error.filename or folder} cannot be written: {why}; choose another folder with "
            "--folder"
        ) from error
    return [*texts]


def class_name(name: str) -> str:
    """The name of the class: ``my_task`` becomes ``MyTask``."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def renamed(template: str, name: str) -> str:
    """The text of a template, with the names of the task and of its class in it."""
    text = (TEMPLATES / template).read_text(encoding="utf-8")
    return text.replace(_CLASS, class_name(name)).replace(_NAME, name)


def objection(name: str, folder: Path) -> str:
    """Why a task cannot be called so; empty if it can."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        return "expected a-z, 0-9 and _, a letter first"
    if len(name) > MAX_NAME:
        return f"it has {len(name)} characters, at most {MAX_NAME}"
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        return "it is a word of the Python language"
    if name.startswith("test_") or name.endswith("_test"):
        return f"pytest would look for tests in {name}.py"
    if name in _registered():
        return "a task of this name is registered already (see `sweep tasks`)"
    if _is_module(name, folder):
        return f"{name}.py would hide the module {name} from programs started beside it"
    if keyword.iskeyword(class_name(name)):
        return f"its class would be called {class_name(name)}, a word of the Python language"
    if name in _YAML:
        return "in a sweep file it is no text"
    own = {word for word in _names() if _CLASS in word}
    called = {word.replace(_CLASS, class_name(name)) for word in own}
    if name != _NAME and (both := called & _names()):
        return f"its class would be called {min(both)}, as something else in its files"
    return ""


@functools.cache
def _names() -> frozenset[str]:
    """Every name in the templates' code."""
    texts = [(TEMPLATES / file).read_text(encoding="utf-8") for file in _FILES if ".py" in file]
    tokens = (tokenize.generate_tokens(io.StringIO(text).readline) for text in texts)
    return frozenset(t.string for each in tokens for t in each if t.type == tokenize.NAME)


def suggestion(name: str, folder: Path) -> str:
    """A name like this one that does."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    plain = re.sub(r"[^a-z0-9]+", "_", words).strip("_")[: MAX_NAME - 3].rstrip("_")
    plain = plain.removeprefix("test_").removesuffix("_test")
    for each in (plain, f"my_{plain}" if plain else _NAME):
        if not objection(each, folder):
            return each
    return _NAME


def _registered() -> dict[str, str]:
    from tasks import available  # here, because it loads torch

    return available()


def _is_module(name: str, folder: Path) -> bool:
    """Whether a file of this name would be imported in place of an installed module."""
    if name in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None or spec.origin is None:  # none, or a folder that is no package
        return False
    return Path(spec.origin).resolve() != (folder / f"{name}.py").resolve()
