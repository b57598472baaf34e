"""Small tables for tests, row by row."""

import math

import pyarrow as pa

from orchestrator.schemas import SCALARS, SPECTRA


def trials_table(*rows, **parameters):
    """`rows`: (trial_id, config_id, seed, status); `parameters`: one value per row."""
    columns = list(zip(*rows, strict=True)) or [[], [], [], []]
    names = ("trial_id", "config_id", "seed", "status")
    types = (pa.string(), pa.string(), pa.int64(), pa.string())
    table = {
        name: pa.array(column, kind)
        for name, column, kind in zip(names, columns, types, strict=True)
    }
    return pa.table(table | parameters)


def scalars_table(*rows):
    """`rows`: (trial_id, step, subject, metric, value) or one more, the flag."""
    filled = [
        dict(zip(("trial_id", "step", "subject", "metric", "value", "flag"), row, strict=False))
        | {"method": "gram64"}
        for row in rows
    ]
    return pa.Table.from_pylist(filled, SCALARS)


def curve(trial_id, values, subject="val", metric="error"):
    """Rows at steps 0, 10, 20 …"""
    return [(trial_id, 10 * i, subject, metric, value) for i, value in enumerate(values)]


def spectra_table(*rows):
    """`rows`: (trial_id, step, subject, values) or more: bounds, flag."""
    names = ("trial_id", "step", "subject", "values", "bounds", "flag")
    filled = []
    for row in rows:
        entry = dict(zip(names, row, strict=False))
        filled.append({"bounds": [1e-9] * len(row[3]), **entry, "quantity": "singular_values"})
    return pa.Table.from_pylist(filled, SPECTRA)


def two_levels():
    """weight_decay 0 and 1, two seeds each; the last diverged after its first row."""
    trials = trials_table(
        ("t0", "c0", 0, "completed"),
        ("t1", "c1", 0, "completed"),
        ("t2", "c0", 1, "completed"),
        ("t3", "c1", 1, "diverged"),
        weight_decay=[0.0, 1.0, 0.0, 1.0],
    )
    values = {"t0": [1.0, 0.8], "t1": [1.0, 0.1], "t2": [0.9, 0.6], "t3": [0.7, math.nan]}
    return trials, values
