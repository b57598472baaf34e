"""A real `sweep server` for tests, started as a user starts it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SWEEP = str(Path(sys.executable).with_name("sweep"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Started:
    """A server, what it printed on stdout, which is no terminal, and where it listens."""

    process: subprocess.Popen[str]
    printed: list[str]
    uri: str
    user: str
    password: str

    @property
    def credentials(self) -> dict[str, str]:
        """Variables as its user is told to set them."""
        return {
            "MLFLOW_TRACKING_USERNAME": self.user,
            "MLFLOW_TRACKING_PASSWORD": self.password,
        }


def clean_environment() -> dict[str, str]:
    """Ours without MLflow's variables: a tracker of this process may have set some."""
    return {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}


HELD = Path(__file__).with_name("held_task.py")


@contextlib.contextmanager
def running_sweep(folder: Path, file: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`sweep run toy.yaml` in the background, at a walking pace until `folder/go` is created.

    Args:
        folder: a new one, in which `held_task.py` lies and the sweep is run.
        file: the sweep file.
        variables: of its environment, beyond ours.
    """
    folder.mkdir()
    for path in (HELD, HELD.with_name("faulty_task.py")):
        shutil.copy(path, folder / path.name)
    (folder / "toy.yaml").write_text(file)
    with (folder / "run.err").open("w") as err:
        process = subprocess.Popen(
            [SWEEP, "run", "toy.yaml", "--in-process"],
            cwd=folder,
            env={**clean_environment(), "GO": str(folder / "go"), **variables},
            stdout=subprocess.DEVNULL,
            stderr=err,
            text=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


@contextlib.contextmanager
def sweep_server(folder: Path, *options: str, auth: bool = True) -> Iterator[Started]:
    """`sweep server --folder FOLDER ...`; inside the block it answers."""
    port = free_port()
    command = [SWEEP, "server", "--folder", str(folder), "--port", str(port), "--workers", "1"]
    with (folder.parent / f"{folder.name}.err").open("w+") as err:
        process = subprocess.Popen(
            [*command, *options, *([] if auth else ["--no-auth"])],
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
            env=clean_environment(),
        )
        try:
            assert process.stdout is not None
            printed = [process.stdout.readline() for _ in range(2 if auth else 1)]
            err.seek(0)
            assert printed[0].startswith("tracking: "), err.read()
            kept = (folder / "credentials").read_text() if auth else ""
            user, password = re.findall(r"^export \w+=(.*)$", kept, re.M) or ("", "")
            yield Started(process, printed, f"http://127.0.0.1:{port}", user, password)
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


def descendants(pid: int) -> set[int]:
    """Every process below this one, by the kernel's own account."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found |= {child} | descendants(child)
    return found
