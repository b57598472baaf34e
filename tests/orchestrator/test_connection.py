"""`sweep run --address`: every address that does not work says what to do, and soon."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import addresses, connection
from orchestrator.errors import UserError
from tests.clusters import Cluster, cluster, free_ports

pytestmark = pytest.mark.ray

SWEEP = """
name: toy
task: modular_addition
base: {steps: 2, modulus: 5, width: 8}
tracking: none
"""
FORMS = (
    "auto (on a machine of the cluster), ray://HOST:10001 (from elsewhere), or HOST:6379 (on a "
    "machine of the cluster)"
)


@pytest.fixture(scope="module")
def ray() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(SWEEP)
    return tmp_path


def run(folder: Path, address: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`sweep run` with no token but the one given, and none lying ready either."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    command = [str(Path(sys.executable).with_name("sweep")), "run", "toy.yaml"]
    return subprocess.run(
        [*command, "--address", address],
        cwd=folder,
        env={**environ, "HOME": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=240,
    )


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr.removeprefix("error: ").rstrip("\n")


def test_ray_client_from_elsewhere_runs_the_sweep(ray: Cluster, folder: Path) -> None:
    """The driver runs here, the workers there; the token comes from the environment."""
    done = run(folder, ray.client, **ray.credentials)

    assert done.returncode == 0, done.stderr
    assert "[1/1] seed=0: completed" in done.stderr


def test_a_token_that_lies_ready_is_used_once_the_cluster_asks_for_one(
    ray: Cluster, folder: Path
) -> None:
    """Ray itself does so only for `auto`."""
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(ray.token)

    assert run(folder, ray.gcs).returncode == 0


@pytest.mark.parametrize("kind", ["client", "gcs"])
@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}])
def test_a_cluster_that_wants_a_token_says_so(
    ray: Cluster, folder: Path, kind: str, variables: dict[str, str]
) -> None:
    """None here, or a wrong one; nothing is launched and nothing written."""
    address = getattr(ray, kind)

    assert refusal(run(folder, address, **variables)) == (
        f"--address {address}: the cluster wants a token, and ours is missing or wrong. Ask its "
        "owner for it (on the head: ray get-auth-token), then set RAY_AUTH_MODE=token and either "
        "RAY_AUTH_TOKEN=... or write it to ~/.ray/auth_token."
    )
    assert not (folder / "results").exists()


def test_the_mode_without_a_token_is_told_apart(ray: Cluster, folder: Path) -> None:
    """RAY_AUTH_MODE=token, and no token anywhere."""
    said = refusal(run(folder, ray.gcs, RAY_AUTH_MODE="token"))

    assert said.startswith(
        f"--address {ray.gcs}: the cluster wants a token, and there is none here. "
    )


JOIN = """
import json, sys
from orchestrator import connection
from orchestrator.errors import UserError
for address in sys.argv[1:]:
    try:
        connection.join(address)
    except UserError as error:
        print(json.dumps(str(error)), flush=True)
