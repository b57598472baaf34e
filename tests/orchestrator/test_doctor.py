"""`sweep doctor`: conditions made for real where that is possible, judged on given facts elsewhere.

The machines that run these tests have no GPU, so `nvidia-smi` is a script here that prints what the
real one prints; nor can they have a slow disk, a full one or a clock that differs.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator import doctor_checks as checks
from orchestrator import shipping
from orchestrator.doctor_checks import Finding
from orchestrator.doctor_local import determinism, packages, requirements, token
from orchestrator.node import Question, inspect
from tests.clusters import cluster, links

ROOT = Path(__file__).parents[2]
SWEEP = """
name: tiny
task: modular_addition
base: {steps: 10}
grid: {weight_decay: [0.0]}
seeds: 1
"""
SMI = """#!/bin/sh
case "$1" in
  --query-gpu=*) cat "$(dirname "$0")/gpus" ;;
  --query-compute-apps=*) cat "$(dirname "$0")/apps" ;;
esac
"""


def doctor(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a folder, which is also its home."""
    return sweep(folder, "doctor", *arguments, **variables)


def sweep(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Any command, likewise."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for name in ("SPECTRAL_SWEEPS_DATA", "HF_HOME", "HF_DATASETS_CACHE"):
        inherited.pop(name, None)
    environ = {**inherited, "HOME": str(folder), **variables}
    program = str(Path(sys.executable).with_name("sweep"))
    return subprocess.run(
        [program, *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=200
    )


def found(done: subprocess.CompletedProcess[str]) -> list[Finding]:
    """What `--json` printed that is not well.

    Limits and GPUs of this machine are left out, and how busy its disk is just now.
    """
    findings = [Finding(**each) for each in json.loads(done.stdout)["findings"]]
    return [
        finding
        for finding in findings
        if finding.level != "ok"
        and finding.subject != "machine"
        and "ms to be on the disk" not in finding.what
        and (finding.subject != "GPUs" or finding.where)
    ]


def distribution(folder: Path, name: str, version: str, package: str) -> None:
    """What pip leaves in an environment of a distribution, without its code."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text(f"{package}\n")


def smi(folder: Path, gpus: str, apps: str = "") -> str:
    """A PATH on which nvidia-smi prints these lines."""
    folder.mkdir(parents=True)
    (folder / "gpus").write_text(gpus)
    (folder / "apps").write_text(apps)
    (folder / "nvidia-smi").write_text(SMI)
    (folder / "nvidia-smi").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


# This machine


def test_a_machine_without_faults_is_told_so(tmp_path: Path) -> None:
    """Exit code 0, a line per check, nothing on stderr, nothing left behind."""
    done = doctor(tmp_path)
    lines = done.stdout.splitlines()

    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == f"ok       packages: spectral, tasks and orchestrator come from {ROOT}"
    assert lines[1].startswith("ok       versions: Python 3.")
    assert lines[2] == "ok       repeatability: `sweep` sets MKL_CBWR=AVX2,STRICT"
    assert lines[-2] == (
        f"ok       Ray token: there is none: no RAY_AUTH_TOKEN, and {tmp_path}/.ray/auth_token is "
        "missing or empty; Ray makes one when a sweep starts it here"
    )
    assert lines[-1].startswith(
        f"ok       data: {tmp_path}/.cache/spectral-sweeps (the default) is"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_tasks_module_on_the_path_is_named(tmp_path: Path) -> None:
    """A user's own tasks.py, first on the path: the sweep file, which needs ours, has to wait."""
    (tmp_path / "tasks.py").write_text("raise SystemExit('this must never be imported')")
    (tmp_path / "tiny.yaml").write_text(SWEEP)

    done = doctor(tmp_path, "tiny.yaml", "--json", PYTHONPATH=str(tmp_path))

    assert done.returncode == 1, done.stderr
    assert found(done) == [
        Finding(
            "problem",
            "packages",
            f"tasks is imported from {tmp_path}/tasks.py, not from {ROOT}/tasks/__init__.py",
            "Rename that file, or take its folder off PYTHONPATH.",
        ),
        Finding(
            "warning",
            "storage",
            "tiny.yaml was not looked at: first our packages must be found",
        ),
    ]


def test_a_tasks_module_in_the_working_directory_is_a_warning(tmp_path: Path) -> None:
    """The `sweep` command does not import it; programs and notebooks started there do."""
    (tmp_path / "tasks.py").touch()
    (tmp_path / "spectral").mkdir()
    (tmp_path / "spectral" / "data.txt").touch()  # a folder without Python files hides nothing

    done = doctor(tmp_path, "--json")

    assert (done.returncode, found(done)) == (
        0,
        [
            Finding(
                "warning",
                "packages",
                f"{tmp_path}/tasks.py hides ours from Python programs and notebooks started here",
                "Rename it.",
            )
        ],
    )


def test_a_checkout_of_this_project_hides_nothing() -> None:
    origins: dict[str, str | None] = {
        name: str(ROOT / name / "__init__.py") for name in ("spectral", "tasks", "orchestrator")
    }

    [finding] = packages(origins, ROOT)

    assert finding.level == "ok"


def test_another_distribution_with_our_names_is_named(tmp_path: Path) -> None:
    """There is a distribution called `spectral`: whichever was installed last wins."""
    distribution(tmp_path / "site", "spectral", "0.23.1", "spectral")

    done = doctor(tmp_path, "--json", PYTHONPATH=str(tmp_path / "site"))

    assert (done.returncode, found(done)) == (
        1,
        [
            Finding(
                "problem",
                "packages",
                "spectral also installs a package named spectral and may replace ours",
                "pip uninstall spectral; then pip install --force-reinstall --no-deps "
                "spectral-sweeps",
            )
        ],
    )


def test_a_version_outside_our_range_is_named(tmp_path: Path) -> None:
    """The ranges are those that the installed project declares."""
    distribution(tmp_path / "site", "numpy", "1.26.4", "numpy")

    done = doctor(tmp_path, "--json", PYTHONPATH=str(tmp_path / "site"))

    assert (done.returncode, found(done)) == (
        1,
        [
            Finding(
                "problem",
                "versions",
                "numpy 1.26.4 is installed; spectral-sweeps needs numpy<3,>=2.0",
                'pip install "numpy<3,>=2.0"',
            )
        ],
    )


def test_what_is_installed_here_is_within_the_ranges() -> None:
    assert [finding.level for finding in requirements()] == ["ok"]


def test_repeatability_wants_avx2_and_one_setting() -> None:
    """MKL is told to use AVX2 throughout; a shell that says otherwise runs other code."""
    setting = "AVX2,STRICT"

    assert determinism({}, "flags : avx avx2") == [
        Finding("ok", "repeatability", "`sweep` sets MKL_CBWR=AVX2,STRICT")
    ]
    assert determinism({"MKL_CBWR": setting}, "") == determinism({}, "")
    assert determinism({}, "flags : avx sse") == [
        Finding(
            "warning",
            "repeatability",
            "this processor has no AVX2, which MKL_CBWR=AVX2,STRICT counts on: results may not "
            "repeat",
            "Compare only what ran on machines with AVX2; means over seeds are not concerned.",
        )
    ]
    assert determinism({"MKL_CBWR": "COMPATIBLE"}, "flags : avx2") == [
        Finding(
            "warning",
            "repeatability",
            "MKL_CBWR is 'COMPATIBLE' in this shell; `sweep` uses 'AVX2,STRICT', your programs not",
            "export MKL_CBWR=AVX2,STRICT",
        )
    ]


# Ray's token


SECRET = "0123456789abcdef" * 3
SHOWN = hashlib.sha256(SECRET.encode()).hexdigest()[:8]
MAKE = (
    "Copy ~/.ray/auth_token of the cluster's head to this machine, or make the first one with "
    "`ray get-auth-token --generate` and copy it to every node."
)


@pytest.fixture
def home() -> Iterator[Path]:
    """A home that others may enter; pytest's own folders are closed to them."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        (Path(name) / ".ray").mkdir(mode=0o755)
        yield Path(name)


def test_a_token_is_described_and_never_shown(home: Path) -> None:
    """Eight digits of its SHA-256 are enough to compare two machines."""
    path = home / ".ray" / "auth_token"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)

    assert token({"RAY_AUTH_MODE": "token"}, home) == [
        Finding("ok", "Ray token", f"the one with SHA-256 {SHOWN}..., from {path}")
    ]


def test_a_token_file_that_others_can_read_is_a_warning(home: Path) -> None:
    """Ray makes it so itself; a closed home folder makes up for that."""
    path = home / ".ray" / "auth_token"
    path.write_text(SECRET)
    path.chmod(0o644)
    open_to_all = token({}, home)
    home.chmod(0o700)
    behind_a_door = token({}, home)

    assert open_to_all == [
        Finding(
            "warning",
            "Ray token",
            f"{path} can be read by other users of this machine: they can run code on the cluster",
            f"chmod 600 {path}",
        ),
        Finding("ok", "Ray token", f"the one with SHA-256 {SHOWN}..., from {path}"),
    ]
    assert behind_a_door == open_to_all[1:]


def test_the_token_is_looked_for_in_rays_order(home: Path, tmp_path: Path) -> None:
    """RAY_AUTH_TOKEN, then RAY_AUTH_TOKEN_PATH, then the file at home."""
    (home / ".ray" / "auth_token").write_text("c" * 40)
    (tmp_path / "t").write_text(SECRET)
    path = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "t")}

    [from_variable] = token({"RAY_AUTH_TOKEN": SECRET, **path}, home)
    [from_path] = token(path, home)[-1:]

    assert from_variable.what == f"the one with SHA-256 {SHOWN}..., from RAY_AUTH_TOKEN"
    assert from_path.what == f"the one with SHA-256 {SHOWN}..., from {tmp_path / 't'}"


def test_a_token_that_is_wanted_and_missing_is_a_problem(home: Path) -> None:
    """Also where RAY_AUTH_TOKEN_PATH names a file that is not there: Ray refuses to go on."""
    there = home / ".ray" / "auth_token"
    none = "there is none: no RAY_AUTH_TOKEN, and"

    assert token({"RAY_AUTH_MODE": "token"}, home) == [
        Finding(
            "problem",
            "Ray token",
            f"RAY_AUTH_MODE is token, but {none} {there} is missing or empty",
            MAKE,
        )
    ]
    assert token({"RAY_AUTH_TOKEN_PATH": "/no/such"}, home) == [
        Finding("problem", "Ray token", f"{none} /no/such is missing or empty", MAKE)
    ]
    assert token({"RAY_AUTH_MODE": "disabled"}, home) == [
        Finding("ok", "Ray token", f"{none} {there} is missing or empty")
    ]


def test_a_token_that_is_switched_off_or_a_mode_that_is_none_is_told(home: Path) -> None:
    assert token({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": SECRET}, home) == [
        Finding(
            "warning",
            "Ray token",
            f"the one with SHA-256 {SHOWN}..., from RAY_AUTH_TOKEN, is not used: RAY_AUTH_MODE is "
            "disabled",
            "export RAY_AUTH_MODE=token",
        )
    ]
    assert token({"RAY_AUTH_MODE": "tokens"}, home) == [
        Finding("problem", "Ray token", "RAY_AUTH_MODE is 'tokens'", "export RAY_AUTH_MODE=token")
    ]


# Storage and tracking of a sweep


def test_storage_and_tracking_of_a_sweep_file_are_tried(tmp_path: Path) -> None:
    """The folder is made for the trial and goes again; a server that is away is a problem."""
    (tmp_path / "tiny.yaml").write_text(SWEEP + "tracking: {uri: 'http://127.0.0.1:9'}\n")

    done = doctor(tmp_path, "tiny.yaml")
    lines = done.stdout.splitlines()

    assert done.returncode == 1
    assert " storage" in done.stdout
    assert lines[-1] == (
        "problem  tracking: the MLflow server at http://127.0.0.1:9 does not answer: connection "
        "refused. Start it, or correct the tracking uri."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


def test_a_folder_that_cannot_be_made_is_a_problem(tmp_path: Path) -> None:
    """Here because a file is in the way, which stops root as well."""
    (tmp_path / "results").touch()
    (tmp_path / "tiny.yaml").write_text(SWEEP + "tracking: none\n")

    done = doctor(tmp_path, "tiny.yaml", "--json")

    assert (done.returncode, found(done)) == (
        1,
        [
            Finding(
                "problem",
                "storage",
                f"{tmp_path}/results/tiny cannot be written here: Not a directory",
                "Change its permissions, or choose another folder with `storage:` in the file.",
            )
        ],
    )


def test_a_mistake_in_the_sweep_file_is_the_users(tmp_path: Path) -> None:
    """Exit code 2 with the file's problems, after what was found without it."""
    (tmp_path / "tiny.yaml").write_text(SWEEP.replace("steps: 10", "steps: ten"))

    done = doctor(tmp_path, "tiny.yaml")

    assert done.returncode == 2
    assert done.stdout.startswith("ok       packages:")
    assert done.stderr.startswith("error: tiny.yaml: 1 problem\n")


# Real data sets


def about_data(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str]]:
    """Level, text and fix of each finding about data; the free space, which changes, is `N`."""
    findings = [Finding(**each) for each in json.loads(done.stdout)["findings"]]
    return [
        (each.level, re.sub(r"\d+\.\d GB are free", "N GB are free", each.what), each.fix)
        for each in findings
        if each.subject == "data"
    ]


def put(folder: Path, *files: str) -> None:
    """Files of a data set, as far as their names go."""
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).touch()


