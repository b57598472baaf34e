"""The task `my_task`: a small network learns a function of two numbers. Change it into yours.

`sweep run my_task.yaml --in-process` trains it, `pytest test_my_task.py` checks it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks import Batch, Forward, FullBatchConfig, PerTrial, Streams, Task, initialise_
from tasks.models.mlp import MLP


class MyTaskConfig(FullBatchConfig):
    """What a sweep file may set, beside lr, weight_decay, steps and all else that tasks share.

    The text under each parameter is what `sweep tasks my_task.py:MyTask` prints.
    """

    # Where the task draws its random numbers from. All come from these, none from torch's or
    # numpy's own generators: that is what makes a trial repeatable.
    streams: ClassVar[tuple[str, ...]] = ("init", "split", "noise")

    points: Annotated[int, Field(ge=1)] = 256
    """examples in each split"""
    width: Annotated[int, Field(ge=1)] = 32
    """width of the two hidden layers"""
    # PerTrial: it changes numbers but no shapes, so trials that differ in it may share a group.
    noise_level: Annotated[float, Field(ge=0), PerTrial] = 0.1
    """standard deviation of the noise on the targets"""


class MyTask(Task):
    """Fit sin(3 a) cos(3 b) from noisy points (a, b) of the square [-1, 1]².

    Metric on train and val: `loss`, the mean squared error.
    """

    Config = MyTaskConfig
    config: MyTaskConfig

    def build(self, streams: Streams) -> nn.Module:
        """One model. Change: any module of layers that torch has; `initialise_` fills them."""
        width = self.config.width
        return initialise_(MLP([2, width, width, 1]), streams)

    def eval_data(self, streams: Streams, split: str) -> Batch:
        """The examples of a split, for K trials at once: [K, examples, ...]. Change: your data.

        Data from a file are read once and kept, for example by a function with functools.cache;
        `streams.permutation("split", 0, n)` then says which of n examples are train and val.
        """
        dtype, points = self.config.dtype, self.config.points
        which = self.splits.index(split)  # train and val are different points
        x = streams.uniform("split", which, (points, 2), dtype) * 2 - 1
        noise = streams.normal("noise", which, (points, 1), dtype)
        level = self.per_trial("noise_level", streams.device).to(dtype)[:, None, None]
        truth = torch.sin(3 * x[..., :1]) * torch.cos(3 * x[..., 1:])
        return {"x": x, "y": truth + level * noise}

    def batch(self, streams: Streams, step: int, micro: int) -> Batch:
        """The examples of one step: here all of them, at every step.

        For mini-batches derive the Config from TrainingConfig, and choose the examples
        `streams.examples(step, points, batch_size)`, as tasks/modular_addition.py does.
        """
        return streams.remember("my_task", lambda: self.eval_data(streams, "train"))

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum over the examples of ONE trial (no dimension K here), and their number. Change."""
        error = forward(batch["x"]) - batch["y"]
        return error.square().sum(), torch.full((), error.shape[0], device=error.device)

    def evaluate(self, forward: Forward, data: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Metric -> (sum, weight) of ONE trial. An `error` in [0, 1] gets columns of its own."""
        return {"loss": self.loss(forward, data)}
