"""The cluster files and the KubeRay manifest, as far as one machine can try them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import ruamel.yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests import clusters

ROOT = Path(__file__).parents[1]
FILES = ("cluster.yaml", "cluster-gpu.yaml")
MANIFEST = ROOT / "kuberay" / "raycluster.yaml"
DOCKERFILE = ROOT / "kuberay" / "Dockerfile"
VENV = Path(sys.executable).parents[1]
PORTS = {"6379": "GCS", "10001": "Ray Client", "8265": "dashboard"}
# Values that are nobody's: addresses for documentation and made-up names.
PLACEHOLDERS = re.compile(r"192\.0\.2\.|-0{8,}|example\.com|us-west-2|-w /shared|id_ed25519")


def load(name: str) -> Any:
    return ruamel.yaml.YAML(typ="safe").load((ROOT / name).read_text(encoding="utf-8"))


def start_command(name: str, role: str) -> str:
    """The one command of a cluster file that starts Ray on the head or on a worker."""
    [command] = [c for c in load(name)[f"{role}_start_ray_commands"] if "ray start " in c]
    return str(command)


def options(command: str) -> dict[str, str]:
    """The options of `ray start` in a shell command: name -> value, "" for flags."""
    words = shlex.split(command)
    given = [word[2:].partition("=") for word in words if word.startswith("--")]
    return {name: value for name, _, value in given}


# --- what Ray says of the files ---------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_file_passes_rays_own_schema(name: str) -> None:
    """`ray up` validates against this schema before it does anything."""
    schema_path = Path(ray.__file__).parent / "autoscaler" / "ray-schema.json"
    schema = json.loads(schema_path.read_text())
    content = load(name)

    jsonschema.validate(content, schema)
    with pytest.raises(jsonschema.ValidationError, match="sweep_settings"):
        jsonschema.validate({**content, "sweep_settings": {}}, schema)


@pytest.mark.parametrize("name", FILES)
def test_a_cluster_file_is_what_ray_up_would_use(name: str) -> None:
    """Ray's own preparation fills in defaults, keeps ours, and finds nothing to refuse."""
    content = load(name)

    prepared = prepare_config(copy.deepcopy(content))
    validate_config(prepared)

    for role in ("head", "worker"):
        commands = f"{role}_start_ray_commands"
        assert prepared[commands] == content[commands]
    assert prepared["idle_timeout_minutes"] == content["idle_timeout_minutes"]
    sizes = {
        kind: (each["min_workers"], each["max_workers"])
        for kind, each in prepared["available_node_types"].items()
    }
    assert (
        sizes
        == {
            "cluster.yaml": {"local.cluster.node": (2, 2)},  # own machines stay
            "cluster-gpu.yaml": {"head": (0, 0), "gpu": (0, 8)},
        }[name]
    )


# --- what the files say -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_the_nodes_agree_on_ports_and_token(name: str) -> None:
    """One set of ports in all files; both start commands want the token, from the same file."""
    head, worker = (start_command(name, role) for role in ("head", "worker"))

    given = options(head)
    assert (given["port"], given["ray-client-server-port"], given["dashboard-port"]) == (*PORTS,)
    assert given["dashboard-host"] == {"cluster.yaml": "0.0.0.0"}.get(name, "127.0.0.1")
    assert options(worker) == {"address": "$RAY_HEAD_IP:6379"}
    for command in (head, worker):
        assert "source ~/spectral-sweeps/.venv/bin/activate && RAY_AUTH_MODE=token ray" in command
    assert load(name)["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", FILES)
def test_every_command_is_one_that_bash_understands(name: str) -> None:
    """Ray puts parentheses around each command: a comment at its end would swallow the last one."""
    commands = [c for key, each in load(name).items() if key.endswith("_commands") for c in each]
    wrong = [
        command
        for command in commands
        if subprocess.run(["bash", "-n", "-c", f"({command})"], capture_output=True).returncode
    ]

    assert len(commands) >= 8
    assert wrong == []


