"""How long a trial takes, from a second of training it: what `sweep plan` goes by at first."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import torch

import spectral
from orchestrator.expansion import Trial
from tasks import resolve
from tasks.training import evaluate, make_streams, start, train_step

PROBE_SECONDS = 1.0
WARMUP_STEPS = 3
"""Not timed: the first steps allocate, and torch picks its kernels."""


@dataclass(frozen=True)
class Cost:
    """Seconds of one training step, one evaluation and one snapshot."""

    step: float
    evaluation: float
    snapshot: float

    def of(self, trial: Trial) -> float:
        """Seconds of a whole trial, if it costs what the probed one does per step."""
        return (
            trial.evaluations[-1] * self.step
            + len(trial.evaluations) * self.evaluation
            + len(trial.snapshots) * self.snapshot
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
    views = task.views(model)
    seconds = {}
    for name in ("first", "later"):  # the first of each prepares what later ones reuse
        began = _now(device)
        evaluate(task, model, state, streams)
        evaluated = _now(device)
        spectral.take_snapshot(views, state.parameters, trial.measure.groups, None)
        seconds[name] = (evaluated - began, _now(device) - evaluated)
    for _ in range(min(WARMUP_STEPS, config.steps)):
        train_step(task, model, state, streams)
    steps, began = 0, _now(device)
    while _now(device) - began < PROBE_SECONDS:
        train_step(task, model, state, streams)
        steps += 1
    step = (_now(device) - began) / steps
    return Cost(step, *seconds["later"])


def _now(device: str) -> float:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()
