"""Training of a group of K >= 1 trials of equal shape: start, one step, evaluation.

The parameters of the group lie in one [K, P] tensor, a trial per row; the model sees views of it.
A step maps the task's loss over the trials (`torch.vmap`), takes one ordinary gradient of the
summed losses and updates all rows at once. A trial alone is K = 1 on the same path: with one
thread and MKL_CBWR=AVX2,STRICT its numbers are the same bits in any group. A task that is not
stackable runs trial by trial behind the same functions.

Nothing here waits for a device, if the task makes its weights there (`tasks.losses.number_of`): the
first non-finite step is found by tensor operations and read by whoever has to synchronise anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tasks.config import FullBatchConfig, PerTrial, TrainingConfig, per_trial_fields
from tasks.mapping import Mapped, Mapper, filled, modes_kept, one_by_one, slots_of
from tasks.mapping import vmap as _vmap
from tasks.optimisers import MOMENTS, Optimiser, Steps
from tasks.precision import (
    SMALLEST,
    drop_overflows_,
    forward_of,
    new_scaler,
    seed_of,
    update_scale_,
)
from tasks.random import STREAMS, Streams
from tasks.state import GroupState, views_of
from tasks.task import Batch, Task

__all__ = [
    "FullBatchConfig",
    "GroupState",
    "PerTrial",
    "TrainingConfig",
    "evaluate",
    "make_streams",
    "per_trial_fields",
    "start",
    "train_step",
]


def make_streams(configs: Sequence[TrainingConfig], seeds: Sequence[int]) -> Streams:
    """The streams of a group: trial k draws from seeds[k] unless its `<stream>_seed` says else."""
    fixed = {name: [getattr(c, f"{name}_seed") for c in configs] for name in STREAMS}
    return Streams(seeds, {n: v for n, v in fixed.items() if any(s is not None for s in v)})


def start(task: Task, streams: Streams) -> tuple[nn.Module, GroupState]:
    """Build the group's K models at step 0.

    Returns:
        The model's skeleton, a module of the right structure, precision and device that
        `train_step`, `evaluate` and `task.views` need (its own parameters are trial 0's at step 0
        and do not train), and the state.

    Raises:
        ValueError: the streams are not of as many trials as the task.
    """
    if len(streams) != len(task.configs):
        raise ValueError(f"{len(streams)} seeds for {len(task.configs)} configurations")
    # Constructors of torch's layers draw from the global generator; leave it as it was.
    with torch.random.fork_rng(devices=[]):
        models = [task.build(streams[k]) for k in range(len(streams))]
    models = [model.to(streams.device, task.config.dtype) for model in models]
    named = [dict(model.named_parameters()) for model in models]
    shapes = {name: p.shape for name, p in named[0].items()}
    size = sum(shape.numel() for shape in shapes.values())
    flat = torch.zeros(len(models), size, dtype=task.config.dtype, device=streams.device)
    parameters = views_of(flat, shapes)
    for name, target in parameters.items():
        target.copy_(torch.stack([own[name].detach() for own in named]))
    buffers = {
        name: torch.stack([dict(model.named_buffers())[name] for model in models])
        for name in models[0].state_dict()
        if name not in shapes and isinstance(dict(models[0].named_buffers()).get(name), Tensor)
    }
    moments = {name: torch.zeros_like(flat) for name in MOMENTS[task.config.optimizer]}
    first_bad = torch.full((len(models),), -1, dtype=torch.int64, device=streams.device)
    scaler = new_scaler(task.config.precision, len(models), streams.device)
    return models[0], GroupState(0, parameters, buffers, moments, first_bad, flat, scaler)


class Program:
    """What a group's steps reuse: the mapped loss, the leaves of the gradient, scratch memory."""

    def __init__(self, task: Task, model: nn.Module, state: GroupState) -> None:
        self.task, self.model = task, model
        precision, device = task.config.precision, state.flat.device
        self.forward = forward_of(model, precision, device, vmapped=task.stackable)
        self.optimiser = Optimiser(task.configs)
        self.slots = slots_of(model, [*state.parameters, *state.buffers])
        # They share memory with `flat`, so they hold the newest values without being copied to.
        self.leaves = [p.detach().requires_grad_() for p in state.parameters.values()]
        self.buffers = list(state.buffers.values())
        self.gradient = torch.zeros_like(state.flat)
        shapes = {name: p.shape[1:] for name, p in state.parameters.items()}
        self.places = list(views_of(self.gradient, shapes).values())
        self.loss = self._of_group(task.loss, _vmap if task.stackable else one_by_one)
        self.evaluate = self._of_group(task.evaluate, torch.vmap if task.stackable else one_by_one)
        self.eval_data: tuple[Streams | None, dict[str, Batch]] = (None, {})

    def _of_group(self, of_one: Callable[[Any, Batch], Any], over: Mapper) -> Mapped:
        """`of_one(forward, data)` for K trials: (parameters, buffers, data) with leading K."""

        def of_trial(parameters: list[Tensor], buffers: list[Tensor], data: Batch) -> Any:
            with filled(self.slots, [*parameters, *buffers]):
                return of_one(self.forward, data)

        return over(of_trial)

    def data_of(self, split: str, streams: Streams) -> Batch:
        """The split's data, computed once as long as the streams are the same."""
        if self.eval_data[0] is not streams:
            self.eval_data = (streams, {})
        known = self.eval_data[1]
        if split not in known:
            known[split] = self.task.eval_data(streams, split)
        return known[split]

    def gather(self, gradients: Sequence[Tensor], divisor: Tensor) -> Tensor:
        """The gradients, over each trial's divisor, as `flat` is laid out, in scratch memory."""
        if self.gradient.device.type != "cpu":
            rows = [g.reshape(g.shape[0], -1) for g in gradients]
            return torch.cat(rows, dim=1, out=self.gradient).div_(divisor[:, None])
        for place, gradient in zip(self.places, gradients, strict=True):
            over = divisor.view(-1, *(1,) * (gradient.dim() - 1))
            if gradient.dim() == 3 and not gradient.is_contiguous():
                # of x W^T under vmap: transposed. torch copies blocks of two dimensions, and of
                # three entry by entry.
                for own, row in zip(place, gradient, strict=True):
                    own.copy_(row)
                place.div_(over)
            else:
                torch.div(gradient, over, out=place)
        return self.gradient


