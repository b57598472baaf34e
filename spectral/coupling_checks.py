"""Whether couplings fit the matrices they name: every problem a sentence, before any training."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

from spectral.views import Coupling, CouplingEnd, MatrixView

Shape = tuple[int, int]


def check_couplings(
    views: Sequence[MatrixView], couplings: Sequence[Coupling], shapes: Mapping[str, Shape]
) -> list[str]:
    """Every reason why the couplings cannot be measured.

    Args:
        views: the matrix views that couplings may name.
        couplings: any number of them.
        shapes: (m, n) of the matrix of each view, by the view's name.

    Returns:
        one sentence per problem, in the order of the couplings: a view that is not there (with the
        nearest names), entries beyond the end of a vector, a reshape that does not fit it, two ends
        of different lengths, a chance level's length below that of the vectors, and names that
        would give two couplings, or a coupling and a group, the same rows. Empty if all is well.
    """
    names = [view.name for view in views]
    problems = []
    for coupling in couplings:
        owner = f"coupling {coupling.name!r}: "
        unknown = [problem for end in _ends(coupling) if (problem := _unknown(end, names))]
        found = unknown or ends_problems(coupling, *(shapes[end.view] for end in _ends(coupling)))
        # both ends may be of the same unknown view
        problems += [owner + problem for problem in dict.fromkeys(found)]
    repeated = Counter(coupling.name for coupling in couplings)
    problems += [f"{n} couplings are named {name!r}" for name, n in repeated.items() if n > 1]
    groups = dict.fromkeys(c.group for c in couplings if c.group in repeated)
    problems += [f"both a coupling and a group are named {name!r}" for name in groups]
    return problems


def ends_problems(coupling: Coupling, first: Shape, second: Shape) -> list[str]:
    """What is wrong between a coupling and the shapes of its two matrices, without its name."""
    ends = list(zip(_ends(coupling), (first, second), strict=True))
    problems = [problem for end, shape in ends if (problem := _end_problem(end, shape))]
    if problems:
        return list(dict.fromkeys(problems))
    lengths = [_picked_length(end, shape) for end, shape in ends]
    if lengths[0] != lengths[1]:
        described = [
            f"{_what(end, shape)} have {_picked(end, shape, length)}"
            for (end, shape), length in zip(ends, lengths, strict=True)
        ]
        return [f"{', but '.join(described)}; both must have equally many"]
    end, shape = max(ends, key=lambda each: _full_length(*each))
    if coupling.length < _full_length(end, shape):
        return [
            f"length {coupling.length} is below {_full_length(end, shape)}, the entries of "
            f"{_what(end, shape)} before slicing: chance levels would be too high"
        ]
    return []


def _ends(coupling: Coupling) -> tuple[CouplingEnd, CouplingEnd]:
    return coupling.first, coupling.second


def _unknown(end: CouplingEnd, names: Sequence[str]) -> str | None:
    if end.view in names:
        return None
    near = difflib.get_close_matches(end.view, names, n=3, cutoff=0.5)
    if near:
        return f"there is no matrix view {end.view!r}; similar: {', '.join(near)}"
    return f"there is no matrix view {end.view!r}; there are {', '.join(names) or 'none'}"


def _what(end: CouplingEnd, shape: Shape) -> str:
    return f"the {end.side} vectors of {end.view!r} ({shape[0]} x {shape[1]})"


def _full_length(end: CouplingEnd, shape: Shape) -> int:
    return shape[0] if end.side == "left" else shape[1]


def _picked_length(end: CouplingEnd, shape: Shape) -> int:
    if end.entries is not None:
        return end.entries[1] - end.entries[0]
    return _full_length(end, shape) if end.reshape is None else end.reshape[0]


def _picked(end: CouplingEnd, shape: Shape, length: int) -> str:
    if end.entries is not None:
        return f"{length} of {_full_length(end, shape)} entries, by entries {end.entries}"
    if end.reshape is not None:
        return f"{length} of {_full_length(end, shape)} entries, by reshape {end.reshape}"
    axis = "rows" if end.side == "left" else "columns"
    return f"{length} entries, its {axis}"


def _end_problem(end: CouplingEnd, shape: Shape) -> str | None:
    length = _full_length(end, shape)
    if end.entries is not None and end.entries[1] > length:
        return f"entries {end.entries} reach beyond the {length} entries of {_what(end, shape)}"
    if end.reshape is not None and math.prod(end.reshape) != length:
        return (
            f"reshape {end.reshape} takes {math.prod(end.reshape)} entries, but {_what(end, shape)}"
            f" have {length}"
        )
    return None
