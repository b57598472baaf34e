"""Runs a command that must not outlive whoever asked for it, however that one ends.

    python -I mlflow_guard.py COMMAND...        in a session of its own, a pipe as standard input

The asker holds the other end of the pipe and never writes to it. When it closes, the asker is gone,
a SIGKILL included, and the whole process group of the command is ended. Standard library only: it
is run by its path, isolated from the working directory and from packages.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

PATIENCE_SECONDS = 5.0


def main(command: Sequence[str]) -> int:
    """Run the command; its exit code, or 128 plus the number of the signal that ended it."""
    # A signal to the group is meant for the command: with that, this ends too. A function, because
    # the command would inherit that a signal is ignored.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    alone = threading.Event()
    threading.Thread(target=_watch, args=(child, alone), daemon=True).start()
    code = child.wait()
    if alone.is_set():
        os.killpg(0, signal.SIGKILL)  # workers whose parent went first, and this process
    return code if code >= 0 else 128 - code


def _watch(child: subprocess.Popen[bytes], alone: threading.Event) -> None:
    while os.read(0, 1):
        pass
    alone.set()
    os.killpg(0, signal.SIGTERM)
    try:
        child.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
