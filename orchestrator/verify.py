"""Check every file of a store against what was committed: `sweep verify`.

Readers refuse damaged files when they meet them; this meets them all, goes on after the first, and
says what each one costs. It only reads, and may run beside a driver.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import checkpoints
from orchestrator.errors import DamageError, StoreError
from orchestrator.schemas import RESULTS, TRIALS, read_parquet, unseal
from orchestrator.store import SHARDS, Store
from orchestrator.verify_records import UNREAD, epochs_of, sweeps_of


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        root: the store's folder.
        damage: one entry per damaged file or lost row set: the file, and what it costs.
        information: what was checked, and what lies about without doing harm.
    """

    root: str
    damage: list[str] = field(default_factory=list)
    information: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Need:
    """Why a shard is needed."""

    shard: Mapping[str, Any]
    trial_id: str
    loss: str  # what its damage costs
    counts: bool = True  # False: nothing is read from it any more
    working: bool = False  # a checkpoint names it, no commit


def verify(store_root: str | Path, progress: Callable[[int, int], None] | None = None) -> Report:
    """Check epochs, sweep files, segments, shards, environments, checkpoints and trends.

    Detects any change of an epoch, sweep file, segment, shard or checkpoint, every missing file
    that something names, and every gap. Not detectable: the newest segments of the newest epoch
    deleted from its end (nothing names them; their shards then count as orphans), and an
    environment file that was altered and still makes sense.

    Args:
        store_root: the store's folder.
        progress: called with (shards checked, shards in all).

    Raises:
        StoreError: there is no store, or another format version wrote it.
    """
    root = Path(store_root).expanduser().absolute()
    try:
        store = Store.open(root)
    except DamageError:  # is found again below, with its consequence
        store = Store(root)
    report = Report(str(root))
    epochs = epochs_of(root, report.damage)
    trial_ids, again = sweeps_of(root, epochs, report.damage)
    commits, uncounted = _segments(store, epochs, report)
    results = _results(commits, epochs)
    needs = [*_committed(commits, results, epochs, again)]
    environments = _environments(root, commits, report)
    needs += _checkpoints(root, set(results), report)
    num_rows = _shards(store, needs, report, progress)
    _trends(root, report)
    _leftovers(root, needs, uncounted, set(results), trial_ids, report)
    shards = len({need.shard["path"] for need in needs})
    report.information.insert(
        0,
        f"checked {_count(len(epochs), 'epoch')}, {_count(commits.num_rows, 'commit')}, "
        f"{_count(shards, 'shard')} with {_count(num_rows, 'row')}, "
        f"{_count(environments, 'environment')}",
    )
    return report


# --- commits --------------------------------------------------------------------------------


def _segments(
    store: Store, epochs: Mapping[int, Mapping[str, Any]], report: Report
) -> tuple[pa.Table, int]:
    """The rows of every segment that counts and can be read; how many segments do not count."""
    limits = {n: epochs[n + 1]["seen"].get(n, 0) if n + 1 in epochs else None for n in epochs}
    names = {(epoch, sequence): name for epoch, sequence, name in store.segment_names()}
    tables = []
    uncounted = 0
    for epoch in sorted({epoch for epoch, _ in names} | set(limits)):
        limit = limits.get(epoch)
        there = [sequence for n, sequence in names if n == epoch]
        last = max(there, default=0) if limit is None else limit
        uncounted += sum(sequence > last for sequence in there)
        for sequence in range(1, last + 1):
            path = store.root / "trials" / f"{epoch:06d}-{sequence:06d}.arrow"
            if (epoch, sequence) not in names:
                report.damage.append(f"{path} is missing: its commits are lost. {UNREAD}")
                continue
            try:
                table = unseal(path.read_bytes(), str(path))
                if others := set(table["epoch"].unique().to_pylist()) - {epoch}:
                    raise DamageError(
                        f"{path} is damaged: it holds commits of epoch {others.pop()}"
                    )
                tables.append(table)
            except (StoreError, OSError) as error:
                report.damage.append(f"{_said(error, path)}: its commits are lost. {UNREAD}")
    return pa.concat_tables(tables) if tables else TRIALS.empty_table(), uncounted


