"""Rows on their way from a training loop to shards, without making an accelerator wait for them.

A tensor on an accelerator is copied where it is; many are fetched together when rows are published.
What has been taken changes hands in single assignments: an interrupt between any two of them
neither loses nor doubles a row.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orchestrator.errors import RecordError
from orchestrator.measuring import Measured
from orchestrator.nodes import show
from orchestrator.recorded import Announced
from orchestrator.rows import Buffer
from spectral import Request, ScalarRow
from spectral.metrics import METRICS_OF

MOST_WAITING = 1000
"""Values that may wait on an accelerator before they are fetched."""

MOST_ROWS = 100_000
"""Rows that may wait in memory before they are published."""

_LONGEST = 200  # characters of a split's or a metric's name

Value = float | Tensor


class Rows:
    """The rows of one trial that are in no shard yet.

    Attributes:
        last: (split, metric) -> its last step.
        first_bad: the first step at which a metric called ``loss`` or a matrix of a snapshot was
            not finite, of those that have been fetched; None if there is none.
        device: where the last tensor was that was not on the CPU; empty if there was none.
        shards: manifest entries of what has been published.
    """

    def __init__(self, trial: Announced) -> None:
        self.last: dict[tuple[str, str], int] = {}
        self.first_bad: int | None = None
        self.device = ""
        self.shards: list[dict[str, Any]] = []
        self._trial = trial
        self._shown: dict[tuple[str, str], str] = {}  # the same, as MLflow shows it: metric
        self._waiting: list[tuple[int, str, str, Value]] = []
        self._num_far = 0  # of them on an accelerator
        self._ready: list[Measured] = []
        self._num_ready = 0  # rows in them
        self._enough = MOST_ROWS
        self._subjects: frozenset[str] = frozenset()  # of snapshots; likewise
        self._metrics: frozenset[str] = frozenset()

    @property
    def many_waiting(self) -> bool:
        """Whether so many wait on an accelerator that they should be fetched."""
        return self._num_far > MOST_WAITING

    @property
    def many(self) -> bool:
        """Whether there are so many that they should be published."""
        return len(self._waiting) + self._num_ready >= self._enough

    def reserve(self, request: Request) -> None:
        """Keep the names of what snapshots measure for them.

        Raises:
            ValueError: a metric that has been recorded has the place of one of them.
        """
        subjects = {view.name for view in request.views}
        for coupling in request.couplings:
            subjects |= {coupling.name, coupling.group or coupling.name}
        groups = (METRICS_OF.get(group, ()) for group in request.measure)
        metrics = {metric.name for group in groups for metric in group}
        met = [f"{s}/{m}" for s, m in self.last if s in subjects and m in metrics]
        if met:
            raise ValueError(
                f"scalars() has recorded {', '.join(met)}, which snapshots measure of a matrix of "
                "that name: give the split or the metric another name"
            )
        self._subjects, self._metrics = frozenset(subjects), frozenset(metrics)

    def add(self, step: int, splits: Mapping[str, Any]) -> None:
        """Take the numbers of one step, of splits and their metrics.

        Raises:
            RecordError: with everything that cannot be recorded; nothing was taken then.
        """
        problems = []
        given = []
        for split, metrics in splits.items():
            if not isinstance(metrics, Mapping):
                what = f"expected a mapping of metrics to numbers, got {show(metrics)}"
                problems.append(f"{split}: {what}")
                continue
            for metric, value in metrics.items():
                given.append((step, split, metric, value))
                if problem := self._problem(step, split, metric, value):
                    problems.append(problem)
        if problems:
            raise RecordError("Recorder.scalars", problems)
        found: list[tuple[int, str, str, Value]] = []
        num_far = 0
        for _, split, metric, value in given:
            if isinstance(value, Tensor):
                value = value.detach()
            if isinstance(value, Tensor) and value.device.type != "cpu":
                value = value.clone()  # the loop may go on adding to it
                self.device = value.device.type
                num_far += 1
            else:
                value = float(_plain(value))
            found.append((step, split, metric, value))
        for _, split, metric, _ in found:
            self._shown.setdefault((split, metric.replace("/", "_")), metric)
        self.last.update({(split, metric): step for _, split, metric, _ in found})
        self._num_far += num_far
        self._waiting += found

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
        if split in self._subjects and metric in self._metrics:
            return f"{of}: snapshots measure this of a matrix called {split}: rename the split"
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                kind = f"a tensor of {value.dtype} with the shape {tuple(value.shape)}"
                return f"{of}: expected a real number, got {kind}"
            if value.is_meta:
                return f"{of}: expected a number, got a tensor on the device meta, which has none"
            return ""
        try:
            float(operator.pos(_plain(value)))  # a text has no sign, though float() would read it
        except OverflowError:
            return f"{of}: expected a number, got one beyond the range of float64"
        except (TypeError, ValueError):
            return f"{of}: expected a number, got {show(value)}"
        return ""

    def measured(self, found: Iterable[Measured]) -> None:
        """Take what snapshots have measured."""
        found = list(found)
        self._ready += found
        self._num_ready += _num_rows(found)
        for each in found:
            flags = {row.flag for row in each.scalars} | {row.flag for row in each.spectra}
            if "diverged" in flags:
                self._bad(each.step)

    def _bad(self, step: int) -> None:
        self.first_bad = step if self.first_bad is None else min(step, self.first_bad)

    def fetch(self, *, lossy: bool = False) -> None:
        """Make rows of all numbers that wait, with one transfer per device and dtype.

        Args:
            lossy: whether numbers that cannot be fetched are dropped: after some errors a CUDA
                device answers nothing any more.
        """
        waiting = list(self._waiting)
        places: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        values: list[Any] = [value for *_, value in waiting]
        for i, value in enumerate(values):
            if isinstance(value, Tensor):
                places.setdefault((value.device, value.dtype), []).append(i)
        for indices in places.values():
            try:
                numbers = torch.stack([values[i].reshape(()) for i in indices]).tolist()
            except Exception:
                if not lossy:
                    raise
                numbers = [None] * len(indices)
            for i, number in zip(indices, numbers, strict=True):
                values[i] = number
        rows = []
        for (step, split, metric, _), value in zip(waiting, values, strict=True):
            if value is None:
                continue
            number = float(value)
            flag = None if math.isfinite(number) else "diverged"
            if flag and metric == "loss":
                self._bad(step)
            row = ScalarRow(split, metric, number, None, None, "recorded", flag)
            rows.append(Measured(step, [row], []))
        rest, ready = self._waiting[len(waiting) :], self._ready + rows
        self._waiting, self._ready, self._num_far = rest, ready, 0
        self._num_ready = _num_rows(ready)

    def publish(self, root: Path, stem: str) -> None:
        """Write what has been fetched and measured as shards, then forget it.

        Args:
            root: the store's folder.
            stem: `<trial>-<epoch>.<attempt>`.

        Raises:
            StoreError: the storage refuses; the rows stay here.
        """
        ready = list(self._ready)
        self._enough = self._num_ready + MOST_ROWS  # if this fails, not again at every step
        buffer = Buffer()
        for each in ready:
            buffer.scalars(self._trial.trial_id, each.step, each.scalars)
            buffer.spectra(self._trial.trial_id, each.step, each.spectra)
        written = self.shards + buffer.publish(root, stem, [self._trial.identity])
        rest = self._ready[len(ready) :]
        self.shards, self._ready = written, rest
        self._num_ready, self._enough = _num_rows(rest), MOST_ROWS


def _plain(value: Any) -> Any:
    """The plain Python number in a numpy scalar or an array of one element."""
    if getattr(value, "size", None) == 1 and hasattr(value, "item"):
        return value.item()
    return value


def _num_rows(found: Iterable[Measured]) -> int:
    return sum(len(each.scalars) + len(each.spectra) for each in found)
