"""Which rows a figure is of, as a caller names them; what is not there is an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.columns import only, unknown
from orchestrator.comparable import level_of
from orchestrator.errors import QueryError
from orchestrator.figures_data import (
    Configuration,
    chance_levels,
    configurations,
    most_changed,
    visible,
    whole_subjects,
)

if TYPE_CHECKING:
    from orchestrator.results import Results

REFERENCES = ("final", "initial", "previous")
_GROUPS = {
    "alignment": "alignment",
    "subspace_overlap": "alignment",
    "agreement": "agreement",
    "update": "update",
    "operator": "operator",
    "singular_values": "spectrum",
}


def group_of(name: str) -> str | None:
    """The measurement that a metric or quantity belongs to; None for the task's own."""
    if "/kept_" in name:
        return "pruned"
    root = name.split("/")[0]
    if root == "update" or root.startswith("update_"):
        return "update"
    if root.startswith("operator"):
        return "operator"
    if name.startswith(("subspace_overlap/initial", "subspace_overlap/previous")):
        return "agreement"
    if name.startswith("subspace_overlap/final"):
        return "agreement"
    if root in _GROUPS:
        return _GROUPS[root]
    ranks = ("effective_rank", "stable_rank", "participation_rank", "mass_rank", "numerical_rank")
    return "ranks" if root in (*ranks, "spectral_entropy", "gini", "norm") else None


def own_rows(scalars: pa.Table) -> pa.Array:
    """Which rows are the task's own metrics, of any split and by any name: booleans.

    A Recorder's caller may name a split or a metric as one of our measurements.
    """
    recorded = pc.equal(scalars["method"], "recorded")
    names = scalars["metric"].unique().to_pylist()
    own = pa.array([name for name in names if group_of(name) is None], pa.string())
    return pc.fill_null(pc.or_kleene(recorded, pc.is_in(scalars["metric"], value_set=own)), False)


def scalars_of(results: Results, metric: str) -> pa.Table:
    """Every row of a metric.

    Raises:
        QueryError: none was measured; names the measurement that does.
    """
    return _measured(results, metric, lambda: results.scalars(metric=metric), "metric")


def spectra_of(results: Results, quantity: str) -> pa.Table:
    """Every row of a quantity.

    Raises:
        QueryError: none was measured; names the measurement that does.
    """
    return _measured(results, quantity, lambda: results.spectra(quantity=quantity), "quantity")


def _measured(results: Results, name: str, read: Any, column: str) -> pa.Table:
    require_results(results)
    try:
        found = visible(read())
    except QueryError:
        if (group := group_of(name)) is None:
            raise
        raise QueryError(_missing(results, column, name, group)) from None
    if not found.num_rows:  # of these trials: the name itself may be known
        raise QueryError(_missing(results, column, name, group_of(name)))
    return found


def _missing(results: Results, column: str, name: str, group: str | None) -> str:
    text = f"{results.root} holds no {column} {name!r}"
    if group is None:
        return text
    return f"{text}: measure: [{group}] measures it, in the sweep file or given to a Recorder"


def require_results(results: Results) -> None:
    """Refuse results without a trial to draw.

    Raises:
        QueryError: no trial has a result yet.
    """
    if not results.trials().num_rows:
        raise QueryError(
            f"no trial of {results.root} has a result yet: "
            f"`sweep status {results.root}` counts them"
        )


def subject_of(table: pa.Table, subject: str | None, kind: str, ranked: pa.Table) -> str:
    """The subject that a figure is of.

    Args:
        table: the rows to choose from.
        subject: its name; None: the one among them whose value in `ranked` changed most.
        kind: what to call it in a message: matrix, coupling.
        ranked: rows of one metric; may be empty.

    Raises:
        QueryError: no row is of that name; lists near ones.
    """
    known = list(dict.fromkeys(table["subject"].to_pylist()))
    if subject is None:
        return most_changed(only(ranked, "subject", known)) or known[0]
    if subject not in known:
        raise QueryError(unknown(kind, subject, known))
    return subject


