"""A small convolutional network with BatchNorm, as a user would write it."""

import torch
from torch import nn

from spectral import Coupling, CouplingEnd
from tasks import Task, TrainingConfig, initialise_

CHANNELS, CLASSES, EXAMPLES, SIZE = 4, 3, 24, 8


class Patches(Task):
    """Which of three noisy patterns an image shows."""

    class Config(TrainingConfig):
        streams = ("init", "split", "noise")

    def build(self, streams):
        model = nn.Sequential(
            nn.Conv2d(1, CHANNELS, 3, padding=1),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(CHANNELS * (SIZE // 2) ** 2, CLASSES),
        )
        return initialise_(model, streams)

    def eval_data(self, streams, split):
        which = self.splits.index(split)
        labels = torch.arange(EXAMPLES) % CLASSES
        grid = torch.arange(SIZE, dtype=torch.float32)
        waves = torch.stack([torch.sin(grid * (1 + c)) for c in range(CLASSES)])
        pattern = waves[:, :, None] * waves[:, None, :]
        noise = streams.normal("noise", which, (EXAMPLES, 1, SIZE, SIZE), torch.float32)
        images = pattern[labels][None, :, None] + 0.3 * noise
        return {"images": images, "labels": labels.expand(len(streams), -1)}

    def batch(self, streams, step, micro):
        return streams.remember("patches", lambda: self.eval_data(streams, "train"))

    def loss(self, forward, batch):
        logits = forward(batch["images"])
        losses = -logits.log_softmax(-1).gather(-1, batch["labels"][:, None])
        return losses.sum(), torch.tensor(EXAMPLES)

    def evaluate(self, forward, data):
        logits = forward(data["images"])
        losses = -logits.log_softmax(-1).gather(-1, data["labels"][:, None])
        count = torch.tensor(len(data["labels"]))
        wrong = (logits.argmax(-1) != data["labels"]).double().sum()
        return {"loss": (losses.double().sum(), count), "error": (wrong, count)}

    def couplings(self, model):
        centre = CouplingEnd("3", "right", reshape=(CHANNELS, 3, 3), tap=(1, 1))
        every = CouplingEnd("3", "right", reshape=(CHANNELS, 3, 3), tap="all")
        first = CouplingEnd("0", "left")
        return [
            Coupling(first, centre, CHANNELS * 9),
            Coupling(first, every, CHANNELS * 9, name="0->3, all taps"),
        ]
