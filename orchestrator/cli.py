"""The `sweep` command. Results on stdout, messages and progress on stderr.

Exit codes: 0 every trial has a result (diverged included) · 1 finished with failed trials, or
`verify` found damage · 2 the user's mistake, nothing launched · 3 stopped midway by storage or
cluster, resumable · 130 Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from orchestrator import commands_cluster, commands_report, commands_tasks, commands_tracking
from orchestrator.environment import DETERMINISM
from orchestrator.errors import SpectralSweepsError, SweepError, UserError
from orchestrator.options import (
    File,
    Json,
    Keep,
    Rerun,
    Retry,
    Set,
    Target,
    check_retry,
    err,
    out,
    print_json,
)

if TYPE_CHECKING:
    from orchestrator.driver import Options
    from orchestrator.results import Results
    from orchestrator.sweep import Sweep

# Before anything imports torch: --in-process must give the numbers that a worker gives.
os.environ.update(DETERMINISM)

MOST_FAILURES = 20
"""Failed trials described at the end of a run; `sweep status` names all of them."""

app = typer.Typer(
    name="sweep",
    help="Run sweeps of deep-learning trials and query the spectra of their weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> NoReturn:
    """Entry point of the `sweep` command; ends the process with the exit code."""
    try:
        code = app(standalone_mode=False)
    except SpectralSweepsError as error:
        # Plain text, no markup: a message may hold brackets.
        err.print(f"error: {error}", markup=False, soft_wrap=True)
        code = error.exit_code
    except typer.Exit as request:
        code = request.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if (usage := _usage_error(error)) is None:
            raise
        err.print(f"error: {usage}", markup=False, soft_wrap=True)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _usage_error(error: Exception) -> str | None:
    """The text of a command-line mistake (typer's own click exceptions), else None."""
    show = getattr(error, "format_message", None)
    if show is None:
        return None
    context = getattr(error, "ctx", None)
    hint = f"\nSee: {context.command_path} --help" if context is not None else ""
    return f"{show()}{hint}"


@app.command()
def run(
    file: File,
    set_: Set = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="TRIAL", help="A trial id, or weight_decay=1.0,seed=0."),
    ] = None,
    retry: Retry = None,
    rerun: Rerun = None,
    keep: Keep = False,
    in_process: Annotated[
        bool,
        typer.Option("--in-process", help="No Ray: one trial after another, debugger works."),
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Trials at once (default: what there is room for).")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Join a running Ray cluster: auto, ray://HOST:10001 or HOST:6379.",
        ),
    ] = None,
) -> None:
    """Run every trial that has no result yet; running again resumes."""
    from orchestrator import loading
    from orchestrator.driver import Options

    check_retry(retry)
    if address is not None and in_process:
        raise SweepError("--address", ["it contradicts --in-process; give one of them"])
    sweep = loading.load_sweep(file, set_ or ())
    options = Options(
        only=sweep.select(only) if only is not None else None,
        retry_failed=retry is not None,
        keep=keep,
        rerun=sweep.select(rerun) if rerun not in (None, "changed") else (),
        rerun_changed=rerun == "changed",
        in_process=in_process,
        workers=workers,
        address=address,
    )
    alone = ["sweep", "run", file, *(x for s in set_ or () for x in ("--set", s))]
    resume = _resume_command()

    def drive() -> int:
        return run_loaded(sweep, options, resume=resume, alone=alone)

    if address is None or address.startswith("ray://"):
        raise typer.Exit(drive())

    def gone() -> None:
        err.print(f"to resume: {resume}", markup=False, soft_wrap=True)
        text = "error: Ray has ended on this node of the cluster, and this driver with it. "
        text += "Everything committed is kept; start Ray, then run the same command again."
        err.print(text, markup=False, soft_wrap=True)

    from orchestrator import supervised

    raise typer.Exit(supervised.run(drive, gone))


