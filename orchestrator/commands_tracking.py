"""The commands about MLflow: `sweep track | ui | server`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.errors import UserError
from orchestrator.options import Target, out


def track(
    target: Target,
    uri: Annotated[str | None, typer.Option(help="An MLflow server (default: the file's).")] = None,
) -> None:
    """Write trends and plots again and bring MLflow up to date; twice is the same as once."""
    from orchestrator import loading, summaries
    from orchestrator.tracking import project

    store = loading.open_store(target)
    refused = None
    try:
        summaries.ensure(store)
    except UserError as error:  # trials that cannot be averaged can be shown one by one
        refused = error
    named, experiment = loading.tracking(store)
    projection = project(store, uri=uri or named, experiment=experiment)
    out.print(str(projection), markup=False)
    if refused is not None:
        raise refused


def ui(
    target: Target,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; the next free one if taken.")] = 5000,
) -> None:
    """Open the MLflow UI on the results and keep both up to date until Ctrl-C."""
    from orchestrator import loading
    from orchestrator.tracking import serve

    serve(loading.open_store(target), host=host, port=port)


def server(
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="postgresql://USER:PASSWORD@HOST/DATABASE (the password better in PGPASSWORD or "
            "~/.pgpass), or sqlite:///PATH. Default: SQLite in the folder.",
        ),
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where the server keeps its files, the password among them.")
    ] = Path("mlflow-server"),
    artifacts: Annotated[
        str | None,
        typer.Option(metavar="PATH|URI", help="For files of runs (default: in the folder)."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Interface to listen on; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 5000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A further name by which it may be called; may be repeated."
        ),
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Ask nobody for a user name and a password.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Server processes.")] = 2,
) -> None:
    """Start an MLflow server for sweeps on other machines; print what to put in the sweep file."""
    from orchestrator.mlflow_service import Service, run

    run(
        Service(folder, store, artifacts, host, port, tuple(allow_host or ()), not no_auth, workers)
    )


COMMANDS: tuple[Callable[..., Any], ...] = (track, ui, server)
