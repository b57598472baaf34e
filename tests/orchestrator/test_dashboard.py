"""Addresses of dashboards: what is refused, within which time, with which words."""

from __future__ import annotations

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dashboard import address_of, probe
from orchestrator.errors import UserError
from tests.clusters import free_ports

TOKEN = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token (or put it into "
    "~/.ray/auth_token; on the head, `ray get-auth-token` prints it)"
)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


class _Dashboard(http.server.BaseHTTPRequestHandler):
    """Answers /api/version as the server's `answer` (status, body) says, if the token is right."""

    def do_GET(self) -> None:
        status, body = self.server.answer  # type: ignore[attr-defined]
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        if (given := self.headers.get("Authorization")) != "Bearer right" and status == 200:
            status, body = (401 if given is None else 403), b""
        self.send_response(status)
        if status == 302:
            self.send_header("Location", body.decode())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    with http.server.HTTPServer(("127.0.0.1", 0), _Dashboard) as found:
        found.answer = (200, json.dumps({"ray_version": "2.60.0"}).encode())  # type: ignore[attr-defined]
        found.asked = []  # type: ignore[attr-defined]
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def url(server: http.server.HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def refusal(address: str, seconds: float = 6.0) -> str:
    with pytest.raises(UserError) as caught:
        probe(address, "2.60.0", seconds)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_address_is_the_option_or_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """RAY_ADDRESS counts where it names a dashboard; the option counts more."""
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265/")

    assert address_of(None) == "http://head:8265"
    assert address_of("https://other/") == "https://other"


def test_a_missing_address_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError) as nothing:
        address_of(None)
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(UserError) as unfit:
        address_of(None)

    assert str(nothing.value) == (
        "--address is missing: give the dashboard of the cluster, http://HOST:8265, or set "
        "RAY_ADDRESS to it"
    )
    assert str(unfit.value) == (
        "--address is missing (RAY_ADDRESS is ray://head:10001, which is no dashboard): give the "
        "dashboard of the cluster, http://HOST:8265, or set RAY_ADDRESS to it"
    )


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("ray://head:10001", "head:8265"),
        ("ray://head:28265", "head:8265"),
        ("head", "head:8265"),
        ("head:6379", "head:8265"),
        ("head:10001", "head:8265"),
        ("head:28265", "head:28265"),
        ("[::1]:28265/", "[::1]:28265"),
        ("auto", "HOST:8265"),
        ("http://", "HOST:8265"),
        ("http://head:dashboard", "head:8265"),
    ],
)
def test_an_address_of_another_kind_is_refused_with_the_right_form(given: str, meant: str) -> None:
    """`submit` speaks to the dashboard; a port is kept where only the scheme was forgotten."""
    with pytest.raises(UserError) as caught:
        address_of(given)

    assert str(caught.value) == (
        f"--address {given}: this command talks to the dashboard of a cluster: http://{meant}. "
        "To run the driver here and the trials there, use `sweep run FILE --address "
        "ray://HOST:10001`"
    )


def test_a_dashboard_that_knows_the_token_is_accepted(
    server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The token comes from the variable, or from the file that Ray reads."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    probe(url(server), "2.60.0")

    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("right\n")
    probe(url(server), "2.60.0")


def test_a_missing_and_a_wrong_token_are_told_apart(
    server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(url(server)) == f"{url(server)} wants a token: {TOKEN}"

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert refusal(url(server)) == (
        f"{url(server)} does not accept the token of this machine: {TOKEN}"
    )


def test_another_version_of_ray_is_refused(
    server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both versions are named, and where each is."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    server.answer = (200, b'{"ray_version": "2.9.1"}')  # type: ignore[attr-defined]

    assert refusal(url(server)) == (
        f"{url(server)} runs Ray 2.9.1, this machine has Ray 2.60.0: install the same version on "
        'one of them, for example here: pip install "ray[default]==2.9.1"'
    )


@pytest.mark.parametrize("answer", [(404, b"no such page"), (404, b"{}")])
def test_another_web_server_is_refused(
    server: http.server.HTTPServer, answer: tuple[int, bytes]
) -> None:
    server.answer = answer  # type: ignore[attr-defined]

    assert refusal(url(server)) == (
        f"{url(server)} is a web server, but not Ray's dashboard (it answers 404 to /api/version). "
        "The dashboard's port is 8265 unless `ray start --dashboard-port` says otherwise"
    )


HELP = (
    "Is the cluster up, and can this machine reach its dashboard? If not: ssh -L "
    "8265:127.0.0.1:8265 HEAD, and --address http://127.0.0.1:8265"
)


def test_a_closed_port_is_refused() -> None:
    [port] = free_ports(1)

    assert refusal(f"http://127.0.0.1:{port}") == (
        f"http://127.0.0.1:{port} cannot be reached: connection refused. {HELP}"
    )


def test_an_address_that_swallows_connections_is_given_up() -> None:
    """The limit holds although the connection is made; by default it is 6 s."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"

        assert refusal(address, 0.5) == (
            f"{address} cannot be reached: no answer within 0.5 s. {HELP}"
        )


def test_an_address_that_answers_in_drops_is_given_up() -> None:
    """Each packet comes in time; the limit is for all of them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        done = threading.Event()

        def trickle() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 200 OK\r\nX-Drops: ")
                while not done.wait(0.05):
                    connection.sendall(b".")

        thread = threading.Thread(target=trickle)
        thread.start()
        said = refusal(address, 0.5)
        done.set()
        thread.join()

    assert said == f"{address} cannot be reached: no answer within 0.5 s. {HELP}"


def test_a_redirect_is_not_followed(
    server: http.server.HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is for the address that was given, and for no other."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    server.answer = (302, b"/elsewhere")  # type: ignore[attr-defined]

    assert refusal(url(server)) == (
        f"{url(server)} is a web server, but not Ray's dashboard (it answers 302 to /api/version). "
        "The dashboard's port is 8265 unless `ray start --dashboard-port` says otherwise"
    )
    assert server.asked == ["/api/version"]  # type: ignore[attr-defined]


def test_https_where_http_is_spoken_is_refused_with_the_right_scheme() -> None:
    """OpenSSL's own words differ from version to version and name no way out."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = f"127.0.0.1:{listener.getsockname()[1]}"

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        said = refusal(f"https://{place}")
        thread.join()

    assert said == f"https://{place} speaks http, not https: give http://{place}"


def test_a_port_that_speaks_another_protocol_is_refused() -> None:
    """gRPC, as Ray's client port and its control store speak it, begins with binary frames."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00")

        thread = threading.Thread(target=answer)
        thread.start()
        said = refusal(f"http://127.0.0.1:{port}")
        thread.join()

    assert said == (
        f"http://127.0.0.1:{port} answers, but not as a dashboard: it is probably Ray's client "
        "port (10001) or that of its control store (6379). This command wants the dashboard: "
        "http://127.0.0.1:8265"
    )