def run_loaded(
    sweep: Sweep,
    options: Options,
    *,
    resume: str,
    alone: Sequence[str] = (),
) -> int:
    """Run a sweep and tell the user how it ended; `run` and the job of `submit` end with this.

    Args:
        sweep: a validated sweep.
        options: see `driver.Options`.
        resume: the command that continues it.
        alone: the words of a command that one can add --only to, to run a failed trial.

    Returns:
        The exit code.
    """
    from orchestrator import loading, signals
    from orchestrator.display import LiveDisplay
    from orchestrator.driver import run_sweep
    from orchestrator.schemas import RESULTS

    projector = loading.projector(sweep)
    try:
        # While trials run the driver has a handler of its own, which lets them checkpoint.
        with signals.terminable(), LiveDisplay(sweep, err) as display:
            outcome = run_sweep(sweep, options, observer=display, projector=projector)
    except KeyboardInterrupt:
        err.print(f"stopped. To resume: {resume}", markup=False, soft_wrap=True)
        return 130
    except SpectralSweepsError as error:
        if not isinstance(error, UserError):
            err.print(f"to resume: {resume}", markup=False, soft_wrap=True)
        raise
    if outcome.tracking:
        err.print(f"tracking: {outcome.tracking}", markup=False, soft_wrap=True)
    for trial, kind, last in outcome.failed[:MOST_FAILURES]:
        lines = [
            f"failed: {trial.label(sweep.axes)} ({trial.trial_id}): {last or kind}",
            f"  traceback: sweep show {loading.shown(sweep.root)} {trial.trial_id}",
        ]
        if alone:
            again = [*alone, "--only", trial.trial_id, "--retry", "failed", "--in-process"]
            lines.append(f"  again, alone: {shlex.join(again)}")
        err.print("\n".join(lines), markup=False, soft_wrap=True)
    if len(outcome.failed) > MOST_FAILURES:
        more = len(outcome.failed) - MOST_FAILURES
        err.print(f"... and {more} more: sweep status {loading.shown(sweep.root)}", markup=False)
    if not outcome.interrupted and set(outcome.statuses) & set(RESULTS):
        _finish(sweep)
    if outcome.interrupted:
        err.print(f"stopped. To resume: {resume}", markup=False, soft_wrap=True)
    return outcome.exit_code


def _finish(sweep: Sweep) -> None:
    """Print the findings, the folder and the command that opens the UI."""
    from orchestrator import loading
    from orchestrator.results import Results

    results = Results.open(sweep.root)
    for table in loading.final_tables(results):
        out.print(table)
    out.print(f"results: {sweep.root}", markup=False)
    out.print(f'query:   sweep query {sweep.root} "SELECT * FROM trials"', markup=False)
    uri = sweep.tracking.uri
    if uri is not None and uri.startswith("http"):
        out.print(f"watch:   {loading.public(uri)}", markup=False)
    else:
        out.print(f"watch:   sweep ui {sweep.root}", markup=False)


@app.command()
def plan(file: File, set_: Set = None, as_json: Json = False) -> None:
    """Show what a run would do: trials, how many are committed, the time it would take."""
    import tasks
    from orchestrator import loading, planning
    from orchestrator.display import duration, facts, vectors_on_disk

    sweep = loading.load_sweep(file, set_ or ())
    found = planning.plan(sweep, tasks.source_hash(sweep.task_class))
    if as_json:
        print_json(dataclasses.asdict(found))
        return
    estimate = (
        f"{duration(found.estimate_seconds)} ({found.estimate_basis})"
        if found.estimate_seconds is not None
        else f"unknown: {found.estimate_basis}"
    )
    rows = [
        ("sweep", found.name),
        ("task", found.task),
        ("configurations", str(found.configurations)),
        ("trials", str(found.trials)),
        ("  committed", str(found.committed)),
        ("  failed", str(found.failed)),
        ("  to run", f"{found.remaining}, {found.checkpointed} of them from a checkpoint"),
        ("no longer named by the file", str(found.unnamed)),
        ("made by other task code", str(found.changed)),
        ("at once", f"{found.workers} on {found.device}"),
        ("time", estimate),
        *([("data sets", found.data)] if found.data else []),
        ("results", found.root),
    ]
    out.print(facts([*rows, *vectors_on_disk(found)]))
    for text in found.missing:
        out.print(f"missing: {text}", markup=False)


