"""Record a training loop of your own: run it, then `sweep report results/recorded`."""

import torch
from torch import nn

from orchestrator import Recorder, Results

STEPS = 200


def train(weight_decay, seed):
    """One trial: a small network learns a sum of two waves."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=weight_decay)
    x = torch.rand(2, 64, 1, generator=generator) * 2 - 1
    y = torch.sin(3 * x) + torch.cos(7 * x)

    params = {"weight_decay": weight_decay, "lr": 1e-2, "width": 32}
    with Recorder("results/recorded", params=params, seed=seed) as recorder:
        for step in range(STEPS + 1):
            loss, val_loss = ((model(x) - y) ** 2).mean((1, 2))
            if step % 20 == 0:
                recorder.scalars(step, train={"loss": loss}, val={"loss": val_loss})
                recorder.snapshot(model, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


if __name__ == "__main__":
    for seed in range(2):
        for weight_decay in (0.0, 1.0):
            train(weight_decay, seed)
    print(Results.open("results/recorded"))
