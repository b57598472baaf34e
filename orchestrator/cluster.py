"""Ray: a pool of long-lived workers, and the only module that imports ray.

A worker is an actor that imports torch once and then runs one group after another. A second thread
of it answers the driver's polls with progress, so that a long training step does not silence it.
Ray retries nothing: only the driver decides what is run again, because only it commits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import re
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.exceptions

from orchestrator import environment
from orchestrator.errors import ClusterError, SpectralSweepsError
from orchestrator.execution import Ended, Event, Lost, Started
from orchestrator.trial import Assignment, Context, GroupResult, Progress, run_group

READY_SECONDS = 300.0
"""A worker that has not imported everything by then will not."""

_DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,  # Ray's memory monitor ended it
    ray.exceptions.WorkerCrashedError,
)

POLL_SECONDS = 0.5
"""How often a busy worker is asked for progress."""


_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(1024**3),
}
"""Bytes: glibc then keeps the memory of a step for the next one, instead of returning it to the
kernel and faulting it in again (more than 1,000 page faults per step of the demo, measured)."""


class _Worker:
    """Lives in a process of its own; one per resource slot."""

    def __init__(self, context: Context, packages: Mapping[str, str]) -> None:
        environment.check_packages(packages)
        self._context = context
        self._stop = threading.Event()
        # Progress that nobody fetches is dropped, oldest first: the store holds every row anyway.
        self._progress: deque[Progress] = deque(maxlen=10_000)

    def ready(self) -> int:
        """Return the process id; answered when all imports are done."""
        return os.getpid()

    def run(self, assignment: Assignment) -> GroupResult:
        """Train one group; see `run_group`."""
        result = run_group(
            assignment,
            self._context,
            progress=self._progress.append,
            stop=self._stop.is_set,
        )
        _free_gpu_memory()
        # The traceback travels as text in the row: the exception's class may not exist elsewhere.
        return dataclasses.replace(result, error=None)

    def poll(self) -> list[Progress]:
        """What was measured since the last call."""
        fetched = []
        while self._progress:
            fetched.append(self._progress.popleft())
        return fetched

    def stop(self) -> None:
        """Checkpoint and end the running group before its next step, and those queued behind it."""
        self._stop.set()


@dataclasses.dataclass
class _Slot:
    """One worker as the driver sees it."""

    actor: Any
    queue: deque[tuple[Assignment, Any]] = dataclasses.field(default_factory=deque)
    since: float = dataclasses.field(default_factory=time.monotonic)
    ready: Any = None  # reference to ready(), None once it has answered
    polling: Any = None  # reference to an unanswered poll()
    announced: Any = None  # the run reference whose start was passed on


class RayPool:
    """Workers on a Ray that this process starts and ends (embedded) or joins.

    Args:
        context: what every worker is told once.
        cpus: CPUs per trial.
        gpus: GPUs per trial; fractions share one.
        workers: how many trials may run at once at most.

    Raises:
        ClusterError: Ray does not start or has no room for a single worker.
    """

    def __init__(self, context: Context, *, cpus: int, gpus: float, workers: int) -> None:
        self._context = context
        self._stopping = False
        self._seconds: deque[float] = deque(maxlen=20)  # of the newest attempts
        self._began: dict[tuple[str, ...], float] = {}
        self._polled = 0.0
        self._options = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "concurrency_groups": {"control": 1},
            "runtime_env": {"env_vars": worker_environment(cpus)},
        }
        self._packages = environment.package_origins()
        with _ray_errors("start Ray"):
            # Lives as long as Ray: MKL cannot load in a process whose directory is gone.
            self._folder = tempfile.TemporaryDirectory(prefix="sweep-")
            _start_embedded(cpus * workers, gpus * workers, self._folder.name)
            self._slots = [self._start_worker() for _ in range(workers)]

    def _start_worker(self) -> _Slot:
        # Built per pool: Ray fixes a GPU actor's options when the class is wrapped.
        actor_class = ray.remote(**self._options)(_Worker)
        actor = actor_class.remote(self._context, self._packages)
        return _Slot(actor, ready=self._control(actor, "ready"))

    @staticmethod
    def _control(actor: Any, method: str) -> Any:
        return getattr(actor, method).options(concurrency_group="control").remote()

    def room(self) -> int:
        """Free places; short trials are queued ahead so that no worker waits for the driver."""
        if self._stopping:
            return 0
        typical = statistics.median(self._seconds) if self._seconds else math.inf
        depth = 1 if typical > 1.0 else min(8, 1 + math.ceil(0.1 / max(typical, 1e-3)))
        return sum(max(0, depth - len(slot.queue)) for slot in self._slots)

    def submit(self, assignment: Assignment) -> None:
        """Queue it at the worker with the least to do."""
        slot = min(self._slots, key=lambda slot: len(slot.queue))
        slot.queue.append((assignment, slot.actor.run.remote(assignment)))

    def poll(self, handle: Callable[[Event], None], timeout: float) -> None:
        """See `Executor.poll`."""
        with _ray_errors("reach the Ray workers"):
            self._announce(handle)
            heads = [slot.queue[0][1] for slot in self._slots if slot.queue]
            if heads:
                ray.wait(heads, num_returns=1, timeout=timeout)
            for index, slot in enumerate(self._slots):
                self._collect(index, slot, handle)
            self._fetch_progress(handle)

    def _announce(self, handle: Callable[[Event], None]) -> None:
        for slot in self._slots:
            if slot.ready is not None:
                done, _ = ray.wait([slot.ready], timeout=0)
                if not done:
                    if time.monotonic() - slot.since > READY_SECONDS:
                        raise ClusterError(
                            f"a worker has not started within {READY_SECONDS:.0f} s. Everything "
                            "committed is kept; look at Ray's logs, or add --in-process."
                        )
                    continue
                try:
                    ray.get(slot.ready)
                except _DEATHS as error:
                    _refuse_if_unborn(error)  # else `_collect` finds what it was running
                slot.ready = None
            if slot.queue and slot.announced is not slot.queue[0][1]:
                assignment, slot.announced = slot.queue[0]
                self._began[assignment.trial_ids] = time.monotonic()
                handle(Started(assignment))

    def _collect(self, index: int, slot: _Slot, handle: Callable[[Event], None]) -> None:
        while slot.queue:
            assignment, reference = slot.queue[0]
            done, _ = ray.wait([reference], timeout=0)
            if not done:
                return
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
            except _DEATHS as error:
                _refuse_if_unborn(error)
                # Only the first in the queue had begun; the others are simply queued elsewhere.
                orphans = [orphan for orphan, _ in list(slot.queue)[1:]]
                ray.kill(slot.actor, no_restart=True)  # it may only have been out of reach
                self._began.pop(assignment.trial_ids, None)
                if self._stopping:
                    slot.queue.clear()
                    for ended in (assignment, *orphans):
                        handle(Ended(ended, GroupResult(())))
                    return
                self._slots[index] = self._start_worker()
                handle(Lost(assignment, _reason(error)))
                for orphan in orphans:
                    self.submit(orphan)
                return
            slot.queue.popleft()
            now = time.monotonic()
            self._seconds.append(now - self._began.pop(assignment.trial_ids, now))
            handle(Ended(assignment, result))
            self._announce(handle)

    def _fetch_progress(self, handle: Callable[[Event], None]) -> None:
        for slot in self._slots:
            if slot.polling is not None:
                done, _ = ray.wait([slot.polling], timeout=0)
                if done:
                    reference, slot.polling = slot.polling, None
                    # A worker that died is noticed, and replaced, by `_collect`.
                    with contextlib.suppress(*_DEATHS):
                        for progress in ray.get(reference):
                            handle(progress)
        now = time.monotonic()
        if now - self._polled >= POLL_SECONDS:
            self._polled = now
            for slot in self._slots:
                if slot.polling is None and slot.queue and slot.ready is None:
                    slot.polling = self._control(slot.actor, "poll")

    def stop(self) -> None:
        """Ask every worker to checkpoint and end its group."""
        self._stopping = True
        for slot in self._slots:
            self._control(slot.actor, "stop")

    def shutdown(self) -> None:
        """End the workers, and Ray with them."""
        ray.shutdown()
        self._folder.cleanup()


def worker_environment(cpus: int) -> dict[str, str]:
    """Environment variables of a worker: one thread per CPU of the trial, reproducible MKL."""
    threads = {name: str(cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**threads, **environment.DETERMINISM, **_ALLOCATOR}


def _start_embedded(cpus: int, gpus: float, folder: str) -> None:
    """Start a head of our own; its processes work in `folder`, an empty one.

    Ray puts the driver's working directory first on the workers' import path, where a user's own
    tasks.py would shadow ours. Ray reads the directory while it connects and never again.
    """
    before = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        ray.init(
            address="local",  # said in full: without it Ray would follow RAY_ADDRESS elsewhere
            num_cpus=cpus,
            num_gpus=math.ceil(gpus),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 1024**2,  # bytes; nothing large travels through it
        )
    finally:
        os.fchdir(before)
        os.close(before)


@contextlib.contextmanager
def _ray_errors(doing: str) -> Iterator[None]:
    try:
        yield
    except ray.exceptions.ActorDiedError as error:
        raise ClusterError(f"cannot {doing}: {_reason(error)}") from error
    except (ray.exceptions.RayError, ConnectionError, ValueError, RuntimeError) as error:
        if isinstance(error, SpectralSweepsError):
            raise
        raise ClusterError(
            f"cannot {doing}: {error}. Everything committed is kept; run the same command again, "
            "or add --in-process to do without Ray."
        ) from error


def _cause(error: ray.exceptions.RayTaskError) -> BaseException:
    """Our own exception that a worker raised, or the whole report if it was not ours."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, SpectralSweepsError) else ClusterError(str(error))


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _refuse_if_unborn(error: BaseException) -> None:
    """A worker whose constructor raised has run nothing: no trial is to blame for its death.

    Raises:
        ClusterError: with the exception itself, which stands last in Ray's report of it.
    """
    if not getattr(error, "actor_init_failed", False):
        return
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    report = next((i for i, line in enumerate(lines) if "ClusterError:" in line), len(lines) - 1)
    raise ClusterError("a worker cannot start: " + "\n".join(lines[report:])) from error


def _free_gpu_memory() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
