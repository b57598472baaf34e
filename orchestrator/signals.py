"""SIGTERM that unwinds like Ctrl-C, also where a library has put a handler of its own in place."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM unwind like Ctrl-C, so that nothing we started outlives us.

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


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Put the handler of SIGTERM back afterwards: `ray.init` replaces it by one that exits."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError, TypeError):  # not the main thread; not from Python
            signal.signal(signal.SIGTERM, before)
