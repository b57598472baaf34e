"""Submitted sweeps on a real Ray cluster with a token: `submit`, `status`, `logs`, `cancel`."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import checkpoints, mlflow_access
from orchestrator.job import for_the_head
from orchestrator.store import Store
from tests.clusters import Cluster, cluster, links, wait_until
from tests.orchestrator.conftest import Call
from tests.orchestrator.test_resume import SHORT, SWEEP, Sandbox
from tests.orchestrator.test_shipping import install, make_project
from tests.stores import canonical

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Submitter(Sandbox):
    """A sandbox whose `sweep` speaks to a cluster."""

    def __init__(self, folder: Path, ray: Cluster, sweep: str = SWEEP) -> None:
        super().__init__(folder, sweep)
        self.ray = ray
        self.environment = {**os.environ, **ray.credentials, "no_proxy": "127.0.0.1"}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A `sweep` command that talks to this cluster's dashboard."""
        return subprocess.Popen(
            [
                str(Path(sys.executable).with_name("sweep")),
                *arguments,
                "--address",
                self.ray.dashboard,
            ],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def on_cluster(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=280)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def job(self, job_id: str) -> dict[str, Any]:
        """What Ray's dashboard says of a job."""
        return dict(self.ray.get(f"/api/jobs/{job_id}") or {})

    def finish(self, job_id: str) -> str:
        """Wait until a job has ended; its state."""
        wait_until(lambda: self.job(job_id).get("status") in ENDED, "the job goes on", 200)
        return str(self.job(job_id)["status"])


def job_of(done: subprocess.CompletedProcess[str]) -> str:
    """The id of the job that `sweep submit` names."""
    found = re.search(r"^status: +sweep status ([0-9a-f]{12}-\d+) ", done.stdout, re.MULTILINE)
    assert found, done.stderr
    return found[1]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the faults that the cluster's workers commit, and the sandbox that they are for."""
    found = tmp_path_factory.mktemp("jobs")
    (found / "faults").mkdir()
    return found


@pytest.fixture(scope="module")
def ray(shared: Path) -> Iterator[Cluster]:
    store = shared / "s" / "results" / "toy"
    faults = {"FAULTS": str(shared / "faults"), "STORE": str(store)}
    with cluster(cpus=2, environment=faults) as found:
        yield found


def test_a_killed_job_is_continued_by_the_next(ray: Cluster, shared: Path, tmp_path: Path) -> None:
    """SIGKILL of the driver on the cluster; the next job resumes, and the tables are the same."""
    here = Sandbox(tmp_path / "undisturbed", SHORT)
    assert here.sweep("run", "toy.yaml", "--in-process").returncode == 0
    there = Submitter(shared / "s", ray, SHORT)
    there.faults = shared / "faults"
    there.order("kill-driver")

    first = there.on_cluster("submit", "toy.yaml")
    killed = there.finish(job_of(first))
    second = there.on_cluster("submit", "toy.yaml")
    completed = there.finish(job_of(second))

    assert first.returncode == second.returncode == 0, second.stderr
    assert there.struck("kill-driver")
    assert (killed, completed) == ("FAILED", "SUCCEEDED")
    content = job_of(first).partition("-")[0]
    assert (job_of(first), job_of(second)) == (f"{content}-1", f"{content}-2")
    assert any(step > 0 for step in there.start_steps())
    assert len(Store.open(there.root).epochs()) == 2
    assert there.tables() == here.tables()
    assert f"query:   sweep query {there.root} " in second.stdout


LONG = SWEEP.replace("name: toy", "name: long").replace("steps: 6000", "steps: 2000000")


@pytest.fixture(scope="module")
def long(ray: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Submitter, str]]:
    """A sweep that has been submitted, runs, and does not end by itself; and its job."""
    found = Submitter(tmp_path_factory.mktemp("long") / "s", ray, LONG)
    processes = [found.start("submit", "toy.yaml") for _ in range(2)]
    done = [
        subprocess.CompletedProcess([], process.wait(280), *process.communicate())
        for process in processes
    ]
    assert [each.returncode for each in done] == [0, 0], [each.stderr for each in done]
    # Two at once: one of them starts the job, the other finds it.
    assert len({job_of(each) for each in done}) == 1
    assert sum("sent as job" in each.stderr for each in done) == 1
    job_id = job_of(done[0])
    root = found.folder / "results" / "long"
    wait_until(
        lambda: any(root.glob("checkpoints/*/[0-9]*")),
        lambda: found.on_cluster("logs", job_id).stdout,
    )
    yield found, job_id
    found.on_cluster("cancel", job_id)


