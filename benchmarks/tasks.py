"""Optimiser steps of each task beside a bare torch loop of the same model and data."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.bare import answer, environment_of_a_worker
from benchmarks.figures import Figure, Report

Step = Callable[[int], None]

LEAST_SLOWER = 1.10
"""The claim: ours takes at most so many times the bare loop's time."""


@dataclass(frozen=True)
class Setting:
    """One model and its data.

    Attributes:
        label: in the table.
        task: a registered name.
        fields: of its configuration.
        steps: timed at once.
        group: trials of a stackable task that are trained together, beside one alone.
    """

    label: str
    task: str
    fields: dict[str, Any] = field(default_factory=dict)
    steps: int = 20
    group: int = 1


_SMALL_LM = {
    "context": 32,
    "width": 64,
    "heads": 4,
    "feed_forward": 64,
    "layers": 3,
    "batch_size": 16,
}
SETTINGS = {
    "addition": Setting(
        "modular addition, p = 31, width 64",
        "modular_addition",
        {
            "modulus": 31,
            "train_fraction": 0.7,
            "width": 64,
            "feed_forward": 128,
            "positions": "learned",
        },
        40,
        group=4,
    ),
    "addition_paper": Setting(
        "modular addition, p = 113 (paper)", "modular_addition", {}, 4, group=4
    ),
    "mlp": Setting(
        "MLP on digits, 3 hidden layers of 128",
        "image_classification",
        {"model": "mlp", "hidden": 128, "optimizer": "sgd", "momentum": 0.9},
        60,
        group=4,
    ),
    "mlp_paper": Setting(
        "MLP on 32 x 32, 3 hidden layers of 256 (paper)",
        "image_classification",
        {"model": "mlp", "image_size": 32, "optimizer": "sgd", "momentum": 0.9},
        30,
        group=4,
    ),
    "vgg": Setting(
        "VGG-16, an eighth of its width, batch 32",
        "image_classification",
        {"channels": 8, "batch_size": 32, "optimizer": "sgd", "momentum": 0.9},
        8,
    ),
    "vgg_paper": Setting(
        "VGG-16, batch 32 (paper: 128)",
        "image_classification",
        {"batch_size": 32, "optimizer": "sgd", "momentum": 0.9},
        2,
    ),
    "unet": Setting(
        "UNet, a quarter of its width, 20 x 20, batch 32",
        "image_generation",
        {
            "image_size": 20,
            "channels": (16, 32, 64, 64),
            "groups": 8,
            "time_width": 64,
            "batch_size": 32,
        },
        10,
    ),
    "unet_paper": Setting("UNet (paper)", "image_generation", {}, 2),
    "lstm": Setting(
        "LSTM, 2 layers of 64, batch 32",
        "speech_recognition",
        {"max_words": 2, "hidden": 64, "layers": 2},
        8,
    ),
    "lstm_paper": Setting("LSTM, 4 layers of 256 (paper)", "speech_recognition", {}, 2),
    "lm": Setting("Transformer, 3 layers of 64, batch 16", "language_modeling", _SMALL_LM, 20),
    "lm_paper": Setting(
        "Transformer, 12 layers of 768 (paper), context 128, batch 4",
        "language_modeling",
        {"context": 128, "batch_size": 4},
        2,
    ),
}


def measure(*, quick: bool) -> Report:
    """Each setting in a process of its own, in which ours and the bare loop take turns."""
    repeats = 3 if quick else 9
    figures, raw = [], {}
    for name, setting in SETTINGS.items():
        times = _child(name, repeats)
        raw[name] = times
        alone = [o / b for o, b in zip(times["alone"], times["bare"], strict=True)]
        noise = _noise(times["bare"])
        claim = LEAST_SLOWER if setting.group == 1 else None
        figures.append(Figure(f"{setting.label}: alone / bare", "", alone, most=claim, noise=noise))
        if setting.group > 1:
            together = [o / b for o, b in zip(times["together"], times["bare"], strict=True)]
            label = f"{setting.label}: per trial in a group of {setting.group} / bare"
            figures.append(Figure(label, "", together, most=LEAST_SLOWER, noise=noise))
        bare = [1000 * b for b in times["bare"]]
        figures.append(Figure(f"{setting.label}: a step of the bare loop", "ms", bare))
    return Report("tasks", quick, figures, raw=raw)


def _noise(bare: Sequence[float]) -> float:
    """Half the range between the quartiles of equal bare runs, as a part of their median."""
    low, median, high = statistics.quantiles(bare, n=4)
    return (high - low) / 2 / median


def _child(name: str, repeats: int) -> dict[str, list[float]]:
    asked = (name, f"--repeats={repeats}")
    times: dict[str, list[float]] = answer(
        "benchmarks.tasks", *asked, environment=environment_of_a_worker()
    )
    return times


def time_setting(setting: Setting, repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds per step and trial, one entry per repeat: bare, alone, and together in a group."""
    import torch

    from benchmarks import tasks_bare
    from tasks.precision import exact_float32

    torch.set_num_threads(1)
    if device != "cpu":
        exact_float32()  # as a trial does
    steps = {
        "bare": (tasks_bare.loop(setting.task, setting.fields, device), 1),
        "alone": (_ours(setting, 1, device), 1),
    }
    if setting.group > 1:
        steps["together"] = (_ours(setting, setting.group, device), setting.group)
    done = dict.fromkeys(steps, 0)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, (step, trials) in steps.items():
            _wait(device)
            began = time.perf_counter()
            for _ in range(setting.steps):
                step(done[name])
                done[name] += 1
            _wait(device)
            if repeat:  # the first round warms up
                seconds = (time.perf_counter() - began) / setting.steps
                times[name].append(seconds / trials)
    return times


def _wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def _ours(setting: Setting, group: int, device: str) -> Step:
    from tasks import make_streams, resolve, start, train_step

    kind = resolve(setting.task)
    configs = [kind.Config(**setting.fields, steps=10**6) for _ in range(group)]
    task = kind(configs)
    streams = make_streams(configs, range(group)).to(device)
    model, state = start(task, streams)
    return lambda _: train_step(task, model, state, streams)


def main() -> None:
    """One setting, as JSON on the last line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks")
    parser.add_argument("name", choices=SETTINGS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    given = parser.parse_args()
    os.environ.update(environment_of_a_worker())
    print(json.dumps(time_setting(SETTINGS[given.name], given.repeats, given.device)))


if __name__ == "__main__":
    main()
