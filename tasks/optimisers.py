"""AdamW and SGD for K trials at once, each with its own hyper-parameters.

Parameters, gradients and moments of a trial lie side by side in one row of a [K, P] tensor, so an
update is a handful of elementwise operations whatever the model is. Every factor that depends on
the trial or the step is computed in float64 by plain Python and enters as a [K, 1] tensor: the
hyper-parameters may differ within the group, and a trial's factors are the same in any group.
The updates are torch's own (`torch.optim.AdamW`, `torch.optim.SGD`), rearranged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tasks.config import TrainingConfig

MOMENTS: dict[str, tuple[str, ...]] = {"adamw": ("first", "second"), "sgd": ("velocity",)}
"""Names of the [K, P] tensors that each optimiser keeps from step to step; all start at zero."""

CHUNK = 512  # steps whose factors are computed, and sent to the device, at once

IN_CACHE = 2**16
"""Parameters that a CPU updates at once: with gradient and moments, a MiB in float32. A model of
some size does not fit a core's cache, and a step would read and write memory ten times over."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate of the optimiser step number `step`, counted from 0.

    With s = step - step % schedule_every, w = warmup and x = min((s - w) / d, 1), where the decay
    takes d = schedule_steps steps (none: steps - w) and leaves f = schedule_floor:

        s < w     lr s / w
        constant  lr
        linear    lr (f + (1 - f) (1 - x))
        cosine    lr (f + (1 - f) (1 + cos(pi x)) / 2)
        steps     lr gamma^n, n the number of milestones <= s

    So the first of w >= 1 warm-up steps has rate 0; without a schedule_steps the last step of a
    decay is still above its end, which the step after it would have. There is no end: beyond
    `steps` a decay stays at lr f.
    """
    step -= step % config.schedule_every
    if step < config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "steps":
        return config.lr * config.gamma ** sum(m <= step for m in config.milestones)
    length = config.schedule_steps or max(config.steps - config.warmup, 1)
    x = min((step - config.warmup) / length, 1.0)
    shape = 1.0 - x if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * x))
    return config.lr * (config.schedule_floor + (1.0 - config.schedule_floor) * shape)


def _adamw_factors(config: TrainingConfig, step: int) -> tuple[float, ...]:
    rate = learning_rate(config, step)
    beta1, beta2 = config.betas
    root = math.sqrt(1.0 - beta2 ** (step + 1))
    decay = 1.0 - rate * config.weight_decay
    return (
        decay,
        1.0 - beta1,
        1.0 - beta2,
        config.eps * root,
        -rate * root / (1 - beta1 ** (step + 1)),
    )


def _uncorrected_factors(config: TrainingConfig, step: int) -> tuple[float, ...]:
    rate = learning_rate(config, step)
    logs = (math.log(beta) if beta else -math.inf for beta in config.betas)
    decay = 1.0 - rate * config.weight_decay
    return decay, *(1.0 - beta for beta in config.betas), config.eps, -rate, *logs


def _sgd_factors(config: TrainingConfig, step: int) -> tuple[float, ...]:
    return config.weight_decay, config.momentum, -learning_rate(config, step)


class Steps(NamedTuple):
    """Which trials take a step that others skip; those that skip it keep every number they have.

    Attributes:
        taken: bool [K].
        before: int64 [K], how many steps each has taken so far: AdamW's bias correction counts
            these, as `torch.optim` does when `torch.amp.GradScaler` leaves steps out.
    """

    taken: Tensor
    before: Tensor


class Optimiser:
    """The update rule of one group; holds no state of the trials.

    Args:
        configs: the K configurations; they agree in `optimizer`, `clip` and `precision`.
    """

    def __init__(self, configs: Sequence[TrainingConfig]) -> None:
        self.configs = tuple(configs)
        self.kind = configs[0].optimizer
        self.clip = configs[0].clip
        self.rule = _sgd_factors
        if self.kind == "adamw":
            skips = configs[0].precision == "float16"
            self.rule = _uncorrected_factors if skips else _adamw_factors
        self._chunk = -1
        self._table: Tensor = torch.empty(0)

    def factors(self, step: int, like: Tensor) -> tuple[Tensor, ...]:
        """The rule's factors of one step, each [K, 1] with the dtype and device of `like`."""
        chunk, place = divmod(step, CHUNK)
        if chunk != self._chunk:
            steps = range(chunk * CHUNK, (chunk + 1) * CHUNK)
            rows = [[self.rule(c, s) for c in self.configs] for s in steps]
            dtype = torch.float64 if self.rule is _uncorrected_factors else like.dtype
            table = torch.tensor(rows, dtype=torch.float64).to(like.device, dtype)
            self._table = table.transpose(1, 2).unsqueeze(-1)  # [steps, factors, K, 1]
            self._chunk = chunk
        return self._table[place].unbind()

    def _factors_of_some(self, step: int, like: Tensor, steps: Steps) -> tuple[Tensor, ...]:
        """Likewise; those of a trial that skips the step change nothing, given a gradient of 0."""
        factors = self.factors(step, like)
        taken = steps.taken[:, None]
        if self.kind == "sgd":
            decay, momentum, minus_rate = factors
            return decay * taken, torch.where(taken, momentum, 1.0), minus_rate * taken
        keep, weight1, weight2, eps, minus_rate, log1, log2 = factors
        # b^t as exp(t ln b): torch's pow rounds differently at the end of an array
        number = steps.before[:, None] + 1
        root = torch.sqrt(1.0 - torch.exp(log2 * number))
        minus_rate = minus_rate * root / (1.0 - torch.exp(log1 * number))
        neutral = torch.where(taken, keep, 1.0), weight1 * taken, weight2 * taken
        return tuple(f.to(like.dtype) for f in (*neutral, eps * root, minus_rate * taken))

    def update_(
        self,
        parameters: Tensor,
        gradient: Tensor,
        moments: dict[str, Tensor],
        step: int,
        steps: Steps | None = None,
    ) -> Tensor:
        """One step, in place.

        AdamW, t = step + 1: p <- (1 - lr wd) p; m <- b1 m + (1 - b1) g; v <- b2 v + (1 - b2) g²;
        p <- p - lr m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps). With c = sqrt(1 - b2^t) the last
        is p - [lr c / (1 - b1^t)] m / (sqrt(v) + eps c): two factors instead of four.
        SGD: g <- g + wd p; b <- mu b + g; p <- p - lr b.

        Args:
            parameters: [K, P].
            gradient: [K, P]; is overwritten.
            moments: one [K, P] tensor per name in `MOMENTS`.
            step: the step's number, from 0; decides bias correction and learning rate.
            steps: which trials skip this step (float16); their rows of the gradient are 0.

        Returns:
            [K]: 0 for a trial whose parameters are finite, else NaN: 0 times anything finite is 0.
        """
        if self.clip is not None:
            _clip_(gradient, self.clip)
        if steps is None:
            factors = self.factors(step, parameters)
        else:
            factors = self._factors_of_some(step, parameters, steps)
        tensors = (parameters, gradient, *moments.values())
        finite = None
        for part in _parts(tensors):
            if self.kind == "sgd":
                _sgd_(*part, *factors)
            else:
                _adamw_(*part, *factors)
            zeros = torch.mul(part[0], 0.0, out=part[1]).sum(1)
            finite = zeros if finite is None else finite.add_(zeros)
        assert finite is not None
        return finite


