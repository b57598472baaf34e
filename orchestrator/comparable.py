"""What may be compared: the checked rows of completed trials, and the levels of a parameter.

Statistics over seeds rest on repetitions that differ in their seed and in nothing else. What is
handed on from here is checked for that; what cannot be compared is an error that names the trials.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.errors import IncomparableTrialsError
from orchestrator.fits import Floats, Ints


@dataclass(frozen=True)
class Rows:
    """The scalar rows of completed trials as integer codes, checked, in a canonical order.

    Attributes:
        trials: the completed trials (T of them), ordered by config_id and seed, all columns kept.
        config_ids: configurations with a completed trial, sorted.
        config: (T,) index into `config_ids`.
        series: the (subject, metric) pairs that occur, sorted.
        trial: (R,) index into `trials`, as all that follow one entry per row.
        of_series: (R,) index into `series`.
        step: (R,) optimiser steps.
        value: (R,) NaN where the table has null.
        flagged: (R,) whether the row carries any flag.

    Rows are sorted by (config, series, step, seed), so results do not depend on the input's order.
    """

    trials: pa.Table
    config_ids: list[str]
    config: Ints
    series: list[tuple[str, str]]
    trial: Ints
    of_series: Ints
    step: Ints
    value: Floats
    flagged: NDArray[np.bool_]

    def by_trajectory(self) -> tuple[Ints, Ints]:
        """Where the rows stand when sorted by trial, series and step; where each series begins."""
        order = np.lexsort((self.step, self.of_series, self.trial))
        return order, starts_of(self.trial[order], self.of_series[order])

    def config_id_of(self, config: Ints) -> pa.Array:
        """The identifiers of these configurations."""
        return pa.array(self.config_ids, pa.string()).take(pa.array(config))

    def names_of(self, series: Ints) -> list[pa.Array]:
        """The subjects of these series, and their metrics."""
        return [
            pa.array([pair[place] for pair in self.series], pa.string()).take(pa.array(series))
            for place in (0, 1)
        ]


def completed_rows(trials: pa.Table, scalars: pa.Table) -> Rows:
    """The rows of the completed trials in `trials`; rows of trials that are not there are ignored.

    Raises:
        IncomparableTrialsError: two completed trials of a configuration have the same seed (they
            are no independent repetitions), or recorded a metric at different steps, or a trial has
            two rows for one step.
    """
    done = trials.filter(pc.equal(trials.column("status"), "completed"))
    done = done.sort_by([("config_id", "ascending"), ("seed", "ascending")])
    config, config_ids = encode(done.column("config_id"))
    _require_distinct_seeds(done)

    position = pc.index_in(scalars.column("trial_id"), value_set=done.column("trial_id"))
    scalars = scalars.filter(pc.is_valid(position))
    trial = pc.drop_null(position).to_numpy().astype(np.int64)
    of_subject, subjects = encode(scalars.column("subject"))
    of_metric, metrics = encode(scalars.column("metric"))
    pairs, of_series = np.unique(of_subject * len(metrics) + of_metric, return_inverse=True)
    series = [(subjects[pair // len(metrics)], metrics[pair % len(metrics)]) for pair in pairs]
    step = scalars.column("step").to_numpy().astype(np.int64)
    span = int(step.max(initial=0)) + 1
    key = ((config[trial] * len(series) + of_series) * span + step) * done.num_rows + trial
    order = np.argsort(key, kind="stable")
    rows = Rows(
        trials=done,
        config_ids=config_ids,
        config=config,
        series=series,
        trial=trial[order],
        of_series=of_series[order],
        step=step[order],
        value=scalars.column("value").cast(pa.float64()).to_numpy()[order],
        flagged=pc.is_valid(scalars.column("flag")).to_numpy()[order],
    )
    key = key[order]
    _require_distinct_rows(rows, key)
    _require_equal_steps(rows, starts_of(key // max(done.num_rows, 1)))
    return rows


def level_of(value: Any) -> Any:
    """A parameter's value as a level, which can be a key: a list (betas: [0.9, 0.98]) as text."""
    return str(value) if isinstance(value, list | dict) else value


