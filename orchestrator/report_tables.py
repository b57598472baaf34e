"""The tables of a report: what was run, where it ended, and how that goes with the parameters."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from orchestrator import summaries, trends
from orchestrator.aggregate import NORMALISED_RANK
from orchestrator.columns import only
from orchestrator.comparable import level_of, level_order
from orchestrator.figures_data import whole_subjects
from orchestrator.figures_kinds import MAX_PARAMETERS, swept_in
from orchestrator.figures_panels import Material
from orchestrator.report_page import Table
from orchestrator.results import Results
from orchestrator.schemas import RESULTS, TRIALS
from orchestrator.store import Store
from orchestrator.subjects import natural

MOST_ROWS = 60


def facts(results: Results, store: Store) -> list[Table]:
    """What was run, with how many results, on what."""
    trials = results.trials()
    records = store.sweeps()
    counts = Counter(trials["status"].to_pylist())
    statuses = [f"{counts[name]} {name}" for name in RESULTS if counts[name]]
    if records and (missing := len(records[-1].trial_ids) - trials.num_rows) > 0:
        statuses.append(f"{missing} without a result")
    lost = Counter(results.trials(history=True)["status"].to_pylist())
    attempts = [f"{lost[name]} {name}" for name in ("failed", "lost") if lost[name]]
    seeds = sorted(set(trials["seed"].to_pylist()))
    seconds = sum(value or 0.0 for value in trials["wall_seconds"].to_pylist())
    ended = [value for value in trials["ended_at"].to_pylist() if value is not None]
    rows = [
        ("sweep", results.name),
        ("task", results.task),
        ("configurations", str(len(set(trials["config_id"].to_pylist())))),
        ("seeds", _listed(seeds)),
        ("trials", ", ".join(statuses)),
        *([("attempts without a result", ", ".join(attempts))] if attempts else []),
        ("time of all trials", f"{seconds:,.0f} s"),
        ("last result", max(ended).strftime("%Y-%m-%d %H:%M UTC") if ended else "unknown"),
        ("device", _listed(sorted(set(filter(None, trials["device"].to_pylist()))))),
        *_environments(trials, store),
    ]
    swept = [(name, _levels(trials[name])) for name in results.parameters]
    tables = [Table(("", ""), rows)]
    if swept:
        tables.append(Table(("swept parameter", "values"), swept))
    return tables


def fixed_parameters(results: Results) -> Table | None:
    """Every other parameter with its value, or its values where they differ."""
    trials = results.trials()
    kept = {*TRIALS.names, *results.parameters}
    rows = [
        (name, _levels(trials[name]))
        for name in trials.column_names
        if name not in kept and trials[name].null_count < trials.num_rows
    ]
    return Table(("parameter", "value"), rows) if rows else None


def final(results: Results) -> Table | None:
    """The table that a run ends with."""
    found = summaries.final_table(results)
    if found is None:
        return None
    title, header, rows = found
    about = [text[:1].upper() + text[1:] for text in title.partition(": ")[2].split("\n")]
    cells = [[cell.replace("  ", "\u00a0\u00a0") for cell in row] for row in rows]  # indented
    return Table(header, cells, f"{'. '.join(about)}.")


def left_out(material: Material) -> list[str]:
    """What the figures do not show for the number of configurations and parameters."""
    notes = []
    shown, total = len(material.shown), len(material.configurations)
    if shown < total:
        notes.append(
            f"Figures with a panel per configuration show {shown} of {total} configurations, "
            f"evenly spread in the order of their parameters; {total - shown} are left out. "
            "Figures that colour lines by a parameter cover all."
        )
    if uncoloured := swept_in(material)[MAX_PARAMETERS:]:
        notes.append(
            f"Lines are coloured by the first {MAX_PARAMETERS} swept parameters; there is no "
            f"figure by {', '.join(uncoloured)}."
        )
    return notes


def fitted(material: Material) -> list[Table]:
    """Trends of the ranks, the alignment and the task's metrics; see `orchestrator.trends`."""
    measured = only(material.scalars, "metric", [NORMALISED_RANK, "alignment"])
    chosen = pa.concat_tables([material.own, measured])
    chosen = only(chosen, "subject", whole_subjects(chosen))
    table = trends.fit(material.trials, chosen, list(material.parameters))
    labels = {each.config_id: each.label or "all" for each in material.configurations}
    rows = table.to_pylist()
    return [t for t in (_ends(rows, labels), _paired(rows), _across(rows)) if t is not None]


