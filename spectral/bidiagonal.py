"""Products with a matrix too large to decompose: bases, and random probes of what they leave out.

Everything works on W / scale as an operator of L x R in float64, with scale the power of two below
max|W|. Shape legend: W is m x n, L = max(m, n), R = min(m, n); "left" vectors are of the longer
side and "right" ones of the shorter side, whichever W's own are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.gram import scale_below, summation_error

# Bytes for a float64 copy of a matrix, and again for the bases that are kept of it.
WORKSPACE = 2**28

# Columns of a basis after which it begins again: beyond, the small problem is no longer small.
_LARGEST_BASIS = 1024

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
        self._block = max(1, min(self._rows, workspace // (16 * columns)))
        self._matrix, self._whole = matrix.detach(), False
        if 8 * matrix.numel() <= workspace:
            self._matrix, self._block, self._whole = self._rescaled(self._matrix), self._rows, True
        # rows first: no sum is longer than L or R, whatever order torch adds in
        squares = [(self._part(start) ** 2).sum(dim=1).sum() for start in self._starts()]
        self.energy = math.fsum(square.item() for square in squares)
        self.energy_error = self.energy * (
            summation_error(self.shape[0]) + (self.shape[1] + 4) * UNIT_ROUNDOFF
        )

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
        return part.to(torch.float64, memory_format=torch.contiguous_format) / self.scale

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
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(unit.device)


def orthonormal(block: Tensor, base: Tensor, floor: float) -> Tensor:
    """Orthonormal columns for what `block` adds to the span of `base`, if longer than `floor`."""
    before = block.norm(dim=0).max() if block.numel() else 0.0
    for _ in range(2):
        block = block - base @ (base.mT @ block)
    q, r = torch.linalg.qr(block)
    turn, lengths, _ = np.linalg.svd(r.cpu().numpy())
    kept = torch.from_numpy(np.ascontiguousarray(turn[:, lengths > floor])).to(block.device)
    added = q @ kept
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
    warm = start.detach().to(unit.device, torch.float64)
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
        self.turn_left, self.values, turn_right = np.linalg.svd(self.projected, full_matrices=False)
        self.turn_right = turn_right.T
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


@dataclass(frozen=True)
class Probes:
    """M Lanczos runs on W2 from random starts: W2^T W2 in their bases is T = B^T B.

    Attributes:
        alphas: shape (K, M), diagonals of the upper bidiagonal B.
        betas: shape (K, M), superdiagonals; the last one leads out of the basis.
        dimension: of the sphere that the starts were drawn from, R - d.
    """

    alphas: Array
    betas: Array
    dimension: int

    def bidiagonal(self, probe: int) -> Array:
        """[B, beta_K e_K] of one run, shape (K, K + 1)."""
        steps = len(self.alphas)
        result = np.zeros((steps, steps + 1))
        index = np.arange(steps)
        result[index, index] = self.alphas[:, probe]
        result[index, index + 1] = self.betas[:, probe]
        return result

    def largest(self, failure: float) -> float:
        """What ||W2||_2 does not exceed, but for a probability of `failure`; inf if that is open.

        One run of K steps finds less than (1 - e) of the largest eigenvalue with a probability of
        at most 1.648 sqrt(dimension) exp(-sqrt(e) (2K - 1)); M runs fail together.

        Source: Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13 (4), 1992, theorem 4.2.
        """
        steps, runs = self.alphas.shape
        found = max(np.linalg.norm(self.bidiagonal(probe), 2) for probe in range(runs))
        root = math.log(1.648 * math.sqrt(self.dimension)) - math.log(failure) / runs
        missed = (root / (2 * steps - 1)) ** 2
        return float(found) / math.sqrt(1.0 - missed) if missed < 1.0 else math.inf


def probe(unit: UnitMatrix, left: Tensor, right: Tensor, *, steps: int, runs: int) -> Probes:
    """Run Lanczos on W2 = (I - left left^T) W (I - right right^T) from random starts.

    Golub-Kahan bidiagonalisation with full reorthogonalisation, all runs in one product.

    Args:
        unit: the matrix.
        left: shape (L, d), orthonormal columns.
        right: shape (R, d), likewise, d < R.
        steps: K, at most R - d of them are made.
        runs: M.
    """
    long, short = unit.shape
    dimension = short - right.shape[1]
    steps = min(steps, dimension)
    floor = 64 * UNIT_ROUNDOFF * math.sqrt(unit.energy)
    ours, theirs = unit.zeros(steps, short, runs), unit.zeros(steps, long, runs)
    alphas, betas = unit.zeros(steps, runs), unit.zeros(steps, runs)
    start = random_block(unit, short, runs, "probes")
    for _ in range(2):
        start = start - right @ (right.mT @ start)
    vector = start / start.norm(dim=0)
    for step in range(steps):
        ours[step] = vector
        image = _outside(unit.apply(vector), left, theirs[:step])
        alphas[step], theirs[step] = _length_and_direction(image, floor)
        image = _outside(unit.adjoint(theirs[step]), right, ours[: step + 1])
        betas[step], vector = _length_and_direction(image, floor)
    return Probes(alphas.cpu().numpy(), betas.cpu().numpy(), dimension)


def _outside(block: Tensor, base: Tensor, earlier: Tensor) -> Tensor:
    """Each column without its part in `base` and along its own run's earlier vectors."""
    for _ in range(2):
        block = block - base @ (base.mT @ block)
        along = torch.einsum("srm,rm->sm", earlier, block)
        block = block - torch.einsum("srm,sm->rm", earlier, along)
    return block


def _length_and_direction(block: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Columns' lengths and unit vectors; both zero where only rounding is left."""
    lengths = block.norm(dim=0)
    kept = lengths > floor
    ones = torch.ones_like(lengths)
    return lengths * kept, block / torch.where(kept, lengths, ones) * kept
