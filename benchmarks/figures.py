"""What a benchmark hands in: figures, each with all its repeats, as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.bare import REPOSITORY
from orchestrator import environment

OUT = REPOSITORY / "benchmarks" / "out"

BUSY = 0.25
"""Load of the minute before a benchmark above which its page says that the machine was busy."""


@dataclass(frozen=True)
class Figure:
    """One line of a table: a quantity, measured once per repeat.

    `most` or `least` is the claim: the median has to be at most or at least that.
    """

    what: str
    unit: str  # "" for a ratio
    values: Sequence[float]
    most: float | None = None
    least: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def claim(self) -> str:
        """The claim and whether it held, or nothing if there is none."""
        if self.most is not None:
            limit, held = f"<= {self.most:g}", self.median <= self.most
        elif self.least is not None:
            limit, held = f">= {self.least:g}", self.median >= self.least
        else:
            return ""
        return f"{limit} {self.unit}".strip() + (": held" if held else ": **missed**")


@dataclass
class Report:
    """One benchmark, as it lies in benchmarks/out/<name>.json."""

    name: str
    quick: bool
    figures: list[Figure]
    raw: dict[str, Any] = field(default_factory=dict)  # every timing the figures are made of
    machine: dict[str, Any] = field(default_factory=dict)
    load: tuple[float, float] = (0.0, 0.0)  # of the minute before, and of the last minute
    measured_at: str = ""

    @property
    def command(self) -> str:
        return f"python -m benchmarks {self.name}" + (" --quick" if self.quick else "")

    @property
    def busy(self) -> bool:
        """Others kept more than a quarter of a core busy when it began."""
        return self.load[0] > BUSY

    def write(self) -> Path:
        path = OUT / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path

    @classmethod
    def read(cls, name: str) -> Report | None:
        path = OUT / f"{name}.json"
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        content["figures"] = [Figure(**figure) for figure in content["figures"]]
        return cls(**content)


def load() -> float:
    """Processes that wanted a core in the last minute, on average."""
    return os.getloadavg()[0]


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
        "commit": str(environment.git_facts(REPOSITORY).get("git_commit", "unknown"))[:12],
    }
