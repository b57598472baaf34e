"""Joining a Ray cluster, or starting one of our own; every refusal says what to do.

`addresses` has asked the address before Ray sees it, so what Ray still refuses is rare.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import addresses, node, signals
from orchestrator.errors import ClusterError, SpectralSweepsError, UserError

ALIVE_SECONDS = 10.0
"""For so long it is believed whether a node is alive."""

JOIN_ATTEMPTS = 3
"""How often a cluster is asked to take us in that has answered, and then broken off."""

ASK_SECONDS = 120.0
"""For the nodes to unpack the code and answer; a node that takes longer is reported as silent."""


@dataclass(frozen=True)
class NodeInfo:
    """A live node of the cluster."""

    node_id: str
    host: str
    ip: str
    resources: Mapping[str, float]


class Connection:
    """This process as a driver of a cluster, until `close`."""

    def __init__(self, address: str, folder: tempfile.TemporaryDirectory[str] | None) -> None:
        self.address = address
        self.embedded = folder is not None
        self._folder = folder
        self._alive: dict[str, tuple[float, bool]] = {}  # node -> when it was asked, and what of it

    def nodes(self) -> list[NodeInfo]:
        """The nodes that are alive now, the head among them."""
        return [
            NodeInfo(
                found["NodeID"],
                found["NodeManagerHostname"],
                found["NodeManagerAddress"],
                {
                    name: float(amount)
                    for name, amount in found["Resources"].items()
                    if not name.startswith("node:")
                },
            )
            for found in ray.nodes()
            if found["Alive"]
        ]

    def alive(self, node_id: str) -> bool:
        """Whether a node is still there; asked when a worker of it has died.

        Ray takes a while to declare a node dead, so its port is tried as well. Through Ray Client
        the nodes are out of reach from here, and only Ray's word counts.
        """
        asked, answer = self._alive.get(node_id, (-math.inf, False))
        if time.monotonic() - asked > ALIVE_SECONDS:  # with a node many workers die at once
            answer = self._is_alive(node_id)
            self._alive[node_id] = (time.monotonic(), answer)
        return answer

    def _is_alive(self, node_id: str) -> bool:
        for found in ray.nodes():
            if found["NodeID"] == node_id and found["Alive"]:
                place = (found["NodeManagerAddress"], found["NodeManagerPort"])
                return self.address.startswith("ray://") or _listens(*place)
        return False

    def head_listens(self) -> bool:
        """Whether the head's own port is open; through Ray Client, Ray itself finds that out."""
        host, _, port = self.address.rpartition(":")
        return self.embedded or self.address.startswith("ray://") or _listens(host, int(port))

    def ask(
        self, question: node.Question, *, variables: Mapping[str, str] | None = None
    ) -> list[dict[str, Any]]:
        """Have every live node describe itself; see `node.inspect`.

        Args:
            question: what is asked.
            variables: environment variables of the processes that answer.

        Returns:
            Its facts, with node_id and ip added, and sent and received: the driver's clock (seconds
            since 1970) before and after. A node that did not answer has the key "silent": why.
        """
        # Nothing is reserved, so that a full cluster answers too.
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
        if variables:
            options["runtime_env"] = {"env_vars": dict(variables)}
        task = ray.remote(**options)(node.inspect)
        sent = time.time()
        waiting = {}
        for found in self.nodes():
            here = NodeAffinitySchedulingStrategy(found.node_id, soft=False)
            waiting[task.options(scheduling_strategy=here).remote(question)] = found
        answers = []
        deadline = time.monotonic() + ASK_SECONDS
        while waiting:
            left = max(0.0, deadline - time.monotonic())
            done, _ = ray.wait(list(waiting), timeout=left)
            for reference in done or list(waiting):
                found = waiting.pop(reference)
                facts: dict[str, Any] = {"host": found.host}
                try:
                    facts |= ray.get(reference, timeout=0.1)
                except ray.exceptions.RayError as error:
                    facts["silent"] = (
                        last_line(error) if done else f"no answer within {ASK_SECONDS:.0f} s"
                    )
                facts |= {"node_id": found.node_id, "ip": found.ip}
                answers.append(facts | {"sent": sent, "received": time.time()})
        return sorted(answers, key=lambda facts: (facts["host"], facts["node_id"]))

    def close(self) -> None:
        """Leave the cluster; end it, if it is our own."""
        ray.shutdown()
        if self._folder is not None:
            self._folder.cleanup()

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def join(address: str, *, runtime_env: Mapping[str, Any] | None = None) -> Connection:
    """Become a driver of a running cluster.

    Args:
        address: see `addresses.FORMS`.
        runtime_env: of every worker of this driver, as Ray takes it.

    Raises:
        UserError: the address is none, does not answer, wants a token, is another of Ray's ports,
            or runs another version of Ray or Python; says what to do.
    """
    target = addresses.resolve(address)
    addresses.probe(address, target)
    for attempt in range(1, JOIN_ATTEMPTS + 1):
        try:
            with signals.kept():
                ray.init(
                    address=target,
                    runtime_env=dict(runtime_env) if runtime_env else None,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            break
        except (ray.exceptions.RayError, OSError, ValueError, RuntimeError, TypeError) as error:
            ray.shutdown()
            # For each client the head starts a process, and a busy one may not be quick enough.
            if attempt == JOIN_ATTEMPTS or not isinstance(error, ConnectionError):
                raise _refused(address, error) from error
    return Connection(target, None)


def start_embedded(cpus: int, gpus: float) -> Connection:
    """Start a cluster of our own on this machine; its processes work in an empty folder.

    Ray puts the driver's working directory first on the workers' import path, where a user's own
    tasks.py would shadow ours. Ray reads the directory while it connects and never again. The
    folder lives as long as Ray: MKL cannot load in a process whose directory is gone.

    Raises:
        ClusterError: Ray does not start.
    """
    folder = tempfile.TemporaryDirectory(prefix="sweep-")
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder.name)
    try:
        with ray_errors("start Ray"), signals.kept():
            ray.init(
                address="local",  # said in full: without it Ray would follow RAY_ADDRESS elsewhere
                num_cpus=cpus,
                num_gpus=math.ceil(gpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=100 * 1024**2,  # bytes; nothing large travels through it
            )
    except BaseException:
        folder.cleanup()
        raise
    finally:
        os.fchdir(before)
        os.close(before)
    return Connection("local", folder)


def _refused(address: str, error: BaseException) -> UserError:
    text = re.sub(r"\s+", " ", str(error)).strip()
    if "ersion mismatch" in text or ("version" in text.lower() and "Python" in text):
        return UserError(
            f"--address {address}: Ray or Python is of another version there than here: {text} "
            "Install the cluster's Ray version here (pip install 'ray[default]==...') under the "
            "same minor version of Python, or the other way round."
        )
    return UserError(
        f"--address {address}: cannot join: {text[:1000] or type(error).__name__}. "
        "`sweep doctor --address` looks for the cause."
    )


@contextlib.contextmanager
def ray_errors(doing: str) -> Iterator[None]:
    """Turn what Ray raises in mid-sweep into a message that says what to do.

    Raises:
        ClusterError: for every exception of Ray's.
    """
    try:
        yield
    except SpectralSweepsError:
        raise
    except Exception as error:
        if not _is_rays(error):
            raise
        text = first_line(error) if isinstance(error, ray.exceptions.ActorDiedError) else error
        raise ClusterError(
            f"cannot {doing}: {text}. Everything committed is kept; run the same command again, "
            "or add --in-process to do without Ray."
        ) from error


def _is_rays(error: Exception) -> bool:
    """Whether Ray, or what Ray Client is made of, raised it: it also raises bare Exceptions."""
    known = (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError)
    return (
        isinstance(error, known)
        or type(error) is Exception
        or type(error).__module__.startswith("grpc")
    )


def first_line(error: BaseException) -> str:
    """The first line of an exception's text that is not empty, or its type."""
    return next(iter(_lines(error)), type(error).__name__)


def last_line(error: BaseException) -> str:
    """The last line of an exception's text, where Ray puts the cause; or its type."""
    return next(reversed(_lines(error)), type(error).__name__)


def _lines(error: BaseException) -> Sequence[str]:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return [line.strip() for line in text.splitlines() if line.strip()]
