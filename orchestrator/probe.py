"""How long a trial takes, from a second of training it: what `sweep plan` goes by at first."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.expansion import Trial
from orchestrator.measuring import Measurer
from tasks import resolve
from tasks.training import evaluate, make_streams, start, train_step

PROBE_SECONDS = 1.0
WARMUP_STEPS = 3
"""Not timed: the first steps allocate, and torch picks its kernels."""


@dataclass(frozen=True)
class Cost:
    """Seconds of one training step, one evaluation, one snapshot, and pruned models at one step."""

    step: float
    evaluation: float
    snapshot: float
    pruned: float = 0.0

    def of(self, trial: Trial) -> float:
        """Seconds of a whole trial, if it costs what the probed one does per step."""
        return (
            trial.evaluations[-1] * self.step
            + len(trial.evaluations) * self.evaluation
            + len(trial.snapshots) * self.snapshot
            + len(trial.pruned) * self.pruned
        )


def probe(trial: Trial, *, threads: int, device: str) -> Cost:
    """Train a trial for about a second, here and now, and throw the result away.

    Args:
        trial: whose model, data and measurements are timed.
        threads: intra-op threads, as the trial will have.
        device: "cpu" or "cuda".

    Raises:
        Exception: whatever the task's code raises.
    """
    torch.set_num_threads(threads)
    task_class = resolve(trial.task)
    config = task_class.Config.model_validate_json(json.dumps(dict(trial.params)), strict=True)
    task = task_class([config])
    streams = make_streams([config], [trial.seed]).to(device)
    model, state = start(task, streams)
    beyond = trial.evaluations[-1] + 1  # a step at which nothing is pruned
    with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
        measurer = Measurer(task, model, trial, streams, Path(folder), trial.trial_id)

        def timed(at: int) -> float:
            began = _now(device)
            measurer.take(state, at)
            measurer.results(wait=True)
            return _now(device) - began

        try:
            # The first of each prepares what later ones reuse.
            evaluate(task, model, state, streams)
            timed(beyond)
            for _ in range(min(WARMUP_STEPS, config.steps)):
                train_step(task, model, state, streams)
            began = _now(device)
            evaluate(task, model, state, streams)
            evaluation = _now(device) - began
            snapshot = timed(beyond + 1)
            pruned = max(timed(trial.pruned[0]) - snapshot, 0.0) if trial.pruned else 0.0
        finally:
            measurer.close()
    steps, began = 0, _now(device)
    while _now(device) - began < PROBE_SECONDS:
        train_step(task, model, state, streams)
        steps += 1
    step = (_now(device) - began) / steps
    return Cost(step, evaluation, snapshot, pruned)


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
