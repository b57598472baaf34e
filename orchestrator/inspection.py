"""One model, looked at before it is trained: what it has, and what cannot be measured of it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.chosen import ends, measured_views, switches, waiting, wanted
from orchestrator.expansion import Trial
from orchestrator.measure import Measure
from spectral import Coupling
from spectral.geometry import ConvGeometry, conv_geometries
from spectral.pruning import prunable
from spectral.request import Request
from spectral.views import MatrixView
from tasks import Task
from tasks.batch_norm import TRAIN_SPLIT
from tasks.random import Streams
from tasks.training import make_streams

_LISTED = 10  # names in a message
_KINDS = {
    "residual": "across residual streams",
    "heads": "of single heads",
}

Shape = tuple[int, int]


@dataclass(frozen=True)
class Model:
    """What one structurally distinct configuration comes to.

    Attributes:
        views: names of all of them; None: the task's code refuses to say.
        waiting: those on demand that lack a coupling -> what to do about it.
        shapes: of the views that are measured; empty if there are problems.
        problems: what cannot be measured, each beginning with the option or group it is about.
    """

    views: list[str] | None = None
    waiting: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def inspect(task_class: type[Task], trial: Trial) -> Model | str:
    """Build a trial's model and look at it; what the task's code raised if it does.

    First without numbers in it (torch's device "meta"). Code that needs some raises then, so what
    it says counts only on the CPU.
    """
    said = ""
    for device in ("meta", "cpu"):
        try:
            return _look_at(task_class, trial, device)
        except Exception as error:  # whatever it is, the trial will show where it comes from
            text = str(error).strip().split("\n")[0][:200]
            said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return said


def option_of(problem: str, measure: Measure) -> str:
    """Which of `Measure.places` a problem is about; "measure" if it is about none of them."""
    word = problem.partition(":")[0]
    named = "groups:alignment" if word.startswith("coupling ") else f"groups:{word}"
    places = (place for place in (named, word) if place in measure.places)
    return next(places, "measure")


def _look_at(task_class: type[Task], trial: Trial, device: str) -> Model:
    config = task_class.Config.model_validate_json(json.dumps(dict(trial.params)), strict=True)
    task, measure = task_class([config]), trial.measure
    streams = make_streams([config], [trial.seed]).to(device)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model = task.build(streams)
    # as built: the training loop converts what is not real, and loses half of it
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    model.to(config.dtype)
    try:
        views = list(task.views(model))
    except ValueError as error:
        if device == "meta":
            raise
        return Model(problems=[f"views: {error}"])
    problems: list[str] = []
    couplings: list[Coupling] = []
    waits: dict[str, str] = {}
    aligned = "alignment" in measure.groups
    if aligned or any(view.on_demand for view in views):
        try:
            declared = list(task.couplings(model))
        except ValueError as error:
            if device == "meta":
                raise
            problems = [f"alignment: {error}"] if aligned else []
        else:
            waits = waiting(measure, views, declared)
            if aligned:
                names = {view.name for view in views}
                couplings, problems = _couplings(task, declared, measure, names)
    chosen = measured_views(measure, views, couplings)
    geometries = _geometries(task, model, streams, measure, chosen, problems)
    prune = _prune(task, model, measure, problems)
    known = geometries is not None
    groups = [group for group in measure.groups if group != "operator" or known]
    request = Request(
        chosen,
        groups,
        couplings,
        vectors=measure.vectors,
        geometries=geometries or {},
        prune=prune,
    )
    parameters = dict(model.named_parameters())
    problems += request.problems(parameters, stacked=False)
    problems += [
        f"matrix view {view.name!r}: expected real floating-point weights, {view.parameter!r} is "
        f"{dtypes[view.parameter]}"
        for view in [*chosen, *prune]
        if view.parameter in dtypes and not dtypes[view.parameter].is_floating_point
    ]
    shapes = {view.name: view.shape(parameters) for view in chosen} if not problems else {}
    return Model([view.name for view in views], waits, shapes, problems)


def _geometries(
    task: Task,
    model: nn.Module,
    streams: Streams,
    measure: Measure,
    chosen: list[MatrixView],
    problems: list[str],
) -> dict[str, ConvGeometry] | None:
    """As `orchestrator.measuring` finds them in the trial; None, and a problem, if it cannot."""
    if "operator" not in measure.groups:
        return {}
    if all(view.layout == "matrix" for view in chosen):
        of = "the views chosen" if measure.views else "the model"
        problems.append(f"operator: there is no convolution among the matrices of {of}")
        return {}
    device = next(model.parameters()).device
    data = {name: t[0, :2] for name, t in task.eval_data(streams, task.splits[0]).items()}
    model.eval()
    try:
        with torch.no_grad(), torch.device(device):
            return conv_geometries(model, lambda: task.evaluate(model, data))
    except ValueError as error:
        if not str(error).startswith("operator: "):
            raise
        problems.append(str(error))
        return None


def _prune(task: Task, model: nn.Module, measure: Measure, problems: list[str]) -> list[MatrixView]:
    """The matrices that pruned models are made of; what they cannot be evaluated without."""
    if "pruned" not in measure.groups:
        return []
    views = list(prunable(model, exempt_last=measure.exempt_last))
    if not views:
        advice = "; the last one is exempt unless pruned: {last: included}"
        problems.append(f"pruned: there is no matrix to cut{advice if measure.exempt_last else ''}")
    normalised = (
        isinstance(module, _BatchNorm) and module.running_mean is not None
        for module in model.modules()
    )
    if TRAIN_SPLIT not in task.splits and any(normalised):  # as `tasks.batch_norm` refuses it
        problems.append(
            f"pruned: task {task.name} has no split {TRAIN_SPLIT!r} to re-estimate BatchNorm's "
            f"statistics over; it has {', '.join(task.splits)}"
        )
    return views


def _couplings(
    task: Task, declared: list[Coupling], measure: Measure, names: Collection[str]
) -> tuple[list[Coupling], list[str]]:
    """The couplings that are measured, and what is wrong with there being no others.

    Args:
        task: which declares them.
        declared: all that it does.
        measure: chooses among them.
        names: of all views; a coupling of another one is returned, for `Request` to complain of.
    """
    if not declared:
        return [], [f"alignment: task {task.name!r} declares no couplings of its matrices"]
    open_to_choice = [coupling for coupling in declared if wanted(measure, coupling)]
    if not open_to_choice:
        lacking = dict.fromkeys(name for c in declared for name in switches(measure, c))
        kinds = " or ".join(_KINDS[name] for name in lacking)
        added = " or ".join(f"{name}: true" for name in lacking)
        return [], [f"alignment: all couplings are {kinds}: add {added}"]
    problems = []
    idle = {
        "residual": measure.residual and not any(c.residual for c in declared),
        "heads": measure.heads and not any(c.per_head for c in declared),
    }
    problems += [
        f"{name}: true has no effect: task {task.name!r} declares no couplings {_KINDS[name]}"
        for name, in_vain in idle.items()
        if in_vain
    ]
    used = [
        coupling
        for coupling in open_to_choice
        if all(measure.chooses(view) or view not in names for view in ends(coupling))
    ]
    if used and measure.heads and not idle["heads"] and not any(c.per_head for c in used):
        pair = " and ".join(next(ends(c) for c in declared if c.per_head))
        problems.append(
            "heads: true has no effect: views leaves no coupling of single heads both of its "
            f"matrices, such as {pair}"
        )
    if not used:
        pairs = [*dict.fromkeys(" and ".join(ends(coupling)) for coupling in open_to_choice)]
        more = f" and {len(pairs) - _LISTED} more" if len(pairs) > _LISTED else ""
        problems.append(
            "alignment: views leaves no coupling both of its matrices; couplings are between "
            f"{', '.join(pairs[:_LISTED])}{more}"
        )
    return used, problems
