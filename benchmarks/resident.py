"""The memory of a running process, watched from outside it."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class Resident:
    """Kilobytes (of 1,024 bytes) that a process had in memory, and when it was asked."""

    times: list[float]  # seconds since 1970
    kilobytes: list[int]

    def slope(self, ended: Sequence[float], first: int, last: int) -> float:
        """Kilobytes per finished trial, by least squares, while their number was in a range.

        Args:
            ended: when each trial ended, seconds since 1970.
            first: finished trials at the beginning of the range.
            last: finished trials at its end, which is not in it: what a driver does when all are
                finished (summaries, plots) is no cost of a trial.
        """
        order = sorted(ended)
        counts = [bisect.bisect_right(order, at) for at in self.times]
        pairs = [
            (count, size)
            for count, size in zip(counts, self.kilobytes, strict=True)
            if first <= count < last
        ]
        mean = sum(count for count, _ in pairs) / len(pairs)
        return sum((count - mean) * size for count, size in pairs) / sum(
            (count - mean) ** 2 for count, _ in pairs
        )


def watch(pid: int, ended: Callable[[], object]) -> Resident:
    """Ask the kernel about a process until `ended` answers something else than None."""
    status = Path(f"/proc/{pid}/status")
    times, kilobytes = [], []
    while ended() is None:
        lines = status.read_text().splitlines()
        for line in lines:
            if line.startswith("VmRSS:"):  # a zombie has none
                times.append(time.time())
                kilobytes.append(int(line.split()[1]))
        time.sleep(EVERY_SECONDS)
    return Resident(times, kilobytes)
