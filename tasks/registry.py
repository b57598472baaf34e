"""From the `task:` of a sweep file to a class: registered names, entry points, files."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType

from tasks.config import TrainingConfig
from tasks.task import Task, TaskError

REGISTRY: dict[str, str] = {
    "image_generation": "tasks.image_generation:ImageGeneration",
    "image_classification": "tasks.image_classification:ImageClassification",
    "modular_addition": "tasks.modular_addition:ModularAddition",
    "language_modeling": "tasks.language_modeling:LanguageModeling",
    "speech_recognition": "tasks.speech_recognition:SpeechRecognition",
}
"""Name -> "module:Class" of our own tasks; a module is imported when its task is asked for."""

ENTRY_POINTS = "spectral_sweeps.tasks"
"""The entry-point group under which other distributions offer tasks."""


def available() -> dict[str, str]:
    """Every name that `resolve` knows -> "module:Class". Our own names win over entry points."""
    return {**{e.name: e.value for e in entry_points(group=ENTRY_POINTS)}, **REGISTRY}


def resolve(reference: str, base: Path | None = None) -> type[Task]:
    """The class that a sweep file's `task:` means.

    Args:
        reference: a registered name, the name of an entry point, or `path/to/file.py:Class`.
        base: the folder that a relative path starts from; by default the working directory.

    Raises:
        TaskError: there is no such task, its module cannot be imported, or it is not a usable Task.
    """
    path, separator, class_name = reference.rpartition(":")
    if not separator and reference.endswith(".py"):
        path, class_name = reference, ""
    if path.endswith(".py"):
        file = ((base or Path.cwd()) / path).resolve()
        if not file.is_file():
            raise TaskError(f"task {reference!r}: there is no file {file}")
        return _usable(_class_in(_module_from(file, reference), class_name, reference), reference)
    targets = available()
    if reference not in targets:
        raise TaskError(_unknown(reference, targets))
    module_name, _, class_name = targets[reference].partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise TaskError(_import_failure(reference, error, Path(module_name))) from error
    return _usable(_class_in(module, class_name, reference), reference)


def _unknown(reference: str, targets: Iterable[str]) -> str:
    return (
        f"unknown task {reference!r}{_nearest(reference, targets)}; "
        f"available: {', '.join(sorted(targets))}; "
        "a task of your own is written path/to/file.py:Class"
    )


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _module_from(file: Path, reference: str) -> ModuleType:
    # The name holds the path and the text: two files never share a module, and an edited file is
    # imported anew by a long-lived process.
    digest = hashlib.sha256(str(file).encode() + b"\0" + file.read_bytes()).hexdigest()[:16]
    name = f"spectral_sweeps_task_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        # Last, so that the files beside the task can be imported but never hide a real module.
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a .py file always has a loader"
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise TaskError(_import_failure(reference, error, file)) from error
    return module


def _import_failure(reference: str, error: Exception, file: Path) -> str:
    """The place in the user's folder where the import broke, or the innermost one."""
    what = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        where, line, what = (
            error.filename or str(file),
            error.lineno or 1,
            f"SyntaxError: {error.msg}",
        )
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if Path(f.filename).parent == file.parent]
        last = (own or [f for f in frames if not f.filename.startswith("<frozen")] or list(frames))[
            -1
        ]
        where, line = last.filename, last.lineno or 1
    return f"task {reference!r} cannot be imported: {where}, line {line}: {what}"


def _class_in(module: ModuleType, name: str, reference: str) -> type:
    found = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    value = getattr(module, name, None) if name else None
    if isinstance(value, type):
        return value
    problem = f"has no class {name!r}{_nearest(name, found)}" if name else "names no class"
    where = module.__file__ or module.__name__
    suggestion = "" if name else f"; write {reference}:Class"
    raise TaskError(
        f"task {reference!r}: {where} {problem}; "
        f"classes found: {', '.join(found) or 'none'}{suggestion}"
    )


