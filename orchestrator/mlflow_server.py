"""`sweep ui`: the MLflow UI on a results folder, kept up to date while it is open."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator

from orchestrator.errors import TrackingError
from orchestrator.mlflow_access import LockedError
from orchestrator.mlflow_follow import Follower
from orchestrator.mlflow_place import Place, local
from orchestrator.mlflow_process import (
    NO_PASSWORD,
    START_SECONDS,
    free_port,
    is_loopback,
    launched,
    own_names,
    shown,
)
from orchestrator.projection import store_id
from orchestrator.store import Store


def serve(store: Store, host: str = "127.0.0.1", port: int = 5000) -> None:
    """Bring the MLflow database of a results folder up to date, and show and follow it.

    Ends with Ctrl-C or SIGTERM. Whatever is committed meanwhile appears within seconds, also if the
    sweep runs elsewhere and is not tracked. Where a driver on this machine keeps the database up to
    date itself, it is only shown. Prints the URL on stdout.

    Args:
        store: what to show.
        host: interface to listen on. Other machines are admitted only if it is not a loopback.
        port: or the next free one.

    Raises:
        TrackingError: there is nothing to show, no free port, or the server does not start.
    """
    from orchestrator.tracking import project

    if not store.epochs():
        raise TrackingError(f"{store.root} has nothing to show: no sweep was started in it yet.")
    place = local(store.root, store_id(store))
    if place.why:
        print(f"{place.why}: the MLflow database is in {place.folder}", file=sys.stderr)
    follower = Follower(store, place)
    try:
        print(project(follower.store, place=place), file=sys.stderr)
    except LockedError:
        print("a running sweep keeps MLflow up to date", file=sys.stderr)
        _wait_for_database(place)
    chosen = free_port(host, port)
    with contextlib.suppress(KeyboardInterrupt), _launched(place, host, chosen) as process:
        base = f"http://{shown(host)}:{chosen}"
        runs, curves = links(base, store.sweeps()[-1].name, store_id(store))
        print(f"runs:   {runs}\ncurves: {curves}", flush=True)
        if os.environ.get("SSH_CONNECTION"):
            here = f"{os.environ.get('USER', 'you')}@{os.environ['SSH_CONNECTION'].split()[2]}"
            print("This is a remote machine. On your own, first run:")
            print(f"  ssh -N -L {chosen}:{shown(host)}:{chosen} {here}", flush=True)
        if not is_loopback(host):
            print(NO_PASSWORD, file=sys.stderr)
        print("Ctrl-C ends it.", file=sys.stderr, flush=True)
        while (code := _ended(process, follower.pause)) is None:
            if problem := follower.look():
                print(problem, file=sys.stderr, flush=True)
        raise TrackingError(f"the MLflow server ended by itself with exit code {code}")


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    return None


@contextlib.contextmanager
def _launched(place: Place, host: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    options = ["--workers", "1", "--backend-store-uri", place.uri]
    options += ["--default-artifact-root", place.artifacts.resolve().as_uri()]
    names = () if is_loopback(host) else own_names()
    with (
        tempfile.TemporaryFile() as log,
        launched(options, host, port, folder=place.folder, log=log, names=names) as process,
    ):
        yield process


def links(base: str, experiment: str, view: str) -> tuple[str, str]:
    """Addresses in the UI: the runs nested below their sweep, and the curves of all of them.

    Both are the address of the UI itself if the experiment does not exist yet.
    """
    query = urllib.parse.urlencode({"experiment_name": experiment})
    url = f"{base}/api/2.0/mlflow/experiments/get-by-name?{query}"
    with contextlib.suppress(OSError, ValueError, KeyError):
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["experiment"]["experiment_id"]
        page = f"{base}/#/experiments/{found}/runs?workflowType=machine_learning&viewStateShareKey="
        return f"{page}{view}-runs", f"{page}{view}-curves&compareRunsMode=CHART"
    return base, base


def _wait_for_database(place: Place) -> None:
    """A second process that created the tables at the same time would break both."""
    path = place.database
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(sqlite3.Error):
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
                if reader.execute("SELECT 1 FROM runs LIMIT 1").fetchone():
                    return
        time.sleep(0.2)
    raise TrackingError(
        f"{path} was not created by the running sweep. If that sweep tracks to a server, open its "
        "UI instead."
    )
