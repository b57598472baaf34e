"""Rows and columns as a reader wants them: what filters take, what comes first, one per parameter.

Pure functions of Arrow tables, behind `orchestrator.results`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.errors import QueryError
from orchestrator.schemas import TRIALS

Names = str | Iterable[str] | None
"""A filter on a column of names: one, several, or None for all of them."""
Steps = int | Iterable[int] | None

# Where the parameters stand among the columns of the trials table: swept ones after the
# identifiers, the others before what only matters when something went wrong.
_IDENTIFIERS = ("trial_id", "config_id", "seed")
_OUTCOME = ("status", "last_step", "wall_seconds")
_LISTED = 20  # names that an error message lists at most

# --- filters --------------------------------------------------------------------------------


def names_of(column: str, given: Names) -> list[str] | None:
    """The names that a filter asks for.

    Raises:
        QueryError: it is neither a name nor several.
    """
    if given is None:
        return None
    names = [given] if isinstance(given, str) else _listed(given)
    if names is None or not all(isinstance(name, str) for name in names):
        raise QueryError(f"{column} takes a name or a list of names, got {given!r}")
    return names


def steps_of(given: Steps) -> list[int] | None:
    """The steps that a filter asks for.

    Raises:
        QueryError: it is neither a step nor several.
    """
    if given is None:
        return None
    steps = [given] if isinstance(given, int | np.integer) else _listed(given)
    numbers = (int, np.integer)
    if steps is None or not all(isinstance(s, numbers) and not isinstance(s, bool) for s in steps):
        raise QueryError(f"step takes an integer or a list of integers, got {given!r}")
    return [int(step) for step in steps]


def _listed(given: Any) -> list[Any] | None:
    return list(given) if isinstance(given, Iterable) else None


def filtered(table: pa.Table, filters: Mapping[str, list[Any] | None]) -> pa.Table:
    """The rows that match all filters (column -> values); None matches everything."""
    for column, values in filters.items():
        if values is not None:
            table = only(table, column, values)
    return table


def only(table: pa.Table, column: str, values: Iterable[Any]) -> pa.Table:
    """The rows with one of these values."""
    chosen = pa.array(list(values), table.schema.field(column).type)
    return table.filter(pc.is_in(table[column], value_set=chosen))


def unknown(column: str, value: Any, known: Iterable[Any]) -> str:
    """The complaint about a value that no row has: with near ones, and what there is."""
    listed = sorted(set(known))
    if column == "step":
        near = sorted(listed, key=lambda step: (abs(step - value), step))[:2]
    else:
        near = difflib.get_close_matches(value, listed, n=3, cutoff=0.6)
    hint = f" (did you mean {' or '.join(map(str, sorted(near)))}?)" if near else ""
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    there = ", ".join(map(str, listed[:_LISTED])) or "none"
    return f"there is no {column} {value!r}{hint}; there are: {there}{more}"


# --- rows and columns in order --------------------------------------------------------------


def in_order(trials: pa.Table, named: Sequence[str]) -> pa.Table:
    """Trials in the newest file's order, then the others as they come."""
    position = pc.index_in(trials["trial_id"], value_set=pa.array(named, pa.string()))
    position = position.fill_null(len(named)).to_numpy()
    return trials.take(np.argsort(position, kind="stable"))


def still_running(running: pa.Table, history: pa.Table) -> pa.Table:
    """Leave out attempts that ended without a result: what they published is nobody's any more."""
    ended: dict[str, int] = {}
    for trial_id, attempt in zip(
        history["trial_id"].to_pylist(), history["attempt"].to_pylist(), strict=True
    ):
        ended[trial_id] = max(ended.get(trial_id, 0), attempt or 0)
    pairs = zip(running["trial_id"].to_pylist(), running["attempt"].to_pylist(), strict=True)
    keep = [attempt is None or attempt > ended.get(trial_id, 0) for trial_id, attempt in pairs]
    return running.filter(pa.array(keep, pa.bool_()))


def by_trial_and_step(rows: pa.Table, outcomes: pa.Table) -> pa.Table:
    """Rows in the order of their trials, then by step, else as they were measured.

    Shards of one trial are in that order already; those of a group interleave its trials.
    """
    rows = rows.combine_chunks()
    ids = outcomes["trial_id"].combine_chunks()
    trial = pc.index_in(rows["trial_id"], value_set=ids).to_numpy()
    step = rows["step"].to_numpy()
    ahead, later = np.diff(trial), np.diff(step)
    if np.all((ahead > 0) | ((ahead == 0) & (later >= 0))):
        return rows
    return rows.take(np.lexsort((step, trial)))  # stable


def _decoded(commits: pa.Table) -> tuple[list[dict[str, Any]], pa.Array]:
    """The distinct values of the column `params`, and the index of each row among them."""
    encoded = commits["params"].combine_chunks().dictionary_encode()  # seeds share them
    return [json.loads(text) for text in encoded.dictionary.to_pylist()], encoded.indices


def varying(trials: pa.Table) -> list[str]:
    """Parameters that differ between rows of the trials table, by name."""
    decoded, _ = _decoded(trials)
    names = sorted({name for params in decoded for name in params})
    return [n for n in names if len({json.dumps(params.get(n)) for params in decoded}) > 1]


def one_column_per_parameter(
    commits: pa.Table, swept: Sequence[str], known: Sequence[str]
) -> pa.Table:
    """Rows of the trials table with the column `params` spread out.

    Args:
        commits: schema TRIALS.
        swept: parameters that stand first.
        known: parameters that get a column even if no row has a value of them.
    """
    decoded, indices = _decoded(commits)
    others = sorted({*known, *(name for params in decoded for name in params)} - set(swept))
    columns = {
        name: _column([params.get(name) for params in decoded]).take(indices)
        for name in (*swept, *others)
    }
    columns |= {name: commits[name] for name in TRIALS.names if name != "params"}
    first = [*_IDENTIFIERS, *swept, *_OUTCOME, *others]
    return pa.table({name: columns[name] for name in dict.fromkeys([*first, *columns])})


def _column(values: list[Any]) -> pa.Array:
    """One parameter's values with the narrowest type that holds them all."""
    kinds = {_kind(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {"integer", "number"}:
        kinds = {"number"}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind not in _TYPES:
        texts = [None if v is None else json.dumps(v, sort_keys=True) for v in values]
        return pa.array(texts, pa.string())
    if kind == "number":
        values = [None if value is None else float(value) for value in values]
    return pa.array(values, _TYPES[kind])


_TYPES = {
    "flag": pa.bool_(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "text": pa.string(),
    "numbers": pa.list_(pa.float64()),
}


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int):
        return "integer" if -(2**63) <= value < 2**63 else "other"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and all(_kind(item) in ("integer", "number") for item in value):
        return "numbers"
    return "other"