"""


def test_the_ports_of_a_cluster_are_told_apart(ray: Cluster, folder: Path) -> None:
    """Each of the three in place of another: the message has the right address."""
    client = ray.client.removeprefix("ray://")
    host = client.rpartition(":")[0]
    web = ray.dashboard.removeprefix("http://")
    gcs = ray.gcs
    expected = {
        client: f"this is Ray's client port; use --address ray://{client}.",
        f"ray://{gcs}": "this is the cluster's own port (GCS); use --address "
        f"ray://{gcs.rpartition(':')[0]}:10001.",
        f"ray://{web}": "a web server answers there. If it is Ray's dashboard, send the sweep as a "
        f"job: sweep submit FILE --address http://{web}; to run the driver here, use Ray's client "
        f"port: --address ray://{host}:10001.",
        ray.dashboard: "this is a dashboard, through which a sweep is sent as a job: sweep submit "
        f"FILE --address {ray.dashboard}. To run the driver here, join the cluster with {FORMS}.",
    }
    done = subprocess.run(
        [sys.executable, "-c", JOIN, *expected],
        env={**os.environ, **ray.credentials, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=240,
    )

    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert said == [f"--address {a}: {message}" for a, message in expected.items()], done.stderr


def test_an_address_without_a_listener_is_told_apart() -> None:
    """A closed port, an unknown host, and no Ray on this machine at all."""
    [port] = free_ports(1)
    advice = (
        "Is the head running (ray status, on the head), and is this port open from here? Ray's "
        "client port is 10001 unless it was started with another --ray-client-server-port."
    )
    closed, unknown = f"ray://127.0.0.1:{port}", "ray://no-such-host.invalid"

    for address, message in {
        closed: f"no answer: connection refused. {advice}",
        unknown: f"no answer: the host is not known. {advice}",
        "nonsense": f"expected {FORMS}.",
    }.items():
        with pytest.raises(UserError) as caught:
            connection.join(address)
        assert str(caught.value) == f"--address {address}: {message}"


def test_a_host_that_swallows_everything_is_given_up_soon(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something accepts the connection and says nothing; the deadline is ours, not Ray's."""
    monkeypatch.setattr(addresses, "PROBE_SECONDS", 1.0)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"ray://127.0.0.1:{listener.getsockname()[1]}"

        with pytest.raises(UserError) as caught:
            connection.join(address)

    assert "no answer: nothing within 1 s" in str(caught.value)


OTHER_VERSIONS = """
import types
from orchestrator import node, site
from orchestrator.sweep import load
here = node.inspect
def other(question):
    facts = here(question)
    return {**facts, "versions": {**facts["versions"], "torch": "2.12.1", "ray": "2.59.0"}}
site.node = types.SimpleNamespace(**{**vars(node), "inspect": other})  # here, not on the nodes
try:
    with site.enter(load("toy.yaml"), ADDRESS, limit=1, tracked=False):
        pass
except site.SweepError as error:
    print(error, flush=True)
"""


def test_what_differs_between_the_nodes_is_refused_all_at_once(ray: Cluster, folder: Path) -> None:
    """The driver claims versions that the nodes do not have: every one of them is named."""
    code = OTHER_VERSIONS.replace("ADDRESS", repr(ray.client))
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, **ray.credentials},
        capture_output=True,
        text=True,
        timeout=240,
    )

    lines = done.stdout.splitlines()
    assert lines, (done.returncode, done.stderr)
    assert lines[0] == f"toy.yaml on the cluster at {ray.client}: 2 problems", done.stderr
    assert lines[1].startswith("  ray: 2.59.0 here, 2.60.0 on ")
    assert lines[2].startswith("  torch: 2.12.1 here, 2.13.0 on ")
    assert not (folder / "results").exists()


OLDER = """
import ray, sys
ray.__version__ = "2.59.0"  # what the cluster is told, and compares
sys.argv[0] = "sweep"
from orchestrator import cli
cli.main()
"""


@pytest.mark.parametrize("kind", ["client", "gcs"])
def test_another_version_of_ray_is_named_on_both_sides(
    ray: Cluster, folder: Path, kind: str
) -> None:
    """Ray's own words have both versions; ours say what to do."""
    address = getattr(ray, kind)
    done = subprocess.run(
        [sys.executable, "-c", OLDER, "run", "toy.yaml", "--address", address],
        cwd=folder,
        env={**os.environ, **ray.credentials},
        capture_output=True,
        text=True,
        timeout=240,
    )

    said = refusal(done)
    assert said.startswith(
        f"--address {address}: Ray or Python is of another version there than here: "
    )
    assert "2.59.0" in said
    assert "2.60.0" in said
    assert said.endswith(
        "Install the cluster's Ray version here (pip install 'ray[default]==...') under the same "
        "minor version of Python, or the other way round."
    )
