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

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator import kept
from orchestrator.columns import (
    Names,
    Steps,
    by_trial_and_step,
    filtered,
    in_order,
    names_of,
    one_column_per_parameter,
    only,
    steps_of,
    still_running,
    unknown,
    varying,
)
from orchestrator.errors import DamageError, QueryError
from orchestrator.factors import FactorArrays, by_step
from orchestrator.schemas import GENERALISES_BELOW, TABLES, TRIALS, read_parquet
from orchestrator.store import Store

if TYPE_CHECKING:
    from orchestrator.figures import Plots
    from orchestrator.query import Source

TRENDS_FILE = "trends.parquet"


class Results:
    """The results of a sweep as they were at `open`; later commits show after `refresh`.

    Attributes:
        root: the store's folder.
        name: of the sweep.
        task: registered name of its task.
        generalises_below: validation error below which a trial counts as having generalised; None:
            the task's errors are not judged.
        scope: "newest": trials of the newest sweep file. "all": also those it no longer names.
        running: whether rows of uncommitted attempts are included (see `open`).
        parameters: the swept parameters in file order: columns of `trials()` that tell its
            configurations apart.
    """

    root: Path
    name: str
    task: str
    generalises_below: float | None
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
            history = only(history, "trial_id", named)
            running = only(running, "trial_id", named)
        done = outcomes["trial_id"].combine_chunks()
        running = running.filter(pc.invert(pc.is_in(running["trial_id"], value_set=done)))
        current = in_order(pa.concat_tables([outcomes, still_running(running, history)]), named)

        parameters = list(records[-1].axes) if records else []
        if self.scope == "all":  # what is swept in no single file may still differ between two
            axes = [axis for record in reversed(records) for axis in record.axes]
            parameters = list(dict.fromkeys([*axes, *varying(current)]))
        known = records[-1].parameters if records else ()
        wide = one_column_per_parameter(pa.concat_tables([current, history]), parameters, known)
        # Kept as bytes: a later run may replace the file while these results are in use.
        path = self.root / TRENDS_FILE
        trends = path.read_bytes() if path.exists() else None
        # Nothing above has changed this object, so a refresh that raises leaves it as it was.
        self.name = records[-1].name if records else self.root.name
        self.task = records[-1].task if records else "unknown"
        judged = records[-1].generalises_below if records else GENERALISES_BELOW
        self.generalises_below = judged
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
        every other parameter, then what docs/results.md lists besides. A parameter's column is
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
        filters = {column: names_of(column, value) for column, value in given.items()}
        table = self._trends_table()
        self._refuse_unknown(filters, table, lambda: table)
        return filtered(table, filters)

    def factors(
        self, trial_id: str, step: Steps | str = None, subject: Names = None
    ) -> dict[tuple[int, str], FactorArrays]:
        """The leading singular vectors that were kept of a trial: (step, subject) -> arrays.

        They are kept with ``measure: {keep: final}`` (or ``all``) in the sweep file, in float32 and
        with bounds of their errors.

        Raises:
            QueryError: none were kept, or none at that step or of that subject; lists near ones.
            DamageError: a file is missing or differs from what was committed.
        """
        return kept.chosen(self._kept(trial_id), self._store.read_shard, step, subject)

    def agreement(self, first: str, second: str, step: int | str | None = None) -> pa.Table:
        """How far the singular vectors of two trials agree: `orchestrator.kept.AGREEMENT`.

        One row per step and matrix; what either trial has not kept is left out.

        Args:
            first: a trial's id.
            second: another's, or the same.
            step: of both; None: every step that both have kept; "final": the last that was kept of
                each, which may be different ones.

        Raises:
            QueryError: nothing was kept that can be compared (says what each trial has), or
                matrices differ in shape.
            DamageError: a file is missing or differs from what was committed.
        """
        one, other = ((trial_id, self._kept(trial_id)) for trial_id in (first, second))
        return kept.agreement(one, other, self._store.read_shard, step)

    @property
    def has_trends(self) -> bool:
        """Whether trends had been computed at `open`."""
        return self._trends is not None

    @property
    def plot(self) -> Plots:
        """Figures of these results, each onto matplotlib axes: `orchestrator.figures.Plots`."""
        from orchestrator.figures import Plots

        return Plots(self)

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
        outcomes = only(self._current, "trial_id", trials["trial_id"].to_pylist())
        return by_trial_and_step(self._store.scan(table, outcomes), outcomes)

    def _everything(self, table: str) -> pa.Table:
        if table not in self._whole:
            self._whole[table] = self.scan(table, self._current)
        return self._whole[table]

    def _rows(self, table: str, given: Mapping[str, Names], step: Steps) -> pa.Table:
        filters = {column: names_of(column, value) for column, value in given.items()}
        steps = steps_of(step)
        if table in self._whole:
            found = filtered(self._whole[table], filters)
        else:
            outcomes = filtered(self._current, {"trial_id": filters["trial_id"]})
            metrics = filters["metric" if table == "scalars" else "quantity"]
            found = self._store.scan(table, outcomes, subjects=filters["subject"], metrics=metrics)
            found = by_trial_and_step(found, outcomes)
        at_steps = filtered(found, {"step": steps})
        self._refuse_unknown({**filters, "step": steps}, at_steps, lambda: self._everything(table))
        return at_steps

    def _kept(self, trial_id: str) -> dict[int, Mapping[str, Any]]:
        """Step -> manifest entry of a trial's singular vectors; raises if there are none."""
        if not isinstance(trial_id, str):
            raise QueryError(f"expected the id of one trial, got {trial_id!r}")
        found = only(self._current, "trial_id", [trial_id]).to_pylist()
        self._refuse_unknown({"trial_id": [trial_id]}, self._current, lambda: self._current)
        entries = by_step(found[0]["shards"] if found else ())
        if not entries:
            raise QueryError(
                f"no singular vectors were kept of trial {trial_id}: write measure: {{groups: "
                "[agreement], keep: final} into the sweep file and run it"
            )
        return entries

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
                if column == "trial_id" and value in self._named:
                    tells = f"`sweep show {self.root} {value}` tells why"
                    problems.append(f"trial {value} has no result yet: {tells}")
                else:
                    problems.append(unknown(column, value, known))
        if problems:
            raise QueryError("\n".join(problems))

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
                f"`sweep track {self.root}`"
            )
        try:
            return read_parquet(self._trends).replace_schema_metadata(None)
        except (pa.ArrowException, OSError) as error:
            raise DamageError(
                f"{path} is damaged: {error}. Everything in it follows from the store: "
                f"`sweep track {self.root}` makes it anew."
            ) from error
