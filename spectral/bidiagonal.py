"""Products with a matrix too large to decompose, bases made of them, and what a basis proves.

Everything works on W / scale as an operator of L x R in float64, with scale the power of two below
max|W|. Shape legend: W is m x n, L = max(m, n), R = min(m, n); "left" vectors are of the longer
side and "right" ones of the shorter side, whichever W's own are.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.gram import scale_below, summation_error
from spectral.vectors import SMALLEST_SHARE

# Bytes for a float64 copy of a matrix, and again for the bases that are kept of it.
WORKSPACE = 2**28

# Of rows converted at a time: larger blocks leave the allocator's pool, and cost page faults.
_BLOCK_BYTES = 2**24

# Columns of a basis after which it begins again: beyond, the small problem is no longer small.
_LARGEST_BASIS = 1536

# Columns of a first block without a start: few, because a basis of many sweeps is a better one.
_COLD_COLUMNS = 32
# Random columns beside a warm start: what it happens to be orthogonal to is found all the same.
_FRESH = 4

# Far from seeds that people choose: no weights may depend on the same draw.
_SEEDS = {"start": 0x5EED_0001_9E37, "pad": 0x5EED_0002_9E37, "probes": 0x5EED_0003_9E37}


class UnitMatrix:
    """W / scale as an operator of L x R in float64, transposed if W is wide.

    It holds a float64 copy only if that fits the workspace; otherwise blocks of rows are converted
    for every product. W itself is never written to.
    """

    def __init__(self, matrix: Tensor, workspace: int = WORKSPACE) -> None:
        """Take a matrix (m, n) with finite entries, not all zero.

        Raises:
            ValueError: if an entry is not finite, or all are zero.
        """
        least, largest = matrix.detach().aminmax()
        peak = max(-least.item(), largest.item())
        if peak == 0.0 or not math.isfinite(peak):
            what = "zeros only" if peak == 0.0 else "an entry that is not"
            raise ValueError(f"expected a matrix of finite numbers, not all zero, got {what}")
        self.scale = scale_below(peak)
        self.wide = matrix.shape[0] < matrix.shape[1]
        self.shape = max(matrix.shape), min(matrix.shape)
        self.device = matrix.device
        self._rows, columns = matrix.shape
        self._block = max(1, min(self._rows, min(workspace, _BLOCK_BYTES) // (8 * columns)))
        self._matrix, self._whole = matrix.detach(), False
        # rows first: no sum is longer than L or R, whatever order torch adds in
        squares = [(self._part(start) ** 2).sum(dim=1).sum() for start in self._starts()]
        self.energy = math.fsum(square.item() for square in squares)
        self.energy_error = self.energy * (
            summation_error(self.shape[0]) + (self.shape[1] + 4) * UNIT_ROUNDOFF
        )
        if 8 * matrix.numel() <= workspace:
            self._matrix, self._block, self._whole = self._rescaled(self._matrix), self._rows, True

    def apply(self, vectors: Tensor) -> Tensor:
        """Product with vectors of the short side: (R, c) -> (L, c)."""
        return self._transposed(vectors) if self.wide else self._direct(vectors)

    def adjoint(self, vectors: Tensor) -> Tensor:
        """Transposed product: (L, c) -> (R, c)."""
        return self._direct(vectors) if self.wide else self._transposed(vectors)

    def zeros(self, *shape: int) -> Tensor:
        """Float64 zeros on the matrix's device."""
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def _starts(self) -> range:
        return range(0, self._rows, self._block)

    def _rescaled(self, part: Tensor) -> Tensor:
        # one copy, also where the weights are float64 already: the division is in place
        copy = part.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
        return copy.div_(self.scale)

    def _part(self, start: int) -> Tensor:
        part = self._matrix[start : start + self._block]
        return part if self._whole else self._rescaled(part)

    def _direct(self, vectors: Tensor) -> Tensor:
        return torch.cat([self._part(start) @ vectors for start in self._starts()])

    def _transposed(self, vectors: Tensor) -> Tensor:
        blocks = (
            self._part(start).mT @ vectors[start : start + self._block] for start in self._starts()
        )
        total = vectors.new_zeros(self._matrix.shape[1], vectors.shape[1])
        for block in blocks:
            total += block
        return total


