"""Sweeps on a Ray cluster of two nodes: joined, lost, grown, shrunk, silent."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from orchestrator import cluster as pools
from orchestrator.connection import Connection, join
from orchestrator.driver import Options, Outcome, run_sweep
from orchestrator.execution import Ended, Event, Executor, Lost, Started
from orchestrator.placement import Placement
from orchestrator.store import Store
from orchestrator.sweep import Sweep, load
from orchestrator.trial import Context
from tests.orchestrator.test_resume import SHORT, Sandbox
from tests.stores import canonical

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BRIEF = SHORT.replace("steps: 6000", "steps: 600")
"""Two trials of a second each. What is to happen while one runs, happens while it is held."""

PATIENCE = 240.0
"""Seconds that a test waits for what must happen; nothing here waits for time to pass."""


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A variable of this process, and so of the nodes that are started from it."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTS", str(folder))
        yield folder


@pytest.fixture
def sandbox(tmp_path: Path, faults: Path) -> Sandbox:
    """Its folder of faults is every test's in turn, for a head outlives a test."""
    made = Sandbox(tmp_path / "s", BRIEF)
    made.faults = faults
    for path in faults.iterdir():
        path.unlink()
    return made


@contextlib.contextmanager
def one_head() -> Iterator[Cluster]:
    """A head with room for one trial; every test adds the nodes that it needs."""
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    try:
        yield made
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def lasting(faults: Path) -> Iterator[Cluster]:
    with one_head() as made:
        yield made


@pytest.fixture
def cluster(lasting: Cluster, sandbox: Sandbox) -> Iterator[Cluster]:
    """A head that serves one test after another; the nodes that a test has added go with it."""
    yield lasting
    for node in list(lasting.worker_nodes):
        lasting.remove_node(node)  # it says good-bye: the head need not find out by itself

    def alone() -> bool:
        return sum(node["Alive"] for node in lasting.global_state.node_table()) == 1

    eventually(alone, "the head knows that they are gone")


@pytest.fixture
def mortal(sandbox: Sandbox) -> Iterator[Cluster]:
    """A head that does not outlive its test."""
    with one_head() as made:
        yield made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The tables of the same sweep in one process without Ray."""
    sandbox = Sandbox(tmp_path_factory.mktemp("undisturbed") / "s", BRIEF)
    done = sandbox.sweep("run", "toy.yaml", "--in-process")
    assert done.returncode == 0, done.stderr
    return sandbox.tables()


def parent(pid: int) -> int:
    """The process that started a process: the raylet of its node, for a worker."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def on_node(raylet: int, pid: int) -> bool:
    try:
        return parent(pid) == raylet
    except OSError:
        return False


def raylet_of(node: object) -> int:
    [process] = node.all_processes["raylet"]  # type: ignore[attr-defined]
    return int(process.process.pid)


def begun(sandbox: Sandbox) -> list[int]:
    """The workers' processes, one entry per attempt that has begun."""
    return [int(path.name.split("-")[2]) for path in sandbox.faults.glob("start-*")]


def release(sandbox: Sandbox) -> None:
    """Let the trials go on that were held by `order("hold")`."""
    (sandbox.faults / "hold").unlink(missing_ok=True)


def start(sandbox: Sandbox, *arguments: str, stderr: Path | None = None) -> subprocess.Popen[str]:
    """Begin `sweep`; what it says goes to a file, or is kept until it is asked for."""
    with stderr.open("w") if stderr else contextlib.nullcontext(subprocess.PIPE) as said:
        return subprocess.Popen(
            [str(Path(sys.executable).with_name("sweep")), *arguments],
            cwd=sandbox.folder,
            stdout=subprocess.DEVNULL,
            stderr=said,
            text=True,
        )


def test_a_node_that_dies_in_mid_sweep_costs_its_trials_an_attempt_and_no_more(
    sandbox: Sandbox, cluster: Cluster, undisturbed: dict[str, list[str]]
) -> None:
    """`sweep run --address`: the other node goes on, and the tables are those of a quiet run."""
    other = cluster.add_node(num_cpus=1)
    raylet = raylet_of(other)
    sandbox.order("hold")
    running = start(sandbox, "run", "toy.yaml", "--address", cluster.address)
    try:
        eventually(lambda: any(on_node(raylet, pid) for pid in begun(sandbox)), "a trial there")
        cluster.remove_node(other, allow_graceful=False)
        release(sandbox)
        _, said = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()

    assert running.returncode == 0, said
    commits = Store.open(sandbox.root).commits().to_pylist()
    lost = [row for row in commits if row["status"] == "lost"]
    assert [row["error_kind"] for row in lost] == ["NodeLost"]
    assert said.count("node lost under weight_decay=") == 1
    assert sandbox.tables() == undisturbed


