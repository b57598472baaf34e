"""One recorder's hold on a results folder: announce a trial, commit how it ended.

Any number of recorders, in any number of processes and on any number of machines, share a folder.
What each writes has a name of its own: announcements, shards, and commit segments, which are
published under the next free number of the newest epoch. The folder's driver lock is taken for the
moments in which one of them looks and then writes. An epoch is claimed when the folder is made, and
when a trial is recorded anew, which fences off the earlier result.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from orchestrator import factors, files, node_storage, recorded
from orchestrator.errors import RecordError, StoreBusyError, StoreError
from orchestrator.recorded import Announced
from orchestrator.schemas import RESULTS, commit_table, seal
from orchestrator.session import claim_epoch
from orchestrator.store import Store

LOCK_SECONDS = 30.0
"""How long a recorder waits for others, each of which holds the lock for one look and one write."""

_ATTEMPT = re.compile(r"-(\d+)\.(\d+)-")


class Recording:
    """A trial that is being recorded, from `begin` to `release`.

    Attributes:
        root: the store's folder, absolute.
        trial: which.
        epoch: the newest one when it began.
        attempt: counted over the life of the store.
    """

    def __init__(self, root: Path, trial: Announced, epoch: int, attempt: int, held: int) -> None:
        self.root, self.trial, self.epoch, self.attempt = root, trial, epoch, attempt
        self._held = held

    @property
    def stem(self) -> str:
        """How the names of its files begin."""
        return f"{self.trial.trial_id}-{self.epoch}.{self.attempt}"

    @classmethod
    def begin(cls, root: Path, trial: Announced, name: str, *, again: bool) -> Recording:
        """Announce a trial in a folder, which is made if need be.

        Args:
            root: absolute.
            trial: of that name.
            name: what is trained in this folder.
            again: whether an earlier result of the trial is given up.

        Raises:
            RecordError: the folder is not one for recorders or cannot be written to; the trial has
                a result already, or is being recorded.
            StoreBusyError: others have held the folder's lock for half a minute.
            StoreError: the storage refuses.
        """
        name_of(root)  # refuses before anything is written there
        try:
            lock = _locked(root)
        except StoreBusyError:
            raise
        except (StoreError, OSError) as error:
            problem = str(error).partition(", then run")[0]  # nothing has been recorded yet
            raise RecordError(str(root), [problem]) from error
        held = -1
        with lock:
            store = Store(root)
            there = name_of(root)
            if not there:
                _make(store, name)
            elif there != name:
                problem = f"it holds trials of {there!r}, not of {name!r}: give another folder"
                raise RecordError(str(root), [problem])
            try:
                recorded.publish(root, trial)
                held = _hold(root, trial)
                rerun = _superseded(store, trial, again=again)
                if not store.epochs() or rerun:
                    claim_epoch(store, 1, rerun)
                attempt = 1 + _last_attempt(store, trial.trial_id)
                return cls(root, trial, store.epochs()[-1].n, attempt, held)
            except BaseException:
                if held >= 0:
                    os.close(held)
                raise

    def commit(self, row: Mapping[str, Any]) -> None:
        """Publish how the trial ended: from here on it counts.

        Args:
            row: columns of the trials table beside those that say which trial and attempt it is.

        Raises:
            RecordError: another recorder has committed the trial, or begun it anew, meanwhile.
            StoreError: the storage refuses; the row does not count.
        """
        store = Store(self.root)
        own = {**self.trial.identity, "attempt": self.attempt, "group_size": 1, "parents": []}
        try:
            lock: contextlib.AbstractContextManager[None] = _locked(self.root)
        except (StoreBusyError, StoreError, OSError):
            # Whoever holds it hangs. Segments have names of their own: no reason to lose a trial.
            lock = contextlib.nullcontext()
        with lock:
            while True:
                if row["status"] in RESULTS:
                    self._refuse_if_replaced(store)
                epoch = store.epochs()[-1].n
                payload = seal(
                    commit_table([{**own, "host": platform.node(), **row, "epoch": epoch}])
                )
                taken = [number for n, number, _ in store.segment_names() if n == epoch]
                sequence = 1 + max(taken, default=0)
                while not _published(store, epoch, sequence, payload):
                    sequence += 1
                if (epoch, sequence) in {(n, number) for n, number, _ in store.counted_segments()}:
                    break  # else an epoch was claimed meanwhile that has not seen it
        self._discard(store)

    def _refuse_if_replaced(self, store: Store) -> None:
        trial_id = self.trial.trial_id
        replaced = ""
        if store.fences().get(trial_id, 0) > self.epoch:
            replaced = "has begun it anew"
        elif trial_id in store.outcomes("all")["trial_id"].to_pylist():
            replaced = "has finished it"
        if replaced:
            problem = f"trial {trial_id} ({self.trial.label}) does not count: another recorder "
            raise RecordError(str(self.root), [f"{problem}{replaced} meanwhile"])

    def _discard(self, store: Store) -> None:
        """Remove singular vectors that this trial's attempts have left and no commit names."""
        if (self.root / factors.TABLE).is_dir():
            shards = (s for row in store.commits()["shards"].to_pylist() for s in row or ())
            kept = {shard["path"] for shard in shards}
            factors.discard_scratch(self.root, self.trial.trial_id, kept)

    def release(self) -> None:
        """Let the next recorder of this trial in."""
        if self._held >= 0:
            with contextlib.suppress(OSError):
                fcntl.flock(self._held, fcntl.LOCK_UN)  # a forked process may have it open too
            os.close(self._held)
            self._held = -1


