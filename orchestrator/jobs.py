"""A sweep as one Ray job: submit, find, follow and stop it through the cluster's dashboard.

The job's id is `<content>-<n>`: the content is a hash of the file, its overrides and the results
folder, n counts the jobs of that content. Submitting again finds the live job, or starts the next
one, which resumes. What prevents doubling is the store's epoch, never the id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from orchestrator import dashboard
from orchestrator.errors import ClusterError, UserError
from orchestrator.job import PYTHON
from orchestrator.staging import content_hash, credentials_of, stage, sweep_words
from orchestrator.sweep import Sweep

STOP_SECONDS = 600
"""How long Ray waits for a job that it has asked to stop, before it kills it. Its default of 3 s is
too short for checkpoints. Ray reads it in the process that supervises the job, which has the job's
environment variables."""
POLL_SECONDS = 0.5

_ENTRYPOINT = f'exec "${{{PYTHON}:-python}}" -m orchestrator.job'
for _chatty in ("dashboard_sdk", "job.sdk"):  # they report every upload and every closed socket
    logging.getLogger(f"ray.dashboard.modules.{_chatty}").setLevel(logging.WARNING)
logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.WARNING)


@dataclass(frozen=True)
class Job:
    """What Ray knows of one submission of a sweep.

    Attributes:
        id: the submission id.
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Ray's, or the end of the log of a job that failed.
        exit_code: of the driver, if it ended by itself.
        sweep: its name.
        root: its results folder, absolute.
        content: the hash that its id begins with.
        command: the sweep file and `--set` options that it was submitted with, as words.
        started_at: when it was submitted, or None.
        ended_at: when it ended, or None.
    """

    id: str
    state: str
    message: str
    exit_code: int | None
    sweep: str
    root: str
    content: str
    command: tuple[str, ...]
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("PENDING", "RUNNING")


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of the dashboard, as `dashboard.address_of` returns it.

    Raises:
        UserError: no dashboard of this version of Ray answers there in time, or it wants
            another token.
    """

    def __init__(self, address: str) -> None:
        dashboard.probe(address, ray.__version__)
        self.address = address
        # Ray would follow this variable rather than the address that it is given.
        names = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
        try:
            with self._errors("be reached"):
                self._client = JobSubmissionClient(address)
        finally:
            os.environ.update(hidden)

    def all(self) -> list[Job]:
        """Every job that is a sweep of ours, oldest first."""
        with self._errors("list its jobs"):
            found = [_job(details) for details in self._client.list_jobs()]
        return sorted(
            (job for job in found if job is not None),
            key=lambda job: (job.started_at or datetime.min.replace(tzinfo=UTC), _number(job.id)),
        )

    def get(self, job_id: str) -> Job | None:
        """A job as it stands now; None if there is none of this id that is ours."""
        with self._errors("describe the job"):
            try:
                return _job(self._client.get_job_info(job_id))
            except RuntimeError as error:
                if "does not exist" in str(error):
                    return None
                raise

    def of_root(self, root: str) -> list[Job]:
        """The jobs that work for a results folder, oldest first."""
        wanted = os.path.normpath(root)
        return [job for job in self.all() if os.path.normpath(job.root) == wanted]

    def log(self, job_id: str) -> str:
        """Everything that a job has printed; empty while it has not begun."""
        with self._errors("read the job's log"):
            return str(self._client.get_job_logs(job_id) or "")

    def follow(self, job_id: str) -> Iterator[str]:
        """Pieces of a job's log as they come, until it has ended."""
        loop = asyncio.new_event_loop()
        try:
            with self._errors("read the job's log"):
                pieces = self._client.tail_job_logs(job_id)
                while True:
                    try:
                        yield loop.run_until_complete(anext(pieces))
                    except StopAsyncIteration:
                        return
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def stop(self, job_id: str) -> None:
        """Ask a job to stop: its driver checkpoints the running trials and ends."""
        with self._errors("stop the job"):
            self._client.stop_job(job_id)

    def submit(
        self,
        sweep: Sweep,
        *,
        arguments: Sequence[str] = (),
        credentials: bool = True,
        message: Callable[[str], None] = lambda _: None,
    ) -> tuple[Job, bool]:
        """Start a job for a sweep, unless one of the same content is alive.

        Args:
            sweep: a validated sweep.
            arguments: options of `sweep run` that the job is to run with.
            credentials: send MLflow's user name and password along, if there are any.
            message: receives lines for the user.

        Returns:
            The job, and whether this call started it.

        Raises:
            UserError: a live job works for the same results folder with another file, or the
                sweep's code cannot be taken along.
        """
        content = content_hash(sweep)
        if (live := self._live(self.all(), sweep, content)) is not None:
            return live, False
        message(f"packing {sweep.name} for {self.address}")
        with tempfile.TemporaryDirectory(prefix="sweep-job-") as folder:
            origin = stage(sweep, Path(folder))
            request = {
                "entrypoint": " ".join([_ENTRYPOINT, *map(shlex.quote, arguments)]),
                "entrypoint_num_cpus": 0,
                "metadata": {
                    "spectral_sweeps": origin["version"],
                    "sweep": sweep.name,
                    "root": str(sweep.root),
                    "content": content,
                    "command": shlex.join(sweep_words(sweep.source, sweep.overrides)),
                    "trials": str(sweep.num_trials),
                },
                "runtime_env": {
                    "working_dir": folder,
                    "env_vars": {
                        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
                        # Not the field worker_process_setup_hook, which Ray would not carry out in
                        # the process that supervises the job.
                        WORKER_PROCESS_SETUP_HOOK_ENV_VAR: "orchestrator.job.name_python",
                        **(credentials_of(sweep) if credentials else {}),
                    },
                },
            }
            while True:
                # One list for both questions: between two lists another submit may come.
                known = self.all()
                if (live := self._live(known, sweep, content)) is not None:
                    return live, False
                numbers = [_number(job.id) for job in known if job.content == content]
                job_id = f"{content}-{max(numbers, default=0) + 1}"
                if self._take(job_id, request):
                    found = self.get(job_id)
                    assert found is not None, "Ray knows a job as soon as it has taken it"
                    return found, True

    def _take(self, job_id: str, request: Mapping[str, Any]) -> bool:
        """Submit; false if another submit was faster by a hair and has this id."""
        with self._errors("take the job"):
            try:
                self._client.submit_job(submission_id=job_id, **request)
            except RuntimeError as error:
                if "already exists" not in str(error):
                    raise
                return False
        return True

    def _live(self, known: Sequence[Job], sweep: Sweep, content: str) -> Job | None:
        """The live job of the same content among those known.

        Raises:
            UserError: a live job works for the same results folder with another file.
        """
        root = os.path.normpath(sweep.root)
        for job in known:
            if not job.live or os.path.normpath(job.root) != root:
                continue
            if job.content == content:
                return job
            raise UserError(
                f"job {job.id} is {job.state.lower()} and works for {sweep.root} with another "
                "version of the file. Wait until it has ended, or stop it at checkpoints: "
                f"sweep cancel {job.id} --address {self.address}"
            )
        return None

    def wait(self, job: Job, until: Callable[[Job, str], bool], show: Callable[[str], None]) -> Job:
        """Watch a job until it has ended or `until(job, log)` holds; show its new lines."""
        shown = 0
        while True:
            now = self.get(job.id) or job
            log = self.log(job.id)
            complete = log[shown : log.rfind("\n") + 1] if now.live else log[shown:]
            for line in complete.splitlines():
                show(line)
            shown += len(complete)
            if not now.live or until(now, log):
                return now
            time.sleep(POLL_SECONDS)

    def until_ended(self, job: Job) -> Job:
        """Wait until a job has ended."""
        while True:
            now = self.get(job.id) or job
            if not now.live:
                return now
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Turn what Ray's client raises into our own words."""
        try:
            yield
        except AuthenticationError as error:
            raise UserError(f"{self.address} refuses the token: {dashboard.TOKEN_HELP}") from error
        # those of requests are OSErrors
        except (OSError, RuntimeError, ValueError, aiohttp.ClientError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            why = lines[-1] if lines else type(error).__name__
            raise ClusterError(f"the cluster at {self.address} did not {doing}: {why}") from error


def _number(job_id: str) -> int:
    return int(job_id.rpartition("-")[2]) if re.fullmatch(r"[0-9a-f]{12}-[0-9]+", job_id) else 0


def _job(details: JobDetails) -> Job | None:
    metadata = details.metadata or {}
    if details.submission_id is None or "spectral_sweeps" not in metadata:
        return None
    return Job(
        id=details.submission_id,
        state=JobStatus(details.status).value,
        message=details.message or "",
        exit_code=details.driver_exit_code,
        sweep=metadata.get("sweep", ""),
        root=metadata.get("root", ""),
        content=metadata.get("content", ""),
        command=tuple(shlex.split(metadata.get("command", ""))),
        started_at=_time(details.start_time),
        ended_at=_time(details.end_time),
    )


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None
