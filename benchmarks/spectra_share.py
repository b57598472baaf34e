"""Snapshots beside the training that they interrupt, at the paper's cadence; one process of it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.spectra_weights import KINDS, Network, build, weights
from spectral import MEASUREMENTS, Coupling, MatrixView, take_snapshot
from tasks.modular_addition import ModularAddition
from tasks.training import make_streams, start, train_step

THREADS = 2
"""But one in a quick run: on a busy machine, two wait for each other at every small product."""

CADENCE = {"VGG-16": 352, "grokking": 100}
"""Optimiser steps from one snapshot to the next: an epoch of 45,000 images, or a hundred."""

EVERY_GROUP = tuple(name for name in MEASUREMENTS if name not in ("pruned", "operator"))
"""What a snapshot can hold; pruned models are evaluated on a schedule of their own."""

STEPS = {"VGG-16": 3, "grokking": 100}
"""Optimiser steps per timing."""

CALLS = {"VGG-16": 1, "grokking": 10}
"""Snapshots per timing."""

REPEATS = 5

GROKKING: dict[str, Any] = {"modulus": 113, "weight_decay": 1.0, "betas": (0.9, 0.98)}
SMALL: dict[str, Any] = {**GROKKING, "modulus": 31, "width": 32, "feed_forward": 128}


def share(name: str, kind: str, *, device: str, quick: bool) -> dict[str, Any]:
    """Seconds per optimiser step, and per snapshot of each group alone and of all together."""
    network = build(name, quick=quick)
    given = weights(network, kind)
    now, before = (
        {key: value[None].to(device) for key, value in checkpoint.items()}
        for checkpoint in (given.now, given.final)
    )
    if name == "VGG-16":
        views, couplings = network.views, network.couplings
        step = _sgd(network, device, examples=16 if quick else 128)
    else:
        views, couplings, step = _grokking(device, quick=quick)
    chosen = {**{group: (group,) for group in EVERY_GROUP}, "all groups": EVERY_GROUP}
    snapshots = {
        label: _snapshot(views, couplings, now, before, groups) for label, groups in chosen.items()
    }
    repeats, steps, calls = (1, 1, 1) if quick else (REPEATS, STEPS[name], CALLS[name])
    for call in (step, *snapshots.values()):
        _seconds(call, device)  # what a first call sets up is not training's or measuring's cost
    found: dict[str, list[float]] = {label: [] for label in snapshots}
    training = []
    for _ in range(repeats):
        training.append(_seconds(step, device, steps))
        for label, call in snapshots.items():
            found[label].append(_seconds(call, device, calls))
    return {"step": training, "groups": found}


def _snapshot(
    views: Sequence[MatrixView],
    couplings: Sequence[Coupling],
    now: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    groups: Sequence[str],
) -> Callable[[], object]:
    """A snapshot that follows one of other weights, as all but the first do."""
    _, state = take_snapshot(views, before, groups, None, couplings=couplings)
    return lambda: take_snapshot(views, now, groups, state, couplings=couplings)


def _sgd(network: Network, device: str, *, examples: int) -> Callable[[], None]:
    """The paper's step in a bare loop, on random images that are already on the device."""
    module = network.module.to(device).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(examples, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(10, (examples,), generator=generator).to(device)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
        optimiser.step()

    return step


def _grokking(
    device: str, *, quick: bool
) -> tuple[list[MatrixView], list[Coupling], Callable[[], None]]:
    """All training pairs at every step, as a trial of `sweep run` has them."""
    config = ModularAddition.Config(**(SMALL if quick else GROKKING))
    task = ModularAddition([config])
    streams = make_streams([config], [0]).to(device)
    model, state = start(task, streams)
    # those across the residual stream, or of value and output head by head, are not in the paper's
    # figures
    declared = task.couplings(model)
    couplings = [c for c in declared if not (c.residual or c.per_head)]
    views = [view for view in task.views(model) if not view.on_demand]
    return views, couplings, lambda: train_step(task, model, state, streams)


def _seconds(call: Callable[[], object], device: str, calls: int = 1) -> float:
    """Seconds per call, with everything done on the device before and after."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        call()
    _wait(device)
    return (time.perf_counter() - began) / calls


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """One network on one device; print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=CADENCE)
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1 if given.quick else THREADS)
    found = {
        kind: share(given.name, kind, device=given.device, quick=given.quick)
        for kind in given.kinds
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
