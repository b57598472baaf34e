"""What every measured number means: the tables that docs/metrics.md is held against by a test."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """The meaning of one name in the `metric` or `quantity` column.

    Attributes:
        name: as it stands in the column.
        definition: the formula. W is m x n, R = min(m, n), sigma_1 >= ... >= sigma_R.
        range: the values it can take, besides NaN.
        units: `none`, or what it is measured in.
        source: where the definition comes from.
    """

    name: str
    definition: str
    range: str
    units: str
    source: str


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


METRICS: dict[str, Metric] = _table(
    Metric(
        name="effective_rank",
        definition="exp(-sum_i p_i ln p_i), p_i = sigma_i / sum_j sigma_j, 0 ln 0 = 0",
        range="[1, R]; 0 for the zero matrix",
        units="none",
        source="Roy and Vetterli, EUSIPCO 2007",
    ),
    Metric(
        name="effective_rank/normalised",
        definition="effective_rank / R",
        range="[1/R, 1]; 0 for the zero matrix",
        units="none",
        source="Yunis et al., arXiv 2408.11804 (their code)",
    ),
    Metric(
        name="stable_rank",
        definition="(sum_ij W_ij^2) / sigma_1^2",
        range="[1, R]; 0 for the zero matrix",
        units="none",
        source="Rudelson and Vershynin, J. ACM 54 (4), 2007",
    ),
    Metric(
        name="norm/frobenius",
        definition="sqrt(sum_ij W_ij^2)",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
    Metric(
        name="norm/spectral",
        definition="sigma_1",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
)

QUANTITIES: dict[str, Metric] = _table(
    Metric(
        name="singular_values",
        definition="sigma_1, ..., sigma_R, descending",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
)

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
