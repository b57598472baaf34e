"""What a snapshot is asked to measure, and what is wrong with asking for that."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from spectral.coupling_checks import check_couplings
from spectral.decompose import LARGEST_RANK
from spectral.geometry import ConvGeometry, missing_geometries
from spectral.metrics import MEASUREMENTS
from spectral.views import Coupling, MatrixView

# Groups that compare the singular vectors of every view with those of another time.
_OVER_TIME = ("agreement", "update")


@dataclass(frozen=True)
class Request:
    """What one snapshot measures.

    Attributes:
        views: the matrices; their names are the rows' subjects.
        measure: names from `MEASUREMENTS`.
        couplings: of the group `alignment`.
        vectors: leading singular vectors per matrix, at most its R; None: min(100, R).
        workspace: bytes, see `spectral.decompose`.
        geometries: parameter -> how its convolution is applied, for the group `operator`.
        prune: views of whole parameters whose bases the caller wants, to prune them.
        factors: whether the caller keeps the singular vectors of every view.
    """

    views: Sequence[MatrixView]
    measure: Sequence[str]
    couplings: Sequence[Coupling] = ()
    vectors: int | None = None
    workspace: int | None = None
    geometries: Mapping[str, ConvGeometry] = field(default_factory=dict)
    prune: Sequence[MatrixView] = ()
    factors: bool = False

    def wants(self, group: str) -> bool:
        """Whether a group is measured."""
        return group in self.measure

    @property
    def over_time(self) -> bool:
        """Whether the vectors of every view are needed, not only those that couplings name."""
        return self.factors or any(map(self.wants, _OVER_TIME))

    def with_vectors(self) -> frozenset[str]:
        """Names of the views whose singular vectors are needed."""
        if self.over_time:
            return frozenset(view.name for view in self.views)
        if not self.wants("alignment"):
            return frozenset()
        return frozenset(end.view for c in self.couplings for end in (c.first, c.second))

    def check(self, parameters: Mapping[str, Tensor], *, stacked: bool = True) -> None:
        """Refuse a request that makes no sense.

        Raises:
            ValueError: every problem, one a line: an unknown measurement, views of one name, a view
                that cannot be read, couplings that cannot meet, more vectors than any matrix has,
                `operator` for a convolution of unknown spatial size.
            TypeError: a view's weights are complex or integer.
        """
        problems = self.problems(parameters, stacked=stacked)
        if problems:
            raise ValueError("\n".join(problems))
        for view in [*self.views, *self.prune]:
            dtype = parameters[view.parameter].dtype
            if not dtype.is_floating_point:
                raise TypeError(
                    f"matrix view {view.name!r}: expected real floating-point weights, "
                    f"{view.parameter!r} is {dtype}"
                )

    def problems(self, parameters: Mapping[str, Tensor], *, stacked: bool = True) -> list[str]:
        """What `check` would raise, as a list of sentences."""
        found = []
        unknown = [name for name in self.measure if name not in MEASUREMENTS]
        for name in unknown:
            near = difflib.get_close_matches(str(name), MEASUREMENTS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            found.append(f"unknown measurement {name!r}{hint}; there are {', '.join(MEASUREMENTS)}")
        names = [view.name for view in self.views]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            found.append(f"more than one matrix view is named {', '.join(map(repr, repeated))}")
        shapes: dict[str, tuple[int, int]] = {}
        for view in [*self.views, *self.prune]:
            try:
                shape = shapes[view.name] = view.shape(parameters, stacked=stacked)
            except ValueError as error:
                found.append(str(error))
                continue
            if 0 in shape:
                found.append(f"matrix view {view.name!r} has no entries: its shape is {shape}")
        if found:
            return found  # what follows would speak of the same mistakes
        if self.wants("alignment"):
            found += check_couplings(self.views, self.couplings, shapes)
        if self.vectors is not None and self.vectors < 1 and self.with_vectors():
            found.append(f"vectors: expected at least 1, got {self.vectors}")
        elif self.vectors is not None and self.views:
            largest = max(self.views, key=lambda view: min(shapes[view.name]))
            rank = min(shapes[largest.name])
            if self.vectors > rank:
                m, n = shapes[largest.name]
                found.append(
                    f"vectors: {self.vectors} exceeds the largest rank, {rank} ({largest.name}, "
                    f"{m} x {n})"
                )
        for view in self.prune:
            m, n = shapes[view.name]
            if min(m, n) > LARGEST_RANK:
                found.append(
                    f"pruned: {view.name} ({m} x {n}) has more than {LARGEST_RANK} singular "
                    "directions, of which only the leading ones are computed"
                )
        if self.wants("operator"):
            found += missing_geometries(self.views, self.geometries)
        return found