def test_data_sets_that_are_complete_are_named_and_parts_of_one_are_a_warning(
    tmp_path: Path,
) -> None:
    """In the folder that the environment names; a sweep file's own goes first.

    The sweep of the file reads no data set, so nothing is said of what its trials need.
    """
    command = "hf download uoft-cs/cifar10 --repo-type dataset --local-dir"
    for name in ("mine", "the files"):
        put(tmp_path / name / "mnist", "train-00000-of-00001.parquet")
    put(tmp_path / "mine" / "cifar10", "train-00001-of-00002.parquet")
    (tmp_path / "tiny.yaml").write_text(f"{SWEEP}tracking: none\ndata: the files\n")

    named = doctor(tmp_path, "--json", SPECTRAL_SWEEPS_DATA="mine")
    of_file = doctor(tmp_path, "tiny.yaml", "--json", SPECTRAL_SWEEPS_DATA="mine")

    assert (named.returncode, about_data(named)) == (
        0,
        [
            (
                "ok",
                f"{tmp_path}/mine ($SPECTRAL_SWEEPS_DATA) can be read; N GB are free; complete: "
                "mnist",
                "",
            ),
            (
                "warning",
                "data set cifar10: of the 2 files of split 'train' in "
                f"{tmp_path}/mine/cifar10, counted from 0, these are not there: 0. What is "
                f"not there is downloaded with (all of it is about 144 MB): {command} "
                f"{tmp_path}/mine/cifar10",
                "",
            ),
        ],
    )
    what = f"{tmp_path}/the files (`data:` in the file) can be read; N GB are free; complete: mnist"
    assert (of_file.returncode, about_data(of_file)) == (0, [("ok", what, "")])