def _fences(epochs: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Trial -> epoch from which on its commits count (the last that ran it again)."""
    return {trial_id: n for n in sorted(epochs) for trial_id in epochs[n]["rerun"]}


def _results(commits: pa.Table, epochs: Mapping[int, Mapping[str, Any]]) -> dict[str, int]:
    """Trial -> index of the commit that is its result."""
    fences = _fences(epochs)
    first: dict[str, int] = {}
    columns = (commits[name].to_pylist() for name in ("trial_id", "status", "epoch"))
    for index, (trial_id, status, epoch) in enumerate(zip(*columns, strict=True)):
        if status in RESULTS and epoch >= fences.get(trial_id, 0):
            first.setdefault(trial_id, index)
    return first


def _committed(
    commits: pa.Table,
    results: Mapping[str, int],
    epochs: Mapping[int, Mapping[str, Any]],
    again: str,
) -> Iterable[_Need]:
    fences = _fences(epochs)
    for index, row in enumerate(commits.to_pylist()):
        trial_id = row["trial_id"]
        for shard in row["shards"] or ():
            if results.get(trial_id) == index:
                loss = (
                    f"trial {trial_id} loses its rows of {shard['table']}; restore the file from a "
                    f"backup, or {again} {trial_id}"
                )
            else:
                loss = (
                    f"attempt {row['attempt']} ({row['status']}) of trial {trial_id} loses its "
                    f"rows of {shard['table']}; no result depends on them"
                )
            replaced = row["epoch"] < fences.get(trial_id, 0)
            yield _Need(shard, trial_id, loss, counts=not replaced)


def _environments(root: Path, commits: pa.Table, report: Report) -> int:
    named: dict[str, set[str]] = {}
    columns = (commits[name].to_pylist() for name in ("environment", "trial_id"))
    for environment, trial_id in zip(*columns, strict=True):
        if environment is not None:
            named.setdefault(environment, set()).add(trial_id)
    for environment, trial_ids in sorted(named.items()):
        path = root / "environments" / f"{environment}.json"
        cost = f"what ran {_count(len(trial_ids), 'trial')} is not known; no number depends on it"
        try:
            if not isinstance(json.loads(path.read_bytes()), dict):
                raise ValueError("not a JSON object")
        except FileNotFoundError:
            report.damage.append(f"{path} is missing, although a commit names it: {cost}")
        except (OSError, ValueError) as error:
            report.damage.append(f"{path} is damaged: {error}: {cost}")
    return len(named)


# --- shards and checkpoints -----------------------------------------------------------------


def _shards(
    store: Store,
    needs: list[_Need],
    report: Report,
    progress: Callable[[int, int], None] | None,
) -> int:
    """Read each needed shard once; how many rows there are."""
    by_path: dict[str, list[_Need]] = {}
    for need in needs:
        by_path.setdefault(need.shard["path"], []).append(need)
    num_rows = 0
    for done, (relative, all_needs) in enumerate(by_path.items(), 1):
        path = store.root / relative
        table, problem = None, ""
        for need in all_needs:
            try:
                if table is None and not problem:
                    table = store.read_shard(need.shard)
                    num_rows += table.num_rows
            except (StoreError, OSError) as error:
                problem = _said(error, path)
            said = problem or _mismatch(table, need, all_needs[0].shard, path)
            if said:
                if need.working:  # the readers' words are for what is committed
                    said = said.replace("although a commit", "although a checkpoint")
                    said = said.replace("were committed", "were written")
                kept = report.damage if need.counts else report.information
                cost = need.loss if need.counts else "nothing: that commit has been replaced"
                if (line := f"{said}: {cost}") not in kept:  # several checkpoints may name it
                    kept.append(line)
        if progress is not None:
            progress(done, len(by_path))
    return num_rows


def _mismatch(table: pa.Table, need: _Need, first: Mapping[str, Any], path: Path) -> str:
    """How an intact shard differs from what this commit says of it; else empty."""
    if need.shard != first:
        return f"{path}: two commits describe it differently"
    if table.num_rows != need.shard["rows"]:
        return f"{path} holds {table.num_rows} rows where {need.shard['rows']} were committed"
    if not pc.any(pc.equal(table["trial_id"], need.trial_id)).as_py():
        return f"{path} holds no row of trial {need.trial_id}"
    return ""


def _checkpoints(root: Path, done: set[str], report: Report) -> list[_Need]:
    """Check the checkpoints of trials without a result; the shards that these name."""
    needs = []
    for path in _visible(root / "checkpoints", "*/*"):
        trial_id = path.parent.name
        if trial_id in done:
            continue
        cost = f"trial {trial_id} resumes from the checkpoint before it, or from step 0"
        loss = (
            f"nothing has to be removed: run the same command again, and trial {trial_id} resumes "
            "from a checkpoint that does without it, or from step 0"
        )
        try:
            header, _ = checkpoints.read(path)
            needs += [_Need(shard, trial_id, loss, working=True) for shard in header.shards]
        except FileNotFoundError:  # a driver at work has replaced it
            continue
        except (DamageError, OSError, ValueError, TypeError) as error:
            report.damage.append(f"{_said(error, path)}: {cost}")
    return needs


# --- the rest -------------------------------------------------------------------------------


def _trends(root: Path, report: Report) -> None:
    path = root / "trends.parquet"
    try:
        if path.exists():
            read_parquet(path.read_bytes())
    except (pa.ArrowException, OSError) as error:
        report.damage.append(
            f"{path} is damaged: {error}: no result is lost; `sweep track {root}` makes it anew"
        )


def _leftovers(
    root: Path,
    needs: list[_Need],
    uncounted: int,
    done: set[str],
    trial_ids: set[str],
    report: Report,
) -> None:
    named = {need.shard["path"] for need in needs}
    shards = [path for table in SHARDS for path in _visible(root / table, "*.arrow")]
    orphans = [path for path in shards if str(path.relative_to(root)) not in named]
    # A lock file of the tracker's is no write that was cut short.
    hidden = [p for p in root.glob("**/.*") if p.is_file() and p.name != ".mlflow.lock"]
    stale = {path.parent.name for path in _visible(root / "checkpoints", "*/*")} & done
    unnamed = done - trial_ids
    for number, noun, meaning in (
        (uncounted, "commit segment", "written by a driver thought dead: none counts"),
        (len(orphans), "shard", "that no commit names: of attempts that are running or were lost"),
        (len(hidden), "hidden file", "of writes that are under way or were interrupted"),
        (len(stale), "trial", "with a result and a checkpoint that is not needed any more"),
        (len(unnamed), "trial", "with a result that no version of the sweep file names"),
    ):
        if number:
            report.information.append(f"{_count(number, noun)} {meaning}")


def _visible(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def _said(error: Exception, path: Path) -> str:
    text = str(error)
    return text if str(path) in text else f"{path} is damaged: {text}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
