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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import factors, files, node_storage, recorded
from orchestrator.errors import RecordError, StoreBusyError, StoreError
from orchestrator.recorded import Announced
from orchestrator.schemas import RESULTS, commit_table, seal, unseal
from orchestrator.session import claim_epoch
from orchestrator.store import Store

BEGIN_SECONDS = 600.0
"""How long a recorder waits for others before it begins: nothing is lost by that."""

COMMIT_SECONDS = 30.0
"""How long it waits at its end: each of the others holds the lock for one look and one write."""

_ATTEMPT = re.compile(r"-(\d+)\.(\d+)-")


class Recording:
    """A trial that is being recorded, from `begin` to `release`.

    Attributes:
        root: the store's folder, absolute.
        trial: which.
        epoch: the newest one when it began.
        attempt: counted over the life of the store.
    """

    def __init__(
        self, root: Path, trial: Announced, epoch: int, attempt: int, *, held: int, seen: set[str]
    ) -> None:
        self.root, self.trial, self.epoch, self.attempt = root, trial, epoch, attempt
        self._held = held
        self._seen = seen  # commit segments from before it began

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
            StoreBusyError: others have held the folder's lock for `BEGIN_SECONDS`.
            StoreError: the storage refuses.
        """
        name_of(root)  # refuses before anything is written there
        try:
            lock = _locked(root, BEGIN_SECONDS)
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
                recorded.make(root, name)
            elif there != name:
                problem = f"it holds trials of {there!r}, not of {name!r}: give another folder"
                raise RecordError(str(root), [problem])
            try:
                fresh = recorded.publish(root, trial)
                held = recorded.hold(root, trial)
                seen = {segment for *_, segment in store.segment_names()}
                earlier, rerun = _last_shard(root, trial.trial_id), frozenset[str]()
                if earlier or not fresh:  # else no commit can be of it: none has to be read
                    commits = store.commits()
                    rerun = _superseded(store, commits, trial, again=again)
                    earlier = max(earlier, _last_commit(commits, trial.trial_id))
                if not store.epochs() or rerun:
                    claim_epoch(store, 1, rerun)
                epoch = store.epochs()[-1].n
                return cls(root, trial, epoch, 1 + earlier, held=held, seen=seen)
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
            lock: contextlib.AbstractContextManager[None] = _locked(self.root, COMMIT_SECONDS)
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
        self._discard(store, row["shards"])

    def _refuse_if_replaced(self, store: Store) -> None:
        trial_id = self.trial.trial_id
        replaced = ""
        if store.fences().get(trial_id, 0) > self.epoch:
            replaced = "has begun it anew"
        else:
            fence = store.fences().get(trial_id, 0)
            segments = [name for *_, name in store.counted_segments() if name not in self._seen]
            if any(_result(_segment(store, name), trial_id, fence) for name in segments):
                replaced = "has finished it"
        if replaced:
            problem = f"trial {trial_id} ({self.trial.label}) does not count: another recorder "
            raise RecordError(str(self.root), [f"{problem}{replaced} meanwhile"])

    def _discard(self, store: Store, shards: Iterable[Mapping[str, Any]]) -> None:
        """Remove singular vectors that this trial's attempts have left and no commit names."""
        kept = {shard["path"] for shard in shards}
        left = (self.root / factors.TABLE).glob(f"{self.trial.trial_id}-*.arrow")
        if {f"{factors.TABLE}/{path.name}" for path in left} - kept:
            for *_, name in store.counted_segments():
                if self.attempt > 1 or name not in self._seen:  # else it is of other trials
                    of_all = _segment(store, name)["shards"].to_pylist()
                    kept |= {shard["path"] for of_one in of_all for shard in of_one or ()}
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
    Store.open(root)  # refuses other formats
    records = sorted((root / "sweep").glob("[0-9]*.json"), key=lambda path: int(path.stem))
    if not records:
        return ""
    facts = files.unseal_json(records[-1])
    if not facts.get("recorded"):
        problem = f"it holds the sweep {facts['name']!r}: give a Recorder a folder of its own"
        raise RecordError(str(root), [problem])
    return str(facts["task"])


@contextlib.contextmanager
def _released(lock: files.DriverLock) -> Iterator[None]:
    try:
        yield
    finally:
        lock.release()


def _locked(root: Path, seconds: float) -> contextlib.AbstractContextManager[None]:
    """The folder's driver lock, waited for; the folder is made if need be.

    Raises:
        StoreBusyError: others have held it for so many seconds.
        StoreError: the storage refuses.
    """
    deadline = time.monotonic() + seconds
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


def _superseded(
    store: Store, commits: pa.Table, trial: Announced, *, again: bool
) -> frozenset[str]:
    """The trial, if it has a result that is given up; nothing if it has none.

    Raises:
        RecordError: it has one.
    """
    row = _result(commits, trial.trial_id, store.fences().get(trial.trial_id, 0))
    if row is None:
        return frozenset()
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


def _result(commits: pa.Table, trial_id: str, fence: int) -> dict[str, Any] | None:
    """The first commit with a result of a trial, of those from an epoch on; None: there is none."""
    of_trial = commits.filter(pc.equal(commits["trial_id"], trial_id))
    for row in of_trial.select(["epoch", "status", "last_step"]).to_pylist():
        if row["status"] in RESULTS and row["epoch"] >= fence:
            return dict(row)
    return None


def _last_commit(commits: pa.Table, trial_id: str) -> int:
    """The highest number of any committed attempt at a trial."""
    of_trial = commits.filter(pc.equal(commits["trial_id"], trial_id))
    return max([0, *(attempt or 0 for attempt in of_trial["attempt"].to_pylist())])


def _last_shard(root: Path, trial_id: str) -> int:
    """The highest number of any attempt at a trial that has left a shard behind."""
    found = [0]
    for table in ("scalars", "spectra", factors.TABLE):
        names = (path.name for path in (root / table).glob(f"{trial_id}-*.arrow"))
        found += [int(match[2]) for match in map(_ATTEMPT.search, names) if match]
    return max(found)


def _segment(store: Store, name: str) -> pa.Table:
    """The commits of one segment."""
    path = store.root / "trials" / name
    with files.storage_errors(path, "read"):
        return unseal(path.read_bytes(), str(path))


def _published(store: Store, epoch: int, sequence: int, payload: bytes) -> bool:
    """Whether a commit segment could be published: False if the number is taken."""
    with contextlib.suppress(FileExistsError):
        store.publish(f"trials/{epoch:06d}-{sequence:06d}.arrow", payload)
        return True
    return False
