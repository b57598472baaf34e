"""What a submitted sweep is made of: written by the submitter, read again on the cluster.

The folder that is sent along is a shipment (see `shipping`) with `sweep/` beside it: the file,
verbatim, and `origin.json`, which says where it comes from and what it needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from orchestrator import environment
from orchestrator.job import ORIGIN
from orchestrator.shipping import OURS, Shipment, ship
from orchestrator.sweep import Sweep, parse

CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def content_hash(sweep: Sweep) -> str:
    """12 hexadecimal digits: equal for the same file, overrides and results folder."""
    parts = json.dumps([sweep.text, list(sweep.overrides), str(sweep.root)])
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def credentials_of(sweep: Sweep) -> dict[str, str]:
    """MLflow's credentials in this environment, if the sweep tracks to a server."""
    uri = sweep.tracking.uri or ""
    if not sweep.tracking.enabled or not uri.startswith(("http://", "https://")):
        return {}
    return {name: os.environ[name] for name in CREDENTIALS if os.environ.get(name)}


def stage(sweep: Sweep, folder: Path) -> Mapping[str, Any]:
    """Fill the folder that becomes the job's working directory; the same sweep, the same bytes."""
    shipment = ship(sweep, folder)
    [ours] = Distribution.discover(name=OURS, path=[str(folder)])
    origin = {
        "source": sweep.source,
        "base": str(sweep.base),
        "overrides": list(sweep.overrides),
        "storage": sweep.storage,
        "data": sweep.data,
        "git": environment.git_facts(sweep.base),
        "task": shipment.task,
        "requirements": shipment.requirements,
        "driver": shipment.driver,
        "version": ours.version,
    }
    file = folder / ORIGIN
    file.parent.mkdir()
    file.with_name("sweep.yaml").write_bytes(sweep.text.encode())
    file.write_text(json.dumps(origin, indent=1, sort_keys=True))
    return origin


def load(origin: Mapping[str, Any]) -> Sweep:
    """The sweep as its submitter loaded it, with the task and the storage as they are here.

    Args:
        origin: the content of `ORIGIN`; the working directory is the folder that was sent along.
    """
    given = [str(option) for option in origin["overrides"]]
    moves = ("task", "storage", "data")
    kept = [each for each in given if each.partition("=")[0].strip() not in moves]
    task = origin["task"]
    here = str(Path.cwd() / task) if ":" in task else task
    moved = [f"task={json.dumps(here)}", f"storage={json.dumps(origin['storage'])}"]
    moved += [f"data={json.dumps(origin['data'])}"] if origin["data"] is not None else []
    text = ORIGIN.with_name("sweep.yaml").read_bytes().decode()
    sweep = parse(text, source=origin["source"], base=Path.cwd(), overrides=[*kept, *moved])
    # What was said, not what it was turned into here: it decides whether the file has changed.
    return dataclasses.replace(sweep, overrides=tuple(given), base=Path(origin["base"]))


def shipment(origin: Mapping[str, Any]) -> Shipment:
    """What was sent along; it is the working directory."""
    needed = {
        name: tuple((each, version) for each, version in origin[name])
        for name in ("requirements", "driver")
    }
    return Shipment(Path.cwd(), origin["task"], **needed)


def sweep_words(source: str, overrides: Sequence[str]) -> list[str]:
    """A sweep as the command line of its submitter names it."""
    return [source, *(x for each in overrides for x in ("--set", each))]