def program_of(task: Task, model: nn.Module, state: GroupState) -> Program:
    program: Program | None = state.program
    if program is None or program.task is not task or program.model is not model:
        program = state.program = Program(task, model, state)
    return program


def train_step(task: Task, model: nn.Module, state: GroupState, streams: Streams) -> None:
    """One optimiser step for all K trials, in place; `state.step` goes up by one.

    The gradient is that of (sum over micro-batches of the losses' sums) / (sum of their weights).
    A trial whose loss or parameters become non-finite is marked in `state.first_bad` and goes on;
    its companions are not affected. With float16 a trial whose gradient is not finite skips the
    step: its parameters and moments stay as they are, its loss scale is halved (`tasks.precision`).
    That is no divergence, unless the scale is so small already that nothing can have overflowed.
    """
    program = program_of(task, model, state)
    if not model.training:
        model.train()
    total: Tensor | None = None
    weight: Tensor | None = None
    for micro in range(task.config.micro_batches):
        batch = task.batch(streams, state.step, micro)
        part, part_weight = program.loss(program.leaves, program.buffers, batch)
        if weight is None:
            seed = torch.ones_like(part)
            if state.scaler:
                seed = seed_of(state.scaler, part_weight, task.config.micro_batches)
        gradients = torch.autograd.grad(part, program.leaves, seed, materialize_grads=True)
        with torch.no_grad():
            if total is None or weight is None:
                total, weight = part.detach(), part_weight.detach()
                summed = list(gradients)
            else:
                total, weight = total + part.detach(), weight + part_weight.detach()
                torch._foreach_add_(summed, gradients)
    assert total is not None
    assert weight is not None
    with torch.no_grad():
        divisor = weight.to(state.flat)
        if state.scaler:
            divisor = divisor * seed
        gradient = program.gather(summed, divisor)
        steps: Steps | None = None
        if state.scaler:
            steps = Steps(drop_overflows_(gradient), state.scaler["taken"])
        probe = program.optimiser.update_(state.flat, gradient, state.optimizer, state.step, steps)
        state.step += 1
        bad = probe + total * 0.0 != 0.0
        if steps is not None:
            bad |= ~steps.taken & (state.scaler["scale"] < SMALLEST)
            update_scale_(state.scaler, steps.taken)
        state.first_bad.masked_fill_(bad & (state.first_bad < 0), state.step)


