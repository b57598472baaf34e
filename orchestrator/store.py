"""The tables on disk: what was accepted, what was committed, and nothing else counts.

Workers publish shards; of a sweep only the driver commits, in segments. A driver run begins by
claiming the next epoch, in which it names the last segment of every earlier epoch that it has seen:
a later segment of those never counts. So a worker or driver thought dead can leave files behind,
but cannot change a result. A `Recorder` commits its own trial (see `orchestrator.recording`).

    store = Store.open("results/grokking")
    store.scan("scalars", store.outcomes(), metrics=["loss"])     # an Arrow table
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import checkpoints, files, recorded
from orchestrator.errors import DamageError, StoreError
from orchestrator.factors import FACTORS
from orchestrator.schemas import (
    FORMAT_VERSION,
    GENERALISES_BELOW,
    RESULTS,
    TABLES,
    TRIALS,
    decode,
    trials_of,
    unseal,
)

_EPOCH = re.compile(r"(\d{6})\.json")
_SEGMENT = re.compile(r"(\d{6})-(\d{6})\.arrow")
_SHARD = re.compile(r"(?P<stem>[0-9a-f]+)-(?P<epoch>\d+)\.(?P<attempt>\d+)-[0-9a-f]{8}\.arrow")


SHARDS: Mapping[str, pa.Schema] = {**TABLES, "factors": FACTORS}
"""What a commit may name: rows of the tables, and singular vectors that were kept."""


@dataclass(frozen=True)
class SweepRecord:
    """One accepted version of a sweep file, and what it came to at that moment.

    It names its trials, so that results can be read where the task's code is not installed. A
    folder of a `Recorder` has one record for all trials that were announced so far.
    """

    n: int
    text: str  # verbatim
    overrides: tuple[str, ...]  # what --set added
    source: str  # the file it came from
    base: str  # the folder against which its relative paths were read
    name: str
    task: str
    task_version: int
    axes: tuple[str, ...]
    parameters: tuple[str, ...]
    accepted_at: datetime
    ids: tuple[Path, str]  # the file that lists the trials, and its checksum
    announced: tuple[str, ...] | None = None  # trials of recorders; None: there is a sweep file
    generalises_below: float | None = GENERALISES_BELOW  # see `tasks.Task`

    @cached_property
    def trial_ids(self) -> tuple[str, ...]:
        """In the sweep's own order, seed by seed.

        Raises:
            DamageError: the file that lists them is missing or altered.
        """
        if self.announced is not None:
            return self.announced
        return tuple(files.read_checked(*self.ids).split())


@dataclass(frozen=True)
class Epoch:
    """One driver run, as it introduced itself."""

    n: int
    seen: Mapping[int, int]  # earlier epoch -> its last segment that counts
    rerun: frozenset[str]  # trials whose earlier results no longer count
    facts: Mapping[str, Any]  # host, pid, started_at, sweep, command


class Store:
    """Reads a store; see `orchestrator.session` for the driver's writing half.

    Nothing is cached between calls but the content of immutable files, so a reader beside a
    running driver sees each commit as it lands.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._segments: dict[str, pa.Table] = {}
        self._verified: set[str] = set()

    @classmethod
    def open(cls, root: str | Path) -> Store:
        """Open an existing store.

        Raises:
            StoreError: there is none, or another format version wrote it.
        """
        path = Path(root).expanduser().absolute()
        if not (path / "epochs").is_dir():
            held = "it does not exist" if not path.exists() else "it holds no epochs/ folder"
            raise StoreError(
                f"{path} is not a results folder: {held}. Give the folder that `sweep run` "
                "printed, for example results/grokking."
            )
        store = cls(path)
        for epoch in store.epochs()[:1]:
            version = epoch.facts.get("format")
            if version != FORMAT_VERSION:
                raise StoreError(
                    f"{path} has store format {version}; this version of spectral-sweeps reads "
                    f"format {FORMAT_VERSION}. Use the version that wrote it."
                )
        return store

    # --- epochs and commits ---------------------------------------------------------------

    def epochs(self) -> list[Epoch]:
        """Every claimed epoch, oldest first.

        Raises:
            DamageError: if one cannot be read.
        """
        folder = self.root / "epochs"
        numbers = sorted(int(m[1]) for p in folder.iterdir() if (m := _EPOCH.fullmatch(p.name)))
        if numbers != list(range(1, len(numbers) + 1)):
            missing = min(set(range(1, numbers[-1])) - set(numbers))
            raise DamageError(f"{folder} is damaged: {missing:06d}.json is missing")
        found = []
        for n in numbers:
            facts = files.unseal_json(folder / f"{n:06d}.json")
            seen = {int(epoch): int(last) for epoch, last in facts["seen"].items()}
            found.append(Epoch(n, seen, frozenset(facts["rerun"]), facts))
        return found

    def segment_names(self) -> list[tuple[int, int, str]]:
        """(epoch, sequence number, file name) of every segment on disk, counted or not."""
        names = (path.name for path in (self.root / "trials").glob("[0-9]*.arrow"))
        matches = (match for match in map(_SEGMENT.fullmatch, names) if match)
        return sorted((int(match[1]), int(match[2]), match[0]) for match in matches)

    def counted_segments(self) -> list[tuple[int, int, str]]:
        """The segments that count: those the next driver had seen when it claimed its epoch.

        Raises:
            DamageError: if a segment is missing, so that results would vanish in silence.
        """
        epochs = self.epochs()
        limits = {epoch.n: None for epoch in epochs} | {
            earlier.n: later.seen.get(earlier.n, 0) for earlier, later in itertools.pairwise(epochs)
        }
        segments = self.segment_names()
        if stray := [name for epoch, _, name in segments if epoch not in limits]:
            raise DamageError(
                f"{self.root / 'epochs'} is damaged: {stray[0][:6]}.json is missing, although "
                f"there is a segment trials/{stray[0]}"
            )
        counted = [
            (epoch, sequence, name)
            for epoch, sequence, name in segments
            if (last := limits[epoch]) is None or sequence <= last
        ]
        for n, last in limits.items():
            numbers = [sequence for epoch, sequence, _ in counted if epoch == n]
            expected = range(1, (last if last is not None else max(numbers, default=0)) + 1)
            if missing := sorted(set(expected) - set(numbers)):
                raise DamageError(
                    f"{self.root / 'trials'} is damaged: segment {n:06d}-{missing[0]:06d}.arrow is "
                    "missing. Restore it from a backup, or run the sweep again under a new name."
                )
        return counted

    def commits(self) -> pa.Table:
        """Every counted row of the trials table, history included, in commit order.

        Raises:
            DamageError: if a segment is missing or damaged; the message names it.
        """
        tables = [self._segment(name) for _, _, name in self.counted_segments()]
        return pa.concat_tables(tables) if tables else TRIALS.empty_table()

    def _segment(self, name: str) -> pa.Table:
        if name not in self._segments:
            path = self.root / "trials" / name
            with files.storage_errors(path, "read"):
                payload = path.read_bytes()
            segment = unseal(payload, str(path))
            if set(segment["epoch"].to_pylist()) - {int(name[:6])}:
                raise DamageError(f"{path} is damaged: its rows are of another epoch than its name")
            self._segments[name] = segment
        return self._segments[name]

    def fences(self) -> dict[str, int]:
        """Trial -> the epoch from which on its commits count, for trials that were run again."""
        fences: dict[str, int] = {}
        for epoch in self.epochs():
            fences.update(dict.fromkeys(epoch.rerun, epoch.n))
        return fences

    def outcomes(self, scope: str = "newest") -> pa.Table:
        """The result of each trial that has one: its first counted commit with such a status.

        Args:
            scope: "newest" for the trials of the newest sweep file, "all" for every trial.

        Returns:
            Rows of the trials table, in the newest file's order, then in commit order.
        """
        commits = self.commits()
        fence = self.fences()
        columns = (commits["trial_id"], commits["status"], commits["epoch"])
        first: dict[str, int] = {}
        rows = zip(*(column.to_pylist() for column in columns), strict=True)
        for index, (trial_id, status, epoch_n) in enumerate(rows):
            if status in RESULTS and epoch_n >= fence.get(trial_id, 0):
                first.setdefault(trial_id, index)
        sweeps = self.sweeps()
        named = sweeps[-1].trial_ids if sweeps else ()
        order = [first[trial_id] for trial_id in named if trial_id in first]
        if scope == "all":
            known = set(named)
            order += [index for trial_id, index in first.items() if trial_id not in known]
        elif scope != "newest":
            raise ValueError(f"scope must be 'newest' or 'all', got {scope!r}")
        return commits.take(pa.array(order, pa.int64()))

    # --- rows -----------------------------------------------------------------------------

    def scan(
        self,
        table: str,
        outcomes: pa.Table,
        *,
        subjects: Sequence[str] | None = None,
        metrics: Sequence[str] | None = None,
    ) -> pa.Table:
        """Rows that exactly these commits select from the shards they name.

        A commit selects its own trial's rows only: a neighbour in the same shard stays invisible
        until its own commit. Checksums are verified when a shard is first read.

        Args:
            table: "scalars" or "spectra".
            outcomes: rows of the trials table.
            subjects: keep these subjects only.
            metrics: keep these metrics (scalars) or quantities (spectra) only.

        Raises:
            DamageError: a shard is missing, cut short or altered; the message names it.
        """
        schema = TABLES[table]
        wanted: dict[str, tuple[dict[str, Any], list[str]]] = {}
        columns = (outcomes["trial_id"].to_pylist(), outcomes["shards"].to_pylist())
        for trial_id, shards in zip(*columns, strict=True):
            for shard in shards or ():
                if shard["table"] == table:
                    wanted.setdefault(shard["path"], (shard, []))[1].append(trial_id)
        parts = []
        for shard, trial_ids in wanted.values():
            part = self.read_shard(shard)
            keep = pc.is_in(part["trial_id"], pa.array(trial_ids, pa.string()))
            if subjects is not None:
                chosen = pa.array(list(subjects), pa.string())
                keep = pc.and_(keep, pc.is_in(part["subject"], chosen))
            if metrics is not None:
                column = "metric" if table == "scalars" else "quantity"
                chosen = pa.array(list(metrics), pa.string())
                keep = pc.and_(keep, pc.is_in(part[column], chosen))
            parts.append(part.filter(keep))
        return pa.concat_tables(parts) if parts else schema.empty_table()

    def read_shard(self, shard: Mapping[str, Any]) -> pa.Table:
        """One shard, whole, as its manifest entry describes it.

        Raises:
            DamageError: it is missing or differs from what was committed.
        """
        path = self.root / shard["path"]
        try:
            payload = path.read_bytes()
        except FileNotFoundError as error:
            raise DamageError(f"{path} is missing, although a commit names it") from error
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if shard["path"] not in self._verified:
            if len(payload) != shard["bytes"]:
                raise DamageError(
                    f"{path} is damaged: {len(payload)} bytes where {shard['bytes']} were committed"
                )
            if files.checksum(payload) != shard["checksum"]:
                raise DamageError(f"{path} is damaged: its content does not match its checksum")
            self._verified.add(shard["path"])
        return decode(payload, SHARDS[shard["table"]], str(path))

    def running(self) -> pa.Table:
        """What uncommitted attempts have shown so far, as rows of status "running".

        Of each trial without a result: the shards that its newest checkpoint names, and those that
        its newest attempt published since. Such rows may still change; results never use them.
        """
        done = set(self.outcomes("all")["trial_id"].to_pylist())
        commits = self.commits()
        columns = (commits[name].to_pylist() for name in ("trial_id", "epoch", "attempt"))
        ended = set(zip(*columns, strict=True))  # attempts that failed or were lost
        newest: dict[str, tuple[tuple[int, int], list[str]]] = {}
        for table in TABLES:
            for path in sorted((self.root / table).glob("[0-9a-f]*.arrow")):
                match = _SHARD.fullmatch(path.name)
                if match is None or match["stem"] in done:
                    continue
                when = (int(match["epoch"]), int(match["attempt"]))
                known = newest.get(match["stem"])
                if known is None or when > known[0]:
                    newest[match["stem"]] = known = (when, [])
                if when == known[0]:
                    known[1].append(f"{table}/{path.name}")
        rows = []
        folder = self.root / "checkpoints"
        stems = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
        for trial_id in sorted((set(newest) | stems) - done):
            header = checkpoints.newest_header(self.root, trial_id)
            shards = {s["path"]: s for s in (header.shards if header else ())}
            (epoch, attempt), paths = newest.get(trial_id, ((0, 0), []))
            if not epoch and header is not None:  # nothing published yet: the checkpoint tells
                epoch, attempt = header.epoch, header.attempt
            if (trial_id, epoch, attempt) in ended:
                continue
            described = header.trial if header else {"trial_id": trial_id}
            for path_name in paths:
                if path_name not in shards:
                    payload = (self.root / path_name).read_bytes()
                    shards[path_name] = _describe(path_name, payload)
                    described = next(iter(trials_of(payload)), described)
            rows.append(
                {
                    **described,
                    "status": "running",
                    "last_step": header.step if header else None,
                    "epoch": epoch or None,
                    "attempt": attempt or None,
                    "shards": list(shards.values()),
                }
            )
        return pa.Table.from_pylist(rows, schema=TRIALS)

    # --- what was accepted ----------------------------------------------------------------

    def sweeps(self) -> list[SweepRecord]:
        """Every accepted version of the sweep file, oldest first.

        Raises:
            DamageError: if one cannot be read.
        """
        folder = self.root / "sweep"
        paths = folder.glob("[0-9]*.json")
        records = [_read_record(path) for path in sorted(paths, key=lambda path: int(path.stem))]
        accepted = max((int(epoch.facts["sweep"]) for epoch in self.epochs()), default=0)
        if missing := set(range(1, accepted + 1)) - {record.n for record in records}:
            raise DamageError(f"{folder} is damaged: {min(missing)}.json is missing")
        return records

    def created_at(self) -> datetime:
        """When the first epoch was claimed (UTC): constant for the life of the store."""
        return datetime.fromisoformat(self.epochs()[0].facts["started_at"]).astimezone(UTC)

    def environments(self) -> dict[str, dict[str, Any]]:
        """Environment hash -> what ran an attempt: versions, hardware, source, flags.

        Raises:
            DamageError: if one cannot be read.
        """
        found = {}
        for path in (self.root / "environments").glob("[0-9a-f]*.json"):
            try:
                found[path.stem] = json.loads(path.read_bytes())
            except (OSError, ValueError) as error:
                raise DamageError(f"{path} is damaged: {error}") from error
        return found

    # --- projections ----------------------------------------------------------------------

    def publish(self, relative: str, payload: bytes) -> None:
        """Create a new immutable file; see `files.publish`."""
        files.publish(self.root / relative, payload)

    def replace(self, relative: str, payload: bytes) -> None:
        """Write a projection that can be rebuilt (trends, report); see `files.replace`."""
        files.replace(self.root / relative, payload)


