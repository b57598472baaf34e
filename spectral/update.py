"""What training changed since the last snapshot: the spectrum of the weight update.

Shape legend: W is m x n, R = min(m, n), dW the difference of two snapshots of W, k <= 10 leading
singular vectors of W before the update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spectral.bounded import UNKNOWN, Bounded
from spectral.decomposition import Decomposition
from spectral.entropy import UNIT_ROUNDOFF
from spectral.ranks import (
    effective_ranks,
    frobenius_norm,
    normalised,
    spectral_norm,
    stable_rank,
)
from spectral.rows import ScalarRow, SpectrumRow, rounded_up, scalar_row
from spectral.vectors import VECTOR_TOLERANCE, SingularVectors

# Leading directions of the weights in which an update's share is measured.
UPDATE_SHARE_VECTORS = 10


def weight_update(now: Tensor, before: Tensor) -> Tensor:
    """The difference, now - before, in float64, shape (m, n).

    Exact for float32 weights whose exponents differ by at most 29 bits; otherwise, and for float64
    weights, each entry is rounded once, which the intervals of `update_rows` allow for.

    Args:
        now: the weights, any real floating dtype and device; not modified.
        before: the same matrix at the last snapshot; likewise.

    Raises:
        ValueError: if the shapes differ.
    """
    if now.shape != before.shape:
        raise ValueError(
            "an update is the difference of two matrices of one shape, got "
            f"{tuple(now.shape)} now and {tuple(before.shape)} before"
        )
    return now.detach().double() - before.detach().to(now.device).double()


def update_rows(
    subjects: Sequence[str],
    before_vectors: Sequence[SingularVectors | None],
    delta_decompositions: Sequence[Decomposition],
    deltas: Sequence[Tensor],
) -> list[tuple[list[ScalarRow], list[SpectrumRow]]]:
    """Every row of updates: norms, ranks, the share in the leading directions, the spectrum.

    Flags: ``zero`` (nothing changed: norms and ranks are 0 and there is no share); ``diverged``;
    ``ill_posed`` (the share where no leading directions of the earlier weights are determined, or
    every number where all solvers failed); ``estimated`` (R above 2048), not of the share.

    Args:
        subjects: names of views; an update's numbers do not depend, to the bit, on the others.
        before_vectors: of each W before its update; None where they are not known.
        delta_decompositions: of each dW; values suffice.
        deltas: each dW as `weight_update` returns it; not modified.

    Returns:
        For each update (scalar rows, spectrum rows).

    Raises:
        ValueError: if the shapes of the three disagree.
    """
    widened = [_widened(decomposition) for decomposition in delta_decompositions]
    ranks = effective_ranks(widened)
    results = []
    for subject, vectors, decomposition, rank, delta in zip(
        subjects, before_vectors, widened, ranks, deltas, strict=True
    ):
        method, flag = decomposition.method, decomposition.flag
        if flag == "estimated":  # which only the effective rank is
            flag = None
        measured = (
            ("update_norm/frobenius", frobenius_norm(decomposition)),
            ("update_norm/spectral", spectral_norm(decomposition)),
            ("update_effective_rank", rank),
            ("update_effective_rank/normalised", normalised(rank, decomposition)),
            ("update_stable_rank", stable_rank(decomposition)),
        )
        scalars = [
            scalar_row(
                subject,
                name,
                number,
                method,
                decomposition.flag if name.startswith("update_effective_rank") else flag,
            )
            for name, number in measured
        ]
        share, chance = update_share(vectors, decomposition, delta)
        # R above 2048: sums over the singular values are estimated, but these numbers are not
        own = None if flag == "estimated" else flag
        for name, number in (("top_10", share), ("top_10_chance", chance)):
            unknown = "ill_posed" if math.isnan(number.value) else None
            metric = f"update_share/{name}"
            scalars.append(scalar_row(subject, metric, number, method, own or unknown))
        bounds = rounded_up(decomposition.bounds)
        values = decomposition.values
        spectrum = SpectrumRow(subject, "update/singular_values", values, bounds, method, flag)
        results.append((scalars, [spectrum]))
    return results


def update_share(
    before_vectors: SingularVectors | None, delta_decomposition: Decomposition, delta: Tensor
) -> tuple[Bounded, Bounded]:
    """The part of an update inside the leading singular directions of the weights before it.

    share = ||U_k^T dW V_k||_F^2 / ||dW||_F^2, with U_k and V_k the k leading singular vectors of W;
    chance = k^2 / (m n), its mean over updates without a preferred direction. k = min(10, R), or
    the largest k below at which both spans are known to `VECTOR_TOLERANCE`: a cluster of singular
    values across the tenth place makes k smaller, and `chance` shows it.

    A span that turns by an angle of sine e moves the projection, and hence the root of the share,
    by at most e: |sqrt(share) - sqrt(true share)| <= e_left + e_right + rounding.

    Args:
        before_vectors: of W; None where they are not known.
        delta_decomposition: of dW; only its norm, scale and flag are used.
        delta: dW, shape (m, n), float64; not modified.

    Returns:
        (share, chance), both in [0, 1], dimensionless; NaN where no span is determined, and the
        share also where dW is zero or not finite.

    Raises:
        ValueError: if the shapes of the three disagree.

    Source: ours; the bound is that of a product of two orthogonal projections.
    """
    m, n = shape = (delta.shape[0], delta.shape[1])
    of_vectors = shape if before_vectors is None else before_vectors.shape
    if not shape == delta_decomposition.shape == of_vectors:
        raise ValueError(
            f"the update is {shape}, its decomposition of {delta_decomposition.shape} and the "
            f"vectors of {of_vectors}"
        )
    if before_vectors is None:
        return UNKNOWN, UNKNOWN
    k, turned = _leading(before_vectors)
    if k == 0:
        return UNKNOWN, UNKNOWN
    level = k * k / (m * n)
    chance = Bounded(level, math.nextafter(level, 0.0), min(math.nextafter(level, 2.0), 1.0))
    norm = delta_decomposition.unit_frobenius
    if delta_decomposition.flag in ("zero", "diverged") or not norm > 0.0:
        return UNKNOWN, chance
    # orthonormal again, because vectors that were kept in float32 are so to 1e-7 only
    left, right = (
        torch.linalg.qr(side[:, :k].to(delta)).Q
        for side in (before_vectors.left, before_vectors.right)
    )
    inside = left.mT @ (delta.detach() / delta_decomposition.scale) @ right
    root = torch.linalg.matrix_norm(inside).item() / norm
    # the sums of the products, the QR, and the difference that is dW
    rounding = 4 * k * (m + n + 64) * UNIT_ROUNDOFF
    error = turned + rounding + 1.1 * root * delta_decomposition.unit_frobenius_bound / norm
    value = min(root * root, 1.0)
    return Bounded(value, max(root - error, 0.0) ** 2, min((root + error) ** 2, 1.0)), chance


def _leading(vectors: SingularVectors) -> tuple[int, float]:
    """(k, e_left + e_right) of the largest leading subspace, k <= 10, that is determined."""
    most = min(UPDATE_SHARE_VECTORS, *vectors.shape, vectors.k)
    for k in range(most, 0, -1):
        # the span of all vectors of a side is the whole space, whatever the gaps
        left, right = (
            0.0 if k == size else float(errors[k - 1])
            for size, errors in zip(
                vectors.shape, (vectors.left_span_errors, vectors.right_span_errors), strict=True
            )
        )
        if max(left, right) <= VECTOR_TOLERANCE:
            return k, left + right
    return 0, 0.0


def _widened(decomposition: Decomposition) -> Decomposition:
    """Intervals for the exact difference: dW is rounded by at most u |dW| in every entry."""
    if decomposition.flag in ("zero", "diverged"):
        return decomposition
    rounded = 1.01 * UNIT_ROUNDOFF * decomposition.unit_frobenius
    return replace(
        decomposition,
        unit_bounds=np.asarray(decomposition.unit_bounds + rounded),
        unit_frobenius_bound=decomposition.unit_frobenius_bound + rounded,
    )
