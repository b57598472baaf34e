"""The database of an MLflow server: which URIs work, and whether it can be opened, asked before.

MLflow itself would say the same after seconds, in a traceback, and not always so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import tempfile
from pathlib import Path

from orchestrator.errors import UserError
from orchestrator.mlflow_access import public
from orchestrator.node_storage import filesystem, is_network, mounts

CONNECT_SECONDS = 5
_ACCEPTED = "sqlite:////absolute/path/mlflow.db or postgresql://USER:PASSWORD@HOST:5432/DATABASE"


def store_uri(given: str | None, folder: Path) -> str:
    """The URI of the database, after making sure that it can be opened.

    Raises:
        UserError: it cannot; says why and what to do.
    """
    uri = given if given is not None else f"sqlite:///{folder / 'mlflow.db'}"
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        raise UserError(
            f"--store {uri!r} is a folder: MLflow's file store cannot be used. Leave it out (an "
            f"SQLite database in {folder}), or give {_ACCEPTED}."
        )
    if scheme == "sqlite":
        path = Path(rest.removeprefix("/")).absolute()
        refuse_network(path, "--folder" if given is None else "--store")
        _check_sqlite(path)
        return f"sqlite:///{path}"
    if scheme in ("postgres", "postgresql", "postgresql+psycopg2"):
        _check_postgresql(f"postgresql://{rest}")
        return f"postgresql+psycopg2://{rest}"  # SQLAlchemy 2.1 would look for psycopg (3)
    raise UserError(f"--store: expected {_ACCEPTED}; got {public(uri)!r}")


def refuse_network(database: Path, option: str) -> None:
    """Raise for an SQLite file where the locks that SQLite needs are not kept.

    Args:
        database: the file; need not be there.
        option: of the command line that decides where it lies.

    Raises:
        UserError: it would lie on a network file system; says what to do.
    """
    if is_network(kind := filesystem(str(database.resolve()), mounts())):
        local = "--folder" if option == "--folder" else "--store sqlite:////PATH or --folder"
        way = (
            ", or --no-auth"
            if database.name == "auth.db"
            else ", or --store postgresql://USER:PASSWORD@HOST:5432/DATABASE"
        )
        raise UserError(
            f"the SQLite database {database} would lie on a network file system ({kind}), which "
            f"does not keep the locks that it needs. Give a {local} on a disk of this machine{way}."
        )


def _check_sqlite(path: Path) -> None:
    writable_folder(path.parent, "--store")
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=CONNECT_SECONDS)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        raise UserError(
            f"cannot open the database {path}: {error}. Give another --store."
        ) from error


def _check_postgresql(uri: str) -> None:
    require("psycopg2", "psycopg2-binary>=2.9,<3", "a PostgreSQL database")
    psycopg2 = importlib.import_module("psycopg2")  # has no types
    place = public(uri)
    try:
        connection = psycopg2.connect(uri, connect_timeout=CONNECT_SECONDS)
    except psycopg2.Error as error:
        text = " ".join(str(error).partition("\n")[0].split())  # a question follows
        raise UserError(f"cannot open the database {place}: {text}. {_advice(text)}") from error
    with contextlib.closing(connection), connection.cursor() as cursor:
        cursor.execute(
            "SELECT to_regclass('experiments') IS NOT NULL "
            "OR coalesce(has_schema_privilege(current_schema(), 'CREATE'), false), current_user"
        )
        usable, user = cursor.fetchone()
    if not usable:
        raise UserError(
            f"the user {user} may not create tables in {place}. As its owner or as a superuser: "
            f'GRANT CREATE ON SCHEMA public TO "{user}"'
        )


def _advice(text: str) -> str:
    if "password" in text:
        return "Correct user name and password in --store, or set PGPASSWORD or ~/.pgpass."
    if "does not exist" in text:
        return "Create it first: CREATE DATABASE, CREATE ROLE ... LOGIN PASSWORD."
    return "Start PostgreSQL, or correct host and port in --store."


def writable_folder(folder: Path, option: str) -> Path:
    """The folder as an absolute path, created if need be, for its owner alone.

    Args:
        folder: may be relative, or begin with `~`.
        option: of the command line, for the message.

    Raises:
        UserError: one cannot write there.
    """
    folder = folder.expanduser().absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write to the folder {folder}: {error.strerror}. Give another {option}."
        ) from error
    return folder


def require(module: str, package: str, what: str) -> None:
    """Refuse if a Python package is missing that not everybody needs.

    Raises:
        UserError: it is; names what `pip install` takes.
    """
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"{what} needs the Python package {module}, which is not installed: "
            f"pip install '{package}'"
        )