def _parts(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The same columns of each [K, P] tensor, few enough on a CPU to stay in its cache."""
    rows, columns = tensors[0].shape
    most = columns if tensors[0].device.type != "cpu" else max(1, IN_CACHE // rows)
    for begin in range(0, columns, most):
        yield tuple(tensor[:, begin : begin + most] for tensor in tensors)


def _sgd_(
    parameters: Tensor,
    gradient: Tensor,
    velocity: Tensor,
    decay: Tensor,
    momentum: Tensor,
    minus_rate: Tensor,
) -> None:
    gradient.addcmul_(parameters, decay)
    velocity.mul_(momentum).add_(gradient)
    parameters.addcmul_(velocity, minus_rate)


def _adamw_(
    parameters: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    keep: Tensor,
    weight1: Tensor,
    weight2: Tensor,
    small: Tensor,
    minus_rate: Tensor,
) -> None:
    first.lerp_(gradient, weight1)
    second.lerp_(gradient.mul_(gradient), weight2)
    scratch = torch.sqrt(second, out=gradient).add_(small)
    torch.div(first, scratch, out=scratch)
    parameters.mul_(keep).addcmul_(scratch, minus_rate)


def _clip_(gradient: Tensor, largest: float) -> None:
    """Scale each trial's gradient to a norm of at most `largest`, as torch.nn.utils does.

    g <- g min(1, largest / (|g| + 1e-6)), the norm over all parameters of the trial. The squares
    are summed row by row: the sum of one trial must not depend on how many others there are.
    """
    norms = torch.stack([torch.dot(row, row) for row in gradient]).sqrt_()
    gradient.mul_((largest / (norms + 1e-6)).clamp_(max=1.0)[:, None])
