"""The MLflow UI on a results folder, as a child process that never outlives its command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from orchestrator.errors import TrackingError
from orchestrator.mlflow_access import LockedError, embedded_uri
from orchestrator.projection import store_id
from orchestrator.store import Store

START_SECONDS = 90.0
"""How long the server may take to answer: its imports alone take several seconds."""
TRIED_PORTS = 50


def serve(store: Store, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Bring the results folder's MLflow database up to date and keep its UI open until Ctrl-C.

    While a sweep is running the driver keeps the database up to date; this only shows it. SIGTERM
    ends it like Ctrl-C. Prints the URL on stdout.

    Args:
        store: what to show.
        host: interface to listen on. Other machines are admitted only if it is not a loopback.
        port: or the next free one.

    Raises:
        TrackingError: there is no free port, or the server does not start; says why.
    """
    from orchestrator.tracking import project

    try:
        print(project(store), file=sys.stderr)
    except LockedError:
        print("a running sweep keeps MLflow up to date", file=sys.stderr)
        _wait_for_database(store)
    chosen = free_port(host, port)
    with contextlib.suppress(KeyboardInterrupt), launched(store, host, chosen) as process:
        base = f"http://{_shown(host)}:{chosen}"
        runs, curves = links(base, store.sweeps()[-1].name, store_id(store))
        print(f"runs:   {runs}\ncurves: {curves}", flush=True)
        if os.environ.get("SSH_CONNECTION"):
            here = f"{os.environ.get('USER', 'you')}@{os.environ['SSH_CONNECTION'].split()[2]}"
            print("This is a remote machine. On your own, first run:")
            print(f"  ssh -N -L {chosen}:{_shown(host)}:{chosen} {here}", flush=True)
        print("Ctrl-C ends it.", file=sys.stderr, flush=True)
        code = process.wait()
        raise TrackingError(f"the MLflow server ended by itself with exit code {code}")


@contextlib.contextmanager
def launched(store: Store, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """An MLflow server on a results folder's database; answers inside, ended with the block.

    Raises:
        TrackingError: it does not start; shows the end of what it said.
    """
    with tempfile.TemporaryFile() as log, _terminable():
        process = _spawn(store, host, port, log)
        try:
            _wait_until_healthy(process, f"http://{_shown(host)}:{port}/health", log)
            yield process
        finally:
            _end(process)


def _spawn(store: Store, host: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--backend-store-uri", embedded_uri(store.root)]
    command += ["--default-artifact-root", (store.root.resolve() / "mlflow-artifacts").as_uri()]
    command += ["--host", host, "--port", str(port)]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # a process more, with growing memory
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if not _is_loopback(host):
        # Otherwise the server answers to localhost and private addresses only.
        environment.setdefault("MLFLOW_SERVER_ALLOWED_HOSTS", _own_names(port))
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=store.root,
        start_new_session=True,  # Ctrl-C reaches us alone; we end the whole group
    )


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _own_names(port: int) -> str:
    names = {"localhost", "127.0.0.1", socket.gethostname(), socket.getfqdn()}
    with contextlib.suppress(OSError):
        names.update(socket.gethostbyname_ex(socket.gethostname())[2])
    return ",".join(sorted(names | {f"{name}:{port}" for name in names}))


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: IO[bytes]) -> None:
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


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that the server does not outlive us.

    And SIGINT too: a shell that starts us in the background has it ignored, and that is inherited.
    """

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, interrupt) for number in numbers}
    except ValueError:  # not the main thread: whoever runs that one ends us
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def free_port(host: str, port: int) -> int:
    """This port, or the next free one.

    Raises:
        TrackingError: none of the next fifty is free, or the host is not this machine.
    """
    reason = ""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for candidate in range(port, min(port + TRIED_PORTS, 65536)):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, candidate))
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                return candidate
    raise TrackingError(
        f"cannot listen on {host} at port {port} or the next {TRIED_PORTS - 1}: {reason}. "
        "Give another --port or --host."
    )


def links(base: str, experiment: str, view: str) -> tuple[str, str]:
    """Addresses in the UI: the runs nested below their sweep, and the curves of all of them.

    Both are the address of the UI itself if the experiment does not exist yet.
    """
    query = urllib.parse.urlencode({"experiment_name": experiment})
    url = f"{base}/api/2.0/mlflow/experiments/get-by-name?{query}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["experiment"]["experiment_id"]
        page = f"{base}/#/experiments/{found}/runs?workflowType=machine_learning&viewStateShareKey="
        return f"{page}{view}-runs", f"{page}{view}-curves&compareRunsMode=CHART"
    return base, base


def _wait_for_database(store: Store) -> None:
    """A second process that created the tables at the same time would break both."""
    path: Path = store.root / "mlflow.db"
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(sqlite3.Error):
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
                if reader.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                    return
        time.sleep(0.2)
    raise TrackingError(
        f"{path} was not created by the running sweep. If that sweep tracks to a server, open its "
        "UI instead."
    )
