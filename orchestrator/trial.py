"""The training loop on a worker: one ordinary function, the same in a test, a process or Ray.

`run_group` trains the trials of one group, measures them while they train, publishes shards and
checkpoints, and returns the rows that the driver may commit. It knows neither Ray, MLflow nor
Optuna.
"""

from __future__ import annotations

import functools
import io
import json
import math
import platform
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator import checkpoints, environment, factors
from orchestrator.errors import ClusterError, SourceChangedError, SpectralSweepsError
from orchestrator.expansion import Trial  # not from sweep: a worker reads no YAML
from orchestrator.files import checksum
from orchestrator.measuring import Measurer
from orchestrator.rows import Buffer
from spectral import ScalarRow
from tasks import TaskError, data, resolve, source_hash
from tasks.precision import exact_float32
from tasks.training import evaluate, make_streams, start, train_step

_source_of = functools.cache(source_hash)
"""Once per class: `resolve` makes a new one when the text of a task by path has changed."""

FIRST_PUBLISH_SECONDS = 1.0
"""Partial rows are published after this long, then at doubling intervals up to ten minutes."""
LAST_PUBLISH_SECONDS = 600.0


@dataclass(frozen=True)
class Assignment:
    """One dispatch of a group to a worker."""

    trials: tuple[Trial, ...]
    attempts: tuple[int, ...]  # one per trial, counted over the life of the store

    @property
    def trial_ids(self) -> tuple[str, ...]:
        """Which trials; identifies an assignment among those under way."""
        return tuple(trial.trial_id for trial in self.trials)


@dataclass(frozen=True)
class Context:
    """What every assignment of one driver run has in common; a worker is told once."""

    root: str  # the store's folder
    epoch: int
    threads: int  # intra-op threads of a trial
    device: str  # "cpu" or "cuda"
    checkpoint_seconds: float
    source_hash: str  # of the task's code
    keep: bool = False  # the user vouches for checkpoints of another task source
    live: bool = True  # whether somebody watches: progress then carries the scalars
    facts: str = "{}"  # JSON: what the driver adds to the environment's description
    task: str = ""  # how a worker finds the task, should its code have travelled; "": as the trial
    data: str = ""  # the folder of real data sets; "": as the worker's own environment says


@dataclass(frozen=True)
class Progress:
    """Scalars of a trial that is still running; also the sign that its worker lives."""

    trial: Trial
    step: int
    scalars: tuple[ScalarRow, ...]
    started_at: datetime  # of the attempt, as its commit row will say


@dataclass(frozen=True)
class GroupResult:
    """How an attempt ended.

    Attributes:
        rows: one commit row per trial; empty if it was stopped, its state is in a checkpoint.
        stopped_at: the step of that checkpoint, or None.
        error: the exception of a failed attempt, for an executor that raises it; None if its text
            says all there is to say (a `tasks.TaskError`).
    """

    rows: tuple[dict[str, Any], ...]
    stopped_at: int | None = None
    error: BaseException | None = None


