"""Where the local MLflow database of a store lies: beside the results, or in the user's cache.

SQLite needs locks that network file systems do not keep, and results may be somebody else's.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_NETWORK = re.compile(r"nfs\d*|cifs|smb\w*|lustre|gpfs|beegfs\w*|ceph|fuse\..+|9p|afs|glusterfs")


@dataclass(frozen=True)
class Place:
    """A folder with an MLflow database and its artifacts.

    Attributes:
        folder: absolute.
        why: why it is not the results folder; empty if it is.
    """

    folder: Path
    why: str = ""

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "mlflow.db"

    @property
    def uri(self) -> str:
        """The tracking URI of the database."""
        return f"sqlite:///{self.database}"

    @property
    def artifacts(self) -> Path:
        """Where files of its runs lie."""
        return self.folder / "mlflow-artifacts"

    @property
    def lock(self) -> Path:
        """Held by whoever writes the database."""
        return self.folder / ".mlflow.lock"


def beside(root: Path) -> Place:
    """The place in a results folder: where a driver on this machine writes."""
    return Place(root)


def local(root: Path, store_id: str) -> Place:
    """Where this machine can keep a database of the store; the folder is created if need be.

    Args:
        root: the results folder.
        store_id: see `projection.store_id`: tells stores apart in the user's cache.
    """
    why = ""
    if not os.access(root, os.W_OK):
        why = f"{root} cannot be written to"
    elif (kind := filesystem(root)) and _NETWORK.fullmatch(kind):
        why = f"{root} lies on a network file system ({kind})"
    if not why:
        return beside(root)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache.absolute() / "spectral-sweeps" / store_id
    folder.mkdir(parents=True, exist_ok=True)
    return Place(folder, why)


def filesystem(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of file system that a path lies on, as the kernel calls it; empty if unknown."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    path = path.resolve()
    longest, found = -1, ""
    for line in lines:
        # 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw: any number of optional
        # fields before the dash; spaces in a path are written as octal numbers.
        before, dash, after = line.partition(" - ")
        fields = before.split()
        if not dash or len(fields) < 5:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))
        # Of two mounts at the same point the later one covers the earlier.
        if path.is_relative_to(point) and len(point.parts) >= longest:
            longest, found = len(point.parts), after.split()[0]
    return found
