"""Singular vectors that were kept: found by step and matrix, and compared between trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from orchestrator.columns import Names, Steps, names_of, steps_of, unknown
from orchestrator.errors import QueryError
from orchestrator.factors import NUMBERS, FactorArrays, arrays_of

if TYPE_CHECKING:
    from spectral import SingularVectors

Entries = Mapping[int, Mapping[str, Any]]
"""Step -> manifest entry of a trial's factors."""
Read = Callable[[Mapping[str, Any]], pa.Table]
"""From a manifest entry to the rows it names: `Store.read_shard`."""


def chosen(
    entries: Entries, read: Read, step: Steps | str, subject: Names
) -> dict[tuple[int, str], FactorArrays]:
    """What `Results.factors` returns; raises as it does."""
    wanted, names = _steps(entries, step), names_of("subject", subject)
    steps = sorted(set(entries if wanted is None else wanted))
    if missing := [n for n in steps if n not in entries]:
        raise QueryError("\n".join(unknown("step", n, entries) for n in missing))
    found = {(n, name): arrays for n in steps for name, arrays in arrays_of(read(entries[n]))}
    there = {name for _, name in found}
    if absent := sorted(set(names or ()) - there):
        raise QueryError("\n".join(unknown("subject", name, there) for name in absent))
    return {key: arrays for key, arrays in found.items() if names is None or key[1] in names}


def _steps(entries: Entries, step: Steps | str) -> list[int] | None:
    if isinstance(step, str):
        if step == "final":
            return [max(entries)]
        wanted = "an integer, a list of integers or 'final'"
        raise QueryError(f"step takes {wanted}, got {step!r}")
    return steps_of(step)


def agreement(
    first: tuple[str, Entries], second: tuple[str, Entries], read: Read, step: int | str | None
) -> pa.Table:
    """What `Results.agreement` returns of two trials and their entries; raises as it does."""
    steps = [list(entries) for _, entries in (first, second)]
    if step == "final":
        pairs = [(steps[0][-1], steps[1][-1])]
    elif step is None:
        pairs = [(n, n) for n in steps[0] if n in steps[1]]
    elif isinstance(step, bool) or not isinstance(step, int | np.integer):
        raise QueryError(f"step takes an integer or 'final', got {step!r}")
    else:
        pairs = [(int(step), int(step))]
    if not pairs:
        has = [f"{trial_id} has {_listed(list(entries))}" for trial_id, entries in (first, second)]
        raise QueryError(
            f"no step was kept of both trials: {has[0]}, {has[1]}; step='final' compares the last "
            "of each"
        )
    rows = []
    there: tuple[set[str], set[str]] = set(), set()  # views
    for pair in pairs:
        models = [
            {view: arrays for (_, view), arrays in chosen(entries, read, n, None).items()}
            for (_, entries), n in zip((first, second), pair, strict=True)
        ]
        trials = {"first": first[0], "second": second[0]}
        at = {"first_step": pair[0], "second_step": pair[1]}
        rows += [{**trials, **at, **row} for row in compared(*models)]
        for names, model in zip(there, models, strict=True):
            names.update(model)
    if not rows:
        has = [
            f"{trial_id} has {_listed(sorted(names))}"
            for (trial_id, _), names in zip((first, second), there, strict=True)
        ]
        raise QueryError(f"no matrix was kept of both trials: {has[0]}; {has[1]}")
    return pa.Table.from_pylist(rows, AGREEMENT)


def _listed(steps: Sequence[int | str]) -> str:
    return ", ".join(map(str, steps[:20])) + (f" and {len(steps) - 20} more" if steps[20:] else "")


AGREEMENT = pa.schema(
    [
        ("first", pa.string()),  # trial
        ("second", pa.string()),
        ("first_step", pa.int64()),
        ("second_step", pa.int64()),
        ("subject", pa.string()),
        ("value", pa.float64()),  # mean of the determined ones among the first 10 of `values`
        ("lower", pa.float64()),
        ("upper", pa.float64()),
        ("chance", pa.float64()),
        ("dimension", pa.int64()),  # of the leading subspaces that are compared; 0: none
        ("left_overlap", pa.float64()),
        ("right_overlap", pa.float64()),
        ("values", pa.list_(pa.float64())),  # NaN: not determined
        ("bounds", pa.list_(pa.float32())),
        ("flag", pa.string()),
    ]
)
"""What `Results.agreement` returns; the numbers are those of `spectral.agreement.Agreement`."""


def compared(
    first: Mapping[str, FactorArrays], second: Mapping[str, FactorArrays]
) -> list[dict[str, Any]]:
    """Agreement of the singular vectors of two models: AGREEMENT from `subject` on, a row per view.

    Args:
        first: by view.
        second: likewise; views that only one of them has are left out.

    Raises:
        QueryError: the matrices of a view differ in shape.
    """
    from spectral.agreement import singular_vector_agreements  # here, because it loads torch
    from spectral.rows import rounded_up

    common = [view for view in first if view in second]
    for view in common:
        if first[view].shape != second[view].shape:
            (m, n), (p, q) = first[view].shape, second[view].shape
            raise QueryError(
                f"the matrices {view!r} cannot be compared: {m} x {n} in one trial, {p} x {q} in "
                "the other"
            )
    pairs = [(_vectors(first[view]), _vectors(second[view])) for view in common]
    rows = []
    for view, found in zip(common, singular_vector_agreements(pairs), strict=True):
        value, lower, upper = found.score
        known = not math.isnan(value)
        rows.append(
            {
                "subject": view,
                "value": value,
                "lower": lower if known else None,
                "upper": upper if known else None,
                "chance": found.chance,
                "dimension": found.dimension,
                "left_overlap": found.left_overlap.value,
                "right_overlap": found.right_overlap.value,
                "values": found.diagonal,
                "bounds": rounded_up(found.bounds),
                "flag": "ill_posed" if found.ill_posed else None,
            }
        )
    return rows


def _vectors(arrays: FactorArrays) -> SingularVectors:
    import torch

    from spectral import SingularVectors

    numbers = {name: getattr(arrays, name) for name in NUMBERS}
    left, right = torch.from_numpy(arrays.left), torch.from_numpy(arrays.right)
    return SingularVectors(left=left, right=right, **numbers)