def configuration_of(
    results: Results,
    trial: str | None,
    configuration: str | Mapping[str, Any] | None,
    table: pa.Table,
) -> Configuration:
    """The configuration, or the one trial, that a figure is of.

    Args:
        results: whose.
        trial: the beginning of a trial's id: this trial alone.
        configuration: the beginning of a configuration's id, or values of parameters that only one
            configuration has; None: the first that has rows.
        table: the rows of the figure.

    Raises:
        QueryError: none or several are named, or there are no rows of it.
    """
    if trial is not None and configuration is not None:
        raise QueryError("give a trial or a configuration, not both")
    trials = results.trials()
    known = configurations(trials, results.parameters)
    have = set(pc.unique(table["trial_id"]).to_pylist())
    if trial is not None:
        ids = [row["trial_id"] for each in known for row in each.rows]
        trial_id = _one("trial", trial, ids)
        if trial_id not in have:
            raise QueryError(f"trial {trial_id} has no row of this; {_these(have)} have")
        return next(c for c in known for row in c.rows if row["trial_id"] == trial_id).alone(
            trial_id
        )
    with_rows = [c for c in known if any(row["trial_id"] in have for row in c.rows)]
    if configuration is None:
        return with_rows[0]
    if isinstance(configuration, str):
        config_id = _one("configuration", configuration, [c.config_id for c in known])
        matching = [c for c in known if c.config_id == config_id]
    else:
        matching = _with_values(trials, known, configuration)
    if matching[0] not in with_rows:
        raise QueryError(
            f"configuration {matching[0].config_id} has no row of this; "
            f"{_these(c.config_id for c in with_rows)} have"
        )
    return matching[0]


def _these(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def _one(what: str, prefix: str, known: Sequence[str]) -> str:
    matching = [name for name in known if isinstance(prefix, str) and name.startswith(prefix)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise QueryError(f"{len(matching)} {what}s begin with {prefix!r}: {_these(matching)}")
    raise QueryError(unknown(what, str(prefix), known))


def _with_values(
    trials: pa.Table, known: Sequence[Configuration], wanted: Mapping[str, Any]
) -> list[Configuration]:
    for name in wanted:
        if name not in trials.column_names:
            raise QueryError(unknown("parameter", name, trials.column_names))
    columns = [trials[name].to_pylist() for name in wanted]
    levels = [level_of(value) for value in wanted.values()]
    chosen = {
        config_id
        for config_id, *values in zip(trials["config_id"].to_pylist(), *columns, strict=True)
        if [level_of(value) for value in values] == levels
    }
    matching = [each for each in known if each.config_id in chosen]
    if len(matching) == 1:
        return matching
    said = ", ".join(f"{name} = {value}" for name, value in wanted.items()) or "no value given"
    labels = "; ".join(each.label or each.config_id for each in (matching or known)[:10])
    if not matching:
        raise QueryError(f"no configuration has {said}; there are: {labels}")
    raise QueryError(f"{len(matching)} configurations have {said}; name one of: {labels}")


def kept_of(results: Results, metric: str) -> pa.Table:
    """Every row of a metric of pruned models.

    Raises:
        QueryError: none was measured; names the measurement that does.
    """
    everything = results.scan("scalars", results.trials())
    names = dict.fromkeys(everything["metric"].to_pylist())
    kept = [name for name in names if name.startswith(f"{metric}/kept_")]
    if not kept:
        name = f"{metric}/kept_top_0.5"
        raise QueryError(_missing(results, "metric", name, "pruned"))
    return visible(only(everything, "metric", kept))


def chances(scalars: pa.Table) -> dict[str, float]:
    """Subject -> its chance level; the highest of any step, where it depends on the step."""
    return {subject: max(levels) for subject, levels in chance_levels(scalars).items()}


def agreement_name(reference: str) -> str:
    """The metric, and the quantity, of an agreement.

    Raises:
        QueryError: another reference.
    """
    if reference not in REFERENCES:
        raise QueryError(unknown("reference", str(reference), REFERENCES))
    return f"agreement/{reference}"


def whole_of(table: pa.Table) -> pa.Table:
    """Without parts of matrices, unless there is nothing else; see `subjects.whole`."""
    return only(table, "subject", whole_subjects(table))
