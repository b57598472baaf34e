"""Leading singular vectors on disk: one Arrow file per trial and step, under factors/ of a store.

A trial that compares its vectors with the final ones keeps those of every snapshot here until it
can; most are scratch and go with its commit. Files that stay are named by the commit like any
shard, with the table "factors", and are read through `orchestrator.kept`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator import files
from orchestrator.schemas import FORMAT_VERSION

if TYPE_CHECKING:
    from orchestrator.measure import Measure

TABLE = "factors"
"""The `table` of a manifest entry, and the folder."""

NUMBERS = ("values", "left_errors", "right_errors", "left_span_errors", "right_span_errors")
_VECTORS = ("left", "right")

FACTORS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("step", pa.int64()),
        ("subject", pa.string()),
        ("m", pa.int64()),  # the matrix is m x n
        ("n", pa.int64()),
        ("k", pa.int64()),
        *((name, pa.list_(pa.float64())) for name in NUMBERS),
        *((name, pa.list_(pa.float32())) for name in _VECTORS),  # column after column
    ]
)

_METADATA = {b"spectral_sweeps.format": str(FORMAT_VERSION).encode()}
_NAME = re.compile(r"factors/(?P<stem>.+)-(?P<step>\d+)-[0-9a-f]{8}\.arrow")


@dataclass(frozen=True)
class FactorArrays:
    """The k leading singular triples of one m x n matrix, without torch.

    Attributes:
        values: float64 (k,), descending singular values.
        left: float32 (m, k), left singular vectors as columns.
        right: float32 (n, k), right singular vectors as columns.
        left_errors: float64 (k,), bounds of the sine of the angle to the true vector; 1: unknown.
        right_errors: likewise of `right`.
        left_span_errors: float64 (k,), entry j: the same of the span of the first j + 1 columns.
        right_span_errors: likewise of `right`.
    """

    values: NDArray[np.float64]
    left: NDArray[np.float32]
    right: NDArray[np.float32]
    left_errors: NDArray[np.float64]
    right_errors: NDArray[np.float64]
    left_span_errors: NDArray[np.float64]
    right_span_errors: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the matrix."""
        return self.left.shape[0], self.right.shape[0]


def write(
    root: Path, stem: str, trial_id: str, step: int, factors: Mapping[str, FactorArrays]
) -> dict[str, Any]:
    """Publish the factors of one trial at one step.

    Args:
        root: the store's folder.
        stem: `<trial>-<epoch>.<attempt>`; step and a nonce make the name unique.
        trial_id: whose they are.
        step: when they were measured.
        factors: by the name of the matrix view; at least one.

    Returns:
        A manifest entry, as `Buffer.publish` makes them: table, path, rows, bytes, checksum.

    Raises:
        StoreError: the storage refuses.
    """
    sink = pa.BufferOutputStream()
    _write_to(sink, trial_id, step, factors)
    payload = bytes(sink.getvalue())
    relative = f"{TABLE}/{stem}-{step}-{files.nonce()}.arrow"
    files.publish(root / relative, payload)
    return {
        "table": TABLE,
        "path": relative,
        "rows": len(factors),
        "bytes": len(payload),
        "checksum": files.checksum(payload),
    }


def read(root: Path, entry: Mapping[str, Any]) -> dict[str, FactorArrays]:
    """The factors that a manifest entry names, by the name of the matrix view.

    Raises:
        DamageError: the file is missing or differs from what was written.
        StoreError: the storage refuses.
    """
    from orchestrator.store import Store  # here: it knows the schema above

    return dict(arrays_of(Store(root).read_shard(entry)))


def discard(root: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Remove the files of these manifest entries; one that is gone already is no error.

    Raises:
        StoreError: the storage refuses.
    """
    for entry in entries:
        path = root / entry["path"]
        with files.storage_errors(path, "remove"):
            path.unlink(missing_ok=True)


def discard_scratch(root: Path, trial_id: str, kept: Collection[str]) -> None:
    """Remove what any attempt at a trial has left, once its result is committed.

    Args:
        root: the store's folder.
        trial_id: the trial.
        kept: paths that some commit names, relative to the store's folder.

    Raises:
        StoreError: the storage refuses.
    """
    found = (f"{TABLE}/{path.name}" for path in (root / TABLE).glob(f"{trial_id}-*.arrow"))
    discard(root, [{"path": path} for path in found if path not in kept])


def num_bytes(shapes: Mapping[str, tuple[int, int]], measure: Measure) -> int:
    """The size of the file that `write` makes for matrices of these shapes (m, n), by view."""
    sink = pa.MockOutputStream()  # it counts, so the zeros below never come to lie in memory
    _write_to(sink, "0" * 16, 0, {view: _blank(*mn, measure) for view, mn in shapes.items()})
    return int(sink.size())


def by_step(shards: Iterable[Mapping[str, Any]] | None) -> dict[int, Mapping[str, Any]]:
    """Step -> manifest entry of the factors among the shards of a commit, ascending."""
    found = {
        int(match["step"]): shard
        for shard in shards or ()
        if shard["table"] == TABLE and (match := _NAME.fullmatch(shard["path"]))
    }
    return dict(sorted(found.items()))


def arrays_of(table: pa.Table) -> Iterator[tuple[str, FactorArrays]]:
    """The rows of a table with the schema FACTORS: (subject, arrays)."""
    for row in (batch.slice(i, 1) for batch in table.to_batches() for i in range(len(batch))):
        numbers = {name: row[name][0].values.to_numpy().copy() for name in NUMBERS}
        m, n, k = (row[name][0].as_py() for name in ("m", "n", "k"))
        flat = (row[name][0].values.to_numpy() for name in _VECTORS)
        # copies: torch wants arrays that may be written to
        left, right = (x.copy().reshape(k, size).T for x, size in zip(flat, (m, n), strict=True))
        yield row["subject"][0].as_py(), FactorArrays(left=left, right=right, **numbers)


def _write_to(
    sink: pa.NativeFile, trial_id: str, step: int, factors: Mapping[str, FactorArrays]
) -> None:
    """One record batch per view, not compressed: there is nothing to gain in such numbers."""
    with pa.ipc.new_file(sink, FACTORS.with_metadata(_METADATA)) as writer:
        for subject, each in factors.items():
            m, n = each.shape
            one = {"trial_id": trial_id, "step": step, "subject": subject}
            one |= {"m": m, "n": n, "k": len(each.values)}
            columns = [pa.array([value], FACTORS.field(name).type) for name, value in one.items()]
            lists = [getattr(each, name).astype(np.float64, copy=False) for name in NUMBERS]
            for name in _VECTORS:
                vectors = getattr(each, name).astype(np.float32, copy=False)
                lists.append(vectors.ravel(order="F"))
            for flat in lists:
                offsets = pa.array([0, len(flat)], pa.int32())
                columns.append(pa.ListArray.from_arrays(offsets, pa.array(flat)))
            writer.write_batch(pa.RecordBatch.from_arrays(columns, names=FACTORS.names))


def _blank(m: int, n: int, measure: Measure) -> FactorArrays:
    k = measure.num_vectors(min(m, n))
    numbers = {name: np.zeros(k) for name in NUMBERS}
    left, right = (np.zeros((k, size), np.float32).T for size in (m, n))
    return FactorArrays(left=left, right=right, **numbers)