def random_block(unit: UnitMatrix, rows: int, columns: int, use: str) -> Tensor:
    """Gaussian numbers from a generator of their own, the same for equal shapes on every device."""
    generator = torch.Generator().manual_seed(_SEEDS[use] + 65_537 * unit.shape[0] + unit.shape[1])
    return torch.randn(rows, columns, generator=generator, device="cpu", dtype=torch.float64).to(
        unit.device
    )


def dense_svd(matrix: Array) -> tuple[Array, Array, Array]:
    """Thin SVD of a small matrix: left vectors, values, right vectors, both as columns.

    By torch, for its number of threads: NumPy's are one per core, whatever a worker was given.
    """
    left, values, right = torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)
    return left.numpy(), values.numpy(), right.mT.numpy()


def orthonormal(block: Tensor, base: Tensor, floor: float) -> Tensor:
    """Orthonormal columns for what `block` adds to the span of `base`, if longer than `floor`."""
    before = block.norm(dim=0).max() if block.numel() else 0.0
    for _ in range(2):
        block = block - base @ (base.mT @ block)
    q, r = torch.linalg.qr(block)
    turn, lengths, _ = dense_svd(r.cpu().numpy())
    kept = torch.from_numpy(np.ascontiguousarray(turn[:, lengths > floor])).to(block.device)
    added: Tensor = q @ kept
    if (lengths < 1e-2 * float(before)).any():
        # what is short is partly rounding along the base, which grew as lengths became 1
        for _ in range(2):
            added = torch.linalg.qr(added - base @ (base.mT @ added))[0]
    return added


