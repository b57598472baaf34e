"""A sweep before anything is launched: can its models be measured as asked, are its data there?

Each structurally distinct model is built once, without numbers in it if the task's code allows that
(torch's device "meta"), so that its size costs no time. What fails for other reasons than the
measurements is left to the trials, which report it with a traceback. What the machine lacks for a
configuration, the task says itself (`Task.missing`).
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator import factors, planning
from orchestrator.expansion import assignment, canonical
from orchestrator.inspection import Model, inspect, option_of
from orchestrator.measure import Measure
from orchestrator.nodes import Node, Problems
from orchestrator.store import Store
from orchestrator.sweep import Sweep, Trial
from tasks import Task, TaskError, TrainingConfig, data
from tasks.config import structural_fields

MOST_MODELS = 8
"""Models that are built at most; of more, the smallest."""
MOST_ASKED = 1000
"""Configurations that are asked about at most what the machine lacks for them."""
_LISTED = 10  # names in a message

Found = tuple[str, str]
"""A problem, and the one of `Measure.places` that it is about."""


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
class _Structure:
    """Configurations whose models have the same structure, as far as their parameters tell."""

    trial: Trial
    label: str  # the swept parameters that tell it from the others
    snapshots: Counter[int] = field(default_factory=Counter)  # of a trial: configurations


def check_measure(sweep: Sweep) -> list[str]:
    """Every reason why the models of a sweep cannot be measured as its file asks; empty if none.

    Patterns of `views` that match nothing, more vectors than any matrix has, couplings that do not
    fit, ``alignment`` without couplings, ``operator`` without convolutions or with one whose grid
    is not known, ``pruned`` of matrices that are too large or with statistics that cannot be
    estimated again, weights that are not real floating-point numbers, and what the task's code
    refuses with a ValueError when it is asked for views and couplings.
    """
    return [message for message, _ in Inspection(sweep).problems]


def refuse(
    sweep: Sweep, *, launch: Sequence[Trial] | None = None, here: bool = False
) -> Inspection:
    """Look at the models, and raise what `check_measure` finds.

    Args:
        sweep: a validated sweep.
        launch: the trials that are to be launched; None: all.
        here: they are to run on this machine, so raise what `lacking` finds too.

    Raises:
        SweepError: all of it, with its places in the file.
    """
    found = Inspection(sweep)
    problems = Problems()
    for message, option in found.problems:
        problems.add(sweep.measure.places.get(option), message)
    for message, place in lacking(sweep, launch) if here else ():
        problems.add(place, message)
    problems.check(sweep.source)
    return found


def lacking(sweep: Sweep, launch: Sequence[Trial] | None = None) -> list[tuple[str, Node | None]]:
    """What this machine lacks for the trials, each text once, and the place in the file.

    That is the value of the parameter `data` that needs it, or the task where the file names none.

    Args:
        sweep: a validated sweep.
        launch: ask for these trials only; None: for all.
    """
    data.use(sweep.data)
    found: dict[str, Node | None] = {}
    for trial in asking(sweep, launch):
        for text in said(sweep.task_class, trial.params):
            found.setdefault(text, place_of(sweep, trial))
    return [*found.items()]


def asking(sweep: Sweep, launch: Sequence[Trial] | None = None) -> list[Trial]:
    """Trials that differ in structural parameters, one of each kind; none if the task needs none.

    Args:
        sweep: a validated sweep.
        launch: choose among these; None: among all.
    """
    inherited = getattr(Task.missing, "__func__", None)
    if getattr(sweep.task_class.missing, "__func__", None) is inherited:
        return []
    fields = structural_fields(sweep.task_class.Config)
    found: dict[str, Trial] = {}
    # the first seed's trials are one of each configuration
    every = itertools.islice(sweep.trials(), sweep.num_configurations)
    for trial in every if launch is None else launch:
        found.setdefault(canonical([trial.params[name] for name in fields]), trial)
    return [*found.values()][:MOST_ASKED]


def said(task_class: type[Task], params: Mapping[str, Any]) -> list[str]:
    """What a task says is missing on this machine for a configuration.

    A task whose code raises instead has said that.
    """
    try:
        config = task_class.Config.model_validate_json(json.dumps(dict(params)), strict=True)
        return [str(text) for text in task_class.missing(config)]
    except Exception as error:  # a class of the user's
        what = str(error) if isinstance(error, TaskError) else repr(error)
        return [f"task {task_class.name} cannot tell whether its data are here: {what}"]


def to_launch(
    sweep: Sweep, only: Sequence[Trial] | None, rerun: Collection[str], *, retry_failed: bool
) -> Sequence[Trial] | None:
    """The trials that a run would dispatch, without a result or to be run again; None: all.

    Args:
        sweep: a validated sweep; its store need not be there yet.
        only: choose among these; None: among all.
        rerun: trials whose results so far no longer count.
        retry_failed: failed trials are dispatched again.

    Raises:
        DamageError: a file of the store is damaged.
    """
    done = set[str]()
    if (sweep.root / "epochs").is_dir():
        known = planning.history(Store.open(sweep.root))
        done = {*known.results, *(() if retry_failed else known.failed)}.difference(rerun)
    if not done:
        return only
    trials = sweep.trials() if only is None else only
    return [trial for trial in trials if trial.trial_id not in done]


def place_of(sweep: Sweep, trial: Trial) -> Node | None:
    """Where a sweep's file chooses the data of a trial."""
    return sweep.place("task", "data", trial.params.get("data"))


