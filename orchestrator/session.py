"""The driver's half of a store: claim an epoch, accept a sweep file, commit.

Exactly one driver writes commits at a time; `claim` refuses a second one. Everything here is an
immutable file published once, so a driver that dies at any point leaves a store that the next one
continues.
"""

from __future__ import annotations

import os
import shlex
import socket
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from orchestrator import checkpoints, factors, files, node_storage
from orchestrator.errors import StoreError, SweepError
from orchestrator.schemas import FORMAT_VERSION, commit_table, seal
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.sweep import Sweep  # not at run time: a Recorder reads no YAML


class Session:
    """One driver run on a store, from `claim` to `close`."""

    def __init__(self, store: Store, lock: files.DriverLock, epoch: int) -> None:
        self.store = store
        self.epoch = epoch
        self._lock = lock
        self._sequence = 0

    @classmethod
    def claim(cls, sweep: Sweep, *, rerun: Collection[str] = ()) -> Session:
        """Take the store of a sweep for this driver, creating it if need be.

        Args:
            sweep: the validated file; it becomes the store's newest version.
            rerun: trials whose earlier results no longer count from here on.

        Raises:
            StoreBusyError: another driver holds the store.
            SweepError: the folder belongs to another task, is not ours or cannot be written.
            StoreError: the storage refuses.
        """
        root = sweep.root
        check_owner(sweep)
        lock = files.DriverLock(root / "epochs" / "driver.lock")
        try:
            for name in ("epochs", "sweep", "trials", "scalars", "spectra", "checkpoints"):
                (root / name).mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, StoreError) as error:  # nothing was launched yet: the user's to change
            why = error.strerror if isinstance(error, OSError) else error
            problem = f"results cannot be written to {root}: {why}; choose another storage folder"
            raise SweepError(sweep.source, [problem]) from error
        try:
            store = Store(root)
            version = _accept(store, sweep)
            session = cls(store, lock, 0)
            # Before the fence: what is run again must not continue from what it replaces.
            session.discard_working_files(rerun)
            session.epoch = claim_epoch(store, version, frozenset(rerun))
            return session
        except BaseException:
            lock.release()
            raise

    def commit(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Publish one segment: from here on these rows are the truth.

        Raises:
            StoreError: the storage refuses; none of the rows counts.
        """
        if not rows:
            return
        payload = seal(commit_table([{**row, "epoch": self.epoch} for row in rows]))
        while True:
            self._sequence += 1
            try:
                self.store.publish(f"trials/{self.epoch:06d}-{self._sequence:06d}.arrow", payload)
                break
            except FileExistsError:
                # Ours alone: an interrupt came after it was published and before it was counted.
                # Its rows stand there too; the first of two equal rows is the one that counts.
                continue
            except BaseException:
                self._sequence -= 1  # no segment may be missing in the middle
                raise

        if (self.store.root / "epochs" / f"{self.epoch + 1:06d}.json").exists():
            raise StoreError(
                f"another driver has taken over {self.store.root}: see the newest file in epochs/. "
                "What this one committed since does not count; let the other one finish."
            )

    def discard_working_files(self, trial_ids: Iterable[str]) -> None:
        """Remove what trials needed until their results were committed.

        That is their checkpoints, and singular vectors that no commit names.
        """
        done, root = set(trial_ids), self.store.root
        with files.storage_errors(root / "checkpoints", "remove"):
            for trial_id in {path.name for path in (root / "checkpoints").iterdir()} & done:
                checkpoints.discard(root, trial_id)
        if not (root / factors.TABLE).is_dir():
            return
        with files.storage_errors(root / factors.TABLE, "list"):
            scratch = {path.name.partition("-")[0] for path in (root / factors.TABLE).iterdir()}
        if scratch & done:
            named = {
                shard["path"]
                for shards in self.store.commits()["shards"].to_pylist()
                for shard in shards or ()
            }
            for trial_id in scratch & done:
                factors.discard_scratch(root, trial_id, named)

    def close(self) -> None:
        """Let the next driver in."""
        self._lock.release()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_owner(sweep: Sweep) -> None:
    """Refuse a results folder that holds something else.

    Raises:
        SweepError: the folder belongs to a sweep of another task or to recorders, or is not a
            results folder.
    """
    root = sweep.root
    if not root.exists():
        return
    if not root.is_dir():
        raise SweepError(sweep.source, [f"{root} is not a folder; choose another name or storage"])
    if not (root / "epochs").is_dir():
        # A driver that was killed while it asked the nodes about this folder leaves its marker.
        if any(not path.name.startswith(node_storage.MARKER) for path in root.iterdir()):
            raise SweepError(
                sweep.source,
                [f"{root} exists and is not a results folder; choose another name or storage"],
            )
        return
    records = Store.open(root).sweeps()
    if records and records[-1].announced is not None:
        raise SweepError(
            sweep.source,
            [f"{root} holds trials that a Recorder recorded; choose another name or storage"],
        )
    if records and records[-1].task != sweep.task_name:
        raise SweepError(
            sweep.source,
            [
                f"{root} belongs to a sweep of task {records[-1].task!r}, this file's task is "
                f"{sweep.task_name!r}; choose another name"
            ],
        )


def _accept(store: Store, sweep: Sweep) -> int:
    """Record this version of the file unless it is the newest already; return its number."""
    records = store.sweeps()
    trial_ids = tuple(trial.trial_id for trial in sweep.trials())
    newest = records[-1] if records else None
    if newest and (newest.text, newest.overrides, newest.trial_ids) == (
        sweep.text,
        sweep.overrides,
        trial_ids,
    ):
        return newest.n
    n = newest.n + 1 if newest else 1
    payloads = {"trials": "\n".join(trial_ids).encode(), "yaml": sweep.text.encode()}
    facts = {
        "name": sweep.name,
        "task": sweep.task_name,
        "task_version": sweep.task_class.version,
        "generalises_below": sweep.task_class.generalises_below,
        "overrides": list(sweep.overrides),
        "source": sweep.source,
        "base": str(sweep.base),
        "axes": list(sweep.axes),
        "parameters": sorted(sweep.task_class.Config.model_fields),
        "accepted_at": datetime.now(UTC).isoformat(),
        "checksums": {name: files.checksum(payload) for name, payload in payloads.items()},
    }
    # The JSON file is written last: it is what makes the version visible.
    for suffix, payload in (*payloads.items(), ("json", files.seal_json(facts))):
        store.replace(f"sweep/{n}.{suffix}", payload)
    return n


def claim_epoch(store: Store, sweep_version: int, rerun: frozenset[str]) -> int:
    """Begin the next epoch, which counts what earlier ones have committed so far.

    Args:
        store: held by the caller's lock.
        sweep_version: the newest, which is in force from here on.
        rerun: trials whose earlier results no longer count.

    Returns:
        Its number.

    Raises:
        StoreError: the storage refuses.
    """
    while True:
        epochs = store.epochs()
        n = epochs[-1].n + 1 if epochs else 1
        seen = {str(epoch.n): 0 for epoch in epochs}
        for epoch, sequence, _ in store.counted_segments():
            seen[str(epoch)] = max(seen[str(epoch)], sequence)
        facts = {
            "format": FORMAT_VERSION,
            "epoch": n,
            "seen": seen,
            "rerun": sorted(rerun),
            "sweep": sweep_version,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "started_at": datetime.now(UTC).isoformat(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        try:
            store.publish(f"epochs/{n:06d}.json", files.seal_json(facts))
        except FileExistsError:  # another driver was faster by a hair: see what it saw
            continue
        return n
