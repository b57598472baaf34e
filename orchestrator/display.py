"""What a person sees: the live display of a run, and tables. Messages and progress on stderr."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
from rich.console import Console
from rich.progress import (
    BarColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.table import Table

from orchestrator.execution import Ended, Event, Lost, Started
from orchestrator.planning import Plan
from orchestrator.sweep import Sweep
from orchestrator.trial import Progress


class LiveDisplay:
    """A bar per sweep with trials running, done and failed, rate and ETA; plain lines elsewhere.

    Args:
        sweep: for its name and the labels of its trials.
        console: where to draw; plain lines if it is no terminal.
    """

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep = sweep
        self._console = console
        self._total = self._skipped = 0
        self._seen = False  # a trial has started
        self._counts: Counter[str] = Counter()
        self._fractions: dict[str, float] = {}  # of running trials
        self._bar = Bar(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
            transient=False,
        )
        self._task = self._bar.add_task(sweep.name, total=1.0, counts="starting")
        self._began = time.monotonic()

    def __enter__(self) -> LiveDisplay:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, total: int, done: int, failed: int) -> None:
        """See `driver.Observer`."""
        self._total, self._skipped = total, done + failed
        self._began = time.monotonic()
        parts = [f"{total} trial" if total == 1 else f"{total} trials"]
        parts += [f"{done} already done"] if done else []
        parts += [f"{failed} failed before (--retry failed runs them again)"] if failed else []
        self.message(f"{self._sweep.name}: {', '.join(parts)}")
        self._bar.reset(self._task, total=max(total - self._skipped, 1e-9))
        self._update()

    def event(self, event: Event) -> None:
        """See `driver.Observer`."""
        match event:
            case Started(assignment=assignment):
                self._seen = True
                self._fractions.update(dict.fromkeys(assignment.trial_ids, 0.0))
            case Progress(trial=trial, step=step):
                if trial.trial_id in self._fractions:
                    self._fractions[trial.trial_id] = step / max(1, trial.evaluations[-1])
            case Ended(assignment=assignment, result=result):
                for trial_id in assignment.trial_ids:
                    self._fractions.pop(trial_id, None)
                for row in result.rows:
                    self._counts[row["status"]] += 1
                self._line(assignment.trials, result.rows)
            case Lost(assignment=assignment):
                for trial_id in assignment.trial_ids:
                    self._fractions.pop(trial_id, None)
        self._update()

    def message(self, text: str) -> None:
        """See `driver.Observer`."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line(self, trials: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> None:
        if self._console.is_terminal and all(row["status"] == "completed" for row in rows):
            return  # the bar shows it
        for trial, row in zip(trials, rows, strict=False):
            count = sum(self._counts.values()) + self._skipped
            label = trial.label(self._sweep.axes)
            seconds = f"{row['wall_seconds']:.1f} s"
            at = "" if row["status"] == "completed" else f" at step {row['last_step']}"
            why = ""
            if row["status"] == "failed":
                why = ": " + row["error"].strip().splitlines()[-1]
            self.message(f"[{count}/{self._total}] {label}: {row['status']}{at} in {seconds}{why}")

    def _update(self) -> None:
        finished = sum(self._counts.values())
        rate = finished / max(time.monotonic() - self._began, 1e-9) * 60
        begun = self._seen or self._skipped == self._total
        running = f"{len(self._fractions)} running" if begun else "starting workers"
        parts = [running, f"{finished + self._skipped} done"]
        parts += [f"[red]{self._counts['failed']} failed[/red]"] if self._counts["failed"] else []
        parts += [f"{self._counts['diverged']} diverged"] if self._counts["diverged"] else []
        parts += [f"{rate:.1f}/min"] if finished else []
        self._bar.update(
            self._task,
            completed=finished + sum(self._fractions.values()),
            counts=" · ".join(parts),
        )


def duration(seconds: float) -> str:
    """A duration for people: ``8.3 s``, ``2 min 5 s``, ``3 h 20 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"


def size(num_bytes: float) -> str:
    """A number of bytes for people: ``512 bytes``, ``1.5 kB``, ``2.5 GB``."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 999.5 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:.3g} {unit}"


def vectors_on_disk(plan: Plan) -> list[tuple[str, str]]:
    """What a plan says of singular vectors; nothing if none are written."""
    if plan.scratch_bytes is None or plan.kept_bytes is None or plan.kept_bytes_total is None:
        why = f" ({plan.model_failure})" if plan.model_failure else ""
        return [("singular vectors", f"of unknown size: the model cannot be built{why}")]
    rows = []
    if plan.scratch_bytes:
        at_once = size(plan.scratch_bytes * plan.workers)
        text = f"{size(plan.scratch_bytes)} per running trial, {at_once} at once"
        rows.append(("singular vectors, scratch", text))
    if plan.kept_bytes:
        text = f"{size(plan.kept_bytes)} per trial, {size(plan.kept_bytes_total)} in all"
        rows.append(("singular vectors, kept", text))
    return rows


def without_columns(title: str | None = None) -> Table:
    """A table as all of ours look, for the caller to fill."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=rich.box.SIMPLE_HEAD,
        pad_edge=False,
    )


def grid(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table of texts; the first column is a name, the others are numbers."""
    table = without_columns(title)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def facts(rows: Sequence[tuple[str, str]]) -> Table:
    """Two columns without lines: what, and how much."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, value)
    return table