@pytest.mark.parametrize("way", ["is not there", "cannot be read: Not a directory"])
def test_a_folder_of_data_that_cannot_be_used_is_a_warning(tmp_path: Path, way: str) -> None:
    """One that somebody has named; that there is none by default says nothing."""
    if "directory" in way:
        (tmp_path / "sets").touch()

    done = doctor(tmp_path, "--json", SPECTRAL_SWEEPS_DATA="sets")

    [(level, what, fix)] = about_data(done)
    assert (done.returncode, level) == (0, "warning")
    assert what.startswith(f"{tmp_path}/sets ($SPECTRAL_SWEEPS_DATA) {way}; N GB are free")
    assert fix == (
        "Correct its name or its permissions: `data:` in a sweep file, or $SPECTRAL_SWEEPS_DATA."
    )


def test_data_that_a_sweep_still_needs_and_lacks_are_a_problem(tmp_path: Path) -> None:
    """With the place in the file; a set that is there is well."""
    put(tmp_path / "sets" / "mnist", "train-00000-of-00001.parquet")
    text = "name: s\ntask: image_generation\nbase: {steps: 1, data: mnist}\ngrid: {lr: [0.1]}\n"
    (tmp_path / "here.yaml").write_text(f"{text}tracking: none\ndata: sets\n")
    (tmp_path / "away.yaml").write_text(f"{text}tracking: none\ndata: {tmp_path}\n")

    here, away = (doctor(tmp_path, name, "--json") for name in ("here.yaml", "away.yaml"))

    [_, found_here], [_, found_away] = about_data(here), about_data(away)
    assert (here.returncode, found_here) == (
        0,
        ("ok", "nothing is missing for the trials still to run", ""),
    )
    assert (away.returncode, found_away[0]) == (1, "problem")
    assert found_away[1].startswith(
        f"data set mnist is not on this machine: looked in {tmp_path}/mnist. Download it there"
    )
    assert found_away[1].endswith("  @ line 3, column 24, $.base.data")


