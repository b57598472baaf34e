"""What `sweep doctor` looks at on this machine alone: packages, versions, token, data, MLflow."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.doctor_checks import Finding
from orchestrator.environment import DETERMINISM, PACKAGES
from orchestrator.node_storage import disk

if TYPE_CHECKING:
    from orchestrator.sweep import Sweep

OURS = "spectral-sweeps"
_SHOWN = ("torch", "ray", "pyarrow", "mlflow", "numpy")


def requirements() -> list[Finding]:
    """Whether what is installed here is what this project was made for."""
    from packaging.requirements import Requirement  # Ray requires it

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires(OURS) or ()]
        pythons = importlib.metadata.metadata(OURS)["Requires-Python"]
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install spectral-sweeps (in a checkout: pip install -e .)"
        return [Finding("problem", "versions", f"{OURS} is not installed", fix)]
    found, shown = [], [f"Python {platform.python_version()}"]
    if not Requirement(f"python{pythons}").specifier.contains(platform.python_version()):
        what = f"Python {platform.python_version()} runs this; {OURS} needs {pythons}"
        found.append(Finding("problem", "versions", what, "Use a Python that fits."))
    for each in wanted:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        named = f"{each.name}{each.specifier}"
        fix = f'pip install "{named}"'
        try:
            version = importlib.metadata.version(each.name)
        except importlib.metadata.PackageNotFoundError:
            what = f"{each.name} is not installed; {OURS} needs {named}"
            found.append(Finding("problem", "versions", what, fix))
            continue
        if not each.specifier.contains(version, prereleases=True):
            what = f"{each.name} {version} is installed; {OURS} needs {named}"
            found.append(Finding("problem", "versions", what, fix))
        elif each.name in _SHOWN:
            shown.append(f"{each.name} {version}")
    return found or [Finding("ok", "versions", ", ".join(shown))]


def packages(origins: Mapping[str, str | None], working: Path) -> list[Finding]:
    """Whether `spectral`, `tasks` and `orchestrator` are ours; the names are anybody's.

    Args:
        origins: where each would be imported from.
        working: the working directory.
    """
    home = Path(__file__).resolve().parents[1]
    providers = importlib.metadata.packages_distributions()
    found = []
    for name in PACKAGES:
        ours, origin = home / name / "__init__.py", origins[name]
        others = sorted(set(providers.get(name, ())) - {OURS})
        if others:
            what = f"{', '.join(others)} also installs a package named {name} and may replace ours"
            fix = f"pip uninstall {' '.join(others)}; then pip install --force-reinstall --no-deps "
            found.append(Finding("problem", "packages", what, fix + OURS))
        if origin is None or Path(origin).resolve() != ours:
            what = f"{name} is imported from {origin or 'nowhere'}, not from {ours}"
            fix = "Rename that file, or take its folder off PYTHONPATH."
            found.append(Finding("problem", "packages", what, fix))
            continue
        for shadow in (working / f"{name}.py", working / name):
            if _is_module(shadow) and not shadow.resolve().is_relative_to(home):
                what = f"{shadow} hides ours from Python programs and notebooks started here"
                found.append(Finding("warning", "packages", what, "Rename it."))
    ok = f"spectral, tasks and orchestrator come from {home}"
    return found or [Finding("ok", "packages", ok)]


def _is_module(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.glob("*.py")))


def token(environ: Mapping[str, str], home: Path) -> list[Finding]:
    """Whether Ray will find its token, and where; the token itself is never shown.

    Args:
        environ: environment variables.
        home: the user's home folder.
    """
    mode = environ.get("RAY_AUTH_MODE", "")
    if mode.lower() not in ("", "token", "disabled"):
        fix = "export RAY_AUTH_MODE=token"
        return [Finding("problem", "Ray token", f"RAY_AUTH_MODE is {mode!r}", fix)]
    source, text, found = _token(environ, home)
    make = (
        "Copy ~/.ray/auth_token of the cluster's head to this machine, or make the first one with "
        "`ray get-auth-token --generate` and copy it to every node."
    )
    if not text:
        what = f"there is none: no RAY_AUTH_TOKEN, and {source} is missing or empty"
        if mode.lower() == "token":
            found.append(
                Finding("problem", "Ray token", f"RAY_AUTH_MODE is token, but {what}", make)
            )
        elif environ.get("RAY_AUTH_TOKEN_PATH"):
            found.append(Finding("problem", "Ray token", what, make))
        else:
            made = "" if mode else "; Ray makes one when a sweep starts it here"
            found.append(Finding("ok", "Ray token", what + made))
        return found
    shown = hashlib.sha256(text.encode()).hexdigest()[:8]
    what = f"the one with SHA-256 {shown}..., from {source}"
    if mode.lower() == "disabled":
        what = f"{what}, is not used: RAY_AUTH_MODE is {mode}"
        found.append(Finding("warning", "Ray token", what, "export RAY_AUTH_MODE=token"))
    else:
        found.append(Finding("ok", "Ray token", what))
    return found


def _token(environ: Mapping[str, str], home: Path) -> tuple[str, str, list[Finding]]:
    """Where Ray looks for its token, in Ray's order, and what stands there."""
    if given := environ.get("RAY_AUTH_TOKEN", "").strip():
        return "RAY_AUTH_TOKEN", given, []
    path = Path(environ.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    try:
        text = path.read_text(errors="replace").strip()
        # Ray makes it readable by all; a closed home folder makes up for that.
        reached = all(folder.stat().st_mode & 0o011 for folder in path.resolve().parents)
        exposed = reached and path.stat().st_mode & 0o044
    except OSError:
        return str(path), "", []
    if not exposed:
        return str(path), text, []
    what = f"{path} can be read by other users of this machine: they can run code on the cluster"
    return str(path), text, [Finding("warning", "Ray token", what, f"chmod 600 {path}")]


def determinism(shell: Mapping[str, str], processor: str) -> list[Finding]:
    """Whether results repeat bit for bit on this machine.

    Args:
        shell: the variables that this process was started with.
        processor: content of /proc/cpuinfo.
    """
    [(name, value)] = DETERMINISM.items()
    if "flags" in processor and "avx2" not in processor:
        what = f"this processor has no AVX2, which {name}={value} counts on: results may not repeat"
        fix = "Compare only what ran on machines with AVX2; means over seeds are not concerned."
        return [Finding("warning", "repeatability", what, fix)]
    if shell.get(name, value) != value:
        what = f"{name} is {shell[name]!r} in this shell; `sweep` uses {value!r}, your programs not"
        return [Finding("warning", "repeatability", what, f"export {name}={value}")]
    return [Finding("ok", "repeatability", f"`sweep` sets {name}={value}")]


def this_shell() -> dict[str, str]:
    """The variables that this process was started with, before `sweep` changed them."""
    try:
        lines = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return dict(os.environ)
    pairs = (line.decode(errors="replace").partition("=") for line in lines if line)
    return {name: value for name, _, value in pairs}


def data(sweep: Sweep | None) -> Iterator[Finding]:
    """Where real data sets are looked for, how much room is there, and which are complete.

    Args:
        sweep: whose file may name the folder; None: as the environment says.
    """
    try:
        from orchestrator import catalogue
        from tasks import data
    except ImportError as error:
        what = f"our tasks cannot be imported: {error}"
        yield Finding("problem", "data", what, f"(Re)install {error.name or 'what it names'}.")
        return
    data.use(None if sweep is None else sweep.data)
    folder, named = data.folder().absolute(), ""
    data.use(folder)  # in full, for what is said of single sets
    if sweep is not None and sweep.data is not None:
        named = "`data:` in the file"
    elif os.environ.get(data.ENVIRONMENT):
        named = f"${data.ENVIRONMENT}"
    level, state, readable = "ok", "can be read", True
    try:
        os.scandir(folder).close()
    except FileNotFoundError:
        level, state = "warning" if named else "ok", "is not there"
    except OSError as error:
        level, state, readable = "warning", f"cannot be read: {error.strerror}", False
    place = next(each for each in (folder, *folder.parents) if os.path.exists(each))  # noqa: PTH110
    room = disk(str(place))["free_bytes"] / 1e9
    what = f"{folder} ({named or 'the default'}) {state}; {room:.1f} GB are free"
    sets = list[catalogue.Found]()
    if catalogue.reader_missing():
        what += "; what opens data sets is not installed: pip install 'spectral-sweeps[data]'"
    elif readable:
        sets = catalogue.data_sets()
        cached = " (in the cache of `datasets`)"
        here = [f"{each.name}{'' if each.place else cached}" for each in sets if each.here]
        what += f"; complete: {', '.join(here) or 'no data set'}"
    fix = f"Correct its name or its permissions: `data:` in a sweep file, or ${data.ENVIRONMENT}."
    yield Finding(level, "data", what, fix if level == "warning" else "")
    for each in sets:
        if not each.here and Path(each.place).is_dir():  # a part of it is
            for problem in each.problem.split("\n"):
                yield Finding("warning", "data", problem)


def needed(sweep: Sweep) -> list[Finding]:
    """What this machine lacks for the trials of a sweep that are still to run."""
    from orchestrator import preflight
    from orchestrator.errors import StoreError
    from orchestrator.nodes import Problems

    try:
        launch = preflight.to_launch(sweep, None, (), retry_failed=False)
    except StoreError as error:
        return [Finding("problem", "storage", str(error))]
    absent = Problems()
    for text, where in preflight.lacking(sweep, launch):
        absent.add(where, text)
    if absent or not preflight.asking(sweep, launch):
        return [Finding("problem", "data", str(problem)) for problem in absent]
    return [Finding("ok", "data", "nothing is missing for the trials still to run")]


def tracking(uri: str) -> list[Finding]:
    """Whether an MLflow server lets us in; takes seconds, at most about 15."""
    from orchestrator import tracking
    from orchestrator.errors import TrackingError
    from orchestrator.mlflow_access import public

    try:
        tracking.check(uri)
    except TrackingError as error:
        return [Finding("problem", "tracking", str(error))]
    return [Finding("ok", "tracking", f"MLflow at {public(uri)} answers")]
