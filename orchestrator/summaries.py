"""What a sweep ends with: trends.parquet, plots, and the table that is printed.

All of it is a projection of the committed rows: `sweep run` writes it at the end, `sweep track`
writes it again, and deleting it loses nothing.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator import aggregate, trends
from orchestrator.errors import UserError
from orchestrator.files import checksum
from orchestrator.results import Results
from orchestrator.schemas import SPECTRA
from orchestrator.store import Store
from orchestrator.subjects import natural, without_brackets

WIDE = 5
"""Up to this many configurations stand side by side, with a line per matrix."""
MOST_ROWS = 40
MOST_MATRICES = 4


MAX_ROWS = {"scalars": 20_000_000, "spectra": 50_000}
"""Rows that fit into memory; a larger sweep has no trends, or no plot of spectra."""
_BASIS = b"spectral_sweeps.basis"


def ensure(store: Store) -> None:
    """Fit trends and draw plots of a store's newest sweep file, unless that is done already.

    Writes `report/<name>.png`, then `trends.parquet`, which carries a fingerprint of the commits it
    was made from. Nothing is written while there are no results.

    Raises:
        UserError: trials that cannot be compared, for example with unequal steps, or too many rows.
        StoreError: the storage refuses.
    """
    outcomes = store.outcomes()
    if not outcomes.num_rows:
        return
    keys = zip(outcomes["trial_id"].to_pylist(), outcomes["epoch"].to_pylist(), strict=True)
    basis = checksum(json.dumps(list(keys)).encode()).encode()
    path = store.root / "trends.parquet"
    if _basis_of(path) == basis:
        return
    rows = _count_rows(outcomes)
    if rows["scalars"] > MAX_ROWS["scalars"]:
        raise UserError(
            f"{rows['scalars']:,} rows of scalars are more than trends are fitted on at once "
            f"({MAX_ROWS['scalars']:,}); query parts of them with `sweep query`"
        )
    from orchestrator import plots

    results = Results(store)
    trials, scalars, axes = results.trials(), results.scalars(), list(results.parameters)
    few = rows["spectra"] <= MAX_ROWS["spectra"]
    spectra = results.spectra() if few else SPECTRA.empty_table()
    fitted = trends.fit(trials, scalars, axes)
    for name, figure in plots.sweep_figures(trials, scalars, spectra, axes).items():
        image = io.BytesIO()
        # No version in the file: the same figure gives the same bytes.
        figure.savefig(image, format="png", dpi=110, metadata={"Software": None})
        store.replace(f"report/{name}.png", image.getvalue())
    sink = io.BytesIO()
    pq.write_table(fitted.replace_schema_metadata({_BASIS: basis}), sink)
    store.replace("trends.parquet", sink.getvalue())


def _basis_of(path: Path) -> bytes | None:
    """The fingerprint in a trends file; None if there is no file, or one that cannot be read."""
    try:
        basis: bytes | None = (pq.read_schema(path).metadata or {}).get(_BASIS)
    except (pa.ArrowException, OSError):
        return None
    return basis


def _count_rows(outcomes: pa.Table) -> Counter[str]:
    """Table -> rows of all shards that these commits name."""
    shards = (shard for row in outcomes["shards"].to_pylist() for shard in row or ())
    counted: Counter[str] = Counter()
    for table, rows in {
        shard["path"]: (shard["table"], shard["rows"]) for shard in shards
    }.values():
        counted[table] += rows
    return counted


def final_table(results: Results) -> tuple[str, list[str], list[list[str]]] | None:
    """The table at the end of a run: title, header, rows of texts.

    None without results, or with more rows than `MAX_ROWS`.

    Per configuration, at the last step: the task's metrics on val and the normalised effective rank
    of each matrix, as mean and 95 % t interval over seeds. Where trials are judged by their error,
    the number of those that generalised stands instead of the loss.
    """
    if _count_rows(Store(results.root).outcomes())["scalars"] > MAX_ROWS["scalars"]:
        return None
    trials = results.trials()
    below = results.generalises_below
    parameters = list(results.parameters)
    rows = aggregate.final_table(trials, results.scalars(), parameters, threshold=below)
    if not rows:
        return None
    title = f"{results.name}: mean ± 95 % t interval over seeds at the last step"
    if any(row.n_judged for row in rows):
        title += f"\ngeneralised: validation error below {below} within the last tenth of the steps"
    names = [_configuration(row.parameters) for row in rows]
    matrices = sorted(without_brackets(_matrices(rows)), key=natural)
    if len(rows) <= WIDE:
        lines = [(label, [value(row) for row in rows]) for label, value in _lines(rows, matrices)]
        return title, ["", *names], [[label, *values] for label, values in lines]
    chosen = [line for line in _lines(rows, matrices[:MOST_MATRICES]) if line[1](rows[0])]
    header = ["configuration", *(label for label, _ in chosen)]
    body = [
        [name, *(value(row) for _, value in chosen)]
        for name, row in zip(names[:MOST_ROWS], rows, strict=False)
    ]
    if len(rows) > MOST_ROWS:
        body.append([f"... {len(rows) - MOST_ROWS} more", *("" for _ in chosen)])
    return title, header, body


def _matrices(rows: Sequence[aggregate.FinalRow]) -> list[str]:
    """Subjects with a rank to speak of: a vector's is 1 whatever happens to it."""
    subjects = dict.fromkeys(subject for row in rows for subject in row.ranks)
    found = {s: [row.ranks[s] for row in rows if s in row.ranks] for s in subjects}
    return [s for s, ends in found.items() if any((e.mean, e.sd or 0) != (1.0, 0) for e in ends)]


def _lines(rows: Sequence[aggregate.FinalRow], matrices: Sequence[str]) -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = [("completed", lambda row: str(row.n_completed))]
    if any(row.n_diverged for row in rows):
        lines.append(("diverged", lambda row: str(row.n_diverged)))
    if any(row.n_judged for row in rows):
        lines.append(("generalised", lambda row: f"{row.n_generalised}/{row.n_judged}"))
    lines += [
        (
            f"validation {name}",
            lambda row, name=name: estimate(row.val.get(name), small=name == "loss"),
        )
        for name in shown_metrics(rows)
    ]
    if matrices:
        lines.append(("normalised effective rank", lambda row: ""))
    lines += [
        (f"  {matrix}", lambda row, matrix=matrix: estimate(row.ranks.get(matrix)))
        for matrix in matrices
    ]
    return lines


def shown_metrics(rows: Sequence[aggregate.FinalRow]) -> list[str]:
    """The metrics on val that the end of a run shows: without the loss where errors are judged."""
    judged = any(row.n_judged for row in rows)
    return [name for name in aggregate.val_metrics(rows) if not (judged and name == "loss")]


def estimate(found: aggregate.Estimate | None, *, small: bool = False) -> str:
    """A mean and half its 95 % t interval, ``0.310 ± 0.060``; a dash where there is none.

    `small`: a mean that three decimals would not tell from 0 is written as ``3.1e-05 ± 6.0e-06``.
    """
    if found is None or found.mean is None:
        return "–"
    form = ".1e" if small and 0 < abs(found.mean) < 0.01 else ".3f"
    if found.lower is None or found.upper is None:
        return f"{found.mean:{form}}"
    return f"{found.mean:{form}} ± {(found.upper - found.lower) / 2:{form}}"


def _configuration(parameters: Mapping[str, Any]) -> str:
    if len(parameters) == 1:
        return "\n".join(str(part) for pair in parameters.items() for part in pair)
    return "\n".join(f"{name}={value}" for name, value in parameters.items()) or "all"
