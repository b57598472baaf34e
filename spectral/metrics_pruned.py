"""What the numbers of `update` and `pruned` mean: part of the tables of `spectral.metrics`."""

from __future__ import annotations

from spectral.metric import Metric

_THEIR_CODE = "Yunis et al., arXiv 2408.11804 (their code)"

UPDATE_METRICS: tuple[Metric, ...] = (
    Metric(
        name="update_norm/frobenius",
        definition="norm/frobenius of dW, the weights minus those at the last snapshot",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
    Metric(
        name="update_norm/spectral",
        definition="norm/spectral of dW",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
    Metric(
        name="update_effective_rank",
        definition="effective_rank of dW",
        range="[1, R]; 0 if nothing changed",
        units="none",
        source="Roy and Vetterli, EUSIPCO 2007",
    ),
    Metric(
        name="update_effective_rank/normalised",
        definition="update_effective_rank / R",
        range="[1/R, 1]; 0 if nothing changed",
        units="none",
        source="as effective_rank/normalised",
    ),
    Metric(
        name="update_stable_rank",
        definition="stable_rank of dW",
        range="[1, R]; 0 if nothing changed",
        units="none",
        source="Rudelson and Vershynin, J. ACM 54 (4), 2007",
    ),
    Metric(
        name="update_share/top_10",
        definition="(sum_ij X_ij^2) / (sum_ij dW_ij^2), X = U_k^T dW V_k, with the k leading "
        "singular vectors of the weights at the last snapshot; k = min(10, R), or the largest k "
        "below whose spans are determined",
        range="[0, 1]",
        units="none",
        source="ours",
    ),
    Metric(
        name="update_share/top_10_chance",
        definition="k^2 / (m n), the k of update_share/top_10: its mean over updates whose "
        "entries are independent and normal",
        range="(0, 1]",
        units="none",
        source="textbook",
    ),
)

UPDATE_QUANTITIES: tuple[Metric, ...] = (
    Metric(
        name="update/singular_values",
        definition="singular values of dW, descending",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
)

# The subject is a split; <metric> is any of the task's own, <f> the fraction as it is written.
PRUNED_METRICS: tuple[Metric, ...] = (
    Metric(
        name="<metric>/kept_top_<f>",
        definition="the task's metric with the ceil(f R) leading singular directions of every "
        "matrix, as a rule but the last; BatchNorm's statistics re-estimated over the training "
        "split",
        range="as <metric>",
        units="as <metric>",
        source=_THEIR_CODE,
    ),
    Metric(
        name="<metric>/kept_bottom_<f>",
        definition="likewise with the R - ceil((1 - f) R) last singular directions",
        range="as <metric>",
        units="as <metric>",
        source=_THEIR_CODE,
    ),
)