@app.command()
def status(
    target: Target,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Of a submitted sweep: the dashboard of its cluster."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the trials by status and name those that failed; with --address, how the job is."""
    from orchestrator import loading, planning

    if address is not None:
        commands_cluster.job_status(target, address, as_json=as_json)
        return
    store = loading.open_store(target)
    counts, failed = planning.progress(store)
    running = store.running().num_rows
    if as_json:
        print_json({**counts, "begun": running, "failed_trials": failed})
        return
    for name, count in counts.items():
        out.print(f"{name:<10} {count}")
    out.print(f"{'begun':<10} {running}  (open trials with a checkpoint or partial rows)")
    for trial_id in failed:
        out.print(f"failed: {trial_id}  (sweep show {store.root} {trial_id})", markup=False)


@app.command()
def show(
    target: Target,
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="The beginning of a trial's id.")],
    as_json: Json = False,
) -> None:
    """Show one trial: parameters, attempts, errors with their traceback, shards."""
    from orchestrator import loading

    rows = loading.trial_history(loading.open_store(target), trial)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        error, shards = row.pop("error") or "", row.pop("shards") or ()
        row["params"] = ", ".join(f"{k}={v}" for k, v in json.loads(row["params"]).items())
        for name, value in row.items():
            if value not in (None, [], ""):
                out.print(f"{name:<13} {value}", markup=False)
        for shard in shards:
            out.print(f"{'shard':<13} {shard['path']}, {shard['rows']} rows", markup=False)
        if error:
            out.print(error, markup=False)
        out.print()


@app.command()
def query(
    target: Target,
    sql: Annotated[str, typer.Argument(metavar="SQL", help="One SELECT statement.")],
    format_: Annotated[
        str | None, typer.Option("--format", metavar="csv|json|parquet", help="For programs.")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Also trials that the newest file no longer names.")
    ] = False,
) -> None:
    """Ask the tables trials, scalars, spectra and trends in SQL (DuckDB, read-only)."""
    from orchestrator import loading

    results = _results(target, "all" if all_ else "newest")
    loading.print_query(results.sql(sql), format_, out)


@app.command()
def export(
    target: Target,
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
) -> None:
    """Write plain Parquet of the committed rows, with a data dictionary."""
    from orchestrator.export import export as write

    results = _results(target, "newest")
    left_out = write(results, folder)
    out.print(f"exported: {folder}", markup=False)
    if left_out:
        err.print(f"left out: {left_out}", markup=False, soft_wrap=True)


@app.command()
def verify(target: Target, as_json: Json = False) -> None:
    """Check every committed file against its checksum; exit 1 if there is damage."""
    from orchestrator import loading
    from orchestrator.verify import verify as check

    report = check(loading.open_store(target).root)
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        for line in report.damage:
            out.print(f"damage: {line}", markup=False)
        for line in report.information:
            out.print(line, markup=False)
        out.print("damaged" if report.damage else "intact")
    raise typer.Exit(1 if report.damage else 0)


@app.command()
def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from orchestrator.sweep import schema as make

    print_json(make())


def _results(target: str, scope: str) -> Results:
    from orchestrator import loading
    from orchestrator.results import Results

    return Results.open(loading.open_store(target).root, scope=scope)


def _resume_command() -> str:
    """The command that continues this one: without --rerun, which would begin it anew."""
    words = ["sweep"]
    arguments = iter(sys.argv[1:])
    for word in arguments:
        if word == "--rerun":
            next(arguments, None)
        elif not word.startswith("--rerun="):
            words.append(word)
    return shlex.join(words)


for command in (
    *commands_tasks.COMMANDS,
    *commands_tracking.COMMANDS,
    *commands_report.COMMANDS,
    *commands_cluster.COMMANDS,
):
    app.command()(command)

if __name__ == "__main__":
    main()
