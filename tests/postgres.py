"""A PostgreSQL server for tests: Debian's, in a folder of its own, gone with the tests.

from tests.postgres import postgres  # noqa: F401   a fixture of scope "module"
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.services import missing

PASSWORD = "not-a-secret:/@"  # of the superuser; in a URI some of these must be escaped


@dataclass(frozen=True)
class Postgres:
    """A running server that asks for passwords.

    Attributes:
        port: on 127.0.0.1.
        folder: what it keeps; removed at the end.
    """

    port: int
    folder: Path

    def connect(self, database: str = "postgres") -> Any:
        import psycopg2

        connection = psycopg2.connect(
            host="127.0.0.1",
            port=self.port,
            user="postgres",
            password=PASSWORD,
            dbname=database,
            connect_timeout=2,
        )
        connection.autocommit = True
        return connection

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        connection = self.connect(database)
        try:
            cursor = connection.cursor()
            cursor.execute(statement)
            return list(cursor.fetchall()) if cursor.description else []
        finally:
            connection.close()

    def create(self, name: str, password: str = "pw") -> str:
        """A new database with an owner of the same name; its URI."""
        self.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{password}'")
        self.execute(f"CREATE DATABASE {name} OWNER {name}")
        return f"postgresql://{name}:{password}@127.0.0.1:{self.port}/{name}"

    def row_counts(self, database: str) -> dict[str, int]:
        tables = self.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database
        )
        return {
            name: self.execute(f'SELECT count(*) FROM "{name}"', database)[0][0]
            for (name,) in tables
        }


def find_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`: Debian keeps them off the PATH."""
    versions = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    found = max(versions, key=lambda path: float(path.parts[-3]), default=None)
    on_path = shutil.which("initdb")
    path = found or (Path(on_path) if on_path else None)
    return path.parent if path is not None and path.with_name("postgres").exists() else None


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    binaries = find_binaries()
    if binaries is None:
        missing("no PostgreSQL: apt-get install postgresql (tests/install_services.sh does)")
    pytest.importorskip("psycopg2", reason="no psycopg2: pip install psycopg2-binary")
    person: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        try:
            entry = pwd.getpwnam("postgres")
        except KeyError:
            entry = pwd.getpwnam("nobody")
        person = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # socket paths are short
    process = None
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        for path in (folder, secret):
            if person:
                os.chown(path, person["user"], person["group"])
        data = folder / "data"
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", f"--pwfile={secret}"]
        initdb += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(
            initdb, cwd="/", capture_output=True, text=True, check=False, **person
        )
        assert done.returncode == 0, done.stderr
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port)]
        command += ["-k", folder, "-c", "fsync=off", "-c", "shared_buffers=32MB"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, **person)
        server = Postgres(port, folder)
        _wait(server, process)
        yield server
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # PostgreSQL's "fast" shutdown
            process.wait(30)
        shutil.rmtree(folder)


def _wait(server: Postgres, process: subprocess.Popen[bytes]) -> None:
    import psycopg2

    deadline = time.monotonic() + 60
    while True:
        try:
            server.connect().close()
        except psycopg2.OperationalError:
            said = (server.folder / "log").read_text()
            assert process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        else:
            return