def run_group(
    assignment: Assignment,
    context: Context,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> GroupResult:
    """Train one group to the end, to divergence, to an error, or until asked to stop.

    Args:
        assignment: what to train; one trial per group for now.
        context: where its rows go and how it is run.
        progress: called at each measured step with the scalars just measured.
        stop: asked before every training step; if true the group is checkpointed and left.

    Returns:
        Commit rows with status "completed" or "diverged"; "failed", with the traceback and the
        rows so far, when the task's code raised. Of a `tasks.TaskError`, such as data that are
        not on this machine, the text stands for the traceback.

    Raises:
        StoreError: the storage refused. That is not the trial's fault, so it is no row.
    """
    attempt = _Attempt(assignment, context)
    try:
        return attempt.run(progress, stop)
    except SpectralSweepsError:
        raise
    except (Exception, SystemExit) as error:  # sys.exit in task code fails its trial, no more
        return attempt.failed(error)
    finally:
        if attempt.measurer is not None:
            attempt.measurer.close()


class _Attempt:
    """The state of one attempt between its first and its last step."""

    def __init__(self, assignment: Assignment, context: Context) -> None:
        if len(assignment.trials) != 1:
            raise ValueError(f"a group has one trial for now, got {len(assignment.trials)}")
        self.assignment = assignment
        self.context = context
        self.trial = assignment.trials[0]
        self.root = Path(context.root)
        self.stem = f"{self.trial.trial_id}-{context.epoch}.{assignment.attempts[0]}"
        self.began = time.monotonic()
        self.started_at = datetime.now(UTC)
        self.earlier_seconds = 0.0  # spent by attempts that this one continues
        self.step = 0
        self.buffer = Buffer()
        self.shards: list[dict[str, Any]] = []
        self.environment = ""
        self.measurer: Measurer | None = None
        self.measured = -1  # the last step whose measurements are in the buffer or published
        self.next_publish = self.began + FIRST_PUBLISH_SECONDS
        self.next_checkpoint = self.began + context.checkpoint_seconds

    def run(self, progress: Callable[[Progress], None], stop: Callable[[], bool]) -> GroupResult:
        torch.set_num_threads(self.context.threads)
        data.use(self.context.data or None)
        if self.context.device.startswith("cuda"):
            exact_float32()
        self.environment = environment.record(
            self.root,
            self.context.facts,
            threads=self.context.threads,
            device=self.context.device,
        )
        try:
            task_class = resolve(self.context.task or self.trial.task)
        except OSError as error:  # not the trial's fault: the next one would fail here too
            raise ClusterError(
                f"the code of the task cannot be read on {platform.node()}: {error}"
            ) from error
        except TaskError as error:  # the driver, and the worker when it started, could import it
            raise SourceChangedError(
                f"the code of task {self.trial.task_name!r} was edited while the sweep ran, and "
                f"cannot be imported any more: {error}. Run the same command again once it can."
            ) from error
        if _source_of(task_class) != self.context.source_hash:
            raise SourceChangedError(
                f"the code of task {self.trial.task_name!r} was edited while the sweep ran; "
                "nothing that the new code made was kept. Run the same command again to decide "
                "about it."
            )
        # As the loader read it, so that what passed there passes here.
        params = json.dumps(dict(self.trial.params))
        config = task_class.Config.model_validate_json(params, strict=True)
        task = task_class([config])
        streams = make_streams([config], [self.trial.seed]).to(self.context.device)
        model, state = start(task, streams)
        measurer = Measurer(task, model, self.trial, streams, self.root, self.stem)
        self.measurer = measurer
        self._resume(state, measurer)
        evaluations = frozenset(self.trial.evaluations)
        snapshots = frozenset(self.trial.snapshots)

        while True:
            self.step = step = state.step
            if step in evaluations and step > self.measured:
                rows = _evaluation_rows(evaluate(task, model, state, streams))
                bad = _first_bad(state.first_bad, rows, step)
                if step in snapshots:
                    measurer.take(state, step)
                self._collect(rows, bad, progress, wait=bad is not None or step >= config.steps)
                if bad is not None:
                    return self._finish("diverged", bad)
            if step >= config.steps:
                return self._finish("completed", step)
            now = time.monotonic()
            if stopping := stop():
                self.next_checkpoint = now
            if now >= self.next_publish:
                self._publish()
                self.next_publish = now + min(2 * (now - self.began), LAST_PUBLISH_SECONDS)
            if now >= self.next_checkpoint:
                self._checkpoint(state.state_dict(), measurer, progress)
                self.next_checkpoint = time.monotonic() + self.context.checkpoint_seconds
            if stopping:
                return GroupResult((), stopped_at=step)
            train_step(task, model, state, streams)

    def failed(self, error: BaseException) -> GroupResult:
        try:
            self._publish()
        except SpectralSweepsError:
            raise
        except Exception as second:  # rows that Arrow refuses: a metric whose name is no text
            error.add_note(f"its rows could not be kept: {second}")
        row = self._row("failed", self.step)
        row["error_kind"] = type(error).__name__
        told = isinstance(error, TaskError)  # written for the user, who need not see our code
        text = str(error) if told else "".join(traceback.format_exception(error))
        row["error"] = text.encode("utf-8", "replace").decode()  # lone surrogates are no UTF-8
        return GroupResult((row,), error=None if told else error)

    def _collect(
        self,
        rows: list[ScalarRow],
        bad: int | None,
        progress: Callable[[Progress], None],
        *,
        wait: bool,
    ) -> None:
        """Buffer and report an evaluation at this step, with all snapshots that are finished."""
        assert self.measurer is not None
        by_step = {self.step: rows}
        for found in self.measurer.results(wait=wait):
            by_step.setdefault(found.step, []).extend(found.scalars)
            self.buffer.spectra(self.trial.trial_id, found.step, found.spectra)
        if bad is not None:
            rows = by_step[self.step]
            by_step[self.step] = [_diverged(row) for row in rows]
        self.measured = self.step
        for step, own in sorted(by_step.items()):
            self.buffer.scalars(self.trial.trial_id, step, own)
            shown = tuple(own) if self.context.live else ()
            progress(Progress(self.trial, step, shown, self.started_at))

    def _finish(self, status: str, last_step: int) -> GroupResult:
        assert self.measurer is not None
        if status == "completed":  # weights that are not finite agree with nothing
            for found in self.measurer.final():
                self.buffer.scalars(self.trial.trial_id, found.step, found.scalars)
                self.buffer.spectra(self.trial.trial_id, found.step, found.spectra)
            self.shards += self.measurer.kept()
        self._publish()
        return GroupResult((self._row(status, last_step),))

    def _publish(self) -> None:
        self.shards += self.buffer.publish(self.root, self.stem, [_identity(self.trial)])

    def _checkpoint(
        self, state: dict[str, Any], measurer: Measurer, progress: Callable[[Progress], None]
    ) -> None:
        measuring = measurer.state_dict()  # it waits for what is under way
        for found in measurer.results(wait=True):
            self.buffer.scalars(self.trial.trial_id, found.step, found.scalars)
            self.buffer.spectra(self.trial.trial_id, found.step, found.spectra)
            shown = tuple(found.scalars) if self.context.live else ()
            progress(Progress(self.trial, found.step, shown, self.started_at))
        rows = {
            name: torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            for name, payload in self.buffer.dump().items()
        }
        content = {
            "training": state,
            "measuring": measuring,
            "rows": rows,
            "measured": self.measured,
        }
        sink = io.BytesIO()
        torch.save(content, sink)
        header = checkpoints.Header(
            step=self.step,
            epoch=self.context.epoch,
            attempt=self.assignment.attempts[0],
            source_hash=self.context.source_hash,
            trial=_identity(self.trial),
            shards=self.shards + measurer.scratch(),
            wall_seconds=self._wall_seconds(),
        )
        checkpoints.write(self.root, self.trial.trial_id, header, sink.getvalue())

    def _resume(self, state: Any, measurer: Measurer) -> None:
        """Continue from the newest valid checkpoint, if there is one of the same task source."""
        found = checkpoints.newest_valid(self.root, self.trial.trial_id, accept=self._can_continue)
        if found is None:
            # Older code's checkpoints stand at later steps than ours will for a while.
            checkpoints.discard(self.root, self.trial.trial_id)
            return
        header, payload = found
        content = torch.load(
            io.BytesIO(payload), weights_only=True, map_location=self.context.device
        )
        state.load(content["training"])
        measurer.load(content["measuring"])
        dumped = {name: bytes(t.cpu().numpy().tobytes()) for name, t in content["rows"].items()}
        self.buffer = Buffer.restore(dumped)
        self.measured = int(content["measured"])
        self.shards = [dict(shard) for shard in header.shards if shard["table"] != factors.TABLE]
        self.earlier_seconds = header.wall_seconds
        self.step = state.step

    def _can_continue(self, header: checkpoints.Header) -> bool:
        """Whether it is of this task source, and the shards that it names are still intact."""
        if header.source_hash != self.context.source_hash and not self.context.keep:
            return False
        try:
            return all(
                checksum((self.root / shard["path"]).read_bytes()) == shard["checksum"]
                for shard in header.shards
            )
        except OSError:
            return False

    def _wall_seconds(self) -> float:
        return self.earlier_seconds + time.monotonic() - self.began

    def _row(self, status: str, last_step: int) -> dict[str, Any]:
        return {
            **_identity(self.trial),
            "status": status,
            "last_step": last_step,
            "attempt": self.assignment.attempts[0],
            "group_size": len(self.assignment.trials),
            "started_at": self.started_at,
            "ended_at": datetime.now(UTC),
            "wall_seconds": self._wall_seconds(),
            "host": platform.node(),
            "device": self.context.device,
            "environment": self.environment,
            "parents": list(self.trial.parents),
            "shards": self.shards,
        }


def _identity(trial: Trial) -> dict[str, Any]:
    return {
        "trial_id": trial.trial_id,
        "config_id": trial.config_id,
        "seed": trial.seed,
        "params": json.dumps(dict(trial.params), sort_keys=True),
    }


def _evaluation_rows(metrics: Mapping[tuple[str, str], Tensor]) -> list[ScalarRow]:
    return [
        ScalarRow(split, metric, float(value[0]), None, None, "evaluation", None)
        for (split, metric), value in metrics.items()
    ]


def _diverged(row: ScalarRow) -> ScalarRow:
    """A row of the step at which a trial ended; a flag of a matrix itself tells more."""
    return row._replace(flag="diverged") if row.flag in (None, "ill_posed") else row


def _first_bad(first_bad: Tensor, rows: Sequence[ScalarRow], step: int) -> int | None:
    """The first step with a non-finite training loss, or this one if an evaluation shows it."""
    found = int(first_bad[0])
    if found >= 0:
        return found
    finite = all(math.isfinite(row.value) for row in rows if row.metric == "loss")
    return None if finite else step
