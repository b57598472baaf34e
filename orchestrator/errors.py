"""Every exception this package raises on purpose.

    SpectralSweepsError            root; `exit_code` is what the command line ends with
    ├── UserError          2       the user's mistake, nothing was launched
    │   ├── SweepError             a sweep file, its overrides or a selection: every problem at once
    │   │   └── RecordError        likewise of what a Recorder was given
    │   ├── IncomparableTrialsError  trials whose rows cannot be compared
    │   ├── StoreBusyError         another driver is at work on this store
    │   └── QueryError             SQL that does not parse, or that reaches outside the store
    ├── StoreError         3       the storage refuses: missing, full, not writable, wrong format
    │   └── DamageError    1       a file is not what was committed: cut short, bit-flipped, gone
    ├── ClusterError       3       Ray cannot start or went away
    ├── SourceChangedError 3       the task's code was edited while the sweep ran
    └── TrackingError      3       the tracking server refuses (only where tracking was the request)

A trial that fails is no exception of this tree: it is a row of the trials table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class SpectralSweepsError(Exception):
    """Root of the tree; its text is written for the user and printed without a traceback."""

    exit_code = 1


class UserError(SpectralSweepsError):
    """Something the user can change; nothing was launched and nothing was written."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what we got and accept, and where it stands.

    Attributes:
        message: one sentence, for example ``expected a number, got '1e-3x'``.
        path: where in the document, for example ``$.grid.lr[1]``; empty if it has no place there.
        line: 1-based line of the file, or None.
        column: 1-based column of the file, or None.
    """

    message: str
    path: str = ""
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        place = "" if self.line is None else f"line {self.line}, column {self.column or 1}"
        where = ", ".join(part for part in (place, self.path) if part)
        return f"{self.message}  @ {where}" if where else self.message


class SweepError(UserError):
    """All problems of one sweep file (or of what was said about it), in file order.

    Attributes:
        source: the file, or the command-line option, that holds the problems.
        problems: at least one.
    """

    def __init__(self, source: str, problems: Sequence[Problem | str]) -> None:
        assert problems, "an error without a problem says nothing"
        self.source = source
        self.problems = tuple(p if isinstance(p, Problem) else Problem(p) for p in problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count}\n{lines}")

    def __reduce__(self) -> tuple[type[SweepError], tuple[str, tuple[Problem, ...]]]:
        return type(self), (self.source, self.problems)


class RecordError(SweepError):
    """What a Recorder was given cannot be recorded, or is recorded already."""


class IncomparableTrialsError(UserError, ValueError):
    """Trials that must not be averaged: unequal steps, a seed twice, or a row twice."""


class StoreBusyError(UserError):
    """A second driver was started on a store that a live driver holds."""


class QueryError(UserError):
    """SQL that DuckDB refuses, or that names a table which is not there."""


class StoreError(SpectralSweepsError):
    """The storage refuses; what was committed before is intact and the sweep can be resumed."""

    exit_code = 3


class DamageError(StoreError):
    """A file differs from what was committed; its rows are refused, never guessed."""

    exit_code = 1


class ClusterError(SpectralSweepsError):
    """Ray cannot be started or joined, or went away in mid-sweep."""

    exit_code = 3


class SourceChangedError(SpectralSweepsError):
    """A worker met other task code than the driver started with; no row may be attributed to it."""

    exit_code = 3


class TrackingError(SpectralSweepsError):
    """The tracking server refuses. Results are never lost by it: the store holds them."""

    exit_code = 3