def _usable(found: type, reference: str) -> type[Task]:
    if not issubclass(found, Task):
        raise TaskError(
            f"task {reference!r}: {found.__name__} is not a task; derive it from tasks.Task"
        )
    config = getattr(found, "Config", None)
    if not (isinstance(config, type) and issubclass(config, TrainingConfig)):
        raise TaskError(
            f"task {reference!r}: {found.__name__} has no Config; give it a class Config that "
            "derives from tasks.TrainingConfig"
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise TaskError(
            f"task {reference!r}: {found.__name__} does not define {', '.join(missing)}"
        )
    return found


def source_hash(cls: type[Task]) -> str:
    """16 hexadecimal digits that change when the code behind a task does.

    Hashed are the syntax trees, without docstrings, of the class's module and of every module that
    it imports, directly or not, from its own top-level package, or from the folder of its file for
    a task by path; and of the training loop, `tasks.training`, with what it imports from `tasks`.
    Comments, formatting and docstrings do not count.

    Raises:
        TaskError: the class has no source file (it was typed into an interpreter, for example).
    """
    here = Path(__file__).resolve().parents[1]
    trees = _trees(*_source(cls))
    trees |= _trees("tasks.training", here / "tasks" / "training.py", here)
    code = {key: ast.unparse(_without_docstrings(tree)) for key, tree in trees.items()}
    text = "\0".join(f"{key}\0{code[key]}" for key in sorted(code))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_files(code: type[Task] | Path) -> tuple[Path, tuple[Path, ...]]:
    """The files that a task is made of, so that they can be taken elsewhere.

    Args:
        code: the task's class, or the file of a task by path.

    Returns:
        (root, files): the folder that its imports start from, and the files inside it: the module
        itself, what it imports as `source_hash` follows it, and the `__init__.py` of every package
        on the way.

    Raises:
        TaskError: the class has no source file.
    """
    if isinstance(code, Path):
        module, file, root = "", code.resolve(), code.resolve().parent
    else:
        module, file, root = _source(code)
    trees = _trees(module, file, root, packages=True)
    return root, tuple(root / key for key in sorted(trees))


def _source(cls: type[Task]) -> tuple[str, Path, Path]:
    """The class's module (empty for a task by path), its file, and the folder imports start from.

    Raises:
        TaskError: the class has no source file.
    """
    try:
        file = Path(inspect.getfile(cls)).resolve()
    except (TypeError, OSError):
        file = Path()
    if not file.is_file():
        raise TaskError(f"task {cls.__name__} has no source file to tell its versions apart by")
    module, is_package = cls.__module__, file.name == "__init__.py"
    if module.startswith("spectral_sweeps_task_") or not (is_package or "." in module):
        return "", file, file.parent
    return module, file, file.parents[module.count(".") + is_package]


def _trees(module: str, path: Path, root: Path, *, packages: bool = False) -> dict[str, ast.Module]:
    """File under `root` -> its tree, for a module and all that it imports from its own package.

    With `packages`, also the `__init__.py` of every package that such a module lies in.
    """
    top = module.partition(".")[0]  # empty for a task by path: whatever lies in its folder
    pending, trees = [(module, path)], dict[str, ast.Module]()
    while pending:
        name, file = pending.pop()
        key = file.relative_to(root).as_posix()
        if key in trees:
            continue
        trees[key] = tree = ast.parse(file.read_text(encoding="utf-8"))
        names = list(_imports(tree, name, is_package=file.name == "__init__.py"))
        if packages:
            parts = [full.split(".") for full in (name, *names)]
            names += [".".join(each[:end]) for each in parts for end in range(1, len(each))]
        for other in names:
            if (not top or other.partition(".")[0] == top) and (found := _file_of(root, other)):
                pending.append((other, found))
    return trees


def _imports(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Absolute names of all modules that a module's text may import, wherever it does."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1]
            stem = ".".join(filter(None, [*(parts if node.level else []), node.module]))
            yield stem
            # `from package import name`: the name may be a module of its own.
            yield from (f"{stem}.{alias.name}" for alias in node.names if stem)
            yield from (alias.name for alias in node.names if not stem)


def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if module and path.is_file():
            return path
    return None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # Attribute docstrings are expression statements too, and have no effect either.
            node.body = [
                s
                for s in node.body
                if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
            ] or [ast.Pass()]
    return tree