@pytest.mark.parametrize("name", [*FILES, "kuberay/raycluster.yaml"])
def test_what_must_be_replaced_says_so(name: str) -> None:
    """On its own line, or on the line that begins the command."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    silent = []
    for number, line in enumerate(lines):
        content, _, comment = line.partition("#")
        if not PLACEHOLDERS.search(content.strip()):
            continue
        began = next(  # of a folded command
            (above for above in reversed(lines[:number]) if above.lstrip().startswith("- ")), ""
        )
        if "replace" not in comment and not (">-" in began and "# replace" in began):
            silent.append(line)
    assert silent == []


def test_a_node_can_install_what_it_is_sent(tmp_path: Path) -> None:
    """The mounted files are enough for pip to build the package that the nodes install."""
    mounts, others = (load(name)["file_mounts"] for name in FILES)
    assert mounts == others
    source = tmp_path / "spectral-sweeps"
    source.mkdir()
    for remote, local in mounts.items():
        path = ROOT / local
        if remote.startswith("~/spectral-sweeps/"):
            copied = source / remote.removeprefix("~/spectral-sweeps/")
            (shutil.copytree if path.is_dir() else shutil.copy)(path, copied)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"]
    built = subprocess.run(
        [*pip, "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)],
        capture_output=True,
        text=True,
    )

    assert built.returncode == 0, built.stderr
    assert [path.name.partition("-")[0] for path in tmp_path.glob("*.whl")] == ["spectral_sweeps"]
    assert (source / "constraints.txt").is_file()


def test_mlflow_is_where_the_sweep_file_says() -> None:
    """The service on the head listens where the comment of `cluster-gpu.yaml` sends the driver."""
    commands = load("cluster-gpu.yaml")["head_start_ray_commands"]
    [service] = [command for command in commands if "/sweep server" in command]
    text = (ROOT / "cluster-gpu.yaml").read_text(encoding="utf-8")

    assert options(service)["unit"] == "sweep-server"
    words = shlex.split(service.partition("/bin/sweep ")[2])
    assert words[0] == "server"
    assert words[words.index("--port") + 1] == "5000"
    assert "--host" not in words  # the drivers are on the head; everybody else comes through SSH
    assert 'tracking: {uri: "http://127.0.0.1:5000"}' in text


# --- ray up, as far as the first SSH connection ------------------------------------------------

STAND_IN = """\
#!/bin/bash
echo "$0 $*" >> "$CALLS"
"""


def test_ray_up_sends_the_token_and_starts_the_head(tmp_path: Path) -> None:
    """The real `ray up cluster.yaml`; `ssh` and `rsync` are stand-ins that note what they get."""
    content = load(FILES[0])
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    for name in ("ssh", "rsync"):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(STAND_IN)
        (folder / name).chmod(0o755)
    secrets_there = (".ray/auth_token", ".ssh/id_ed25519")
    for path in (tmp_path / each for each in secrets_there):
        path.parent.mkdir()
        path.write_text("secret")

    done = subprocess.run(
        [VENV / "bin" / "ray", "up", "--yes", "--no-config-cache", FILES[0]],
        cwd=ROOT,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "RAY_TMPDIR": str(tmp_path),
            "CALLS": str(calls),
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    said = calls.read_text()
    at = f"{content['auth']['ssh_user']}@{content['provider']['head_ip']}"
    for remote, local in content["file_mounts"].items():
        path = ROOT / local if not local.startswith("~") else tmp_path / local.removeprefix("~/")
        slash = "/" if path.is_dir() else ""
        shown = str(path) if local.startswith("~") else local
        assert f" {shown}{slash} {at}:{remote}{slash}\n" in said
    assert f" {tmp_path}/.ssh/id_ed25519 {at}:~/ray_bootstrap_key.pem\n" in said
    places = [
        said.index(f"{command})'")
        for key in ("initialization_commands", "setup_commands", "head_start_ray_commands")
        for command in content[key]
    ]
    assert places == sorted(places)


# --- the start commands, for real -------------------------------------------------------------


@contextlib.contextmanager
def home() -> Iterator[Path]:
    """A home folder as `ray up` leaves it: the token and the environment with Ray."""
    with tempfile.TemporaryDirectory(prefix="h", dir="/tmp") as name:
        folder = Path(name)
        (folder / "spectral-sweeps").mkdir()
        (folder / "spectral-sweeps" / ".venv").symlink_to(VENV)
        yield folder


def adapted(command: str, ports: dict[str, int], further: list[str]) -> str:
    """A start command for this machine, on which others may run Ray too.

    The ports are free ones. The autoscaler is left out: it would log in to the workers. What
    follows is added: `--block`, so that what was started ends with the command, and what two nodes
    on one machine may not share.
    """
    command = command.replace(" --autoscaling-config=~/ray_bootstrap_config.yaml", "")
    for port, free in ports.items():
        command = re.sub(rf"(?<=[=:]){port}\b", str(free), command)
    agent, metrics = clusters.free_ports(2)
    return " ".join(
        [
            command,
            "--block --num-cpus=1 --num-gpus=0 --disable-usage-stats",
            f"--dashboard-agent-listen-port={agent} --metrics-export-port={metrics}",
            f"--object-store-memory={80 * 1024**2}",
            *further,
        ]
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_start_commands_make_a_cluster_that_wants_the_token() -> None:
    """Head and worker of `cluster.yaml` join; a driver without the token is told what is missing.

    The commands run in bash as they stand in the file, but for what `adapted` changes.
    """
    gcs, client, dashboard = clusters.free_ports(3)
    ports = dict(zip(PORTS, (gcs, client, dashboard), strict=True))
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW"))}
    with home() as folder, home() as stranger:
        environ = {**clean, "HOME": str(folder), "RAY_HEAD_IP": "127.0.0.1"}
        token = subprocess.run(
            [VENV / "bin" / "ray", "get-auth-token", "--generate"],
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        assert (folder / ".ray" / "auth_token").read_text() == token
        found = clusters.Cluster(
            python=sys.executable,
            folder=folder,
            token=token,
            dashboard=f"http://127.0.0.1:{dashboard}",
            client=f"ray://127.0.0.1:{client}",
            gcs=f"127.0.0.1:{gcs}",
            environment={},
        )

        def start(role: str, *further: str) -> clusters.Node:
            mark, log = secrets.token_hex(8), folder / f"{role}.log"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    ["bash", "-c", adapted(start_command(FILES[0], role), ports, [*further])],
                    env={**environ, clusters.MARK: mark},
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            node = clusters.Node(process, mark, log)
            found.nodes.append(node)
            return node

        try:
            head = start("head", f"--temp-dir={folder}/t")
            clusters.wait_until(lambda: len(found.alive()) == 1, head.log.read_text)
            worker = start("worker")
            clusters.wait_until(lambda: len(found.alive()) == 2, worker.log.read_text)
            (stranger / "toy.yaml").write_text("name: toy\ntask: modular_addition\n")
            refused = subprocess.run(
                [VENV / "bin" / "sweep", "run", "toy.yaml", "--address", found.client],
                env={**clean, "HOME": str(stranger)},
                cwd=stranger,
                capture_output=True,
                text=True,
            )
        finally:
            for node in reversed(found.nodes):
                found.kill(node)

    assert refused.returncode == 2, refused.stderr
    assert refused.stderr == (
        f"error: --address {found.client}: the cluster wants a token, and ours is missing or "
        "wrong. Ask its owner for it (on the head: ray get-auth-token), then set "
        "RAY_AUTH_MODE=token and either RAY_AUTH_TOKEN=... or write it to ~/.ray/auth_token.\n"
    )


# --- KubeRay ----------------------------------------------------------------------------------


def manifest() -> dict[str, Any]:
    """The objects of the manifest by kind/name."""
    found = ruamel.yaml.YAML(typ="safe").load_all(MANIFEST.read_text(encoding="utf-8"))
    return {f"{each['kind']}/{each['metadata']['name']}": each for each in found}


def pods() -> dict[str, Any]:
    """The pod templates of the manifest."""
    cluster = manifest()["RayCluster/spectral-sweeps"]["spec"]
    [workers] = cluster["workerGroupSpecs"]
    return {
        "head": cluster["headGroupSpec"]["template"]["spec"],
        "worker": workers["template"]["spec"],
        "mlflow": manifest()["Deployment/mlflow"]["spec"]["template"]["spec"],
    }


def test_the_manifest_is_a_ray_cluster_that_grows_from_nothing() -> None:
    """The fields that the custom resource ray.io/v1 asks for; GPU workers from 0 up."""
    objects = manifest()
    cluster = objects["RayCluster/spectral-sweeps"]
    spec = cluster["spec"]
    [workers] = spec["workerGroupSpecs"]

    assert list(objects) == [
        "PersistentVolumeClaim/sweeps",
        "PersistentVolumeClaim/mlflow",
        "RayCluster/spectral-sweeps",
        "Deployment/mlflow",
        "Service/mlflow",
    ]
    assert cluster["apiVersion"] == "ray.io/v1"
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] == 300
    for group in (spec["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        for container in group["template"]["spec"]["containers"]:
            # The autoscaler reads the limits; without equal requests pods are evicted.
            assert container["resources"]["limits"] == container["resources"]["requests"]
    assert (workers["groupName"], workers["minReplicas"], workers["replicas"]) == ("gpu", 0, 0)
    assert workers["maxReplicas"] >= 1
    assert pods()["worker"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_manifest_runs_the_pinned_ray() -> None:
    """Image, operator and constraints name one version of Ray."""
    text = (ROOT / "constraints.txt").read_text()
    [version] = re.findall(r"^ray==(.+)$", text, re.MULTILINE)
    [base] = re.findall(r"^FROM rayproject/ray:([\d.]+)-py311-gpu$", DOCKERFILE.read_text(), re.M)

    assert manifest()["RayCluster/spectral-sweeps"]["spec"]["rayVersion"] == version
    assert base == version == ray.__version__
    images = {c["image"] for pod in pods().values() for c in pod["containers"]}
    assert len(images) == 1
    assert images.pop().endswith(f":ray-{version}")


def test_the_manifest_has_the_ports_and_the_token_of_the_cluster_file() -> None:
    """KubeRay sets RAY_AUTH_MODE and RAY_AUTH_TOKEN itself; set twice, they would contradict."""
    spec = manifest()["RayCluster/spectral-sweeps"]["spec"]
    [head] = pods()["head"]["containers"]
    [worker] = pods()["worker"]["containers"]

    assert [str(port["containerPort"]) for port in head["ports"]] == list(PORTS)
    assert spec["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    for container in (head, worker):
        assert not {e["name"] for e in container.get("env", [])} & {
            "RAY_AUTH_MODE",
            "RAY_AUTH_TOKEN",
        }
    create = (
        "kubectl create secret generic ray-token --from-file=auth_token=$HOME/.ray/auth_token\n"
    )
    for path in (MANIFEST, ROOT / "docs" / "cluster.md"):
        assert create in path.read_text(encoding="utf-8"), path


def test_every_pod_of_the_cluster_sees_the_results() -> None:
    """One claim that many nodes may write, at one path."""
    claim = manifest()["PersistentVolumeClaim/sweeps"]["spec"]
    seen = {
        name: (pod["volumes"], pod["containers"][0]["volumeMounts"])
        for name, pod in pods().items()
        if name != "mlflow"
    }

    assert claim["accessModes"] == ["ReadWriteMany"]
    for volumes, mounts in seen.values():
        assert volumes == [{"name": "sweeps", "persistentVolumeClaim": {"claimName": "sweeps"}}]
        assert mounts == [{"name": "sweeps", "mountPath": "/shared"}]


def test_mlflow_keeps_its_files_and_no_pod_gets_its_variables() -> None:
    """Its folder is on the claim. A service named mlflow would set MLFLOW_PORT in every pod."""
    [container] = pods()["mlflow"]["containers"]
    args = container["args"]
    [mount] = container["volumeMounts"]

    assert mount == {"name": "mlflow", "mountPath": args[args.index("--folder") + 1]}
    assert pods()["mlflow"]["volumes"] == [
        {"name": "mlflow", "persistentVolumeClaim": {"claimName": "mlflow"}}
    ]
    assert [pod["enableServiceLinks"] for pod in pods().values()] == [False] * 3


def test_mlflow_answers_to_the_name_of_its_service() -> None:
    """`tracking: {uri: http://mlflow:5000}` in the sweep file reaches it, and is let in."""
    service = manifest()["Service/mlflow"]["spec"]
    labels = manifest()["Deployment/mlflow"]["spec"]["template"]["metadata"]["labels"]
    [container] = pods()["mlflow"]["containers"]
    command = [*container["command"], *container["args"]]

    assert service["selector"].items() <= labels.items()
    assert [port["port"] for port in service["ports"]] == [5000]
    assert command[:2] == ["sweep", "server"]
    assert command[command.index("--host") + 1] == "0.0.0.0"
    assert command[command.index("--allow-host") + 1] == "mlflow"
    assert "tracking: {uri: http://mlflow:5000}" in MANIFEST.read_text(encoding="utf-8")
