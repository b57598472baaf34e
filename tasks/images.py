"""Image data sets as tensors: opened once per process, resized once per size and device.

Only training splits: what a task holds back it holds back from these, and the official test sets
are never touched. A trial's data are indices into the one `pool` that all trials of a process
share, so that neither K trials nor a split copy an image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tasks import data
from tasks.data import CorruptDataError

__all__ = [
    "SOURCES",
    "ImageData",
    "ImageSet",
    "Source",
    "image_set",
    "missing",
    "normalised",
    "pool",
]

ImageData = Literal["digits", "cifar10", "cifar100", "mnist"]
"""Names of the image data sets; the first comes with scikit-learn and needs no download."""


@dataclass(frozen=True)
class Source:
    """What is known of an image data set before it is opened.

    Attributes:
        count: images of its training split; a file with another number of rows is refused.
        channels: 1 (grey) or 3 (red, green, blue).
        size: height and width in pixels.
        num_classes: labels are 0..num_classes - 1.
        mean: of each channel over all pixels, where the largest value is 1.
        std: likewise the (population) standard deviation.
        columns: of the images and of the labels; None: not opened by `tasks.data`.
    """

    count: int
    channels: int
    size: int
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    columns: tuple[str, str] | None


SOURCES: dict[str, Source] = {
    # mean and std: measured over all pixels after the values 0..16 became 0..255
    "digits": Source(1797, 1, 8, 10, (0.3053,), (0.3759,), None),
    # those of Yunis et al. (arXiv 2408.11804, code)
    "cifar10": Source(
        50_000, 3, 32, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), ("img", "label")
    ),
    # likewise, from their code; we have not measured them
    "cifar100": Source(
        50_000,
        3,
        32,
        100,
        (0.5071, 0.4866, 0.4409),
        (0.2673, 0.2564, 0.2762),
        ("img", "fine_label"),
    ),
    # those of Yunis et al., for 28 x 28 pixels
    "mnist": Source(60_000, 1, 28, 10, (0.1307,), (0.3081,), ("image", "label")),
}
"""Name -> what it is; keys are those of `ImageData`."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The training split of an image data set, on the CPU; shared, so not to be written to.

    Attributes:
        images: uint8 [N, C, H, W], 0..255.
        labels: int64 [N], each in 0..num_classes - 1.
        num_classes: number of classes.
        mean: of each channel, as in `Source`.
        std: of each channel.
    """

    images: Tensor
    labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def missing(name: str) -> list[str]:
    """What keeps this machine from opening an image data set; see `tasks.data.missing`."""
    return data.missing(name) if SOURCES[name].columns else []


def image_set(name: str) -> ImageSet:
    """The training split, read and checked once per process and folder of data.

    Args:
        name: one of `SOURCES`.

    Raises:
        MissingDataError: the data set is not on this machine.
        CorruptDataError: it is, and is not what it should be: columns, number of rows, an image
            that cannot be decoded or has another shape, a label that is no class. Names the file
            and the row.
    """
    return _image_set(name, data.folder())


def pool(name: str, size: int, device: torch.device | str) -> Tensor:
    """All images of a data set on a device, made once per process, size and device.

    Resized on the CPU, whatever the device, so that all devices hold the same bits: bilinear, with
    pixels averaged (antialiased) where the images shrink, rounded to whole numbers.

    Args:
        name: one of `SOURCES`.
        size: height and width of the result in pixels; that of the set leaves it as it is.
        device: where the result lies; "meta" is one, too.

    Returns:
        uint8 [N, C, size, size]; shared, so not to be written to.

    Raises:
        MissingDataError, CorruptDataError: as `image_set` does.
    """
    return _pool(name, data.folder(), size, str(device))


def normalised(images: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    """(images / 255 - mean) / std, channel by channel, with the constants of the data set.

    Args:
        images: uint8 [..., C, H, W].
        name: one of `SOURCES`.
        dtype: of the result.

    Returns:
        [..., C, H, W].
    """
    mean, std = _constants(name, dtype, images.device)
    return (images.to(dtype) - mean) / std


@functools.cache
def _constants(name: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """255 mean and 255 std, [C, 1, 1] each: copied to a device once and not at every step."""
    source = SOURCES[name]
    mean = torch.tensor(source.mean, dtype=torch.float64, device=device).mul(255.0).to(dtype)
    std = torch.tensor(source.std, dtype=torch.float64, device=device).mul(255.0).to(dtype)
    return mean[:, None, None], std[:, None, None]


@functools.cache
def _image_set(name: str, _folder: Path) -> ImageSet:
    source = SOURCES[name]
    # a caller may be working under a default device; what is read here is always on the CPU
    with torch.device("cpu"):
        images, labels = _digits() if source.columns is None else _opened(name, source.columns)
    return ImageSet(images, labels, source.num_classes, source.mean, source.std)


@functools.cache
def _pool(name: str, _folder: Path, size: int, device: str) -> Tensor:
    images = _image_set(name, _folder).images
    with torch.device("cpu"), torch.no_grad():
        return _resized(images, size).to(device)


def _resized(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] == (size, size):
        return images
    parts = [
        functional.interpolate(
            part.to(torch.float32), (size, size), mode="bilinear", antialias=True
        )
        .round_()
        .clamp_(0, 255)
        .to(torch.uint8)
        for part in torch.split(
            images, 1024
        )  # in float32 all at once would be four times the memory
    ]
    return torch.cat(parts)


def _digits() -> tuple[Tensor, Tensor]:
    """Those of scikit-learn: 1,797 images of 8 x 8 with values 0..16, stretched to 0..255."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    stretched = torch.from_numpy(pixels).mul(255.0 / 16.0).round().to(torch.uint8)
    return stretched.reshape(-1, 1, 8, 8), torch.from_numpy(labels).to(torch.int64)