def test_tasks_that_cannot_be_imported_are_a_problem(tmp_path: Path) -> None:
    """Here because torch is broken; what can be said without it is said."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "torch.py").write_text("import absent_library")

    done = doctor(tmp_path, "--json", PYTHONPATH=f"{tmp_path}/broken:{ROOT}")

    what = "our tasks cannot be imported: No module named 'absent_library'"
    assert (done.returncode, done.stderr) == (1, "")
    assert about_data(done) == [("problem", what, "(Re)install absent_library.")]


# Facts of nodes


def node(host: str = "node-b", **given: Any) -> dict[str, Any]:
    """Facts of a node on which all is well, but for what is given."""
    well = {"host": host, "ip": "10.0.0.7", "python": "3.11.7", "versions": {}, "errors": []}
    return well | {"storage": folder(), "gpus": [], "gpu_error": None, "cuda": None} | given


def folder(**given: Any) -> dict[str, Any]:
    """A results folder with which all is well, but for what is given."""
    well = {"filesystem": "ext4", "exists": True, "marker": True, "writable": True, "links": True}
    more = {"fsync_ms": 1.25, "free_bytes": 80e9, "total_bytes": 100e9, "error": None}
    return well | more | {"hangs": False} | given


def test_storage_that_is_shared_and_fast_is_well() -> None:
    """The line says how many see it, and the slowest of them."""
    nodes = [node("laptop"), node("a", storage=folder(fsync_ms=7.04)), node("b")]

    assert checks.storage(nodes, "/shared", shared=True, embedded=True) == [
        Finding(
            "ok",
            "storage",
            "/shared (ext4) is writable and seen by 2 nodes; 4 KB are on the disk in 7 ms",
        )
    ]


def test_slow_storage_is_a_warning_and_very_slow_storage_a_problem() -> None:
    """Judged on given facts: a store whose fsync is slow cannot be made here."""
    nodes = [
        node("laptop"),
        node("a", storage=folder(fsync_ms=51.0)),
        node("b", storage=folder(fsync_ms=501.0)),
        node("c", storage=folder(fsync_ms=501.0)),
    ]
    fix = "Choose a faster folder, or fewer and longer trials and a larger checkpoint_seconds."
    slow = "ms to be on the disk; trials wait for that"

    assert checks.storage(nodes, "/shared", shared=True, embedded=False) == [
        Finding("warning", "storage", f"4 KB take 51 {slow}", fix, "a (10.0.0.7)"),
        Finding("problem", "storage", f"4 KB take 501 {slow}", fix, "b (10.0.0.7), c (10.0.0.7)"),
    ]


def test_storage_without_links_or_space_is_told() -> None:
    facts = folder(filesystem="fuse.sshfs", links=False, free_bytes=4.2e9)

    assert checks.storage([node("laptop", storage=facts)], "/x", shared=False, embedded=False) == [
        Finding(
            "problem",
            "storage",
            "the file system (fuse.sshfs) has no hard links, which results need",
            "Choose a folder on another file system with `storage:` in the file.",
            "laptop (10.0.0.7)",
        ),
        Finding(
            "warning",
            "storage",
            "the disk of the results folder is full to 96 %: 4.2 GB are free",
            "Free some space.",
            "laptop (10.0.0.7)",
        ),
    ]


def test_a_database_on_a_network_file_system_is_a_problem() -> None:
    """SQLite's locks do not hold there; the two ways out are named."""
    laptop = node("laptop", storage=folder(filesystem="nfs4"))

    assert checks.storage([laptop], "/shared", shared=False, embedded=True) == [
        Finding(
            "problem",
            "tracking",
            "MLflow's SQLite database would lie on a network file system (nfs4), where its locks "
            "do not hold",
            "Start a server with `sweep server` and put its address into the file as `tracking:`, "
            "or write `tracking: none` and watch with `sweep ui`.",
        ),
        Finding("ok", "storage", "/shared (nfs4) is writable; 4 KB are on the disk in 1.2 ms"),
    ]


