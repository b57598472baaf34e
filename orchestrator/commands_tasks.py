"""The commands about tasks and their data: `sweep tasks | data | new-task`."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.options import Json, out, print_json


def tasks(
    name: Annotated[
        str | None, typer.Argument(help="One task in detail: a name, or path/to/file.py:Class.")
    ] = None,
) -> None:
    """List the tasks, or what there is to know of one: its parameters, defaults, data sets."""
    from orchestrator import loading

    if name is None:
        out.print(loading.list_tasks(), markup=False)
        return
    for part in loading.describe_task(name):
        out.print(part, markup=False, soft_wrap=False)


def data(
    name: Annotated[str | None, typer.Argument(help="One data set.")] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Look here, as with `data:` in a sweep file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the real data sets: which are here, where they are looked for, how to download them."""
    from orchestrator import catalogue
    from orchestrator.display import size
    from tasks.data import ENVIRONMENT, use
    from tasks.data import folder as chosen

    use(None if folder is None else folder.absolute())
    found = catalogue.data_sets(name)
    if as_json:
        print_json([dataclasses.asdict(each) for each in found])
        return
    out.print(f"looked in {chosen()} and in the cache of `datasets`", markup=False)
    out.print(f"(another folder: --folder here, `data:` in a sweep file, or ${ENVIRONMENT})")
    if catalogue.reader_missing():
        text = "the package `datasets` that opens them is not installed: "
        out.print(f"{text}pip install 'spectral-sweeps[data]'", markup=False)
    for each in found:
        if each.here:
            where = each.place or "the cache of `datasets`"
            out.print(f"{each.name:<12} here     {size(each.num_bytes):<8} {where}", markup=False)
        else:
            how = each.command or each.problem.replace("\n", "; ")
            about = f"{each.name:<12} missing  {size(each.num_bytes):<8} {how}"
            out.print(about, markup=False)


def new_task(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a-z, 0-9 and _, such as my_task.")],
    folder: Annotated[
        Path, typer.Option(metavar="DIR", help="For the files; made if it is not there.")
    ] = Path(),
) -> None:
    """Write a task that works, its sweep file and its test: a start for one of your own."""
    from orchestrator import loading, new_task

    files = new_task.write(name, folder)
    out.print(f"wrote: {' '.join(map(str, files))}", markup=False)
    _, sweep, test = (shlex.quote(str(path)) for path in files)
    task = loading.shown(files[0].absolute())
    for label, command in {
        "run": f"sweep run {sweep} --in-process",
        "check": f"pytest {test}",
        "tell": f"sweep tasks {task}:{new_task.class_name(name)}",
    }.items():
        out.print(f"{label + ':':<6} {command}", markup=False)


COMMANDS: tuple[Callable[..., Any], ...] = (tasks, data, new_task)
