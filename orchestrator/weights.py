"""The weights of anyone's model as snapshots take them: by their plain names, with a group of one.

What wraps a model for training (torch.compile, DistributedDataParallel) changes the names of its
parameters and nothing else; the names here are those without it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from orchestrator.chosen import switches
from orchestrator.expansion import Trial
from orchestrator.measure import Measure
from orchestrator.measuring import Measurer
from orchestrator.nodes import show
from orchestrator.recorded import Announced
from spectral import Coupling, MatrixView, discover
from tasks import Task
from tasks.random import Streams

_COMPILED = "_orig_mod."
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)

Model = nn.Module | Mapping[str, Tensor]


@dataclass(frozen=True)
class Weights:
    """What `orchestrator.measuring.Measurer` reads of a state.

    Attributes:
        parameters: name -> [1, ...], detached; the memory of the model's own.
        flat: any of them; it tells the device.
    """

    parameters: dict[str, Tensor]
    flat: Tensor


@dataclass(frozen=True)
class Loop:
    """Stands in for a task where the training loop is somebody else's.

    Attributes:
        matrices: the matrix views.
        meeting: the couplings.
        example: an input of the model, for the sizes of its convolutions' inputs.
    """

    matrices: Sequence[MatrixView]
    meeting: Sequence[Coupling]
    example: Any = None
    splits: tuple[str, ...] = ("train",)

    def views(self, model: nn.Module) -> list[MatrixView]:
        """As a task's."""
        return list(self.matrices)

    def couplings(self, model: nn.Module) -> list[Coupling]:
        """As a task's."""
        return list(self.meeting)

    def eval_data(self, streams: Any, split: str) -> dict[str, Tensor]:
        """No data: the example is not indexed by trials."""
        return {}

    def evaluate(self, model: nn.Module, data: Any) -> None:
        """Run the model on its example."""
        if isinstance(self.example, Mapping):
            model(**self.example)
        elif isinstance(self.example, tuple):
            model(*self.example)
        else:
            model(self.example)


def unwrapped(model: Model) -> Model:
    """The model itself, without what wraps it for training."""
    while isinstance(model, nn.Module):
        if isinstance(model, _WRAPPERS):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            break
    return model


def plain_name(name: str) -> str:
    """The name of a parameter without the marks of modules that were compiled inside a model."""
    return name.replace(_COMPILED, "")


def weights_of(model: Model) -> Weights:
    """Read the parameters of a model; none is copied unless it must be moved.

    Matrices are decomposed where they lie if that is a CPU or a CUDA device; parameters elsewhere,
    or on several devices, are copied to the CPU.

    Raises:
        ValueError: there are none, one is no tensor or has no entries here, or it is no model.
    """
    given: Any = model  # whatever its type says: it is anyone's
    if not isinstance(given, nn.Module | Mapping):
        accepted = "a torch.nn.Module or a mapping of names to tensors"
        raise ValueError(f"expected {accepted}, got {show(given)}")
    named: dict[Any, Any] = dict(
        given.named_parameters() if isinstance(given, nn.Module) else given
    )
    for name, value in named.items():
        if not isinstance(name, str):
            raise ValueError(f"expected the names of tensors as texts, got {show(name)}")
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise ValueError(f"parameter {name!r}: expected a torch.Tensor, got {kind}")
    found = {plain_name(name): value.detach() for name, value in named.items()}
    if not found:
        raise ValueError("the model has no parameters")
    empty = [name for name, value in found.items() if value.is_meta]
    if empty:
        raise ValueError(
            f"parameter {empty[0]!r} is on the device meta, where it has no entries: materialise "
            "the weights, or give snapshot() a mapping of names to tensors that have them"
        )
    spread = [name for name, value in found.items() if hasattr(value, "full_tensor")]
    if spread:
        raise ValueError(
            f"parameter {spread[0]!r} is spread over several processes (DTensor): gather the "
            "weights on all of them, and give snapshot() a mapping of names to whole tensors, with "
            "views"
        )
    places = {value.device for value in found.values()}
    if len(places) > 1 or next(iter(places)).type not in ("cpu", "cuda"):
        found = {name: value.cpu() for name, value in found.items()}
    stacked = {name: value.unsqueeze(0) for name, value in found.items()}
    return Weights(stacked, next(iter(stacked.values())))


def discovered(model: nn.Module, weights: Weights) -> list[MatrixView]:
    """`spectral.discover` without what cannot be decomposed: integers, and parts kept elsewhere.

    Quantised weights are integers; sharded ones have no entries outside a forward pass.
    """
    views = []
    for view in discover(model):
        parameter = plain_name(view.parameter)
        value = weights.parameters[parameter]
        if value.dtype.is_floating_point and value.numel():
            name = parameter.removesuffix(".weight")
            views.append(replace(view, name=name, parameter=parameter))
    return views


