"""ship(): the code of a sweep in one folder, for machines where only Ray and torch are installed.

The folder is an installed image: our packages, the package that offers the task, and their
metadata, so that entry points work; a task by path lies in `task_files/` with the files that it
imports. It becomes the working directory of Ray's processes, which holds nothing else that could
shadow a package of ours. What does not travel is named, with the version installed here.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

import tasks
from orchestrator import distributions
from orchestrator.distributions import BuildError, normalised
from orchestrator.environment import PACKAGES
from orchestrator.errors import SweepError
from orchestrator.sweep import Sweep

OURS = "spectral-sweeps"
TASK_FILES = "task_files"
"""The folder of a task by path and of the files that it imports."""

GIVEN = ("torch", "ray")
"""What a cluster must have itself: compared with what is here, never installed by us."""
_WORKER = (*GIVEN, "numpy", "scipy", "pyarrow", "pydantic")
_DRIVER = (*_WORKER, "ruamel.yaml", "typer", "rich", "matplotlib")
"""What a driver without tracking imports; a test holds it against the modules it really loads."""


@dataclass(frozen=True)
class Shipment:
    """What travels, and what must be there.

    Attributes:
        folder: becomes the `working_dir` of Ray's runtime environment.
        task: a reference that `tasks.resolve` understands in a process that works in the folder.
        requirements: (distribution, version here) of what a worker imports and does not travel.
        driver: likewise of what a driver imports.
    """

    folder: Path
    task: str
    requirements: tuple[tuple[str, str], ...]
    driver: tuple[tuple[str, str], ...]


def ship(sweep: Sweep, target: Path) -> Shipment:
    """Put the code of a sweep into a folder.

    Args:
        sweep: a validated sweep.
        target: a folder that is empty or does not exist.

    Raises:
        SweepError: a package does not build, or does not hold what the task consists of.
    """
    target.mkdir(parents=True, exist_ok=True)
    path, separator, class_name = sweep.task.rpartition(":")
    try:
        _place_ours(target)
        if separator and path.endswith(".py"):
            required = _place_named(_place_task_files(Path(path), target), target)
            reference = f"{TASK_FILES}/{Path(path).resolve().name}:{class_name}"
        else:
            required = _place_provider(sweep.task, target)
            reference = sweep.task
            _check_copy(*tasks.source_files(sweep.task_class), target)
    except (BuildError, tasks.TaskError) as error:
        raise SweepError(sweep.source, [str(error)]) from error
    driver = (*_DRIVER, "mlflow") if sweep.tracking.enabled else _DRIVER
    return Shipment(target, reference, _pinned(_WORKER, required), _pinned(driver, required))


def installable(requirements: Iterable[tuple[str, str]]) -> list[str]:
    """The requirements that pip may install on a node, pinned: all but torch and Ray."""
    return [f"{name}=={version}" for name, version in requirements if name not in GIVEN]


def _pinned(ours: Sequence[str], theirs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    names = {normalised(name): name for name in (*theirs, *ours)}
    found = [(names[key], distributions.version(names[key])) for key in sorted(names)]
    return tuple((name, version) for name, version in found if version is not None)


def _place_ours(target: Path) -> None:
    """Our own distribution, or the source folder of a checkout that was never installed."""
    root = Path(__file__).resolve().parents[1]
    named = list(Distribution.discover(name=OURS))
    # Installed ones first: an .egg-info beside the sources knows less.
    for each in sorted(named, key=lambda each: each.read_text("RECORD") is None):
        if root in (distributions.source_of(each), Path(str(each.locate_file(""))).resolve()):
            distributions.place(each, target)
            break
    else:
        distributions.build(root, target)
    _check_copy(root, [Path(__file__).resolve()], target)


def _place_provider(name: str, target: Path) -> list[str]:
    """The distribution whose entry point offers a task, and what it needs.

    Returns:
        The distributions that do not travel.
    """
    if name in tasks.REGISTRY:
        return []
    offers = importlib.metadata.entry_points(group=tasks.registry.ENTRY_POINTS)
    provider = [each.dist for each in offers if each.name == name][-1]  # as `resolve` chooses
    if provider is None:
        raise BuildError(f"task {name!r} is offered by no installed package")
    return _place(provider, target, set())


def _place_named(names: Iterable[str], target: Path) -> list[str]:
    """Of these distributions, place those that no index has; return the others."""
    placed: set[str] = set()
    return [each for name in sorted(names) for each in _place_or_name(name, target, placed)]


def _place(found: Distribution, target: Path, placed: set[str]) -> list[str]:
    distributions.place(found, target)
    placed.add(normalised(found.name))
    # Its requirements as they stand in the copy: those of an editable installation may be stale.
    [copy] = Distribution.discover(name=found.name, path=[str(target)])
    needed = distributions.needed_by(copy)
    return [each for name in needed for each in _place_or_name(name, target, placed)]


def _place_or_name(name: str, target: Path, placed: set[str]) -> list[str]:
    key = normalised(name)
    if key in placed or key == OURS:
        return []
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return []  # the task was loaded without it
    if key not in _DRIVER and distributions.is_local(found):
        return _place(found, target, placed)
    return [found.name]


def _place_task_files(file: Path, target: Path) -> set[str]:
    """Copy a task by path with the files beside it that it imports.

    Returns:
        The distributions that they import besides: what is used here is needed there.
    """
    root, files = tasks.source_files(file)
    for each in files:
        copy = target / TASK_FILES / each.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(each, copy)
    beside = {each.relative_to(root).parts[0].removesuffix(".py") for each in files}
    known = {*sys.stdlib_module_names, *PACKAGES, *beside}
    owners = importlib.metadata.packages_distributions()
    found: set[str] = set()
    for each in files:
        for top in sorted(_imports(each) - known):
            found.update(owners.get(top) or _owner(top, each))
    return found


def _imports(file: Path) -> set[str]:
    """Top-level packages that a file imports by their absolute name, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def _owner(top: str, file: Path) -> list[str]:
    """The editable distribution whose source folder holds a package that no distribution lists.

    Raises:
        BuildError: none does.
    """
    spec = importlib.util.find_spec(top)
    if spec is None:
        return []  # an import that does not succeed here either
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    for each in importlib.metadata.distributions():
        source = distributions.source_of(each)
        if source and any(Path(str(place)).resolve().is_relative_to(source) for place in places):
            return [each.name]
    raise BuildError(
        f"{file} imports {top} from {places[0]}, which belongs to no installed package, so that it "
        f"cannot be taken along. Put it beside {file.name}, or make a package of it and install it"
    )


def _check_copy(root: Path, files: Sequence[Path], target: Path) -> None:
    """Refuse a package whose build leaves out, or differs from, what this process imported."""
    for file in files:
        copy = target / file.relative_to(root)
        if not copy.is_file():
            what = "is not in the package that it belongs to, as that is built"
        elif copy.read_bytes() != file.read_bytes():
            what = "differs from the same file of the package that would be taken along"
        else:
            continue
        raise BuildError(
            f"{file} {what}. Install the package again, and see that its pyproject.toml names "
            "every package of it"
        )
