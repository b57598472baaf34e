"""The one call a trial makes: every spectral measurement of a group of models at one step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral.bounded import Bounded
from spectral.decompose import Decomposition, decompose
from spectral.metrics import MEASUREMENTS
from spectral.ranks import (
    effective_ranks,
    frobenius_norm,
    normalised,
    spectral_norm,
    stable_rank,
)
from spectral.rows import ScalarRow, SpectrumRow, rounded_up
from spectral.views import MatrixView

# A matrix whose Frobenius norm is below this part of its norm at step 0 is flagged `collapsed`.
# Weight decay alone does that to a matrix nothing drives (AdamW, lr * decay = 3e-3: 4,600 steps).
COLLAPSED_BELOW = 1e-6

SnapshotState = dict[str, Tensor]

_INITIAL_NORM = "initial_frobenius/"


@dataclass
class Snapshot:
    """Every row of one trial at one step, in the order of the views."""

    scalars: list[ScalarRow]
    spectra: list[SpectrumRow]


def take_snapshot(
    views: Sequence[MatrixView],
    parameters: Mapping[str, Tensor],
    measure: Sequence[str],
    state: SnapshotState | None,
) -> tuple[list[Snapshot], SnapshotState]:
    """Measure every view of every trial of a group, from one decomposition per matrix.

    Flags of a row: ``zero``; ``diverged`` (an entry is not finite: values are NaN); ``ill_posed``
    (every solver failed: values are NaN, the Frobenius norm stands); ``collapsed`` (the Frobenius
    norm is below 1e-6 of step 0's, or every entry is subnormal in the weights' dtype: the numbers
    are right, but say little about training). Ranks never depend on the scale of the weights.

    With one intra-op thread on a CPU, and MKL_CBWR=AVX2,STRICT, the rows of a trial are bitwise the
    same whatever else is in its group; on an accelerator that is not promised.

    Args:
        views: the matrices; their names are the rows' subjects and must differ.
        parameters: named parameters with a leading group dimension K; any real floating dtype and
            device. Not modified; nothing is recorded for differentiation, no generator is touched.
        measure: names from `MEASUREMENTS`.
        state: what the previous call returned; None at step 0. Not modified.

    Returns:
        K snapshots, and the state for the next call: float64 CPU tensors with a leading dimension
        K (so a trial's state is a slice of them).

    Raises:
        ValueError: if a measurement is unknown, names repeat, a view cannot be read, the group
            sizes disagree, or the state is not of these views and this group.
        TypeError: if a view's weights are complex or integer.
    """
    _check_request(views, measure)
    stacks = [view.read(parameters, stacked=True).detach() for view in views]
    group_size = _group_size(views, stacks, parameters)
    for view, stack in zip(views, stacks, strict=True):
        if not stack.dtype.is_floating_point:
            raise TypeError(
                f"matrix view {view.name!r}: expected real floating-point weights, "
                f"{view.parameter!r} is {stack.dtype}"
            )
    # trial after trial, each with all its views
    decompositions = decompose([stack[k] for k in range(group_size) for stack in stacks])
    norms = [frobenius_norm(decomposition) for decomposition in decompositions]
    if state is None:
        state = _initial_state(views, [norm.value for norm in norms], group_size)
    initial = _initial_norms(views, state, group_size)
    flags = [
        _flag(decomposition, norm.value, before)
        for decomposition, norm, before in zip(decompositions, norms, initial, strict=True)
    ]
    names = [view.name for view in views] * group_size
    scalars: list[list[ScalarRow]] = [[] for _ in names]
    spectra: list[SpectrumRow] = []
    if "ranks" in measure:
        ranks = effective_ranks(decompositions)
        scalars = [
            _scalar_rows(*item)
            for item in zip(names, decompositions, ranks, norms, flags, strict=True)
        ]
    if "spectrum" in measure:
        spectra = [_spectrum_row(*item) for item in zip(names, decompositions, flags, strict=True)]
    snapshots = []
    for k in range(group_size):
        own = slice(k * len(views), (k + 1) * len(views))
        rows = [row for view_rows in scalars[own] for row in view_rows]
        snapshots.append(Snapshot(rows, spectra[own]))
    return snapshots, dict(state)


def _check_request(views: Sequence[MatrixView], measure: Sequence[str]) -> None:
    unknown = [name for name in measure if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(
            f"unknown measurement {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(sorted(MEASUREMENTS))}"
        )
    names = [view.name for view in views]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"more than one matrix view is named {', '.join(map(repr, repeated))}")


def _group_size(
    views: Sequence[MatrixView], stacks: Sequence[Tensor], parameters: Mapping[str, Tensor]
) -> int:
    if not stacks:
        # without a view there is still one (empty) snapshot per trial
        return max((len(value) for value in parameters.values()), default=0)
    sizes = {len(stack) for stack in stacks}
    if len(sizes) > 1:
        listed = ", ".join(f"{v.name} {len(s)}" for v, s in zip(views, stacks, strict=True))
        raise ValueError(f"the views disagree about the number of trials in the group: {listed}")
    return sizes.pop()


def _initial_state(
    views: Sequence[MatrixView], norms: Sequence[float], group_size: int
) -> SnapshotState:
    table = torch.tensor(norms, dtype=torch.float64).reshape(group_size, len(views))
    return {_INITIAL_NORM + view.name: table[:, i].clone() for i, view in enumerate(views)}


def _initial_norms(
    views: Sequence[MatrixView], state: SnapshotState, group_size: int
) -> list[float]:
    """Frobenius norms at step 0, trial after trial."""
    columns = []
    for view in views:
        norms = state.get(_INITIAL_NORM + view.name)
        if norms is None or norms.shape != (group_size,):
            found = "nothing" if norms is None else f"the shape {tuple(norms.shape)}"
            raise ValueError(
                f"the snapshot state is of other views or of another group: for {view.name!r} it "
                f"must hold the norms of {group_size} trials at step 0, but holds {found}"
            )
        columns.append(norms.tolist())
    return [column[k] for k in range(group_size) for column in columns]


def _flag(decomposition: Decomposition, norm: float, initial: float) -> str | None:
    # comparisons with the NaN norm of a matrix that was not finite at step 0 are false
    if decomposition.flag is None and norm < COLLAPSED_BELOW * initial:
        return "collapsed"
    return decomposition.flag


def _scalar_rows(
    subject: str, decomposition: Decomposition, rank: Bounded, norm: Bounded, flag: str | None
) -> list[ScalarRow]:
    measured = (
        ("effective_rank", rank),
        ("effective_rank/normalised", normalised(rank, decomposition)),
        ("stable_rank", stable_rank(decomposition)),
        ("norm/frobenius", norm),
        ("norm/spectral", spectral_norm(decomposition)),
    )
    rows = []
    for metric, (value, lower, upper) in measured:
        known = not math.isnan(value)
        low, high = (lower, upper) if known else (None, None)
        rows.append(ScalarRow(subject, metric, value, low, high, decomposition.method, flag))
    return rows


def _spectrum_row(subject: str, decomposition: Decomposition, flag: str | None) -> SpectrumRow:
    return SpectrumRow(
        subject,
        "singular_values",
        decomposition.values,
        rounded_up(decomposition.bounds),
        decomposition.method,
        flag,
    )
