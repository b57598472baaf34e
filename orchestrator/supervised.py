"""A driver on a node of the cluster, watched: Ray ends it without a word when that node's Ray ends.

Ray's own code leaves such a process at once, with exit code 1 and past every handler. So the driver
is a child, and its parent tells an end in order from one that was not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def run(drive: Callable[[], int], gone: Callable[[], None]) -> int:
    """Run the driver in a child process.

    Call it before threads are started and before Ray is imported.

    Args:
        drive: the driver; its exit code is returned. What it raises, it raises in the child only.
        gone: called here if the child ended without having come to an end.

    Returns:
        The exit code: the driver's, 3 if it was ended by Ray, 128 + n by signal n.
    """
    reading, writing = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _end_with(parent)
        try:
            return drive()
        finally:
            os.write(writing, b".")  # it has come to an end, whichever
    os.close(writing)
    _pass_on(child)
    ended = bool(os.read(reading, 1))  # empty: the pipe was closed by its death
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended:
        # The child has said all there is to say, and written what was still in its buffers.
        os._exit(code if code >= 0 else 128 - code)
    if code >= 0:
        gone()
        return 3
    return 128 - code


def _end_with(parent: int) -> None:
    """Be told to stop by the parent alone, and should it be killed."""
    os.setpgid(0, 0)  # a terminal's Ctrl-C would reach us twice: from it, and passed on
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(130)


def _pass_on(child: int) -> None:
    """Send on what asks us to stop, from a terminal or from another process."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: os.kill(child, received))
