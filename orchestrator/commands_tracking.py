"""The commands about MLflow: `sweep track | ui | server`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from orchestrator.options import Target, out


def track(
    target: Target,
    uri: Annotated[str | None, typer.Option(help="An MLflow server (default: the file's).")] = None,
) -> None:
    """Write trends and plots again and bring MLflow up to date; twice is the same as once."""
    from orchestrator import loading, summaries
    from orchestrator.tracking import project

    store = loading.open_store(target)
    summaries.ensure(store)
    named, experiment = loading.tracking(store)
    projection = project(store, uri=uri or named, experiment=experiment)
    out.print(str(projection), markup=False)


def ui(
    target: Target,
    host: Annotated[str, typer.Option(help="Interface to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; the next free one if taken.")] = 5000,
) -> None:
    """Open the MLflow UI on the results and keep it open until Ctrl-C."""
    from orchestrator import loading
    from orchestrator.tracking import serve

    serve(loading.open_store(target), host=host, port=port)


COMMANDS: tuple[Callable[..., Any], ...] = (track, ui)
