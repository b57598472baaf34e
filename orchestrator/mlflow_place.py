"""Where the local MLflow database of a store lies: beside the results, or in the user's cache.

SQLite needs locks that network file systems do not keep, and results may be somebody else's.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from orchestrator.node_storage import filesystem, is_network, mounts


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
    elif is_network(kind := filesystem(str(root.resolve()), mounts())):
        why = f"{root} lies on a network file system ({kind})"
    if not why:
        return beside(root)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache.absolute() / "spectral-sweeps" / store_id
    folder.mkdir(parents=True, exist_ok=True)
    return Place(folder, why)
