"""A task of your own, named in a sweep file as `task: path/to/my_task.py:Spirals`."""

import torch
import torch.nn.functional as F

from tasks import FullBatchConfig, Task, initialise_
from tasks.models.mlp import MLP


class SpiralsConfig(FullBatchConfig):
    points: int = 200
    """points of each of the two spirals, in train and again in val"""
    width: int = 32
    """width of the two hidden layers"""


class Spirals(Task):
    """Tell two noisy spirals in the plane apart: 2 inputs, 2 hidden layers, 2 outputs."""

    Config = SpiralsConfig

    def build(self, streams):  # one model; all its parameters come from the `init` stream
        model = MLP([2, self.config.width, self.config.width, 2])
        initialise_(model, streams)
        return model

    def eval_data(self, streams, split):  # the data of all K trials: [K, examples, ...]
        which, n = self.splits.index(split), 2 * self.config.points
        angle = 3 * torch.pi * streams.uniform("split", which, (n,))
        label = (torch.arange(n) % 2).expand(len(streams), n)
        direction = angle + torch.pi * label
        x = torch.stack([direction.cos(), direction.sin()], -1) * angle[..., None] / 10
        x = x + 0.02 * streams.normal("noise", which, (n, 2))
        return {"x": x.to(self.config.dtype), "label": label}

    def batch(self, streams, step, micro):  # all examples at every step
        return streams.remember("spirals", lambda: self.eval_data(streams, "train"))

    def loss(self, forward, batch):  # of ONE trial: sum and weight
        total = F.cross_entropy(forward(batch["x"]), batch["label"], reduction="sum")
        return total, torch.tensor(len(batch["label"]))

    def evaluate(self, forward, data):
        wrong = forward(data["x"]).argmax(-1) != data["label"]
        total, weight = self.loss(forward, data)
        return {"loss": (total, weight), "error": (wrong.double().sum(), weight)}
