"""`sweep server`: what it prints, whom it lets in, and what it refuses before it starts."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import mlflow_database, mlflow_guard, mlflow_service
from orchestrator.errors import SweepError, TrackingError, UserError
from orchestrator.mlflow_access import refuse_local_database
from orchestrator.mlflow_process import host_patterns, origin_patterns
from orchestrator.mlflow_service import Service, run
from orchestrator.tracking import check
from tests.orchestrator.test_tracking import until
from tests.servers import HELD, SWEEP, Started, clean_environment, free_port, sweep_server

pytestmark = [
    pytest.mark.mlflow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of MLflow's own dependencies
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """With a password, on loopback, called by one name beyond its own."""
    folder = tmp_path_factory.mktemp("server") / "mlflow-server"
    with sweep_server(folder, "--allow-host", "mlflow.example") as started:
        yield started


@pytest.fixture
def credentials(server: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.credentials.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # MLflow also reads ~/.mlflow/credentials


def folder_of(server: Started) -> Path:
    return Path(server.process.args[3])  # type: ignore[index,arg-type]


def ask(server: Started, **headers: str) -> int:
    """The status of the search that the web page begins with."""
    request = urllib.request.Request(
        f"{server.uri}/ajax-api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 1}',
        headers={"Content-Type": "application/json", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


# --- a server that runs ---------------------------------------------------------------------------


def test_a_server_prints_what_sweep_file_and_shell_need(server: Started) -> None:
    """By the name that was given first; the password is in a file that only its owner can read.

    Its stdout is no terminal: a journal would keep the password.
    """
    kept = folder_of(server) / "credentials"
    port = server.uri.rpartition(":")[2]
    shell = f". {kept} && echo $MLFLOW_TRACKING_USERNAME $MLFLOW_TRACKING_PASSWORD"

    assert server.printed == [
        f"tracking: {{uri: http://mlflow.example:{port}}}\n",
        f". {kept}\n",
    ]
    assert server.user == "admin"
    assert len(server.password) >= 32
    told = subprocess.run(["sh", "-c", shell], capture_output=True, text=True)
    assert told.stdout == f"admin {server.password}\n"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            assert server.password.encode() not in path.read_bytes()
    for path in folder_of(server).iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    assert {"auth.db", "mlflow.db", "server.log"} <= {p.name for p in folder_of(server).iterdir()}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        assert server.password.encode() not in path.read_bytes()


def test_a_terminal_is_shown_the_password(
    server: Started, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    port = int(server.uri.rpartition(":")[2])

    mlflow_service._introduce(Service(Path(), port=port), folder_of(server), server.password)

    assert capsys.readouterr().out == (
        f"tracking: {{uri: {server.uri}}}\n"
        "export MLFLOW_TRACKING_USERNAME=admin\n"
        f"export MLFLOW_TRACKING_PASSWORD={server.password}\n"
    )


def test_a_second_server_on_a_folder_is_refused(server: Started) -> None:
    """At any port, that of the first one too."""
    port = int(server.uri.rpartition(":")[2])

    for other in (port, free_port()):
        assert refused(Service(folder_of(server), port=other)) == (
            f"the folder {folder_of(server)} is in use by another `sweep server`: process "
            f"{server.process.pid}, at port {port}. Use that one, end it first, or give another "
            "--folder."
        )


@pytest.mark.usefixtures("credentials")
def test_the_right_password_is_let_in_and_files_go_through_the_server(
    server: Started, tmp_path: Path
) -> None:
    """A client on another machine has no access to the server's disk."""
    from mlflow import MlflowClient

    check(server.uri)
    client = MlflowClient(tracking_uri=server.uri)
    made = client.create_run(client.create_experiment("files"))
    (tmp_path / "plot.txt").write_text("a plot")
    client.log_artifact(made.info.run_id, str(tmp_path / "plot.txt"))

    assert made.info.artifact_uri.startswith("mlflow-artifacts:/")
    [stored] = (folder_of(server) / "artifacts").rglob("plot.txt")
    assert stored.read_text() == "a plot"


@pytest.mark.usefixtures("no_credentials")
def test_a_missing_password_is_asked_for(server: Started) -> None:
    with pytest.raises(TrackingError) as caught:
        check(server.uri)

    assert str(caught.value) == (
        f"the MLflow server at {server.uri} wants a user name and a password: set "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where the sweep is started. "
        "`sweep server` says where both are when it starts."
    )


