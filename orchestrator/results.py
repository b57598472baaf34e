"""The query API: what a sweep has found, as Arrow tables and through SQL.

    from orchestrator import Results

    results = Results.open("results/grokking")
    results.trials()                                 # one row per trial, one column per parameter
    results.scalars(metric="loss", subject="val")    # a pyarrow.Table: .to_pandas() if you like
    results.sql("SELECT lr, avg(value) FROM scalars JOIN trials USING (trial_id) GROUP BY lr")

Only counted commits are read, so a sweep may be asked while it runs. Nothing here needs the task's
code, torch or a driver; DuckDB is loaded by `sql` alone.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from orchestrator.errors import DamageError, QueryError
from orchestrator.schemas import TABLES, TRIALS
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.query import Source

TRENDS_FILE = "trends.parquet"

Names = str | Iterable[str] | None
"""A filter on a column of names: one, several, or None for all of them."""
Steps = int | Iterable[int] | None

# Where the parameters stand among the columns of the trials table: swept ones after the
# identifiers, the others before what only matters when something went wrong.
_IDENTIFIERS = ("trial_id", "config_id", "seed")
_OUTCOME = ("status", "last_step", "wall_seconds")
_LISTED = 20  # names that an error message lists at most


class Results:
    """The results of a sweep as they were at `open`; later commits show after `refresh`.

    Attributes:
        root: the store's folder.
        name: of the sweep.
        task: registered name of its task.
        scope: "newest": trials of the newest sweep file. "all": also those it no longer names.
        running: whether rows of uncommitted attempts are included (see `open`).
        parameters: the swept parameters in file order: columns of `trials()` that tell its
            configurations apart.
    """

    root: Path
    name: str
    task: str
    scope: str
    running: bool
    parameters: tuple[str, ...]

    def __init__(self, store: Store, *, scope: str = "newest", running: bool = False) -> None:
        self.root = store.root
        self.scope = scope
        self.running = running
        self._store = store
        self.refresh()

    @classmethod
    def open(cls, root: str | Path, *, scope: str = "newest", running: bool = False) -> Results:
        """Open the results folder of a sweep.

        Args:
            root: the folder, for example "results/grokking".
            scope: "newest" or "all", see the class.
            running: also show what uncommitted attempts have published so far: such trials have
                status "running" in `trials()`, and their rows are in `scalars()` and `spectra()`.
                They may still change or vanish; leave them out of anything you report.

        Raises:
            StoreError: there is no results folder, or another format version wrote it.
            DamageError: a commit is damaged; the message names the file.
            QueryError: another scope.
        """
        if scope not in ("newest", "all"):
            raise QueryError(f"scope must be 'newest' or 'all', got {scope!r}")
        return cls(Store.open(root), scope=scope, running=running)

    def refresh(self) -> Results:
        """Read the store again, in place, and return these results."""
        records = self._store.sweeps()
        named = records[-1].trial_ids if records else ()
        # Before the outcomes: a trial that is committed in between is then in one of the two.
        running = self._store.running() if self.running else TRIALS.empty_table()
        outcomes = self._store.outcomes(self.scope)
        history = self._store.commits()
        if self.scope == "newest":
            history = _only(history, "trial_id", named)
            running = _only(running, "trial_id", named)
        done = outcomes["trial_id"].combine_chunks()
        running = running.filter(pc.invert(pc.is_in(running["trial_id"], value_set=done)))
        current = _in_order(pa.concat_tables([outcomes, _still_running(running, history)]), named)

        parameters = list(records[-1].axes) if records else []
        if self.scope == "all":  # what is swept in no single file may still differ between two
            axes = [axis for record in reversed(records) for axis in record.axes]
            parameters = list(dict.fromkeys([*axes, *_varying(current)]))
        known = records[-1].parameters if records else ()
        wide = _one_column_per_parameter(pa.concat_tables([current, history]), parameters, known)
        # Kept as bytes: a later run may replace the file while these results are in use.
        path = self.root / TRENDS_FILE
        trends = path.read_bytes() if path.exists() else None
        # Nothing above has changed this object, so a refresh that raises leaves it as it was.
        self.name = records[-1].name if records else self.root.name
        self.task = records[-1].task if records else "unknown"
        self.parameters = tuple(parameters)
        self._named = named
        self._current = current
        self._trials = wide.slice(0, current.num_rows)
        self._commits = wide.slice(current.num_rows)
        self._whole: dict[str, pa.Table] = {}
        self._trends = trends
        return self

    # --- tables ---------------------------------------------------------------------------

    def trials(self, *, history: bool = False) -> pa.Table:
        """One row per trial that has a result, in the sweep's order.

        Columns: trial_id, config_id, seed, the swept parameters, status, last_step, wall_seconds,
        every other parameter, then what design section 6 lists besides. A parameter's column is
        bool, int64, float64 (one float suffices), string, list<float64>, or JSON text if its values
        have no such type in common; null where a trial has none, as trials of an older version of
        the task may.

        Args:
            history: every counted commit instead, in commit order: also attempts that failed or
                were lost, so that a trial may have several rows or none that is a result.
        """
        return self._commits if history else self._trials

    def scalars(
        self,
        *,
        metric: Names = None,
        subject: Names = None,
        step: Steps = None,
        trial_id: Names = None,
    ) -> pa.Table:
        """Measured numbers: schema `orchestrator.schemas.SCALARS`, by trial, step and subject.

        Each filter takes one value or several; rows that match all filters are returned.

        Raises:
            QueryError: no row of these results has that metric, subject, step or trial; lists near
                ones. Not raised while there are no results at all.
            DamageError: a shard is missing or differs from what was committed.
        """
        names = {"metric": metric, "subject": subject, "trial_id": trial_id}
        return self._rows("scalars", names, step)

    def spectra(
        self,
        *,
        quantity: Names = None,
        subject: Names = None,
        step: Steps = None,
        trial_id: Names = None,
    ) -> pa.Table:
        """Measured vectors, for example singular values: schema `orchestrator.schemas.SPECTRA`.

        Filters and errors as in `scalars`.
        """
        names = {"quantity": quantity, "subject": subject, "trial_id": trial_id}
        return self._rows("spectra", names, step)

    def trends(
        self,
        *,
        kind: Names = None,
        metric: Names = None,
        subject: Names = None,
        statistic: Names = None,
        parameter: Names = None,
        trial_id: Names = None,
        config_id: Names = None,
    ) -> pa.Table:
        """Fitted summaries: schema `orchestrator.trends.TRENDS`, as last computed.

        Filters as in `scalars`. Trends are a projection, made at the end of a run.

        Raises:
            QueryError: they have not been computed; names the command that does. Not raised while
                there are no results at all.
            DamageError: the file cannot be read.
        """
        given = {
            "kind": kind,
            "metric": metric,
            "subject": subject,
            "statistic": statistic,
            "parameter": parameter,
            "trial_id": trial_id,
            "config_id": config_id,
        }
        filters = {column: _names(column, value) for column, value in given.items()}
        table = self._trends_table()
        self._refuse_unknown(filters, table, lambda: table)
        return _filtered(table, filters)

    @property
    def has_trends(self) -> bool:
        """Whether trends had been computed at `open`."""
        return self._trends is not None

    def sql(
        self,
        query: str,
        *,
        tables: Mapping[str, Any] | None = None,
        parameters: Sequence[Any] | Mapping[str, Any] | None = None,
    ) -> pa.Table:
        """Ask in SQL (DuckDB's dialect): one SELECT over trials, scalars, spectra, trends, commits.

        `commits` is `trials(history=True)`. The query can read nothing else: no files, network,
        settings, extensions or Python variables. Times are UTC.

        Args:
            query: one SELECT (also FROM ..., WITH, VALUES, PIVOT, DESCRIBE, SUMMARIZE, SHOW).
            tables: tables of your own by name: Arrow, pandas, polars, a mapping of columns, or a
                list of row mappings.
            parameters: values for `?` (a sequence) or `$name` (a mapping) in the query.

        Raises:
            QueryError: the query is refused; says why and what there is.
            DamageError: a shard that the query needs is damaged.
        """
        from orchestrator.query import Source, run

        sources: dict[str, Source] = {
            "trials": Source(self._trials.schema, self.trials),
            "scalars": Source(TABLES["scalars"], lambda: self._everything("scalars")),
            "spectra": Source(TABLES["spectra"], lambda: self._everything("spectra")),
            "commits": Source(self._commits.schema, lambda: self._commits),
        }
        # Its schema is only known by reading the file, or by importing what imports scipy.
        if self._trends is not None or "trends" in str(query).lower():
            sources["trends"] = Source(self._trends_schema(), self._trends_table)
        return run(query, sources, tables or {}, parameters)

    def __repr__(self) -> str:
        counts = Counter(self._trials["status"].to_pylist())
        statuses = ", ".join(f"{n} {status}" for status, n in counts.items()) or "no result yet"
        of = f"{self._trials.num_rows} of {len(self._named)}" if self.scope == "newest" else "all"
        by = f" by {', '.join(self.parameters)}" if self.parameters else ""
        return f"<Results {self.name}: {of} trials ({statuses}){by}>"

    # --- how ------------------------------------------------------------------------------

    def scan(self, table: str, trials: pa.Table) -> pa.Table:
        """All rows of some of these trials, read anew: for those who go through them in parts.

        Args:
            table: "scalars" or "spectra".
            trials: rows of `trials()`.
        """
        outcomes = _only(self._current, "trial_id", trials["trial_id"].to_pylist())
        return _by_trial_and_step(self._store.scan(table, outcomes), outcomes)

    def _everything(self, table: str) -> pa.Table:
        if table not in self._whole:
            self._whole[table] = self.scan(table, self._current)
        return self._whole[table]

    def _rows(self, table: str, given: Mapping[str, Names], step: Steps) -> pa.Table:
        filters = {column: _names(column, value) for column, value in given.items()}
        steps = _steps(step)
        if table in self._whole:
            found = _filtered(self._whole[table], filters)
        else:
            outcomes = _filtered(self._current, {"trial_id": filters["trial_id"]})
            metrics = filters["metric" if table == "scalars" else "quantity"]
            found = self._store.scan(table, outcomes, subjects=filters["subject"], metrics=metrics)
            found = _by_trial_and_step(found, outcomes)
        at_steps = _filtered(found, {"step": steps})
        self._refuse_unknown({**filters, "step": steps}, at_steps, lambda: self._everything(table))
        return at_steps

    def _refuse_unknown(
        self,
        filters: Mapping[str, list[Any] | None],
        found: pa.Table,
        everything: Callable[[], pa.Table],
    ) -> None:
        """Complain of every value that no row has, with what there is instead."""
        if not self._current.num_rows:
            return
        problems = []
        for column, wanted in filters.items():
            missing = set(wanted or ()) - set(found[column].unique().to_pylist())
            if not missing:
                continue
            known = [v for v in everything()[column].unique().to_pylist() if v is not None]
            if column == "trial_id":
                known += self._current["trial_id"].to_pylist()  # a trial may have no rows
            for value in sorted(missing - set(known)):
                problems.append(self._unknown(column, value, known))
        if problems:
            raise QueryError("\n".join(problems))

    def _unknown(self, column: str, value: Any, known: list[Any]) -> str:
        if column == "trial_id" and value in self._named:
            return f"trial {value} has no result yet: `sweep show {self.root} {value}` tells why"
        if column == "step":
            near = sorted(set(known), key=lambda step: (abs(step - value), step))[:2]
            listed = sorted(set(known))
        else:
            near = difflib.get_close_matches(value, known, n=3, cutoff=0.6)
            listed = sorted(set(known))
        hint = f" (did you mean {' or '.join(map(str, sorted(near)))}?)" if near else ""
        more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
        there = ", ".join(map(str, listed[:_LISTED])) or "none"
        return f"there is no {column} {value!r}{hint}; there are: {there}{more}"

    def _trends_schema(self) -> pa.Schema:
        if self._trends is not None:
            return self._trends_table().schema
        from orchestrator.trends import TRENDS

        return TRENDS

    def _trends_table(self) -> pa.Table:
        path = self.root / TRENDS_FILE
        if self._trends is None:
            if not self._current.num_rows:
                return self._trends_schema().empty_table()
            raise QueryError(
                f"{path} does not exist: trends are computed at the end of a run, or by "
                f"`sweep report {self.root}`"
            )
        try:
            return pq.read_table(pa.BufferReader(self._trends)).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise DamageError(
                f"{path} is damaged: {error}. Everything in it follows from the store: "
                f"`sweep report {self.root}` makes it anew."
            ) from error


# --- filters --------------------------------------------------------------------------------


def _names(column: str, given: Names) -> list[str] | None:
    if given is None:
        return None
    names = [given] if isinstance(given, str) else _listed(given)
    if names is None or not all(isinstance(name, str) for name in names):
        raise QueryError(f"{column} takes a name or a list of names, got {given!r}")
    return names


def _steps(given: Steps) -> list[int] | None:
    if given is None:
        return None
    steps = [given] if isinstance(given, int | np.integer) else _listed(given)
    numbers = (int, np.integer)
    if steps is None or not all(isinstance(s, numbers) and not isinstance(s, bool) for s in steps):
        raise QueryError(f"step takes an integer or a list of integers, got {given!r}")
    return [int(step) for step in steps]


def _listed(given: Any) -> list[Any] | None:
    return list(given) if isinstance(given, Iterable) else None


def _filtered(table: pa.Table, filters: Mapping[str, list[Any] | None]) -> pa.Table:
    for column, values in filters.items():
        if values is not None:
            table = _only(table, column, values)
    return table


def _only(table: pa.Table, column: str, values: Iterable[Any]) -> pa.Table:
    chosen = pa.array(list(values), table.schema.field(column).type)
    return table.filter(pc.is_in(table[column], value_set=chosen))


# --- rows and columns in order --------------------------------------------------------------


def _in_order(trials: pa.Table, named: Sequence[str]) -> pa.Table:
    """Trials in the newest file's order, then the others as they come."""
    position = pc.index_in(trials["trial_id"], value_set=pa.array(named, pa.string()))
    position = position.fill_null(len(named)).to_numpy()
    return trials.take(np.argsort(position, kind="stable"))


def _still_running(running: pa.Table, history: pa.Table) -> pa.Table:
    """Leave out attempts that ended without a result: what they published is nobody's any more."""
    ended: dict[str, int] = {}
    for trial_id, attempt in zip(
        history["trial_id"].to_pylist(), history["attempt"].to_pylist(), strict=True
    ):
        ended[trial_id] = max(ended.get(trial_id, 0), attempt or 0)
    pairs = zip(running["trial_id"].to_pylist(), running["attempt"].to_pylist(), strict=True)
    keep = [attempt is None or attempt > ended.get(trial_id, 0) for trial_id, attempt in pairs]
    return running.filter(pa.array(keep, pa.bool_()))


def _by_trial_and_step(rows: pa.Table, outcomes: pa.Table) -> pa.Table:
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


def _varying(trials: pa.Table) -> list[str]:
    decoded, _ = _decoded(trials)
    names = sorted({name for params in decoded for name in params})
    return [n for n in names if len({json.dumps(params.get(n)) for params in decoded}) > 1]


def _one_column_per_parameter(
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
