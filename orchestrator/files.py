"""How bytes reach the disk: complete or not at all, and one driver at a time.

Everything durable in a store goes through `publish` (a new file, never replaced) or, for
projections that can be rebuilt, through `replace`. Both write a hidden name in the same folder
first: readers skip names that begin with a dot, so a half-written file is never seen.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import DamageError, StoreBusyError, StoreError

HEARTBEAT_SECONDS = 2.0
"""How often a live driver rewrites its lock file."""


def checksum(payload: bytes) -> str:
    """128-bit BLAKE2b of some bytes as 32 hex characters; detects damage, not malice."""
    return hashlib.blake2b(payload, digest_size=16).hexdigest()


def nonce() -> str:
    """Eight random hex characters that keep the files of two attempts apart."""
    return secrets.token_hex(4)


@contextlib.contextmanager
def storage_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn the operating system's refusal into a message that says what to do.

    Args:
        path: the file or folder concerned.
        doing: the verb of the message, for example "write".

    Raises:
        StoreError: for every OSError but FileExistsError, which callers decide on themselves.
    """
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        advice = {
            errno.ENOSPC: "The disk is full: free some space",
            errno.EDQUOT: "The quota is used up: free some space",
            errno.EROFS: "The file system is read-only: choose another storage folder",
            errno.EACCES: "Permission is denied: change the permissions or the storage folder",
            errno.EPERM: "The file system has no hard links: choose another storage folder",
        }.get(error.errno or 0, "Check the storage folder")
        raise StoreError(
            f"cannot {doing} {path}: {error.strerror or error}. {advice}, then run the same "
            "command again: everything committed so far is kept and the sweep resumes."
        ) from error


def seal_json(facts: Mapping[str, Any]) -> bytes:
    """JSON for people and programs that carries a checksum of itself under the key "checksum"."""
    sealed = {**facts, "checksum": checksum(_canonical(facts))}
    return json.dumps(sealed, indent=1).encode()


def unseal_json(path: Path) -> dict[str, Any]:
    """Read what `seal_json` made.

    Raises:
        DamageError: it is missing, no JSON object, or not what was written.
    """
    try:
        facts = json.loads(path.read_bytes())
        stored = facts.pop("checksum")
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(facts, dict) or checksum(_canonical(facts)) != stored:
        raise DamageError(f"{path} is damaged: its content does not match its checksum")
    return facts


def read_checked(path: Path, expected: str) -> str:
    """The text of a file whose checksum is recorded elsewhere.

    Raises:
        DamageError: it is missing, unreadable or altered.
    """
    try:
        payload = path.read_bytes()
    except FileNotFoundError as error:
        raise DamageError(f"{path} is missing") from error
    except OSError as error:
        raise DamageError(f"{path} is damaged: {error}") from error
    if checksum(payload) != expected:
        raise DamageError(f"{path} is damaged: its content does not match its checksum")
    return payload.decode()


def _canonical(facts: Mapping[str, Any]) -> bytes:
    return json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()


def _write_hidden(path: Path, payload: bytes) -> Path:
    hidden = path.with_name(f".{path.name}.{nonce()}")
    descriptor = os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        remaining = memoryview(payload)
        while remaining:  # one write() may take less than it was given
            remaining = remaining[os.write(descriptor, remaining) :]
        os.fsync(descriptor)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
    return hidden


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: the storage refuses.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(path: Path, payload: bytes) -> None:
    """Create a file that did not exist, complete and durable when it becomes visible.

    Write a hidden name, fsync, `link` to the final name, fsync the folder. `link` rather than
    `rename`, because rename would silently replace what another attempt published.

    Raises:
        FileExistsError: if the name is taken; its content is left as it was.
        StoreError: if the storage refuses.
    """
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = _write_hidden(path, payload)
        try:
            os.link(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
        sync(path.parent)


def replace(path: Path, payload: bytes) -> None:
    """Replace a projection (never a result) atomically; readers see the old file or the new one.

    Raises:
        StoreError: if the storage refuses.
    """
    with storage_errors(path, "write"):
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = _write_hidden(path, payload)
        hidden.replace(path)
        sync(path.parent)


def process_start(pid: int) -> str | None:
    """When a process of this host started, in kernel ticks; tells apart reused process ids."""
    try:
        # The command name (field 2) may hold spaces and brackets: count from its closing one.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


class DriverLock:
    """Held by the one driver of a store, for its whole life.

    On one host `flock` decides, and the kernel lets go when the driver dies, however it dies.
    Shared file systems may ignore flock, so the holder also rewrites a heartbeat counter every two
    seconds; a driver on another host watches it for `watch_seconds` by its own clock, so that
    clocks that disagree do not matter. The store's epoch, not this lock, is what keeps results
    right: the lock only spares a second driver from doing the first one's work again.
    """

    def __init__(self, path: Path, *, watch_seconds: float = 3 * HEARTBEAT_SECONDS) -> None:
        self.path = path
        self._watch_seconds = watch_seconds
        self._descriptor = -1
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._beats = 0

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            StoreBusyError: another driver is alive; names its host, process and start.
            StoreError: if the storage refuses.
        """
        with storage_errors(self.path, "write"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        holder = self._holder()
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._descriptor)
            raise self._busy(self._holder() or holder) from error
        except OSError:  # a file system without flock: the heartbeat alone decides
            flocked = False
        else:
            flocked = True
        elsewhere = holder is not None and holder.get("host") != socket.gethostname()
        if holder and not holder.get("ended") and (elsewhere or not flocked):
            self._refuse_if_beating(holder)
        self._beat()
        self._thread = threading.Thread(target=self._beat_on, name="driver-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Let go; the next driver starts at once."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self._beat(ended=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def _holder(self) -> dict[str, Any] | None:
        try:
            content = json.loads(self.path.read_bytes() or b"null")
        except (OSError, ValueError):
            return None  # being rewritten by its holder; flock still decides on this host
        return content if isinstance(content, dict) else None

    def _busy(self, holder: dict[str, Any] | None) -> StoreBusyError:
        who = (
            f"process {holder.get('pid')} on host {holder.get('host')}, since {holder.get('since')}"
            if holder
            else "another process"
        )
        return StoreBusyError(
            f"{self.path.parent} is in use by another driver: {who}. Wait for it, or end that "
            "process; then run the same command again to resume."
        )

    def _refuse_if_beating(self, holder: dict[str, Any]) -> None:
        deadline = time.monotonic() + self._watch_seconds
        while time.monotonic() < deadline:
            seen = self._holder()
            if seen is not None and seen.get("beat") != holder.get("beat"):
                os.close(self._descriptor)
                self._descriptor = -1
                raise self._busy(seen)
            self._stop.wait(0.1)

    def _beat(self, *, ended: bool = False) -> None:
        self._beats += 1
        self._since = getattr(self, "_since", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "since": self._since,
            "beat": f"{os.getpid()}.{self._beats}",
            "ended": ended,
        }
        text = json.dumps(content).encode()
        os.pwrite(
            self._descriptor, text.ljust(512), 0
        )  # one fixed-size write: never seen in halves

    def _beat_on(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(
                OSError
            ):  # a full disk is reported by the commit that meets it
                self._beat()
