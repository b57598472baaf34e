"""Reaching an MLflow store: which URIs work, one projector at a time, and what refusals mean.

No MLflow in here: it takes seconds to import, and a wrong URI should be told at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from orchestrator.errors import SweepError, TrackingError
from orchestrator.mlflow_place import Place, beside
from orchestrator.store import Store


def embedded_uri(root: Path) -> str:
    """The tracking URI of a results folder's own SQLite database."""
    return beside(root).uri


def has_server(uri: str) -> bool:
    """Whether a server, rather than this process, decides where artifacts go."""
    return not uri.partition(":")[0].startswith(("sqlite", "postgresql", "mysql", "mssql"))


def public(uri: str) -> str:
    """A URI without the password that may be in it."""
    uri = re.sub(r"([?&](?:ssl)?password=)[^&#]*", r"\1***", uri, flags=re.IGNORECASE)
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}"))


def refuse_folders(uri: str) -> None:
    """Raise for a URI of MLflow's file store.

    Raises:
        TrackingError: it is one; says what to use.
    """
    scheme = uri.partition(":")[0] if ":" in uri else ""
    if scheme in ("", "file"):
        raise TrackingError(
            f"tracking uri {uri!r} is a folder: MLflow's file store cannot be used. Leave the uri "
            "out (an SQLite database in the results folder), or give http://HOST:PORT of a "
            "server or sqlite:////absolute/path/mlflow.db."
        )


def refuse_local_database(sweep_source: str, uri: str | None, nodes: int) -> None:
    """Raise if a sweep on several nodes is to be tracked to an SQLite file.

    Args:
        sweep_source: the sweep file, for the message.
        uri: what its `tracking:` names; None: the database in the results folder.
        nodes: of the cluster.

    Raises:
        SweepError: it is; names the two ways out.
    """
    if nodes <= 1 or not (uri is None or uri.startswith("sqlite")):
        return
    kept = "the SQLite database in the results folder" if uri is None else uri
    raise SweepError(
        sweep_source,
        [
            f"this cluster has {nodes} nodes, and MLflow would be kept in {kept}, a file that only "
            "one machine can write safely. Either give the URI of a server "
            "(`tracking: {uri: http://HOST:5000}`; `sweep server` starts one and prints the line), "
            "or write `tracking: none` and watch with `sweep ui TARGET` on a machine that can read "
            "the results folder"
        ],
    )


def refuse_unwritable(uri: str) -> None:
    """Raise for an SQLite URI that cannot be written to.

    Raises:
        TrackingError: names the file or folder without permission.
    """
    path = Path(uri.removeprefix("sqlite:///"))
    folder = path.parent
    while not folder.exists():  # it will be created
        folder = folder.parent
    # The journal is written beside the database.
    for place, right in ((folder, folder.is_dir()), (path, not path.is_dir())):
        if not right or (place.exists() and not os.access(place, os.W_OK)):
            kind = "folder" if place is folder else "file"
            raise TrackingError(
                f"cannot write {path}: {place} is not a {kind} one may write to. Change its "
                "permissions, or give another tracking uri; `tracking: none` switches it off."
            )


