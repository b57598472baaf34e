"""A cluster made ready for one sweep: the code is there, the nodes agree, the storage is shared.

with site.enter(sweep, "ray://head:10001", tracked=True) as place: ...
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator import node, node_storage, preflight, shipping
from orchestrator.errors import Problem, SweepError
from orchestrator.mlflow_access import refuse_local_database
from orchestrator.nodes import Problems
from orchestrator.placement import Placement, place
from orchestrator.shipping import Shipment
from orchestrator.staging import CREDENTIALS
from orchestrator.sweep import Sweep, Trial

if TYPE_CHECKING:
    from orchestrator.connection import Connection


@dataclass(frozen=True)
class Site:
    """Where a sweep's trials run.

    Attributes:
        connection: to the cluster.
        placement: of the workers.
        task: the reference by which workers find the task; empty: the sweep's own.
        runtime_env: of the workers, beside their environment variables.
    """

    connection: Connection
    placement: Placement
    task: str = ""
    runtime_env: Mapping[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def enter(
    sweep: Sweep,
    address: str,
    *,
    limit: int,
    tracked: bool,
    launch: Sequence[Trial] | None = None,
    shipment: Shipment | None = None,
    message: Callable[[str], None] = lambda _: None,
) -> Iterator[Site]:
    """Join a cluster, send the code, and refuse what would go wrong there.

    Args:
        sweep: what is to be run.
        address: as `connection.join` takes it.
        limit: at most this many trials at once.
        tracked: whether the driver writes to MLflow.
        launch: the trials that will run there; None: all.
        shipment: this very process runs as a job of the cluster, with this code; None: send it.
        message: receives lines for the user.

    Raises:
        SweepError: all that is wrong with the nodes or the storage.
        UserError: the address does not work.
    """
    with contextlib.ExitStack() as stack:
        # Ray reads it when it is imported: by default it ends this process a minute after the head,
        # without a word; the pool notices earlier and leaves in order.
        os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", "600")
        from orchestrator import addresses
        from orchestrator.connection import join, ray_errors

        addresses.probe(address, addresses.resolve(address))  # before the code is packed
        environment: dict[str, Any] = {}
        if shipment is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sweep-"))
            shipment = shipping.ship(sweep, Path(folder) / "code")
            environment = {"working_dir": str(shipment.folder)}  # a job has it already
        connection = stack.enter_context(join(address, runtime_env=environment))
        with ray_errors("reach the cluster"):
            nodes = connection.nodes()
        problems: list[Problem | str] = []
        if tracked:
            try:
                refuse_local_database(sweep.source, sweep.tracking.uri, len(nodes))
            except SweepError as error:
                problems += error.problems
        answers = _ask(connection, sweep, shipment, launch, message)
        problems += _problems(answers, sweep, shipment)
        room = {each.node_id: each.resources.get("CPU", 0.0) for each in nodes}
        cpus = sweep.resources.cpus
        absent, notes = lacking(
            answers[:-1], sweep, lambda facts: room.get(facts["node_id"], 0.0) >= cpus, launch
        )
        problems += absent
        for line in notes:
            message(line)
        if problems:
            raise SweepError(f"{sweep.source} on the cluster at {address}", problems)
        answers = node.answering(answers)
        placement = place(
            sweep.resources,
            [each.resources for each in nodes],
            source=sweep.source,
            limit=limit,
            cluster=True,
        )
        if sweep.resources.gpus == "auto" and not placement.gpus:
            message(
                "no node has a GPU now, so trials run on CPUs; if GPU nodes are to come, say so "
                "with --set resources.gpus=1"
            )
        uninstalled = {name for facts in answers for name in node.missing(facts)}
        wanted = [(n, version) for n, version in shipment.requirements if n in uninstalled]
        install: dict[str, Any] = {"pip": shipping.installable(wanted)} if wanted else {}
        # A job's variables are inherited, and Ray writes them to its logs on every node.
        if hidden := _hidden():
            install["env_vars"] = hidden
        if wanted:
            message(f"the nodes install what they lack: {', '.join(install['pip'])}")
        yield Site(connection, placement, shipment.task, install)


def _ask(
    connection: Connection,
    sweep: Sweep,
    shipment: Shipment,
    launch: Sequence[Trial] | None,
    message: Callable[[str], None],
) -> Sequence[dict[str, Any]]:
    """What the nodes say of themselves, and this machine as the last of them."""
    from orchestrator.connection import ray_errors

    try:
        with node_storage.marked(sweep.root) as (marker, token):
            here = node.Question(shipment.requirements, str(sweep.root), marker, token)
            data = about_data(sweep, shipment.task, launch)
            question = dataclasses.replace(
                here, task=data.task, configurations=data.configurations, data=data.data
            )
            with ray_errors("ask the nodes"):
                answers = connection.ask(question, variables=_hidden())
            node_storage.confirm(sweep.root, answers)
            own = node.inspect(here)  # whether the data are on this machine too does not matter
    except OSError as error:
        problem = f"results cannot be written to {sweep.root}: {error.strerror or error}; choose "
        raise SweepError(sweep.source, [problem + "another storage folder"]) from error
    for facts in answers:
        if "silent" in facts:
            message(f"node {node.where(facts)} has not answered: {facts['silent']}")
    return [*answers, own]


def about_data(sweep: Sweep, task: str, launch: Sequence[Trial] | None = None) -> node.Question:
    """What a node is asked about a sweep's data; nothing if its task needs none.

    Args:
        sweep: a validated sweep.
        task: the reference by which a node finds the task.
        launch: ask for these trials only; None: for all.
    """
    trials = preflight.asking(sweep, launch)
    configurations = tuple(json.dumps(dict(trial.params)) for trial in trials)
    return node.Question(
        task=task if trials else "", configurations=configurations, data=sweep.data
    )


def lacking(
    nodes: Sequence[dict[str, Any]],
    sweep: Sweep,
    fits: Callable[[dict[str, Any]], bool],
    launch: Sequence[Trial] | None = None,
) -> tuple[list[Problem], list[str]]:
    """Data that no node has, and what is to be said of those that only some have.

    Args:
        nodes: facts of the nodes, from the question of `about_data`.
        sweep: that was asked about.
        fits: whether a trial may run on a node; the others are left out.
        launch: as `about_data` had it.
    """
    known = [facts for facts in node.answering(nodes) if facts["data"] is not None and fits(facts)]
    without: dict[str, list[dict[str, Any]]] = {}
    for facts in known:
        for text in facts["data"]:
            without.setdefault(text, []).append(facts)
    problems, notes = Problems(), []
    for text, there in without.items():
        if len(there) == len(known):
            trial = preflight.asking(sweep, launch)[there[0]["data"][text]]
            problems.add(preflight.place_of(sweep, trial), f"{node.places(there)}: {text}")
        else:
            where = node.places(there)
            notes.append(f"trials fail on {where}, where something is missing: {text}")
    return [*problems], notes


def _hidden() -> dict[str, str]:
    """Credentials of the tracker, emptied: only the driver needs them."""
    return {name: "" for name in CREDENTIALS if name in os.environ}


def _problems(answers: Sequence[dict[str, Any]], sweep: Sweep, shipment: Shipment) -> list[str]:
    """All that keeps the sweep from running on the nodes."""
    *nodes, here = answers
    found = node.answering(nodes)
    if not found:
        why = nodes[0]["silent"] if nodes else "it has none"
        return [f"no node of the cluster answers: {why}"]
    problems = node.differences(found, here) + node.storage_problems(found, sweep.root)
    lacking = sorted({n for facts in found for n in node.missing(facts)} & set(shipping.GIVEN))
    for name in lacking:
        where = node.places(facts for facts in found if name in node.missing(facts))
        version = dict(shipment.requirements)[name].partition("+")[0]  # whichever build fits
        problems.append(f"{name} is not installed on {where}: install {name}=={version} there")
    return problems
