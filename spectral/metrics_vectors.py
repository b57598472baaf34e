"""What the numbers made of singular vectors mean: part of the tables of `spectral.metrics`."""

from __future__ import annotations

from spectral.metric import Metric

_PAPER = "Yunis et al., arXiv 2408.11804"

_PARTS = "[0, 1]; below 1 for parts of vectors"

ALIGNMENT_METRICS: tuple[Metric, ...] = (
    Metric(
        name="alignment",
        definition="mean of the determined ones among the first 10 entries of alignment/diagonal",
        range=_PARTS,
        units="none",
        source=f"{_PAPER}, equations 3 and 4",
    ),
    Metric(
        name="alignment/chance",
        definition="sqrt(2 / pi) / sqrt(length), the coupling's unsliced length: the expected "
        "entry for random vectors",
        range="(0, 0.8]",
        units="none",
        source="textbook",
    ),
    Metric(
        name="alignment/matched",
        definition="max over permutations pi of mean_j of the inner product of a_j and b_pi(j), "
        "absolute value, over the entries that make alignment",
        range="[alignment, 1]",
        units="none",
        source="ours; assignment by Crouse, IEEE T-AES 52 (4), 2016",
    ),
    Metric(
        name="alignment/matched_chance",
        definition="expected alignment/matched of random orthonormal frames, simulated; interval "
        "of three standard errors",
        range="(0, 1]",
        units="none",
        source="ours",
    ),
    Metric(
        name="subspace_overlap",
        definition="sum_(j,l <= k) (a_j . b_l)^2 / k, k = subspace_overlap/dimension",
        range=_PARTS,
        units="none",
        source="textbook: mean squared cosine of the principal angles",
    ),
    Metric(
        name="subspace_overlap/chance",
        definition="subspace_overlap/dimension / length, the coupling's unsliced length: the "
        "expected overlap of random subspaces",
        range="(0, 1]",
        units="none",
        source="textbook",
    ),
    Metric(
        name="subspace_overlap/dimension",
        definition="largest k <= 10 at which the leading spans of both sides are determined; 0 if "
        "there is none",
        range="{0, ..., 10}; in between for the mean of a group",
        units="none",
        source="ours",
    ),
)

_TIMES = {
    "initial": "at step 0",
    "previous": "at the previous snapshot",
    "final": "at the last snapshot",
}


def _agreement(variant: str, time: str) -> tuple[Metric, ...]:
    overlap, dimension = f"subspace_overlap/{variant}", f"subspace_overlap/{variant}_dimension"
    return (
        Metric(
            name=f"agreement/{variant}",
            definition="mean of the determined ones among the first 10 entries of the quantity "
            f"agreement/{variant}",
            range="[0, 1]",
            units="none",
            source=f"{_PAPER}, equation 5",
        ),
        Metric(
            name=f"{overlap}_left",
            definition=f"sum_(j,l <= k) (u_j . u*_l)^2 / k, k = {dimension}, u* {time}; "
            "k / m on average for random subspaces",
            range="[0, 1]",
            units="none",
            source="textbook: mean squared cosine of the principal angles",
        ),
        Metric(
            name=f"{overlap}_right",
            definition=f"likewise of right singular vectors, v* {time}; k / n on average for "
            "random subspaces",
            range="[0, 1]",
            units="none",
            source="textbook: mean squared cosine of the principal angles",
        ),
        Metric(
            name=dimension,
            definition="largest k <= 10 at which the leading spans of both sides at both times are "
            "determined; 0 if there is none",
            range="{0, ..., 10}",
            units="none",
            source="ours",
        ),
    )


AGREEMENT_METRICS: tuple[Metric, ...] = (
    *(metric for variant, time in _TIMES.items() for metric in _agreement(variant, time)),
    Metric(
        name="agreement/chance",
        definition="(2 / pi) / sqrt(m n): the expected entry for random vectors",
        range="(0, 0.64]",
        units="none",
        source="textbook",
    ),
)

ALIGNMENT_QUANTITIES: tuple[Metric, ...] = (
    Metric(
        name="alignment/diagonal",
        definition="absolute value of the inner product of a_j and b_j, j = 1, ..., 100, the "
        "vectors that a coupling names; with all taps the mean over taps",
        range=_PARTS,
        units="none",
        source=f"{_PAPER}, equations 3 and 4",
    ),
)

AGREEMENT_QUANTITIES: tuple[Metric, ...] = tuple(
    Metric(
        name=f"agreement/{variant}",
        definition="absolute value of (u_j . u*_j) (v_j . v*_j), j = 1, ..., 100, u* and v* "
        f"{time}",
        range="[0, 1]",
        units="none",
        source=f"{_PAPER}, equation 5",
    )
    for variant, time in _TIMES.items()
)
