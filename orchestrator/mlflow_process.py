"""An MLflow server as a child process that never outlives its command, and the names it answers to.

What `sweep ui` and `sweep server` share. No MLflow in here: the server is a process of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from orchestrator import mlflow_guard
from orchestrator.errors import TrackingError
from orchestrator.signals import terminable

START_SECONDS = 90.0
"""How long the server may take to answer: its imports alone take several seconds."""
TRIED_PORTS = 50
NO_PASSWORD = "No password: whoever reaches this port can change and delete everything."


@contextlib.contextmanager
def launched(
    options: Sequence[str],
    host: str,
    port: int,
    *,
    folder: Path,
    log: IO[bytes],
    names: Iterable[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """`mlflow server`; answers inside the block, ended with it. SIGTERM unwinds like Ctrl-C.

    Args:
        options: of `mlflow server`, beyond host and port.
        host: interface to listen on.
        port: a free one.
        folder: its working directory.
        log: a file that takes everything it says.
        names: host names and addresses by which it may be called; none: MLflow's own default,
            this machine and private addresses.
        environment: variables for the server, beyond ours.

    Raises:
        TrackingError: it does not start; shows the end of what it said.
    """
    command = [sys.executable, "-m", "mlflow", "server", *options]
    command += ["--host", host, "--port", str(port)]
    variables = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a process more, with growing memory
        "MLFLOW_DISABLE_TELEMETRY": "true",
        **(environment or {}),
    }
    for name, ours in (
        ("MLFLOW_SERVER_ALLOWED_HOSTS", host_patterns(names)),
        ("MLFLOW_SERVER_CORS_ALLOWED_ORIGINS", origin_patterns(names)),
    ):
        if ours:  # else MLflow's default holds
            variables[name] = ",".join(filter(None, [os.environ.get(name), *ours]))
    with terminable():
        process = subprocess.Popen(
            [sys.executable, "-I", mlflow_guard.__file__, *command],
            stdin=subprocess.PIPE,  # its closing tells the guard that we are gone
            stdout=log,
            stderr=subprocess.STDOUT,
            env=variables,
            cwd=folder,
            start_new_session=True,  # Ctrl-C reaches us alone; we end the whole group
        )
        try:
            wait_until_healthy(process, f"http://{shown(host)}:{port}/health", log)
            yield process
        finally:
            _end(process)


def wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        TrackingError: it ended, or does not answer in time; shows the end of what it said.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    log.seek(0)
    said = log.read()[-2000:].decode(errors="replace").strip()
    raise TrackingError(f"the MLflow server does not start. It said:\n{said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: the server is a child of the command that starts it."""
    for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            break
    with contextlib.suppress(ProcessLookupError):  # a worker whose parent went first
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdin is not None:
        process.stdin.close()


# --- where it listens -------------------------------------------------------------------------


def is_loopback(host: str) -> bool:
    """Whether nobody on another machine can reach this interface."""
    return host in ("localhost", "::1") or host.startswith("127.")


def shown(host: str) -> str:
    """The host as it stands in a URL that this machine can open."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def own_names() -> list[str]:
    """Names and addresses by which other machines may call this one, its full name first."""
    name, full = socket.gethostname(), socket.getfqdn()
    if full.startswith("localhost") or full.endswith(".arpa"):
        full = name  # no name service knows this machine
    found = [full, name]
    with contextlib.suppress(OSError):
        found += socket.gethostbyname_ex(name)[2]
    with contextlib.suppress(OSError), socket.socket(type=socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: the kernel only chooses our own address
        found.append(probe.getsockname()[0])
    return list(dict.fromkeys([*found, "localhost", "127.0.0.1", "::1"]))


def host_patterns(names: Iterable[str]) -> list[str]:
    """What MLflow is to accept as Host header: each name with any port, for tunnels and proxies."""
    hosts = [f"[{name}]" if ":" in name else name for name in names]
    # MLflow matches with fnmatch whatever holds a star: a bracket is escaped there.
    return [p for host in hosts for p in (host, f"{host.replace('[', '[[]', 1)}:*")]


def origin_patterns(names: Iterable[str]) -> list[str]:
    """What MLflow is to accept as Origin: without them its own UI fails under these names."""
    return [f"{scheme}://{host}" for host in host_patterns(names) for scheme in ("http", "https")]


def port_problem(host: str, port: int) -> str | None:
    """Why nobody can listen there; None if one can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return None


def free_port(host: str, port: int) -> int:
    """This port, or the next free one.

    Raises:
        TrackingError: none of the next fifty is free, or the host is not this machine.
    """
    reason: str | None = ""
    for candidate in range(port, min(port + TRIED_PORTS, 65536)):
        reason = port_problem(host, candidate)
        if reason is None:
            return candidate
    raise TrackingError(
        f"cannot listen on {host} at port {port} or the next {TRIED_PORTS - 1}: {reason}. "
        "Give another --port or --host."
    )