@dataclasses.dataclass
class Driven:
    """A driver run in a thread of this process, with the pool at hand."""

    sweep: Sweep
    connection: Connection
    placement: Placement
    pool: pools.RayPool | None = None
    outcome: Outcome | None = None
    started: list[str] = dataclasses.field(default_factory=list)
    lost: list[Lost] = dataclasses.field(default_factory=list)
    done: int = 0

    def run(self) -> None:
        def executor(context: Context, _: int) -> Executor:
            self.pool = pools.RayPool(self.connection, context, self.placement)
            return self.pool

        self.outcome = run_sweep(self.sweep, Options(), observer=self, executor=executor)

    def begin(self, total: int, done: int, failed: int) -> None:
        pass

    def message(self, text: str) -> None:
        pass

    def event(self, event: Event) -> None:
        match event:
            case Started(assignment=assignment):
                self.started += assignment.trial_ids
            case Lost():
                self.lost.append(event)
            case Ended():
                self.done += 1


@contextlib.contextmanager
def driving(sandbox: Sandbox, cluster: Cluster, placement: Placement) -> Iterator[Driven]:
    with contextlib.chdir(sandbox.folder), join(cluster.address) as connection:
        driven = Driven(load("toy.yaml"), connection, placement)
        thread = threading.Thread(target=driven.run)
        thread.start()
        try:
            yield driven
        finally:
            release(sandbox)
            thread.join(PATIENCE)
            assert not thread.is_alive()


CPU = Placement(device="cpu", cpus=1, gpus=0.0, custom=(), workers=1, most=4)


