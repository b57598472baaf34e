"""The models of a sweep, looked at before anything is launched: can they be measured as asked?

Each structurally distinct model is built once, without numbers in it if the task's code allows that
(torch's device "meta"), so that its size costs no time. What fails for other reasons than the
measurements is left to the trials, which report it with a traceback.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from orchestrator import factors
from orchestrator.errors import Problem, SweepError
from orchestrator.expansion import Trial, assignment, canonical
from orchestrator.measure import Measure
from orchestrator.sweep import Sweep
from spectral import Coupling
from spectral.geometry import ConvGeometry, conv_geometries
from spectral.pruning import prunable
from spectral.request import Request
from tasks import Task, TrainingConfig
from tasks.config import structural_fields
from tasks.training import make_streams

MOST_MODELS = 8
"""Models that are built at most; of more, the smallest."""
_LISTED = 10  # names in a message

Shape = tuple[int, int]


@dataclass(frozen=True)
class Space:
    """Bytes of singular vectors on disk.

    Attributes:
        scratch: of one running trial at most; removed when it is committed.
        kept: of one trial at most.
        kept_total: of all trials.
    """

    scratch: int = 0
    kept: int = 0
    kept_total: int = 0


@dataclass(frozen=True)
class _Model:
    """What one structurally distinct configuration comes to."""

    views: list[str]  # all of them
    shapes: dict[str, Shape]  # of the views that are measured; empty if there are problems
    problems: list[str]


@dataclass(frozen=True)
class _Structure:
    """Configurations whose models have the same structure, as far as their parameters tell."""

    trial: Trial
    label: str  # the swept parameters that tell it from the others
    snapshots: Counter[int] = field(default_factory=Counter)  # of a trial: configurations


def check_measure(sweep: Sweep) -> list[str]:
    """Every reason why the models of a sweep cannot be measured as its file asks; empty if none.

    Patterns of `views` that match nothing, more vectors than any matrix has, couplings that do not
    fit, ``alignment`` without couplings, ``operator`` without convolutions or with one whose grid
    is not known, weights that are not real floating-point numbers.
    """
    return Inspection(sweep).problems


def refuse(sweep: Sweep) -> Inspection:
    """Look at the models, and raise what `check_measure` finds.

    Raises:
        SweepError: all of it.
    """
    found = Inspection(sweep)
    if problems := found.problems:
        raise SweepError(sweep.source, [Problem(text, "$.measure") for text in problems])
    return found


class Inspection:
    """The models of a sweep. None is built if nothing of what is measured depends on them."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.measure = sweep.measure
        needing = {"operator", "pruned"}.intersection(sweep.measure.groups)
        self.structures: list[_Structure] = []
        if sweep.measure.views or sweep.measure.uses_vectors or needing:
            self.structures = sorted(_structures(sweep).values(), key=_size)
        self.built: list[tuple[_Structure, _Model]] = []
        for structure in self.structures[:MOST_MODELS]:
            if (model := _inspect(sweep.task_class, structure.trial)) is not None:
                self.built.append((structure, model))

    @property
    def problems(self) -> list[str]:
        """Each with the configurations it is about, unless it is about all."""
        everything = dict.fromkeys(name for _, model in self.built for name in model.views)
        found: list[str] = []
        if len(self.built) == len(self.structures):  # else a pattern may be for another model
            found += _idle_patterns(self.measure, list(everything))
        about: dict[str, list[str]] = {}
        for structure, model in self.built:
            own = list(model.problems)
            chooses = self.measure.chooses
            if not any(map(chooses, model.views)) and any(map(chooses, everything)):
                own = ["views: no matrix of the model is chosen"]
            for problem in dict.fromkeys(own):
                about.setdefault(problem, []).append(structure.label)
        for problem, labels in about.items():
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            where = "" if len(labels) == len(self.built) else f" (at {labels[0]}{more})"
            found.append(f"{problem}{where}")
        return found

    def space(self) -> Space | None:
        """How many bytes of singular vectors the trials write; None if no model can be built.

        Exact for the models that are built; others are taken to be as large as the largest of
        those.
        """
        if not self.measure.uses_vectors:
            return Space()
        if not self.built:
            return None
        sizes = {
            id(structure): factors.num_bytes(model.shapes, self.measure)
            for structure, model in self.built
        }
        largest = max(sizes.values())
        scratch = kept = total = 0
        for structure in self.structures:
            size = sizes.get(id(structure), largest)
            for snapshots, configurations in structure.snapshots.items():
                stay = {"none": 0, "final": 1, "all": snapshots}[self.measure.keep]
                there = snapshots if "agreement" in self.measure.groups else stay
                scratch = max(scratch, size * (there - stay))
                kept = max(kept, size * stay)
                total += size * stay * configurations
        return Space(scratch, kept, total * len(self.sweep.seeds))


