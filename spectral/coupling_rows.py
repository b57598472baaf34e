"""The rows of couplings, and of the groups that they are averaged over."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spectral.alignment import Alignment, alignments
from spectral.bounded import UNKNOWN, Bounded
from spectral.chance import alignment_chance
from spectral.entropy import Array
from spectral.overlap import exactly
from spectral.rows import ScalarRow, SpectrumRow, rounded_up, scalar_row
from spectral.vectors import SingularVectors
from spectral.views import Coupling

# A coupling has the flag of either view that says most; `ill_posed` only if neither has one.
_GRAVEST = ("diverged", "zero", "collapsed", "ill_posed")


class _Subject(NamedTuple):
    """What the rows of one coupling, or of one group, are made of."""

    name: str
    members: Sequence[Alignment]
    method: str
    flag: str | None


def alignment_rows(
    couplings: Sequence[Coupling],
    vectors: Mapping[str, SingularVectors | None],
    flags: Mapping[str, str | None],
    methods: Mapping[str, str],
    *,
    entries: int = 100,
    score: int = 10,
) -> tuple[list[ScalarRow], list[SpectrumRow]]:
    """Seven numbers and a diagonal for each coupling, then for each group.

    `alignment`, `alignment/chance`, `alignment/matched`, `alignment/matched_chance`,
    `subspace_overlap`, `subspace_overlap/chance`, `subspace_overlap/dimension`, and the quantity
    `alignment/diagonal`. Couplings of equal `group` have rows of their own, and together those of
    the group, whose subject is its name: every number, and every entry of the diagonal, is the mean
    of those members' that are determined, with the mean of their intervals.

    Rows whose number, or any entry of the score, is not determined are flagged ``ill_posed``, in a
    group if that holds for any member; unless a view has a flag itself, which tells more
    (``diverged``, ``zero``, ``collapsed``, in this order). Where a view has no vectors (zero,
    diverged), what they would say is NaN, and the diagonal is as long as the other view's.

    Args:
        couplings: which vectors meet, of ONE trial: bits of a number may depend on what it is
            computed with. Those across residual streams and those of single heads are measured
            like the others; leave them out if they are not wanted.
        vectors: singular vectors of each view, by name; None or missing where there are none.
        flags: the flag of each view; missing like None.
        methods: how each view's vectors were found; where two differ the row says ``a+b``.
        entries: how many diagonal entries at most.
        score: how many of them make the score, the matching and the subspaces.

    Returns:
        scalar rows and one spectrum row per coupling and group, in the order of the couplings.

    Raises:
        ValueError: if a coupling does not fit its matrices; `check_couplings` finds that earlier.
    """
    pairs = [(vectors.get(c.first.view), vectors.get(c.second.view)) for c in couplings]
    met = [
        (coupling, a, b)
        for coupling, (a, b) in zip(couplings, pairs, strict=True)
        if a is not None and b is not None
    ]
    found = iter(alignments(met, entries=entries, score=score))
    subjects = []
    groups: dict[str, list[_Subject]] = defaultdict(list)
    for coupling, (a, b) in zip(couplings, pairs, strict=True):
        if a is not None and b is not None:
            aligned = next(found)
        else:
            aligned = _nothing(coupling, min(entries, max(v.k if v else 0 for v in (a, b))))
        views = (coupling.first.view, coupling.second.view)
        method = _joined([methods.get(view, "none") for view in views])
        own = _Subject(coupling.name, [aligned], method, _gravest(map(flags.get, views)))
        subjects.append(own)
        if coupling.group is not None:
            groups[coupling.group].append(own)
    for name, members in groups.items():
        method = _joined([part for member in members for part in member.method.split("+")])
        aligned_members = [member.members[0] for member in members]
        flag = _gravest(member.flag for member in members)
        subjects.append(_Subject(name, aligned_members, method, flag))
    scalars: list[ScalarRow] = []
    spectra: list[SpectrumRow] = []
    for subject in subjects:
        scalars += _scalars(subject)
        spectra.append(_diagonal(subject))
    return scalars, spectra


def _nothing(coupling: Coupling, entries: int) -> Alignment:
    """The alignment of a coupling one of whose views has no vectors."""
    nan = np.full(entries, math.nan)
    return Alignment(
        diagonal=nan,
        bounds=nan,
        score=UNKNOWN,
        ill_posed=True,
        chance=alignment_chance(coupling.length),
        matched=UNKNOWN,
        matched_chance=UNKNOWN,
        dimension=0,
        overlap=UNKNOWN,
        overlap_chance=math.nan,
    )


def _joined(methods: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(methods))


def _gravest(flags: Iterable[str | None]) -> str | None:
    there = set(flags)
    return next((flag for flag in _GRAVEST if flag in there), None)


def _mean(numbers: Sequence[Bounded]) -> Bounded:
    """Mean of the known ones, whose intervals' ends are averaged too."""
    if len(numbers) == 1:
        return numbers[0]
    known = [number for number in numbers if not math.isnan(number.value)]
    if not known:
        return UNKNOWN
    return Bounded(*(math.fsum(ends) / len(known) for ends in zip(*known, strict=True)))


def _scalars(subject: _Subject) -> list[ScalarRow]:
    members = subject.members
    entries_flag = subject.flag or ("ill_posed" if any(m.ill_posed for m in members) else None)
    spans_flag = subject.flag or (None if all(m.dimension for m in members) else "ill_posed")
    numbers = (
        ("alignment", [m.score for m in members], entries_flag),
        ("alignment/chance", [exactly(m.chance) for m in members], subject.flag),
        ("alignment/matched", [m.matched for m in members], entries_flag),
        ("alignment/matched_chance", [m.matched_chance for m in members], entries_flag),
        ("subspace_overlap", [m.overlap for m in members], spans_flag),
        ("subspace_overlap/chance", [exactly(m.overlap_chance) for m in members], spans_flag),
        ("subspace_overlap/dimension", [exactly(m.dimension) for m in members], spans_flag),
    )
    return [
        scalar_row(subject.name, metric, _mean(values), subject.method, flag)
        for metric, values, flag in numbers
    ]


def _diagonal(subject: _Subject) -> SpectrumRow:
    """The diagonal of a coupling; of a group, the mean over members entry by entry."""
    diagonals = [member.diagonal for member in subject.members]
    undetermined = any(np.isnan(diagonal).any() for diagonal in diagonals)
    return SpectrumRow(
        subject.name,
        "alignment/diagonal",
        _mean_entries(diagonals),
        rounded_up(_mean_entries([member.bounds for member in subject.members])),
        subject.method,
        subject.flag or ("ill_posed" if undetermined else None),
    )


def _mean_entries(vectors: Sequence[Array]) -> Array:
    """Entry by entry, the mean of those that are not NaN; NaN where all are, or end before it."""
    if len(vectors) == 1:
        return vectors[0]
    table = np.full((len(vectors), max(map(len, vectors))), math.nan)
    for row, vector in zip(table, vectors, strict=True):
        row[: len(vector)] = vector
    known = ~np.isnan(table)
    count = known.sum(0)
    total = np.where(known, table, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)
