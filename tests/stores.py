"""Small real stores for tests, written through the project's own publishing functions.

    store = build_store(tmp_path / "demo", [trial(0, weight_decay=1.0, seed=0), ...])

Values are formulas of (step, weight_decay, seed), so that a test can state the truth.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import files
from orchestrator.rows import Buffer
from orchestrator.schemas import FORMAT_VERSION, commit_table, seal
from orchestrator.store import Store
from spectral import ScalarRow, SpectrumRow

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STEPS = (0, 1, 10, 100)
SUBJECTS = ("layers.0.a", "layers.0.b")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FakeTrial:
    """One trial as it will stand in the store."""

    seed: int = 0
    params: dict[str, Any] = field(default_factory=lambda: {"weight_decay": 0.0, "lr": 0.001})
    status: str = "completed"
    steps: Sequence[int] = STEPS
    error: str | None = None

    @property
    def config_id(self) -> str:
        return _hash(self.params)

    @property
    def trial_id(self) -> str:
        return _hash([self.params, self.seed])


def loss_value(step: int, weight_decay: float, seed: int) -> float:
    """The training loss that `build_store` writes; the validation loss is twice that."""
    return math.exp(-step / 50) + 0.01 * seed + weight_decay


def rank_value(step: int, weight_decay: float, seed: int) -> float:
    """The normalised effective rank that `build_store` writes for every subject."""
    return 0.9 - weight_decay * math.log10(step + 1) / 4 + 0.001 * seed


def build_store(
    root: Path,
    trials: Sequence[FakeTrial],
    *,
    name: str | None = None,
    axes: Sequence[str] = ("weight_decay",),
    committed: bool = True,
    rows: Callable[[FakeTrial], Buffer] | None = None,
) -> Store:
    """Write a store of one epoch and one commit segment (none unless `committed`).

    `rows` makes the rows of a trial; by default they follow the formulas of this module.
    """
    for folder in ("epochs", "sweep", "trials", "scalars", "spectra", "checkpoints"):
        (root / folder).mkdir(parents=True)
    ids = [t.trial_id for t in trials]
    parameters = sorted({key for t in trials for key in t.params})
    sweep = {
        "name": name or root.name,
        "task": "modular_addition",
        "task_version": 1,
        "overrides": [],
        "source": "sweeps/fake.yaml",
        "base": str(root),
        "axes": list(axes),
        "parameters": parameters,
        "accepted_at": START.isoformat(),
    }
    accept(root, 1, sweep, ids)
    epoch = {
        "format": FORMAT_VERSION,
        "epoch": 1,
        "seen": {},
        "rerun": [],
        "sweep": 1,
        "host": "testhost",
        "pid": 1,
        "started_at": START.isoformat(),
        "command": "sweep run fake.yaml",
    }
    files.publish(root / "epochs" / "000001.json", files.seal_json(epoch))
    files.publish(root / "environments" / "00000000000000aa.json", b'{"python": "3.11"}')
    done = [t for t in trials if t.status != "running"] if committed else []
    commits = [commit_row(root, t, buffer=rows(t) if rows else None) for t in done]
    if commits:
        files.publish(root / "trials" / "000001-000001.arrow", seal(commit_table(commits)))
    for t in trials:
        if t.status == "running":
            commit_row(root, t)  # shards without a commit
    return Store.open(root)


def accept(root: Path, n: int, facts: dict[str, Any], ids: Sequence[str]) -> None:
    """Write one accepted version of a sweep file."""
    payloads = {"trials": "\n".join(ids).encode(), "yaml": f"name: {facts['name']}\n".encode()}
    sums = {suffix: files.checksum(payload) for suffix, payload in payloads.items()}
    for suffix, payload in payloads.items():
        (root / "sweep" / f"{n}.{suffix}").write_bytes(payload)
    sealed = files.seal_json({**facts, "checksums": sums})
    (root / "sweep" / f"{n}.json").write_bytes(sealed)


def formula_rows(t: FakeTrial) -> Buffer:
    """Rows of a trial whose values are formulas of step, weight decay and seed."""
    buffer = Buffer()
    decay = float(t.params.get("weight_decay", 0.0))
    for step in t.steps:
        rows = []
        loss, rank = loss_value(step, decay, t.seed), rank_value(step, decay, t.seed)
        for split, factor in (("train", 1.0), ("val", 2.0)):
            rows.append(ScalarRow(split, "loss", factor * loss, None, None, "evaluation", None))
            error = min(1.0, factor * loss / 2)
            rows.append(ScalarRow(split, "error", error, None, None, "evaluation", None))
        for subject in SUBJECTS:
            for metric, value in (
                ("effective_rank", 10 * rank),
                ("effective_rank/normalised", rank),
                ("norm/frobenius", 1.0 + decay),
            ):
                bounds = (value - 1e-9, value + 1e-9)
                rows.append(ScalarRow(subject, metric, value, *bounds, "gram64", None))
        buffer.scalars(t.trial_id, step, rows)
        values = rank * np.array([4.0, 2.0, 1.0])
        bounds32 = np.full(3, 1e-9, np.float32)
        buffer.spectra(
            t.trial_id,
            step,
            [SpectrumRow(s, "singular_values", values, bounds32, "gram64", None) for s in SUBJECTS],
        )
    return buffer


def commit_row(
    root: Path, t: FakeTrial, *, epoch: int = 1, attempt: int = 1, buffer: Buffer | None = None
) -> dict[str, Any]:
    """Publish a trial's shards and return the row that would commit them."""
    buffer = formula_rows(t) if buffer is None else buffer
    identity = {
        "trial_id": t.trial_id,
        "config_id": t.config_id,
        "seed": t.seed,
        "params": json.dumps(t.params, sort_keys=True),
    }
    shards = buffer.publish(root, f"{t.trial_id}-{epoch}.{attempt}", [identity])
    return {
        **identity,
        "status": t.status,
        "error_kind": "ValueError" if t.error else None,
        "error": t.error,
        "last_step": max(t.steps),
        "attempt": attempt,
        "epoch": epoch,
        "group_size": 1,
        "started_at": START,
        "ended_at": START + timedelta(seconds=10),
        "wall_seconds": 10.0,
        "host": "testhost",
        "device": "cpu",
        "environment": "00000000000000aa",
        "parents": [],
        "shards": shards,
    }


def canonical(store: Store) -> dict[str, list[str]]:
    """What "equal tables" means: scalars and spectra bitwise in a fixed order, and the trials.

    Floats are compared by their bits (`float.hex`), so that NaN equals NaN and 0.0 is not -0.0.
    """
    outcomes = store.outcomes("all")
    names = ("trial_id", "config_id", "params", "status", "last_step")
    found = {"trials": sorted(map(repr, outcomes.select(names).to_pylist()))}
    for table in ("scalars", "spectra"):
        rows = store.scan(table, outcomes).to_pylist()
        found[table] = sorted(repr([_bits(value) for value in row.values()]) for row in rows)
    return found


def _bits(value: Any) -> Any:
    if isinstance(value, float):
        return value.hex()
    return [_bits(item) for item in value] if isinstance(value, list) else value
