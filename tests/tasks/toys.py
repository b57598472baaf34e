"""Small tasks for the tests of training: their gradients and metrics are known in closed form."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from tasks import PerTrial, Streams, Task, TrainingConfig, initialise_


class LineConfig(TrainingConfig):
    streams: ClassVar[tuple[str, ...]] = ("init", "split", "noise")
    slope: Annotated[float, Field(description="of the data"), PerTrial] = 1.0
    examples: int = 8


class Line(Task):
    """Least squares: y = slope x, fitted by one linear layer with three inputs."""

    Config = LineConfig
    config: LineConfig

    def build(self, streams):
        return initialise_(nn.Linear(3, 1), streams)

    def eval_data(self, streams, split):
        shape = (self.config.examples, 3)
        x = streams.uniform("split", self.splits.index(split), shape, self.config.dtype)
        return {"x": x, "y": self.per_trial("slope").to(x.dtype)[:, None] * x.sum(-1)}

    def batch(self, streams, step, micro):
        """The weight of example i is i: micro-batches have unequal weights."""
        data = self.eval_data(streams, "train")
        weight = torch.arange(self.config.examples, dtype=self.config.dtype)
        data["weight"] = weight.expand(len(streams), -1)
        size = self.config.examples // self.config.micro_batches
        return {name: t[:, micro * size : (micro + 1) * size] for name, t in data.items()}

    def loss(self, forward, batch):
        squares = (forward(batch["x"]).squeeze(-1) - batch["y"]) ** 2
        return (batch["weight"] * squares).sum(), batch["weight"].sum()

    def evaluate(self, forward, data):
        squares = (forward(data["x"]).squeeze(-1) - data["y"]) ** 2
        return {"loss": (squares.double().sum(), torch.tensor(len(squares)))}


class Normed(nn.Module):
    """BatchNorm has buffers that training changes, and a train and an eval mode."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.outer = nn.Linear(4, 1)

    def forward(self, x):
        return self.outer(torch.relu(self.norm(self.inner(x))))


class NormedLine(Line):
    def build(self, streams):
        return initialise_(Normed(), streams)


class LoopedLine(Line):
    """The same as Line, trial by trial."""

    stackable = False


class LoopedNormedLine(NormedLine):
    stackable = False


class Tied(nn.Module):
    """One matrix in two places."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x)).sum(-1, keepdim=True)


class TiedLine(Line):
    def build(self, streams):
        return initialise_(Tied(), streams)


def streams(count):
    return Streams(range(count))
