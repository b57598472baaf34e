"""Diffusion: images that become noise in T = 1,000 steps, and the way back."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from tasks.random import Streams
from tasks.task import Forward

TIME_STEPS = 1000
"""T: levels of noise, from 0 (nearly none) to 999."""

# Step of the `noise` stream from which `sample` draws, beyond all that training can reach.
_SAMPLING = 2**41


@functools.cache
def kept_part(device: torch.device) -> Tensor:
    """a_t = (1 - b_0) ... (1 - b_t): the share of the image in the noisy image's variance.

    b_t = 1e-5 + (5e-3 - 1e-5) sigmoid(x_t) with x_t evenly from -6 to 6. The last, a_999, is 0.08:
    even the noisiest image keeps something of the image.

    Args:
        device: where the result lies; shared, so not to be written to.

    Returns:
        float64 [T], falling, in (0, 1).

    Source: Yunis et al., arXiv 2408.11804 (their code).
    """
    steepness = torch.linspace(-6.0, 6.0, TIME_STEPS, dtype=torch.float64, device="cpu")
    added = 1e-5 + (5e-3 - 1e-5) * torch.sigmoid(steepness)
    return torch.cumprod(1.0 - added, 0).to(device)


def noised(clean: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    """sqrt(a_t) clean + sqrt(1 - a_t) noise, with a_t of `kept_part`.

    Args:
        clean: [n, C, S, S], floating point.
        time: int64 [n], each in 0..999.
        noise: as `clean`.

    Returns:
        as `clean`.
    """
    kept = kept_part(clean.device)[time][:, None, None, None]
    return kept.sqrt().to(clean.dtype) * clean + (1.0 - kept).sqrt().to(clean.dtype) * noise


def noise_of(keys: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Standard normal numbers that are a function of the keys.

    Args:
        keys: int64 [n], >= 0.
        shape: of the numbers that belong to one key.
        dtype: of the result.

    Returns:
        [n, *shape], on the keys' device.
    """
    return _of_examples(len(keys), keys.device).normal("noise", keys, shape, dtype)


@functools.lru_cache(maxsize=16)
def _of_examples(count: int, device: torch.device) -> Streams:
    """Streams with an example in the place of a trial: its key is given as the step."""
    return Streams([0] * count).to(device)


def sample(
    model: Forward,
    streams: Streams,
    count: int,
    *,
    steps: int = TIME_STEPS,
    size: int = 28,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """New images, by going back from pure noise through falling times (ancestral sampling).

    From x at time t to time s < t, with a the kept part and r = a_t / a_s:

        x <- (x - (1 - r) / sqrt(1 - a_t) model(x, t)) / sqrt(r) + v z

    with z standard normal and v² = (1 - r) (1 - a_s) / (1 - a_t). The beginning is an
    approximation: at t = 999 the schedule keeps 8 % of the image's variance, the start has nothing
    of an image.

    Args:
        model: predicts the noise of images [count, 1, size, size] at times int64 [count].
        streams: of one trial; a function of its `noise` stream, apart from that of training.
        count: how many images.
        steps: calls of the model, 2..1000; fewer are faster and coarser.
        size: pixels per side.
        dtype: of the images; that of the model.

    Returns:
        [count, 1, size, size], normalised as the training images are: times the data set's
        standard deviation and plus its mean, pixels are about 0 to 1.

    Raises:
        ValueError: steps is not in 2..1000, or the streams are not of one trial.

    Source: Ho, Jain & Abbeel, "Denoising diffusion probabilistic models", NeurIPS 2020, with the
    posterior variance, and with the times respaced as in Nichol & Dhariwal, ICML 2021.
    """
    if not 2 <= steps <= TIME_STEPS:
        raise ValueError(f"steps must be in 2..{TIME_STEPS}, got {steps}")
    if len(streams) != 1:
        raise ValueError(f"sample draws from the streams of one trial, got {len(streams)}")
    shape = (count, 1, size, size)
    times = torch.linspace(TIME_STEPS - 1, 0, steps, dtype=torch.float64).round().long().tolist()
    kept = [*kept_part(torch.device("cpu"))[times].tolist(), 1.0]
    x = streams.normal("noise", _SAMPLING, shape, dtype)[0]
    with torch.no_grad():
        for turn, time in enumerate(times):
            a, next_a = kept[turn], kept[turn + 1]
            ratio = a / next_a
            now = torch.full((count,), time, device=x.device)
            x = (x - (1 - ratio) / math.sqrt(1 - a) * model(x, now)) / math.sqrt(ratio)
            if turn < steps - 1:
                spread = math.sqrt((1 - ratio) * (1 - next_a) / (1 - a))
                x = x + spread * streams.normal("noise", _SAMPLING + 1 + turn, shape, dtype)[0]
    return x