def test_the_pool_grows_into_a_node_that_joins_and_leaves_it_when_there_is_no_more_work(
    sandbox: Sandbox, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers pending beyond the pool take the new place; at the end none is started in vain."""
    monkeypatch.setattr(pools, "IDLE_SECONDS", 0.5)
    started: list[float] = []
    really = pools.RayPool._start_worker

    def counted(pool: pools.RayPool) -> None:
        started.append(time.monotonic())
        really(pool)

    monkeypatch.setattr(pools.RayPool, "_start_worker", counted)
    # One trial that is three times as long as the others, and the last to begin.
    text = (sandbox.folder / "toy.yaml").read_text()
    text = text.replace("weight_decay: [0.0, 1.0]", "steps: [3000, 3001, 9000]")
    (sandbox.folder / "toy.yaml").write_text(text.replace("steps: 600, ", ""))

    with driving(sandbox, cluster, CPU) as driven:
        eventually(lambda: len(driven.started) == 1, "the first trial on the head")
        other = raylet_of(cluster.add_node(num_cpus=1))
        eventually(lambda: any(on_node(other, pid) for pid in begun(sandbox)), "one on the other")
        eventually(lambda: driven.done == 2, "all trials but the last")
        before = len(started)
        assert driven.pool is not None
        pool = driven.pool
        eventually(lambda: len(pool._slots) == 1, "the other worker is released")
        assert driven.outcome is None, "the last trial is to outlive the release"

    assert driven.outcome is not None
    assert driven.outcome.statuses == {"completed": 3}
    assert len(started) == before


def test_a_worker_that_falls_silent_is_given_up_and_its_trial_runs_elsewhere(
    sandbox: Sandbox,
    cluster: Cluster,
    undisturbed: dict[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A frozen process (SIGSTOP) answers no heartbeat; what it held is not waited for."""
    monkeypatch.setattr(pools, "SILENT_SECONDS", 15.0)
    sandbox.order("hold")

    with driving(sandbox, cluster, CPU) as driven:
        eventually(lambda: len(begun(sandbox)) == 1, "a trial")
        os.kill(begun(sandbox)[0], signal.SIGSTOP)
        eventually(lambda: len(driven.lost) == 1, "the loss is noticed")

    [lost] = driven.lost
    assert lost.reason == "its worker has not answered for 15 s"
    assert driven.outcome is not None
    assert driven.outcome.statuses == {"completed": 2}
    assert canonical(Store.open(sandbox.root)) == undisturbed


@pytest.mark.parametrize(("gpus", "at_once"), [(0.5, 2), (2.0, 1)], ids=["shares", "bundles"])
def test_shares_of_a_gpu_run_side_by_side_and_whole_bundles_one_by_one(
    sandbox: Sandbox, cluster: Cluster, gpus: float, at_once: int
) -> None:
    """Two logical GPUs, on a node without one: Ray keeps the count, and the pool asks for two."""
    cluster.add_node(num_cpus=4, num_gpus=2, resources={"v100": 2})
    placement = Placement("cpu", 1, gpus, (("v100", 1.0),), workers=2, most=4)
    sandbox.order("hold")

    with driving(sandbox, cluster, placement) as driven:
        eventually(lambda: len(begun(sandbox)) == at_once, "as many as there is room for")

    assert driven.outcome is not None
    assert driven.outcome.statuses == {"completed": 2}
    assert len(set(begun(sandbox))) == at_once


def test_a_gpu_that_torch_cannot_use_stops_the_sweep_and_blames_no_trial(
    sandbox: Sandbox, cluster: Cluster
) -> None:
    """Ray counts what `--num-gpus` says; the worker's first act finds that torch has none."""
    cluster.add_node(num_cpus=1, num_gpus=1)
    running = start(sandbox, "run", "toy.yaml", "--address", cluster.address)
    _, said = running.communicate(timeout=PATIENCE)

    assert running.returncode == 3, said
    assert "error: a worker cannot start: " in said
    assert "was given a GPU by Ray, but torch " in said
    assert Store.open(sandbox.root).commits().num_rows == 0


def test_a_bad_node_that_joins_late_is_not_the_end_of_the_others(
    sandbox: Sandbox, cluster: Cluster
) -> None:
    """It has another disk at the results folder's path: its workers refuse, the sweep goes on."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("`unshare -m` is not permitted here: a second node cannot have its own mounts")
    sandbox.order("hold")  # trials wait until it has refused
    heard = sandbox.folder / "stderr"
    running = start(sandbox, "run", "toy.yaml", "--address", cluster.address, stderr=heard)
    mount = f"mount -t tmpfs none {sandbox.folder}/results"
    join_it = f"exec ray start --address={cluster.address} --num-cpus=1 --block"
    eventually(lambda: len(begun(sandbox)) == 1, "a trial on the head")
    short = tempfile.mkdtemp(prefix="r", dir="/tmp")  # Ray's sockets have short names
    late = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{mount} && {join_it} --temp-dir={short}"],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        eventually(lambda: "a worker is of no use" in heard.read_text(), "it refuses")
        release(sandbox)
        running.wait(timeout=PATIENCE)
    finally:
        running.kill()
        os.killpg(late.pid, signal.SIGTERM)
        late.wait()
        shutil.rmtree(short, ignore_errors=True)

    said = heard.read_text()
    assert running.returncode == 0, said
    assert "a worker is of no use, the next one starts in 2 s: " in said
    assert f"does not see the results folder {sandbox.root}: what the driver has written" in said
    assert Store.open(sandbox.root).commits()["status"].to_pylist() == ["completed"] * 2


IMPATIENT = """
import sys
from orchestrator import cli, cluster
cluster.HEAD_SECONDS = 2.0
sys.argv[0] = "sweep"
cli.main()
"""


def test_a_head_that_dies_is_noticed_before_ray_ends_the_driver(
    sandbox: Sandbox, mortal: Cluster
) -> None:
    """Only the head's own process is killed; the nodes go on for a minute without it."""
    sandbox.order("hold")
    command = [sys.executable, "-c", IMPATIENT, "run", "toy.yaml", "--address", mortal.address]
    running = subprocess.Popen(
        command,
        cwd=sandbox.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    eventually(lambda: len(begun(sandbox)) == 1, "a trial")
    [head] = mortal.head_node.all_processes["gcs_server"]
    head.process.kill()
    _, said = running.communicate(timeout=PATIENCE)

    assert running.returncode == 3, said
    assert f"to resume: sweep run toy.yaml --address {mortal.address}\n" in said
    assert (
        "error: the head of the cluster does not answer any more. Everything committed is kept; "
        "start the cluster, then run the same command again.\n"
    ) in said


def test_a_driver_whose_node_dies_says_so(sandbox: Sandbox, mortal: Cluster) -> None:
    """Ray ends such a process at once; its parent has the exit code and the last word."""
    sandbox.order("hold")
    running = start(sandbox, "run", "toy.yaml", "--address", mortal.address)
    eventually(lambda: len(begun(sandbox)) == 1, "a trial on the head")
    address = mortal.address
    mortal.shutdown()
    _, said = running.communicate(timeout=PATIENCE)

    assert running.returncode == 3, said
    assert f"to resume: sweep run toy.yaml --address {address}\n" in said
    assert said.endswith(
        "error: Ray has ended on this node of the cluster, and this driver with it. Everything "
        "committed is kept; start Ray, then run the same command again.\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_before_the_first_trial_ends_in_order_too(
    sandbox: Sandbox, cluster: Cluster, number: signal.Signals
) -> None:
    """While the nodes are asked Ray's own handler would exit with 15; batch systems want 130."""
    running = start(sandbox, "run", "toy.yaml", "--address", cluster.address)
    eventually(lambda: any(sandbox.root.glob(".node-*")), "the nodes are being asked")
    running.send_signal(number)
    _, said = running.communicate(timeout=PATIENCE)

    assert running.returncode == 130, said
    assert f"stopped. To resume: sweep run toy.yaml --address {cluster.address}\n" in said
    assert not sandbox.root.exists()  # nothing was launched, and no marker is left
