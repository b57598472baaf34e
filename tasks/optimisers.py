"""AdamW and SGD for K trials at once, each with its own hyper-parameters.

Parameters, gradients and moments of a trial lie side by side in one row of a [K, P] tensor, so an
update is a handful of elementwise operations whatever the model is. Every factor that depends on
the trial or the step is computed in float64 by plain Python and enters as a [K, 1] tensor: the
hyper-parameters may differ within the group, and a trial's factors are the same in any group.
The updates are torch's own (`torch.optim.AdamW`, `torch.optim.SGD`), rearranged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tasks.config import TrainingConfig

MOMENTS: dict[str, tuple[str, ...]] = {"adamw": ("first", "second"), "sgd": ("velocity",)}
"""Names of the [K, P] tensors that each optimiser keeps from step to step; all start at zero."""

CHUNK = 512  # steps whose factors are computed, and sent to the device, at once


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Learning rate of the optimiser step number `step`, counted from 0.

    With w = warmup: lr step / w for step < w; afterwards, with x = (step - w) / (steps - w), lr for
    the schedule constant, lr (1 - x) for linear and lr (1 + cos(pi x)) / 2 for cosine. So the first
    of w >= 1 warm-up steps has rate 0 and the last step of a decaying schedule is still above 0;
    there is no end: beyond `steps` a decaying schedule stays at 0.
    """
    if step < config.warmup:
        return config.lr * step / config.warmup
    if config.schedule == "constant":
        return config.lr
    x = min((step - config.warmup) / max(config.steps - config.warmup, 1), 1.0)
    return config.lr * (
        1.0 - x if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * x))
    )


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


def _sgd_factors(config: TrainingConfig, step: int) -> tuple[float, ...]:
    return config.weight_decay, config.momentum, -learning_rate(config, step)


class Optimiser:
    """The update rule of one group; holds no state of the trials but scratch memory.

    Args:
        configs: the K configurations; they agree in `optimizer` and `clip`.
    """

    def __init__(self, configs: Sequence[TrainingConfig]) -> None:
        self.configs = tuple(configs)
        self.kind = configs[0].optimizer
        self.clip = configs[0].clip
        self._chunk = -1
        self._table: Tensor = torch.empty(0)
        self._scratch: Tensor = torch.empty(0)

    def factors(self, step: int, like: Tensor) -> tuple[Tensor, ...]:
        """The rule's factors of one step, each [K, 1] with the dtype and device of `like`."""
        chunk, place = divmod(step, CHUNK)
        if chunk != self._chunk:
            rule = _adamw_factors if self.kind == "adamw" else _sgd_factors
            steps = range(chunk * CHUNK, (chunk + 1) * CHUNK)
            rows = [[rule(c, s) for c in self.configs] for s in steps]
            table = torch.tensor(rows, dtype=torch.float64).to(like.device, like.dtype)
            self._table = table.transpose(1, 2).unsqueeze(-1)  # [steps, factors, K, 1]
            self._chunk = chunk
        return self._table[place].unbind()

    def update_(
        self, parameters: Tensor, gradient: Tensor, moments: dict[str, Tensor], step: int
    ) -> None:
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
        """
        if self.clip is not None:
            _clip_(gradient, self.clip)
        factors = self.factors(step, parameters)
        if self.kind == "sgd":
            decay, momentum, minus_rate = factors
            velocity = moments["velocity"]
            gradient.addcmul_(parameters, decay)
            velocity.mul_(momentum).add_(gradient)
            parameters.addcmul_(velocity, minus_rate)
            return
        keep, weight1, weight2, small, minus_rate = factors
        first, second = moments["first"], moments["second"]
        if self._scratch.shape != gradient.shape:
            self._scratch = torch.empty_like(gradient)
        scratch = self._scratch
        first.lerp_(gradient, weight1)
        second.lerp_(torch.mul(gradient, gradient, out=scratch), weight2)
        torch.sqrt(second, out=scratch).add_(small)
        torch.div(first, scratch, out=scratch)
        parameters.mul_(keep).addcmul_(scratch, minus_rate)


def _clip_(gradient: Tensor, largest: float) -> None:
    """Scale each trial's gradient to a norm of at most `largest`, as torch.nn.utils does.

    g <- g min(1, largest / (|g| + 1e-6)), the norm over all parameters of the trial. The squares
    are summed row by row: the sum of one trial must not depend on how many others there are.
    """
    norms = torch.stack([torch.dot(row, row) for row in gradient]).sqrt_()
    gradient.mul_((largest / (norms + 1e-6)).clamp_(max=1.0)[:, None])
