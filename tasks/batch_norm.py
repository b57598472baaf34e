"""Evaluation of pruned weights: BatchNorm's statistics re-estimated for them, as in the paper.

The running mean and variance of a trained model are those of the activations that its own weights
make. Pruned weights make others, so a pruned model is evaluated with statistics of its own; the
trained model keeps what training left behind. GroupNorm and LayerNorm have no statistics to keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.mapping import modes_kept
from tasks.random import Streams
from tasks.state import GroupState
from tasks.task import Task
from tasks.training import chosen, eval_slices, evaluate, program_of

__all__ = ["evaluate_pruned", "reestimate"]

TRAIN_SPLIT = "train"


def evaluate_pruned(
    task: Task,
    model: nn.Module,
    state: GroupState,
    streams: Streams,
    parameters: Mapping[str, Tensor],
) -> dict[tuple[str, str], Tensor]:
    """`evaluate` of other (pruned) parameters, with BatchNorm statistics re-estimated for them.

    The data, and the noise in them, are those that the full model is evaluated on. Nothing in
    `state` or `model` changes.

    Args:
        task: what is trained.
        model: the skeleton that `tasks.start` returned.
        state: the group's state.
        streams: the group's.
        parameters: name -> [K, ...], as in `state.parameters`; not modified.

    Returns:
        (split, metric) -> float64 [K], on the device.

    Raises:
        ValueError: as `reestimate` does.

    Source: Yunis et al., arXiv 2408.11804 (their code).
    """
    buffers = reestimate(task, model, state, streams, parameters)
    return evaluate(task, model, state, streams, parameters=parameters, buffers=buffers)


def reestimate(
    task: Task,
    model: nn.Module,
    state: GroupState,
    streams: Streams,
    parameters: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The group's buffers with BatchNorm's running statistics of these parameters.

    One pass over the training split in the slices and the order of `evaluate`. The i-th time
    (i = 0, 1, ...) that a layer runs, its statistics are moved by 1 / (i + 1) towards those of the
    slice, which makes them the plain mean over the slices of the mean and of the unbiased variance;
    the last slice counts like the others, however short. A last slice of a single example, whose
    variance is not defined, joins the one before. Only BatchNorm layers are in train mode (Dropout
    stays off); those without running statistics are left as they are.

    Args:
        task: what is trained; it needs a split named ``train`` if the model has BatchNorm.
        model: the skeleton; its buffers, modes and momenta are as before afterwards, also if the
            task's code raises.
        state: the group's state; not modified.
        streams: the group's.
        parameters: name -> [K, ...], as in `state.parameters`; not modified.

    Returns:
        name -> [K, ...]: new tensors for BatchNorm's statistics (and how many slices they are
        of), the state's own for all others, and for all if the model has no BatchNorm; no forward
        pass is made then.

    Raises:
        ValueError: names or shapes of the parameters are not those of the state, or the task has
            no split ``train``.

    Source: Yunis et al., arXiv 2408.11804 (their code): one pass with momentum None.
    """
    values = chosen("parameters", parameters, state.parameters)
    layers, names = _batch_norms(model, state.buffers)
    if not layers:
        return dict(state.buffers)
    if TRAIN_SPLIT not in task.splits:
        raise ValueError(
            f"task {task.name} has no split {TRAIN_SPLIT!r} to re-estimate BatchNorm's statistics "
            f"over; it has {', '.join(task.splits)}"
        )
    program = program_of(task, model, state)
    # clones of all: a layer with a counter of its own might write to it even in eval mode
    fresh = {name: buffer.clone() for name, buffer in state.buffers.items()}
    for name in names:
        fresh[name].zero_()  # the first run has momentum 1, but 0 times a NaN is none
    data = program.data_of(TRAIN_SPLIT, streams)
    slices = eval_slices(task, data)
    examples = next(iter(data.values())).shape[1]
    if len(slices) > 1 and examples - slices[-1].start == 1:
        slices[-2:] = [slice(slices[-2].start, examples)]
    # trials that run one by one make their passes one after the other: a layer counts its own
    trials = [slice(None)] if task.stackable else [slice(k, k + 1) for k in range(len(state))]
    with modes_kept(model), torch.no_grad():
        model.eval()
        for layer in layers:
            layer.training = True
        for own in trials:
            with _averaging(layers):
                for some in slices:
                    program.evaluate(
                        [p[own] for p in values],
                        [b[own] for b in fresh.values()],
                        {name: t[own, some] for name, t in data.items()},
                    )
    return {**state.buffers, **{name: fresh[name] for name in names}}


def _batch_norms(
    model: nn.Module, buffers: Mapping[str, Tensor]
) -> tuple[list[_BatchNorm], list[str]]:
    """The layers with running statistics of their own among `buffers`, and those buffers' names."""
    named = {id(t): name for name, t in model.named_buffers() if name in buffers}
    layers, names = [], []
    for module in model.modules():
        if not isinstance(module, _BatchNorm):
            continue
        statistics = (module.running_mean, module.running_var, module.num_batches_tracked)
        own = [named[id(t)] for t in statistics if t is not None and id(t) in named]
        if own:
            layers.append(module)
            names += own
    return layers, names


@contextmanager
def _averaging(layers: list[_BatchNorm]) -> Iterator[None]:
    """Each layer's momentum is 1 over the number of times it has run in here; as before afterwards.

    `momentum=None` means the same to torch, but reads a tensor's value for it: not under vmap.
    """
    momenta = [layer.momentum for layer in layers]
    runs = dict.fromkeys(layers, 0)

    def count(layer: nn.Module, _inputs: Any) -> None:
        assert isinstance(layer, _BatchNorm)
        runs[layer] += 1
        layer.momentum = 1.0 / runs[layer]

    hooks = [layer.register_forward_pre_hook(count) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
