"""Ray's workers: a pool of long-lived ones, one per resource slot, that grows and shrinks.

The driver polls each worker for progress, which is also its heartbeat: one that is silent for too
long is given up, by the driver's own clock. A dead worker is replaced, a few more are asked for
than have a place, and idle ones are released, so that the cluster grows and shrinks with the work.
Ray retries nothing: only the driver decides what is run again, because only it commits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.exceptions

from orchestrator import environment
from orchestrator.connection import Connection, first_line, ray_errors
from orchestrator.errors import ClusterError, SpectralSweepsError
from orchestrator.execution import Ended, Event, Lost, Started
from orchestrator.placement import Placement
from orchestrator.trial import Assignment, Context, GroupResult
from orchestrator.worker import Worker, worker_environment

READY_SECONDS = 300.0
"""If no worker at all has started on this machine by then, none will."""

COMPLAIN_SECONDS = 600.0
"""How often a driver says that it is waiting for a place on a cluster."""

HEARTBEAT_SECONDS = 2.0
"""How often an idle worker, or one of many, is polled."""
POLL_SECONDS = 0.5
"""How often a busy one of few is polled: its progress is being watched."""
MANY = 32
"""Workers; above it they are polled at the heartbeat, so that polls do not fill the driver."""

SILENT_SECONDS = 60.0
"""A worker that has not answered for so long is given up. Generous, because its trial is lost
work and a false alarm is safe: what a worker thought dead still writes is never committed."""

PENDING = 2
"""Workers asked for beyond those that have a place, so that an autoscaler sees the demand; one more
for every eight of a large pool."""

IDLE_SECONDS = 10.0
"""A worker for which there is nothing to do is released after this, so that its node can go."""

STILLBORN = 6
"""Workers that may die in turn before any was ever ready. Later ones are replaced ever more slowly:
one broken node is not the end of the others."""

HEAD_SECONDS = 45.0
"""A head that has been out of reach for so long is given up. After 60 s Ray ends its nodes, and
this process with them; a head that can come back (GCS fault tolerance) usually has by then."""

_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,  # Ray's memory monitor ended it
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,  # the answer was still on a node that has died
    ray.exceptions.RuntimeEnvSetupError,  # the node cannot install what is missing
)


@dataclasses.dataclass(eq=False)
class _Slot:
    """One worker as the driver sees it."""

    actor: Any
    ready: Any  # reference to ready(), None once it has answered
    node_id: str = ""
    queue: deque[tuple[Assignment, Any]] = dataclasses.field(default_factory=deque)
    announced: Any = None  # the run reference whose start was passed on
    polling: Any = None  # reference to an unanswered poll()
    polled: float = 0.0  # when it was asked
    heard: float = 0.0  # when it last answered anything
    busy: float = 0.0  # when it last had something to do


class RayPool:
    """Workers on a cluster that this process has joined or started.

    Args:
        connection: to the cluster; closed with the pool.
        context: what every worker is told once.
        placement: what one worker is given, and how many there may be.
        runtime_env: of the workers, beside the environment variables; as Ray takes it.
        message: receives a line for the user.
    """

    def __init__(
        self,
        connection: Connection,
        context: Context,
        placement: Placement,
        *,
        runtime_env: Mapping[str, Any] | None = None,
        message: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._connection = connection
        self._placement = placement
        self._message = message
        self._packages = environment.package_digests()
        self._stopping = False
        self._seconds: deque[float] = deque(maxlen=20)  # of the newest attempts
        self._began: dict[tuple[str, ...], float] = {}
        self._waiting_since = time.monotonic()  # since no worker has had a place
        self._complain_at = self._waiting_since + READY_SECONDS / 10
        self._born = False  # a worker has been ready
        self._stillborn = 0  # workers that died while they started, since one was ready
        self._not_before = 0.0  # when the next worker may be started
        self._stops_sent = False
        self._listened = time.monotonic()
        self._head_seen = self._head_asked = time.monotonic()
        own, variables = dict(runtime_env or {}), worker_environment(placement.cpus)
        options = {
            "num_cpus": placement.cpus,
            "num_gpus": placement.gpus,
            "resources": dict(placement.custom) or None,
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {"control": 1},
            "runtime_env": {**own, "env_vars": {**own.get("env_vars", {}), **variables}},
        }
        # Built per pool: Ray fixes a GPU actor's options when the class is wrapped.
        self._actor_class = ray.remote(**options)(Worker)
        self._slots: list[_Slot] = []
        with ray_errors("start workers"):
            self._shared = ray.put(context)  # once, not with every worker
            for _ in range(placement.workers):
                self._start_worker()

    def _start_worker(self) -> None:
        actor = self._actor_class.remote(self._shared, self._packages)
        self._slots.append(_Slot(actor, ready=actor.ready.remote()))

    def room(self) -> int:
        """Free places; short trials are queued ahead so that no worker waits for the driver."""
        if self._stopping:
            return 0
        typical = statistics.median(self._seconds) if self._seconds else math.inf
        depth = 1 if typical > 1.0 else min(8, 1 + math.ceil(0.1 / max(typical, 1e-3)))
        return sum(max(0, depth - len(slot.queue)) for slot in self._ready_slots())

    def _ready_slots(self) -> Iterator[_Slot]:
        # A worker that has no place yet gets nothing: its trial would wait while others are idle.
        return (slot for slot in self._slots if slot.ready is None)

    def submit(self, assignment: Assignment) -> None:
        """Queue it at the worker with the least to do."""
        slot = min(self._ready_slots(), key=lambda slot: len(slot.queue))
        with ray_errors("reach the Ray workers"):
            slot.queue.append((assignment, slot.actor.run.remote(assignment)))

    def poll(
        self, handle: Callable[[Event], None], timeout: float, *, waiting: bool = False
    ) -> None:
        """See `Executor.poll`."""
        with ray_errors("reach the Ray workers"):
            if self._stopping and not self._stops_sent:
                self._stops_sent = True
                for slot in self._ready_slots():
                    slot.actor.stop.remote()
            for slot in self._slots:
                self._announce(slot, handle)
            self._resize(waiting)
            self._send_polls()
            for slot, reference in self._answered(timeout):
                if slot in self._slots:  # else it was given up a moment ago
                    self._receive(slot, reference, handle)
            self._give_up_silent(handle)
            self._look_for_the_head()

    def _answered(self, timeout: float) -> list[tuple[_Slot, Any]]:
        """What has answered by now, after waiting for the first answer."""
        waiting = {}
        for slot in self._slots:
            head = slot.queue[0][1] if slot.queue else None  # a worker works in this order
            for reference in (head, slot.ready, slot.polling):
                if reference is not None:
                    waiting[reference] = slot
        if not waiting:
            time.sleep(timeout)  # the next worker is started later, see `_count_stillborn`
            return []
        ray.wait(list(waiting), num_returns=1, timeout=timeout)
        found = []
        for reference in _done(list(waiting)):
            slot = waiting[reference]
            found.append((slot, reference))
            if slot.queue and slot.queue[0][1] == reference:
                found += [(slot, each) for each in _done([r for _, r in slot.queue][1:])]
        return found

    def _receive(self, slot: _Slot, reference: Any, handle: Callable[[Event], None]) -> None:
        now = time.monotonic()
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            cause = _cause(error)
            if type(cause) is not ClusterError or not slot.queue:
                raise cause from error
            self._bury(slot, str(cause), handle, sick=True)  # the machine's fault, not the trial's
            return
        except _DEATHS as error:
            self._bury(slot, first_line(error), handle, error)
            return
        slot.heard = now
        # Compared with ==, because Ray Client answers with references of its own.
        if reference == slot.ready:
            slot.ready, slot.node_id, slot.busy = None, answer, now
            self._born, self._stillborn = True, 0
        elif reference == slot.polling:
            slot.polling = None
            for progress in answer:
                handle(progress)
        else:
            index = next(i for i, (_, run) in enumerate(slot.queue) if run == reference)
            assignment, _ = slot.queue[index]
            del slot.queue[index]
            slot.busy = now
            self._seconds.append(now - self._began.pop(assignment.trial_ids, now))
            handle(Ended(assignment, answer))
            self._announce(slot, handle)

    def _announce(self, slot: _Slot, handle: Callable[[Event], None]) -> None:
        if slot.queue and slot.announced is not slot.queue[0][1]:
            assignment, slot.announced = slot.queue[0]
            self._began[assignment.trial_ids] = time.monotonic()
            handle(Started(assignment))

    def _bury(
        self,
        slot: _Slot,
        reason: str,
        handle: Callable[[Event], None],
        error: BaseException | None = None,
        *,
        sick: bool = False,
    ) -> None:
        """A worker is dead or given up: its trials go elsewhere, and `_resize` replaces it."""
        self._discard(slot)  # it may only have been out of reach
        if slot.ready is not None or sick:
            self._count_stillborn(reason, error)
        if not slot.queue:
            return
        (assignment, _), *queued = slot.queue
        self._began.pop(assignment.trial_ids, None)
        if self._stopping:
            for ended in (assignment, *(orphan for orphan, _ in queued)):
                handle(Ended(ended, GroupResult(())))
            return
        node = sick or not self._connection.alive(slot.node_id)
        handle(Lost(assignment, reason, node=node))
        # Only the first in the queue had begun; the others have lost nothing.
        for orphan, _ in queued:
            handle(Lost(orphan, reason, begun=False))

    def _count_stillborn(self, reason: str, error: BaseException | None) -> None:
        """A worker of no use: at the start that is fatal, later its replacement has time.

        Raises:
            ClusterError: none has ever been ready.
        """
        why = unborn(error) or reason
        if not self._born and (unborn(error) or self._stillborn + 1 >= STILLBORN):
            raise ClusterError(f"a worker cannot start: {why}") from error
        self._stillborn += 1
        pause = min(300.0, 2.0**self._stillborn)
        self._not_before = time.monotonic() + pause
        self._message(f"a worker is of no use, the next one starts in {pause:.0f} s: {why}")

    def _discard(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        with contextlib.suppress(Exception):
            ray.kill(slot.actor, no_restart=True)

    def _send_polls(self) -> None:
        now = time.monotonic()
        few = len(self._slots) <= MANY
        for slot in self._ready_slots():
            every = POLL_SECONDS if slot.queue and few else HEARTBEAT_SECONDS
            if slot.polling is None and now - slot.polled >= every:
                slot.polling, slot.polled = slot.actor.poll.remote(), now

    def _give_up_silent(self, handle: Callable[[Event], None]) -> None:
        now = time.monotonic()
        if now - self._listened > SILENT_SECONDS / 6:  # it was us who were busy elsewhere
            for slot in self._slots:
                slot.polled = max(slot.polled, now)
        self._listened = now
        for slot in list(self._ready_slots()):
            if slot.polling is not None and now - max(slot.heard, slot.polled) > SILENT_SECONDS:
                why = f"its worker has not answered for {SILENT_SECONDS:.0f} s"
                self._bury(slot, why, handle)

    def _look_for_the_head(self) -> None:
        """Notice that the head is gone before Ray does, which then ends this whole process.

        Raises:
            ClusterError: it is gone.
        """
        now = time.monotonic()
        if now - self._head_asked < HEAD_SECONDS / 10:
            return
        self._head_asked = now
        if self._connection.head_listens():
            self._head_seen = now
        elif now - self._head_seen > HEAD_SECONDS:
            self._slots.clear()  # to end them one by one would take minutes without a head
            raise ClusterError(
                "the head of the cluster does not answer any more. Everything committed is kept; "
                "start the cluster, then run the same command again."
            )

    def _resize(self, waiting: bool) -> None:
        """Release idle workers; while trials wait, ask for more workers than have a place."""
        now = time.monotonic()
        starting = [slot for slot in self._slots if slot.ready is not None]
        idle = []
        for slot in self._ready_slots():
            if slot.queue:
                slot.busy = now
            else:
                idle.append(slot)
        if self._stopping or not (waiting or self._connection.embedded):
            for slot in starting:
                self._discard(slot)
        for slot in idle:
            if now - slot.busy > IDLE_SECONDS:
                self._discard(slot)
        if self._stopping or idle or not waiting:
            return
        if now >= self._not_before:
            some = self._placement.workers
            if not self._connection.embedded:
                some = max(PENDING, (len(self._slots) - len(starting)) // 8)
            room = self._placement.most - len(self._slots)
            for _ in range(min(room, some - len(starting))):
                self._start_worker()
        if all(slot.ready is not None for slot in self._slots):
            self._complain_if_stuck(now)
        else:
            self._waiting_since = now
            self._complain_at = now + READY_SECONDS / 10

    def _complain_if_stuck(self, now: float) -> None:
        """No worker has a place: on this machine that is a fault, on a cluster it may come."""
        asked = self._placement.describe()
        if self._connection.embedded and now - self._waiting_since > READY_SECONDS:
            raise ClusterError(
                f"no worker has started within {READY_SECONDS:.0f} s. A trial asks for {asked}. "
                "Everything committed is kept; look at Ray's logs, or add --in-process."
            )
        if now > self._complain_at:
            self._complain_at = now + COMPLAIN_SECONDS
            self._message(
                f"waiting for a place on the cluster, or for a worker to start there: a trial "
                f"asks for {asked} (see `ray status`; Ctrl-C stops waiting)"
            )

    def stop(self) -> None:
        """Ask every worker to checkpoint and end its group; sent with the next poll.

        It is called by a signal handler, in the middle of anything, and so asks nothing of Ray.
        """
        self._stopping = True

    def shutdown(self) -> None:
        """End the workers, and the cluster too if it is our own."""
        if not self._connection.embedded:
            for slot in list(self._slots):
                self._discard(slot)
        self._connection.close()


def _cause(error: ray.exceptions.RayTaskError) -> BaseException:
    """Our own exception that a worker raised, or the whole report if it was not ours."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SpectralSweepsError) else ClusterError(str(error))


def unborn(error: BaseException | None) -> str:
    """Why a worker's constructor raised, as it stands last in Ray's report; empty if it did not."""
    if not getattr(error, "actor_init_failed", False):
        return ""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    report = next((i for i, line in enumerate(lines) if "ClusterError:" in line), len(lines) - 1)
    return "\n".join(lines[report:])


def _done(references: list[Any]) -> list[Any]:
    """Those that have answered, in the same order."""
    if not references:
        return []
    done: list[Any] = ray.wait(references, num_returns=len(references), timeout=0)[0]
    return done
