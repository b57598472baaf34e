"""Trials and their identities: what a sweep's configurations and seeds become.

The identity of a trial is the SHA-256 of its content as canonical JSON (keys sorted, no spaces,
floats as Python's repr), its first 64 bits as 16 hex characters. The content is::

    {"evaluations":[0,50],"format":1,"measure":["ranks"],"method":1,"params":{"lr":0.003},
     "parents":[],"seed":0,"snapshots":[0,50],"task":"name","version":1}

where `method` is spectral.METHOD_VERSION, `version` the task's, and `params` holds what differs
from the defaults. `measure` is a mapping if it has options, see `Measure.content`. The content of a
configuration is the same without the seed. Steps are hashed, not the words that chose them:
``every: 50`` and ``at: [0, 50, 100]`` of 100 steps are the same measurements. Values are hashed
after validation: 1 and 1.0 agree where the task's field is a float, and a default that is stated
agrees with one that is not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from orchestrator.measure import Measure
from orchestrator.nodes import show
from orchestrator.schedules import Schedule

FORMAT = 1  # of the content above; raising it gives every trial a new identity

canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode
"""A value as JSON: equal texts exactly for equal values."""


@dataclass(frozen=True)
class Trial:
    """One configuration with one seed: all that a worker needs to know of it. Picklable.

    Attributes:
        trial_id: 16 hex characters, a hash of the content below.
        config_id: likewise, of the content without the seed.
        seed: keys every stream that the parameters do not fix.
        task: reference that ``tasks.resolve`` understands anywhere on this machine.
        task_name: the task's own name, part of the identity.
        params: every parameter, defaults filled in, without the seed; JSON types only.
        snapshots: ascending steps; 0 and the last step are always among them.
        evaluations: ascending steps at which metrics are evaluated; a superset of `snapshots`.
        measure: what a snapshot holds.
        pruned: ascending steps, a subset of `snapshots`, at which pruned models are evaluated;
            empty unless that is measured.
        parents: identities of the trials it starts from.
    """

    trial_id: str
    config_id: str
    seed: int
    task: str
    task_name: str
    params: Mapping[str, Any] = field(hash=False)
    snapshots: tuple[int, ...]
    evaluations: tuple[int, ...]
    measure: Measure
    pruned: tuple[int, ...] = ()
    parents: tuple[str, ...] = ()

    def label(self, axes: Sequence[str]) -> str:
        """``weight_decay=1.0 seed=0``: the given parameters and the seed."""
        return " ".join([*(assignment(a, self.params[a]) for a in axes), f"seed={self.seed}"])


def assignment(name: str, value: Any) -> str:
    """``name=value`` as ``--only`` takes it."""
    return f"{name}={value if isinstance(value, str) else show(value)}"


class Configuration(NamedTuple):
    """One point, in the compact form that is kept for 10^5 of them."""

    config_id: str
    steps: int
    own: dict[str, Any]  # parameters that differ from the first configuration's
    stated: str  # canonical JSON of the parameters that differ from their defaults


class _Plan(NamedTuple):
    """What the trials of one length have in common."""

    snapshots: tuple[int, ...]
    evaluations: tuple[int, ...]
    pruned: tuple[int, ...]
    before: str  # the content's JSON up to the parameters
    after: str  # and from the snapshots on


@dataclass(frozen=True)
class Expansion:
    """Everything that the trials of a sweep are made from.

    Made empty; `orchestrator.points.expand` fills in `common` and `configurations`.
    """

    task: str
    task_name: str
    version: int
    method: int
    snapshots: Schedule
    evaluations: Schedule | None
    measure: Measure
    common: dict[str, Any] = field(default_factory=dict)
    configurations: list[Configuration] = field(default_factory=list)
    _plans: dict[int, _Plan] = field(default_factory=dict, repr=False, compare=False)

    @property
    def schedules(self) -> list[Schedule]:
        """Every schedule that the file states, and the default of the snapshots."""
        stated = (self.snapshots, self.evaluations, self.measure.pruned)
        return [schedule for schedule in stated if schedule is not None]

    def trials(self, seeds: Sequence[int]) -> Iterator[Trial]:
        """Trials, made one by one: all configurations of the first seed, then of the next."""
        for seed in seeds:
            for each in self.configurations:
                plan = self._plan(each.steps)
                yield Trial(
                    trial_id=self.identity(each.stated, each.steps, seed),
                    config_id=each.config_id,
                    seed=seed,
                    task=self.task,
                    task_name=self.task_name,
                    params={**self.common, **each.own},
                    snapshots=plan.snapshots,
                    evaluations=plan.evaluations,
                    measure=self.measure,
                    pruned=plan.pruned,
                )

    def identity(self, stated: str, last: int, seed: int | None) -> str:
        """16 hex characters of the content's hash; without a seed, the configuration's.

        Args:
            stated: canonical JSON of the parameters that differ from their defaults.
            last: steps of the trial.
            seed: the trial's, or None.
        """
        plan = self._plan(last)
        seed_json = "" if seed is None else f',"seed":{seed}'
        content = f'{plan.before}{stated},"parents":[]{seed_json}{plan.after}'
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def _plan(self, last: int) -> _Plan:
        if last not in self._plans:
            snapshots, pruned = self.measure.steps(self.snapshots.steps(last), last)
            measure = self.measure.content(snapshots, pruned)
            more = self.evaluations.steps(last) if self.evaluations else ()
            evaluations = tuple(sorted({*snapshots, *more}))
            # in two pieces, because 10^5 trials differ only in what stands between them
            before = (
                f'{{"evaluations":{canonical(evaluations)},"format":{FORMAT},'
                f'"measure":{canonical(measure)},"method":{self.method},"params":'
            )
            after = (
                f',"snapshots":{canonical(snapshots)},"task":{canonical(self.task_name)},'
                f'"version":{self.version}}}'
            )
            self._plans[last] = _Plan(snapshots, evaluations, pruned, before, after)
        return self._plans[last]
