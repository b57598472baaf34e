"""Kernels that are hard on a decomposition, and the operators that they are, entry by entry."""

import functools
import math

import numpy as np
import torch
from torch import Tensor

from spectral.geometry import ConvGeometry
from tests.spectral.matrix_zoo import Truth, oracle


def explicit(weight: Tensor, geometry: ConvGeometry) -> np.ndarray:
    """The operator's matrix, entry by entry: y[o, p] = sum_{i, a} K[o, i, a] x[i, s p + gap a].

    A transposed convolution scatters instead: y[o, s p + gap a] += K[i, o, a] x[i, p].
    """
    kernel = weight.double().numpy()
    first, second = len(kernel), kernel.shape[1]
    share = first // geometry.groups
    matrix = np.zeros((first, *geometry.coarse, second * geometry.groups, *geometry.fine))
    for c in range(first):
        for d in range(second):
            other = c // share * second + d
            for p in np.ndindex(*geometry.coarse):
                for a in np.ndindex(*kernel.shape[2:]):
                    steps = zip(p, a, geometry.stride, geometry.dilation, strict=True)
                    reached = [s * q + gap * b for q, b, s, gap in steps]
                    place = (t % n for t, n in zip(reached, geometry.fine, strict=True))
                    matrix[(c, *p, other, *place)] += kernel[(c, d, *a)]
    rows = matrix.reshape(first * math.prod(geometry.coarse), -1)
    return rows.T if geometry.transposed else rows


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


CASES = (
    ((4, 3, 3, 3), ConvGeometry((5, 4))),
    ((3, 3, 3, 3), ConvGeometry((6, 6))),
    ((6, 6, 3, 3), ConvGeometry((2, 2))),
    ((3, 2, 5, 5), ConvGeometry((3, 4))),
    ((3, 4, 3, 3), ConvGeometry((6, 4), (2, 2))),
    ((8, 2, 1, 1), ConvGeometry((4, 4), (2, 2))),
    ((3, 4, 3, 3), ConvGeometry((3, 2), (2, 2), transposed=True)),
    ((6, 3, 3, 3), ConvGeometry((4, 5), groups=2)),
    ((8, 8, 7), ConvGeometry((15,), dilation=(2,))),
)


def kernels(shape: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    generator = np.random.default_rng(seed)
    entries = generator.normal(size=shape)
    first, second, taps = shape[0], shape[1], math.prod(shape[2:])
    u, v, w = (generator.integers(1, 9, n) for n in (first, second, taps))
    rank_one = np.einsum("o,i,t->oit", u, v, w).reshape(shape)
    left = generator.integers(-4, 5, (first, 2))
    few = np.einsum("or,rit->oit", left, generator.normal(size=(2, second, taps))).reshape(shape)
    decay = np.geomspace(1.0, 1e-7, second).reshape(1, second, *[1] * (len(shape) - 2))
    # sums to zero over the kernel positions: the block at frequency zero is rounding only
    edges = np.diff(entries, axis=-1, append=entries[..., :1]) if taps > 1 else entries
    arrays = {
        "normal": entries,
        "positive": generator.uniform(size=shape),
        "constant": np.full(shape, generator.uniform(0.5, 1.0)),
        "rank one": rank_one,
        "rank two": few,
        "graded": entries * decay,
        "zero mean": edges,
        "delta": np.where(np.arange(math.prod(shape)).reshape(shape) % taps == 0, entries, 0.0),
        "sparse": entries * (generator.uniform(size=shape) < 0.2) + 1e-3,
        "collapsed": entries * 1e-12,
        "1e-18": rank_one * 1e-18,
        "1e18": few * 1e18,
        "1e-30": entries * 1e-30,
        "subnormal": entries * 1e-42,
    }
    result = {name: torch.tensor(array, dtype=torch.float32) for name, array in arrays.items()}
    for dtype in (torch.bfloat16, torch.float16):
        result[str(dtype)] = torch.tensor(entries, dtype=dtype)
    return result


Item = tuple[str, Tensor, ConvGeometry, Truth]


@functools.cache
def conv_zoo() -> list[Item]:
    """More than 250 kernels with the spectra of their explicit matrices."""
    items = []
    for number, (shape, geometry) in enumerate(CASES):
        for seed in range(2):
            for kind, weight in kernels(shape, 100 * number + seed).items():
                truth = oracle(torch.from_numpy(explicit(weight, geometry)))
                items.append((f"{kind} {shape} {geometry} {seed}", weight, geometry, truth))
    return items
