"""The command `sweep report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from orchestrator.options import Target, err, out


def report(
    target: Target,
    folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="Where to (default: report in the results)."),
    ] = None,
    formats: Annotated[
        str, typer.Option(metavar="LIST", help="Files of each figure beside the page.")
    ] = "pdf,svg,csv",
) -> None:
    """Write an HTML page with figures and tables, and each figure as PDF, SVG and CSV."""
    from orchestrator import loading
    from orchestrator.report import formats_of, write
    from orchestrator.results import Results

    kinds = formats_of(formats)
    store = loading.open_store(target)
    results = Results.open(store.root)
    columns = (TextColumn("figures"), BarColumn(bar_width=30), MofNCompleteColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("figures", total=None)
        page = write(
            results,
            folder,
            kinds,
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    out.print(f"report: {page}", markup=False)


COMMANDS: tuple[Callable[..., Any], ...] = (report,)
