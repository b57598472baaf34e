"""What a node of a cluster is like, and what of it keeps a sweep from running there.

Only the standard library: this is sent to nodes where nothing but Python and Ray is installed yet.
`inspect` never raises and never waits long. What it cannot find out is None; `errors` says why.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.node_gpus import cuda, gpus
from orchestrator.node_storage import disk, storage

MOST_NODES = 5
"""Nodes named in one line; of the others it says how many."""

_PACKAGES = ("spectral", "tasks", "orchestrator")


@dataclass(frozen=True)
class Question:
    """What the driver asks every node.

    Attributes:
        requirements: (distribution, the driver's version) of what trials need.
        folder: the results folder; None leaves storage out.
        marker: name of a file in that folder which the driver has just written; see
            `orchestrator.node_storage.marked`.
        token: that file's content.
        torch: where there are GPUs, also count those that torch sees; takes seconds.
        task: reference of a task whose data are looked for; empty leaves them out. Takes seconds,
            and an answer only where torch and pydantic are installed already.
        configurations: parameters as JSON that are asked about.
        data: the folder of data sets; None: as the environment there says.
    """

    requirements: tuple[tuple[str, str], ...] = ()
    folder: str | None = None
    marker: str | None = None
    token: str = ""
    torch: bool = False
    task: str = ""
    configurations: tuple[str, ...] = ()
    data: str | None = None


def inspect(question: Question) -> dict[str, Any]:
    """Facts about this node, as JSON can hold them; never raises.

    Returns:
        host, ip, pid, python, versions {distribution: version or None}, clock (seconds since 1970),
        storage (see `node_storage.storage`; None without a folder), gpus (see `node_gpus.gpus`),
        gpu_error (what nvidia-smi said, if it failed), cuda (see `node_gpus.cuda`; None unless
        asked), packages {name: file}, machine (see `_machine`), data (what is missing -> index of
        the first configuration that needs it; None if unasked or unknown), errors (a line for each
        part that could not be found out).
    """
    errors: list[str] = []

    def known(part: str, find: Callable[[], Any], otherwise: Any = None) -> Any:
        try:
            return find()
        except Exception as error:  # facts about a broken node are what this is for
            errors.append(f"{part}: {error or type(error).__name__}")
            return otherwise

    def looked_at() -> dict[str, Any] | None:
        folder = question.folder
        return None if folder is None else storage(folder, question.marker, question.token)

    names = [name for name, _ in question.requirements]
    found, gpu_error = known("gpus", gpus, ([], None))
    return {
        "host": known("host", socket.gethostname, "unknown"),
        "ip": known("ip", _ip),
        "pid": os.getpid(),
        "python": platform.python_version(),
        "versions": {name: known(name, functools.partial(_version, name)) for name in names},
        "storage": known("storage", looked_at),
        "gpus": found,
        "gpu_error": gpu_error,
        "cuda": known("cuda", cuda) if question.torch and found else None,
        "packages": {name: known(name, functools.partial(_file, name)) for name in _PACKAGES},
        "machine": known("machine", _machine, {}),
        "data": known("data", functools.partial(_lacking, question)) if question.task else None,
        "errors": errors,
        "clock": time.time(),
    }


def missing(facts: dict[str, Any]) -> list[str]:
    """Distributions that are not installed there."""
    return [name for name, version in facts["versions"].items() if version is None]


def where(facts: dict[str, Any]) -> str:
    """A node as a message names it: ``node-b (10.0.0.7)``."""
    return f"{facts['host']} ({facts['ip']})" if facts.get("ip") else str(facts["host"])


def places(nodes: Iterable[dict[str, Any]]) -> str:
    """Nodes as a message lists them, each once; many are cut short."""
    names = list(dict.fromkeys(map(where, nodes)))
    more = f" and {len(names) - MOST_NODES} more" if len(names) > MOST_NODES else ""
    return ", ".join(names[:MOST_NODES]) + more


def answering(nodes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes that have answered; of the others nothing is known but that they are silent."""
    return [facts for facts in nodes if "silent" not in facts]


def differences(nodes: Sequence[dict[str, Any]], driver: dict[str, Any]) -> list[str]:
    """What must be the same on every node and is not: Ray, Python, torch, then the others by name.

    A distribution that a node does not have is no difference; see `missing`. Of Python the minor
    version counts, of the others all but the build: `2.13.0+cpu` agrees with `2.13.0+cu128`.

    Args:
        nodes: facts of the nodes; those that are silent (see `Connection.ask`) are left out.
        driver: facts of this machine, from the same question.

    Returns:
        A line per distribution, for example ``torch: 2.13.0 here, 2.12.1 on node-b (10.0.0.7)``.
    """
    names = [name for name in driver["versions"] if name not in ("ray", "torch")]
    order = ["ray", "Python", "torch", *sorted(names, key=str.lower)]
    lines = []
    for name in order:
        here = _comparable(driver, name)
        if here is None:
            continue
        others: dict[str, list[dict[str, Any]]] = {}
        for facts in answering(nodes):
            there = _comparable(facts, name)
            if there is not None and there != here:
                others.setdefault(there, []).append(facts)
        if others:
            found = "; ".join(f"{other} on {places(others[other])}" for other in sorted(others))
            lines.append(f"{name}: {here} here, {found}")
    return lines


def storage_faults(
    nodes: Sequence[dict[str, Any]], folder: str | os.PathLike[str]
) -> list[tuple[str, str]]:
    """Why the results folder cannot be used from every node.

    Args:
        nodes: facts of the nodes, from a question about `folder` with a marker in it; those that
            are silent are left out.
        folder: the results folder.

    Returns:
        (what is wrong, the fix) of each kind of problem; none when all read and write the same.
    """
    elsewhere, silent = [], []
    refused: dict[str, list[dict[str, Any]]] = {}
    for facts in answering(nodes):
        seen = facts["storage"] or {"error": "nothing is known of it"}
        if seen.get("hangs"):
            silent.append(facts)
        elif seen.get("marker") is False:
            elsewhere.append(facts)
        elif not seen.get("writable"):
            refused.setdefault(seen["error"] or "it does not exist", []).append(facts)
    name = "with `storage:` in the file or --set storage=/shared/results."
    faults = []
    if elsewhere:
        what = f"what this machine writes there is not seen on {places(elsewhere)}."
        fix = "Mount a shared file system at the same path on all nodes and here, and choose a "
        fix += f"folder on it {name}"
        faults.append((f"{folder} is not the same folder on every node: {what}", fix))
    for error in sorted(refused):
        what = f"{folder} cannot be written on {places(refused[error])}: {error}."
        fix = f"Let the user that Ray runs as write there, or choose another folder {name}"
        faults.append((what, fix))
    if silent:
        what = f"{folder} does not answer on {places(silent)}: its network file system hangs."
        faults.append((what, "Mount it again there, or take the node out of the cluster."))
    return faults


def storage_problems(nodes: Sequence[dict[str, Any]], folder: str | os.PathLike[str]) -> list[str]:
    """The `storage_faults`, each with its fix in one line."""
    return [f"{what} {fix}" for what, fix in storage_faults(nodes, folder)]


def _comparable(facts: dict[str, Any], name: str) -> str | None:
    if name == "Python":
        return ".".join(facts["python"].split(".")[:2])
    version = facts["versions"].get(name)
    return None if version is None else str(version).partition("+")[0]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _file(package: str) -> str | None:
    """Where a package would be imported from; it is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return None
    # A folder without __init__.py has no file of its own.
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _lacking(question: Question) -> dict[str, int]:
    from orchestrator import preflight  # here: it loads torch, which a node may not have
    from tasks import data, resolve

    data.use(question.data)
    task, found = resolve(question.task), dict[str, int]()
    for index, params in enumerate(question.configurations):
        for text in preflight.said(task, json.loads(params)):
            found.setdefault(text, index)
    return found


def _ip() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address for documentation: a route is chosen,
        return str(probe.getsockname()[0])  # nothing is sent


def _machine() -> dict[str, Any]:
    """open_files, memory_bytes, shm_bytes, and temporary: {folder, free_bytes, total_bytes}."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # less in a container; "max" is no number
        memory = min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    shared = None
    with contextlib.suppress(OSError):
        shared = disk("/dev/shm")["total_bytes"]
    temporary = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    return {
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "memory_bytes": memory,
        "shm_bytes": shared,
        "temporary": {"folder": temporary, **disk(temporary)},
    }