def _ends(rows: Sequence[Mapping[str, Any]], labels: Mapping[str, str]) -> Table | None:
    """First and last values of each configuration."""
    ends: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "seeds" and row["statistic"] in ("initial/mean", "final/mean"):
            key = (row["metric"], row["subject"], row["config_id"])
            ends.setdefault(key, {})[row["statistic"]] = row
    order = list(labels)
    body = [
        (metric, subject, labels.get(config_id, config_id), *_two(both))
        for (metric, subject, config_id), both in sorted(
            ends.items(),
            key=lambda item: (item[0][0], natural(item[0][1]), order.index(item[0][2])),
        )
    ]
    about = (
        "First and last recorded value: mean over the completed seeds ± half its 95 % t interval."
    )
    header = ("metric", "subject", "configuration", "first", "last", "n")
    return _cut(header, body, about)


def _two(both: Mapping[str, Mapping[str, Any]]) -> tuple[str, str, str]:
    first, last = both.get("initial/mean"), both.get("final/mean")
    n = {str(row["n"]) for row in (first, last) if row is not None}
    return _estimate(first), _estimate(last), " / ".join(sorted(n))


def _paired(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Differences of the last value between two levels, seed by seed."""
    names = ("parameter", "contrast", "metric", "subject")
    body = [
        (*(row[name] for name in names), _estimate(row), str(row["n"]))
        for row in rows
        if row["kind"] == "paired"
    ]
    about = (
        "Difference of the last value between two levels of a parameter, mean over pairs of equal "
        "seed ± half its 95 % t interval; n counts pairs."
    )
    header = ("parameter", "levels", "metric", "subject", "difference", "n")
    return _cut(header, sorted(body, key=lambda row: (row[0], row[2], row[3])), about)


def _across(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """Spearman's rho over trials."""
    found: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["kind"] == "across":
            key = (row["parameter"], row["metric"], row["subject"])
            found.setdefault(key, {})[row["statistic"]] = row
    body = [
        (*key, *(_number(each[name]["value"]) for name in names), str(each["spearman"]["n"]))
        for key, each in sorted(found.items())
        if (names := ("spearman", "spearman/p", "spearman/smallest_p")) and "spearman" in each
    ]
    about = (
        "Spearman's rank correlation of a parameter with the last value over trials, with the "
        "two-sided p of permutations inside blocks of equal seed, and the smallest p that these "
        f"data could have given; not corrected for the {len(body)} rows."
    )
    header = ("parameter", "metric", "subject", "rho", "p", "smallest p", "n")
    return _cut(header, body, about)


def _cut(header: tuple[str, ...], body: Sequence[Sequence[str]], about: str) -> Table | None:
    if not body:
        return None
    if len(body) > MOST_ROWS:
        about += f" The first {MOST_ROWS} of {len(body)} rows;"
        about += " `sweep track` writes all to trends.parquet."
    return Table(header, body[:MOST_ROWS], about)


def _estimate(row: Mapping[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    if row["lower"] is None or row["upper"] is None:
        return _number(row["value"])
    return f"{_number(row['value'])} ± {_number((row['upper'] - row['lower']) / 2)}"


def _number(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.3g}"


def _levels(column: pa.ChunkedArray) -> str:
    levels = {level_of(value) for value in column.to_pylist()}
    return _listed(sorted(levels, key=level_order))


def _listed(values: Sequence[Any]) -> str:
    shown = ", ".join(map(str, values[:20]))
    return shown + (f" and {len(values) - 20} more" if len(values) > 20 else "") or "unknown"


def _environments(trials: pa.Table, store: Store) -> list[tuple[str, str]]:
    known = store.environments()
    named = [known[name] for name in sorted(set(filter(None, trials["environment"].to_pylist())))
             if name in known]  # fmt: skip
    rows = []
    for key in ("platform", "cpu", "gpu", "python", "threads"):
        values = {json.dumps(each[key]) for each in named if each.get(key) is not None}
        if values:
            rows.append((key, _listed(sorted(str(json.loads(value)) for value in values))))
    versions: dict[str, set[str]] = {}
    for each in named:
        for name, version in (each.get("versions") or {}).items():
            versions.setdefault(name, set()).add(str(version))
    if versions:
        text = ", ".join(f"{n} {' and '.join(sorted(v))}" for n, v in sorted(versions.items()))
        rows.append(("versions", text))
    return rows