class Inspection:
    """The models of a sweep. None is built if nothing of what is measured depends on them.

    Attributes:
        failure: what the first model that could not be built failed with; "" if all could.
    """

    def __init__(self, sweep: Sweep) -> None:
        data.use(sweep.data)
        self.sweep = sweep
        self.measure = sweep.measure
        needing = {"operator", "pruned"}.intersection(sweep.measure.groups)
        self.structures: list[_Structure] = []
        if sweep.measure.views or sweep.measure.uses_vectors or needing:
            self.structures = sorted(_structures(sweep).values(), key=_size)
        self.built: list[tuple[_Structure, Model]] = []
        self.failure = ""
        for structure in self.structures[:MOST_MODELS]:
            model = inspect(sweep.task_class, structure.trial)
            if isinstance(model, Model):
                self.built.append((structure, model))
            else:
                self.failure = self.failure or model

    @property
    def problems(self) -> list[Found]:
        """Each with the configurations it is about, unless it is about all."""
        each = [(name, model) for _, model in self.built for name in model.views or ()]
        there = dict.fromkeys(name for name, model in each if name not in model.waiting)
        waiting = {name: model.waiting[name] for name, model in each if name not in there}
        found: list[Found] = []
        known = all(model.views is not None for _, model in self.built)
        if known and len(self.built) == len(self.structures):  # else one may be for another model
            found += _idle_patterns(self.measure, list(there), waiting)
        none_fits = bool(found) and not any(map(self.measure.chooses, there))
        about: dict[str, list[str]] = {}
        for structure, model in self.built:
            own = list(model.problems)
            if none_fits:  # that there are no couplings or convolutions then follows
                own = [p for p in own if not p.startswith(("alignment: ", "operator: "))]
            elif (
                model.views is not None
                and not any(map(self.measure.chooses, set(model.views) - set(model.waiting)))
                and any(map(self.measure.chooses, there))
            ):
                own = ["views: no matrix of the model is chosen"]
            for problem in dict.fromkeys(own):
                about.setdefault(problem, []).append(structure.label)
        for problem, labels in about.items():
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            where = "" if len(labels) == len(self.built) else f" (at {labels[0]}{more})"
            found.append((f"{problem}{where}", option_of(problem, self.measure)))
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


def _idle_patterns(
    measure: Measure, names: Sequence[str], waiting: Mapping[str, str]
) -> list[Found]:
    """The patterns that choose nothing, in file order.

    The last of those that match nothing says what there is.

    Args:
        measure: which has them.
        names: of the views that it can choose.
        waiting: of others, that lack a coupling -> what to do about it.
    """
    written = {place.removeprefix("views:"): None for place in measure.places}
    patterns = [pattern for pattern in written if pattern in measure.views] or measure.views
    found: list[Found] = []
    unknown: list[int] = []
    for pattern in patterns:
        alone = Measure((), views=(pattern,))
        if any(map(alone.chooses, names)):
            continue
        place = f"views:{pattern}"
        asleep = next(filter(alone.chooses, waiting), None)
        if asleep is not None:
            what = "matches only matrices that are measured for their couplings"
            found.append((f"views: {pattern!r} {what}: {waiting[asleep]}", place))
            continue
        unknown.append(len(found))
        near = difflib.get_close_matches(pattern.replace("*", ""), names, n=3, cutoff=0.5)
        hint = f" (did you mean {' or '.join(near)}?)" if near else ""
        found.append((f"views: {pattern!r} matches no matrix{hint}", place))
    if unknown:
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        there = ", ".join(names[:_LISTED]) or "none"
        message, option = found[unknown[-1]]
        found[unknown[-1]] = (f"{message}; there are: {there}{more}", option)
    return found
