"""What the names of matrices and couplings tell: which is a part of another, and their order.

A store holds names, not the views behind them, and one that a `Recorder` wrote has no task that
could be asked. So a part is told by its name, in two ways:

* brackets, as in ``attention.query[2]`` or ``linear[forward]``: a task gives them to the parts that
  it cuts out of a matrix;
* ``P.query``, ``P.key`` and ``P.value`` beside a ``P.in_proj``: the thirds of a fused matrix. Where
  there is no such matrix, they are matrices of their own.

What is left are the matrices as the paper counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_THIRD = re.compile(r"(?P<owner>.*\.|)(query|key|value)")


def whole(subjects: Iterable[str]) -> list[str]:
    """The subjects in their order without parts of matrices, unless there is nothing else."""
    known = list(dict.fromkeys(subjects))
    among = frozenset(known)
    return [name for name in known if not (has_brackets(name) or _is_third(name, among))] or known


def without_brackets(subjects: Iterable[str]) -> list[str]:
    """The same with the thirds of fused matrices: for where a run ends, which is an overview."""
    known = list(dict.fromkeys(subjects))
    return [name for name in known if not has_brackets(name)] or known


def has_brackets(subject: str) -> bool:
    """Whether a task has named it as a part of a matrix, such as a head."""
    return "[" in subject


def _is_third(subject: str, among: frozenset[str]) -> bool:
    match = _THIRD.fullmatch(subject)
    return match is not None and f"{match['owner']}in_proj" in among


def natural(name: str) -> tuple[tuple[int, str], ...]:
    """A key to sort names by: ``layers.3`` before ``layers.10``, and numbers before letters."""
    pieces = re.split(r"([0-9]+)", name)  # numbers at the odd places
    return tuple((int(p), "") if i % 2 else (-1, p) for i, p in enumerate(pieces))
