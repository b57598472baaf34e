"""The rivals: the evaluation procedure of Yunis et al., singular values alone, and WeightWatcher.

Written from a description of the procedure (arXiv 2408.11804), not from its code. It is that every
need decomposes anew, in float32, with vectors: each matrix once for its values, its ranks and its
agreement with the final checkpoint; both matrices of each pair for alignment, the heads of query
and key in one batched call each; each matrix but the last for keeping the top half of its
directions, and again for keeping the bottom half.

Beyond the decompositions the rival is spared what would only slow it down: of alignment and
agreement it computes the diagonals that are plotted, not the full matrices at every tap that are
stored; nothing is moved between devices or written; the pruned models are built, not evaluated.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.spectra_weights import Network, Weights
from spectral import Coupling, CouplingEnd, MatrixView

DIAGONAL = 100
"""Entries of a diagonal that are plotted, at most."""

SCORED = 10
"""Of these the mean is the score."""


class Factors(NamedTuple):
    """A thin decomposition W = left diag(values) right; a leading dimension H where batched."""

    left: Tensor  # (m, R)
    values: Tensor  # (R,), descending
    right: Tensor  # (R, n)


Solver = Callable[[Tensor], Factors]


def thin_svd(matrix: Tensor) -> Factors:
    """One decomposition of one matrix, or of a batch of them."""
    return Factors(*torch.linalg.svd(matrix, full_matrices=False))


class Counted:
    """A solver that counts its calls."""

    def __init__(self, solver: Solver = thin_svd) -> None:
        self.solver = solver
        self.single = self.batched = 0

    def __call__(self, matrix: Tensor) -> Factors:
        if matrix.dim() == 2:
            self.single += 1
        else:
            self.batched += 1
        return self.solver(matrix)


@dataclass
class Measured:
    """What the procedure makes of one checkpoint; by view, or by coupling or group of couplings.

    Attributes:
        values: (R,).
        ranks: exp(H) / R, stable rank / R and the share of directions that hold 90 % of the sum.
        agreement: up to 100 entries of the diagonal.
        alignment: likewise; heads are averaged.
        scores: mean of the first 10 of each, agreement by view and alignment by coupling.
        kept_top, kept_bottom: the matrices that a pruned model has in place of its own.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    agreement: dict[str, Tensor] = field(default_factory=dict)
    alignment: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    kept_top: dict[str, Tensor] = field(default_factory=dict)
    kept_bottom: dict[str, Tensor] = field(default_factory=dict)


def final_factors(weights: Weights) -> dict[str, Factors]:
    """Of the final checkpoint: computed once per run, and in no timing."""
    return {view.name: thin_svd(view.read(weights.final)) for view in weights.network.views}


def procedure(
    weights: Weights, final: Mapping[str, Factors], solver: Solver = thin_svd
) -> Measured:
    """The evaluation of one checkpoint, need after need."""
    found, network = Measured(), weights.network
    for view in network.views:
        own = solver(view.read(weights.now))
        found.values[view.name] = own.values
        found.ranks[view.name] = _ranks(own.values)
        diagonal = _agreement(own, final[view.name])
        found.agreement[view.name] = diagonal
        found.scores[view.name] = diagonal[:SCORED].mean().item()
    for name, couplings in _pairs(network):
        diagonal = _alignment(couplings, weights, solver)
        found.alignment[name] = diagonal
        found.scores[name] = diagonal[:SCORED].mean().item()
    for kept in (found.kept_top, found.kept_bottom):
        for view in network.views[:-1]:
            own = solver(view.read(weights.now))
            half = math.ceil(len(own.values) / 2)
            directions = slice(half) if kept is found.kept_top else slice(half, None)
            kept[view.name] = (
                own.left[:, directions] * own.values[directions] @ own.right[directions]
            )
    return found


def values_alone(weights: Weights) -> dict[str, Tensor]:
    """The other rival: one call per matrix for its singular values, in float32."""
    return {
        view.name: torch.linalg.svdvals(view.read(weights.now)) for view in weights.network.views
    }


def _ranks(values: Tensor) -> tuple[float, float, float]:
    # the code also adds 1e-10 to every value, which costs nothing and is left out
    share = values / values.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    stable = (values**2).sum() / values[0] ** 2
    holding = int((share.cumsum(0) <= 0.9).sum()) + 1
    rank = len(values)
    return entropy.exp().item() / rank, stable.item() / rank, min(holding, rank) / rank


def _agreement(own: Factors, final: Factors) -> Tensor:
    left = (own.left[:, :DIAGONAL] * final.left[:, :DIAGONAL]).sum(0)
    right = (own.right[:DIAGONAL] * final.right[:DIAGONAL]).sum(1)
    return (left * right).abs()


def _pairs(network: Network) -> Iterator[tuple[str, list[Coupling]]]:
    """Couplings, those of a group together; they stand next to each other."""
    for name, couplings in groupby(
        network.couplings, lambda coupling: coupling.group or coupling.name
    ):
        yield name, list(couplings)


def _alignment(couplings: list[Coupling], weights: Weights, solver: Solver) -> Tensor:
    ends = []
    for side in ("first", "second"):
        of_heads: list[CouplingEnd] = [getattr(coupling, side) for coupling in couplings]
        matrices = [_view(weights.network, end.view).read(weights.now) for end in of_heads]
        stack = torch.stack(matrices) if len(matrices) > 1 else matrices[0]
        ends.append(_vectors(of_heads[0], solver(stack)))
    first, second = ends
    k = min(first.shape[-2], second.shape[-2], DIAGONAL)
    diagonal = (first[..., :k, :] * second[..., :k, :]).sum(-1).abs()
    return diagonal.mean(0) if diagonal.dim() == 2 else diagonal


def _vectors(end: CouplingEnd, factors: Factors) -> Tensor:
    """The vectors that meet, as rows: (R, length), with a leading H where batched."""
    rows = factors.left.mT if end.side == "left" else factors.right
    if end.reshape is None or end.tap is None:
        return rows
    assert end.tap == (1, 1)
    return rows.reshape(*rows.shape[:-1], *end.reshape)[..., 1, 1]


def _view(network: Network, name: str) -> MatrixView:
    return next(view for view in (*network.views, *network.parts) if view.name == name)


def weightwatcher_of(module: nn.Module) -> Callable[[], object] | None:
    """WeightWatcher's default analysis of a module, or None where it is not installed.

    It is here for scale, since it answers other questions: singular values without vectors (SciPy,
    float64 on a CPU), of convolutions those of the nine slices of a kernel pooled; power laws
    fitted to them; no couplings, no agreement, no pruning, and no attention matrix that is a bare
    parameter.
    """
    if importlib.util.find_spec("weightwatcher") is None:
        return None
    # it says much while it is imported and works, and the answer of this process is on stdout
    with contextlib.redirect_stdout(io.StringIO()):
        watch = importlib.import_module("weightwatcher").WeightWatcher

    def analyze() -> object:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return watch(model=module).analyze()

    return analyze
