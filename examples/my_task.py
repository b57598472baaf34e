"""A task of your own; a sweep file names it as `task: path/to/my_task.py:Waves`."""

import torch

from tasks import FullBatchConfig, Task, initialise_
from tasks.models.mlp import MLP


class Waves(Task):
    """Learn a sum of two waves from noisy points: 1 input, 2 hidden layers, 1 output."""

    class Config(FullBatchConfig):
        """What a sweep file may set beside the shared fields: lr, weight_decay, steps, ..."""

        streams = ("init", "split", "noise")  # where the task draws its random numbers from
        points: int = 64
        width: int = 32

    def build(self, streams):
        """One model; all its parameters are filled from the `init` stream."""
        return initialise_(MLP([1, self.config.width, self.config.width, 1]), streams)

    def eval_data(self, streams, split):
        """The data of all K trials, [K, examples, ...]: train and val are different points."""
        which, shape = self.splits.index(split), (self.config.points, 1)
        x = streams.uniform("split", which, shape, self.config.dtype) * 2 - 1
        noise = streams.normal("noise", which, shape, self.config.dtype)
        return {"x": x, "y": torch.sin(3 * x) + torch.cos(7 * x) + 0.1 * noise}

    def batch(self, streams, step, micro):
        """Step after step the same, all examples at once."""
        return streams.remember("waves", lambda: self.eval_data(streams, "train"))

    def loss(self, forward, batch):
        """Sum over the examples of ONE trial, and their number."""
        return ((forward(batch["x"]) - batch["y"]) ** 2).sum(), torch.tensor(self.config.points)

    def evaluate(self, forward, data):
        """Metric -> (sum, weight)."""
        return {"loss": self.loss(forward, data)}
