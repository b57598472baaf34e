"""On which grids a model's convolutions work: data of the operator, found by running the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spectral.views import MatrixView

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@dataclass(frozen=True)
class ConvGeometry:
    """How a convolution of d directions is applied: what its weights alone do not say.

    Attributes:
        spatial: size of the layer's *input* in each direction, (H, W) for images.
        stride: for each direction; empty: 1 everywhere.
        dilation: likewise.
        groups: into how many independent convolutions the channels fall.
        transposed: whether the layer is a transposed convolution, that is the adjoint of the
            convolution that maps its output to its input.

    Padding is no part of it: the boundary is taken to be circular.

    Raises:
        ValueError: from the constructor, if a field is not of this form.
    """

    spatial: tuple[int, ...]
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    def __post_init__(self) -> None:
        _check_sizes("spatial", self.spatial)
        ones = (1,) * len(self.spatial)
        for field in ("stride", "dilation"):
            # frozen: a default that depends on other fields can be set in no other way
            object.__setattr__(self, field, getattr(self, field) or ones)
            _check_sizes(field, getattr(self, field))
            if len(getattr(self, field)) != len(self.spatial):
                raise ValueError(
                    f"convolution geometry: {field} must have one number for each of the "
                    f"{len(self.spatial)} directions of spatial {self.spatial}, got "
                    f"{getattr(self, field)!r}"
                )
        _check_sizes("groups", (self.groups,))

    @property
    def coarse(self) -> tuple[int, ...]:
        """The grid on the side of the stride: the output's, or the input's if transposed.

        Where the stride does not divide the size, there is no circular convolution: the input is
        taken to be as large as the next multiple. (5, 5) with stride 2 has outputs (3, 3).
        """
        if self.transposed:
            return self.spatial
        return tuple(-(-n // s) for n, s in zip(self.spatial, self.stride, strict=True))

    @property
    def fine(self) -> tuple[int, ...]:
        """The other grid, `stride` times as large."""
        return tuple(m * s for m, s in zip(self.coarse, self.stride, strict=True))

    def operator_shape(self, weight_shape: tuple[int, ...]) -> tuple[int, int]:
        """(rows, columns) of the operator: entries of the output, and of the input.

        Args:
            weight_shape: (c_out, c_in / groups, k...), or (c_in, c_out / groups, k...) if
                transposed, as torch stores them.

        Raises:
            ValueError: if such weights cannot be applied like this.
        """
        if len(weight_shape) != len(self.spatial) + 2 or 0 in weight_shape:
            raise ValueError(
                f"expected the weights of a convolution of {len(self.spatial)} directions, not "
                f"empty, with {len(self.spatial) + 2} dimensions; got the shape {weight_shape}"
            )
        if weight_shape[0] % self.groups:
            raise ValueError(
                f"the {weight_shape[0]} channels of weights of shape {weight_shape} do not fall "
                f"into {self.groups} equal groups"
            )
        coarse = weight_shape[0] * math.prod(self.coarse)
        fine = weight_shape[1] * self.groups * math.prod(self.fine)
        return (fine, coarse) if self.transposed else (coarse, fine)

    def __str__(self) -> str:
        return f"{self.spatial} with stride {self.stride}, dilation {self.dilation}"


def _check_sizes(field: str, sizes: tuple[int, ...]) -> None:
    whole = isinstance(sizes, tuple) and all(type(n) is int and n > 0 for n in sizes)
    if not whole or not sizes:
        raise ValueError(
            f"convolution geometry: {field} must hold positive whole numbers, got {sizes!r}"
        )


def conv_geometries(module: nn.Module, run: Callable[[], object]) -> dict[str, ConvGeometry]:
    """The grid that each convolution of a module is applied on, from watching it work.

    Hooks on `nn.Conv1d` to `nn.Conv3d` and their transposes read the last d dimensions of each
    input, so batched, unbatched and `torch.vmap`-ped forward passes give the same.

    Args:
        module: whose forward pass `run` makes, itself and no copy of it; left without hooks,
            whether `run` succeeds or not.
        run: anything that applies the module to an input of the usual size. What it changes
            (running means, generators) is its own affair.

    Returns:
        by name in ``named_parameters()``; layers that were not reached are absent, and so are
        convolutions that are not made by these classes: `missing_geometries` names them.

    Raises:
        ValueError: if weights are applied on more than one grid.
        Exception: whatever `run` raises.
    """
    # a layer's own name, except that tied weights go by the first of theirs
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found: dict[str, dict[ConvGeometry, None]] = {}  # in order of appearance

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def record(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            features = args[0] if args else kwargs["input"]
            found.setdefault(name, {})[_geometry(layer, features)] = None

        return record

    handles = []
    try:
        for path, layer in module.named_modules():
            if isinstance(layer, _CONVOLUTIONS):
                # not `layer.weight`, which parametrisations compute, changing their buffers
                own = dict(layer.named_parameters(recurse=False)).get("weight")
                name = names.get(id(own), f"{path}.weight" if path else "weight")
                handles.append(layer.register_forward_pre_hook(hook(name), with_kwargs=True))
        run()
    finally:
        for handle in handles:
            handle.remove()
    several = [
        f"{name!r} is applied on more than one grid: {'; '.join(map(str, geometries))}"
        for name, geometries in found.items()
        if len(geometries) > 1
    ]
    if several:
        raise ValueError(
            "operator: a convolution is one linear operator only on one grid\n  "
            + "\n  ".join(several)
        )
    return {name: next(iter(geometries)) for name, geometries in found.items()}


def _geometry(layer: nn.Module, features: Tensor) -> ConvGeometry:
    assert isinstance(layer, _CONVOLUTIONS)
    directions = len(layer.kernel_size)
    return ConvGeometry(
        # int: under tracing, sizes are numbers of other types
        spatial=tuple(int(n) for n in features.shape[-directions:]),
        stride=tuple(layer.stride),
        dilation=tuple(layer.dilation),
        groups=layer.groups,
        transposed=isinstance(layer, _TRANSPOSED),
    )


def missing_geometries(
    views: Iterable[MatrixView], geometries: Mapping[str, ConvGeometry]
) -> list[str]:
    """One sentence for each view of a convolution whose grid is not known.

    Args:
        views: of any layout; those of layout ``matrix`` have no grid.
        geometries: by parameter, from `conv_geometries`.

    Returns:
        sentences for the caller to raise, all together; empty if nothing is missing.
    """
    return [
        f"operator: no spatial size is known for {view.parameter!r} (view {view.name!r}): no "
        "torch.nn convolution with these weights was reached by a forward pass"
        for view in views
        if view.layout != "matrix" and view.parameter not in geometries
    ]
