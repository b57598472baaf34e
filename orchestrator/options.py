"""What the commands of `sweep` share: consoles, and the arguments that several of them take."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False)

File = Annotated[str, typer.Argument(metavar="FILE", help="A sweep file.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="A sweep file or a results folder.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a field, e.g. base.steps=100."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def print_json(value: Any) -> None:
    """For programs: on stdout, without markup or wrapping."""
    print(json.dumps(value, indent=1, default=str))
