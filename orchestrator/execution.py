"""What the driver asks of whatever runs its groups, and the simplest answer: this very process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from orchestrator.trial import Assignment, Context, GroupResult, Progress, run_group


@dataclass(frozen=True)
class Started:
    """A worker began an assignment."""

    assignment: Assignment


@dataclass(frozen=True)
class Ended:
    """An attempt returned: rows to commit, or stopped at a checkpoint."""

    assignment: Assignment
    result: GroupResult


@dataclass(frozen=True)
class Lost:
    """The worker died under an assignment; what it published is not committed.

    Attributes:
        node: its whole node went; that is seldom the trial's fault.
        begun: False if it was only queued at that worker, and has lost nothing.
    """

    assignment: Assignment
    reason: str
    node: bool = False
    begun: bool = True


Event = Started | Progress | Ended | Lost


class Executor(Protocol):
    """Runs assignments; used by one driver, from one thread."""

    def room(self) -> int:
        """How many more assignments it wants now."""

    def submit(self, assignment: Assignment) -> None:
        """Take one assignment."""

    def poll(
        self, handle: Callable[[Event], None], timeout: float, *, waiting: bool = False
    ) -> None:
        """Wait up to `timeout` seconds and pass on what happened since the last call.

        Args:
            handle: receives what happened.
            timeout: in seconds.
            waiting: whether there are assignments for which there was no room.

        Raises:
            StoreError: a worker met a storage that refuses.
            ClusterError: no worker can be had any more.
        """

    def stop(self) -> None:
        """Ask every running group to checkpoint and end, and those queued to end at once.

        Called by a signal handler: it only takes note, the next `poll` does it.
        """

    def shutdown(self) -> None:
        """End all workers at once."""


class InProcess:
    """One group at a time in the driver's own process and thread; a debugger works in task code."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._queue: deque[Assignment] = deque()
        self._stopping = False

    def room(self) -> int:
        """One: the next assignment begins when the one before has ended."""
        return 0 if self._queue or self._stopping else 1

    def submit(self, assignment: Assignment) -> None:
        """Keep it for the next `poll`."""
        self._queue.append(assignment)

    def poll(
        self, handle: Callable[[Event], None], timeout: float, *, waiting: bool = False
    ) -> None:
        """Run what was submitted, here and now."""
        while self._queue:
            assignment = self._queue.popleft()
            if self._stopping:
                handle(Ended(assignment, GroupResult(())))
                continue
            handle(Started(assignment))
            result = run_group(
                assignment, self._context, progress=handle, stop=lambda: self._stopping
            )
            handle(Ended(assignment, result))

    def stop(self) -> None:
        """Called from a signal handler while `poll` is at work."""
        self._stopping = True

    def shutdown(self) -> None:
        """Nothing outlives a call here."""
