"""The models of a sweep, looked at before anything is launched: can they be measured as asked?

Each structurally distinct model is built once, without data in it if the task's code allows that
(torch's device "meta"), which takes milliseconds whatever its size. What fails for other reasons
than the measurements is left to the trials, which report it with a traceback.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from orchestrator import factors
from orchestrator.errors import Problem, SweepError
from orchestrator.expansion import Trial, assignment, canonical
from orchestrator.measure import Measure
from orchestrator.sweep import Sweep
from spectral import MatrixView
from spectral.coupling_checks import check_couplings
from spectral.geometry import conv_geometries, missing_geometries
from spectral.pruning import prunable
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

    views: list[MatrixView]
    shapes: dict[str, Shape]
    problems: list[str]

    def chosen(self, measure: Measure) -> dict[str, Shape]:
        return {name: shape for name, shape in self.shapes.items() if measure.chooses(name)}


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
        everything = dict.fromkeys(name for _, model in self.built for name in model.shapes)
        found: list[str] = []
        if len(self.built) == len(self.structures):  # else a pattern may be for another model
            found += _idle_patterns(self.measure, list(everything))
        about: dict[str, list[str]] = {}
        for structure, model in self.built:
            own = [*model.problems, *_too_many_vectors(self.measure, model)]
            if not model.chosen(self.measure) and any(map(self.measure.chooses, everything)):
                own.append("views: no matrix of the model is chosen")
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
            id(structure): factors.num_bytes(model.chosen(self.measure), self.measure)
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
    task = task_class([config])
    streams = make_streams([config], [trial.seed]).to(device)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        model = task.build(streams).to(config.dtype)
    parameters = dict(model.named_parameters())
    views = task.views(model)
    found = _Model(views, {}, [])
    for view in views:
        try:
            found.shapes[view.name] = view.shape(parameters)
        except ValueError as error:
            found.problems.append(str(error))
            continue
        if not (dtype := parameters[view.parameter].dtype).is_floating_point:
            found.problems.append(
                f"matrix view {view.name!r}: expected real floating-point weights, "
                f"{view.parameter!r} is {dtype}"
            )
    if found.problems:
        return found
    chosen = [view for view in views if trial.measure.chooses(view.name)]
    if "alignment" in trial.measure.groups:
        found.problems.extend(_alignment_problems(trial.measure, task, model, found))
    if "operator" in trial.measure.groups:
        batch = {name: t[0] for name, t in task.batch(streams, 0, 0).items()}
        with torch.no_grad(), torch.device(device):
            found.problems.extend(
                _operator_problems(chosen, model.eval(), lambda: task.loss(model, batch))
            )
    if "pruned" in trial.measure.groups:
        exempt = trial.measure.exempt_last
        if not prunable(model, exempt_last=exempt):
            advice = ": the last is exempt unless pruned: {last: included}" if exempt else ""
            found.problems.append(f"pruned: the model has no matrix to be cut{advice}")
    return found


def _alignment_problems(
    measure: Measure, task: Task, model: nn.Module, found: _Model
) -> Sequence[str]:
    declared = task.couplings(model)
    across = [coupling for coupling in declared if coupling.residual]
    if not declared:
        return [f"alignment: task {task.name!r} declares no couplings of its matrices"]
    if len(across) == len(declared) and not measure.residual:
        return ["alignment: all couplings are across residual streams: add residual: true"]
    problems = []
    if measure.residual and not across:
        text = f"task {task.name!r} declares no couplings across residual streams"
        problems.append(f"residual: true has no effect: {text}")
    used = declared if measure.residual else [c for c in declared if not c.residual]
    problems += check_couplings(found.views, used, found.shapes)
    if not any(measure.chooses(c.first.view) and measure.chooses(c.second.view) for c in used):
        problems.append("alignment: views leaves no coupling both of its matrices")
    return problems


def _operator_problems(
    chosen: Sequence[MatrixView], model: nn.Module, run: Callable[[], object]
) -> Sequence[str]:
    if all(view.layout == "matrix" for view in chosen):
        of = "the views chosen" if chosen else "the model"
        return [f"operator: there is no convolution among the matrices of {of}"]
    try:
        geometries = conv_geometries(model, run)
    except ValueError as error:
        if not str(error).startswith("operator"):
            raise
        return [str(error)]
    return missing_geometries(chosen, geometries)


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


def _too_many_vectors(measure: Measure, model: _Model) -> list[str]:
    chosen = model.chosen(measure)
    if measure.vectors is None or not chosen:
        return []
    name, (m, n) = max(chosen.items(), key=lambda item: min(item[1]))
    if measure.vectors <= min(m, n):
        return []
    return [f"vectors: {measure.vectors} exceeds the largest rank, {min(m, n)} ({name}, {m} x {n})"]
