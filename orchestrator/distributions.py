"""An installed distribution -> its files in another folder, as an installation would lay them.

One that was installed editable is built from its source, as it stands now; any other is copied,
file by file as its RECORD lists them. The result depends on the code alone, so that Ray, which
compares contents, uploads the same code once.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PIP_SECONDS = 600
"""A build that takes longer is given up; one without isolation takes one to two seconds."""
_LAST_LINES = 15  # of pip's output that a message quotes
_RAISED = re.compile(r"\s*(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Unavailable): ")

_NOT_SHIPPED = {"INSTALLER", "REQUESTED", "direct_url.json", ".gitignore", ".rayignore"}
"""How it came here, which is no news elsewhere; and files that would hide others from Ray."""


class BuildError(Exception):
    """A distribution that cannot be taken along; the text says which, why, and what to do."""


def normalised(name: str) -> str:
    """The name of a distribution as comparisons want it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def source_of(found: Distribution) -> Path | None:
    """The source folder of a distribution that was installed editable, else None."""
    origin = _origin(found)
    if origin.get("dir_info", {}).get("editable"):
        return Path(unquote(urlsplit(origin["url"]).path))
    if found.read_text("RECORD") is not None:
        return None
    # An .egg-info in the source folder itself: `setup.py develop`, or a checkout on the path.
    folder = Path(str(found.locate_file(""))).resolve()
    return next((each for each in (folder, folder.parent) if _is_project(each)), None)


def is_local(found: Distribution) -> bool:
    """Whether no package index has it: it was installed from a folder, a file or a repository."""
    if found.read_text("RECORD") is None:
        return True
    origin = _origin(found)
    if "dir_info" in origin:
        # conda names the folder that it was built in, long ago and elsewhere
        return Path(unquote(urlsplit(origin["url"]).path)).exists()
    return bool(origin)


def place(found: Distribution, target: Path) -> None:
    """Put a distribution's files and its metadata into a folder.

    Raises:
        BuildError: it does not build, or nobody knows which files are its.
    """
    source = source_of(found)
    if source is not None:
        build(source, target)
    elif found.files is None:
        raise BuildError(
            f"{found.name} {found.version} cannot be taken along: its installation has no list of "
            "its files (RECORD). Install it again with pip"
        )
    else:
        for file in found.files:
            if _travels(file.parts):
                copy = target.joinpath(*file.parts)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(str(file.locate()), copy)


def build(source: Path, target: Path) -> None:
    """Build the project in a folder and unpack its wheel into another.

    Raises:
        BuildError: with the end of what pip said.
    """
    with tempfile.TemporaryDirectory(prefix="sweep-build-") as name:
        project = Path(name) / "project"
        _mirror(source, project)
        command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-input"]
        command += ["--disable-pip-version-check", "--wheel-dir", name]
        if _can_build(source):
            command.append("--no-build-isolation")
        try:
            done = subprocess.run(
                [*command, str(project)],
                cwd=name,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=PIP_SECONDS,
                check=False,
            )
            said, failed = done.stdout, done.returncode != 0
        except subprocess.TimeoutExpired:
            said, failed = f"(no end within {PIP_SECONDS} s)", True
        wheels = sorted(Path(name).glob("*.whl"))
        if failed or not wheels:
            quoted = "\n".join(
                f"    {line}" for line in _reasons(said.replace(str(project), str(source)))
            )
            raise BuildError(
                f"the package in {source} does not build, and the cluster needs it. pip said:\n"
                f"{quoted}"
                f"\n    Correct it until this works: {sys.executable} -m pip wheel --no-deps "
                f"{source}"
            )
        for wheel in wheels:
            _unpack(wheel, target)


def _reasons(said: str) -> list[str]:
    """The lines of pip's output that say what is wrong, without tracebacks and what it adds."""
    lines = [line.rstrip() for line in said.splitlines() if line.strip()]
    ends = [i for i, line in enumerate(lines) if line.strip() == "[end of output]"]
    inner = lines[: ends[-1]] if ends else lines
    raised = [i for i, line in enumerate(inner) if _RAISED.match(line)]
    if raised:
        return inner[raised[-1] :][:_LAST_LINES]
    own = [line for line in lines if line.lstrip().startswith("ERROR: ")]
    # A tool that ended without a traceback has said why at the end.
    return inner[-_LAST_LINES:] if ends or not own else own[-_LAST_LINES:]


def _origin(found: Distribution) -> dict[str, Any]:
    text = found.read_text("direct_url.json")
    return json.loads(text) if text else {}


def _is_project(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("pyproject.toml", "setup.py"))


def _mirror(source: Path, mirror: Path) -> None:
    """A folder of links to a project, for builds write into it and take up what others left there.

    Without `build/`, from which setuptools would pack modules that no longer exist.
    """
    mirror.mkdir()
    for entry in sorted(source.iterdir()):
        if entry.name in ("build", "dist", "__pycache__") or entry.suffix == ".egg-info":
            continue
        if entry.is_dir() and any(entry.glob("*.egg-info")):
            _mirror(entry, mirror / entry.name)
        else:
            (mirror / entry.name).symlink_to(entry.absolute())


def _can_build(source: Path) -> bool:
    """Whether what the build needs is installed here: then no network is needed."""
    from packaging.requirements import InvalidRequirement, Requirement  # Ray requires it

    try:
        with (source / "pyproject.toml").open("rb") as file:
            wanted = tomllib.load(file).get("build-system", {}).get("requires", ["setuptools"])
    except FileNotFoundError:
        wanted = ["setuptools"]
    except tomllib.TOMLDecodeError:
        return False  # pip says it better
    try:
        needed = [Requirement(text) for text in wanted]
    except (InvalidRequirement, TypeError):
        return False
    here = [(each, version(each.name)) for each in needed if not each.marker]
    return all(found is not None and each.specifier.contains(found, True) for each, found in here)


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            parts = Path(name).parts
            if parts[0].endswith(".data"):
                if parts[1] not in ("purelib", "platlib"):
                    continue  # scripts and headers: nothing is run by name on a cluster
                parts = parts[2:]
            if name.endswith("/") or not _travels(parts):
                continue
            copy = target.joinpath(*parts)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(archive.read(name))


def _travels(parts: tuple[str, ...]) -> bool:
    if os.pardir in parts or "__pycache__" in parts or parts[-1].endswith(".pyc"):
        return False
    return parts[-1] not in _NOT_SHIPPED


def needed_by(found: Distribution) -> Iterator[str]:
    """Names of the distributions that one requires here, without its extras."""
    from packaging.requirements import Requirement

    for text in found.requires or ():
        each = Requirement(text)
        if each.marker is None or each.marker.evaluate({"extra": ""}):
            yield each.name
