"""The GPUs of one node and who uses them. Standard library only; see `orchestrator.node`."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_SMI_SECONDS = 5.0
_TORCH_SECONDS = 60.0
"""A first import of torch from a cold network file system takes long."""


def gpus() -> tuple[list[dict[str, Any]], str | None]:
    """What nvidia-smi says of every GPU and of the processes on it.

    Returns:
        The GPUs: index, name, driver (its version), memory_mib, used_mib, processes (their number),
        users (a list of pid, mib, name, user); and nvidia-smi's complaint, if it failed. None: it
        cannot tell.
    """
    try:
        cards = _smi("gpu=index,uuid,driver_version,memory.total,memory.used,name")
    except FileNotFoundError:
        return [], None  # a machine without NVIDIA's driver
    except (OSError, subprocess.SubprocessError) as error:
        return [], _words(error)
    processes: list[list[str]] = []
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # not every card can tell
        processes = _smi("compute-apps=gpu_uuid,pid,used_memory,process_name")
    found = []
    for index, uuid, driver, total, used, name in cards:
        users = [
            {"pid": _whole(pid), "mib": _whole(mib), "name": program, "user": _owner(pid)}
            for card, pid, mib, program in processes
            if card == uuid
        ]
        found.append(
            {
                "index": _whole(index),
                "name": name,
                "driver": driver,
                "memory_mib": _whole(total),
                "used_mib": _whole(used),
                "processes": len(users),
                "users": users,
            }
        )
    return found, None


def cuda() -> dict[str, Any]:
    """What torch sees, asked in a process of its own because torch is never unloaded.

    Returns:
        count (of GPUs), built_for (CUDA's version; None for a CPU build), visible (the variable
        CUDA_VISIBLE_DEVICES; None where it is not set), error (a text).
    """
    facts: dict[str, Any] = {"count": None, "built_for": None, "error": None}
    facts["visible"] = os.environ.get("CUDA_VISIBLE_DEVICES")
    code = "import json, torch; print(json.dumps([torch.cuda.device_count(), torch.version.cuda]))"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_TORCH_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        return facts | {"error": _words(error)}
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        return facts | {"error": lines[-1] if lines else "no output"}
    count, built_for = json.loads(done.stdout.splitlines()[-1])
    return facts | {"count": count, "built_for": built_for}


def _smi(query: str) -> list[list[str]]:
    """The rows of an answer; only the last column may hold commas."""
    done = subprocess.run(
        ["nvidia-smi", f"--query-{query}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=_SMI_SECONDS,
    )
    if done.returncode != 0:  # it gives its reason on stdout
        text = " ".join((done.stdout + done.stderr).split())
        raise subprocess.SubprocessError(text or f"nvidia-smi ended with {done.returncode}")
    commas = query.count(",")
    lines = [line for line in done.stdout.splitlines() if line.count(",") >= commas]
    return [[cell.strip() for cell in line.split(",", commas)] for line in lines]


def _whole(text: str) -> int | None:
    return int(text) if text.isdigit() else None  # "[N/A]" where a card cannot tell


def _owner(pid: str) -> str | None:
    with contextlib.suppress(OSError, KeyError, ImportError):
        return Path(f"/proc/{pid}").owner()
    return None  # gone, or the number is of another container


def _words(error: Exception) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{error.cmd[0]} did not answer within {error.timeout:.0f} s"
    return str(error) or type(error).__name__
