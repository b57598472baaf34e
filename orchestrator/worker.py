"""A Ray worker: an actor that imports torch once and then runs one group after another.

A second thread of it answers the driver, so that a long training step does not silence it.
"""

from __future__ import annotations

import dataclasses
import gc
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import ray

from orchestrator import environment
from orchestrator.trial import Assignment, Context, GroupResult, Progress, run_group
from tasks import resolve

_Method = TypeVar("_Method", bound=Callable[..., Any])

_ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(32 * 1024**2),
    "MALLOC_TRIM_THRESHOLD_": str(1024**3),
}
"""Bytes: glibc then keeps the memory of a step for the next one, instead of returning it to the
kernel and faulting it in again (more than 1,000 page faults per step of the demo, measured)."""


def _control(method: _Method) -> _Method:
    """Answered by a thread of its own, beside the one that trains."""
    marked: _Method = ray.method(concurrency_group="control")(method)
    return marked


class Worker:
    """Lives in a process of its own; one per resource slot."""

    def __init__(self, context: Context, packages: Mapping[str, str]) -> None:
        environment.check_packages(packages)
        environment.check_device(context.device)
        environment.check_store(Path(context.root), context.epoch)
        resolve(context.task)  # a machine where the task cannot be found fails no trial
        self._context = context
        self._stop = threading.Event()
        # Progress that nobody fetches is dropped, oldest first: the store holds every row anyway.
        self._progress: deque[Progress] = deque(maxlen=10_000)

    @_control
    def ready(self) -> str:
        """Return the id of the node; answered when all imports are done."""
        return str(ray.get_runtime_context().get_node_id())

    def run(self, assignment: Assignment) -> GroupResult:
        """Train one group; see `run_group`."""
        result = run_group(
            assignment,
            self._context,
            progress=self._progress.append,
            stop=self._stop.is_set,
        )
        # The traceback travels as text in the row: the exception's class may not exist elsewhere.
        # It would also hold the frames of the attempt, and with them its tensors.
        result = dataclasses.replace(result, error=None)
        _free_gpu_memory()
        return result

    @_control
    def poll(self) -> list[Progress]:
        """What was measured since the last call."""
        fetched = []
        while self._progress:
            fetched.append(self._progress.popleft())
        return fetched

    @_control
    def stop(self) -> None:
        """Checkpoint and end the running group before its next step, and those queued behind it."""
        self._stop.set()


def worker_environment(cpus: int) -> dict[str, str]:
    """Environment variables of a worker: one thread per CPU of the trial, reproducible MKL."""
    threads = {name: str(cpus) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return {**threads, **environment.DETERMINISM, **_ALLOCATOR}


def _free_gpu_memory() -> None:
    """What the next group, or another process on a shared GPU, may need."""
    import torch

    if torch.cuda.is_available():
        gc.collect()  # a model's reference cycles keep its tensors alive
        torch.cuda.empty_cache()
