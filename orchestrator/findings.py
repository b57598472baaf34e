"""What the sweep's own run in MLflow carries: its file, plots, tables and a description.

Functions of the store alone, like `orchestrator.projection`. Files are made when something has
changed and never merely to find out whether it has.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from orchestrator import summaries
from orchestrator.aggregate import Estimate, FinalRow, final_table, val_metrics
from orchestrator.curves import shown_rows
from orchestrator.errors import UserError
from orchestrator.projection import MAX_RUNS, PREFIX, Plan
from orchestrator.results import Results
from orchestrator.schemas import RESULTS, read_parquet
from orchestrator.store import Store

MAX_TRENDS = 50_000
_MOST_LINES = 20  # configurations listed in the description


def collect(store: Store, plan: Plan) -> tuple[str, dict[str, bytes]]:
    """The description in Markdown, and path -> content of every file.

    Raises:
        DamageError: the store is damaged.
    """
    files = {"sweep.yaml": plan.record.text.encode()}
    if plan.record.overrides:
        files["overrides.txt"] = "\n".join(plan.record.overrides).encode() + b"\n"
    note = _introduction(store, plan)
    results = Results(store)
    trials = results.trials().slice(0, MAX_RUNS)
    if not trials.num_rows:
        return note, files
    outcomes = store.outcomes().slice(0, MAX_RUNS)
    scalars = shown_rows(store, outcomes)
    axes = list(results.parameters)
    try:
        final = final_table(trials, scalars, axes, threshold=results.generalises_below)
        files["tables/final.csv"] = _final_csv(final, axes)
        summaries.ensure(store)
    except UserError as error:
        return f"{note}\n\nNo plots and no tables: {error}\n", files
    for path in sorted((store.root / "report").glob("*.png")):
        files[f"plots/{path.name}"] = path.read_bytes()
    return note + _final_lines(final, axes), files | _trends(store)


def _introduction(store: Store, plan: Plan) -> str:
    tags = plan.sweep.tags
    states = (*RESULTS, "failed", "remaining")
    counts = ", ".join(f"{n} {s}" for s in states if (n := tags[PREFIX + s]) != "0")
    lines = [
        f"Sweep `{plan.record.name}` of task `{plan.record.task}`: {tags[f'{PREFIX}trials']} "
        f"trials ({counts}).",
        f"Nested below: a run per trial, and the mean over the seeds of each configuration. "
        f"Everything that was measured: `{store.root}`.",
    ]
    if left_out := tags.get(f"{PREFIX}left_out"):
        lines.append(f"Here, {left_out}.")
    return "\n\n".join(lines) + "\n"


def _final_csv(final: Sequence[FinalRow], axes: Sequence[str]) -> bytes:
    subjects = sorted({subject for row in final for subject in row.ranks})
    metrics = val_metrics(final)
    columns = [*(f"val_{name}" for name in metrics)]
    columns += [*(f"effective_rank_normalised {subject}" for subject in subjects)]
    counts = ["n_completed", "n_diverged", "n_pruned", "n_generalised", "n_judged"]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    bounds = [f"{column}{part}" for column in columns for part in ("", " lower", " upper")]
    out.writerow(["config_id", *axes, *counts, *bounds])
    for row in final:
        estimates: list[Estimate | None] = [*map(row.val.get, metrics)]
        estimates += map(row.ranks.get, subjects)
        numbers = [x for e in estimates for x in ((e.mean, e.lower, e.upper) if e else [None] * 3)]
        values = [row.parameters[axis] for axis in axes]
        out.writerow([row.config_id, *values, *(getattr(row, name) for name in counts), *numbers])
    return text.getvalue().encode()


def _final_lines(final: Sequence[FinalRow], axes: Sequence[str]) -> str:
    """The end of the sweep as a Markdown table; empty without metrics on val."""
    metrics = summaries.shown_metrics(final)
    listed = [row for row in final if row.val]
    if not listed:
        return ""
    judged = any(row.n_judged for row in listed)
    header = [*axes, "trials", *["generalised"][:judged], *(f"validation {m}" for m in metrics)]
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    for row in listed[:_MOST_LINES]:
        cells = [str(row.parameters[axis]) for axis in axes]
        cells.append(str(row.n_completed + row.n_diverged + row.n_pruned))
        if judged:
            cells.append(f"{row.n_generalised}/{row.n_judged}")
        cells += [_mean(row.val.get(name)) for name in metrics]
        lines.append(f"| {' | '.join(cells)} |")
    if len(listed) > _MOST_LINES:
        lines.append(f"\n{len(listed) - _MOST_LINES} more configurations in `tables/final.csv`.")
    lines.append("\nMean over seeds and its 95 % Student-t interval, at the last step.")
    return "\n" + "\n".join(lines) + "\n"


def _mean(found: Estimate | None) -> str:
    if found is None or found.mean is None:
        return "–"
    if found.lower is None or found.upper is None:
        return f"{found.mean:.4g}"
    return f"{found.mean:.4g} [{found.lower:.4g}, {found.upper:.4g}]"


def _trends(store: Store) -> dict[str, bytes]:
    table = read_parquet((store.root / "trends.parquet").read_bytes()).replace_schema_metadata(None)
    table = table.filter(pc.not_equal(table["kind"], "trajectory"))  # those have a run each
    if table.num_rows > MAX_TRENDS:
        return {}
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink)
    return {"tables/trends.csv": bytes(sink.getvalue())}