def test_a_live_job_is_found_again(long: tuple[Submitter, str]) -> None:
    """The same file again starts nothing; what was asked for besides is said to be left out."""
    there, job_id = long

    again = there.on_cluster("submit", "toy.yaml", "--retry", "failed")

    assert again.returncode == 0
    assert again.stderr == (
        f"job {job_id} is running with this file; it goes on without --retry failed\n"
    )
    at = f"--address {there.ray.dashboard}"
    assert again.stdout == (
        f"status:  sweep status {job_id} {at}\n"
        f"logs:    sweep logs {job_id} --follow {at}\n"
        f"cancel:  sweep cancel {job_id} {at}\n"
        f"again:   sweep submit toy.yaml {at}\n"
        f'query:   sweep query {there.folder}/results/long "SELECT * FROM trials"\n'
    )


def test_another_file_for_the_same_folder_waits(long: tuple[Submitter, str]) -> None:
    there, job_id = long

    other = there.on_cluster("submit", "toy.yaml", "--set", "base.steps=10")

    assert other.returncode == 2
    assert other.stderr == (
        f"error: job {job_id} is running and works for {there.folder}/results/long with another "
        "version of the file. Wait until it has ended, or stop it at checkpoints: sweep cancel "
        f"{job_id} --address {there.ray.dashboard}\n"
    )


@pytest.mark.parametrize("target", ["toy.yaml", "results/long", "{job}"])
def test_a_job_is_found_by_file_folder_and_id(long: tuple[Submitter, str], target: str) -> None:
    """Its state, the end of its log, and the store, which this machine can see."""
    there, job_id = long

    done = there.on_cluster("status", target.format(job=job_id), "--json")

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["job"], found["state"], found["sweep"]) == (job_id, "RUNNING", "long")
    assert found["root"] == f"{there.folder}/results/long"
    assert found["log"][-1] == "long: 4 trials"
    assert found["store"] == {"trials": 4, "open": 4}
    assert (found["exit_code"], found["ended_at"]) == (None, None)


def test_an_unknown_target_names_the_jobs_there(long: tuple[Submitter, str]) -> None:
    there, job_id = long

    done = there.on_cluster("logs", "results/other")

    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: no job that works for {there.folder}/results/other at {there.ray.dashboard}; "
        f"the newest there: {job_id} (long, running)"
    )
    assert done.stderr.endswith("TARGET is a sweep file, a results folder or a job's id\n")


def test_cancel_stops_at_checkpoints(long: tuple[Submitter, str]) -> None:
    """The driver is given the time to checkpoint; what follows says how to go on."""
    there, job_id = long
    follower = there.start("logs", "toy.yaml", "--follow")

    done = there.on_cluster("cancel", "toy.yaml")

    assert done.returncode == 0, done.stderr
    at = f"--address {there.ray.dashboard}"
    assert done.stdout == f"job {job_id}: stopped\nresume: sweep submit toy.yaml {at}\n"
    assert done.stderr == (
        f"job {job_id} was asked to stop; waiting until running trials are at a checkpoint\n"
    )
    log, problems = follower.communicate(timeout=60)
    assert (follower.returncode, problems) == (0, "")
    assert log.endswith(
        "long: 4 trials\n"
        "stopping: running trials are writing checkpoints\n"
        f"stopped. To resume: sweep submit toy.yaml {at}\n"
    )
    root = there.folder / "results" / "long"
    held = [path.name for path in (root / "checkpoints").iterdir()]
    headers = [checkpoints.newest_header(root, trial_id) for trial_id in held]
    assert held
    assert all(header is not None and header.step > 0 for header in headers)
    again = there.on_cluster("cancel", job_id)
    assert (again.returncode, again.stderr) == (0, f"job {job_id} has ended already (stopped)\n")


def test_storage_that_the_cluster_does_not_have_is_refused(ray: Cluster, tmp_path: Path) -> None:
    """A folder of the submitter's machine is not made on the head; the refusal reaches here."""
    there = Submitter(tmp_path / "s", ray)

    done = there.on_cluster("submit", "toy.yaml", "--set", "storage=/no-such-place/results")

    assert done.returncode == 2
    assert done.stderr.endswith(
        "\nerror: toy.yaml: 1 problem\n"
        "  the storage folder /no-such-place/results is not on the head of the cluster "
        f"({platform.node()}), nor is the folder that it would be made in: give an absolute "
        "storage folder that every node sees, --set storage=/shared/results\n"
    )
    assert done.stderr.count("error: ") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("keep", [False, True])