def set_aside_if_moved(database: Path, experiment: str, artifacts: str) -> None:
    """A results folder that was moved has artifacts elsewhere than its database says: begin anew.

    The old database is renamed, not removed: somebody may have written notes into it.
    """
    if not database.exists():
        return
    with contextlib.suppress(sqlite3.Error):  # MLflow will say what is wrong with it
        with contextlib.closing(sqlite3.connect(database)) as connection:
            query = "SELECT artifact_location FROM experiments WHERE name = ?"
            found = connection.execute(query, (experiment,)).fetchone()
        if found and found[0] != artifacts:
            database.rename(database.with_name("mlflow.db.moved"))


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow raises into a message that says what to do.

    Raises:
        TrackingError: for every exception of MLflow, of what it is made of, and of the network.
    """
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        if (found := explain(uri, error)) is None:
            raise
        raise found from error


def explain(uri: str, error: BaseException) -> TrackingError | None:
    """What MLflow's exception means and what to do; None if it is not MLflow's."""
    module = type(error).__module__.partition(".")[0]
    if module not in ("mlflow", "requests", "urllib3", "sqlalchemy") and not isinstance(
        error, OSError
    ):
        return None
    shown, text = public(uri), str(error)
    status = getattr(error, "get_http_status_code", lambda: 0)()
    if "Invalid Host header" in text:
        parts = urlsplit(uri)
        other = "" if _is_address(parts.hostname) else ", or use its IP address"
        return TrackingError(
            f"the MLflow server at {shown} refuses the host name it is called by (its guard "
            f"against DNS rebinding). Start it with `sweep server --allow-host {parts.hostname}` "
            f'(of `mlflow server` itself: --allowed-hosts "{parts.netloc.rpartition("@")[2]}")'
            f"{other}."
        )
    if status == 401 or "error code 401" in text:
        return _unauthenticated(uri)
    if status == 403 or "error code 403" in text:
        return TrackingError(
            f"the MLflow server at {shown} knows this user but does not let it do that: give it "
            "permission to edit the experiment."
        )
    if has_server(uri) and ("Max retries" in text or "timed out" in text or status == 0):
        return TrackingError(
            f"the MLflow server at {shown} does not answer: {_cause(error)}. Start it, or correct "
            "the tracking uri."
        )
    if uri.startswith("sqlite:") and any(w in text for w in ("readonly", "unable to open")):
        return TrackingError(f"cannot write {shown.removeprefix('sqlite:///')}: {_cause(error)}")
    return TrackingError(f"MLflow at {shown} refuses: {_cause(error)}")


def _is_address(host: str | None) -> bool:
    with contextlib.suppress(ValueError):
        return bool(ipaddress.ip_address(host or ""))
    return False


def _unauthenticated(uri: str) -> TrackingError:
    names = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
    if any(map(os.environ.get, names)) or "@" in urlsplit(uri).netloc:
        return TrackingError(
            f"the MLflow server at {public(uri)} does not accept this user name or password: check "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN). "
            "`sweep server` says where the right ones are when it starts."
        )
    return TrackingError(
        f"the MLflow server at {public(uri)} wants a user name and a password: set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the sweep is started. "
        "`sweep server` says where both are when it starts."
    )


def _cause(error: BaseException) -> str:
    text = str(error)
    for known in ("Connection refused", "Name or service not known", "timed out"):
        if known in text:
            return known.lower()
    first = text.strip().partition("\n")[0]
    return first[:300] or type(error).__name__


@contextlib.contextmanager
def only_projector(store: Store, place: Place | None = None) -> Iterator[bool]:
    """Held by the one process that writes a store's runs: two would create every run twice.

    Args:
        store: whose runs.
        place: of the database they are written to; None: the one in the results folder.

    Yields:
        Whether this process was the last one to hold it: nobody else has written since.

    Raises:
        TrackingError: another process does; names it.
    """
    path = (place or beside(store.root)).lock
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise TrackingError(f"cannot write {path}: {error.strerror}") from error
        yield False  # somebody else's results: whoever cannot write here is not their driver
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise _locked(store, os.pread(descriptor, 512, 0)) from error
        holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode().ljust(512)
        last = os.pread(descriptor, 512, 0)
        os.pwrite(descriptor, holder, 0)
        yield last == holder
    finally:
        os.close(descriptor)


class LockedError(TrackingError):
    """Another process writes this store's runs."""


def _locked(store: Store, holder: bytes) -> LockedError:
    who = "another process"
    with contextlib.suppress(ValueError):
        facts = json.loads(holder or b"null") or {}
        if facts:
            who = f"process {facts['pid']} on host {facts['host']}"
    return LockedError(
        f"the MLflow runs of {store.root} are being written by {who}: a running sweep keeps them "
        "up to date itself. Wait until it ends, then run the same command again."
    )
