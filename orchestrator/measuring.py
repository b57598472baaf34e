"""What an attempt measures beside its losses: snapshots, pruned models, agreement with the end.

The trial's loop says when; this module knows what the sweep file asks for, keeps the state from one
snapshot to the next, and keeps singular vectors on disk until they can be compared with the final
ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import spectral
from orchestrator import factors
from orchestrator.chosen import ends, measured_views, wanted
from orchestrator.errors import DamageError, StoreError
from orchestrator.expansion import Trial
from orchestrator.factors import FactorArrays
from spectral import ScalarRow, SingularVectors, SpectrumRow
from spectral.agreement import Compared, agreement_rows
from spectral.geometry import ConvGeometry, conv_geometries
from spectral.pipeline import Finished, Pipeline
from spectral.pruning import (
    cut_is_determined,
    kept,
    prunable,
    pruned_metric,
    pruned_parameters,
    split_parameters,
)
from spectral.state import recalled_vectors, remember_vectors
from tasks import Task
from tasks.batch_norm import evaluate_pruned
from tasks.random import Streams
from tasks.state import GroupState

Entry = dict[str, Any]


_LOST = (
    "singular vectors of a running trial are missing or damaged: run the same command again; the "
    "trial continues from an earlier checkpoint"
)


class Measured(NamedTuple):
    """Rows of one step."""

    step: int
    scalars: list[ScalarRow]
    spectra: list[SpectrumRow]


def request_of(task: Task, model: nn.Module, trial: Trial, streams: Streams) -> spectral.Request:
    """What the snapshots of a trial measure.

    Args:
        task: of one trial.
        model: the skeleton that `tasks.start` returned.
        trial: whose `measure` chooses groups, views and options.
        streams: of the trial; for a forward pass that shows the sizes of the convolutions' inputs.
    """
    measure = trial.measure
    there = list(task.views(model))
    names = {view.name for view in there if measure.chooses(view.name)}
    declared = task.couplings(model) if "alignment" in measure.groups else []
    couplings = [c for c in declared if wanted(measure, c) and names.issuperset(ends(c))]
    views = measured_views(measure, there, couplings)
    geometries: Mapping[str, ConvGeometry] = {}
    if "operator" in measure.groups:
        geometries = _geometries(task, model, streams)
    return spectral.Request(
        views,
        measure.groups,
        couplings,
        vectors=measure.vectors,
        workspace=measure.workspace,
        geometries=geometries,
        factors=measure.keep != "none",
    )


def _geometries(task: Task, model: nn.Module, streams: Streams) -> Mapping[str, ConvGeometry]:
    """From one forward pass over two examples, which leaves the model as it was."""
    data = {name: value[0, :2] for name, value in task.eval_data(streams, task.splits[0]).items()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return conv_geometries(model, lambda: task.evaluate(model, data))
    finally:
        for module, training in modes:
            module.training = training


class Measurer:
    """The measurements of one attempt at one trial.

    On a CPU a snapshot is finished when `take` returns; on an accelerator it is finished beside
    training, and `results` hands it over when it is there.

    Args:
        task: of one trial.
        model: the skeleton that `tasks.start` returned.
        trial: what to measure.
        streams: the trial's.
        root: the store's folder.
        stem: `<trial>-<epoch>.<attempt>`, for the names of files.
    """

    def __init__(
        self, task: Task, model: nn.Module, trial: Trial, streams: Streams, root: Path, stem: str
    ) -> None:
        self.task, self.model, self.trial, self.streams = task, model, trial, streams
        self.root, self.stem = root, stem
        self.request = request_of(task, model, trial, streams)
        self.pruned = ()  # type: tuple[spectral.MatrixView, ...]
        if "pruned" in trial.measure.groups:
            self.pruned = tuple(prunable(model, exempt_last=trial.measure.exempt_last))
        self.factors: dict[int, Entry] = {}  # manifest entries of what is on disk, by step
        self.notes: dict[int, dict[str, tuple[str, str | None]]] = {}  # method and flag, by view
        self.last: tuple[int, dict[str, SingularVectors]] | None = None
        self._arrived: list[Finished] = []  # not written yet
        self._ready: list[Measured] = []
        self._state: spectral.SnapshotState | None = None
        self._pipeline: Pipeline | None = None

    def take(self, state: GroupState, step: int) -> None:
        """Measure the weights as they are.

        Raises:
            StoreError: the storage refuses to keep singular vectors.
            Exception: whatever the task's code raises.
        """
        pruned = self.pruned if step in self.trial.pruned else ()
        request = replace(self.request, prune=pruned)
        if streams_apart(state) and not pruned:
            if self._pipeline is None:
                self._pipeline = Pipeline(self._state)
            self._pipeline.submit(request, state.parameters, step)
            return
        self._drain()
        begun = spectral.begin_snapshot(request, state.parameters)
        snapshots, remembered = begun.finish(self._state)
        self._finished(Finished(step, snapshots))
        self._state = remembered  # last: whoever meets a full disk may take this snapshot again
        if pruned:
            rows = self._pruned_rows(state, snapshots[0].prune)
            self._ready.append(Measured(step, rows, []))

    def results(self, *, wait: bool) -> list[Measured]:
        """What has been measured since the last call; with `wait`, everything that was taken."""
        if self._pipeline is not None:
            self._take_in(self._pipeline.results(wait=wait))
        ready, self._ready = self._ready, []
        return ready

    def final(self) -> list[Measured]:
        """Agreement of every snapshot with the last one, which must have been taken.

        Raises:
            StoreError: the storage refuses, or singular vectors on disk are missing or damaged; no
                `DamageError`, as no result names them and an earlier checkpoint does without them.
        """
        if "agreement" not in self.trial.measure.groups or self.last is None:
            return []
        last_step, last = self.last
        found = []
        for step in sorted({*self.factors, last_step}):
            if step == last_step:
                earlier = last
            else:
                try:
                    arrays = factors.read(self.root, self.factors[step])
                except DamageError as error:
                    raise StoreError(_LOST) from error
                earlier = {name: _vectors(each, last[name]) for name, each in arrays.items()}
            compared = [
                Compared(name, own, last[name], *self.notes[step][name])
                for name, own in earlier.items()
            ]
            found.append(Measured(step, *agreement_rows("final", compared)))
        return found

    def kept(self) -> list[Entry]:
        """Manifest entries of the singular vectors that stay in the store, written if need be.

        Raises:
            StoreError: the storage refuses, or one of them is gone: no commit may name it.
        """
        keep = self.trial.measure.keep
        if keep == "none" or self.last is None:
            return []
        step, vectors = self.last
        if step not in self.factors:
            self._write(step, vectors)
        entries = list(self.factors.values()) if keep == "all" else [self.factors[step]]
        if not all((self.root / entry["path"]).is_file() for entry in entries):
            raise StoreError(_LOST)
        return entries

    def scratch(self) -> list[Entry]:
        """Manifest entries of all singular vectors on disk: what a checkpoint depends on."""
        return list(self.factors.values())

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; everything taken is finished first, and must have been handed over."""
        self._drain()
        last = None
        if self.last is not None:
            step, vectors = self.last
            names = list(vectors)
            packed: spectral.SnapshotState = {}
            for name in names:
                remember_vectors(packed, "last", name, [vectors[name]])
            last = {"step": step, "names": names, "vectors": packed}
        return {
            "snapshots": self._state,
            "factors": self.factors,
            "notes": self.notes,
            "last": last,
        }

    def load(self, saved: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self._state = saved["snapshots"]
        self.factors = dict(saved["factors"])
        self.notes = dict(saved["notes"])
        self.last = None
        if saved["last"] is not None:
            packed = saved["last"]["vectors"]
            vectors = {
                name: recalled_vectors(packed, "last", name, 0) for name in saved["last"]["names"]
            }
            known = {name: each for name, each in vectors.items() if each is not None}
            self.last = (int(saved["last"]["step"]), known)

    def close(self) -> None:
        """End the thread that finishes snapshots, if there is one, without waiting for them."""
        if self._pipeline is not None:
            self._pipeline.__exit__(RuntimeError)
            self._pipeline = None

    def _drain(self) -> None:
        if self._pipeline is not None:
            self._take_in(self._pipeline.results(wait=True))
            self._state = self._pipeline.state
            self._pipeline.__exit__(None)
            self._pipeline = None

    def _take_in(self, found: Iterator[Finished]) -> None:
        """Snapshots from the pipeline; one that cannot be written waits for the next call."""
        self._arrived += found
        while self._arrived:
            self._finished(self._arrived[0])
            del self._arrived[0]

    def _finished(self, finished: Finished) -> None:
        (snapshot,) = finished.snapshots
        step = finished.step
        if snapshot.factors:
            # Before anything else: if the storage refuses, the snapshot has not been taken.
            if "agreement" in self.trial.measure.groups or self.trial.measure.keep == "all":
                self._write(step, snapshot.factors)
            if "agreement" in self.trial.measure.groups:
                self.notes[step] = snapshot.notes
            self.last = (step, snapshot.factors)
        self._ready.append(Measured(step, snapshot.scalars, snapshot.spectra))

    def _write(self, step: int, vectors: Mapping[str, SingularVectors]) -> None:
        arrays = {name: _arrays(each) for name, each in vectors.items()}
        entry = factors.write(self.root, self.stem, self.trial.trial_id, step, arrays)
        self.factors[step] = entry

    def _pruned_rows(
        self, state: GroupState, decompositions: Sequence[spectral.Decomposition]
    ) -> list[ScalarRow]:
        """Every metric of the models that keep a part of their singular directions."""
        rows = []
        for fraction, end, parameters in self._pruned_models(state, decompositions):
            cuts = [kept(fraction, min(d.shape), end) for d in decompositions]
            if end == "bottom":
                cuts = [min(d.shape) - cut for d, cut in zip(decompositions, cuts, strict=True)]
            clear = all(
                cut_is_determined(d, cut, end) for d, cut in zip(decompositions, cuts, strict=True)
            )
            found = evaluate_pruned(self.task, self.model, state, self.streams, parameters)
            for (split, metric), value in found.items():
                name = pruned_metric(metric, fraction, end)
                flag = None if clear else "ill_posed"
                rows.append(ScalarRow(split, name, float(value[0]), None, None, "evaluation", flag))
        return rows

    def _pruned_models(
        self, state: GroupState, decompositions: Sequence[spectral.Decomposition]
    ) -> Iterator[tuple[float, Any, dict[str, Tensor]]]:
        for fraction in self.trial.measure.fractions:
            views, parameters = self.pruned, state.parameters
            if fraction == 0.5:  # both ends for the price of one
                top, bottom = split_parameters(
                    views, parameters, decompositions, fraction, stacked=True
                )
                yield fraction, "top", top
                yield fraction, "bottom", bottom
                continue
            for end in ("top", "bottom"):
                yield fraction, end, pruned_parameters(
                    views, parameters, decompositions, fraction, end, stacked=True
                )  # fmt: skip


def streams_apart(state: GroupState) -> bool:
    """Whether the weights are on a device that works on while the host does something else."""
    return state.flat.device.type == "cuda"


def _arrays(vectors: SingularVectors) -> FactorArrays:
    return FactorArrays(
        values=vectors.values,
        left=vectors.left.cpu().numpy(),
        right=vectors.right.cpu().numpy(),
        left_errors=vectors.left_errors,
        right_errors=vectors.right_errors,
        left_span_errors=vectors.left_span_errors,
        right_span_errors=vectors.right_span_errors,
    )


def _vectors(arrays: FactorArrays, like: SingularVectors) -> SingularVectors:
    device = like.left.device
    return SingularVectors(
        values=arrays.values,
        left=torch.from_numpy(arrays.left).to(device),
        right=torch.from_numpy(arrays.right).to(device),
        left_errors=arrays.left_errors,
        right_errors=arrays.right_errors,
        left_span_errors=arrays.left_span_errors,
        right_span_errors=arrays.right_span_errors,
    )
