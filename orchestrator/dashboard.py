"""The address of a Ray dashboard: which one is meant, and whether one answers there, in seconds.

Ray's own client waits for ever on an address that swallows connections, and its messages name
neither the port that was meant nor the token that is missing.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import threading
import urllib.error
import urllib.request
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orchestrator.errors import UserError

PROBE_SECONDS = 6.0
"""An address that has not answered by then is given up: a command is to say so within 15 s, and a
slow machine needs some of them to begin."""

TOKEN_HELP = (
    "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token (or put it into "
    "~/.ray/auth_token; on the head, `ray get-auth-token` prints it)"
)


def address_of(given: str | None) -> str:
    """The dashboard's address from `--address` or RAY_ADDRESS, without a slash at its end.

    Raises:
        UserError: none is given, or it is the address of something else.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    if given is None and named.startswith(("http://", "https://")):
        given = named
    if given is None:
        also = f" (RAY_ADDRESS is {named}, which is no dashboard)" if named else ""
        raise UserError(
            f"--address is missing{also}: give the dashboard of the cluster, http://HOST:8265, or "
            "set RAY_ADDRESS to it"
        )
    try:
        parts = urlsplit(given)
        host, _ = parts.hostname, parts.port
    except ValueError:  # a port that is no number, an IPv6 address without its bracket
        parts, host = None, None
    if parts is None or parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"--address {given}: this command talks to the dashboard of a cluster: "
            f"http://{_likely(given)}. To run the driver here and the trials there, use `sweep run "
            "FILE --address ray://HOST:10001`"
        )
    return given.rstrip("/")


def _likely(address: str) -> str:
    """HOST:PORT of the dashboard that may have been meant."""
    scheme, _, rest = address.rpartition("://")
    match = re.match(r"(\[[^\]]*\]|[^:/\[]*)(?::(\d{1,5})(?![^/]))?", rest)
    host, port = match.groups() if match else ("", None)
    own = not scheme and port not in (None, "6379", "10001")  # only the scheme was forgotten
    return f"{'HOST' if host in ('', 'auto') else host}:{port if own else 8265}"


def probe(address: str, ray_version: str, seconds: float = PROBE_SECONDS) -> None:
    """Make sure that a dashboard of this version of Ray answers.

    Args:
        address: from `address_of`.
        ray_version: the version that is installed here.
        seconds: how long to wait in all.

    Raises:
        UserError: what answers instead, or that nothing does, and what to do.
    """
    headers = {"Authorization": f"Bearer {token}"} if (token := _token()) else {}
    request = urllib.request.Request(f"{address}/api/version", headers=headers)
    try:
        status, body = _get(request, seconds)
    except (http.client.HTTPException, ConnectionResetError) as error:
        raise UserError(_other_port(address)) from error
    except OSError as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, http.client.HTTPException | ConnectionResetError):
            raise UserError(_other_port(address)) from error
        if isinstance(reason, ssl.SSLError) and reason.reason in _NOT_TLS:
            raise UserError(
                f"{address} speaks http, not https: give {address.replace('https', 'http', 1)}"
            ) from error
        late = isinstance(reason, TimeoutError)
        why = f"no answer within {seconds:g} s" if late else _reason(reason)
        raise UserError(
            f"{address} cannot be reached: {why}. Is the cluster up, and can this machine reach "
            "its dashboard? If not: ssh -L 8265:127.0.0.1:8265 HEAD, and --address "
            "http://127.0.0.1:8265"
        ) from error
    if status in (401, 403):
        what = "does not accept the token of this machine" if token else "wants a token"
        raise UserError(f"{address} {what}: {TOKEN_HELP}")
    try:
        there = str(json.loads(body)["ray_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{address} is a web server, but not Ray's dashboard (it answers {status} to "
            "/api/version). The dashboard's port is 8265 unless `ray start --dashboard-port` says "
            "otherwise"
        ) from error
    if there != ray_version:
        raise UserError(
            f"{address} runs Ray {there}, this machine has Ray {ray_version}: install the same "
            f'version on one of them, for example here: pip install "ray[default]=={there}"'
        )


_NOT_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
"""What OpenSSL, by its version, says of an answer that is no TLS."""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the token would be sent along to wherever it leads."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _get(request: urllib.request.Request, seconds: float) -> tuple[int, bytes]:
    """Status and body; the limit holds for the whole exchange.

    In a thread that is left behind: looking up a name has no limit, and that of a socket begins
    anew with each packet.
    """
    answer: Future[tuple[int, bytes]] = Future()

    def exchange() -> None:
        try:
            answer.set_result(_exchange(request, seconds))
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=exchange, daemon=True).start()
    return answer.result(seconds)


def _exchange(request: urllib.request.Request, seconds: float) -> tuple[int, bytes]:
    try:
        with urllib.request.build_opener(_Stay).open(request, timeout=seconds) as response:
            return response.status, response.read(65536)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, b""


def _reason(error: object) -> str:
    if isinstance(error, socket.gaierror):
        return "there is no host of this name"
    return (getattr(error, "strerror", None) or str(error)).lower()


def _other_port(address: str) -> str:
    host, port = urlsplit(address).hostname, urlsplit(address).port
    known = {10001: "Ray's client port", 6379: "the port of Ray's control store"}
    what = known.get(
        port or 0, "probably Ray's client port (10001) or that of its control store (6379)"
    )
    return (
        f"{address} answers, but not as a dashboard: it is {what}. This command wants the "
        f"dashboard: http://{host}:8265"
    )


def _token() -> str | None:
    """The token that Ray would send, found as Ray finds it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path("~/.ray/auth_token").expanduser()
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except OSError:
        return None
