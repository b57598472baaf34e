"""What ran an attempt: code, versions, hardware, flags. Recorded, never part of a trial's identity.

Also the check that worker and driver run the same code. The import names `spectral` and `tasks` are
generic, and a user's own `tasks.py` on a worker's path would shadow ours.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator import files
from orchestrator.errors import ClusterError

DETERMINISM = {"MKL_CBWR": "AVX2,STRICT"}
"""Set before torch is imported; without it results depend on memory alignment and thread count."""

SEEN_SECONDS = 15.0
"""Network file systems cache the content of folders for so long at most, with their defaults."""

PACKAGES = ("spectral", "tasks", "orchestrator")
_VERSIONS = ("torch", "numpy", "scipy", "pyarrow", "pydantic", "ray", "spectral-sweeps")
_DIFF_LIMIT = 1_000_000  # characters of `git diff` kept; a larger one is cut and says so


@functools.cache  # once per process: the code that was imported is the code that runs
def package_digests() -> dict[str, str]:
    """Import name -> the file it is imported from and, after a space, a digest of its sources.

    The same code has the same digest wherever it is installed, travels to, or lies.
    """
    found = {}
    for name in PACKAGES:
        file = Path(str(importlib.import_module(name).__file__))
        parts = hashlib.blake2b(digest_size=8)
        # A lone module, which is none of ours, does not own the files beside it.
        package = file.name == "__init__.py"
        for path in sorted(file.parent.rglob("*.py")) if package else [file]:
            parts.update(f"{path.relative_to(file.parent).as_posix()}\0".encode())
            parts.update(path.read_bytes())
        found[name] = f"{file} {parts.hexdigest()}"
    return found


def check_packages(expected: Mapping[str, str]) -> None:
    """Refuse to run with other code than the driver's.

    Args:
        expected: what `package_digests` says where the driver runs.

    Raises:
        ClusterError: names each package that differs and where it was found.
    """
    found = package_digests()
    differing = [
        name
        for name, origin in expected.items()
        if found[name].rpartition(" ")[2] != origin.rpartition(" ")[2]
    ]
    if differing:
        lines = "\n".join(
            f"  {name}: driver {expected[name]}, worker {found[name]}" for name in differing
        )
        raise ClusterError(
            f"the worker on {platform.node()} does not run the driver's code:\n{lines}\n"
            "Install the same spectral-sweeps on every node, and rename your own module or package "
            "if one of these is yours (spectral, tasks and orchestrator are taken)."
        )


def check_device(device: str) -> None:
    """Refuse a GPU that Ray counts and torch cannot use: every trial would fail in turn.

    Raises:
        ClusterError: torch sees no GPU here.
    """
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        raise ClusterError(
            f"the worker on {platform.node()} was given a GPU by Ray, but torch "
            f"{torch.__version__}, {built}, sees none. Install a torch for its driver (nvidia-smi "
            "names the newest CUDA it takes), correct --num-gpus of `ray start`, or ask for none: "
            "--set resources.gpus=0."
        )


def check_store(root: Path, epoch: int) -> None:
    """Refuse a machine where another folder lies at the store's path, or none.

    The epoch's file is there, because the driver has just published it; the caches of a network
    file system may take some seconds to see it.

    Raises:
        ClusterError: it is not seen.
    """
    path = root / "epochs" / f"{epoch:06d}.json"
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the worker on {platform.node()} does not see the results folder {root}: what the "
                "driver has written there is not in it. Mount the same file system there."
            )
        time.sleep(0.2)


def git_facts(folder: Path) -> dict[str, Any]:
    """Commit and uncommitted changes of the repository that holds a folder; else empty."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    diff = _git(folder, "diff", "HEAD") or ""
    cut = {"git_diff_cut_at": _DIFF_LIMIT} if len(diff) > _DIFF_LIMIT else {}
    return {"git_commit": commit.strip(), "git_diff": diff[:_DIFF_LIMIT], **cut}


def record(root: Path, facts: str, *, threads: int, device: str) -> str:
    """Describe this process and publish the description once.

    Args:
        root: the store's folder.
        facts: what the driver knows, as JSON: git state, task source hash.
        threads: intra-op threads of the attempt.
        device: "cpu" or a CUDA device.

    Returns:
        Its hash, 16 hex characters: the `environment` column of the trials table.
    """
    payload = _description(facts, threads, device)
    name = hashlib.sha256(payload).hexdigest()[:16]
    path = root / "environments" / f"{name}.json"
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another worker with the same environment
            files.publish(path, payload)
    return name


@functools.lru_cache  # asked at every attempt, found out once per process
def _description(facts: str, threads: int, device: str) -> bytes:
    import torch

    described = {
        **json.loads(facts),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _VERSIONS},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "threads": threads,
        "flags": {
            **{name: os.environ.get(name) for name in (*DETERMINISM, "OMP_NUM_THREADS")},
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_tf32": device.startswith("cuda") and _cudnn_tf32(),
        },
    }
    return json.dumps(described, sort_keys=True, indent=1).encode()


def _cudnn_tf32() -> bool:
    """Whether convolutions or LSTMs in float32 are rounded to TF32 on a GPU."""
    import torch

    cudnn: Any = torch.backends.cudnn  # its attributes are made when it is imported
    # not `allow_tf32`, which raises if a task's code set one of these two
    return "tf32" in (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
