"""The rivals of `benchmarks.tasks`: each task's training as one would write it without us.

Plain torch: the module, an optimiser of `torch.optim`, torch's own losses and random numbers, the
data as tensors on the device. No evaluation, no measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tasks import TrainingConfig, make_streams, resolve, start

Step = Callable[[int], None]
Loss = Callable[[nn.Module, Tensor], Tensor]


def loop(name: str, fields: Mapping[str, Any], device: str) -> Step:
    """A function that makes one optimiser step."""
    kind = resolve(name)
    config = kind.Config(**fields, steps=10**6)
    task = kind([config])
    streams = make_streams([config], [0]).to(device)
    model, _ = start(task, streams)
    model.train()
    optimiser = _optimiser(config, model)
    count, loss = LOSSES[name](task, streams, config)
    generator = torch.Generator(device=device).manual_seed(0)
    batch = config.batch_size
    order = torch.randperm(count, generator=generator, device=device)

    def step(number: int) -> None:
        nonlocal order
        if batch is None:
            chosen = slice(None)
        else:
            place = number % (count // batch)
            if place == 0:
                order = torch.randperm(count, generator=generator, device=device)
            chosen = order[place * batch : (place + 1) * batch]
        optimiser.zero_grad(set_to_none=True)
        loss(model, chosen).backward()
        optimiser.step()

    return step


def _optimiser(config: TrainingConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        model.parameters(), config.lr, config.betas, config.eps, config.weight_decay
    )


def _addition(task: Any, streams: Any, config: Any) -> tuple[int, Loss]:
    data = task.eval_data(streams, "train")
    tokens, labels = data["tokens"][0], data["labels"][0]

    def loss(model: nn.Module, chosen: Any) -> Tensor:
        return F.cross_entropy(model(tokens[chosen], True), labels[chosen])

    return len(tokens), loss


def _classification(task: Any, streams: Any, config: Any) -> tuple[int, Loss]:
    from tasks import images

    data = task.eval_data(streams, "train")
    pool = images.pool(config.data, config.pixels, streams.device)[data["index"][0]]
    inputs, labels = images.normalised(pool, config.data, torch.float32), data["labels"][0]
    if config.model == "mlp":
        inputs = inputs.flatten(1)

    def loss(model: nn.Module, chosen: Any) -> Tensor:
        return F.cross_entropy(model(inputs[chosen]), labels[chosen])

    return len(inputs), loss


def _generation(task: Any, streams: Any, config: Any) -> tuple[int, Loss]:
    from tasks import diffusion, images

    index = task.eval_data(streams, "train")["image"][0]
    pool = images.pool(config.data, config.image_size, streams.device)[index]
    clean = images.normalised(pool, config.data, torch.float32)
    kept = diffusion.kept_part(streams.device).float()

    def loss(model: nn.Module, chosen: Any) -> Tensor:
        some = clean[chosen]
        when = torch.randint(len(kept), (len(some),), device=some.device)
        noise = torch.randn_like(some)
        share = kept[when][:, None, None, None]
        return F.mse_loss(model(share.sqrt() * some + (1 - share).sqrt() * noise, when), noise)

    return len(clean), loss


def _recognition(task: Any, streams: Any, config: Any) -> tuple[int, Loss]:
    which = task._numbers(streams, "train")[0]
    utterances = task._pool(streams.device)
    features, lengths = utterances.gather(which, utterances.longest_train)
    targets, target_lengths = utterances.targets[which].long(), utterances.target_lengths[which]

    def loss(model: nn.Module, chosen: Any) -> Tensor:
        log_shares = model(features[chosen]).log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(log_shares, targets[chosen], lengths[chosen], target_lengths[chosen])

    return len(which), loss


def _modeling(task: Any, streams: Any, config: Any) -> tuple[int, Loss]:
    starts = task._starts(streams, "train")
    tokens = task._tokens(streams, "train", starts)[0]

    def loss(model: nn.Module, chosen: Any) -> Tensor:
        some = tokens[chosen]
        return F.cross_entropy(model(some[:, :-1]).flatten(0, 1), some[:, 1:].flatten())

    return len(tokens), loss


LOSSES: dict[str, Callable[[Any, Any, Any], tuple[int, Loss]]] = {
    "modular_addition": _addition,
    "image_classification": _classification,
    "image_generation": _generation,
    "speech_recognition": _recognition,
    "language_modeling": _modeling,
}
