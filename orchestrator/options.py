"""What the commands of `sweep` share: consoles, and the arguments that several of them take."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from orchestrator.errors import SweepError

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False)

File = Annotated[str, typer.Argument(metavar="FILE", help="A sweep file.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="A sweep file or a results folder.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. base.steps=100."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

Retry = Annotated[str | None, typer.Option(metavar="failed", help="Run failed trials again.")]
Rerun = Annotated[
    str | None,
    typer.Option(
        metavar="changed|TRIAL",
        help="Run trials again: those whose task's code has changed, or those named.",
    ),
]
Keep = Annotated[
    bool, typer.Option("--keep", help="Keep results although the task's code has changed.")
]


def check_retry(retry: str | None) -> None:
    """Refuse a value of --retry that means nothing.

    Raises:
        SweepError: it is not `failed`.
    """
    if retry not in (None, "failed"):
        raise SweepError("--retry", [f"expected 'failed', got {retry!r}"])


def print_json(value: Any) -> None:
    """For programs: on stdout, without markup or wrapping."""
    print(json.dumps(value, indent=1, default=str))
