"""How docs/reproduction.md counts: pure functions of numbers, without any results folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SHARE = 0.9
"""From this share of the cases on a finding is reproduced; up to 1 less this share it is not."""
CLOSE = 1.25
"""A pruned model is close to the full one if its loss is at most so many times the full one's."""
NEAR = 0.1
"""Two steps coincide if they are at most this share of all the steps apart."""


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __str__(self) -> str:
        lines = ["| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.rows)])


@dataclass(frozen=True)
class Count:
    """In how many of the cases something holds."""

    held: int
    total: int

    @classmethod
    def of(cls, cases: Iterable[bool]) -> Count:
        found = [bool(case) for case in cases]
        return cls(sum(found), len(found))

    def __str__(self) -> str:
        return f"{self.held} of {self.total}"

    @property
    def verdict(self) -> str:
        """`yes`, `partly` or `no`, by `SHARE`; `-` without any case."""
        if not self.total:
            return "-"
        share = self.held / self.total
        # 1 - 0.9 is a little less than 0.1 in binary: one case in ten is a `no` all the same.
        return "yes" if share >= SHARE else "no" if share <= round(1 - SHARE, 9) else "partly"


def both(first: Count, second: Count) -> str:
    """The verdict of two conditions: yes if both are, no if the first is not, else partly."""
    if "-" in (first.verdict, second.verdict):
        return "-"
    if first.verdict == second.verdict == "yes":
        return "yes"
    return "no" if first.verdict == "no" else "partly"


def reached(series: Iterable[tuple[int, float]], level: float) -> float:
    """The first step from which on the values stay at or above a level; infinity if none."""
    since = math.inf
    for step, value in series:
        if not value >= level:
            since = math.inf
        elif since == math.inf:
            since = step
    return since


def order(series: Sequence[tuple[int, np.ndarray]], level: float) -> str:
    """Whether the mean of the leading ten settles earlier or later than that of the last ten.

    Returns:
        `earlier`, `together` (at one snapshot), `later` or `neither`.
    """
    leading = reached(((step, mean(values[:10])) for step, values in series), level)
    last = reached(((step, mean(values[-10:])) for step, values in series), level)
    if leading == last:
        return "neither" if leading == math.inf else "together"
    return "earlier" if leading < last else "later"


def even_steps(steps: Iterable[int]) -> list[int]:
    """The evenly spaced steps among snapshots that are dense at first.

    Multiples of the largest gap between neighbours, up to the first that is missing.
    """
    found = sorted(set(steps))
    if len(found) < 2:
        return found
    gap = max(after - before for before, after in itertools.pairwise(found))
    known, even = set(found), [0]
    while even[-1] + gap in known:
        even.append(even[-1] + gap)
    return even


def largest_drop(
    series: Mapping[int, float], steps: Sequence[int], since: float
) -> tuple[int, float] | None:
    """Where a series falls most from one of the steps to the next, not before `since`.

    Returns:
        (the step at which the drop ends, the change), or None with fewer than two steps. Of equal
        drops the first.
    """
    used = [step for step in steps if step >= since and step in series]
    changes = [
        (after, series[after] - series[before]) for before, after in itertools.pairwise(used)
    ]
    return min(changes, key=lambda change: change[1]) if changes else None


def coincide(steps: Sequence[int], other: int, num_steps: int) -> bool:
    """Whether the median of the steps is within `NEAR` of all steps of another step."""
    return bool(steps) and abs(float(np.median(steps)) - other) <= NEAR * num_steps


def last_that_trains(losses: Mapping[float, float], chance: float) -> float:
    """The largest level up to which every level trains.

    A level trains if it keeps at least half of what the first one gains on chance: its loss is not
    nearer to chance than to the first level's.
    """
    levels = sorted(losses)
    first = losses[levels[0]]
    found = levels[0]
    for level in levels[1:]:
        if not trains(losses[level], first, chance):
            break
        found = level
    return found


def trains(loss: float, first: float, chance: float) -> bool:
    """Whether a loss is at most half way from another one to chance."""
    return loss <= (first + chance) / 2


def lower(own: Mapping[tuple[Any, int], float], first: Any, other: Any) -> Count:
    """In how many seeds the value at one level is below that at the first; seeds with both."""
    seeds = {seed for level, seed in own if level == first}
    pairs = [(own[first, s], own[other, s]) for s in sorted(seeds) if (other, s) in own]
    return Count.of(value < start for start, value in pairs)


def monotone(own: Mapping[tuple[Any, int], float], levels: Sequence[Any]) -> Count:
    """In how many seeds each level's value is below that of the level before it.

    Levels without a value (collapsed or diverged) are passed over; a seed needs two.
    """
    held = []
    for seed in sorted({seed for _, seed in own}):
        values = [own[level, seed] for level in levels if (level, seed) in own]
        if len(values) > 1:
            held.append(all(b < a for a, b in itertools.pairwise(values)))
    return Count.of(held)


def total(counts: Iterable[Count]) -> Count:
    """Several counts as one."""
    found = list(counts)
    return Count(sum(count.held for count in found), sum(count.total for count in found))


def mean(values: np.ndarray) -> float:
    """The mean of the finite values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def median_range(values: Iterable[float | None]) -> str:
    """Median (smallest to largest)."""
    known = sorted(v for v in values if v is not None and math.isfinite(v))
    if not known:
        return "-"
    return f"{float(np.median(known)):.3g} ({known[0]:.3g} to {known[-1]:.3g})"


def short(value: Any) -> str:
    """A value of a table; `never` for none."""
    if value is None:
        return "never"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
