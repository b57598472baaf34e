"""What a sweep ends with: trends.parquet, plots, and the table that is printed.

All of it is a projection of the committed rows: `sweep run` writes it at the end, `sweep track`
writes it again, and deleting it loses nothing.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from orchestrator import aggregate, trends
from orchestrator.results import Results
from orchestrator.store import Store

WIDE = 5
"""Up to this many configurations stand side by side, with a line per matrix."""
MOST_ROWS = 40
MOST_MATRICES = 4


def write(store: Store) -> None:
    """Fit the trends of a store's newest sweep file and draw its plots.

    Writes `trends.parquet` and `report/<name>.png`.

    Raises:
        UserError: trials that cannot be compared, for example with unequal steps.
        StoreError: the storage refuses.
    """
    from orchestrator import plots

    results = Results.open(store.root)
    trials = results.trials()
    if not trials.num_rows:
        return
    scalars = results.scalars()
    axes = list(results.parameters)
    sink = io.BytesIO()
    pq.write_table(trends.fit(trials, scalars, axes), sink)
    store.replace("trends.parquet", sink.getvalue())
    for name, figure in plots.sweep_figures(trials, scalars, results.spectra(), axes).items():
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=120)
        store.replace(f"report/{name}.png", image.getvalue())


def final_table(results: Results) -> tuple[str, list[str], list[list[str]]] | None:
    """The table at the end of a run: title, header, rows of texts; None without results.

    Per configuration: trials that generalised as counts, validation error, and the normalised
    effective rank of each matrix at the last step, as mean and 95 % t interval over seeds.
    """
    trials = results.trials()
    rows = aggregate.final_table(trials, results.scalars(), list(results.parameters))
    if not rows:
        return None
    title = (
        f"{results.name}: mean ± 95 % t interval over seeds at the last step\n"
        "generalised: validation error below 0.05 within the last tenth of the steps"
    )
    names = [_configuration(row.parameters) for row in rows]
    matrices = [s for s in rows[0].ranks if "[" not in s] or list(rows[0].ranks)
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


def _lines(rows: Sequence[aggregate.FinalRow], matrices: Sequence[str]) -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = [("completed", lambda row: str(row.n_completed))]
    if any(row.n_diverged for row in rows):
        lines.append(("diverged", lambda row: str(row.n_diverged)))
    if any(row.n_judged for row in rows):
        lines.append(("generalised", lambda row: f"{row.n_generalised}/{row.n_judged}"))
        lines.append(("validation error", lambda row: estimate(row.val_error)))
    if matrices:
        lines.append(("normalised effective rank", lambda row: ""))
    lines += [
        (f"  {matrix}", lambda row, matrix=matrix: estimate(row.ranks.get(matrix)))
        for matrix in matrices
    ]
    return lines


def estimate(found: aggregate.Estimate | None) -> str:
    """A mean and half its 95 % t interval, ``0.310 ± 0.060``; a dash where there is none."""
    if found is None or found.mean is None:
        return "–"
    if found.lower is None or found.upper is None:
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} ± {(found.upper - found.lower) / 2:.3f}"


def _configuration(parameters: Mapping[str, Any]) -> str:
    if len(parameters) == 1:
        return "\n".join(str(part) for pair in parameters.items() for part in pair)
    return "\n".join(f"{name}={value}" for name, value in parameters.items()) or "all"