def first_block(unit: UnitMatrix, start: Tensor | None, width: int) -> Tensor:
    """Vectors of the shorter side to begin with: of an earlier snapshot, and some at random."""
    short = unit.shape[1]
    if start is None:
        return random_block(unit, short, min(width, _COLD_COLUMNS), "start")
    # a snapshot of weights that had diverged is no start
    warm = torch.nan_to_num(start.detach().to(unit.device, torch.float64), 0.0, 0.0, 0.0)
    warm = unit.adjoint(warm) if unit.wide else warm
    warm = warm / warm.norm(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    fresh = random_block(unit, short, max(_FRESH, width - warm.shape[1]), "start")
    return torch.cat([warm, fresh / fresh.norm(dim=0)], dim=1)[:, :short]


def padded(unit: UnitMatrix, side: Tensor, k: int) -> Tensor:
    """Vectors of a side with orthonormal ones that mean nothing, up to k."""
    others = random_block(unit, side.shape[0], k - side.shape[1], "pad")
    return torch.cat([side, orthonormal(others, side, 0.0)], dim=1)


class Basis:
    """Orthonormal bases with W right = left H and W^T left = right H^T + (next leads_out)."""

    def __init__(self, unit: UnitMatrix, block: Tensor, workspace: int) -> None:
        self.unit = unit
        self.floor = 64 * UNIT_ROUNDOFF * math.sqrt(unit.energy)
        affordable = min(workspace // (8 * sum(unit.shape)), _LARGEST_BASIS)
        self.limit = max(4 * block.shape[1], affordable)
        self._begin(block)

    def _begin(self, block: Tensor) -> None:
        long, short = self.unit.shape
        self.right = block.new_zeros(short, 0)
        self.left = block.new_zeros(long, 0)
        self.next = orthonormal(block, self.right, 0.0)
        self.projected = np.zeros((0, 0))

    @property
    def columns(self) -> int:
        """How many right vectors there are."""
        return self.right.shape[1]

    @property
    def full(self) -> bool:
        """Whether one more block would exceed the limit."""
        return self.right.shape[1] + self.next.shape[1] > self.limit

    def sweep(self) -> bool:
        """Multiply by W and W^T once; True if the basis has become invariant."""
        self.right = torch.cat([self.right, self.next], dim=1)
        image = self.unit.apply(self.next)
        new = orthonormal(image, self.left, self.floor)
        self.left = torch.cat([self.left, new], dim=1)
        rows, columns = self.projected.shape
        grown = np.zeros((self.left.shape[1], self.right.shape[1]))
        grown[:rows, :columns] = self.projected
        grown[:, columns:] = (self.left.mT @ image).cpu().numpy()
        self.projected = grown
        image = self.unit.adjoint(new)
        self.next = orthonormal(image, self.right, self.floor)
        self.leads_out = (self.next.mT @ image).cpu().numpy()
        return self.next.shape[1] == 0

    def ritz(self) -> tuple[Array, Array]:
        """Ritz values, descending, and the length of each one's column of F."""
        self.turn_left, self.values, self.turn_right = dense_svd(self.projected)
        last = self.leads_out.shape[1]
        self.missing = self.leads_out @ self.turn_left[len(self.turn_left) - last :]
        return self.values, np.linalg.norm(self.missing, axis=0)

    def vectors(self, count: int) -> tuple[Tensor, Tensor]:
        """Leading Ritz vectors of the longer and of the shorter side, as columns."""
        device = self.unit.device
        turns = (self.turn_left[:, :count], self.turn_right[:, :count])
        left, right = (torch.from_numpy(np.ascontiguousarray(turn)).to(device) for turn in turns)
        return self.left @ left, self.right @ right

    def restart(self, width: int) -> None:
        """Begin again from the leading Ritz vectors, to keep memory within bounds."""
        self._begin(self.vectors(width)[1])


def value_intervals(
    found: Array, missing: Array, k: int, remainder: float, slack: float
) -> tuple[Array, Array]:
    """Ends of sigma_1, ..., sigma_{k + 1}, each of shape (k + 1,)."""
    count, extra = len(found), len(missing)
    worst = np.zeros((count + extra, count + extra))
    worst[:count, :count] = np.diag(found)
    worst[:count, count:] = missing.T
    worst[count:, count:] = remainder * np.eye(extra)
    lower, upper = np.zeros(k + 1), np.full(k + 1, remainder)
    lower[: min(k + 1, count)] = found[: k + 1]
    largest = dense_svd(worst)[1][: k + 1]
    upper[: len(largest)] = np.maximum(largest, remainder)
    return np.maximum(lower - slack, 0.0), upper + slack


def angle_bounds(
    values: Array, lower: Array, upper: Array, missing: Array, slack: float
) -> tuple[Array, Array]:
    """Sines of the angles of each vector, and of the spans of the first ones: Wedin's theorems.

    A single vector's residual is divided by the distance to all other singular values; that of the
    first j by the distance to those below, since all theirs lie above.
    """
    k = len(values)
    below = values - upper[1 : k + 1]
    beside = np.minimum(below, np.concatenate([[math.inf], lower[: k - 1]]) - values)
    rounding = 64 * UNIT_ROUNDOFF * math.sqrt(k)
    undetermined = values < SMALLEST_SHARE * values[0]
    sines = []
    for gaps, spans in ((beside, False), (below, True)):
        residuals = np.zeros(k)
        for j in range(min(k, missing.shape[1])):
            block = missing[:, 0 if spans else j : j + 1]
            residuals[j] = np.linalg.norm(block, 2) if len(block) else 0.0
        safe = np.where(gaps > slack, gaps - slack, 1.0)
        sine = np.where(gaps > slack, (residuals + slack) / safe + rounding, 1.0)
        sines.append(np.where(undetermined, 1.0, np.minimum(sine, 1.0)))
    return sines[0], sines[1]
