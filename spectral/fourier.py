"""The blocks that a discrete Fourier transform makes of a circular convolution.

**The operator.** A convolution with *circular* boundary on a grid of N_1 x ... x N_d positions.
With stride s the grid splits into s_1 ... s_d cosets ("phases") x_q[p] = x[s p + q]; a kernel
position at offset t = s m + q of input channel i reads phase q, shifted by m. So the operator is,
up to the order of its columns, a convolution of stride 1 on the coarse grid M = N / s, whose input
channels are the pairs (i, q), and it is made of the blocks

    B(nu)[o, (i, q)] = sum over t = s m + q of K[o, i, t] exp(2 pi i sum_j nu_j m_j / M_j),

one for each of the M_1 ... M_d frequencies nu. Its singular values are those of the blocks together
(Sedghi, Gupta and Long, ICLR 2019, for s = 1; for s > 1, B(nu) is, up to a unitary matrix of
columns, the aliased blocks of the fine grid side by side, divided by sqrt(s_1 ... s_d)). Kernels
are real, so nu and -nu have equal values: each block is evaluated once, with its multiplicity.

**Rounding errors**, u = 2^-53, for k kernel positions and max|K| < 2: the angle is a whole number
of D-th parts of a turn, reduced exactly; sine and cosine err by at most 4 u, and a sum of up to k
products, in any order, by gamma_k A, where A(o, i, q) is the sum of |K[o, i, t]| over the positions
of one phase. Real and imaginary part together: ||error||_F <= sqrt(2) (k + 6) u ||A||_F. By Weyl's
inequality no singular value of a block moves by more.

Shape legend: g groups, o output and i input channels of a group, Q the phases that a kernel
position reads, F different blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spectral.entropy import UNIT_ROUNDOFF, Array
from spectral.geometry import ConvGeometry

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class FourierBlocks:
    """The different blocks of an operator, ready to be evaluated.

    Attributes:
        kernels: one for each phase that is read, shape (positions, g o i), float64, on the device
            of the weights.
        turns: likewise, shape (F, positions): angles, in units of 1 / len(cosines) of a turn.
        cosines: of the multiples of that unit; float64.
        sines: likewise.
        multiplicities: shape (F,): how many frequencies share a block.
        num_real: the first so many blocks are real.
        channels: (g, o, i).
        errors: shape (g,): how far an evaluated block may be off, in the Frobenius norm.
        frobenius: Frobenius norm of the operator.
        frobenius_bound: its half width.
    """

    kernels: list[Tensor]
    turns: list[Integers]
    cosines: Array
    sines: Array
    multiplicities: Integers
    num_real: int
    channels: tuple[int, int, int]
    errors: Array
    frobenius: float
    frobenius_bound: float

    @property
    def block_shape(self) -> tuple[int, int]:
        """(o, i Q): the rows and columns of a block that are not zero for every kernel."""
        _, outputs, inputs = self.channels
        return outputs, inputs * len(self.kernels)

    def chunks(self, workspace: int) -> Iterator[slice]:
        """Slices of the F blocks, each all real or all complex, of `workspace` bytes or one block.

        A block is charged for two real parts, a copy of each, and four Gram matrices.
        """
        rows, columns = self.block_shape
        each = 8 * self.channels[0] * (4 * rows * columns + 8 * min(rows, columns) ** 2)
        size = max(1, workspace // each)
        for first, last in ((0, self.num_real), (self.num_real, len(self.multiplicities))):
            for start in range(first, last, size):
                yield slice(start, min(start + size, last))

    def evaluate(self, chosen: slice) -> tuple[Tensor, Tensor | None]:
        """Real and imaginary parts, each of shape (f g, o, i Q); None where they are real."""
        real = self._transform(self.cosines, chosen)
        return real, None if chosen.stop <= self.num_real else self._transform(self.sines, chosen)

    def _transform(self, waves: Array, chosen: slice) -> Tensor:
        groups, outputs, inputs = self.channels
        parts = []
        for kernel, turns in zip(self.kernels, self.turns, strict=True):
            matrix = torch.from_numpy(waves[turns[chosen]]).to(kernel.device)
            parts.append((matrix @ kernel).view(len(matrix) * groups, outputs, inputs))
        return torch.cat(parts, dim=2)


def fourier_blocks(unit: Tensor, geometry: ConvGeometry) -> FourierBlocks:
    """Everything that the blocks of a convolution are made of.

    Kernel positions that meet on the grid, because it is smaller than the kernel, are added up.

    Args:
        unit: shape (g o, i, k_1, ..., k_d), float64, entries below 2; not modified.
        geometry: for which the weights were checked.
    """
    groups, taps = geometry.groups, math.prod(unit.shape[2:])
    kernel = unit.reshape(groups, unit.shape[0] // groups, unit.shape[1], taps)
    offsets, place = _offsets(unit.shape[2:], geometry)
    magnitudes = kernel.abs()
    folded = len(offsets) < taps
    if not np.array_equal(place, np.arange(taps)):
        # also where nothing is added up: dilated positions can wrap around into another order
        kernel = kernel @ _indicator(place, unit)
    stride = np.array(geometry.stride)
    _, phase = np.unique(offsets % stride, axis=0, return_inverse=True)
    phase = phase.reshape(-1)
    turns, multiplicities, num_real, circle = _distinct(offsets // stride, geometry.coarse)
    cosines, sines = _unit_circle(circle)

    together = magnitudes @ _indicator(phase[place], unit)
    reach = torch.linalg.vector_norm(together, dim=(1, 2, 3)).cpu().numpy()
    errors: Array = math.sqrt(2.0) * (taps + 6) * UNIT_ROUNDOFF * (1.0 + 1e-6) * reach
    positions = math.prod(geometry.coarse)
    frobenius = math.sqrt(positions * kernel.square().sum((2, 3)).sum().item())
    terms = kernel.shape[2] * kernel.shape[3] + kernel.shape[0] * kernel.shape[1] + 8
    # without folding the entries are the weights themselves
    moved = math.sqrt(positions) * float(np.linalg.norm(errors)) if folded else 0.0
    members = [np.flatnonzero(phase == p) for p in range(phase.max() + 1)]
    return FourierBlocks(
        # (g, o, i, taps) -> (taps, g o i)
        kernels=[kernel[..., m].permute(3, 0, 1, 2).flatten(1).contiguous() for m in members],
        turns=[turns[:, m] for m in members],
        cosines=cosines,
        sines=sines,
        multiplicities=multiplicities,
        num_real=num_real,
        channels=(groups, kernel.shape[1], kernel.shape[2]),
        errors=errors,
        frobenius=frobenius,
        frobenius_bound=terms * UNIT_ROUNDOFF * frobenius + moved,
    )


def _offsets(kernel_size: tuple[int, ...], geometry: ConvGeometry) -> tuple[Integers, Integers]:
    """The different places on the grid, (U, d), and for each kernel position which it is."""
    positions = np.indices(kernel_size, dtype=np.int64).reshape(len(kernel_size), -1).T
    offsets = positions * np.array(geometry.dilation) % np.array(geometry.fine)
    different, place = np.unique(offsets, axis=0, return_inverse=True)
    return different, place.reshape(-1)


def _indicator(labels: Integers, like: Tensor) -> Tensor:
    """Shape (len(labels), number of labels): multiplying by it adds up what has one label.

    A product rather than `index_add_`, whose order of additions is random on an accelerator.
    """
    matrix = np.zeros((len(labels), labels.max() + 1))
    matrix[np.arange(len(labels)), labels] = 1.0
    return torch.from_numpy(matrix).to(like.device)


def _distinct(shifts: Integers, coarse: tuple[int, ...]) -> tuple[Integers, Integers, int, int]:
    """Which frequencies give different blocks.

    Blocks are equal if the angles of all kernel positions are, and conjugate, with equal singular
    values, if all angles are opposite. For kernels of size 1 all blocks are one.

    Args:
        shifts: shape (U, d): the places of kernel positions on the coarse grid.
        coarse: shape of that grid.

    Returns:
        (turns, multiplicities, num_real, D): angles in units of 1 / D turn, shape (F, U), those of
        real blocks first, and how many frequencies share each.
    """
    circle = math.lcm(*coarse)
    frequencies = np.indices(coarse, dtype=np.int64).reshape(len(coarse), -1).T
    units = circle // np.array(coarse, dtype=np.int64)
    turns = (frequencies * units) @ shifts.T % circle
    opposite = -turns % circle
    rows = np.arange(len(turns))
    first = (turns != opposite).argmax(axis=1)
    larger = turns[rows, first] > opposite[rows, first]
    smaller = np.where(larger[:, None], opposite, turns)
    different, multiplicities = np.unique(smaller, axis=0, return_counts=True)
    real = (different == -different % circle).all(axis=1)
    order = np.argsort(~real, kind="stable")
    return different[order], multiplicities[order], int(real.sum()), circle


def _unit_circle(parts: int) -> tuple[Array, Array]:
    """Cosine and sine of 2 pi j / parts, j = 0, ..., parts - 1, within 4 u of the true ones.

    Exact whole numbers bring every angle into [0, pi / 4], where 2 pi r / parts, with three
    roundings, moves sine and cosine by at most 3 u pi / 4, and the library adds less than one unit
    in the last place. Quarter turns are exact.
    """
    turns = 8 * np.arange(parts)
    octant, rest = np.divmod(turns, parts)
    rest = np.where(octant % 2 == 1, parts - rest, rest)
    # one at a time: NumPy's vectorised functions may round otherwise, and by more
    angles = [math.pi * r / (4 * parts) for r in rest.tolist()]
    cosine = np.array([math.cos(angle) for angle in angles])
    sine = np.array([math.sin(angle) for angle in angles])
    swapped = np.isin(octant, (1, 2, 5, 6))
    x, y = np.where(swapped, sine, cosine), np.where(swapped, cosine, sine)
    return np.where(np.isin(octant, (2, 3, 4, 5)), -x, x), np.where(octant >= 4, -y, y)