def _read_record(path: Path) -> SweepRecord:
    facts = files.unseal_json(path)
    announced = recorded.read(path.parent.parent) if facts.get("recorded") else None
    if announced is not None:
        names = sorted({name for trial in announced for name in trial.params})
        facts = {**facts, "axes": recorded.axes(announced), "parameters": names}
    return SweepRecord(
        n=int(path.stem),
        text=files.read_checked(path.with_suffix(".yaml"), facts["checksums"]["yaml"]),
        overrides=tuple(facts["overrides"]),
        source=facts["source"],
        base=facts["base"],
        name=facts["name"],
        task=facts["task"],
        task_version=facts["task_version"],
        axes=tuple(facts["axes"]),
        parameters=tuple(facts["parameters"]),
        accepted_at=datetime.fromisoformat(facts["accepted_at"]),
        ids=(path.with_suffix(".trials"), facts["checksums"]["trials"]),
        announced=tuple(trial.trial_id for trial in announced) if announced is not None else None,
        # those of recorders, and of before it was written down, have none
        generalises_below=facts.get("generalises_below", GENERALISES_BELOW),
    )


def _describe(relative: str, payload: bytes) -> dict[str, Any]:
    """A manifest entry for a published shard that no commit or checkpoint names yet."""
    table = relative.partition("/")[0]
    return {
        "table": table,
        "path": relative,
        "rows": decode(payload, TABLES[table], relative).num_rows,
        "bytes": len(payload),
        "checksum": files.checksum(payload),
    }