def _opened(name: str, columns: tuple[str, str]) -> tuple[Tensor, Tensor]:
    source = SOURCES[name]
    split = data.open_split(name, "train")
    where = f"data set {name}, {data.place(name, 'train')}"
    absent = [column for column in columns if column not in split.column_names]
    if absent:
        raise CorruptDataError(
            f"{where}: there is no column {' and no column '.join(map(repr, absent))}; there are "
            f"{', '.join(map(repr, split.column_names))}"
        )
    if len(split) != source.count:
        raise CorruptDataError(
            f"{where}: expected {source.count} images, got {len(split)}. Remove it and download it "
            "again."
        )
    labels = _labels(split, columns[1], source.num_classes, where)
    shape = (source.size, source.size) if source.channels == 1 else (source.size, source.size, 3)
    images = np.empty((source.count, *shape), dtype=np.uint8)
    decode = _decoder(split, columns[0], where)
    for row, encoded in enumerate(_encoded(split, columns[0])):
        images[row] = _decoded(encoded, decode, shape, f"{where}, row {row}")
    tensor = torch.from_numpy(images)
    tensor = tensor[:, None] if source.channels == 1 else tensor.movedim(-1, 1).contiguous()
    return tensor, labels


def _labels(split: Any, column: str, num_classes: int, where: str) -> Tensor:
    values: Sequence[Any] = split.with_format(None)[column][:]
    for row, value in enumerate(values):
        if type(value) is not int or not 0 <= value < num_classes:
            raise CorruptDataError(
                f"{where}, row {row}, column {column!r}: expected a label in "
                f"0..{num_classes - 1}, got {value!r}"
            )
    return torch.tensor(values, dtype=torch.int64)


def _encoded(split: Any, column: str) -> Iterator[Any]:
    # ten times as fast as row by row
    for some in split.select_columns([column]).with_format(None).iter(batch_size=1000):
        yield from some[column]


def _decoder(split: Any, column: str, where: str) -> Callable[[Any], Any]:
    feature = split.features[column]
    if not hasattr(feature, "decode_example"):
        raise CorruptDataError(f"{where}, column {column!r}: expected images, got {feature!r}")
    decode: Callable[[Any], Any] = dataclasses.replace(feature, decode=True).decode_example
    return decode


def _decoded(
    encoded: Any, decode: Callable[[Any], Any], shape: tuple[int, ...], where: str
) -> np.ndarray[Any, Any]:
    try:
        if encoded["bytes"] is None:  # a path may be an address, and nothing is downloaded here
            raise ValueError(f"the file {encoded['path']} is not part of the data set")
        pixels = np.asarray(decode(encoded))
    except Exception as error:  # decoders raise all kinds; the row is what the user needs
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CorruptDataError(f"{where}: the image cannot be decoded: {reason}") from error
    if pixels.shape != shape or pixels.dtype != np.uint8:
        raise CorruptDataError(
            f"{where}: expected an image of shape {shape} of 8-bit numbers, got {pixels.shape} of "
            f"{pixels.dtype}"
        )
    return pixels
