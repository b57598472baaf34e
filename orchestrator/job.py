"""The driver of a submitted sweep, on the head of the cluster: `python -m orchestrator.job`.

It runs in the folder that was sent along and begins with nothing but Python and Ray: imports at the
top are the standard library's. What else a driver needs and is not installed is installed by Ray
itself, into a virtual environment of this node, in which this process starts again. Then the
shipped file is run as `sweep run FILE --address auto` would run it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ORIGIN = Path("sweep") / "origin.json"
"""Where the sweep comes from, inside the folder that is sent along; beside it the file itself."""

PYTHON = "SPECTRAL_SWEEPS_PYTHON"
"""The variable by which the driver's command line finds Ray's own Python: `python` may be another
one, or none, where Ray was not started from an active environment."""

_INSTALLED = "SPECTRAL_SWEEPS_INSTALLED"  # set in the process that starts again


def name_python() -> None:
    """Ray calls this first in every process of the job, also in the one that starts the driver."""
    os.environ[PYTHON] = sys.executable


def main() -> NoReturn:
    """Run the shipped sweep and end the process with the exit code of `sweep run`."""
    arguments = _arguments(sys.argv[1:])
    origin = json.loads(ORIGIN.read_text(encoding="utf-8"))
    if problem := _unfit(origin):
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    if missing := _missing(origin["driver"]):
        _start_again(missing)
    from orchestrator.errors import SpectralSweepsError

    try:
        code = _run(origin, arguments)
    except SpectralSweepsError as error:
        print(f"error: {for_the_head(str(error))}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def for_the_head(text: str) -> str:
    """A message of the driver, with the place where MLflow's credentials are looked for in a job.

    Those of who submits are not sent along if they said so.
    """
    return text.replace(
        "where the sweep is started",
        "in the environment of `ray start` on the head, or write both to ~/.mlflow/credentials "
        "there",
    )


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m orchestrator.job")
    parser.add_argument("--address", required=True, help="what the submitter called this cluster")
    parser.add_argument("--retry", choices=["failed"])
    parser.add_argument("--rerun")
    parser.add_argument("--keep", action="store_true")
    return parser.parse_args(words)


def _unfit(origin: Mapping[str, Any]) -> str:
    """Why a driver cannot run on this machine, whatever is installed besides; empty if it can."""
    where = f"the head of the cluster ({platform.node()})"
    if sys.version_info < (3, 11):  # noqa: UP036  nobody has installed this package there
        have = platform.python_version()
        return f"{where} has Python {have}; spectral-sweeps needs 3.11 or later"
    for name in ("torch", "ray"):
        if _version(name) is None:
            return (
                f"{name} is not installed for {sys.executable} on {where}. A cluster has Ray and "
                "torch; start Ray with the environment active that has them, so that `python` is "
                "its Python"
            )
    storage = Path(origin["storage"])
    if not storage.is_dir() and not storage.parent.is_dir():
        return (
            f"{origin['source']}: 1 problem\n  the storage folder {storage} is not on {where}, nor "
            "is the folder that it would be made in: give an absolute storage folder that every "
            "node sees, --set storage=/shared/results"
        )
    return ""


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _missing(requirements: Sequence[Sequence[str]]) -> list[str]:
    return [f"{name}=={version}" for name, version in requirements if _version(name) is None]


def _start_again(missing: Sequence[str]) -> NoReturn:
    """Let Ray install these on this node, and replace this process by one that has them."""
    names = ", ".join(missing)
    if os.environ.get(_INSTALLED):
        print(f"error: Ray has not installed {names}", file=sys.stderr)
        sys.exit(3)
    print(f"installing on the head: {names}", file=sys.stderr, flush=True)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(num_cpus=0, max_retries=0)(lambda: sys.executable)
    options = {"scheduling_strategy": here, "runtime_env": {"pip": list(missing)}}
    try:
        python = ray.get(task.options(**options).remote())
    except ray.exceptions.RayError as error:
        print(f"error: {_refusal(names, str(error))}", file=sys.stderr)
        sys.exit(2)
    ray.shutdown()
    os.environ[_INSTALLED] = "1"
    # Ray keeps this environment for later: it removes unused ones beyond 10 GB, the oldest first.
    os.execv(python, [python, "-m", "orchestrator.job", *sys.argv[1:]])


def _refusal(names: str, text: str) -> str:
    errors = re.findall(r"^\s*(ERROR: .*)", text, re.MULTILINE)  # pip's; the last says it best
    why = f"  {errors[-1] if errors else text.strip()[-1500:]}"
    return (
        f"the driver needs {names}, and Ray cannot install that on the head of the cluster "
        f"({platform.node()}):\n{why}\n"
        "Install it there for Ray's Python, or let the head reach a package index"
    )


def _run(origin: Mapping[str, Any], arguments: argparse.Namespace) -> int:
    from orchestrator import cli, staging
    from orchestrator.driver import Options

    sweep = staging.load(origin)
    options = Options(
        retry_failed=arguments.retry is not None,
        keep=arguments.keep,
        rerun=sweep.select(arguments.rerun) if arguments.rerun not in (None, "changed") else (),
        rerun_changed=arguments.rerun == "changed",
        address="auto",
        shipment=staging.shipment(origin),
        git=origin["git"],
    )
    words = staging.sweep_words(origin["source"], origin["overrides"])
    return cli.run_loaded(
        sweep,
        options,
        resume=shlex.join(["sweep", "submit", *words, "--address", arguments.address]),
        alone=["sweep", "run", *words],
    )


if __name__ == "__main__":
    main()
