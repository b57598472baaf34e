"""A function of one model, mapped over the trials of a group: under vmap, or one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tasks.task import Batch

Mapped = Callable[[list[Tensor], list[Tensor], Batch], Any]
"""A function of parameters, buffers and data: of one trial, or all with a leading dimension K."""

Mapper = Callable[[Mapped], Mapped]
Slots = list[list[tuple[dict[str, Any], str]]]


def slots_of(model: nn.Module, names: Sequence[str]) -> Slots:
    """For each name, every place in the modules' own dictionaries that holds that tensor.

    A tied parameter has one name and several places. Writing to the dictionaries is what
    `torch.func.functional_call` does too, at ten times the cost per step.
    """
    owners = [
        (store, key, tensor)
        for module in model.modules()
        for store in (module._parameters, module._buffers)
        for key, tensor in store.items()
        if tensor is not None
    ]
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return [[(s, key) for s, key, tensor in owners if tensor is own[name]] for name in names]


@contextmanager
def filled(slots: Slots, values: Sequence[Tensor]) -> Iterator[None]:
    """The model with these tensors in the places of its own."""
    kept = [[store[key] for store, key in places] for places in slots]
    try:
        for places, value in zip(slots, values, strict=True):
            for store, key in places:
                store[key] = value
        yield
    finally:
        for places, before in zip(slots, kept, strict=True):
            for (store, key), value in zip(places, before, strict=True):
                store[key] = value


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode, train or eval, that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def vmap(of_trial: Mapped) -> Mapped:
    """`torch.vmap` for a function that returns two tensors, without the handling of arguments.

    These are the calls that torch.vmap (2.13) ends up making. It takes nested containers apart and
    together again on the way, which costs 150 microseconds a step, more than a small model.
    """
    torch.vmap(torch.neg)(torch.zeros(1))  # loads the batching rules that are written in Python
    functorch = torch._C._functorch

    def of_group(parameters: list[Tensor], buffers: list[Tensor], data: Batch) -> Any:
        size = parameters[0].shape[0]
        level = functorch._vmap_increment_nesting(size, "error")
        try:
            first, second = of_trial(
                [functorch._add_batch_dim(p, 0, level) for p in parameters],
                [functorch._add_batch_dim(b, 0, level) for b in buffers],
                {name: functorch._add_batch_dim(t, 0, level) for name, t in data.items()},
            )
            return (
                functorch._remove_batch_dim(first, level, size, 0),
                functorch._remove_batch_dim(second, level, size, 0),
            )
        finally:
            functorch._vmap_decrement_nesting()

    return of_group


def one_by_one(of_trial: Mapped) -> Mapped:
    """What `torch.vmap` does, as a loop: for layers without a batching rule."""

    def of_group(parameters: list[Tensor], buffers: list[Tensor], data: Batch) -> Any:
        # Backwards, `unbind` is one stack for all trials; p[k] is zeros of the size of p for each.
        results = [
            of_trial(list(own), [b[k] for b in buffers], {n: t[k] for n, t in data.items()})
            for k, own in enumerate(zip(*(p.unbind(0) for p in parameters), strict=True))
        ]
        if isinstance(results[0], dict):
            return {
                n: tuple(torch.stack([r[n][i] for r in results]) for i in (0, 1))
                for n in results[0]
            }
        return tuple(torch.stack([r[i] for r in results]) for i in (0, 1))

    return of_group