# GPUs


def test_gpus_and_who_uses_them_are_read_from_nvidia_smi(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also who is not seen here: processes of another container."""
    me = Path("/proc/self").owner()
    lines = [
        "0, GPU-aa, 535.104.05, 81920, 31000, NVIDIA A100-SXM4-80GB",
        "1, GPU-bb, 535.104.05, 81920, 4, NVIDIA A100-SXM4-80GB",
        "2, GPU-cc, 535.104.05, 6144, 320, NVIDIA T4, passed through",
        "3, GPU-dd, 535.104.05, [N/A], [N/A], NVIDIA GB10",
    ]
    apps = f"GPU-aa, {os.getpid()}, 30000, /usr/bin/python3, old\nGPU-aa, 4194399, [N/A], vllm\n"
    monkeypatch.setenv("PATH", smi(tmp_path / "bin", "\n".join(lines) + "\n", apps))
    facts = inspect(Question())
    end = "End it, or keep Ray off that GPU: CUDA_VISIBLE_DEVICES before `ray start`."

    assert facts["gpus"][0]["processes"] == 2
    assert facts["gpus"][3]["memory_mib"] is None
    assert checks.gpus(facts, 4) == [
        Finding(
            "warning",
            "GPUs",
            "GPU 0 (NVIDIA A100-SXM4-80GB): 31000 of 81920 MiB are in use by /usr/bin/python3, old "
            f"(process {os.getpid()}, {me}), vllm (process 4194399)",
            end,
        ),
        Finding(
            "warning",
            "GPUs",
            "GPU 2 (NVIDIA T4, passed through): 320 of 6144 MiB are in use by a process not seen "
            "here",
            end,
        ),
    ]


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch is a build with CUDA")
def test_a_torch_without_cuda_is_found_out_by_asking_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked in a process of its own, and only where there is a GPU."""
    nothing = inspect(Question(torch=True))["cuda"]
    monkeypatch.setenv("PATH", smi(tmp_path / "bin", "0, GPU-aa, 535.1, 16000, 3, NVIDIA T4\n"))

    facts = inspect(Question(torch=True))

    assert nothing is None
    assert checks.gpus(facts) == [
        Finding(
            "problem",
            "GPUs",
            "1 GPU, of which torch sees 0: it is a build without CUDA",
            "Install a build of torch with CUDA; pytorch.org names the command.",
        )
    ]


def test_a_failing_nvidia_smi_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives its reason on stdout and a code that is not 0."""
    path = smi(tmp_path / "bin", "")
    (tmp_path / "bin" / "nvidia-smi").write_text(
        "#!/bin/sh\necho 'Failed to initialize NVML: Driver/library version mismatch'; exit 18\n"
    )
    monkeypatch.setenv("PATH", path)

    assert checks.gpus(inspect(Question()), 0) == [
        Finding(
            "problem",
            "GPUs",
            "nvidia-smi fails: Failed to initialize NVML: Driver/library version mismatch",
            "Make `nvidia-smi` work there: after an update of NVIDIA's driver, reboot.",
        )
    ]


CARD = {"index": 0, "name": "NVIDIA T4", "driver": "470.1", "memory_mib": 16000, "used_mib": 3}
TORCH = {"count": 2, "built_for": "13.0", "visible": None, "error": None}


@pytest.mark.parametrize(
    ("cuda", "offered", "expected"),
    [
        ({}, None, ("ok", "2 GPUs (NVIDIA T4), free", "")),
        ({}, 2.0, ("ok", "2 GPUs (NVIDIA T4), free", "")),
        (
            {"count": 0},
            None,
            (
                "problem",
                "2 GPUs, of which torch sees 0: driver 470.1 is too old for CUDA 13.0 of this "
                "torch, or this container is not given the devices",
                "Update NVIDIA's driver, or install a build of torch for an older CUDA.",
            ),
        ),
        (
            {"count": 0, "visible": ""},
            None,
            (
                "problem",
                "2 GPUs, of which torch sees 0: CUDA_VISIBLE_DEVICES is ''",
                "unset CUDA_VISIBLE_DEVICES (where `ray start` is called), unless this is meant.",
            ),
        ),
        (
            {"count": 1, "visible": "1"},
            None,
            (
                "warning",
                "2 GPUs, of which torch sees 1: CUDA_VISIBLE_DEVICES is '1'",
                "unset CUDA_VISIBLE_DEVICES (where `ray start` is called), unless this is meant.",
            ),
        ),
        (
            {"count": None, "error": "ImportError: libcudart.so.13: not found"},
            None,
            (
                "problem",
                "torch cannot be imported: ImportError: libcudart.so.13: not found",
                "(Re)install torch.",
            ),
        ),
        (
            {},
            1.0,
            (
                "warning",
                "Ray offers 1 GPUs, nvidia-smi sees 2",
                "There: `ray start ... --num-gpus=2` and without CUDA_VISIBLE_DEVICES.",
            ),
        ),
        (
            {},
            3.0,
            (
                "problem",
                "Ray offers 3 GPUs, nvidia-smi sees 2",
                "There: `ray start ... --num-gpus=2`.",
            ),
        ),
    ],
)
def test_torch_and_ray_must_see_what_nvidia_smi_sees(
    cuda: dict[str, Any], offered: float | None, expected: tuple[str, str, str]
) -> None:
    """Judged on given facts: drivers cannot be exchanged here."""
    level, what, fix = expected
    facts = node(gpus=[CARD, {**CARD, "index": 1}], cuda=TORCH | cuda)

    assert checks.gpus(facts, offered) == [Finding(level, "GPUs", what, fix)]


# Nodes


def test_a_clock_counts_only_as_far_as_the_way_does_not_explain_it() -> None:
    """An answer that was 6 s on its way may have been given at any time in between."""
    fix = "Switch on time synchronisation on both: timedatectl set-ntp true"
    well = Finding("ok", "clock", "within 2 s of this machine's")
    off = "this machine's: times in the tables are as far off"

    assert checks.clock(node(clock=1002.0), 1000.0, 1000.2) == [well]
    assert checks.clock(node(clock=1007.5), 1000.0, 1006.0) == [well]
    assert checks.clock(node(clock=1030.1), 1000.0, 1000.2) == [
        Finding("warning", "clock", f"30 s ahead of {off}", fix)
    ]
    assert checks.clock(node(clock=400.0), 1000.0, 1000.0) == [
        Finding("warning", "clock", f"600 s behind {off}", fix)
    ]


def test_versions_that_differ_and_are_missing_name_the_command() -> None:
    """Ray and torch must be there; the rest is installed when a sweep begins."""
    driver = node("laptop", versions={"ray": "2.60.0", "torch": "2.13.0+cpu", "scipy": "1.17.1"})
    other = node(versions={"ray": "2.59.0", "torch": None, "scipy": None}, python="3.12.0")

    assert checks.versions([other], driver) == [
        Finding(
            "problem",
            "versions",
            "ray: 2.60.0 here, 2.59.0 on node-b (10.0.0.7)",
            'Everywhere: pip install "ray==2.60.0"; then start Ray again.',
        ),
        Finding(
            "problem",
            "versions",
            "Python: 3.11 here, 3.12 on node-b (10.0.0.7)",
            "Use Python 3.11.7 on every machine, with torch and Ray installed for it.",
        ),
        Finding(
            "problem",
            "versions",
            "torch is not installed on node-b (10.0.0.7)",
            'There: pip install "torch==2.13.0"; then start Ray again.',
        ),
        Finding(
            "warning",
            "versions",
            "scipy is not installed on node-b (10.0.0.7)",
            "A sweep installs it when it begins; with it there, sweeps begin sooner.",
        ),
    ]


def test_the_doctor_asks_for_what_a_sweep_needs() -> None:
    """Written down twice: the doctor must work where importing `tasks` would go wrong."""
    assert (set(checks.GIVEN), set(checks.WORKER)) == (set(shipping.GIVEN), set(shipping._WORKER))


def test_a_machine_without_room_for_ray_is_told() -> None:
    """Judged on given facts, such as those of a container with Docker's 64 MB of shared memory."""
    limits = {
        "open_files": 1024,
        "memory_bytes": 64e9,
        "shm_bytes": 64e6,
        "temporary": {"folder": "/tmp", "free_bytes": 2e9, "total_bytes": 100e9},
    }

    assert checks.machine(node(machine=limits)) == [
        Finding(
            "warning",
            "machine",
            "1024 files may be open at once; many workers need more",
            "ulimit -n 65536, before Ray starts.",
        ),
        Finding(
            "warning",
            "machine",
            "/dev/shm holds 0.1 GB of 64 GB memory; Ray wants 30 %",
            "docker run --shm-size=20g; on Kubernetes an emptyDir with `medium: Memory` at "
            "/dev/shm.",
        ),
        Finding(
            "problem",
            "machine",
            "the disk of Ray's temporary files (/tmp) is full to 98 %: 2.0 GB are free",
            "Free some space, or start Ray with --temp-dir on a larger disk: beyond 95 % it "
            "refuses.",
        ),
    ]
    assert checks.machine(node(machine={}, errors=["machine: gone"])) == [
        Finding("warning", "machine", "machine: gone")
    ]


def test_an_address_that_does_not_answer_is_the_users_mistake(tmp_path: Path) -> None:
    """Exit code 2, after what was found on this machine."""
    done = doctor(tmp_path, "--address", "127.0.0.1:1")

    assert done.returncode == 2
    assert done.stdout.startswith("ok       packages:")
    assert done.stderr.startswith("error: --address 127.0.0.1:1: no answer: connection refused.")


# A real cluster


@pytest.mark.ray
@pytest.mark.slow
def test_a_cluster_is_examined_node_by_node(home: Path) -> None:
    """The second node has Ray, another numpy, a disk of its own, and a GPU that Ray does not see.

    Over its results folder another disk is mounted, in a mount namespace of its own; what the
    question needs is sent along, for nothing of this project is installed there.
    """
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("`unshare -m` is not permitted here: a second node cannot have its own mounts")
    (home / "results").mkdir()
    (home / "tiny.yaml").write_text(f"{SWEEP}storage: results\n")
    bare = links(home / "venv", "ray[default]")
    [site] = (home / "venv").glob("lib/python*/site-packages")
    distribution(site, "numpy", "2.0.0", "numpy")
    smi(home / "bin", "0, GPU-aa, 535.104.05, 16000, 3, NVIDIA T4\n")
    python = home / "bin" / "python"  # beside nvidia-smi: a node finds what lies beside its Python
    mount = f"mount -t tmpfs none {home}/results"
    python.write_text(f'#!/bin/sh\nexec unshare -m sh -c \'{mount} && exec {bare} "$@"\' sh "$@"\n')
    python.chmod(0o755)
    with cluster(cpus=1) as ray:
        ray.python = str(python)
        ray.add_node(node_ip_address="127.0.0.2", object_store_memory="80000000")

        done = doctor(home, "tiny.yaml", "--address", ray.gcs, "--json", **ray.credentials)
        launch = sweep(home, "run", "tiny.yaml", "--address", ray.gcs, **ray.credentials)
        wrong = {**ray.credentials, "RAY_AUTH_TOKEN": "x" * 32}
        refused = doctor(home, "--address", ray.client, **wrong)
        left = [path.name for path in (home / "results").iterdir()]

    second = f"{socket.gethostname()} (127.0.0.2)"
    here = {name: importlib.metadata.version(name).partition("+")[0] for name in checks.WORKER}
    lacking = [
        Finding(
            "warning",
            "versions",
            f"{name} is not installed on {second}",
            "A sweep installs it when it begins; with it there, sweeps begin sooner.",
            "cluster",
        )
        for name in ("scipy", "pyarrow")
    ]
    assert done.returncode == 1, done.stderr
    assert found(done) == [
        Finding(
            "problem",
            "versions",
            f"numpy: {here['numpy']} here, 2.0.0 on {second}",
            f'Everywhere: pip install "numpy=={here["numpy"]}"; then start Ray again.',
            "cluster",
        ),
        Finding(
            "problem",
            "versions",
            f"torch is not installed on {second}",
            f'There: pip install "torch=={here["torch"]}"; then start Ray again.',
            "cluster",
        ),
        *lacking,
        Finding(
            "problem",
            "tracking",
            "this cluster has 2 nodes, and MLflow would be kept in the SQLite database in the "
            "results folder, a file that only one machine can write safely. Either give the URI of "
            "a server (`tracking: {uri: http://HOST:5000}`; `sweep server` starts one and prints "
            "the line), or write `tracking: none` and watch with `sweep ui TARGET` on a machine "
            "that can read the results folder",
            "",
            "cluster",
        ),
        Finding(
            "problem",
            "storage",
            f"{home}/results/tiny is not the same folder on every node: what this machine writes "
            f"there is not seen on {second}.",
            "Mount a shared file system at the same path on all nodes and here, and choose a "
            "folder on it with `storage:` in the file or --set storage=/shared/results.",
            "cluster",
        ),
        Finding(
            "problem",
            "GPUs",
            "torch cannot be imported: ModuleNotFoundError: No module named 'torch'",
            "(Re)install torch.",
            second,
        ),
        Finding(
            "problem",
            "GPUs",
            "Ray offers 0 GPUs, nvidia-smi sees 1",
            "There: `ray start ... --num-gpus=1` and without CUDA_VISIBLE_DEVICES.",
            second,
        ),
    ]
    findings = [Finding(**each) for each in json.loads(done.stdout)["findings"]]
    tracking = next(each.what for each in findings if each.subject == "tracking")
    sent = "it was sent, and the cluster has not refused it"
    assert Finding("ok", "Ray token", sent, "", "cluster") in findings
    [clock] = [each for each in findings if each.subject == "clock"]
    assert (clock.level, clock.what) == ("ok", "within 2 s of this machine's")
    assert len(clock.where.split(", ")) == 2
    assert clock.where.count(second) == 1
    assert left == []
    assert launch.returncode == 2, launch.stderr
    assert launch.stderr == (
        f"error: tiny.yaml on the cluster at {ray.gcs}: 4 problems\n"
        f"  {tracking}\n"
        f"  numpy: {here['numpy']} here, 2.0.0 on {second}\n"
        f"  {home}/results/tiny is not the same folder on every node: what this machine writes "
        f"there is not seen on {second}. Mount a shared file system at the same path on all nodes "
        "and here, and choose a folder on it with `storage:` in the file or --set "
        "storage=/shared/results.\n"
        f"  torch is not installed on {second}: install torch=={here['torch']} there\n"
    )
    assert refused.returncode == 2, refused.stderr
    assert "the cluster wants a token, and ours is missing or wrong." in refused.stderr