@pytest.mark.usefixtures("credentials")
def test_a_wrong_password_is_refused(server: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")

    with pytest.raises(TrackingError) as caught:
        check(server.uri)

    assert str(caught.value) == (
        f"the MLflow server at {server.uri} does not accept this user name or password: check "
        "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN). "
        "`sweep server` says where the right ones are when it starts."
    )


def test_a_password_that_was_changed_is_noticed(server: Started) -> None:
    """Then the one in the folder is not printed: it would be wrong."""
    assert mlflow_service._admitted(server.uri, server.password)
    assert not mlflow_service._admitted(server.uri, "of yesterday")


@pytest.mark.usefixtures("credentials")
def test_a_name_that_the_server_is_not_called_by_is_refused(server: Started) -> None:
    """127.1 is another way to write 127.0.0.1: it reaches the server, under a name of its own."""
    port = server.uri.rpartition(":")[2]

    with pytest.raises(TrackingError) as caught:
        check(f"http://127.1:{port}")

    assert str(caught.value) == (
        f"the MLflow server at http://127.1:{port} refuses the host name it is called by (its "
        "guard against DNS rebinding). Start it with `sweep server --allow-host 127.1` (of "
        f'`mlflow server` itself: --allowed-hosts "127.1:{port}"), or use its IP address.'
    )


@pytest.mark.usefixtures("no_credentials")
def test_a_sweep_is_not_launched_without_the_password(server: Started, tmp_path: Path) -> None:
    """Exit code 2, and no results folder."""
    (tmp_path / "faulty_task.py").write_text(HELD.with_name("faulty_task.py").read_text())
    (tmp_path / "toy.yaml").write_text(
        "name: toy\ntask: faulty_task.py:Faulty\nbase: {steps: 10}\n"
        f"tracking: {{uri: {server.uri}}}\n"
    )

    done = subprocess.run(
        [SWEEP, "run", "toy.yaml", "--in-process"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 2
    assert done.stderr.startswith(f"error: the MLflow server at {server.uri} wants a user name")
    assert not (tmp_path / "results").exists()


def test_a_browser_may_use_the_names_that_are_allowed_and_no_others(server: Started) -> None:
    """MLflow checks both Host and Origin: with the first alone its pages stay empty."""
    import base64

    token = base64.b64encode(f"{server.user}:{server.password}".encode()).decode()
    login = {"Authorization": f"Basic {token}"}

    def opened_as(name: str) -> int:
        return ask(server, Host=name, Origin=f"http://{name}", **login)

    assert opened_as("mlflow.example") == 200
    assert opened_as("mlflow.example:8443") == 200
    assert opened_as(socket.gethostname()) == 200
    assert opened_as("localhost:8080") == 200
    assert opened_as("evil.example") == 403
    assert ask(server, Origin="http://evil.example", **login) == 403
    assert ask(server) == 401


def test_names_are_allowed_with_any_port() -> None:
    assert host_patterns(["a.example", "::1"]) == ["a.example", "a.example:*", "[::1]", "[[]::1]:*"]
    assert origin_patterns(["a.example"]) == [
        "http://a.example",
        "https://a.example",
        "http://a.example:*",
        "https://a.example:*",
    ]


GUARDED = """
import subprocess, sys
command = [sys.executable, "-I", {guard!r}, "sh", "-c", "sleep 600 & echo $! $$; wait"]
guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
print(guard.pid, flush=True)
guard.wait()
"""


def test_what_is_guarded_ends_with_a_parent_that_was_killed() -> None:
    """SIGKILL leaves nobody the time to clean up: the guard sees its pipe close."""
    script = GUARDED.format(guard=mlflow_guard.__file__)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(p) for _ in range(2) for p in parent.stdout.readline().split()]

    parent.kill()
    parent.wait(30)

    assert len(pids) == 3
    until(lambda: not any(is_alive(pid) for pid in pids))
    parent.stdout.close()


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# --- passwords ------------------------------------------------------------------------------------


def test_the_password_is_made_once(tmp_path: Path) -> None:
    """Also after somebody made the file readable."""
    first = mlflow_service._password(tmp_path)
    (tmp_path / "credentials").chmod(0o644)

    assert mlflow_service._password(tmp_path) == first
    assert (tmp_path / "credentials").stat().st_mode & 0o777 == 0o600
    assert re.fullmatch(r"[\w-]{32}", first)


def test_what_was_readable_by_others_is_not_any_more(tmp_path: Path) -> None:
    """A folder of an earlier version; and only while the server runs are new files private."""
    for name in ("mlflow.db", "auth.db", "server.log"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)

    with mlflow_service._private(tmp_path):
        (tmp_path / "during").touch()
    (tmp_path / "after").touch()

    modes = {path.name: path.stat().st_mode & 0o077 for path in tmp_path.iterdir()}
    assert modes.pop("after") != 0
    assert modes == dict.fromkeys(("mlflow.db", "auth.db", "server.log", "during"), 0)


def test_a_password_that_was_lost_is_told(tmp_path: Path) -> None:
    (tmp_path / "auth.db").touch()

    with pytest.raises(UserError) as caught:
        mlflow_service._password(tmp_path)

    assert str(caught.value) == (
        f"{tmp_path}/credentials is gone, but {tmp_path}/auth.db still knows the password that was "
        "in it. Bring it back, or remove auth.db too: its users and permissions are then lost."
    )


# --- what is refused before anything is started ---------------------------------------------------


def refused(service: Service) -> str:
    with pytest.raises(UserError) as caught:
        run(service)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    """Another one would not be the one in the sweep files. Through the command: exit code 2."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [SWEEP, "server", "--folder", str(tmp_path / "s"), "--port", str(port)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=clean_environment(), timeout=120
        )

    assert (done.returncode, done.stdout) == (2, "")
    assert not (tmp_path / "s").exists()
    assert done.stderr == (
        f"error: cannot listen on 127.0.0.1 at port {port}: Address already in use. Give another "
        "--port or --host.\n"
    )


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    told = refused(Service(tmp_path / "file" / "server", port=free_port()))

    assert told == (
        f"cannot write to the folder {tmp_path}/file/server: Not a directory. Give another "
        "--folder."
    )


def test_sqlite_on_a_network_file_system_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database of users and passwords too, which PostgreSQL does not replace."""
    monkeypatch.setattr(mlflow_database, "filesystem", lambda path, mounts: "nfs4")

    assert refused(Service(tmp_path, port=free_port())) == (
        f"the SQLite database {tmp_path}/mlflow.db would lie on a network file system (nfs4), "
        "which does not keep the locks that it needs. Give a --folder on a disk of this machine, "
        "or --store postgresql://USER:PASSWORD@HOST:5432/DATABASE."
    )
    with pytest.raises(UserError) as caught:
        mlflow_database.refuse_network(tmp_path / "auth.db", "--folder")
    assert str(caught.value) == (
        f"the SQLite database {tmp_path}/auth.db would lie on a network file system (nfs4), which "
        "does not keep the locks that it needs. Give a --folder on a disk of this machine, or "
        "--no-auth."
    )


@pytest.mark.parametrize("uri", ["./mlruns", "file:///tmp/mlruns"])
def test_mlflows_file_store_is_refused(tmp_path: Path, uri: str) -> None:
    told = refused(Service(tmp_path, store=uri, port=free_port()))

    assert told == (
        f"--store {uri!r} is a folder: MLflow's file store cannot be used. Leave it out (an SQLite "
        f"database in {tmp_path}), or give sqlite:////absolute/path/mlflow.db or "
        "postgresql://USER:PASSWORD@HOST:5432/DATABASE."
    )


def test_another_kind_of_database_is_refused(tmp_path: Path) -> None:
    told = refused(Service(tmp_path, store="mysql://ada:secret@db/runs", port=free_port()))

    assert told == (
        "--store: expected sqlite:////absolute/path/mlflow.db or "
        "postgresql://USER:PASSWORD@HOST:5432/DATABASE; got 'mysql://***@db/runs'"
    )


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database " * 100)

    told = refused(Service(tmp_path, store=f"sqlite:///{tmp_path}/notes.txt", port=free_port()))

    assert told == (
        f"cannot open the database {tmp_path}/notes.txt: file is not a database. Give another "
        "--store."
    )


def test_a_database_that_does_not_answer_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("psycopg2")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # taken but not listening: connections are refused
        port = probe.getsockname()[1]
        uri = f"postgresql://ada:secret@127.0.0.1:{port}/runs"
        told = refused(Service(tmp_path, store=uri, port=free_port()))

    assert told == (
        f"cannot open the database postgresql://***@127.0.0.1:{port}/runs: connection to server at "
        f'"127.0.0.1", port {port} failed: Connection refused. Start PostgreSQL, or correct host '
        "and port in --store."
    )


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_database.importlib.util, "find_spec", lambda name: None)

    told = refused(Service(tmp_path, store="postgresql://db/runs", port=free_port()))

    assert told == (
        "a PostgreSQL database needs the Python package psycopg2, which is not installed: "
        "pip install 'psycopg2-binary>=2.9,<3'"
    )


def test_a_local_database_is_refused_on_several_nodes() -> None:
    """With the two ways out; one node, or a server, is fine."""
    refuse_local_database("a.yaml", None, 1)
    refuse_local_database("a.yaml", "http://tracking.example:5000", 3)
    refuse_local_database("a.yaml", "postgresql://db/runs", 3)

    with pytest.raises(SweepError) as caught:
        refuse_local_database("a.yaml", None, 3)
    assert str(caught.value) == (
        "a.yaml: 1 problem\n"
        "  this cluster has 3 nodes, and MLflow would be kept in the SQLite database in the "
        "results folder, a file that only one machine can write safely. Either give the URI of a "
        "server (`tracking: {uri: http://HOST:5000}`; `sweep server` starts one and prints the "
        "line), or write `tracking: none` and watch with `sweep ui TARGET` on a machine that can "
        "read the results folder"
    )
    with pytest.raises(SweepError, match=r"would be kept in sqlite:////shared/mlflow\.db, a"):
        refuse_local_database("a.yaml", "sqlite:////shared/mlflow.db", 2)
