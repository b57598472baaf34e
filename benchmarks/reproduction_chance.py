"""The loss of the best answer that does not look at its input: what a network is at chance at."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.bare import REPOSITORY
from orchestrator import sweep as sweeps
from tasks import resolve
from tasks.training import make_streams
from tasks.transcripts import CHARACTERS


def chance(name: str) -> float:
    """The validation loss of the best constant answer, in the split of a sweep's first trial.

    For classification and characters that is the entropy of the labels' frequencies; for noise,
    whose pixels have mean 0 and variance 1, it is 1, the loss of predicting nothing; for CTC there
    is no closed form, and the frequencies are optimised.
    """
    trial = next(iter(sweeps.load(str(REPOSITORY / "sweeps" / f"{name}.yaml")).trials()))
    task_class = resolve(trial.task)
    config = task_class.Config(**trial.params)
    if trial.task == "image_generation":
        return 1.0
    task, streams = task_class([config]), make_streams([config], [trial.seed])
    data = {key: value[0] for key, value in task.eval_data(streams, "val").items()}
    if trial.task == "image_classification":
        return entropy(data["labels"])
    if trial.task == "language_modeling":
        return entropy(data["tokens"][:, 1:])
    return _optimised(task, data)


def entropy(labels: Tensor) -> float:
    """Of the labels' frequencies, in nats."""
    counts = labels.flatten().bincount().double()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log()).sum())


def _optimised(task, data) -> float:  # type: ignore[no-untyped-def]
    """By LBFGS, from equal frequencies."""
    answer = torch.zeros(len(CHARACTERS), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([answer], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        losses, count = task.loss(lambda x: answer.expand(*x.shape[:-1], -1), data)
        return losses / count

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(closure)
    with torch.no_grad():
        return float(loss())
