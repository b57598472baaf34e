"""The results folder as one node sees it. Standard library only; see `orchestrator.node`."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 5.0
"""A file system that has not answered by then hangs."""

MARKER = ".node-"
"""How the names of our files in a results folder begin; readers of a store skip them."""

_FSYNCS = 7
_NETWORK = re.compile(r"nfs\d*|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|fuse\..+|9p|afs|glusterfs")


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[tuple[str, str]]:
    """Leave a file for the nodes to find; on exit it goes, and their answers with it.

    A folder that was made for it goes as well, unless somebody has put something there.

    Yields:
        `marker` and `token` of a `Question`.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    # The name begins with a dot: readers of a store skip it. It is random: no cache knows it.
    marker, token = f"{MARKER}{secrets.token_hex(4)}", secrets.token_hex(16)
    (folder / marker).write_text(token)
    try:
        yield marker, token
    finally:
        for path in folder.glob(f"{marker}*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for place in made:
                place.rmdir()


def confirm(folder: Path, nodes: Sequence[dict[str, Any]]) -> None:
    """Look for the answers of all nodes: where one is not seen here, `marker` becomes False.

    Args:
        folder: the results folder, while it is `marked`.
        nodes: facts of the nodes; changed in place.
    """
    for facts in nodes:
        seen = facts.get("storage")
        if seen and seen["answer"] and not (folder / seen["answer"]).exists():
            seen["marker"] = False


def storage(folder: str, marker: str | None, token: str) -> dict[str, Any]:
    """What this node finds in the results folder; a marker is answered with a file beside it.

    Args:
        folder: looked at, never made: it would then seem to be shared.
        marker: name of the file that the driver has written there; None if it has not.
        token: the content of that file.

    Returns:
        filesystem ("nfs4", "ext4", ...), exists, marker (it was found), answer (name of the file
        written in return), writable, links (hard links work), fsync_ms (median of writing 4 KB),
        free_bytes, total_bytes, error (a text), hangs. None: not asked or not found out.
    """
    facts: dict[str, Any] = {
        "filesystem": filesystem(os.path.normpath(folder), mounts()),
        "exists": False,
        "marker": None,
        "answer": None,
        "writable": False,
        "links": None,
        "fsync_ms": None,
        "free_bytes": None,
        "total_bytes": None,
        "error": None,
        "hangs": False,
    }

    def look() -> None:
        try:
            _look(Path(folder), marker, token, facts)
        except Exception as error:
            facts["error"] = getattr(error, "strerror", None) or str(error)

    # A thread, because a dead network file system blocks for ever and cannot be interrupted.
    thread = threading.Thread(target=look, daemon=True, name="node-storage")
    thread.start()
    thread.join(ANSWER_SECONDS)
    if thread.is_alive():
        return {**facts, "hangs": True, "error": f"no answer within {ANSWER_SECONDS:.0f} s"}
    return facts


def _look(folder: Path, marker: str | None, token: str, facts: dict[str, Any]) -> None:
    facts["filesystem"] = filesystem(os.path.realpath(folder), mounts())
    facts["exists"] = folder.is_dir()
    if marker is not None:
        try:
            facts["marker"] = facts["exists"] and (folder / marker).read_text() == token
        except FileNotFoundError:
            facts["marker"] = False
    if not facts["exists"]:
        return
    facts.update(disk(str(folder)))
    probe = folder / f"{MARKER}{secrets.token_hex(4)}"
    linked = probe.with_name(f"{probe.name}.link")
    try:
        facts["fsync_ms"] = _fsync_ms(probe)
        facts["writable"] = True
        try:
            os.link(probe, linked)
            facts["links"] = True
        except OSError:
            facts["links"] = False
    finally:
        for path in (probe, linked):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    if facts["marker"]:
        answer = f"{marker}.{socket.gethostname()}.{os.getpid()}"
        (folder / answer).write_text(token)
        facts["answer"] = answer


def _fsync_ms(path: Path) -> float:
    took: list[float] = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        while len(took) < _FSYNCS and sum(took) < 1000.0:  # fewer where it is slow
            begun = time.perf_counter()
            os.write(descriptor, bytes(4096))
            os.fsync(descriptor)
            took.append((time.perf_counter() - begun) * 1000.0)
    finally:
        os.close(descriptor)
    return statistics.median(took)


def disk(folder: str) -> dict[str, int]:
    """Free and total bytes of the file system that a folder lies on.

    Raises:
        OSError: it is not there.
    """
    found = os.statvfs(folder)
    return {
        "free_bytes": found.f_frsize * found.f_bavail,
        "total_bytes": found.f_frsize * found.f_blocks,
    }


def filesystem(folder: str, mounts: str) -> str | None:
    """Type of the file system that a path lies on.

    Args:
        folder: an absolute path.
        mounts: content of /proc/self/mountinfo.

    Returns:
        For example "ext4" or "nfs4"; None if no line of `mounts` fits.
    """
    best, found = -1, None
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        columns = fields.split()
        if len(columns) < 5 or not rest:
            continue
        # Spaces and such stand as octal numbers.
        point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), columns[4])
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:  # of equal ones the last was mounted over the others
            best, found = len(point), rest.split()[0]
    return found


def is_network(kind: str | None) -> bool:
    """Whether a type of file system belongs to those that several machines can mount."""
    return kind is not None and _NETWORK.fullmatch(kind) is not None


def mounts() -> str:
    """The kernel's table of mounts, for `filesystem`; empty where there is none."""
    try:
        return Path("/proc/self/mountinfo").read_text()
    except OSError:
        return ""