@contextlib.contextmanager
def undisturbed(weights: Weights) -> Iterator[None]:
    """Measure in full precision, whatever the training loop has switched on around it."""
    with torch.autocast(weights.flat.device.type, enabled=False), torch.no_grad():
        yield


@contextlib.contextmanager
def same_random_numbers(weights: Weights) -> Iterator[None]:
    """Leave the generators as they were: a model's forward pass may draw from them."""
    device = weights.flat.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@dataclass(frozen=True)
class Asked:
    """What is measured of a model, as its user asked for it.

    Attributes:
        measure: groups and options.
        views: the matrices; None: all that are discovered.
        couplings: for the group `alignment`.
        example: an input of the model, for the group `operator`.
    """

    measure: Measure
    views: Sequence[MatrixView] | None
    couplings: Sequence[Coupling]
    example: Any = None

    def measurer(
        self, model: Model, weights: Weights, trial: Announced, root: Path, stem: str
    ) -> Measurer:
        """What takes the snapshots of this model.

        Args:
            model: unwrapped.
            weights: its own.
            trial: whose they are.
            root: the store's folder.
            stem: `<trial>-<epoch>.<attempt>`, for the names of files.

        Raises:
            ValueError: what cannot be measured of it, one sentence a line.
            TypeError: a view's weights are complex or integer.
        """
        views = self._views(model, weights)
        if "operator" in self.measure.groups and not isinstance(model, nn.Module):
            raise ValueError("operator: give snapshot() the model itself, to run it on the example")
        measured = Trial(
            **{key: getattr(trial, key) for key in ("trial_id", "config_id", "seed", "params")},
            task="",
            task_name="",
            snapshots=(),
            evaluations=(),
            measure=self.measure,
        )
        # A Loop is no Task, but all that is asked here of one; there are no streams.
        task, module = cast(Task, Loop(views, self.couplings, self.example)), cast(nn.Module, model)
        with same_random_numbers(weights):
            found = Measurer(task, module, measured, cast(Streams, None), root, stem)
        if self.couplings and not found.request.couplings:
            raise ValueError(f"alignment: no coupling is left: {self._needed()}")
        self._check_on_demand(found)
        geometries = {plain_name(name): each for name, each in found.request.geometries.items()}
        found.request = replace(found.request, geometries=geometries)
        found.request.check(weights.parameters)
        return found

    def _needed(self) -> str:
        """What couplings need to be measured."""
        if not self.couplings:
            return "give couplings=[...]"
        needed = [name for c in self.couplings for name in switches(self.measure, c)]
        kinds = {"residual": "residual ones", "heads": "those per head"}
        parts = [
            f"{kinds[name]} are measured with {name}: True, and " for name in dict.fromkeys(needed)
        ]
        return f"{''.join(parts)}views must choose both matrices"

    def _check_on_demand(self, found: Measurer) -> None:
        """Refuse patterns, or views, of which nothing is measured."""
        measured = [view.name for view in found.request.views]
        why = f"on demand, and no coupling that is measured has one: {self._needed()}"
        idle = [
            f"views: all matrices called {pattern!r} are {why}"
            for pattern in self.measure.views
            if not any(map(replace(self.measure, views=(pattern,)).chooses, measured))
        ]
        if idle or not measured:
            raise ValueError("\n".join(idle) or f"views: all matrices are {why}")

    def _views(self, model: Model, weights: Weights) -> list[MatrixView]:
        unreal: list[str] = []
        if self.views is not None:
            views = list(self.views)
        elif isinstance(model, nn.Module):
            views = discovered(model, weights)
            of_model = weights.parameters.items()
            unreal = [name for name, value in of_model if value.is_complex() and value.dim() > 2]
        else:
            raise ValueError("tensors by name do not say which are matrices: give views=[...]")
        named = ", ".join(unreal[:10]) + (f" and {len(unreal) - 10} more" if unreal[10:] else "")
        parts = "give snapshot() a mapping of names to their real and imaginary parts, with views"
        if unreal and not views:
            raise ValueError(f"the model has no real matrix, and {named} are complex: {parts}")
        if unreal:
            what = f"complex matrices are left out: {named}. To measure them, {parts}"
            warnings.warn(what, stacklevel=4)
        if not views:
            raise ValueError(
                "the model has no matrix: no parameter of two dimensions or more. If its weights "
                "are sharded (FSDP, ZeRO-3), gather them, and give snapshot() a mapping of names "
                "to whole tensors, with views"
            )
        names = [view.name for view in views]
        listed = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if names[10:] else "")
        idle = [
            f"views: no matrix is called {pattern!r}; there are {listed}"
            for pattern in self.measure.views
            if not any(replace(self.measure, views=(pattern,)).chooses(name) for name in names)
        ]
        if idle:
            raise ValueError("\n".join(idle))
        return views
