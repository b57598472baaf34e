"""The networks whose spectra are timed: matrices and couplings of Yunis et al., and weights.

Shapes are those of arXiv 2408.11804 and its code: VGG-16 for CIFAR images (14 matrices, 13 pairs),
the 12-layer transformer of width 768 (50, 61) and the one-layer transformer that groks (6, 6).
Weights are made, not trained: at initialisation, collapsed, or of a power law.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from spectral import Coupling, CouplingEnd, MatrixView, discover
from tasks.models.transformer import Transformer
from tasks.random import Streams
from tasks.transformer_matrices import attention_couplings, attention_views

KINDS = ("initial", "collapsed", "power law")

COLLAPSED_RANK = 10
COLLAPSED_SCALE = 1e-6
"""Of a collapsed matrix's entries, times a standard Gaussian's sqrt(rank)."""

DRIFT = 0.01
"""By how much the final weights differ, relative to the weights' own size."""


@dataclass(frozen=True)
class Network:
    """A module and what the paper measures of it.

    Attributes:
        name: of the architecture.
        module: at initialisation.
        views: the matrices, in the order of the parameters; the last is never pruned.
        parts: slices of them that only couplings need: heads of query and key, the value rows.
        couplings: the pairs; those of one `group` are the heads of one.
    """

    name: str
    module: nn.Module
    views: list[MatrixView]
    parts: list[MatrixView]
    couplings: list[Coupling]


@dataclass(frozen=True)
class Weights:
    """Two checkpoints of a network, float32; the second plays the final one."""

    network: Network
    now: Mapping[str, Tensor]
    final: Mapping[str, Tensor]


class Vgg(nn.Sequential):
    """VGG-16 with batch normalisation for 32x32 images: 13 convolutions, one linear layer.

    Args:
        divisor: of all widths, for twins that are cheap to decompose.
    """

    def __init__(self, divisor: int = 1) -> None:
        layers: list[nn.Module] = []
        channels = 3
        for block, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            if block:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                out = width // divisor
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
                channels = out
        super().__init__(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(channels, 10))


def vgg(*, divisor: int = 1, seed: int = 0) -> Network:
    """VGG-16 at PyTorch's default initialisation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Vgg(divisor)
    views = discover(module)
    couplings = []
    for view, following in pairwise(views):
        shape = module.get_parameter(following.parameter).shape
        second = CouplingEnd(following.name, "right")
        if len(shape) == 4:
            # of the nine taps of a kernel the paper scores the one in the centre
            second = CouplingEnd(
                following.name, "right", reshape=tuple(map(int, shape[1:])), tap=(1, 1)
            )
        length = int(shape[1:].numel())
        couplings.append(Coupling(CouplingEnd(view.name, "left"), second, length))
    return Network("VGG-16", module, views, [], couplings)


def transformer(
    name: str, *, tokens: int, width: int, heads: int, feed_forward: int, layers: int, seed: int = 0
) -> Network:
    """A transformer as the paper's: fused query, key and value, untied decoder, no final norm."""
    with torch.random.fork_rng(devices=[]):  # constructors draw, before initialise_ fills anew
        module = Transformer(tokens, 3, width, heads, feed_forward, layers)
    module.initialise_(Streams([seed]))
    views, parts, couplings = [MatrixView("embedding", "embedding.weight")], [], []
    # rows of the embedding are tokens: its right vectors are what the next matrix reads
    before = CouplingEnd("embedding", "right")
    for layer in range(layers):
        own = f"layers.{layer}."
        attention = own + "attention."
        wanted = {attention + part for part in ("in_proj", "out_proj")}
        needed = {attention + "value"} | {
            f"{attention}{part}[{h}]" for part in ("query", "key") for h in range(heads)
        }
        for view in attention_views(attention[:-1], width, heads):
            views += [view] if view.name in wanted else []
            parts += [view] if view.name in needed else []
        for part in ("linear1", "linear2"):
            views.append(MatrixView(own + part, f"{own}{part}.weight"))
        couplings.append(Coupling(before, CouplingEnd(attention + "in_proj", "right"), width))
        inside = attention_couplings(attention[:-1], width, heads)
        couplings += [coupling for coupling in inside if not coupling.per_head]
        for first, second, length in (
            (attention + "out_proj", own + "linear1", width),
            (own + "linear1", own + "linear2", feed_forward),
        ):
            couplings.append(
                Coupling(CouplingEnd(first, "left"), CouplingEnd(second, "right"), length)
            )
        before = CouplingEnd(own + "linear2", "left")
    views.append(MatrixView("decoder", "decoder.weight"))
    couplings.append(Coupling(before, CouplingEnd("decoder", "right"), width))
    return Network(name, module, views, parts, couplings)


def build(name: str, *, quick: bool = False) -> Network:
    """One of "VGG-16", "LM" and "grokking"; quick: a small twin of the same structure."""
    if name == "VGG-16":
        return vgg(divisor=8 if quick else 1)
    if name == "LM":
        sizes = (500, 48, 4, 48, 2) if quick else (50_277, 768, 12, 768, 12)
    elif name == "grokking":
        sizes = (32, 32, 4, 128, 1) if quick else (114, 128, 4, 512, 1)
    else:
        raise ValueError(f"expected VGG-16, LM or grokking, got {name!r}")
    tokens, width, heads, feed_forward, layers = sizes
    return transformer(
        name, tokens=tokens, width=width, heads=heads, feed_forward=feed_forward, layers=layers
    )


def weights(network: Network, kind: str, *, seed: int = 0) -> Weights:
    """Weights of one of `KINDS`, and the same a little later.

    - initial: as the module has them; later: plus Gaussian noise.
    - collapsed: a product of rank 10 with relative noise of 2^-23, which is what float32 leaves of
      directions that weight decay has removed, at a scale of 1e-6; later: both factors drifted.
    - power law: singular values 1 / i^2 between random orthonormal bases; likewise.
    """
    if kind not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {kind!r}")
    generator = torch.Generator().manual_seed(seed)
    start = {name: value.detach().clone() for name, value in network.module.named_parameters()}
    now, final = dict(start), dict(start)
    for view in network.views:
        before = view.read(start)
        if kind == "initial":
            matrices = before, before + DRIFT * before.std() * _normal(before.shape, generator)
        elif kind == "collapsed":
            matrices = _collapsed(before.shape, generator)
        else:
            matrices = _power_law(before.shape, generator)
        for checkpoint, matrix in zip((now, final), matrices, strict=True):
            checkpoint[view.parameter] = matrix.reshape(start[view.parameter].shape)
    return Weights(network, now, final)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _collapsed(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    m, n = shape
    left, right = _normal((m, COLLAPSED_RANK), generator), _normal((COLLAPSED_RANK, n), generator)
    now = COLLAPSED_SCALE * (left @ right)
    left, right = (side + DRIFT * _normal(side.shape, generator) for side in (left, right))
    final = COLLAPSED_SCALE * (left @ right)
    now, final = (w * (1.0 + 2.0**-23 * _normal((m, n), generator)) for w in (now, final))
    return now, final


def _power_law(shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    m, n = shape
    short = min(m, n)
    left = torch.linalg.qr(_normal((m, short), generator)).Q
    right = torch.linalg.qr(_normal((n, short), generator)).Q
    values = torch.arange(1, short + 1, dtype=torch.float32) ** -2
    now = (left * values) @ right.mT
    # a column of an orthonormal basis of length m has entries of the size m^-1/2
    left, right = (
        side + DRIFT * len(side) ** -0.5 * _normal(side.shape, generator) for side in (left, right)
    )
    return now, (left * values) @ right.mT
