"""The tables of a store and how they become bytes and come back.

Three narrow tables; adding a metric never changes one of them. The format version stands in the
schema metadata of every file, so that a reader refuses what it does not understand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.errors import DamageError, StoreError
from orchestrator.files import checksum

FORMAT_VERSION = 1

SHARD = pa.struct(
    [
        ("table", pa.string()),
        ("path", pa.string()),  # relative to the store's folder
        ("rows", pa.int64()),
        ("bytes", pa.int64()),
        ("checksum", pa.string()),
    ]
)

TRIALS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("config_id", pa.string()),
        ("seed", pa.int64()),
        ("params", pa.string()),  # JSON, every parameter resolved
        ("status", pa.string()),
        ("error_kind", pa.string()),
        ("error", pa.string()),
        ("last_step", pa.int64()),
        ("attempt", pa.int32()),
        ("epoch", pa.int32()),
        ("group_size", pa.int32()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("ended_at", pa.timestamp("us", tz="UTC")),
        ("wall_seconds", pa.float64()),
        ("host", pa.string()),
        ("device", pa.string()),
        ("environment", pa.string()),
        ("parents", pa.list_(pa.string())),
        ("reused_from", pa.string()),
        ("shards", pa.list_(SHARD)),
    ]
)

SCALARS = pa.schema(
    [
        ("trial_id", pa.string()),
        ("step", pa.int64()),
        ("subject", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("lower", pa.float64()),  # null: no bound is claimed
        ("upper", pa.float64()),
        ("method", pa.string()),
        ("flag", pa.string()),
    ]
)

SPECTRA = pa.schema(
    [
        ("trial_id", pa.string()),
        ("step", pa.int64()),
        ("subject", pa.string()),
        ("quantity", pa.string()),
        ("values", pa.list_(pa.float64())),
        ("bounds", pa.list_(pa.float32())),  # half widths, rounded up
        ("method", pa.string()),
        ("flag", pa.string()),
    ]
)

TABLES: Mapping[str, pa.Schema] = {"scalars": SCALARS, "spectra": SPECTRA}

RESULTS = ("completed", "diverged", "pruned")
"""Statuses that are a result; `failed` and `lost` are history."""

# Arrow's own threads may let go of a Python buffer while the interpreter is ending, which aborts
# the process (seen with pyarrow 25.0.1); our files are too small to gain from them.
_ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)

GENERALISES_BELOW = 0.05
"""Validation error below which a trial has generalised, where its task does not say otherwise."""

TRIALS_KEY = b"spectral_sweeps.trials"
"""Metadata of a shard: JSON list of its trials' id, configuration, seed and parameters."""

_VERSION_KEY = b"spectral_sweeps.format"
_SEAL_KEY = b"spectral_sweeps.seal"
_BLANK_SEAL = b"seal:" + b"0" * 32
_SEAL = re.compile(rb"seal:([0-9a-f]{32})")


def encode(table: pa.Table, metadata: Mapping[bytes, bytes] | None = None) -> bytes:
    """Serialise a table as an Arrow IPC file (lz4), with the format version in its metadata."""
    combined = {_VERSION_KEY: str(FORMAT_VERSION).encode(), **(metadata or {})}
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(sink, table.schema.with_metadata(combined), options=options) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def decode(payload: bytes, schema: pa.Schema, name: str) -> pa.Table:
    """Read an Arrow IPC file back.

    Raises:
        DamageError: the bytes are no complete Arrow file, or hold other columns.
        StoreError: the file was written by another format version.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(payload), options=_ONE_THREAD).read_all()
    except (pa.ArrowException, OSError) as error:
        raise DamageError(f"{name} is damaged: not a complete Arrow file ({error})") from error
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"?").decode(errors="replace")
    if version != str(FORMAT_VERSION):
        raise StoreError(
            f"{name} has store format {version}; this version of spectral-sweeps reads format "
            f"{FORMAT_VERSION}. Use the version that wrote it."
        )
    plain = table.replace_schema_metadata(None)
    if plain.schema != schema:
        raise DamageError(f"{name} is damaged: its columns are not those of the table")
    return plain


def read_parquet(payload: bytes) -> pa.Table:
    """A Parquet file as a table, read without Arrow's threads.

    Raises:
        pyarrow.ArrowException: the bytes are no complete Parquet file.
    """
    return pq.ParquetFile(pa.BufferReader(payload)).read(use_threads=False)


def trials_of(payload: bytes) -> list[dict[str, Any]]:
    """Whose rows a shard holds, as its writer described them; empty if it did not."""
    metadata = pa.ipc.open_file(pa.BufferReader(payload)).schema.metadata or {}
    described: list[dict[str, Any]] = json.loads(metadata.get(TRIALS_KEY, b"[]"))
    return described


def seal(table: pa.Table) -> bytes:
    """Serialise a commit segment with a checksum of itself inside.

    Shards are covered by the checksum in the commit that names them; nothing names a segment, so it
    carries its own: the checksum of the file with that field blank, written into the blank.
    """
    payload = encode(table, {_SEAL_KEY: _BLANK_SEAL})
    return payload.replace(_BLANK_SEAL, b"seal:" + checksum(payload).encode())


def unseal(payload: bytes, name: str) -> pa.Table:
    """Read a commit segment.

    Raises:
        DamageError: if a single bit differs from what was written.
    """
    stored = _SEAL.search(payload)  # before decoding: a damaged file may not even be parseable
    if stored is None:
        raise DamageError(f"{name} is damaged: not a complete commit segment")
    if checksum(payload.replace(stored[0], _BLANK_SEAL)) != stored[1].decode():
        raise DamageError(f"{name} is damaged: its content does not match its checksum")
    return decode(payload, TRIALS, name)


def commit_table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows of the trials table from plain mappings; a column that a row lacks is null."""
    return pa.Table.from_pylist([dict(row) for row in rows], schema=TRIALS)