def test_credentials_go_along_unless_told_otherwise(
    ray: Cluster, tmp_path: Path, keep: bool
) -> None:
    """Who submits is told who can read them; without them the job looks for the cluster's own."""
    tracking = "tracking: {{uri: 'http://127.0.0.1:1'}}"
    there = Submitter(tmp_path / "s", ray, SWEEP.replace("tracking: none", tracking))
    there.environment |= {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "secret"}

    options = ["--no-credentials"] if keep else []
    done = there.on_cluster("submit", "toy.yaml", "--no-wait", *options)

    said = done.stderr.splitlines()[2]  # it is packed, and sent
    env_vars = there.job(job_of(done))["runtime_env"]["env_vars"]
    assert there.finish(job_of(done)) == "FAILED"  # no server answers there
    names = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    if keep:
        assert said == f"{names} stay here: set them in the cluster's own environment"
        assert not [name for name in env_vars if name.startswith("MLFLOW")]
    else:
        assert said == (
            f"{names} go along: whoever may see the job in Ray, or read its logs on the head, can "
            "read them (--no-credentials)"
        )
        assert env_vars["MLFLOW_TRACKING_PASSWORD"] == "secret"
    assert there.job(job_of(done))["driver_exit_code"] == 2


def test_in_a_job_a_refusal_names_the_head() -> None:
    """The driver runs there, so that is where credentials are looked for."""
    said = str(mlflow_access.explain("http://runs:5000", OSError("error code 401")))

    assert for_the_head(said) == (
        "the MLflow server at http://runs:5000 wants a user name and a password: set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment of `ray start` "
        "on the head, or write both to ~/.mlflow/credentials there. `sweep server` says where both "
        "are when it starts."
    )


def test_bad_addresses_end_with_exit_code_2(ray: Cluster, tmp_path: Path, call: Call) -> None:
    """The whole list is in test_dashboard.py; here are Ray's own ports, and nothing is sent."""
    there = Submitter(tmp_path / "s", ray)
    del there.environment["RAY_AUTH_TOKEN"]
    there.environment["HOME"] = str(tmp_path)

    without = there.on_cluster("submit", "toy.yaml")

    assert without.returncode == 2
    assert without.stderr == (
        f"error: {ray.dashboard} wants a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the "
        "cluster's token (or put it into ~/.ray/auth_token; on the head, `ray get-auth-token` "
        "prints it)\n"
    )
    for address in (ray.client, f"http://{ray.gcs}", ray.client.replace("ray://", "http://")):
        done = call(there.folder, "submit", "toy.yaml", "--address", address)
        assert done.returncode == 2
        assert "dashboard" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_foreign_task_runs_where_only_ray_and_torch_are_installed(tmp_path: Path) -> None:
    """Its package and ours travel; what they need besides is installed by Ray, in this version."""
    project = make_project(tmp_path / "project", "faraway_tasks", task="faraway")
    site = install(project, tmp_path / "site")
    python = links(tmp_path / "bare", "ray[default]", "torch", "pip", "setuptools")
    missing = subprocess.run(
        [python, "-c", "import orchestrator"], cwd=tmp_path, capture_output=True, text=True
    )
    assert "No module named 'orchestrator'" in missing.stderr
    sweep = SWEEP.replace("{task}:Faulty", "faraway").replace("steps: 6000", "steps: 200")

    with cluster(python=python) as bare:
        there = Submitter(tmp_path / "s", bare, sweep)
        there.environment["PYTHONPATH"] = str(site)
        done = there.on_cluster("submit", "toy.yaml")
        assert done.returncode == 0, done.stderr
        state = there.finish(job_of(done))
        log = there.on_cluster("logs", job_of(done)).stdout

    assert state == "SUCCEEDED", log
    assert "installing on the head: matplotlib==" in log
    (tmp_path / "here").mkdir()
    shutil.copy(there.folder / "toy.yaml", tmp_path / "here")
    subprocess.run(
        [str(Path(sys.executable).with_name("sweep")), "run", "toy.yaml", "--in-process"],
        cwd=tmp_path / "here",
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
    )
    alone = canonical(Store.open(tmp_path / "here" / "results" / "toy"))
    assert canonical(Store.open(there.root)) == alone
    assert len(alone["trials"]) == 4
