"""The one call a trial makes: every spectral measurement of a group of models at one step.

A snapshot has two halves. `begin_snapshot` reads the weights and, on an accelerator, puts copies
and Gram matrices on the training stream without waiting for them; `BegunSnapshot.finish` solves,
bounds and compares, and may run in another thread while training goes on. `take_snapshot` is one
after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from spectral.agreement import Compared, agreement_chance_row, agreement_rows
from spectral.coupling_rows import alignment_rows
from spectral.decompose import (
    DEFAULT_VECTORS,
    DEFAULT_WORKSPACE,
    EFFECTIVE_RANK_TOLERANCE,
    LARGEST_RANK,
    Decomposition,
    Enqueued,
    batches_of,
    decompose_at_most,
    enqueue,
    finish,
)
from spectral.geometry import ConvGeometry
from spectral.operators import conv_operator_spectrum, operator_rows
from spectral.rank_rows import rank_rows
from spectral.ranks import frobenius_norm
from spectral.request import Request
from spectral.rows import ScalarRow, SpectrumRow, rounded_up
from spectral.state import (
    SnapshotState,
    factors_of,
    initial_norms,
    recalled_vectors,
    recalled_weights,
    remember_vectors,
    remember_weights,
)
from spectral.update import update_rows, weight_update
from spectral.vectors import SingularVectors
from spectral.views import Coupling, MatrixView

# A matrix whose Frobenius norm is below this part of its norm at step 0 is flagged `collapsed`.
# Weight decay alone does that to a matrix nothing drives (AdamW, lr * decay = 3e-3: 4,600 steps).
COLLAPSED_BELOW = 1e-6


@dataclass
class Snapshot:
    """What was measured of one trial at one step.

    Attributes:
        scalars: rows of numbers, in the order of the views, then of the couplings.
        spectra: rows of vectors, likewise.
        factors: leading singular vectors of each view in float32, for comparison with later ones;
            empty unless a measurement over time was asked for, or `factors`.
        prune: decompositions with bases, of the views that the caller wants to prune.
        notes: method and flag of each view, wherever there are factors.
    """

    scalars: list[ScalarRow]
    spectra: list[SpectrumRow]
    factors: dict[str, SingularVectors] = field(default_factory=dict)
    prune: list[Decomposition] = field(default_factory=list)
    notes: dict[str, tuple[str, str | None]] = field(default_factory=dict)


def take_snapshot(
    views: Sequence[MatrixView],
    parameters: Mapping[str, Tensor],
    measure: Sequence[str],
    state: SnapshotState | None,
    *,
    couplings: Sequence[Coupling] = (),
    vectors: int | None = None,
    workspace: int | None = None,
    geometries: Mapping[str, ConvGeometry] | None = None,
    prune: Sequence[MatrixView] = (),
    factors: bool = False,
) -> tuple[list[Snapshot], SnapshotState]:
    """Measure every view of every trial of a group, from one decomposition per matrix.

    Flags of a row: ``zero``; ``diverged`` (an entry is not finite: values are NaN); ``ill_posed``
    (every solver failed, or the singular vectors that the row needs are not determined);
    ``collapsed`` (the Frobenius norm is below 1e-6 of step 0's, or every entry is subnormal in the
    weights' dtype: the numbers are right, but say little about training); ``estimated`` (R above
    2048: statistical intervals). Ranks never depend on the scale of the weights.

    With one intra-op thread on a CPU, and MKL_CBWR=AVX2,STRICT, the rows of a trial are bitwise the
    same whatever else is in its group; on an accelerator that is not promised.

    Args:
        views: the matrices; their names are the rows' subjects and must differ.
        parameters: named parameters with a leading group dimension K; any real floating dtype and
            device. Not modified; nothing is recorded for differentiation, no generator is touched.
        measure: names from `MEASUREMENTS`. `pruned` adds nothing here: it is an evaluation, made by
            the caller with what `prune` returns.
        state: what the previous call returned; None at step 0. Not modified.
        couplings: see `Request`, which explains the rest too.
        vectors: likewise.
        workspace: likewise.
        geometries: likewise.
        prune: likewise.
        factors: likewise.

    Returns:
        K snapshots, and the state for the next call: tensors with a leading dimension K (so that a
        trial's state is a slice of them), see `spectral.state`.

    Raises:
        ValueError: see `Request.check`; also if the group sizes disagree, or the state is not of
            these views and this group.
        TypeError: if a view's weights are complex or integer.
    """
    request = Request(
        views, measure, couplings, vectors, workspace, geometries or {}, prune, factors
    )
    return begin_snapshot(request, parameters).finish(state)


@dataclass(frozen=True)
class _Part:
    """Matrices that are decomposed with the same demands."""

    views: list[MatrixView]
    vectors: int  # at most; 0: values only
    basis: bool
    enqueued: list[Enqueued] | None = None  # of all matrices in turn, on an accelerator
    order: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class BegunSnapshot:
    """A snapshot whose weights have been read; see `begin_snapshot`."""

    request: Request
    group_size: int
    weights: dict[str, Tensor]  # the parameters that any view reads, as they were
    parts: list[_Part]

    def finish(self, state: SnapshotState | None) -> tuple[list[Snapshot], SnapshotState]:
        """The measurements; arguments, results and errors as of `take_snapshot`."""
        with torch.no_grad():
            return self._finish(state)

    def _finish(self, state: SnapshotState | None) -> tuple[list[Snapshot], SnapshotState]:
        request, size = self.request, self.group_size
        names = [view.name for view in request.views]
        found: dict[_Key, list[Decomposition]] = {}
        for part in self.parts:
            found.update(self._decomposed(part, state))
        own = [found[_key(view)] for view in request.views]
        # trial after trial, each with all its views
        decompositions = [of_view[k] for k in range(size) for of_view in own]
        norms = np.array([frobenius_norm(d).value for d in decompositions])
        state, initial = initial_norms(state, names, norms.reshape(size, len(names)))
        flags = [
            _flag(decomposition, norm, before)
            for decomposition, norm, before in zip(
                decompositions, norms.tolist(), initial.reshape(-1).tolist(), strict=True
            )
        ]
        subjects = names * size
        ranks: list[list[ScalarRow]] = [[] for _ in subjects]
        if request.wants("ranks"):
            ranks = rank_rows(subjects, decompositions, flags)
        snapshots = []
        for k in range(size):
            of_trial = slice(k * len(names), (k + 1) * len(names))
            snapshot = Snapshot([row for rows in ranks[of_trial] for row in rows], [])
            known = dict(zip(names, decompositions[of_trial], strict=True))
            flag_of = dict(zip(names, flags[of_trial], strict=True))
            if request.wants("spectrum"):
                snapshot.spectra += [_spectrum_row(n, d, flag_of[n]) for n, d in known.items()]
            if request.over_time:
                snapshot.factors = {name: factors_of(d) for name, d in known.items()}
                snapshot.notes = {name: (d.method, flag_of[name]) for name, d in known.items()}
            if request.wants("alignment"):
                _add(snapshot, _alignment(request, known, flag_of))
            if request.wants("agreement"):
                _add(snapshot, _agreement(snapshot.factors, known, flag_of, state, k))
            if request.wants("update"):
                _add(snapshot, self._updates(state, k))
            if request.wants("operator"):
                _add(snapshot, self._operators(flag_of, k))
            snapshot.prune = [found[_key(view)][k] for view in request.prune]
            snapshots.append(snapshot)
        self._remember(state, snapshots)
        return snapshots, state

    def _decomposed(
        self, part: _Part, state: SnapshotState | None
    ) -> dict[_Key, list[Decomposition]]:
        """The decompositions of a part: one per trial for each of its views."""
        size = self.group_size
        if part.enqueued is not None:
            flat = finish(
                part.enqueued,
                vectors=part.vectors,
                basis=part.basis,
                tolerance=EFFECTIVE_RANK_TOLERANCE,
            )
            ordered = dict(zip(part.order, flat, strict=True))
            flat = [ordered[position] for position in range(len(flat))]
        else:
            matrices = [m for view in part.views for m in view.read(self.weights, stacked=True)]
            starts = [
                _start(state, view, k) if min(view.shape(self.weights, stacked=True)) > LARGEST_RANK
                else None
                for view in part.views
                for k in range(size)
            ]  # fmt: skip
            flat = decompose_at_most(
                matrices,
                vectors=part.vectors,
                basis=part.basis,
                workspace=self.request.workspace,
                starts=starts,
            )
        return {_key(view): flat[i * size : (i + 1) * size] for i, view in enumerate(part.views)}

    def _updates(self, state: SnapshotState, k: int) -> _Rows:
        before = recalled_weights(state)
        views = self.request.views
        if not before:  # step 0
            return [], []
        pairs = [(v.read(self.weights, stacked=True), v.read(before, stacked=True)) for v in views]
        deltas = [weight_update(now[k], earlier[k]) for now, earlier in pairs]
        vectors = [recalled_vectors(state, "previous", view.name, k) for view in views]
        decompositions = decompose_at_most(deltas, vectors=0, workspace=self.request.workspace)
        names = [view.name for view in views]
        scalars: list[ScalarRow] = []
        spectra: list[SpectrumRow] = []
        for rows in update_rows(names, vectors, decompositions, deltas):
            scalars += rows[0]
            spectra += rows[1]
        return scalars, spectra

    def _operators(self, flag_of: Mapping[str, str | None], k: int) -> _Rows:
        scalars: list[ScalarRow] = []
        spectra: list[SpectrumRow] = []
        for view in self.request.views:
            if view.layout == "matrix" or not _whole(view):
                continue
            spectrum = conv_operator_spectrum(
                self.weights[view.parameter][k],
                self.request.geometries[view.parameter],
                workspace=self.request.workspace or DEFAULT_WORKSPACE,
            )
            rows = operator_rows(view.name, spectrum, flag_of[view.name])
            scalars += rows[0]
            spectra += rows[1]
        return scalars, spectra

    def _remember(self, state: SnapshotState, snapshots: Sequence[Snapshot]) -> None:
        """Write what the next snapshot compares with into the state."""
        request = self.request
        over_time = request.wants("agreement") or request.wants("update")
        for view in request.views if over_time else ():
            vectors = [snapshot.factors[view.name] for snapshot in snapshots]
            if request.wants("agreement") and f"initial/left/{view.name}" not in state:
                remember_vectors(state, "initial", view.name, vectors)
            remember_vectors(state, "previous", view.name, vectors)
        if request.wants("update"):
            names = dict.fromkeys(view.parameter for view in request.views)
            remember_weights(state, {name: self.weights[name] for name in names})


_Key = tuple[object, ...]
_Rows = tuple[list[ScalarRow], list[SpectrumRow]]


def _key(view: MatrixView) -> _Key:
    """Equal for views of the same matrix: it is decomposed once, whatever the views are called."""
    return view.parameter, view.layout, view.rows, view.columns, view.transpose


def _whole(view: MatrixView) -> bool:
    return view.rows is None and view.columns is None


def begin_snapshot(
    request: Request, parameters: Mapping[str, Tensor], *, copy: bool = False
) -> BegunSnapshot:
    """Read the weights of a snapshot.

    Args:
        request: what to measure.
        parameters: named parameters with a leading group dimension K; not modified.
        copy: whether the weights may change before `finish` runs. They are then copied and their
            Gram matrices formed at once, on the current stream, which is not waited for.

    Raises:
        ValueError: see `take_snapshot`.
        TypeError: likewise.
    """
    request.check(parameters)
    every = [*request.views, *request.prune]
    used = dict.fromkeys(view.parameter for view in every)
    weights = {name: parameters[name].detach() for name in used}
    size = _group_size(every, weights, parameters)
    if copy:
        weights = {name: value.clone() for name, value in weights.items()}
    parts = [_enqueued(part, weights) if copy else part for part in _parts(request)]
    return BegunSnapshot(request, size, weights, parts)


def _parts(request: Request) -> list[_Part]:
    """Each matrix once, with the most that any of its views wants."""
    with_vectors = request.with_vectors()
    bases = {_key(view) for view in request.prune}
    views: dict[_Key, MatrixView] = {}
    vectors: dict[_Key, bool] = {}
    for view in [*request.views, *request.prune]:
        key = _key(view)
        views.setdefault(key, view)
        vectors[key] = vectors.get(key, False) or view.name in with_vectors
    parts: dict[tuple[bool, bool], list[MatrixView]] = {}
    for key, view in views.items():
        parts.setdefault((vectors[key], key in bases), []).append(view)
    return [
        _Part(of_part, (request.vectors or DEFAULT_VECTORS) if wants else 0, basis)
        for (wants, basis), of_part in parts.items()
    ]


def _enqueued(part: _Part, weights: Mapping[str, Tensor]) -> _Part:
    matrices = [matrix for view in part.views for matrix in view.read(weights, stacked=True)]
    if any(min(matrix.shape) > LARGEST_RANK for matrix in matrices):
        return part  # subspace iteration multiplies with the copies themselves
    with torch.no_grad():
        batches = list(batches_of(matrices))
        enqueued = [enqueue([matrices[i] for i in batch]) for batch in batches]
    return replace(part, enqueued=enqueued, order=[i for batch in batches for i in batch])


def _group_size(
    views: Sequence[MatrixView], weights: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> int:
    if not views:
        # without a view there is still one (empty) snapshot per trial
        return max((len(value) for value in parameters.values()), default=0)
    sizes = {len(value) for value in weights.values()}
    if len(sizes) > 1:
        listed = ", ".join(f"{view.name} {len(weights[view.parameter])}" for view in views)
        raise ValueError(f"the views disagree about the number of trials in the group: {listed}")
    return sizes.pop()


def _start(state: SnapshotState | None, view: MatrixView, k: int) -> Tensor | None:
    earlier = recalled_vectors(state or {}, "previous", view.name, k)
    return None if earlier is None else earlier.right


def _flag(decomposition: Decomposition, norm: float, initial: float) -> str | None:
    # it is the rows that rest on an estimate that are flagged so, not all of a large matrix
    own = None if decomposition.flag == "estimated" else decomposition.flag
    # comparisons with the NaN norm of a matrix that was not finite at step 0 are false
    return "collapsed" if own is None and norm < COLLAPSED_BELOW * initial else own


def _add(snapshot: Snapshot, rows: _Rows) -> None:
    snapshot.scalars += rows[0]
    snapshot.spectra += rows[1]


def _alignment(
    request: Request, known: Mapping[str, Decomposition], flag_of: Mapping[str, str | None]
) -> _Rows:
    return alignment_rows(
        request.couplings,
        {name: decomposition.vectors for name, decomposition in known.items()},
        flag_of,
        {name: decomposition.method for name, decomposition in known.items()},
    )


def _agreement(
    factors: Mapping[str, SingularVectors],
    known: Mapping[str, Decomposition],
    flag_of: Mapping[str, str | None],
    state: SnapshotState,
    k: int,
) -> _Rows:
    """With step 0 and with the previous snapshot; at step 0 with itself alone."""
    scalars: list[ScalarRow] = []
    spectra: list[SpectrumRow] = []
    for variant in ("initial", "previous"):
        compared = []
        for name, now in factors.items():
            earlier = recalled_vectors(state, variant, name, k)
            if earlier is None and variant == "previous":
                continue
            method, flag = known[name].method, flag_of[name]
            compared.append(Compared(name, now, earlier or now, method, flag))
        rows = agreement_rows(variant, compared)
        scalars += rows[0]
        spectra += rows[1]
    for name, now in factors.items():
        scalars.append(agreement_chance_row(name, now.shape, known[name].method, flag_of[name]))
    return scalars, spectra


def _spectrum_row(subject: str, decomposition: Decomposition, flag: str | None) -> SpectrumRow:
    return SpectrumRow(
        subject,
        "singular_values",
        decomposition.values,
        rounded_up(decomposition.bounds),
        decomposition.method,
        flag,
    )