def _structures(sweep: Sweep) -> dict[str, _Structure]:
    """By the values of the task's own structural parameters."""
    config = sweep.task_class.Config
    own = [n for n in structural_fields(config) if n not in TrainingConfig.model_fields]
    swept = [name for name in sweep.axes if name in own]
    found: dict[str, _Structure] = {}
    # the first seed's trials are one of each configuration
    for trial in itertools.islice(sweep.trials(), sweep.num_configurations):
        key = canonical([trial.params[name] for name in own])
        if key not in found:
            label = " ".join(assignment(name, trial.params[name]) for name in swept)
            found[key] = _Structure(trial, label)
        found[key].snapshots[len(trial.snapshots)] += 1
    return found


def _size(structure: _Structure) -> float:
    """Something that grows with a model: the sum of its numbers."""
    fields = set(structure.trial.params) - set(TrainingConfig.model_fields)
    values = (structure.trial.params[name] for name in fields)
    return sum(v for v in values if isinstance(v, int | float) and not isinstance(v, bool))


# --- one model ------------------------------------------------------------------------------


def _inspect(task_class: type[Task], trial: Trial) -> _Model | None:
    """Build a trial's model and look at it; None if the task's code raises."""
    for device in ("meta", "cpu"):
        try:
            return _look_at(task_class, trial, device)
        except Exception:  # whatever it is, the trial will say it better
            continue
    return None


def _look_at(task_class: type[Task], trial: Trial, device: str) -> _Model:
    config = task_class.Config.model_validate_json(json.dumps(dict(trial.params)), strict=True)
    task, measure = task_class([config]), trial.measure
    streams = make_streams([config], [trial.seed]).to(device)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model = task.build(streams)
    # as built: the training loop converts what is not real, and loses half of it
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    model.to(config.dtype)
    views = task.views(model)
    chosen = [view for view in views if measure.chooses(view.name)]
    couplings, problems = _couplings(task, model, measure, {view.name for view in views})
    geometries: dict[str, ConvGeometry] | None = {}
    if "operator" in measure.groups and all(view.layout == "matrix" for view in chosen):
        of = "the views chosen" if measure.views else "the model"
        problems.append(f"operator: there is no convolution among the matrices of {of}")
    elif "operator" in measure.groups:
        # as `orchestrator.measuring` does it in the trial
        data = {name: t[0, :2] for name, t in task.eval_data(streams, task.splits[0]).items()}
        model.eval()
        try:
            with torch.no_grad(), torch.device(device):
                geometries = conv_geometries(model, lambda: task.evaluate(model, data))
        except ValueError as error:
            if not str(error).startswith("operator: "):
                raise
            problems.append(str(error))
            geometries = None
    if "pruned" in measure.groups and not prunable(model, exempt_last=measure.exempt_last):
        advice = "; the last one is exempt unless pruned: {last: included}"
        problems.append(f"pruned: there is no matrix to cut{advice if measure.exempt_last else ''}")
    known = geometries is not None
    groups = [group for group in measure.groups if group != "operator" or known]
    request = Request(
        chosen, groups, couplings, vectors=measure.vectors, geometries=geometries or {}
    )
    parameters = dict(model.named_parameters())
    problems += request.problems(parameters, stacked=False)
    problems += [
        f"matrix view {view.name!r}: expected real floating-point weights, {view.parameter!r} is "
        f"{dtypes[view.parameter]}"
        for view in chosen
        if view.parameter in dtypes and not dtypes[view.parameter].is_floating_point
    ]
    shapes = {view.name: view.shape(parameters) for view in chosen} if not problems else {}
    return _Model([view.name for view in views], shapes, problems)


def _couplings(
    task: Task, model: nn.Module, measure: Measure, names: Collection[str]
) -> tuple[list[Coupling], list[str]]:
    """The couplings that are measured, and what is wrong with there being no others.

    Args:
        task: which declares them.
        model: for which it does.
        measure: chooses among them.
        names: of all views; a coupling of another one is returned, for `Request` to complain of.
    """
    if "alignment" not in measure.groups:
        return [], []
    declared = task.couplings(model)
    if not declared:
        return [], [f"alignment: task {task.name!r} declares no couplings of its matrices"]
    across = [coupling for coupling in declared if coupling.residual]
    problems = []
    if len(across) == len(declared) and not measure.residual:
        problems.append("alignment: all couplings are across residual streams: add residual: true")
        return [], problems
    if measure.residual and not across:
        problems.append(
            f"residual: true has no effect: task {task.name!r} declares no couplings across "
            "residual streams"
        )
    used = []
    for coupling in declared if measure.residual else (c for c in declared if not c.residual):
        ends = (coupling.first.view, coupling.second.view)
        if all(measure.chooses(view) or view not in names for view in ends):
            used.append(coupling)
    if not used:
        problems.append("alignment: views leaves no coupling both of its matrices")
    return used, problems


# --- what the file says of views and vectors ------------------------------------------------


def _idle_patterns(measure: Measure, names: Sequence[str]) -> list[str]:
    problems = []
    for pattern in measure.views:
        if any(Measure((), views=(pattern,)).chooses(name) for name in names):
            continue
        near = difflib.get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        there = ", ".join(names[:_LISTED]) or "none"
        problems.append(f"views: {pattern!r} matches no matrix{hint}; there are: {there}{more}")
    return problems
