"""Results as plain files that outlive this project: Parquet, the sweep files, a data dictionary.

export(Results.open("results/grokking"), Path("grokking-2026"))
pandas.read_parquet("grokking-2026/scalars.parquet")      # nothing of ours is needed from here on
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import files
from orchestrator.errors import QueryError, UserError
from orchestrator.results import TRENDS_FILE, Results
from orchestrator.schemas import TABLES

_TRIALS_AT_ONCE = 256  # bounds memory: their rows are one row group of the file

MEANINGS: Mapping[str, str] = {
    "trials": "One row per trial that has a result.",
    "commits": "One row per attempt that ended, also those that failed or were lost.",
    "scalars": "Measured numbers, one per trial, step, subject and metric.",
    "spectra": "Measured vectors, one per trial, step, subject and quantity.",
    "trends": "Fitted summaries over steps, over seeds and across configurations.",
}
COLUMNS: Mapping[str, str] = {
    "trial_id": "Identity of the trial: hash of its content.",
    "config_id": "Identity of the configuration: hash of every parameter but the seed.",
    "seed": "Seed of every random stream that has no fixed seed of its own.",
    "status": "completed; diverged (non-finite loss or weights; rows until then are kept); pruned; "
    "in commits also failed and lost, which are no results.",
    "last_step": "Last optimiser step that was reached.",
    "wall_seconds": "Time spent on the trial over all its attempts, in seconds.",
    "error_kind": "Class of the exception that ended a failed attempt.",
    "error": "Its message.",
    "attempt": "How many times the trial had been dispatched.",
    "epoch": "Which driver run committed the row, counted from 1.",
    "group_size": "How many trials were trained together, stacked.",
    "started_at": "UTC.",
    "ended_at": "UTC.",
    "host": "Machine that ran the attempt.",
    "device": "cpu or a CUDA device.",
    "environment": "Name of a file in environments/: code, versions, hardware, flags.",
    "parents": "Trials whose weights this one started from.",
    "reused_from": "Store from which the result was taken, if it was not computed here.",
    "step": "Optimiser steps taken before the measurement; 0 is the initialisation.",
    "subject": "What was measured: train or val (a data split), a matrix by name "
    "(layers.0.attention.in_proj), or two matrices that meet (a->b).",
    "metric": "What was measured of it; see the metrics below.",
    "quantity": "Which vector; see the quantities below.",
    "value": "The number; NaN if it could not be measured or the trial diverged.",
    "lower": "With upper: an interval that holds the true value. Null: no bound is claimed. In "
    "trends: of the 95 % interval.",
    "upper": "See lower.",
    "values": "The vector, in descending order for singular values.",
    "bounds": "Half widths: the true value lies within values[i] -+ bounds[i]. Rounded up.",
    "method": "How it was computed.",
    "flag": "Null, or why to distrust the number: collapsed, zero, diverged, ill_posed, estimated.",
    "kind": "trajectory, seeds, paired or across.",
    "parameter": "Swept parameter that a paired or across trend is about.",
    "contrast": "Levels compared by a paired trend.",
    "statistic": "Which summary.",
    "n": "How many points, seeds, pairs or trials it rests on.",
}
_TASK_METRICS: Mapping[str, Mapping[str, str]] = {
    "loss": {
        "definition": "the task's training objective, summed over examples and divided once",
        "range": "as the task defines it",
        "units": "as the task defines it; nats for a cross-entropy",
        "source": "the task",
    },
    "error": {
        "definition": "fraction of examples that are predicted wrongly",
        "range": "[0, 1]",
        "units": "none",
        "source": "the task",
    },
}


def export(results: Results, out: Path) -> str:
    """Write everything that is committed to a new folder, whole or not at all.

    trials, commits, scalars, spectra (and trends, if computed) as Parquet; sweep/ and environments/
    as they stand in the store; data_dictionary.json and .md. The folder appears under its name when
    it is complete: a cut export leaves a hidden folder beside it. Singular vectors that were kept
    are left out, for their size.

    Args:
        results: opened without `running`.
        out: does not exist, or is an empty folder.

    Returns:
        What was left out, for people, as the data dictionary says too; empty if nothing was.

    Raises:
        UserError: `out` holds something, or the results include uncommitted rows.
        DamageError: a file of the store is damaged; nothing is left behind.
        StoreError: the storage refuses.
    """
    if results.running:
        raise QueryError("an export holds committed rows only; open the results without running")
    out = Path(out).expanduser().absolute()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        held = "is a file" if not out.is_dir() else "is not empty"
        raise UserError(f"{out} {held}; give a folder that does not exist yet")
    hidden = out.with_name(f".{out.name}.{files.nonce()}")
    with files.storage_errors(out, "write"):
        try:
            hidden.mkdir(parents=True)
            left_out = _write(results, hidden)
            for path in (*hidden.rglob("*"), hidden):
                files.sync(path)
            hidden.rename(out)  # takes the place of an empty folder
            files.sync(out.parent)
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
    return left_out


def _write(results: Results, folder: Path) -> str:
    trials = results.trials().drop_columns("shards")  # paths that mean nothing outside the store
    commits = results.trials(history=True).drop_columns("shards")
    written: dict[str, tuple[pa.Schema, int]] = {}
    for name, table in (("trials", trials), ("commits", commits)):
        pq.write_table(table, folder / f"{name}.parquet", compression="zstd")
        written[name] = (table.schema, table.num_rows)
    seen: dict[str, set[str]] = {"metric": set(), "quantity": set()}
    for name, schema in TABLES.items():
        path = folder / f"{name}.parquet"
        num_rows = 0
        with pq.ParquetWriter(path, schema, compression="zstd") as writer:
            for rows in _in_parts(results, name):
                writer.write_table(rows)
                num_rows += rows.num_rows
                for column in seen.keys() & set(schema.names):
                    seen[column].update(rows[column].unique().to_pylist())
        written[name] = (schema, num_rows)
    if results.has_trends:
        trends = results.trends()
        pq.write_table(trends, folder / TRENDS_FILE, compression="zstd")
        written["trends"] = (trends.schema, trends.num_rows)
    for kept in ("sweep", "environments"):
        if (results.root / kept).is_dir():
            hidden = shutil.ignore_patterns(".*")
            shutil.copytree(results.root / kept, folder / kept, ignore=hidden)
    dictionary = _dictionary(results, written, seen)
    dictionary["left_out"] = _left_out(results)
    text = json.dumps(dictionary, indent=1, ensure_ascii=False)
    (folder / "data_dictionary.json").write_text(text + "\n", encoding="utf-8")
    (folder / "data_dictionary.md").write_text(_markdown(dictionary), encoding="utf-8")
    return str(dictionary["left_out"])


def _left_out(results: Results) -> str:
    """The files of singular vectors that results name; empty if there are none."""
    shards = [shard for row in results.trials()["shards"].to_pylist() for shard in row or ()]
    sizes = {shard["path"]: shard["bytes"] for shard in shards if shard["table"] == "factors"}
    if not sizes:
        return ""
    return (
        f"the singular vectors that were kept, {len(sizes)} files of {sum(sizes.values()):,} bytes "
        f"in factors/ of the results folder (Results.factors reads them)"
    )


def _in_parts(results: Results, table: str) -> Iterator[pa.Table]:
    trials = results.trials()
    for start in range(0, trials.num_rows, _TRIALS_AT_ONCE):
        yield results.scan(table, trials.slice(start, _TRIALS_AT_ONCE))


# --- the data dictionary --------------------------------------------------------------------


def _dictionary(
    results: Results, written: Mapping[str, tuple[pa.Schema, int]], seen: Mapping[str, set[str]]
) -> dict[str, Any]:
    from spectral import METRICS, QUANTITIES  # imports torch, which reading results does not need

    return {
        "sweep": results.name,
        "parameters": list(results.parameters),
        "tables": [
            {
                "name": name,
                "file": f"{name}.parquet",
                "rows": num_rows,
                "meaning": MEANINGS[name],
                "columns": [
                    {
                        "name": column.name,
                        "type": str(column.type),
                        "meaning": COLUMNS.get(column.name) or _parameter(results, column.name),
                    }
                    for column in schema
                ],
            }
            for name, (schema, num_rows) in written.items()
        ],
        "metrics": [_meaning(name, METRICS) for name in sorted(seen["metric"])],
        "quantities": [_meaning(name, QUANTITIES) for name in sorted(seen["quantity"])],
    }


def _parameter(results: Results, name: str) -> str:
    swept = "Swept parameter" if name in results.parameters else "Parameter"
    return f"{swept} of the task {results.task}."


def _meaning(name: str, defined: Mapping[str, Any]) -> dict[str, str]:
    if name in defined:
        return dict(dataclasses.asdict(defined[name]))
    if name in _TASK_METRICS:
        return {"name": name, **_TASK_METRICS[name]}
    if pruned := re.fullmatch(r".+/kept_(top|bottom)_[^/]+", name):
        of_pruned = dataclasses.asdict(defined[f"<metric>/kept_{pruned[1]}_<f>"])
        return {**of_pruned, "name": name}
    unknown = "as the task defines it"
    facts = {"definition": unknown, "range": unknown, "units": unknown, "source": "the task"}
    return {"name": name, **facts}


def _markdown(dictionary: Mapping[str, Any]) -> str:
    lines = [
        f"# Results of the sweep {dictionary['sweep']}",
        "",
        "Parquet files, readable with pandas, Polars, DuckDB, R arrow and others. Rows of "
        "`scalars` and `spectra` belong to the trial in `trials` with the same `trial_id`.",
        "",
        "    import pandas",
        '    trials, scalars = map(pandas.read_parquet, ("trials.parquet", "scalars.parquet"))',
        '    scalars.merge(trials, on="trial_id")',
        "",
        "`sweep/` holds every accepted version of the sweep file, `environments/` what ran the "
        "trials.",
    ]
    if dictionary["left_out"]:
        lines += ["", f"Not here: {dictionary['left_out']}."]
    for table in dictionary["tables"]:
        rows = [(c["name"], c["type"], c["meaning"]) for c in table["columns"]]
        lines += ["", f"## {table['file']} ({table['rows']} rows)", "", table["meaning"], ""]
        lines += _grid(("column", "type", "meaning"), rows)
    for title in ("metrics", "quantities"):
        head = ("name", "definition", "range", "units", "source")
        rows = [tuple(metric[key] for key in head) for metric in dictionary[title]]
        lines += ["", f"## {title.capitalize()}", "", *_grid(head, rows)]
    return "\n".join(lines) + "\n"


def _grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
