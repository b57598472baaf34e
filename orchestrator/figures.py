"""`results.plot`: the paper's figure types, each onto matplotlib axes.

    results.plot.rank_heatmap(configuration={"weight_decay": 1.0}).figure.savefig("ranks.pdf")

Without `ax` a figure of its own is made, with no display needed; in a notebook give pyplot's axes.
Numbers flagged collapsed, zero or diverged are hidden, entries that are not determined are grey or
missing, and nothing is averaged but the completed seeds of one configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from matplotlib.axes import Axes

from orchestrator import figures_draw as draw
from orchestrator import lines
from orchestrator.aggregate import NORMALISED_RANK
from orchestrator.columns import only, unknown
from orchestrator.errors import QueryError
from orchestrator.figures_choice import (
    agreement_name,
    chances,
    configuration_of,
    kept_of,
    require_results,
    scalars_of,
    spectra_of,
    subject_of,
    whole_of,
)
from orchestrator.figures_data import Configuration, scalar_heat, spectrum_heat
from orchestrator.figures_final import draw_finals, finals
from orchestrator.figures_series import named_series, pruned_series, settling_series
from orchestrator.figures_text import literal
from orchestrator.lines import AXIS_LABELS, OPERATOR_RANK, UPDATE_RANK, UPDATE_SHARE
from orchestrator.schemas import SCALARS, TRIALS

if TYPE_CHECKING:
    from orchestrator.results import Results

Chosen = str | Mapping[str, Any] | None
"""The beginning of a configuration's id, or values of parameters; None: the first."""


