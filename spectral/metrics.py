"""What every measured number means: the tables that docs/metrics.md is held against by a test."""

from __future__ import annotations

from collections.abc import Iterable

from spectral.metric import Metric as Metric
from spectral.metrics_operator import OPERATOR_METRICS, OPERATOR_QUANTITIES
from spectral.metrics_pruned import PRUNED_METRICS, UPDATE_METRICS, UPDATE_QUANTITIES
from spectral.metrics_ranks import RANK_METRICS
from spectral.metrics_vectors import (
    AGREEMENT_METRICS,
    AGREEMENT_QUANTITIES,
    ALIGNMENT_METRICS,
    ALIGNMENT_QUANTITIES,
)

SPECTRUM_QUANTITIES = (
    Metric(
        name="singular_values",
        definition="sigma_1, ..., sigma_R, descending; the leading ones if R > 2048",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
)


def _table(metrics: Iterable[Metric]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


# The metrics and quantities of each measurement, in the order of a snapshot's rows.
METRICS_OF: dict[str, tuple[Metric, ...]] = {
    "ranks": RANK_METRICS,
    "alignment": ALIGNMENT_METRICS,
    "agreement": AGREEMENT_METRICS,
    "pruned": PRUNED_METRICS,
    "update": UPDATE_METRICS,
    "operator": OPERATOR_METRICS,
}
QUANTITIES_OF: dict[str, tuple[Metric, ...]] = {
    "spectrum": SPECTRUM_QUANTITIES,
    "alignment": ALIGNMENT_QUANTITIES,
    "agreement": AGREEMENT_QUANTITIES,
    "update": UPDATE_QUANTITIES,
    "operator": OPERATOR_QUANTITIES,
}

METRICS: dict[str, Metric] = _table(m for group in METRICS_OF.values() for m in group)
QUANTITIES: dict[str, Metric] = _table(m for group in QUANTITIES_OF.values() for m in group)

MEASUREMENTS: dict[str, str] = {
    "ranks": "effective and stable ranks and norms of every matrix view, each with its interval",
    "spectrum": "all singular values of every matrix view, with their bounds",
    "alignment": "how far the singular vectors of coupled matrices line up, beside chance levels",
    "agreement": "singular vectors compared with those at step 0, of the last snapshot, and at the "
    "end",
    "pruned": "the evaluation of models that keep a part of their singular directions",
    "update": "the spectrum of what was added to each matrix since the last snapshot",
    "operator": "singular values of convolutions as operators on their feature maps",
}
