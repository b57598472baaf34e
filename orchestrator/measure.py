"""What a snapshot measures: the `measure` field of a sweep file, and its part of an identity.

    measure: [ranks, spectrum]                             # a list of groups, the default
    measure: {groups: [ranks, agreement], vectors: 50}     # or a mapping of groups and options

A worker is handed a `Measure` with each trial, so nothing here imports torch or reads YAML;
`orchestrator.measure_field` reads the field.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.schedules import KINDS, Schedule

if TYPE_CHECKING:
    from orchestrator.nodes import Node

Keep = Literal["none", "final", "all"]
KEEP = ("none", "final", "all")
DEFAULT_GROUPS: tuple[str, ...] = ("ranks", "spectrum")
DEFAULT_VECTORS = 100
DEFAULT_FRACTIONS = (0.5,)
MOST_PRUNED = 10
"""Steps at which pruned models are evaluated unless the file says when."""
USE_VECTORS = ("alignment", "agreement", "update")
"""The groups that need singular vectors."""
OPTIONS = ("groups", "vectors", "views", "residual", "heads", "keep", "workspace", "pruned")
PRUNED_OPTIONS = ("fractions", "last", *KINDS)


@dataclass(frozen=True)
class Measure:
    """What is measured at every snapshot of a trial. Picklable (without `places`), hashable.

    Attributes:
        groups: names of ``spectral.MEASUREMENTS``, sorted.
        vectors: leading singular vectors per matrix, at most its rank R; None: min(100, R).
        views: sorted patterns of view names, see `chooses`; empty: every view.
        residual: whether couplings across residual streams are measured too.
        heads: whether couplings of single heads are, where all heads are measured as one.
        fractions: ascending, each in (0, 1): shares of singular directions that pruned models keep.
        exempt_last: whether pruned models keep their last matrix whole.
        pruned: when pruned models are evaluated; None: see `steps`.
        keep: of which snapshots the leading singular vectors stay in the store.
        workspace: bytes that decompositions may take at once; None: spectral's default. It changes
            no number, so it is no part of an identity.
        places: where it stands in the file: "measure", the name of each option that is there,
            "groups:<name>" and "views:<pattern>".
    """

    groups: tuple[str, ...]
    vectors: int | None = None
    views: tuple[str, ...] = ()
    residual: bool = False
    heads: bool = False
    fractions: tuple[float, ...] = DEFAULT_FRACTIONS
    exempt_last: bool = True
    pruned: Schedule | None = None
    keep: Keep = "none"
    workspace: int | None = None
    places: Mapping[str, Node] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[Measure], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, each.name) for each in fields(self) if each.compare)

    @property
    def uses_vectors(self) -> bool:
        """Whether a group needs singular vectors."""
        return not set(USE_VECTORS).isdisjoint(self.groups)

    def num_vectors(self, rank: int) -> int:
        """How many leading singular vectors there are of a matrix with R = `rank`."""
        return min(self.vectors or DEFAULT_VECTORS, rank)

    def chooses(self, view: str) -> bool:
        """Whether the view of this name is measured.

        ``*`` stands for any text and ``?`` for any character. Brackets stand for themselves,
        because names have them: ``layers.*.query[0]`` is the first head of each layer.
        """
        patterns = (pattern.replace("[", "[[]") for pattern in self.views)
        return not self.views or any(fnmatch.fnmatchcase(view, pattern) for pattern in patterns)

    def steps(self, snapshots: Sequence[int], last: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The steps of snapshots, and those among them at which pruned models are evaluated.

        The latter are none without the group ``pruned``; with a schedule they are its steps, which
        are added to the snapshots; else at most ten snapshots, evenly by rank, first and last in.

        Args:
            snapshots: ascending steps that the sweep's own schedule chooses.
            last: steps of the trial.
        """
        if "pruned" not in self.groups:
            return tuple(snapshots), ()
        if self.pruned is None:
            return tuple(snapshots), _evenly(snapshots)
        pruned = self.pruned.steps(last)
        return tuple(sorted({*snapshots, *pruned})), pruned

    def content(self, snapshots: Sequence[int], pruned: Sequence[int]) -> Any:
        """What an identity hashes of it, in JSON types.

        The list of groups if every option has its default, else a mapping with those that have
        not. Steps stand for the schedule: who writes out the default steps has the same trial.

        Args:
            snapshots: both as `steps` returned them.
            pruned: likewise.
        """
        options: dict[str, Any] = {}
        if self.vectors not in (None, DEFAULT_VECTORS):
            options["vectors"] = self.vectors
        if self.views:
            options["views"] = list(self.views)
        if self.residual:
            options["residual"] = True
        if self.heads:
            options["heads"] = True
        if self.fractions != DEFAULT_FRACTIONS:
            options["fractions"] = list(self.fractions)
        if not self.exempt_last:
            options["exempt_last"] = False
        if pruned and tuple(pruned) != _evenly(snapshots):
            options["pruned"] = list(pruned)
        if self.keep != "none":
            options["keep"] = self.keep
        groups = list(self.groups)
        return {"groups": groups, **options} if options else groups


def _evenly(steps: Sequence[int]) -> tuple[int, ...]:
    if len(steps) <= MOST_PRUNED:
        return tuple(steps)
    # never half-way: 2 i (n - 1) is even, an odd multiple of 9 is not
    intervals = MOST_PRUNED - 1
    return tuple(steps[round(i * (len(steps) - 1) / intervals)] for i in range(MOST_PRUNED))
