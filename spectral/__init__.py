"""Singular values and vectors of the weights of neural networks, each with its error bound.

Imports torch, numpy and scipy only. Every function is pure: no tensor, gradient or generator of the
caller is modified. In a notebook::

    views = spectral.discover(model)
    parameters = dict(model.named_parameters())
    found = spectral.decompose([view.read(parameters) for view in views])
    [spectral.effective_rank(each) for each in found]

A training loop calls `take_snapshot`, which measures everything from one decomposition per matrix.
"""

from spectral.agreement import Agreement, singular_vector_agreement
from spectral.alignment import Alignment, inter_layer_alignment
from spectral.baselines import Baseline, baseline
from spectral.bounded import Bounded
from spectral.decompose import DEFAULT_VECTORS, EFFECTIVE_RANK_TOLERANCE, decompose
from spectral.decomposition import Decomposition, Tail
from spectral.geometry import ConvGeometry, conv_geometries
from spectral.metrics import MEASUREMENTS, METRICS, QUANTITIES, Metric
from spectral.norms import (
    frobenius_norm,
    nuclear_norm,
    nuclear_norm_relative,
    spectral_norm,
    spectral_norm_relative,
)
from spectral.operators import conv_operator_spectrum
from spectral.overlap import subspace_overlap
from spectral.pipeline import Pipeline
from spectral.pruning import (
    cut_is_determined,
    prunable,
    prune_singular_directions,
    pruned_parameters,
)
from spectral.ranks import (
    effective_rank,
    effective_ranks,
    entropy_over_log_rank,
    gini,
    gini_relative,
    mass_rank,
    normalised,
    numerical_rank,
    participation_rank,
    relative,
    spectral_entropy,
    stable_rank,
)
from spectral.request import Request
from spectral.rows import ScalarRow, SpectrumRow
from spectral.snapshot import COLLAPSED_BELOW, Snapshot, begin_snapshot, take_snapshot
from spectral.state import SnapshotState
from spectral.update import weight_update
from spectral.vectors import SingularVectors
from spectral.views import Coupling, CouplingEnd, MatrixView, discover

# Part of every trial's identity: raised whenever a measured number changes.
METHOD_VERSION = 2

# plain order, as the tests of the other packages have it; ruff would put constants first
__all__ = [  # noqa: RUF022
    "Agreement",
    "Alignment",
    "Baseline",
    "Bounded",
    "COLLAPSED_BELOW",
    "ConvGeometry",
    "Coupling",
    "CouplingEnd",
    "DEFAULT_VECTORS",
    "Decomposition",
    "EFFECTIVE_RANK_TOLERANCE",
    "MEASUREMENTS",
    "METHOD_VERSION",
    "METRICS",
    "MatrixView",
    "Metric",
    "Pipeline",
    "QUANTITIES",
    "Request",
    "ScalarRow",
    "SingularVectors",
    "Snapshot",
    "SnapshotState",
    "SpectrumRow",
    "Tail",
    "baseline",
    "begin_snapshot",
    "conv_geometries",
    "conv_operator_spectrum",
    "cut_is_determined",
    "decompose",
    "discover",
    "effective_rank",
    "effective_ranks",
    "entropy_over_log_rank",
    "frobenius_norm",
    "gini",
    "gini_relative",
    "inter_layer_alignment",
    "mass_rank",
    "normalised",
    "nuclear_norm",
    "nuclear_norm_relative",
    "numerical_rank",
    "participation_rank",
    "prunable",
    "prune_singular_directions",
    "pruned_parameters",
    "relative",
    "singular_vector_agreement",
    "spectral_entropy",
    "spectral_norm",
    "spectral_norm_relative",
    "stable_rank",
    "subspace_overlap",
    "take_snapshot",
    "weight_update",
]
