"""Snapshots that are finished beside training, in order, by one thread.

On an accelerator the training thread only puts copies of the weights and their Gram matrices on its
stream (`begin_snapshot`); eigenvalue problems, which make the host wait, run here, on a stream of
their own. The queue is bounded: when it is full, `submit` waits, and says how long. No snapshot is
ever dropped or thinned out.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from spectral.request import Request
from spectral.snapshot import BegunSnapshot, Snapshot, begin_snapshot
from spectral.state import SnapshotState

# Begun snapshots that may wait. Each holds a copy of the weights that it measures.
DEPTH = 2


class Finished(NamedTuple):
    """One snapshot of a group: `snapshots` has an entry per trial."""

    step: int
    snapshots: list[Snapshot]


class _Job(NamedTuple):
    step: int
    begun: BegunSnapshot
    event: torch.cuda.Event | None  # when the copies and Gram matrices are there


class Pipeline:
    """A bounded queue of begun snapshots and the thread that finishes them.

    Use as a context manager: leaving it finishes what is queued, and raises what went wrong with
    it; if an exception is on its way it ends the thread without waiting for the queue.

    Args:
        state: what the last finished snapshot returned; None before step 0.
        depth: how many begun snapshots may wait before `submit` does.
    """

    def __init__(self, state: SnapshotState | None = None, *, depth: int = DEPTH) -> None:
        self.waited_seconds = 0.0
        self._state = state
        self._jobs: queue.Queue[_Job | None] = queue.Queue(depth)
        self._done: queue.SimpleQueue[Finished] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._told = False  # whether somebody has been given the error
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._error = self._error or RuntimeError("the pipeline was abandoned")
        self._jobs.put(None)
        self._thread.join()
        if kind is None and not self._told:
            self._check()

    def submit(self, request: Request, parameters: dict[str, torch.Tensor], step: int) -> None:
        """Begin a snapshot of the weights as they are on the current stream, and queue it.

        Waits while the queue is full; `waited_seconds` adds up how long.

        Raises:
            ValueError: the request makes no sense, see `Request.check`.
            Exception: whatever finishing an earlier snapshot raised.
        """
        self._check()
        begun = begin_snapshot(request, parameters, copy=True)
        event = None
        if any(value.device.type == "cuda" for value in begun.weights.values()):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        began = time.perf_counter()
        self._jobs.put(_Job(step, begun, event))
        self.waited_seconds += time.perf_counter() - began
        self._check()

    def results(self, *, wait: bool = False) -> Iterator[Finished]:
        """Finished snapshots that were not taken yet, in the order of their submission.

        Args:
            wait: whether to wait until everything submitted is finished.

        Raises:
            Exception: whatever finishing a snapshot raised.
        """
        if wait:
            self._jobs.join()
        self._check()
        while not self._done.empty():
            yield self._done.get()

    @property
    def state(self) -> SnapshotState | None:
        """What the next snapshot compares with; waits until everything submitted is finished."""
        self._jobs.join()
        self._check()
        return self._state

    def _check(self) -> None:
        if self._error is not None:
            self._told = True
            raise self._error

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread begins with as many as there are cores
        stream: torch.cuda.Stream | None = None
        while (job := self._jobs.get()) is not None:
            try:
                if self._error is None:
                    if job.event is not None:
                        stream = stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
                    self._finish(job, stream)
            except BaseException as error:  # whatever it is, the training thread must hear of it
                self._error = error
            finally:
                self._jobs.task_done()

    def _finish(self, job: _Job, stream: torch.cuda.Stream | None) -> None:
        if job.event is None or stream is None:
            snapshots, self._state = job.begun.finish(self._state)
        else:
            with torch.cuda.stream(stream):
                stream.wait_event(job.event)
                snapshots, self._state = job.begun.finish(self._state)
            # memory that the training stream allocated is given back only when nobody reads it
            stream.synchronize()
        self._done.put(Finished(job.step, snapshots))
