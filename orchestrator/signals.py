"""SIGTERM that unwinds like Ctrl-C, also where a library has put a handler of its own in place."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

AGAIN_SECONDS = 0.1
"""After this long an interrupt that Python discarded is delivered again."""


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that nothing we started outlives us.

    And SIGINT too: a shell that starts us in the background has it ignored, and that is inherited.
    What is raised while Python runs a callback of its own (of a lock of its imports, a destructor)
    is discarded with a message; then the signal is sent again.
    """
    received = signal.SIGTERM

    def interrupt(number: int, frame: object) -> None:
        nonlocal received
        received = signal.Signals(number)
        raise KeyboardInterrupt

    def again(discarded: sys.UnraisableHookArgs) -> None:
        if issubclass(discarded.exc_type, KeyboardInterrupt):
            timer = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), received))
            timer.daemon = True
            timer.start()
        else:
            report(discarded)

    report = sys.unraisablehook
    numbers = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {number: signal.signal(number, interrupt) for number in numbers}
    except ValueError:  # not the main thread: whoever runs that one ends us
        yield
        return
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put the handler of SIGTERM back afterwards: `ray.init` replaces it by one that exits."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, TypeError):  # not the main thread; not from Python
            signal.signal(signal.SIGTERM, before)
