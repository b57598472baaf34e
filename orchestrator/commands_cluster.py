"""The commands about a cluster: `sweep submit | logs | cancel | doctor`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import ClusterError, Problem, SweepError, UserError
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
    from orchestrator.jobs import Job, Jobs
    from orchestrator.sweep import Sweep

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", help="The cluster's dashboard, http://HOST:8265 (default: RAY_ADDRESS)."
    ),
]

MOST_LINES = 3
"""Lines at the end of a job's log that `sweep status` shows."""


def submit(
    file: File,
    set_: Set = None,
    address: Address = None,
    retry: Retry = None,
    rerun: Rerun = None,
    keep: Keep = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Do not wait until trials are launched.")
    ] = False,
    no_credentials: Annotated[
        bool, typer.Option("--no-credentials", help="Keep MLflow's credentials on this machine.")
    ] = False,
) -> None:
    """Send a sweep to a cluster as one job; again: the live job, or the next, which resumes."""
    from orchestrator import loading, preflight
    from orchestrator.staging import sweep_words

    check_retry(retry)
    sweep = loading.load_sweep(file, set_ or ())
    preflight.refuse(sweep)
    if rerun not in (None, "changed"):
        sweep.select(rerun)
    _refuse_password(sweep)
    jobs = _jobs(address)
    options = ["--retry", retry] if retry else []
    options += ["--rerun", rerun] if rerun else []
    options += ["--keep"] if keep else []
    job, new = jobs.submit(
        sweep,
        arguments=["--address", jobs.address, *options],
        credentials=not no_credentials,
        message=_say,
    )
    if not new:
        without = f" without {shlex.join(options)}" if options else ""
        _say(f"job {job.id} is {job.state.lower()} with this file; it goes on{without}")
    else:
        _say(f"sent as job {job.id}")
        _announce_credentials(sweep, kept=no_credentials)
        if not no_wait:
            try:
                job = _until_launched(jobs, job)
            except KeyboardInterrupt:
                _say(f"the job goes on: sweep logs {job.id} --follow --address {jobs.address}")
                raise
    if not job.live and job.exit_code not in (0, 1):
        raise _ended_badly(job, jobs)
    words = sweep_words(file, set_ or ())
    for name, command in {
        "status": f"sweep status {job.id} --address {jobs.address}",
        "logs": f"sweep logs {job.id} --follow --address {jobs.address}",
        "cancel": f"sweep cancel {job.id} --address {jobs.address}",
        "again": shlex.join(["sweep", "submit", *words, "--address", jobs.address]),
        "query": f'sweep query {shlex.quote(str(sweep.root))} "SELECT * FROM trials"',
    }.items():
        out.print(f"{name + ':':<8} {command}", markup=False)
    if not job.live and job.exit_code == 1:
        raise typer.Exit(1)  # some trials have failed; the job has said which


def _refuse_password(sweep: Sweep) -> None:
    """A password in the URI would stand in the job's description, its logs and the results.

    Raises:
        SweepError: there is one.
    """
    from urllib.parse import urlsplit

    if sweep.tracking.uri and "@" in urlsplit(sweep.tracking.uri).netloc:
        text = (
            "a user name or password in the URI would be sent to Ray and kept with the results; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
        )
        raise SweepError(sweep.source, [Problem(text, "$.tracking.uri")])


def _announce_credentials(sweep: Sweep, *, kept: bool) -> None:
    from orchestrator.staging import credentials_of

    found = " and ".join(credentials_of(sweep))
    if found and kept:
        _say(f"{found} stay here: set them in the cluster's own environment")
    elif found:
        _say(
            f"{found} go along: whoever may see the job in Ray, or read its logs on the head, can "
            "read them (--no-credentials)"
        )


def _until_launched(jobs: Jobs, job: Job) -> Job:
    """Wait until trials run, nothing is left to run, or the job has ended; show what it says."""
    import re

    # Said by the driver when nothing is left that could be refused.
    launched = re.compile(rf"^{re.escape(job.sweep)}: [0-9]+ trials?\b", re.MULTILINE)
    held: list[str] = []  # from the error on, which is raised at the end rather than shown twice

    def show(line: str) -> None:
        if held or line.startswith("error: "):
            held.append(line)
        else:
            _say(f"  {line}")

    return jobs.wait(job, lambda _, log: launched.search(log) is not None, show)


def _ended_badly(job: Job, jobs: Jobs) -> Exception:
    """What a job that ended in an error makes of this command."""
    lines = jobs.log(job.id).splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    said = "\n".join(lines[starts[-1] :]).removeprefix("error: ") if starts else ""
    if job.exit_code == 2 and said:
        return UserError(said)
    how = f"exit code {job.exit_code}" if job.exit_code is not None else "no exit code"
    words = said or "\n".join(lines[-15:]) or job.message
    return ClusterError(f"job {job.id} has {job.state.lower()} with {how}:\n{words}")


