"""Addresses of Ray clusters: which forms there are, and what answers at one.

Ray itself answers a wrong port, a missing token and a dead host alike, after 20 to 80 seconds. So
the address is asked first, with a call that each of Ray's ports answers in its own way.
"""

from __future__ import annotations

import logging
import os
import re

import ray.exceptions

from orchestrator.errors import UserError

PROBE_SECONDS = 6.0
"""A port that has not answered by then will not; two are asked at most."""

FORMS = (
    "auto (on a machine of the cluster), ray://HOST:10001 (from elsewhere), or HOST:6379 (on a "
    "machine of the cluster)"
)
_GCS = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_CLIENT = "/ray.rpc.RayletDriver/ClusterInfo"


def resolve(address: str) -> str:
    """What `ray.init` takes: auto looked up, a missing port filled in.

    Raises:
        UserError: no such form, or `auto` where no Ray runs.
    """
    if address == "auto":
        found = _here()
        if not found:
            raise UserError(
                "--address auto: no Ray runs on this machine. Start one (ray start --head), or "
                "join one from here with --address ray://HOST:10001."
            )
        return found
    if re.match(r"https?://", address):
        raise UserError(
            f"--address {address}: this is a dashboard, through which a sweep is sent as a job: "
            f"sweep submit FILE --address {address}. To run the driver here, join the cluster "
            f"with {FORMS}."
        )
    match = re.fullmatch(r"(ray://)?([^:/]+|\[[0-9a-fA-F:]+\])(?::(\d{1,5}))?/?", address)
    if match is None or not (match[1] or match[3]):
        raise UserError(f"--address {address}: expected {FORMS}.")
    return f"{match[1] or ''}{match[2]}:{match[3] or 10001}"


def _here() -> str | None:
    """The address of the cluster that this machine belongs to."""
    from ray._private.services import canonicalize_bootstrap_address

    # `sweep submit` takes a dashboard from it, which is no address to join.
    named = os.environ.get("RAY_ADDRESS", "")
    if named.startswith("http"):
        del os.environ["RAY_ADDRESS"]
    try:
        return canonicalize_bootstrap_address("auto")  # type: ignore[no-any-return]
    except (ConnectionError, ValueError):
        return None
    finally:
        if named:
            os.environ["RAY_ADDRESS"] = named


def probe(address: str, target: str) -> None:
    """Ask the port what it is, and whether it lets us in.

    Raises:
        UserError: it does not answer, is another of Ray's ports, or wants a token.
    """
    client = target.startswith("ray://")
    place = target.removeprefix("ray://")
    wanted, other = (_CLIENT, _GCS) if client else (_GCS, _CLIENT)
    status, details = _call(place, wanted)
    if status == "UNAUTHENTICATED" and "RAY_AUTH_MODE" not in os.environ:
        # Ray uses a token that lies ready only for `auto`; this cluster has asked for one.
        from ray._private.authentication import authentication_token_setup as token

        token.logger.setLevel(logging.ERROR)  # it would advise to switch the token off
        if token.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
            status, details = _call(place, wanted)
    host = place.rpartition(":")[0]
    if status in ("OK", "NOT_FOUND", "INTERNAL", "UNKNOWN"):
        return
    if status in ("UNAUTHENTICATED", "NO_TOKEN"):
        raise UserError(
            f"--address {address}: the cluster wants a token, and "
            f"{'there is none here' if status == 'NO_TOKEN' else 'ours is missing or wrong'}. Ask "
            "its owner for it (on the head: ray get-auth-token), then set RAY_AUTH_MODE=token "
            "and either RAY_AUTH_TOKEN=... or write it to ~/.ray/auth_token."
        )
    if status == "UNIMPLEMENTED":
        what, right = (
            ("the cluster's own port (GCS)", f"ray://{host}:10001")
            if client
            else ("Ray's client port", f"ray://{place}")
        )
        if _call(place, other)[0] != "UNIMPLEMENTED":
            raise UserError(f"--address {address}: this is {what}; use --address {right}.")
        raise UserError(f"--address {address}: something answers there, but it is not Ray.")
    if "http1" in details:
        raise UserError(
            f"--address {address}: a web server answers there. If it is Ray's dashboard, send the "
            f"sweep as a job: sweep submit FILE --address http://{place}; to run the driver here, "
            f"use Ray's client port: --address ray://{host}:10001."
        )
    usual = (
        "Ray's client port is 10001 unless it was started with another --ray-client-server-port."
        if client
        else "The cluster's own port is 6379 unless it was started with another --port."
    )
    raise UserError(
        f"--address {address}: no answer: {_why(details, status)}. Is the head running (ray "
        f"status, on the head), and is this port open from here? {usual}"
    )


def _call(place: str, method: str) -> tuple[str, str]:
    """(gRPC status, details) of a call without content; NO_TOKEN if Ray wants one and has none."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel

    try:
        channel = init_grpc_channel(place)
        try:
            channel.unary_unary(method)(b"", timeout=PROBE_SECONDS)
        finally:
            channel.close()
    except grpc.RpcError as error:
        return str(error.code().name), str(error.details() or "")
    except ray.exceptions.AuthenticationError as error:
        return "NO_TOKEN", str(error)
    return "OK", ""


def _why(details: str, status: str) -> str:
    known = {
        "Connection refused": "connection refused",
        "Domain name not found": "the host is not known",
        "No route to host": "no route to the host",
        "imeout": f"nothing within {PROBE_SECONDS:.0f} s",
    }
    for text, meaning in known.items():
        if text in details:
            return meaning
    if status == "DEADLINE_EXCEEDED":
        return f"nothing within {PROBE_SECONDS:.0f} s"
    return details.strip().partition("\n")[0] or status