def level_order(level: Any) -> tuple[int, float, str]:
    """Sort key of levels: numbers by size, then booleans, then the rest by its text."""
    if isinstance(level, bool):
        return 1, float(level), ""
    if isinstance(level, int | float):
        return 0, float(level), ""
    return 2, 0.0, str(level)


def starts_of(*keys: Ints) -> Ints:
    """Where each run of equal keys begins, for rows that are sorted by these keys."""
    changed = np.zeros(max(keys[0].size - 1, 0), np.bool_)
    for key in keys:
        changed |= key[1:] != key[:-1]
    return np.flatnonzero(np.concatenate([[keys[0].size > 0], changed])).astype(np.int64)


def encode(column: pa.ChunkedArray) -> tuple[Ints, list[str]]:
    """(codes, labels): the distinct strings of a column in sorted order, and each row's index."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    labels = encoded.dictionary.to_pylist()
    rank = {label: code for code, label in enumerate(sorted(labels))}
    recode = np.array([rank[label] for label in labels], np.int64)
    return recode[encoded.indices.to_numpy(zero_copy_only=False)], sorted(labels)


def _require_distinct_seeds(done: pa.Table) -> None:
    seen: dict[tuple[str, int], str] = {}
    for row in done.select(["config_id", "seed", "trial_id"]).to_pylist():
        first = seen.setdefault((row["config_id"], row["seed"]), row["trial_id"])
        if first != row["trial_id"]:
            raise IncomparableTrialsError(
                f"trials {first} and {row['trial_id']} are the same configuration"
                f" {row['config_id']} with the same seed {row['seed']}: not two independent"
                " repetitions. Select the trials of one version of the sweep file."
            )


def _require_distinct_rows(rows: Rows, key: Ints) -> None:
    twice = np.flatnonzero(key[1:] == key[:-1])
    if twice.size:
        row = twice[0]
        trial_id = rows.trials.column("trial_id")[int(rows.trial[row])].as_py()
        subject, metric = rows.series[rows.of_series[row]]
        raise IncomparableTrialsError(
            f"trial {trial_id} has two rows of {subject} {metric} at step {rows.step[row]}"
        )


def _require_equal_steps(rows: Rows, starts: Ints) -> None:
    """Every (config, series, step) must hold a row of every completed trial of that config."""
    members = np.bincount(rows.config, minlength=len(rows.config_ids))
    wrong = np.diff(starts, append=rows.step.size) != members[rows.config[rows.trial[starts]]]
    lines = []
    first = starts[wrong]
    pairs = np.stack([rows.config[rows.trial[first]], rows.of_series[first]], axis=1)
    for config, series in np.unique(pairs, axis=0):
        mine = (rows.config[rows.trial] == config) & (rows.of_series == series)
        steps = np.unique(rows.step[mine])
        for trial in np.flatnonzero(rows.config == config):
            lacking = np.setdiff1d(steps, rows.step[mine & (rows.trial == trial)])
            if lacking.size:
                row = rows.trials.slice(int(trial), 1).to_pylist()[0]
                lines.append(
                    f"  configuration {row['config_id']}, trial {row['trial_id']} (seed"
                    f" {row['seed']}): lacks {' '.join(rows.series[series])} at {lacking.size} of"
                    f" {steps.size} steps, the first is {lacking[0]}"
                )
    if lines:
        raise IncomparableTrialsError(
            "completed trials of one configuration were recorded at unequal steps, so there is no"
            " mean over its seeds:\n"
            + "\n".join([*lines[:20], *([f"  … and {len(lines) - 20} more"] * (len(lines) > 20))])
            + "\nSelect the trials of one version of the sweep file."
        )
