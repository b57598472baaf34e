"""From what a user writes on the command line to sweeps, stores and tables."""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from orchestrator.display import facts, grid, without_columns
from orchestrator.errors import Problem, SweepError, TrackingError, UserError
from orchestrator.store import Store
from orchestrator.sweep import Sweep, load

if TYPE_CHECKING:
    from orchestrator.driver import Projector
    from orchestrator.results import Results


def load_sweep(file: str, overrides: Sequence[str]) -> Sweep:
    """Load a sweep file for a command.

    Raises:
        SweepError: with every problem of the file and of the overrides.
    """
    sweep = load(file, overrides)
    if sweep.tracking.enabled and sweep.tracking.uri is not None:
        from orchestrator.mlflow_access import refuse_folders

        try:
            refuse_folders(sweep.tracking.uri)
        except TrackingError as error:
            raise SweepError(file, [Problem(str(error), "$.tracking.uri")]) from error
    return sweep


def public(uri: str) -> str:
    """A tracking URI without the password that may be in it."""
    from orchestrator import mlflow_access

    return mlflow_access.public(uri)


def shown(path: Path) -> str:
    """A path as a user would type it: relative to the working directory if it lies inside."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def open_store(target: str) -> Store:
    """The store of a sweep file or of a results folder.

    Raises:
        SweepError: the file has problems.
        StoreError: there are no results yet.
    """
    path = Path(target)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return Store.open(load(target).root)
    return Store.open(path)


def projector(sweep: Sweep) -> Callable[[Store], Projector] | None:
    """What makes the tracker's projector, after a check that the tracker can be reached.

    Raises:
        UserError: the server does not answer or refuses; nothing was launched.
    """
    if not sweep.tracking.enabled:
        return None
    from orchestrator import tracking

    if sweep.tracking.uri is not None:
        try:
            tracking.check(sweep.tracking.uri)
        except TrackingError as error:
            raise UserError(str(error)) from error
    return lambda store: tracking.Tracker(store, sweep, sweep.tracking.uri)


def tracking(store: Store) -> tuple[str | None, str | None]:
    """The tracking URI and the experiment that the newest sweep file of a store names, or None."""
    from orchestrator import document

    records = store.sweeps()
    return document.tracking(records[-1].text, records[-1].overrides) if records else (None, None)


def trial_history(store: Store, prefix: str) -> list[dict[str, Any]]:
    """Every commit row of the trial whose id begins with `prefix`.

    Raises:
        UserError: no trial does, or more than one.
    """
    commits = store.commits()
    known = sorted(set(commits["trial_id"].to_pylist()))
    matching = [trial_id for trial_id in known if trial_id.startswith(prefix)]
    if len(matching) != 1:
        near = difflib.get_close_matches(prefix, known, n=3, cutoff=0.3) or known[:3]
        what = f"{len(matching)} trials begin" if matching else "no trial with a commit begins"
        raise UserError(f"{what} with {prefix!r}; for example there are: {', '.join(near)}")
    return [row for row in commits.to_pylist() if row["trial_id"] == matching[0]]


def print_query(table: pa.Table, format_: str | None, console: Console) -> None:
    """Print a query's result: a table for people, or a format for programs.

    Raises:
        SweepError: an unknown format.
    """
    from orchestrator.query import FORMATS, write_table

    if format_ is not None:
        if format_ not in FORMATS:
            raise SweepError("--format", [f"expected {', '.join(FORMATS)}; got {format_!r}"])
        sys.stdout.flush()
        write_table(table, format_, sys.stdout.buffer)
        return
    shown = without_columns()
    rows = [[_cell(value) for value in row.values()] for row in table.slice(0, 1000).to_pylist()]
    for index, name in enumerate(table.column_names):
        longest = max((len(row[index]) for row in rows), default=0)
        shown.add_column(name.replace("[", "\\["), no_wrap=True, min_width=min(12, longest))
    for row in rows:
        shown.add_row(*row)
    # A terminal cuts what it has no room for; into a pipe or a file nothing is cut.
    (console if console.is_terminal else Console(width=10_000)).print(shown)
    if table.num_rows > 1000:
        console.print(f"the first 1000 of {table.num_rows} rows; --format csv prints all")


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return (text if len(text) <= 80 else text[:77] + "...").replace("[", "\\[")


def final_tables(results: Results) -> Iterator[Table]:
    """The table that a run ends with, from the committed rows; none without results."""
    from orchestrator import summaries

    found = summaries.final_table(results)
    if found is not None:
        title, header, rows = found
        yield grid(title, header, [[cell.replace("[", "\\[") for cell in row] for row in rows])


def list_tasks() -> Table:
    """Registered tasks and those of installed packages, with what each is; without markup."""
    from orchestrator import catalogue

    rows = [(name, f"{about}\n{where}") for name, about, where in catalogue.listing()]
    return facts(rows)


def describe_task(name: str) -> Iterator[Table | str]:
    """What a task is, its own parameters and those that all tasks share; without markup.

    Raises:
        UserError: there is no such task.
    """
    import tasks
    from orchestrator import catalogue

    try:
        task_class = tasks.resolve(name)
    except tasks.TaskError as error:
        raise UserError(str(error)) from error
    yield catalogue.heading(name, task_class)
    own, shared = catalogue.parameters(task_class)
    for title, rows in (("its own parameters", own), ("shared by all tasks", shared)):
        table = without_columns(title)
        table.add_column("parameter", no_wrap=True)
        table.add_column("default", overflow="fold", max_width=20)
        table.add_column("meaning")
        for row in rows:
            table.add_row(row.name, row.default, row.meaning)
        if rows:
            yield table
    yield "* may differ between trials that are trained together"
