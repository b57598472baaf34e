"""The state of a group: parameters, buffers, moments, and how they are saved and taken over."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(eq=False)
class GroupState:
    """Everything that changes while a group trains; nothing else is state.

    Attributes:
        step: optimiser steps done, the same for all trials.
        parameters: name -> [K, ...], views of `flat` in the order of named_parameters().
        buffers: name -> [K, ...], the persistent buffers.
        optimizer: name of the moment -> [K, P], laid out as `flat`.
        first_bad: int64 [K], on the device: the first value of `step` at which a parameter, or the
            loss that led to it, was not finite; -1 as long as there is none.
        flat: [K, P], all parameters of a trial side by side in one row, in float32 or float64: with
            mixed precision too, so what is measured are the weights that the optimiser moves.
        scaler: the loss scale of float16, name -> [K] (`tasks.precision.Scaler`); else empty.
        program: what `tasks.training` reuses from step to step; rebuilt when missing, never saved.
    """

    step: int
    parameters: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    first_bad: Tensor
    flat: Tensor
    scaler: dict[str, Tensor] = field(default_factory=dict)
    program: Any = field(default=None, repr=False)

    def __len__(self) -> int:
        return self.flat.shape[0]

    def state_dict(self, k: int | None = None) -> dict[str, Any]:
        """A copy as plain tensors and ints, by parameter name; of trial k alone (K = 1) if given.

        `torch.save` writes it and `torch.load(weights_only=True)` reads it.
        """
        pick = slice(None) if k is None else slice(k, k + 1)
        moments = {name: views_of(m, self._shapes()) for name, m in self.optimizer.items()}
        return {
            "step": self.step,
            "parameters": {n: p[pick].clone() for n, p in self.parameters.items()},
            "buffers": {n: b[pick].clone() for n, b in self.buffers.items()},
            "optimizer": {
                moment: {n: p[pick].clone() for n, p in named.items()}
                for moment, named in moments.items()
            },
            "first_bad": self.first_bad[pick].clone(),
            "scaler": {n: t[pick].clone() for n, t in self.scaler.items()},
        }

    def load(self, saved: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> None:
        """Take over, in place, what `state_dict` returned; training goes on bit-identically.

        Args:
            saved: one dict of all K trials, or K dicts of one trial each (`state_dict(k)`), which
                must have done the same number of steps.

        Raises:
            ValueError: names, shapes, dtypes or steps do not fit; nothing is changed then.
        """
        parts = [saved] if isinstance(saved, Mapping) else list(saved)
        steps = sorted({part["step"] for part in parts})
        if len(steps) != 1:
            raise ValueError(f"the saved trials have done different numbers of steps: {steps}")
        for part in parts:
            if part["optimizer"].keys() != self.optimizer.keys():
                raise ValueError(
                    "the saved state is of another optimizer: expected the moments "
                    f"{', '.join(self.optimizer)}, got {', '.join(part['optimizer'])}"
                )
            if part.get("scaler", {}).keys() != self.scaler.keys():
                has, lacks = ("this", "the saved") if self.scaler else ("the saved", "this")
                raise ValueError(
                    "the saved state is of another precision: the loss scale of float16 is in "
                    f"{has} state and not in {lacks} one"
                )
        shapes = self._shapes()
        target: dict[str, dict[str, Tensor]] = {
            "parameters": self.parameters,
            "buffers": self.buffers,
            **{f"optimizer.{m}": views_of(flat, shapes) for m, flat in self.optimizer.items()},
            "first_bad": {"first_bad": self.first_bad},
            "scaler": self.scaler,
        }
        joined = {
            section: _join([_section(part, section) for part in parts], section)
            for section in target
        }
        for section, named in target.items():
            _check_fit(section, joined[section], named)
        for section, named in target.items():
            for name, tensor in named.items():
                tensor.copy_(joined[section][name])
        self.step = steps[0]

    def _shapes(self) -> dict[str, torch.Size]:
        return {name: p.shape[1:] for name, p in self.parameters.items()}


def _section(part: Mapping[str, Any], section: str) -> Mapping[str, Tensor]:
    if section == "first_bad":
        return {section: part[section]}
    if section == "scaler":  # which states saved by the first version lack
        scaler: Mapping[str, Tensor] = part.get(section, {})
        return scaler
    head, _, moment = section.partition(".")
    found: Mapping[str, Tensor] = part[head][moment] if moment else part[head]
    return found


def _join(parts: Sequence[Mapping[str, Tensor]], section: str) -> dict[str, Tensor]:
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError(f"the saved trials disagree in the names of their {section}")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _check_fit(section: str, saved: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    if saved.keys() != target.keys():
        odd = ", ".join(sorted(saved.keys() ^ target.keys()))
        raise ValueError(f"the saved {section} are not those of this model; unmatched: {odd}")
    for name, tensor in target.items():
        if (saved[name].shape, saved[name].dtype) != (tensor.shape, tensor.dtype):
            raise ValueError(
                f"saved {section}, {name}: expected {tensor.dtype} {list(tensor.shape)}, "
                f"got {saved[name].dtype} {list(saved[name].shape)}"
            )


def views_of(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The [K, ...] tensors that lie one after the other in the rows of `flat`."""
    ends = list(itertools.accumulate(shape.numel() for shape in shapes.values()))
    return {
        name: flat[:, end - shape.numel() : end].view(len(flat), *shape)
        for (name, shape), end in zip(shapes.items(), ends, strict=True)
    }
