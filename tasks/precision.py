"""Mixed precision: the forward pass in 16 bits, and a loss scale per trial for float16.

`precision: bfloat16` and `float16` run the model under `torch.autocast`: matrix products and
convolutions read 16-bit copies of their inputs, and which other operations run in which dtype is
torch's list for the device. Weights, moments, accumulated gradients and losses stay in float32:
what the model returns is cast to float32 before the task's loss sees it (autocast itself does that
for the logarithm of a softmax on a GPU, and not on a CPU).

float16 has a small range: gradients below 6e-8 become 0 and above 65504 infinite. So the loss is
scaled up before the backward pass and the gradient down after it, by a factor that is doubled after
2,000 good steps and halved after an overflow, whose step is skipped. Each trial of a group has its
own scale and skips its own steps, by tensor operations: nothing waits for the device.

Source: Micikevicius et al., "Mixed precision training", ICLR 2018; the constants are those of
`torch.amp.GradScaler`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tasks.task import Forward

AUTOCAST: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""The values of `precision` whose forward pass runs under autocast."""

INITIAL, GROWTH, BACKOFF, INTERVAL = 2.0**16, 2.0, 0.5, 2000
SMALLEST = 2.0**-14
"""A gradient that is not finite at a scale below this one has not overflowed: it diverged."""

Scaler = dict[str, Tensor]
"""`scale` float32 [K]; `good` int64 [K], steps since it last changed; `taken` int64 [K], steps that
were not skipped. Empty unless the precision is float16."""


LAYERS = frozenset(
    {
        F.linear,
        *(F.conv1d, F.conv2d, F.conv3d),
        *(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
    }
)
"""The functions with a bias that vmap takes apart before autocast sees them."""


class _CastLayers(TorchFunctionMode):
    """Casts the arguments of `LAYERS` as autocast does.

    torch (2.13) runs a layer under vmap as a product and a sum. Autocast casts the arguments of the
    product only, and 16 bits plus a float32 bias are float32: so would be every activation.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        if func in LAYERS:
            args = tuple(self._cast(value) for value in args)
            named = {name: self._cast(value) for name, value in named.items()}
        return func(*args, **named)

    def _cast(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.dtype == torch.float32:
            return value.to(self.dtype)
        return value


def exact_float32() -> None:
    """Make float32 mean float32 on a GPU, in this process.

    torch (2.13) lets cuDNN's convolutions and LSTMs round what they read to TF32, 10 bits of
    mantissa in place of 23; matrix products it leaves alone. The older of torch's two interfaces:
    after the newer one (`cudnn.conv.fp32_precision`), `torch.backends.cudnn.flags` raises.
    """
    torch.backends.cudnn.allow_tf32 = False


def forward_of(model: nn.Module, precision: str, device: torch.device, vmapped: bool) -> Forward:
    """How a task's loss and metrics run the model: itself, or under autocast.

    Under autocast every floating-point tensor that it returns, alone or in tuples, lists and dicts,
    is float32.

    Args:
        model: as it is trained.
        precision: one of the values of `TrainingConfig.precision`.
        device: where its parameters are.
        vmapped: whether it will run under vmap.
    """
    if precision not in AUTOCAST:
        return model
    dtype = AUTOCAST[precision]

    def forward(*inputs: Any, **named: Any) -> Any:
        # No cache of cast weights: it would hold what vmap wraps, and each is used once.
        with torch.autocast(device.type, dtype, cache_enabled=False):
            with _CastLayers(dtype) if vmapped else nullcontext():
                output = model(*inputs, **named)
        return _float32(output)

    return forward


def _float32(output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {name: _float32(value) for name, value in output.items()}
    if isinstance(output, tuple | list):
        cast = [_float32(value) for value in output]
        named = hasattr(output, "_fields")
        return type(output)(*cast) if named else type(output)(cast)
    return output


def new_scaler(precision: str, count: int, device: torch.device) -> Scaler:
    """The scaler of `count` trials at step 0."""
    if precision != "float16":
        return {}
    return {
        "scale": torch.full((count,), INITIAL, device=device),
        "good": torch.zeros(count, dtype=torch.int64, device=device),
        "taken": torch.zeros(count, dtype=torch.int64, device=device),
    }


def seed_of(scaler: Scaler, weight: Tensor, micro_batches: int) -> Tensor:
    """What the backward pass starts from, float32 [K]: the derivative by the losses' *sum*.

    scale / n, with n the weight of the whole step rounded down to a power of two: so the gradients
    on their way back are those of the scaled mean, as with GradScaler, up to a factor below 2. All
    micro-batches of a step have that of the first one. As every factor is a power of two, scaling
    and taking it back changes no bit of a gradient that neither under- nor overflows.

    Args:
        scaler: the group's.
        weight: [K], the weights of the first micro-batch.
        micro_batches: how many there are.
    """
    _, exponent = torch.frexp(weight.to(scaler["scale"]) * micro_batches)
    seed: Tensor = torch.ldexp(scaler["scale"], 1 - exponent)
    return seed


def update_scale_(scaler: Scaler, taken: Tensor) -> None:
    """After a step: `taken` is bool [K], False where the gradient was not finite."""
    good = scaler["good"].add_(1).mul_(taken)
    grown = scaler["scale"] * GROWTH
    grows = (good == INTERVAL) & torch.isfinite(grown)
    scale = torch.where(grows, grown, scaler["scale"])
    scaler["scale"].copy_(torch.where(taken, scale, scale * BACKOFF))
    good.masked_fill_(good == INTERVAL, 0)
    scaler["taken"].add_(taken)


def drop_overflows_(gradient: Tensor) -> Tensor:
    """Set the rows of a [K, P] gradient that are not finite to 0; bool [K], False for those."""
    # the largest absolute value: NaN and infinity come through, without a temporary of that size
    taken: Tensor = torch.linalg.vector_norm(gradient, torch.inf, dim=1).isfinite()
    gradient.masked_fill_(~taken[:, None], 0.0)
    return taken
