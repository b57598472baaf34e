"""Rows of the two measurement tables on their way from a trial to a shard."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator import files
from orchestrator.schemas import TABLES, TRIALS_KEY, decode, encode
from spectral import ScalarRow, SpectrumRow


class Buffer:
    """Rows measured and not yet published, column by column."""

    def __init__(self) -> None:
        self._columns: dict[str, dict[str, list[Any]]] = {
            table: {name: [] for name in schema.names} for table, schema in TABLES.items()
        }

    def scalars(self, trial_id: str, step: int, rows: Iterable[ScalarRow]) -> None:
        """Add rows of the scalars table."""
        self._extend("scalars", trial_id, step, rows)

    def spectra(self, trial_id: str, step: int, rows: Iterable[SpectrumRow]) -> None:
        """Add rows of the spectra table."""
        self._extend("spectra", trial_id, step, rows)

    def _extend(self, table: str, trial_id: str, step: int, rows: Iterable[Sequence[Any]]) -> None:
        columns = self._columns[table]
        names = TABLES[table].names[2:]
        for row in rows:
            columns["trial_id"].append(trial_id)
            columns["step"].append(step)
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)

    def __len__(self) -> int:
        return sum(len(columns["step"]) for columns in self._columns.values())

    def table(self, name: str) -> pa.Table:
        """The buffered rows of one table, in the order they were measured."""
        return pa.table(self._columns[name], schema=TABLES[name])

    def dump(self) -> dict[str, bytes]:
        """Everything, for a checkpoint."""
        return {name: encode(self.table(name)) for name in TABLES}

    @classmethod
    def restore(cls, dumped: dict[str, bytes]) -> Buffer:
        """The inverse of `dump`."""
        buffer = cls()
        for name, payload in dumped.items():
            table = decode(payload, TABLES[name], f"checkpointed {name}")
            buffer._columns[name] = {
                column: table[column].to_pylist() for column in table.column_names
            }
        return buffer

    def publish(
        self, root: Path, stem: str, trials: Sequence[Mapping[str, Any]] = ()
    ) -> list[dict[str, Any]]:
        """Write what is buffered as one shard per table, then forget it.

        Args:
            root: the store's folder.
            stem: `<trial or group>-<epoch>.<attempt>`; a nonce makes the name unique.
            trials: id, configuration, seed and parameters of the trials whose rows these are, so
                that a shard can be understood before any commit names it.

        Returns:
            A manifest entry per shard.

        Raises:
            StoreError: the storage refuses; the rows stay in the buffer.
        """
        metadata = {TRIALS_KEY: json.dumps(list(trials)).encode()}
        tables = {name: table for name in TABLES if (table := self.table(name)).num_rows}

        def write(name: str) -> dict[str, Any]:
            payload = encode(tables[name], metadata)
            relative = f"{name}/{stem}-{files.nonce()}.arrow"
            files.publish(root / relative, payload)
            return {
                "table": name,
                "path": relative,
                "rows": tables[name].num_rows,
                "bytes": len(payload),
                "checksum": files.checksum(payload),
            }

        # At once: each waits for the disk four times, and for nothing else.
        with ThreadPoolExecutor(max_workers=len(TABLES)) as pool:
            manifest = list(pool.map(write, tables))
        for columns in self._columns.values():
            for values in columns.values():
                values.clear()
        return manifest
