"""How many trials fit: what one trial asks for, against what each node has.

place(sweep.resources, [{"CPU": 8.0, "GPU": 2.0}], source="grokking.yaml")
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import SweepError


@dataclass(frozen=True)
class Placement:
    """What one worker is given, and how many there are.

    Attributes:
        device: "cpu" or "cuda".
        cpus: CPUs of a worker, and threads of its trials.
        gpus: GPUs of a worker, all on one node; below 1, a share of one.
        custom: likewise of the resources that the cluster's owner has named.
        workers: as many as fit the nodes that are there.
        most: as many as may be, should the cluster grow.
    """

    device: str
    cpus: int
    gpus: float
    custom: tuple[tuple[str, float], ...]
    workers: int
    most: int

    def describe(self) -> str:
        """What one trial asks for, for people: ``1 CPU, 0.5 GPUs and 1 v100``."""
        parts = [count_of(self.cpus, "CPU")]
        parts += [count_of(self.gpus, "GPU")] if self.gpus else []
        parts += [f"{amount:g} {name}" for name, amount in self.custom]
        return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def place(
    resources: Any,
    nodes: Sequence[Mapping[str, float]],
    *,
    source: str,
    limit: int | None = None,
    cluster: bool = False,
) -> Placement:
    """Where trials run.

    Args:
        resources: `sweep.Resources`; gpus `auto` is one if any node has a GPU.
        nodes: what each has: CPU, GPU and named resources -> amount.
        source: of the sweep, for errors.
        limit: at most this many at once.
        cluster: nodes may join later: what does not fit now is waited for, not refused.

    Raises:
        SweepError: one trial asks for more than this machine has.
    """
    gpus = resources.gpus
    if gpus == "auto":
        gpus = 1.0 if any(node.get("GPU", 0) for node in nodes) else 0.0
    wanted = {"CPU": float(resources.cpus), "GPU": float(gpus), **dict(resources.custom)}
    wanted = {name: amount for name, amount in wanted.items() if amount}
    workers = sum(_fitting(wanted, node) for node in nodes)
    if not workers and not cluster:
        raise SweepError(source, _shortages(wanted, nodes[0]))
    most = limit if limit is not None else 1_000_000
    if not cluster:
        most = min(most, workers)
    return Placement(
        device="cuda" if gpus else "cpu",
        cpus=resources.cpus,
        gpus=float(gpus),
        custom=tuple(resources.custom),
        workers=max(1, min(workers, most)),
        most=max(1, most),
    )


def _fitting(wanted: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Workers that fit one node: all that a worker is given is on the same one."""
    # Shares of a GPU never span two: three workers of 0.4 need two GPUs, not 1.2.
    whole = {"GPU": math.floor(1 / wanted["GPU"] + 1e-9)} if 0 < wanted.get("GPU", 0) < 1 else {}
    return min(
        math.floor(node.get(name, 0.0)) * whole[name]
        if name in whole
        else math.floor(node.get(name, 0.0) / amount + 1e-9)
        for name, amount in wanted.items()
    )


def _shortages(wanted: Mapping[str, float], has: Mapping[str, float]) -> list[str]:
    fields = {"CPU": "cpus", "GPU": "gpus"}
    return [
        f"resources.{fields.get(name, f'custom.{name}')}: a trial asks for "
        f"{count_of(amount, name) if name in fields else f'{amount:g}'}, this machine has "
        f"{has.get(name, 0.0):g}"
        + ("" if name in fields else "; only a cluster whose owner has named it has any")
        for name, amount in wanted.items()
        if amount > has.get(name, 0.0)
    ]


def count_of(count: float, noun: str) -> str:
    """A number and its noun: ``1 trial``, ``2 trials``."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"
