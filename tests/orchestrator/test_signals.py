"""Signals that unwind: also one that arrives where Python discards exceptions."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading

import pytest

from orchestrator.signals import terminable

PATIENCE = 30.0


def wait() -> None:
    """Until somebody interrupts; fails if nobody does."""
    threading.Event().wait(PATIENCE)
    pytest.fail("nobody interrupted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_is_an_interrupt(number: signal.Signals) -> None:
    def run() -> None:
        with terminable():
            os.kill(os.getpid(), number)
            wait()

    with pytest.raises(KeyboardInterrupt):
        run()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_that_arrives_in_a_destructor_is_not_lost(number: signal.Signals) -> None:
    """Python discards what is raised there: without a second delivery nobody would ever stop."""
    arrived = []

    class Unlucky:
        def __del__(self) -> None:
            arrived.append(number)
            os.kill(os.getpid(), number)
            for _ in range(1000):  # the handler runs between two of these
                pass

    def run() -> None:
        with terminable():
            unlucky = [Unlucky()]
            unlucky.clear()
            gc.collect()
            wait()

    with pytest.raises(KeyboardInterrupt):
        run()

    assert arrived == [number]


def test_everything_is_as_it_was_afterwards() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    hook = sys.unraisablehook

    with terminable():
        assert signal.getsignal(signal.SIGTERM) is not handlers[0]

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert sys.unraisablehook is hook


def test_other_discarded_exceptions_are_reported_as_before() -> None:
    seen: list[object] = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda discarded: seen.append(discarded.exc_type)

    class Broken:
        def __del__(self) -> None:
            raise ValueError("in a destructor")

    try:
        with terminable():
            broken = [Broken()]
            broken.clear()
            gc.collect()
    finally:
        sys.unraisablehook = before

    assert seen == [ValueError]
