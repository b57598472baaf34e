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
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import torch

from orchestrator import environment, recorder_fields
from orchestrator.errors import RecordError, StoreError
from orchestrator.measuring import Measurer
from orchestrator.nodes import Problems
from orchestrator.recorded import announcement
from orchestrator.recorder_rows import Numbers, Value
from orchestrator.recording import Recording, name_of
from orchestrator.rows import Buffer
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

    Any number of recorders may write to one folder at the same time. In distributed training only
    rank 0 records: in all other processes every method returns at once and nothing is written.

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
        self._buffer = Buffer()
        self._shards: list[dict[str, Any]] = []
        self._numbers = Numbers()
        self._last_snapshot = -1
        self._first_bad: int | None = None  # of the snapshots
        self._device = ""  # of the model

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
            self._recording = Recording.begin(self.root, self._trial, self._name, again=self._again)
        return self

    def close(self, error: BaseException | None = None) -> None:
        """Commit the trial; leaving the context does this. Again, it does nothing.

        Args:
            error: what ended it before its time.

        Raises:
            RecordError: nothing was recorded; or another recorder has committed the trial.
            StoreError: the storage refuses: the trial has no result.
        """
        recording, self._recording, self._closed = self._recording, None, True
        if recording is None:
            return
        try:
            self._finish(recording, error)
        except BaseException as second:
            if error is None:
                raise
            error.add_note(f"what was recorded until then could not be kept: {second}")
        finally:
            if self._measurer is not None:
                self._measurer.close()
            recording.release()

    def _finish(self, recording: Recording, error: BaseException | None) -> None:
        status = "failed"
        # What went wrong may have been a snapshot: it would raise again.
        with contextlib.nullcontext() if error is None else contextlib.suppress(Exception):
            self._collect(wait=error is None)
        self._numbers.fetch(self.trial_id, self._buffer)
        bad = [s for s in (self._first_bad, self._numbers.first_bad) if s is not None]
        last = max([0, self._last_snapshot, *self._numbers.last.values()])
        device = self._device or self._numbers.device or "cpu"
        if error is None:
            status = "diverged" if bad else "completed"
            if not (self._numbers.last or self._measurer):
                problem = f"nothing was recorded of trial {self.trial_id} ({self._trial.label})"
                raise RecordError(str(self.root), [f"{problem}: it has no result"])
        if self._measurer is not None and status == "completed":
            for found in self._measurer.final():
                self._buffer.scalars(self.trial_id, found.step, found.scalars)
                self._buffer.spectra(self.trial_id, found.step, found.spectra)
            self._shards += self._measurer.kept()
        self._publish(recording)
        row: dict[str, Any] = {
            "status": status,
            "last_step": min(bad) if status == "diverged" else last,
            "started_at": self._started_at,
            "ended_at": datetime.now(UTC),
            "wall_seconds": time.monotonic() - self._began,
            "device": device,
            "environment": environment.record(
                self.root, self._facts, threads=torch.get_num_threads(), device=device
            ),
            "shards": self._shards,
        }
        if error is not None:
            text = "".join(traceback.format_exception(error))
            row["error_kind"] = type(error).__name__
            row["error"] = text.encode("utf-8", "replace").decode()  # half characters are no UTF-8
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
        if (recording := self._open()) is None:
            return
        self._numbers.add(recorder_fields.read_step(step), splits)
        if self._numbers.many:
            self._numbers.fetch(self.trial_id, self._buffer)
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
        if (recording := self._open()) is None:
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
                    self._measurer = self._asked.measurer(
                        model, weights, self._trial, self.root, recording.stem
                    )
                self._measurer.take(cast(GroupState, weights), at)
        except (ValueError, TypeError) as error:
            raise RecordError("Recorder.snapshot", str(error).split("\n")) from error
        self._last_snapshot = at
        self._device = weights.flat.device.type
        self._collect(wait=False)
        self._publish_in_time(recording)

    # --- on the way to the disk ---

    def _open(self) -> Recording | None:
        """The recording; None in a process that does not record."""
        if self._enabled is False:
            return None
        if self._recording is None:
            problem = "it is not open: use it as `with Recorder(...) as recorder:`"
            raise RecordError("Recorder", [problem])
        return self._recording

    def _collect(self, *, wait: bool) -> None:
        for found in self._measurer.results(wait=wait) if self._measurer is not None else ():
            self._buffer.scalars(self.trial_id, found.step, found.scalars)
            self._buffer.spectra(self.trial_id, found.step, found.spectra)
            flags = {row.flag for row in found.scalars} | {row.flag for row in found.spectra}
            if "diverged" in flags:
                bad = found.step if self._first_bad is None else self._first_bad
                self._first_bad = min(bad, found.step)

    def _publish_in_time(self, recording: Recording) -> None:
        """Show what there is, if it is time; if the storage refuses now, it is tried again."""
        now = time.monotonic()
        if now < self._next_publish:
            return
        self._next_publish = now + min(2 * (now - self._began), LAST_PUBLISH_SECONDS)
        self._numbers.fetch(self.trial_id, self._buffer)
        try:
            self._publish(recording)
        except StoreError as error:
            warnings.warn(f"recorded rows are kept in memory: {error}", stacklevel=3)

    def _publish(self, recording: Recording) -> None:
        self._shards += self._buffer.publish(self.root, recording.stem, [self._trial.identity])
