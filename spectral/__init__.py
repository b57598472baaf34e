"""Singular values of the weights of neural networks, each with its error bound.

Imports torch, numpy and scipy only. Every function is pure: no tensor, gradient or generator of the
caller is modified.
"""

from spectral.bounded import Bounded
from spectral.decompose import EFFECTIVE_RANK_TOLERANCE, Decomposition, decompose
from spectral.metrics import MEASUREMENTS, METRICS, QUANTITIES, Metric
from spectral.ranks import (
    effective_rank,
    effective_ranks,
    frobenius_norm,
    normalised,
    spectral_norm,
    stable_rank,
)
from spectral.rows import ScalarRow, SpectrumRow
from spectral.snapshot import (
    COLLAPSED_BELOW,
    Snapshot,
    SnapshotState,
    take_snapshot,
)
from spectral.vectors import SingularVectors
from spectral.views import Coupling, CouplingEnd, MatrixView, discover

# Part of every trial's identity: raised whenever a measured number changes.
METHOD_VERSION = 1

# plain order, as the tests of the other packages have it; ruff would put constants first
__all__ = [  # noqa: RUF022
    "Bounded",
    "COLLAPSED_BELOW",
    "Coupling",
    "CouplingEnd",
    "Decomposition",
    "EFFECTIVE_RANK_TOLERANCE",
    "MEASUREMENTS",
    "METHOD_VERSION",
    "METRICS",
    "MatrixView",
    "Metric",
    "QUANTITIES",
    "ScalarRow",
    "SingularVectors",
    "Snapshot",
    "SnapshotState",
    "SpectrumRow",
    "decompose",
    "discover",
    "effective_rank",
    "effective_ranks",
    "frobenius_norm",
    "normalised",
    "spectral_norm",
    "stable_rank",
    "take_snapshot",
]
