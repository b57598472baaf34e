"""Record a training loop of your own as a trial: `Recorder`.

    with Recorder("results/mine", params={"weight_decay": 0.1}, seed=0) as recorder:
        for step, batch in enumerate(loader):
            ...
            recorder.scalars(step, train={"loss": loss})
            recorder.snapshot(model, step)

It writes the store that a sweep writes, so that everything after it works on it: `Results`, SQL,
trends, plots, MLflow. It needs neither Ray, MLflow nor a task.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from orchestrator import recorder_fields
from orchestrator.errors import RecordError, StoreError
from orchestrator.measuring import Measurer
from orchestrator.nodes import Problems
from orchestrator.recorded import announcement, given_up
from orchestrator.recorder_rows import Rows, Value
from orchestrator.recording import Recording, name_of
from orchestrator.trial import FIRST_PUBLISH_SECONDS, LAST_PUBLISH_SECONDS
from orchestrator.weights import Asked, Model, undisturbed, unwrapped, weights_of
from spectral import METHOD_VERSION, Coupling, MatrixView
from tasks.state import GroupState


class Recorder:
    """Records one trial; use it as a context manager, or call `open` and `close`.

    At a clean exit the trial is `completed`, or `diverged` if a metric called ``loss`` or a matrix
    of a snapshot was not finite; `last_step` is then the first such step. If the block raises it is
    `failed`, with the traceback and the rows so far, and the exception passes through. A process
    that is killed leaves nothing that counts. Rows are published while recording, after a second
    and then at doubling intervals up to ten minutes.

    Any number of recorders may write to one folder at once, and threads may share one. In all but
    rank 0 of distributed training, and in what is forked off inside the block, nothing is written.

    Args:
        root: the results folder; made if need be. A sweep's folder is refused.
        params: what tells this configuration from others: name -> number, text, bool, None or a
            list of them. Each becomes a column of the trials table.
        seed: of this repetition.
        name: of what is trained, the same for all trials of a folder; default: the folder's name.
        measure: what a snapshot holds: names of groups, or the mapping that a sweep file's
            `measure` takes. All groups but `pruned`.
        views: the matrices; None: every parameter with at least two dimensions, see
            `spectral.discover`.
        couplings: which matrices meet, for the group `alignment`.
        example: an input of the model (a tensor, a tuple of arguments or a mapping of keyword
            arguments), for the group `operator`: the model is run on it once, in evaluation mode.
        again: give up an earlier result of this configuration and seed.
        enabled: whether to record at all; None: in the process of rank 0.

    Attributes:
        trial_id: identity, from name, parameters and seed.
        config_id: likewise without the seed.
        root: absolute.

    Raises:
        RecordError: from the constructor, with all problems; from `open`, if the folder is not one
            for recorders, or the trial is recorded already or right now.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        params: Mapping[str, Any] | None = None,
        seed: int = 0,
        name: str | None = None,
        measure: Sequence[str] | Mapping[str, Any] = ("ranks", "spectrum"),
        views: Sequence[MatrixView] | None = None,
        couplings: Sequence[Coupling] = (),
        example: Any = None,
        again: bool = False,
        enabled: bool | None = None,
    ) -> None:
        self.root = Path(root).expanduser().absolute()
        problems = Problems()
        name = recorder_fields.read_name(name, self.root.name, name_of(self.root), problems)
        seed = recorder_fields.read_seed(seed, problems)
        given = recorder_fields.read_params(name, params if params is not None else {}, problems)
        recorder_fields.check_objects(views, couplings, problems)
        found = recorder_fields.read_measurements(measure, couplings, example, problems)
        if problems:
            raise RecordError("Recorder", list(problems))
        now = datetime.now(UTC).isoformat()
        self._trial = announcement(name, given, seed, method=METHOD_VERSION, at=now)
        self.trial_id, self.config_id = self._trial.trial_id, self._trial.config_id
        self._name, self._again, self._enabled = name, again, enabled
        self._asked = Asked(found, views, couplings, example)
        self._recording: Recording | None = None
        self._closed = False
        self._measurer: Measurer | None = None
        self._rows = Rows(self._trial)
        self._last_snapshot = -1
        self._device = ""  # of the model
        self._lock = threading.RLock()  # again from a signal handler of the thread that holds it
        self._process: int | None = None

    # --- begin and end ---

    def open(self) -> Recorder:
        """Begin; entering the context does this.

        Raises:
            RecordError: see the class; StoreBusyError: others hold the folder's lock for too long.
            StoreError: the storage refuses.
        """
        if self._recording is not None or self._closed:
            problem = "it has been opened before: a Recorder records one trial, make a new one"
            raise RecordError("Recorder", [problem])
        if self._enabled is None:
            self._enabled = recorder_fields.rank() == 0
        self._began = time.monotonic()
        self._next_publish = self._began + FIRST_PUBLISH_SECONDS
        self._started_at = datetime.now(UTC)
        if self._enabled:
            self._facts = json.dumps(recorder_fields.origin(), sort_keys=True)
            found = Recording.begin(self.root, self._trial, self._name, again=self._again)
            self._recording, self._process = found, os.getpid()
            self._drop = weakref.finalize(self, given_up, self._trial, self._process, found.release)
        return self

    def close(self, error: BaseException | None = None) -> None:
        """Commit the trial; leaving the context does this. Again, it does nothing.

        Args:
            error: what ended it before its time.

        Raises:
            RecordError: nothing was recorded; or another recorder has committed the trial.
            StoreError: the storage refuses: the trial has no result.
        """
        if self._is_elsewhere():
            return
        with self._lock:
            recording, self._recording, self._closed = self._recording, None, True
            if recording is None:
                return
            self._drop.detach()
            try:
                self._finish(recording, error)
            except BaseException as second:
                if error is None:
                    raise
                error.add_note(f"what was recorded until then could not be kept: {second}")
            finally:
                recording.release()
                if self._measurer is not None:
                    self._measurer.close()

    def _finish(self, recording: Recording, error: BaseException | None) -> None:
        rows = self._rows
        # What went wrong may have been a snapshot: it would raise again.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self._collect(wait=error is None)
        rows.fetch(lossy=error is not None)
        device = self._device or rows.device or "cpu"
        if error is not None:
            status = "failed"
        elif not rows.last and self._last_snapshot < 0:
            problem = f"nothing was recorded of trial {self.trial_id} ({self._trial.label})"
            raise RecordError(str(self.root), [f"{problem}: it has no result"])
        else:
            status = "completed" if rows.first_bad is None else "diverged"
        if self._measurer is not None and status == "completed":
            rows.measured(self._measurer.final())
            rows.shards += self._measurer.kept()
        rows.publish(self.root, recording.stem)
        last = max([0, self._last_snapshot, *rows.last.values()])
        row: dict[str, Any] = {
            "status": status,
            "last_step": rows.first_bad if status == "diverged" else last,
            "started_at": self._started_at,
            "ended_at": datetime.now(UTC),
            "wall_seconds": time.monotonic() - self._began,
            "device": device,
            "shards": rows.shards,
            "environment": recorder_fields.environment_of(self.root, self._facts, device, error),
            **recorder_fields.failure(error),
        }
        recording.commit(row)

    def __enter__(self) -> Recorder:
        return self.open()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close(error)

    # --- what is recorded ---

    def scalars(self, step: int, /, **splits: Mapping[str, Value]) -> None:
        """Record numbers of one step: ``scalars(step, train={"loss": loss}, val={"error": 0.2})``.

        Tensors on an accelerator are not waited for: they are copied where they are, and fetched
        together when rows are published.

        Args:
            step: optimiser steps done. For each metric of each split it must grow.
            **splits: split -> metric -> number or tensor of one element. Not finite is recorded
                too, with the flag `diverged`.

        Raises:
            RecordError: a name, a step or a value that cannot be recorded; nothing of the call is.
        """
        with self._entered() as recording:
            if recording is None:
                return
            self._rows.add(recorder_fields.read_step(step), splits)
            if self._rows.many_waiting:
                self._rows.fetch()
            self._publish_in_time(recording)

    def snapshot(self, model: Model, step: int) -> None:
        """Measure the spectra of a model's weights as they are.

        Its mode, gradients, buffers and the random generators stay as they are. On a CUDA device
        the weights are copied and training may go on while they are measured.

        Args:
            model: also one that is wrapped (torch.compile, DistributedDataParallel). Or a mapping
                of names to tensors, with `views`.
            step: optimiser steps done; it must grow from snapshot to snapshot.

        Raises:
            RecordError: what cannot be measured of this model, everything at once.
            StoreError: the storage refuses to keep singular vectors.
        """
        with self._entered() as recording:
            if recording is None:
                return
            at = recorder_fields.read_step(step)
            if at <= self._last_snapshot:
                problem = f"steps must grow: {at} comes after {self._last_snapshot}"
                raise RecordError("Recorder.snapshot", [problem])
            model = unwrapped(model)
            try:
                weights = weights_of(model)
                with undisturbed(weights):
                    if self._measurer is None:
                        stem = recording.stem
                        found = self._asked.measurer(model, weights, self._trial, self.root, stem)
                        self._rows.reserve(found.request)
                        self._measurer = found
                    self._measurer.take(cast(GroupState, weights), at)
            except (ValueError, TypeError) as error:
                raise RecordError("Recorder.snapshot", str(error).split("\n")) from error
            self._last_snapshot = at
            self._device = weights.flat.device.type
            self._collect(wait=False)
            self._publish_in_time(recording)

    # --- on the way to the disk ---

    def _is_elsewhere(self) -> bool:
        """Whether this process was forked off the one that records."""
        return self._process not in (None, os.getpid())

    @contextlib.contextmanager
    def _entered(self) -> Iterator[Recording | None]:
        """The recording, for one thread at a time; None in a process that does not record."""
        if self._enabled is False or self._is_elsewhere():
            yield None
            return
        with self._lock:
            if self._recording is None:
                problem = "it is not open: use it as `with Recorder(...) as recorder:`"
                raise RecordError("Recorder", [problem])
            yield self._recording

    def _collect(self, *, wait: bool) -> None:
        if self._measurer is not None:
            self._rows.measured(self._measurer.results(wait=wait))

    def _publish_in_time(self, recording: Recording) -> None:
        """Show what there is, if it is time; if the storage refuses now, it is tried again."""
        now = time.monotonic()
        if now < self._next_publish and not self._rows.many:
            return
        self._next_publish = now + min(2 * (now - self._began), LAST_PUBLISH_SECONDS)
        self._rows.fetch()
        try:
            self._rows.publish(self.root, recording.stem)
        except StoreError as error:
            warnings.warn(f"recorded rows are kept in memory: {error}", stacklevel=3)