def name_of(root: Path) -> str:
    """What is trained in a folder; empty if there is none yet.

    Raises:
        RecordError: the folder is not one for recorders.
        StoreError: another format version wrote it, or it is damaged.
    """
    if not root.is_dir() and root.exists():
        raise RecordError(str(root), ["it is not a folder: give another one"])
    if not (root / "epochs").is_dir():
        there = [path.name for path in root.iterdir()] if root.is_dir() else []
        if any(not name.startswith(node_storage.MARKER) for name in there):
            problem = "it exists and is not a results folder: give another one"
            raise RecordError(str(root), [problem])
        return ""
    records = Store.open(root).sweeps()
    if records and records[-1].announced is None:
        problem = f"it holds the sweep {records[-1].name!r}: give a Recorder a folder of its own"
        raise RecordError(str(root), [problem])
    return records[-1].task if records else ""


@contextlib.contextmanager
def _released(lock: files.DriverLock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


def _locked(root: Path) -> contextlib.AbstractContextManager[None]:
    """The folder's driver lock, waited for; the folder is made if need be.

    Raises:
        StoreBusyError: others have held it for `LOCK_SECONDS`.
        StoreError: the storage refuses.
    """
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        lock = files.DriverLock(root / "epochs" / "driver.lock")
        try:
            lock.acquire()
        except StoreBusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return _released(lock)


def _make(store: Store, name: str) -> None:
    """The records of a new folder; what a recorder left that died here is written again."""
    for folder in ("sweep", "trials", "scalars", "spectra", "checkpoints", recorded.FOLDER):
        with files.storage_errors(store.root / folder, "make"):
            (store.root / folder).mkdir(parents=True, exist_ok=True)
    payloads = {"trials": b"", "yaml": recorded.TEXT.encode()}
    facts = {
        "recorded": True,
        "name": name,
        "task": name,
        "task_version": 1,
        "overrides": [],
        "source": "",
        "base": str(Path.cwd()),
        "axes": [],
        "parameters": [],
        "accepted_at": datetime.now(UTC).isoformat(),
        "checksums": {suffix: files.checksum(payload) for suffix, payload in payloads.items()},
    }
    # The JSON file is written last: it is what makes the record visible.
    for suffix, payload in (*payloads.items(), ("json", files.seal_json(facts))):
        store.replace(f"sweep/1.{suffix}", payload)


def _hold(root: Path, trial: Announced) -> int:
    """Keep a second recorder of the same trial out for as long as this process lives.

    Raises:
        RecordError: there is one.
    """
    try:
        held = os.open(recorded.path_of(root, trial.trial_id), os.O_RDWR)
    except OSError:  # written by another user: the commit decides between the two
        return -1
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise RecordError(
            str(root),
            [
                f"trial {trial.trial_id} ({trial.label}) is being recorded right now, by another "
                "process or another Recorder of this one: end that, or give this one another seed"
            ],
        ) from None
    except OSError:  # a file system without flock: likewise
        pass
    return held


def _superseded(store: Store, trial: Announced, *, again: bool) -> frozenset[str]:
    """The trial, if it has a result that is given up; nothing if it has none.

    Raises:
        RecordError: it has one.
    """
    for row in store.outcomes("all").select(["trial_id", "status", "last_step"]).to_pylist():
        if row["trial_id"] != trial.trial_id:
            continue
        if again:
            return frozenset({trial.trial_id})
        raise RecordError(
            str(store.root),
            [
                f"trial {trial.trial_id} ({trial.label}) is recorded already: {row['status']} at "
                f"step {row['last_step']}. Give another seed or other parameters, or record it "
                "anew with again=True: what is there then no longer counts"
            ],
        )
    return frozenset()


def _last_attempt(store: Store, trial_id: str) -> int:
    """The highest number that any attempt at a trial has left behind."""
    commits = store.commits()
    pairs = zip(commits["trial_id"].to_pylist(), commits["attempt"].to_pylist(), strict=True)
    found = [0, *(attempt or 0 for one, attempt in pairs if one == trial_id)]
    for table in ("scalars", "spectra", factors.TABLE):
        names = (path.name for path in (store.root / table).glob(f"{trial_id}-*.arrow"))
        found += [int(match[2]) for match in map(_ATTEMPT.search, names) if match]
    return max(found)


def _published(store: Store, epoch: int, sequence: int, payload: bytes) -> bool:
    """Whether a commit segment could be published: False if the number is taken."""
    with contextlib.suppress(FileExistsError):
        store.publish(f"trials/{epoch:06d}-{sequence:06d}.arrow", payload)
        return True
    return False