def evaluate(
    task: Task,
    model: nn.Module,
    state: GroupState,
    streams: Streams,
    *,
    parameters: Mapping[str, Tensor] | None = None,
    buffers: Mapping[str, Tensor] | None = None,
) -> dict[tuple[str, str], Tensor]:
    """Every metric on every split, with the group's parameters as they are, or with others.

    Sums and weights are added over slices of the examples in float64 and divided once. The model
    runs in eval mode and is left in the modes it was in; nothing in `state` changes.

    Args:
        task: what is trained.
        model: the skeleton that `start` returned.
        state: the group's state.
        streams: the group's; the data are a function of them, so other parameters see the same.
        parameters: name -> [K, ...], used in place of the state's; not modified.
        buffers: likewise in place of the state's persistent buffers.

    Returns:
        (split, metric) -> float64 [K], on the device.

    Raises:
        ValueError: names or shapes of `parameters` or `buffers` are not those of the state.
    """
    program = program_of(task, model, state)
    values = chosen("parameters", parameters, state.parameters)
    others = chosen("buffers", buffers, state.buffers)
    results: dict[tuple[str, str], Tensor] = {}
    with modes_kept(model), torch.no_grad():
        model.eval()
        for split in task.splits:
            data = program.data_of(split, streams)
            for metric, (total, weight) in _summed(program, values, others, data).items():
                results[split, metric] = total / weight
    return results


def chosen(
    kind: str, given: Mapping[str, Tensor] | None, own: Mapping[str, Tensor]
) -> list[Tensor]:
    """The tensors to run with, in the order of `own`: those given, if they fit, or its own.

    Raises:
        ValueError: names or shapes do not fit.
    """
    if given is None:
        return list(own.values())
    if given.keys() != own.keys():
        odd = ", ".join(sorted(given.keys() ^ own.keys()))
        raise ValueError(f"the {kind} to run with are not those of this model; unmatched: {odd}")
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            raise ValueError(
                f"{kind} to run with, {name}: expected {list(tensor.shape)}, "
                f"got {list(given[name].shape)}"
            )
    return [given[name] for name in own]


def eval_slices(task: Task, data: Batch) -> list[slice]:
    """The examples that go through the model together, in order."""
    examples, chunk = next(iter(data.values())).shape[1], task.eval_chunk
    return [slice(begin, begin + chunk) for begin in range(0, examples, chunk)]


def _summed(
    program: Program, parameters: list[Tensor], buffers: list[Tensor], data: Batch
) -> dict[str, tuple[Tensor, Tensor]]:
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for some in eval_slices(program.task, data):
        found = program.evaluate(parameters, buffers, {n: t[:, some] for n, t in data.items()})
        for metric, (total, weight) in found.items():
            before = sums.get(metric, (0.0, 0.0))
            weight = weight.to(total.device, torch.float64)
            sums[metric] = (before[0] + total.double(), before[1] + weight)
    return sums
