"""What a benchmark hands in: figures, each with all its repeats, as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.bare import REPOSITORY
from orchestrator import environment

OUT = REPOSITORY / "benchmarks" / "out"

BUSY = 0.25
"""Cores kept busy by others, before or after a benchmark, above which it judges no claim."""


@dataclass(frozen=True)
class Figure:
    """One line of a table: a quantity, measured once per repeat.

    Attributes:
        what: what it is.
        unit: of the values; empty for a ratio.
        values: one per repeat.
        most: the claim is that the quantity is at most this; None: there is no such claim.
        least: likewise, at least this.
        noise: by how much a value may be off, judged by how far equal runs of the rival differ.
    """

    what: str
    unit: str
    values: Sequence[float]
    most: float | None = None
    least: float | None = None
    noise: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def claim(self) -> str:
        """The claim, or nothing if there is none."""
        if self.most is not None:
            return f"<= {self.most:g} {self.unit}".rstrip()
        return f">= {self.least:g} {self.unit}".rstrip() if self.least is not None else ""

    @property
    def verdict(self) -> str:
        """Whether these values decide the claim."""
        lowest, highest = min(self.values) - self.noise, max(self.values) + self.noise
        if self.most is not None:
            held, missed = highest <= self.most, lowest > self.most
        else:
            assert self.least is not None
            held, missed = lowest >= self.least, highest < self.least
        return "held" if held else "**missed**" if missed else "**undecided**"


@dataclass
class Report:
    """One benchmark, as it lies in benchmarks/out/<name>.json (a quick one: <name>-quick.json)."""

    name: str
    quick: bool
    figures: list[Figure]
    raw: dict[str, Any] = field(default_factory=dict)  # every timing the figures are made of
    machine: dict[str, Any] = field(default_factory=dict)
    others: tuple[float, float] = (0.0, 0.0)  # cores kept busy by others, before and after
    measured_at: str = ""

    @property
    def command(self) -> str:
        return f"python -m benchmarks {self.name}" + (" --quick" if self.quick else "")

    @property
    def busy(self) -> bool:
        return max(self.others) > BUSY

    @property
    def judged(self) -> bool:
        """Whether its figures may decide a claim."""
        return not (self.quick or self.busy)

    def write(self) -> Path:
        path = OUT / (f"{self.name}-quick.json" if self.quick else f"{self.name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, name: str) -> Report | None:
        """What the last full run left, else the last quick one, else None."""
        for path in (OUT / f"{name}.json", OUT / f"{name}-quick.json"):
            if path.exists():
                content = json.loads(path.read_text())
                content["figures"] = [Figure(**figure) for figure in content["figures"]]
                return cls(**content)
        return None


def others(seconds: float = 2.0) -> float:
    """Cores that the rest of the machine keeps busy, while this process sleeps."""
    before = _busy_ticks()
    time.sleep(seconds)
    return (_busy_ticks() - before) / os.sysconf("SC_CLK_TCK") / seconds


def _busy_ticks() -> int:
    user, nice, system, _, _, interrupts, soft, stolen = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return user + nice + system + interrupts + soft + stolen


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    name = environment.record(OUT, "{}", threads=1, device="cpu")
    recorded = json.loads((OUT / "environments" / f"{name}.json").read_text())
    versions = recorded["versions"]
    return {
        "cpu": recorded["cpu"],
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.system(),
        "python": recorded["python"],
        **{package: versions[package] for package in ("torch", "numpy", "pyarrow", "ray")},
        "mlflow": metadata.version("mlflow"),
        "commit": str(environment.git_facts(REPOSITORY).get("git_commit", "unknown"))[:12],
    }
