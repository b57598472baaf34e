"""Numbers on their way from a training loop to rows, without making an accelerator wait for them.

A tensor on an accelerator is copied where it is; many are fetched together when rows are published.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from orchestrator.errors import RecordError
from orchestrator.nodes import show
from orchestrator.rows import Buffer
from spectral import ScalarRow

MOST_WAITING = 1000
"""Values that may wait on an accelerator before they are fetched."""

_LONGEST = 200  # characters of a split's or a metric's name

Value = float | Tensor


class Numbers:
    """The numbers of one trial that are not rows yet.

    Attributes:
        last: (split, metric) -> its last step.
        first_bad: the first step at which a metric called ``loss`` was not finite, of those that
            have been fetched; None if there is none.
        device: where the last tensor was that was not on the CPU; empty if there was none.
    """

    def __init__(self) -> None:
        self.last: dict[tuple[str, str], int] = {}
        self.first_bad: int | None = None
        self.device = ""
        self._shown: dict[tuple[str, str], str] = {}  # the same, as MLflow shows it: metric
        self._waiting: list[tuple[int, str, str, Value]] = []
        self._num_far = 0  # of them on an accelerator

    @property
    def many(self) -> bool:
        """Whether so many wait on an accelerator that they should be fetched."""
        return self._num_far > MOST_WAITING

    def add(self, step: int, splits: Mapping[str, Any]) -> None:
        """Take the numbers of one step, of splits and their metrics.

        Raises:
            RecordError: with everything that cannot be recorded; nothing was taken then.
        """
        problems = []
        rows = []
        for split, metrics in splits.items():
            if not isinstance(metrics, Mapping):
                what = f"expected a mapping of metrics to numbers, got {show(metrics)}"
                problems.append(f"{split}: {what}")
                continue
            for metric, value in metrics.items():
                rows.append((step, split, metric, value))
                if problem := self._problem(step, split, metric, value):
                    problems.append(problem)
        if problems:
            raise RecordError("Recorder.scalars", problems)
        for _, split, metric, value in rows:
            self.last[split, metric] = step
            self._shown.setdefault((split, metric.replace("/", "_")), metric)
            if isinstance(value, Tensor):
                value = value.detach()
            if isinstance(value, Tensor) and value.device.type != "cpu":
                value = value.clone()  # the loop may go on adding to it
                self.device = value.device.type
                self._num_far += 1
            else:
                value = float(value)
            self._waiting.append((step, split, metric, value))

    def _problem(self, step: int, split: str, metric: Any, value: Any) -> str:
        for what, text in (("split", split), ("metric", metric)):
            plain = isinstance(text, str) and text.strip() == text and text.isprintable()
            if not plain or not 0 < len(text) <= _LONGEST:
                accepted = f"a text of at most {_LONGEST} characters"
                return f"expected the name of a {what}, {accepted}, got {show(text)}"
        of = f"{split}/{metric}"
        last = self.last.get((split, metric), -1)
        if step <= last:
            return f"{of}: steps must grow: {step} comes after {last}"
        other = self._shown.get((split, metric.replace("/", "_")), metric)
        if other != metric:
            return f"{of}: it differs from {split}/{other} in / and _ only: rename one"
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                kind = f"a tensor of {value.dtype} with the shape {tuple(value.shape)}"
                return f"{of}: expected a real number, got {kind}"
            return ""
        try:
            float(operator.pos(value))  # a text has no sign, though float() would read it
        except (TypeError, ValueError):
            return f"{of}: expected a number, got {show(value)}"
        return ""

    def fetch(self, trial_id: str, buffer: Buffer) -> None:
        """Make rows of all that wait, with one transfer per device and dtype."""
        places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        values = [value for *_, value in self._waiting]
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                places.setdefault((value.device, value.dtype), []).append(i)
        for indices in places.values():
            tensors = [cast(Tensor, values[i]).reshape(()) for i in indices]
            for i, number in zip(indices, torch.stack(tensors).tolist(), strict=True):
                values[i] = number
        for (step, split, metric, _), value in zip(self._waiting, values, strict=True):
            number = float(value)
            flag = None if math.isfinite(number) else "diverged"
            if flag and metric == "loss":
                self.first_bad = step if self.first_bad is None else min(step, self.first_bad)
            row = ScalarRow(split, metric, number, None, None, "recorded", flag)
            buffer.scalars(trial_id, step, [row])
        self._waiting, self._num_far = [], 0
