"""What the rows of the measurement `ranks` mean, in their order."""

from __future__ import annotations

from spectral.metric import Metric

_RANK = "[1, R]; 0 for the zero matrix"
_SHARE_OF_R = "[1/R, 1]; 0 for the zero matrix"
_RELATIVE = "(0, inf), 1 for random weights; 0 for the zero matrix"
_BASELINE = "Marchenko and Pastur, Math. USSR-Sbornik 1, 1967; simulation for R < 64"
_THEIR_CODE = "Yunis et al., arXiv 2408.11804 (their code)"


def _over_rank(name: str, source: str = "textbook", values: str = _SHARE_OF_R) -> Metric:
    return Metric(f"{name}/normalised", f"{name} / R", values, "none", source)


def _over_random(name: str) -> Metric:
    definition = f"{name} / its mean over m x n Gaussian matrices"
    return Metric(f"{name}/relative", definition, _RELATIVE, "none", _BASELINE)


def _norm_over_random(name: str, norm: str) -> Metric:
    definition = f"({norm} / norm/frobenius) / its mean over m x n Gaussian matrices"
    return Metric(f"norm/{name}_relative", definition, _RELATIVE, "none", _BASELINE)


RANK_METRICS: tuple[Metric, ...] = (
    Metric(
        name="effective_rank",
        definition="exp(-sum_i p_i ln p_i), p_i = sigma_i / sum_j sigma_j, 0 ln 0 = 0",
        range=_RANK,
        units="none",
        source="Roy and Vetterli, EUSIPCO 2007",
    ),
    _over_rank("effective_rank", _THEIR_CODE),
    _over_random("effective_rank"),
    Metric(
        name="spectral_entropy",
        definition="H = -sum_i p_i ln p_i, p_i = sigma_i / sum_j sigma_j, 0 ln 0 = 0",
        range="[0, ln R]",
        units="nats",
        source="Yunis et al., arXiv 2408.11804, eq. 1 (as printed)",
    ),
    Metric(
        name="spectral_entropy/over_rank",
        definition="H / R",
        range="[0, (ln R) / R]",
        units="nats",
        source="Yunis et al., arXiv 2408.11804 (as printed)",
    ),
    Metric(
        name="spectral_entropy/over_log_rank",
        definition="H / ln R; 1 for R = 1",
        range="[0, 1]; 0 for the zero matrix",
        units="none",
        source="Pielou, J. Theor. Biol. 13, 1966",
    ),
    Metric(
        name="stable_rank",
        definition="(sum_ij W_ij^2) / sigma_1^2",
        range=_RANK,
        units="none",
        source="Rudelson and Vershynin, J. ACM 54 (4), 2007",
    ),
    _over_rank("stable_rank", _THEIR_CODE),
    _over_random("stable_rank"),
    Metric(
        name="participation_rank",
        definition="(sum_i sigma_i^2)^2 / sum_i sigma_i^4",
        range=_RANK,
        units="none",
        source="Bell and Dean, Discuss. Faraday Soc. 50, 1970",
    ),
    _over_rank("participation_rank"),
    _over_random("participation_rank"),
    Metric(
        name="mass_rank",
        definition="smallest k with sigma_1 + ... + sigma_k > 0.9 sum_i sigma_i",
        range="1, 2, ..., R; 0 for the zero matrix",
        units="none",
        source=_THEIR_CODE,
    ),
    _over_rank("mass_rank", _THEIR_CODE),
    _over_random("mass_rank"),
    Metric(
        name="numerical_rank",
        definition="number of sigma_i > sigma_1 max(m, n) eps, eps of the weights' dtype: "
        "2^-23 for float32",
        range="0, 1, ..., R",
        units="none",
        source="numpy.linalg.matrix_rank",
    ),
    _over_rank("numerical_rank", values="[0, 1]"),
    Metric(
        name="gini",
        definition="sum_ij abs(sigma_i - sigma_j) / (2 R sum_i sigma_i)",
        range="[0, 1 - 1/R]; 0 for the zero matrix",
        units="none",
        source=_THEIR_CODE,
    ),
    Metric(
        name="gini/relative",
        definition="gini / its mean over m x n Gaussian matrices; 1 for R = 1",
        range="[0, inf), 1 for random weights; 0 for the zero matrix",
        units="none",
        source=_BASELINE,
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
    Metric(
        name="norm/nuclear",
        definition="sum_i sigma_i",
        range="[0, inf)",
        units="weights",
        source="textbook",
    ),
    _norm_over_random("spectral", "norm/spectral"),
    _norm_over_random("nuclear", "norm/nuclear"),
)
