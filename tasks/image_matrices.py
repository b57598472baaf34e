"""Which matrices of an image classifier meet: chains of layers, and the blocks of a ResNet."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import nn

from spectral.views import Coupling, CouplingEnd, discover
from tasks.models.resnet import ResNet18

__all__ = ["image_couplings"]


def image_couplings(model: nn.Module) -> list[Coupling]:
    """Left vectors of a matrix against right vectors of the next, named as `discover` names them.

    Of the right vectors of a convolution, the entries at the centre of the kernel; a convolution
    and the linear layer after it meet directly, because the mean over places lies between them.

    In a ResNet-18 the two convolutions of a block meet, and the first convolution of all meets that
    of the first block, which reads nothing else. What a block writes to the residual stream, with
    its second convolution or its downsampling, against what the next block or the linear layer
    reads is marked `residual`.

    Args:
        model: a chain of linear and convolutional layers in the order of its parameters, such as
            `MLP` and `VGG16`, or a `ResNet18`.
    """
    if isinstance(model, ResNet18):
        return _of_resnet(model)
    return [
        _coupling(model, first.name, second.name) for first, second in pairwise(discover(model))
    ]


def _coupling(model: nn.Module, first: str, second: str, *, residual: bool = False) -> Coupling:
    """Left vectors of `first` against right vectors of `second`, named as the views are."""
    shape = tuple(map(int, model.get_parameter(f"{second}.weight").shape[1:]))
    end = CouplingEnd(second, "right")
    if len(shape) == 3:
        end = CouplingEnd(second, "right", reshape=shape, tap=(shape[1] // 2, shape[2] // 2))
    return Coupling(CouplingEnd(first, "left"), end, math.prod(shape), residual=residual)


def _of_resnet(model: ResNet18) -> list[Coupling]:
    found: list[Coupling] = []
    writers = ["conv1"]  # what wrote to the residual stream since it was last read
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for number, block in enumerate(getattr(model, stage)):
            own = f"{stage}.{number}."
            readers = [own + "conv1"]
            if block.downsample is not None:
                readers.append(own + "downsample.0")
            direct = writers == ["conv1"]
            for writer in writers:
                found += [_coupling(model, writer, r, residual=not direct) for r in readers]
            found.append(_coupling(model, own + "conv1", own + "conv2"))
            writers = [own + "conv2", *readers[1:]]
    found += [_coupling(model, writer, "fc", residual=True) for writer in writers]
    return found
