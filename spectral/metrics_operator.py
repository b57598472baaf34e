"""What the numbers of the `operator` measurement mean; part of the tables of `spectral.metrics`."""

from __future__ import annotations

from spectral.metric import Metric

OPERATOR_METRICS: tuple[Metric, ...] = (
    Metric(
        name="operator_effective_rank",
        definition="effective_rank of the circular convolution on the layer's grid: c_out P x "
        "c_in P s^d, P output positions, stride s, d directions; R is its smaller side",
        range="[1, R]; 0 for the zero kernel",
        units="none",
        source="Sedghi, Gupta and Long, ICLR 2019 (the spectrum)",
    ),
    Metric(
        name="operator_effective_rank/normalised",
        definition="operator_effective_rank / R",
        range="[1/R, 1]; 0 for the zero kernel",
        units="none",
        source="as effective_rank/normalised",
    ),
    Metric(
        name="operator_stable_rank",
        definition="operator_norm/frobenius^2 / operator_norm/spectral^2",
        range="[1, R]; 0 for the zero kernel",
        units="none",
        source="Rudelson and Vershynin, J. ACM 54 (4), 2007",
    ),
    Metric(
        name="operator_norm/spectral",
        definition="largest singular value of the operator",
        range="[0, inf)",
        units="weights",
        source="Sedghi, Gupta and Long, ICLR 2019",
    ),
    Metric(
        name="operator_norm/frobenius",
        definition="sqrt(P sum K^2), K the kernel as it lies on the grid",
        range="[0, inf)",
        units="weights",
        source="Parseval",
    ),
)

OPERATOR_QUANTITIES: tuple[Metric, ...] = (
    Metric(
        name="operator/singular_values",
        definition="the largest singular values of the operator, at most 1000, descending",
        range="[0, inf)",
        units="weights",
        source="Sedghi, Gupta and Long, ICLR 2019",
    ),
)
