"""`sweep server`: an MLflow server that several machines can write to, set up coherently.

<folder>/
  mlflow.db        runs, unless --store names a PostgreSQL database
  artifacts/       files of runs, unless --artifacts names another place; clients go through the
                   server, so they need no access of their own
  credentials      user name and password as a shell reads them, readable by the owner only
  secret_key       signs the forms of its web pages; likewise
  auth.ini auth.db  who may do what
  server.log       of the last start
  .server.lock     held by the one server of the folder; says which

Nobody but its owner can read any of it.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import secrets
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import TrackingError, UserError
from orchestrator.mlflow_database import refuse_network, require, store_uri, writable_folder
from orchestrator.mlflow_process import (
    NO_PASSWORD,
    is_loopback,
    launched,
    own_names,
    port_problem,
    shown,
)

ADMIN = "admin"
_AUTH = """\
[mlflow]
default_permission = READ
database_uri = sqlite:///{database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
# Checking a password takes long on purpose: without this, once per request.
auth_cache_ttl_seconds = 60
"""
_CREDENTIALS = """\
# Of the MLflow server in this folder. In a shell:  . {path}
export MLFLOW_TRACKING_USERNAME={user}
export MLFLOW_TRACKING_PASSWORD={password}
"""


@dataclass(frozen=True)
class Service:
    """What `sweep server` is asked for.

    Attributes:
        folder: where the server keeps its files; created if need be.
        store: URI of the database; None: SQLite in the folder.
        artifacts: folder or URI for files of runs; None: in the folder.
        host: interface to listen on.
        port: to listen on; another one would not be the one in the sweep files.
        allow_hosts: names by which it may be called, beyond this machine's own.
        auth: whether a user name and a password are asked for.
        workers: server processes.
    """

    folder: Path
    store: str | None = None
    artifacts: str | None = None
    host: str = "127.0.0.1"
    port: int = 5000
    allow_hosts: tuple[str, ...] = ()
    auth: bool = True
    workers: int = 2


def run(service: Service) -> None:
    """Serve until Ctrl-C or SIGTERM; prints on stdout what sweep file and shell need.

    Raises:
        UserError: it cannot work as asked; nothing was started.
        TrackingError: the server does not start, or ended by itself; says why.
    """
    problem = port_problem(service.host, service.port)
    told = (
        f"cannot listen on {service.host} at port {service.port}: {problem}. "
        "Give another --port or --host."
    )
    if problem and not service.folder.expanduser().exists():
        raise UserError(told)
    folder = writable_folder(service.folder, "--folder")
    with _private(folder), _only_server(folder, service.port):
        if problem:  # not by a server of this folder
            raise UserError(told)
        _serve(service, folder)


def _serve(service: Service, folder: Path) -> None:
    uri = store_uri(service.store, folder)
    environment = {"MLFLOW_BACKEND_STORE_URI": uri}  # not in `ps`: a password may be in it
    options = ["--workers", str(service.workers), "--serve-artifacts"]
    options += ["--artifacts-destination", _artifacts(service.artifacts, folder)]
    options += ["--uvicorn-opts", "--no-access-log"]
    password = None
    if service.auth:
        require("flask_wtf", "mlflow[auth]", "asking for passwords")
        refuse_network(folder / "auth.db", "--folder")
        password = _password(folder)
        options += ["--app-name", "basic-auth"]
        environment |= _auth_environment(folder, password)
    names = [*service.allow_hosts, *own_names()]
    if is_loopback(service.host) and not service.allow_hosts:
        names = []  # MLflow's default
    with (
        (folder / "server.log").open("w+b") as log,
        contextlib.suppress(KeyboardInterrupt),
        launched(
            options,
            service.host,
            service.port,
            folder=folder,
            log=log,
            names=names,
            environment=environment,
        ) as process,
    ):
        _introduce(service, folder, password)
        code = process.wait()
        raise TrackingError(
            f"the MLflow server ended by itself with exit code {code}: see {folder}/server.log"
        )


def _introduce(service: Service, folder: Path, password: str | None) -> None:
    """On stdout what belongs into sweep file and shell, on stderr what it means."""
    host = shown(service.host)
    called = own_names()[0] if service.host in ("0.0.0.0", "::") else host
    # A pattern is no name.
    called = next((shown(name) for name in service.allow_hosts if "*" not in name), called)
    print(f"tracking: {{uri: http://{called}:{service.port}}}")
    notes = ["The first line belongs in the sweep file"]
    if password is None:
        notes[0] += f". {NO_PASSWORD}"
    elif _admitted(f"http://{host}:{service.port}", password) and not sys.stdout.isatty():
        # A journal or a log keeps what is printed, and others may read it.
        print(f". {shlex.quote(str(folder / 'credentials'))}")
        notes[0] += ", the second in the shell that starts sweeps: it sets user name and password."
        notes.append("A browser asks for both values; they stand in that file.")
    elif _admitted(f"http://{host}:{service.port}", password):
        print(f"export MLFLOW_TRACKING_USERNAME={ADMIN}")
        print(f"export MLFLOW_TRACKING_PASSWORD={password}")
        notes[0] += ", the others in the shell that starts sweeps; a browser asks for both values."
        notes.append(f"They are kept in {folder}/credentials.")
    else:
        notes[0] += ". Who starts sweeps also needs MLFLOW_TRACKING_USERNAME and _PASSWORD:"
        notes.append(f"the password in {folder}/credentials is not {ADMIN}'s any more.")
    sys.stdout.flush()
    if not is_loopback(service.host):
        answers = dict.fromkeys([*service.allow_hosts, *own_names()])
        notes.append(f"It answers to {', '.join(answers)}; --allow-host adds a name.")
        notes.append("Nothing is encrypted: across a network you do not trust, use SSH or a proxy.")
    elif os.environ.get("SSH_CONNECTION"):
        here = f"{os.environ.get('USER', 'you')}@{os.environ['SSH_CONNECTION'].split()[2]}"
        forward = f"ssh -N -L {service.port}:{host}:{service.port} {here}"
        notes.append(f"To open it on your own machine, first run there:  {forward}")
    print("\n".join([*notes, "Ctrl-C ends it."]), file=sys.stderr, flush=True)


# --- its files --------------------------------------------------------------------------------


@contextlib.contextmanager
def _private(folder: Path) -> Iterator[None]:
    """Whatever this process and the server write is for nobody else, also what is there already."""
    before = os.umask(0o077)
    try:
        for name in ("mlflow.db", "auth.db", "server.log", "credentials", "secret_key", "auth.ini"):
            with contextlib.suppress(OSError):  # not there, or another user's
                (folder / name).chmod(0o600)
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def _only_server(folder: Path, port: int) -> Iterator[None]:
    """Held by the one server of a folder: two would make the same tables and passwords.

    Raises:
        UserError: another one holds it; names its process and port.
    """
    path = folder / ".server.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Give another --folder.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            who = "another process"
            with contextlib.suppress(ValueError, KeyError, TypeError):
                holder = json.loads(os.pread(descriptor, 512, 0))
                who = f"process {holder['pid']}, at port {holder['port']}"
            raise UserError(
                f"the folder {folder} is in use by another `sweep server`: {who}. Use that one, "
                "end it first, or give another --folder."
            ) from error
        holder = json.dumps({"pid": os.getpid(), "port": port}).encode().ljust(512)
        os.pwrite(descriptor, holder, 0)
        yield
    finally:
        os.close(descriptor)


def _artifacts(given: str | None, folder: Path) -> str:
    if given is not None and "://" in given:
        return given
    path = Path(given) if given is not None else folder / "artifacts"
    return str(writable_folder(path, "--artifacts"))


def _password(folder: Path) -> str:
    path = folder / "credentials"
    if path.exists():
        path.chmod(0o600)
        found = re.search(r"^export MLFLOW_TRACKING_PASSWORD=(\S+)$", path.read_text(), re.M)
        if found is None:
            raise UserError(
                f"{path} has no line `export MLFLOW_TRACKING_PASSWORD=...`. Write one with the "
                f"password of {ADMIN}."
            )
        return found[1]
    if (folder / "auth.db").exists():
        raise UserError(
            f"{path} is gone, but {folder}/auth.db still knows the password that was in it. Bring "
            "it back, or remove auth.db too: its users and permissions are then lost."
        )
    password = secrets.token_urlsafe(24)
    _keep(path, _CREDENTIALS.format(path=shlex.quote(str(path)), user=ADMIN, password=password))
    return password


def _auth_environment(folder: Path, password: str) -> dict[str, str]:
    key = folder / "secret_key"
    if not key.exists():
        _keep(key, secrets.token_urlsafe(32))
    database = str(folder / "auth.db").replace("%", "%%")  # as configparser reads it
    _keep(folder / "auth.ini", _AUTH.format(database=database, admin=ADMIN))
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
    }


def _keep(path: Path, text: str) -> None:
    """Write a file that nobody else can read, at no moment."""
    hidden = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    hidden.replace(path)


def _admitted(base: str, password: str) -> bool:
    """Whether the server lets the administrator in; somebody may have changed the password."""
    token = base64.b64encode(f"{ADMIN}:{password}".encode()).decode()
    url = f"{base}/api/2.0/mlflow/experiments/get?experiment_id=0"
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {token}"})
    try:
        with urllib.request.urlopen(request, timeout=30):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 401
    except OSError:
        return False
