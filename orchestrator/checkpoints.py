"""One file per checkpoint: everything a trial needs to continue, bit for bit.

    line 1   spectral-sweeps checkpoint 1 <header bytes> <payload bytes> <checksum of both>
    header   JSON: trial, step, epoch, attempt, source hash, the shards published so far
    payload  what torch.save wrote: parameters, buffers, optimiser, measurement state, pending rows

The header is readable without torch. A file is complete whenever it is visible (`files.publish`);
the checksum guards against what disks do afterwards. The two newest are kept, so that damage to
one costs at most one more interval.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator import files
from orchestrator.errors import DamageError

KEPT = 2
_MAGIC = b"spectral-sweeps checkpoint 1"
_FIRST_LINE = re.compile(_MAGIC + rb" (\d+) (\d+) ([0-9a-f]{32})\n")
_NAME = re.compile(r"(\d{9,})-[0-9a-f]{8}")


@dataclass(frozen=True)
class Header:
    """What a checkpoint says of itself."""

    step: int
    epoch: int
    attempt: int
    source_hash: str
    trial: Mapping[str, Any]  # trial_id, config_id, seed, params (JSON)
    shards: Sequence[Mapping[str, Any]]
    wall_seconds: float  # spent on the trial before this point, over all attempts


def write(root: Path, trial_id: str, header: Header, payload: bytes) -> Path:
    """Publish a checkpoint, then drop all but the two newest.

    Raises:
        StoreError: if the storage refuses.
    """
    head = json.dumps(vars(header), sort_keys=True).encode()
    first = b"%s %d %d %s\n" % (
        _MAGIC,
        len(head),
        len(payload),
        files.checksum(head + payload).encode(),
    )
    path = root / "checkpoints" / trial_id / f"{header.step:09d}-{files.nonce()}"
    files.publish(path, first + head + payload)
    for old in _newest_first(path.parent)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def read(path: Path) -> tuple[Header, bytes]:
    """Read one checkpoint whole.

    Raises:
        DamageError: it is cut short or altered.
    """
    content = path.read_bytes()
    first = _FIRST_LINE.match(content)
    if first is None:
        raise DamageError(f"{path} is damaged: not a checkpoint")
    body = content[first.end() :]
    if len(body) != int(first[1]) + int(first[2]) or files.checksum(body) != first[3].decode():
        raise DamageError(f"{path} is damaged: its content does not match its checksum")
    return Header(**json.loads(body[: int(first[1])])), body[int(first[1]) :]


def newest_valid(
    root: Path, trial_id: str, accept: Callable[[Header], bool] = lambda _: True
) -> tuple[Header, bytes] | None:
    """The newest checkpoint that is intact and accepted, or None: the trial starts at step 0."""
    for path in _newest_first(root / "checkpoints" / trial_id):
        try:
            found = read(path)
        except (DamageError, OSError):  # fall back on the one before
            continue
        if accept(found[0]):
            return found
    return None


def newest_header(root: Path, trial_id: str) -> Header | None:
    """Header of the newest intact checkpoint, or None."""
    found = newest_valid(root, trial_id)
    return found[0] if found else None


def discard(root: Path, trial_id: str) -> None:
    """Remove a trial's checkpoints: its result is committed.

    A worker thought dead may be writing there at the same time; what it leaves is of no use and
    goes the next time.
    """
    folder = root / "checkpoints" / trial_id
    if folder.is_dir():
        for path in folder.iterdir():
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def _newest_first(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        if _NAME.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # removed by another attempt just now
                found.append((int(path.name[:9]), path.stat().st_mtime_ns, path))
    return [path for _, _, path in sorted(found, reverse=True)]
