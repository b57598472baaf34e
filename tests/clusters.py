"""Real Ray clusters for tests: `ray start` with a token, ports and a folder of their own.

with cluster() as ray: ...           # the head; RAY_AUTH_MODE and the token are in ray.credentials
    ray.add_node(cpus=2)             # another node, a process of its own
    ray.kill(node)                   # as if its machine had died

Exactly what such a cluster has started is ended with it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

MARK = "SWEEP_TEST_CLUSTER"
START_SECONDS = 120.0
"""Generous: a busy machine of two cores takes 20 s to start a node."""


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def wait_until(
    condition: Callable[[], bool], what: str | Callable[[], str], seconds: float = START_SECONDS
) -> None:
    """Poll until a condition holds; an assertion with `what` if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.1)


@dataclass
class Node:
    """A node that was started by `ray start --block`."""

    process: subprocess.Popen[bytes]  # the leader of its session
    mark: str
    log: Path


@dataclass
class Cluster:
    """A running cluster.

    Attributes:
        python: the interpreter of its nodes.
        folder: for Ray's files; short, because Ray's socket paths are limited.
        token: that it wants.
        dashboard: address of its dashboard.
        client: address for Ray Client.
        gcs: address for drivers on this machine.
        nodes: the head first.
    """

    python: str
    folder: Path
    token: str
    dashboard: str
    client: str
    gcs: str
    environment: Mapping[str, str]
    nodes: list[Node] = field(default_factory=list)

    @property
    def credentials(self) -> dict[str, str]:
        """Variables as a user of the cluster is told to set them."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def add_node(self, *, cpus: int = 1, gpus: int = 0, **options: str) -> Node:
        """Start another node and wait until it is alive; `options` go to `ray start`."""
        before = len(self.alive())
        agent, metrics = free_ports(2)
        words = [f"--address={self.gcs}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
        words += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        node = self._start(words + [f"--{k.replace('_', '-')}={v}" for k, v in options.items()])
        wait_until(lambda: len(self.alive()) > before, lambda: node.log.read_text())
        return node

    def kill(self, node: Node) -> None:
        """End everything of a node at once, without a word to the others."""
        _end(node, signal.SIGKILL)
        self.nodes.remove(node)

    def alive(self) -> list[dict[str, Any]]:
        """The nodes that the head believes alive, as its dashboard describes them."""
        found = self.get("/nodes?view=summary")
        summary = found["data"]["summary"] if found else []
        return [each for each in summary if each.get("raylet", {}).get("state") == "ALIVE"]

    def get(self, path: str) -> Any:
        """What the dashboard answers, or None while it does not."""
        request = urllib.request.Request(
            self.dashboard + path, headers={"Authorization": f"Bearer {self.token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return json.load(response)
        except (OSError, ValueError):
            return None

    def _start(self, words: Sequence[str]) -> Node:
        mark = secrets.token_hex(8)
        log = self.folder / f"start-{len(self.nodes)}-{mark}.log"
        # Ray's own Python first: jobs are started by the name `python`.
        path = f"{Path(self.python).parent}{os.pathsep}{os.environ['PATH']}"
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW"))}
        with log.open("wb") as file:
            process = subprocess.Popen(
                [self.python, "-m", "ray.scripts.scripts", "start", "--block", *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                env={
                    **ours,
                    **self.credentials,
                    **self.environment,
                    "PATH": path,
                    "RAY_USAGE_STATS_ENABLED": "0",
                    MARK: mark,
                },
            )
        node = Node(process, mark, log)
        self.nodes.append(node)
        return node


@contextlib.contextmanager
def cluster(
    *, python: str = sys.executable, cpus: int = 2, environment: Mapping[str, str] | None = None
) -> Iterator[Cluster]:
    """A head with a token, alive and ready for jobs inside the block.

    Args:
        python: the interpreter that Ray is started with.
        cpus: of the head.
        environment: further variables of its processes, and so of drivers and workers.
    """
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    gcs, dashboard, client, agent, metrics = free_ports(5)
    found = Cluster(
        python=python,
        folder=folder,
        token=secrets.token_hex(32),
        dashboard=f"http://127.0.0.1:{dashboard}",
        client=f"ray://127.0.0.1:{client}",
        gcs=f"127.0.0.1:{gcs}",
        environment=environment or {},
    )
    try:
        head = found._start(
            [
                "--head",
                "--node-ip-address=127.0.0.1",
                f"--port={gcs}",
                "--dashboard-host=127.0.0.1",
                f"--dashboard-port={dashboard}",
                f"--ray-client-server-port={client}",
                f"--dashboard-agent-listen-port={agent}",
                f"--metrics-export-port={metrics}",
                f"--temp-dir={folder}",
                f"--num-cpus={cpus}",
                "--num-gpus=0",
                f"--object-store-memory={100 * 1024**2}",
            ]
        )
        wait_until(lambda: bool(found.alive()), lambda: head.log.read_text())
        yield found
    finally:
        for node in reversed(found.nodes):
            _end(node, signal.SIGTERM)
        shutil.rmtree(folder, ignore_errors=True)


def _end(node: Node, number: signal.Signals) -> None:
    """Signal a node's processes, wait for them, and kill those that stay."""
    for pid in _processes(node):
        if number == signal.SIGKILL or pid == node.process.pid:
            _signal(pid, number)
    with contextlib.suppress(subprocess.TimeoutExpired):
        node.process.wait(timeout=20)
    while left := _processes(node):
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.05)
    node.process.wait()


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes(node: Node) -> list[int]:
    """The living processes of a node: those of its session, and those that carry its mark.

    Some of Ray's write their title over their environment, and drivers of jobs have sessions of
    their own; none does both.
    """
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
                marked = f"{MARK}={node.mark}\0".encode() in (folder / "environ").read_bytes()
                if state != "Z" and (marked or int(session) == node.process.pid):
                    found.append(int(folder.name))
    return found


def links(folder: Path, *names: str) -> str:
    """A virtual environment with links to what some distributions require here, and no more.

    Args:
        folder: a new one.
        names: for example ``ray[default]``.

    Returns:
        Its interpreter. Never install into it what would replace a package: it would be deleted
        where the links point.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = folder / "lib" / version / "site-packages"
    for name in _closure(names):
        distribution = importlib.metadata.distribution(name)
        site = Path(str(distribution.locate_file("")))
        for entry in {file.parts[0] for file in distribution.files or ()}:
            link = target / entry
            if entry not in ("..", "__pycache__") and not link.is_symlink():
                link.symlink_to(site / entry)
    return str(folder / "bin" / "python")


def _closure(names: Sequence[str]) -> set[str]:
    """These distributions and all that they require here, without their extras unless named."""
    pending = [Requirement(name) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        wanted = pending.pop()
        key = (wanted.name, frozenset(wanted.extras))
        if key in seen:
            continue
        seen.add(key)
        for text in importlib.metadata.requires(wanted.name) or ():
            each = Requirement(text)
            extras = ("", *wanted.extras)
            if each.marker is None or any(each.marker.evaluate({"extra": e}) for e in extras):
                pending.append(each)
    return {name for name, _ in seen}