def logs(
    target: Target,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")
    ] = False,
    job: Annotated[str | None, typer.Option(metavar="ID", help="Not the newest job.")] = None,
) -> None:
    """Print what the driver of a submitted sweep has printed."""
    jobs = _jobs(address)
    found = _find(jobs, job or target)
    if not follow:
        sys.stdout.write(jobs.log(found.id))
        return
    for piece in jobs.follow(found.id):
        sys.stdout.write(piece)
        sys.stdout.flush()


def cancel(target: Target, address: Address = None) -> None:
    """Stop a submitted sweep: running trials are checkpointed; a later submit resumes."""
    jobs = _jobs(address)
    job = _find(jobs, target)
    if not job.live:
        _say(f"job {job.id} has ended already ({job.state.lower()})")
        return
    jobs.stop(job.id)
    _say(f"job {job.id} was asked to stop; waiting until running trials are at a checkpoint")
    ended = jobs.until_ended(job)
    out.print(f"job {ended.id}: {ended.state.lower()}", markup=False)
    again = shlex.join(["sweep", "submit", *job.command, "--address", jobs.address])
    out.print(f"resume: {again}", markup=False)


def job_status(target: str, address: str | None, *, as_json: bool) -> None:
    """`sweep status TARGET --address`: the newest job of a target, and its store if it is here."""
    jobs = _jobs(address)
    job = _find(jobs, target)
    lines = [line for line in jobs.log(job.id).splitlines() if line.strip()][-MOST_LINES:]
    counts = _counts(job.root)
    if as_json:
        print_json(
            {
                "job": job.id,
                "state": job.state,
                "exit_code": job.exit_code,
                "message": job.message,
                "sweep": job.sweep,
                "root": job.root,
                "started_at": job.started_at and job.started_at.isoformat(),
                "ended_at": job.ended_at and job.ended_at.isoformat(),
                "log": lines,
                "store": counts,
            }
        )
        return
    from orchestrator.display import facts

    code = "" if job.exit_code is None else f", exit code {job.exit_code}"
    store = "not visible from this machine"
    if counts is not None:
        store = ", ".join(f"{count} {name}" for name, count in counts.items()) or "empty"
    rows = [
        ("job", job.id),
        ("sweep", job.sweep),
        ("state", f"{job.state.lower()}{code}"),
        ("submitted", _ago(job.started_at)),
        *([("ended", _ago(job.ended_at))] if job.ended_at else []),
        ("Ray says", job.message.partition("\n")[0].partition(", last available logs")[0]),
        ("results", job.root),
        ("store", store),
        *(("log", line) for line in lines),
    ]
    out.print(facts([(name, value.replace("[", "\\[")) for name, value in rows]))


def _counts(root: str) -> dict[str, int] | None:
    """Trials by status, as the store says, or None if it cannot be seen from here."""
    from pathlib import Path

    if not (Path(root) / "epochs").is_dir():
        return None
    from orchestrator import loading, planning

    return planning.progress(loading.open_store(root))[0]


def _ago(moment: datetime | None) -> str:
    from orchestrator.display import duration

    if moment is None:
        return "unknown"
    past = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    return f"{moment.astimezone():%Y-%m-%d %H:%M:%S}, {duration(past)} ago"


def _jobs(address: str | None) -> Jobs:
    from orchestrator import dashboard

    found = dashboard.address_of(address)  # before Ray is imported, which takes a second
    from orchestrator.jobs import Jobs

    return Jobs(found)


def _find(jobs: Jobs, target: str) -> Job:
    """The job of this id, or the newest of a sweep file's or folder's results.

    Raises:
        UserError: there is none; says which there are.
    """
    import re
    from pathlib import Path

    from orchestrator import loading

    if re.fullmatch(r"[0-9a-f]{12}-[0-9]+", target):
        if found := jobs.get(target):
            return found
        what = f"no job {target}"
    else:
        path = Path(target)
        is_file = path.suffix in (".yaml", ".yml") or path.is_file()
        root = loading.load_sweep(target, ()).root if is_file else path.absolute()
        if jobs_there := jobs.of_root(str(root)):
            return jobs_there[-1]
        what = f"no job that works for {root}"
    others = [f"{job.id} ({job.sweep}, {job.state.lower()})" for job in jobs.all()[-5:]]
    raise UserError(
        f"{what} at {jobs.address}; the newest there: {', '.join(reversed(others)) or 'none'}. "
        "TARGET is a sweep file, a results folder or a job's id"
    )


def doctor(
    target: Annotated[
        str | None, typer.Argument(metavar="TARGET", help="A sweep file or a results folder.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A cluster: auto, ray://HOST:10001 or HOST:6379."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for what goes wrong in practice and name the fix; exit 1 if there is a problem."""
    from orchestrator.doctor import report

    raise typer.Exit(report(target, address, as_json=as_json))


def _say(text: str) -> None:
    err.print(text, markup=False, soft_wrap=True)


COMMANDS: tuple[Callable[..., Any], ...] = (submit, logs, cancel, doctor)