class Plots:
    """Figures of some results. Every method takes `ax` (None: a new figure) and returns the axes.

    `trial` is the beginning of a trial's id; `configuration` the beginning of a configuration's, or
    parameter values that single one out, and stands for the mean over its completed seeds; neither:
    the first configuration, which the title names. `subject` is a matrix, or a coupling ``a->b``;
    None: the one whose normalised effective rank (or alignment score) changed most.

    Every method raises QueryError: nothing of the kind was measured (names the `measure:` that
    does), or a name that no row has.
    """

    def __init__(self, results: Results) -> None:
        self._results = results

    def singular_values(
        self, subject: str | None = None, trial: str | None = None, *, ax: Axes | None = None
    ) -> Axes:
        """Every singular value of one matrix of one trial over steps, coloured by its index."""
        table = spectra_of(self._results, "singular_values")
        subject = subject_of(table, subject, "matrix", self._optional(NORMALISED_RANK))
        table = only(table, "subject", [subject])
        one = configuration_of(self._results, trial, None, table)
        have = set(table["trial_id"].to_pylist())
        row = next(r for r in (*one.chosen, *one.rows) if r["trial_id"] in have)
        ax = lines.singular_values(table, row["trial_id"], subject, ax)
        parts = filter(None, (subject, one.shown, f"seed {row['seed']}"))
        ax.set_title(literal(", ".join(parts)), fontsize=10)
        return ax

    def rank_heatmap(
        self,
        metric: str = NORMALISED_RANK,
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """One metric of every matrix, matrix x step.

        Parts of matrices (heads, thirds of a fused one) are left out; see `subjects.whole`.
        """
        table = whole_of(scalars_of(self._results, metric))
        one = configuration_of(self._results, trial, configuration, table)
        heat = scalar_heat(table, one)
        return draw.heat_alone(
            ax, heat, AXIS_LABELS.get(metric, metric), whole="normalised" in metric
        )

    def alignment_diagonal(
        self,
        coupling: str | None = None,
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """How far the j-th vectors of two matrices that meet line up, index x step."""
        table = spectra_of(self._results, "alignment/diagonal")
        coupling = subject_of(table, coupling, "coupling", self._optional("alignment"))
        table = only(table, "subject", [coupling])
        one = configuration_of(self._results, trial, configuration, table)
        chance = chances(self._optional("alignment/chance")).get(coupling)
        heat = spectrum_heat(table, one, chance)
        return draw.heat_alone(ax, heat, "alignment", chance=chance, of=coupling)

    def alignment_scores(
        self, *, trial: str | None = None, configuration: Chosen = None, ax: Axes | None = None
    ) -> Axes:
        """The alignment score of every coupling, coupling x step."""
        table = whole_of(scalars_of(self._results, "alignment"))
        one = configuration_of(self._results, trial, configuration, table)
        heat = scalar_heat(table, one, chances(self._optional("alignment/chance")))
        return draw.heat_alone(ax, heat, "alignment score (first 10)")

    def alignment(
        self, coupling: str | None = None, by: str | None = None, *, ax: Axes | None = None
    ) -> Axes:
        """The score of one coupling over steps, every seed a line; dashed: its chance level."""
        table = scalars_of(self._results, "alignment")
        coupling = subject_of(table, coupling, "coupling", table)
        ax = self.metric("alignment", coupling, by, ax=ax)
        chance = chances(self._optional("alignment/chance")).get(coupling)
        if chance is not None:
            draw.draw_chance(ax, chance)
        return ax

    def agreement(
        self,
        reference: str = "final",
        subject: str | None = None,
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """How far the j-th singular vectors agree with those of the reference, index x step.

        Args:
            reference: "final", "initial" or "previous" (the snapshot before).
            subject: see the class; likewise the others.
            trial: see the class.
            configuration: see the class.
            ax: see the class.
        """
        name = agreement_name(reference)
        table = spectra_of(self._results, name)
        subject = subject_of(table, subject, "matrix", self._optional(NORMALISED_RANK))
        table = only(table, "subject", [subject])
        one = configuration_of(self._results, trial, configuration, table)
        chance = chances(self._optional("agreement/chance")).get(subject)
        heat = spectrum_heat(table, one, chance)
        return draw.heat_alone(ax, heat, name, whole=True, chance=chance, of=subject)

    def agreement_scores(
        self,
        reference: str = "final",
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """The agreement score of every matrix with the reference, matrix x step."""
        name = agreement_name(reference)
        table = whole_of(scalars_of(self._results, name))
        one = configuration_of(self._results, trial, configuration, table)
        heat = scalar_heat(table, one, chances(self._optional("agreement/chance")))
        return draw.heat_alone(ax, heat, f"{name} (first 10)", whole=True)

    def settling(
        self,
        subject: str | None = None,
        reference: str = "final",
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Agreement with the reference of the first ten indices beside the last ten, over steps.

        Every seed is a thin line: the mean of its determined entries.
        """
        name = agreement_name(reference)
        table = spectra_of(self._results, name)
        subject = subject_of(table, subject, "matrix", self._optional(NORMALISED_RANK))
        table = only(table, "subject", [subject])
        one = configuration_of(self._results, trial, configuration, table)
        series, colours = settling_series(table)
        ax = draw.seeds_alone(ax, one, series, colours, None, name, subject)
        ax.set_ylim(-0.02, 1.02)
        return ax

    def pruned_losses(
        self,
        split: str = "val",
        metric: str = "loss",
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """A metric over steps: of the full model, and with a part of its directions kept."""
        require_results(self._results)
        kept = kept_of(self._results, metric)
        table = only(
            pa.concat_tables([scalars_of(self._results, metric), kept]), "subject", [split]
        )
        if not table.num_rows:
            raise QueryError(unknown("split", split, kept["subject"].to_pylist()))
        one = configuration_of(self._results, trial, configuration, table)
        series, colours, styles = pruned_series(table, metric)
        ax = draw.seeds_alone(
            ax, one, series, colours, styles, AXIS_LABELS.get(metric, metric), split
        )
        if metric == "loss":
            draw.logarithmic_if_positive(ax)
        return ax

    def metric(
        self, metric: str, subject: str, by: str | None = None, *, ax: Axes | None = None
    ) -> Axes:
        """One metric of one subject over steps, every seed a line, coloured by a parameter.

        See `orchestrator.lines.metric_over_steps`.
        """
        table = scalars_of(self._results, metric)
        subject = subject_of(table, subject, "subject", table)
        self._require_parameter(by)
        return lines.metric_over_steps(self._results.trials(), table, subject, metric, by, ax)

    def final_rank_by(
        self,
        parameter: str,
        subject: str | None = None,
        metric: str = NORMALISED_RANK,
        *,
        ax: Axes | None = None,
    ) -> Axes:
        """A metric at the last step by a parameter: every seed, the mean, its 95 % interval."""
        table = scalars_of(self._results, metric)
        subject = subject_of(table, subject, "subject", table)
        self._require_parameter(parameter)
        trials = self._results.trials()
        mine = only(table, "subject", [subject])
        ends = finals(trials, mine, parameter, self._results.parameters)
        ax = draw.new_axes() if ax is None else ax
        draw_finals(ax, ends.get(subject, []), parameter, metric)
        ax.set_title(literal(f"{subject}, last step"), fontsize=10)
        return ax

    def updates(
        self,
        subject: str | None = None,
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """What was added to a matrix since the snapshot before, over steps, every seed a line.

        Its share inside the first ten singular directions of the weights before it, with a dashed
        line at the chance level of the share, and its effective rank over the full rank.
        """
        table = scalars_of(self._results, UPDATE_RANK)
        subject = subject_of(table, subject, "matrix", self._optional(NORMALISED_RANK))
        names = {
            UPDATE_SHARE: "share in the first 10 directions",
            UPDATE_RANK: AXIS_LABELS[NORMALISED_RANK],
        }
        ax, one = self._metrics(
            ax, names, subject, trial, configuration, "update since the last snapshot (fraction)"
        )
        chance = self._optional(f"{UPDATE_SHARE}_chance")
        chance = only(chance, "trial_id", [row["trial_id"] for row in one.rows])
        if subject in (level := chances(chance)):
            draw.draw_chance(ax, level[subject])
        return ax

    def operators(
        self,
        subject: str | None = None,
        *,
        trial: str | None = None,
        configuration: Chosen = None,
        ax: Axes | None = None,
    ) -> Axes:
        """Effective rank of a convolution over steps: as a linear operator, and of the flat weight.

        Each over its own full rank, every seed a line. Without a name, the convolution whose rank
        as an operator changed most.
        """
        table = scalars_of(self._results, OPERATOR_RANK)
        subject = subject_of(table, subject, "convolution", table)
        names = {OPERATOR_RANK: "linear operator", NORMALISED_RANK: "flattened weight"}
        return self._metrics(
            ax, names, subject, trial, configuration, AXIS_LABELS[NORMALISED_RANK]
        )[0]

    # --- how ------------------------------------------------------------------------------

    def _optional(self, metric: str) -> pa.Table:
        try:
            return scalars_of(self._results, metric)
        except QueryError:
            return SCALARS.empty_table()

    def _require_parameter(self, name: str | None) -> None:
        known = [n for n in self._results.trials().column_names if n not in TRIALS.names]
        if name is not None and name not in known:
            raise QueryError(unknown("parameter", name, self._results.parameters or known))

    def _metrics(
        self,
        ax: Axes | None,
        names: Mapping[str, str],
        subject: str,
        trial: str | None,
        configuration: Chosen,
        label: str,
    ) -> tuple[Axes, Configuration]:
        """Metrics between 0 and 1 of one subject on one axes, by their names in the legend."""
        tables = [only(self._optional(metric), "subject", [subject]) for metric in names]
        table = pa.concat_tables(tables)
        one = configuration_of(self._results, trial, configuration, table)
        series, colours = named_series(table, names)
        ax = draw.seeds_alone(ax, one, series, colours, None, label, subject)
        ax.set_ylim(-0.02, 1.02)
        return ax, one
