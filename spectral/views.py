"""Where the matrices of a model are: matrix views and couplings. Data, not code.

Shape legend: K trials of a group, (m, n) the matrix a view reads, R = min(m, n).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

Layout = Literal["matrix", "conv", "conv_transpose"]
Side = Literal["left", "right"]
Slice = tuple[int, int]
Tap = tuple[int, ...] | Literal["all"]

_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _check_slice(owner: str, field: str, value: Slice | None) -> None:
    if value is None:
        return
    whole = isinstance(value, tuple) and len(value) == 2 and all(type(v) is int for v in value)
    if not whole or not 0 <= value[0] < value[1]:
        raise ValueError(
            f"{owner}: {field} must be a half-open slice (start, stop) of whole numbers with "
            f"0 <= start < stop, got {value!r}"
        )


def _check_choice(owner: str, field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{owner}: {field} must be one of {', '.join(choices)}; got {value!r}")


def _check_name(owner: str, field: str, value: str) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{owner}: {field} must be a non-empty string, got {value!r}")


def _check_flag(owner: str, field: str, value: bool) -> None:
    if type(value) is not bool:
        raise ValueError(f"{owner}: {field} must be True or False, got {value!r}")


@dataclass(frozen=True)
class MatrixView:
    """Where one matrix sits in the named parameters of a model.

    How parameters of more than two dimensions become matrices (Yunis et al., arXiv 2408.11804, and
    their code): ``conv`` flattens (c_out, c_in, k...) to (c_out, c_in * prod(k));
    ``conv_transpose`` swaps the first two axes of (c_in, c_out, k...) and then does the same.
    Neither is the operator on feature maps.

    Attributes:
        name: the `subject` of the view's rows, for example ``layers.0.attention.query[2]``.
        parameter: key in ``named_parameters()``.
        rows: half-open slice of the rows, after the layout and before the transpose; None: all.
        columns: likewise of the columns.
        layout: how the stored parameter becomes a matrix.
        transpose: whether the matrix is the transpose of what was sliced.
        on_demand: whether the matrix is measured only where a coupling that is measured has it at
            an end. Sweeps and recorders keep to this; `take_snapshot` measures what it is given.

    Raises:
        ValueError: from the constructor, if a field is not of this form.
    """

    name: str
    parameter: str
    rows: Slice | None = None
    columns: Slice | None = None
    layout: Layout = "matrix"
    transpose: bool = False
    on_demand: bool = False

    def __post_init__(self) -> None:
        _check_name("matrix view", "name", self.name)
        owner = f"matrix view {self.name!r}"
        _check_name(owner, "parameter", self.parameter)
        _check_slice(owner, "rows", self.rows)
        _check_slice(owner, "columns", self.columns)
        _check_choice(owner, "layout", self.layout, get_args(Layout))
        _check_flag(owner, "on_demand", self.on_demand)

    def read(self, parameters: Mapping[str, Tensor], *, stacked: bool = False) -> Tensor:
        """The matrix itself, as a view of the parameter's memory where strides allow it.

        Args:
            parameters: named parameters, of any dtype and device; not modified.
            stacked: whether every parameter carries a leading group dimension K.

        Returns:
            shape (m, n), or (K, m, n) if stacked. Writing to it may write to the parameter.

        Raises:
            ValueError: if the parameter is missing, has the wrong number of dimensions for the
                layout, or is smaller than the slices say.
        """
        stored = parameters.get(self.parameter)
        owner = f"matrix view {self.name!r}"
        if stored is None:
            raise ValueError(
                f"{owner}: there is no parameter {self.parameter!r}; "
                f"there are {', '.join(sorted(parameters)) or 'none'}"
            )
        first = 1 if stacked else 0
        num_dims = stored.dim() - first
        if num_dims < 2 or (self.layout == "matrix" and num_dims > 2):
            wanted = "2" if self.layout == "matrix" else "at least 2"
            group = " after the group dimension" if stacked else ""
            raise ValueError(
                f"{owner}: layout {self.layout} needs {wanted} dimensions{group}, but "
                f"{self.parameter!r} has the shape {tuple(stored.shape)}"
            )
        if self.layout == "conv_transpose":
            stored = stored.transpose(first, first + 1)
        if self.layout != "matrix":
            stored = stored.flatten(first + 1)
        for axis, field, bounds in ((-2, "rows", self.rows), (-1, "columns", self.columns)):
            if bounds is None:
                continue
            if bounds[1] > stored.shape[axis]:
                raise ValueError(
                    f"{owner}: {field} {bounds} reach beyond the {stored.shape[axis]} {field} of "
                    f"{self.parameter!r}"
                )
            stored = stored.narrow(axis, bounds[0], bounds[1] - bounds[0])
        return stored.mT if self.transpose else stored

    def shape(self, parameters: Mapping[str, Tensor], *, stacked: bool = False) -> tuple[int, int]:
        """(m, n) of the matrix, without the group dimension; raises as `read` does."""
        matrix = self.read(parameters, stacked=stacked)
        return matrix.shape[-2], matrix.shape[-1]


@dataclass(frozen=True)
class CouplingEnd:
    """One side of a coupling: which vectors of which view, and which of their entries.

    Attributes:
        view: name of a `MatrixView`.
        side: left singular vectors (length m) or right singular vectors (length n).
        entries: half-open slice of each vector (gates, column halves); None: all entries.
        reshape: the shape (c, k...) a vector is folded into before `tap` picks from it; None: not
            folded. Excludes `entries`.
        tap: index into the axes of `reshape` after the first, leaving a vector of length c; or
            ``all``: each index in turn, and what is made of them, as absolute values, is averaged.

    Raises:
        ValueError: from the constructor, if a field is not of this form.
    """

    view: str
    side: Side
    entries: Slice | None = None
    reshape: tuple[int, ...] | None = None
    tap: Tap | None = None

    def __post_init__(self) -> None:
        _check_name("coupling end", "view", self.view)
        owner = f"coupling end {self.view!r}"
        _check_choice(owner, "side", self.side, get_args(Side))
        _check_slice(owner, "entries", self.entries)
        if (self.reshape is None) != (self.tap is None):
            raise ValueError(
                f"{owner}: reshape and tap go together, got reshape {self.reshape!r} and tap "
                f"{self.tap!r}"
            )
        if self.reshape is None or self.tap is None:
            return
        if self.entries is not None:
            raise ValueError(f"{owner}: entries and reshape exclude each other, got both")
        if len(self.reshape) < 2 or not all(type(s) is int and s > 0 for s in self.reshape):
            raise ValueError(
                f"{owner}: reshape must be at least two positive whole numbers, got "
                f"{self.reshape!r}"
            )
        if self.tap == "all":
            return
        if not isinstance(self.tap, tuple):
            raise ValueError(f"{owner}: tap must be a tuple of indices or 'all', got {self.tap!r}")
        inside = len(self.tap) == len(self.reshape) - 1 and all(
            type(t) is int and 0 <= t < s for t, s in zip(self.tap, self.reshape[1:], strict=False)
        )
        if not inside:
            raise ValueError(
                f"{owner}: tap must index the axes {self.reshape[1:]} of reshape, got {self.tap!r}"
            )


@dataclass(frozen=True)
class Coupling:
    """Which vectors of one view meet which of another.

    The alignment of a coupling is made of |<a_j, b_j>| over unit vectors a_j of `first` and b_j of
    `second`, or over the parts of them that the ends pick, which are not normalised again. Its
    chance level is sqrt(2 / pi) / sqrt(length).

    Attributes:
        first: the earlier matrix, as a rule with its left vectors.
        second: the later matrix, as a rule with its right vectors.
        length: the *unsliced* length of the vectors, which sets the chance level (4608 for a tap of
            a 512x3x3 convolution, 1024 for one gate of 256). Where vectors of lengths d and d' are
            both sliced, to c entries, it is d d' / c: the square of an entry is c / (d d') on
            average (2048 for a gate of 256 out of 1024 against one half of 512).
        group: couplings of equal `group` are averaged (the heads of one Q-K pair); None: alone.
        name: the `subject` of the coupling's rows; by default ``first->second``.
        residual: whether the two meet across a residual stream, past what lies between them. The
            paper leaves these out on purpose, and so do measurements unless asked for them.
        per_head: whether it is of single heads where the paper's code takes all heads as one. Left
            out likewise, unless asked for.

    Raises:
        ValueError: from the constructor, if a field is not of this form.
    """

    first: CouplingEnd
    second: CouplingEnd
    length: int
    group: str | None = None
    name: str = ""
    residual: bool = False
    per_head: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            # frozen: a default that depends on other fields can be set in no other way
            object.__setattr__(self, "name", f"{self.first.view}->{self.second.view}")
        if type(self.length) is not int or self.length < 1:
            raise ValueError(
                f"coupling {self.name!r}: length must be a positive whole number, got "
                f"{self.length!r}"
            )
        if self.group is not None:
            _check_name(f"coupling {self.name!r}", "group", self.group)
        _check_flag(f"coupling {self.name!r}", "residual", self.residual)
        _check_flag(f"coupling {self.name!r}", "per_head", self.per_head)
        if self.first.tap == self.second.tap == "all":
            raise ValueError(f"coupling {self.name!r}: tap 'all' is for one end only, both have it")


def discover(module: nn.Module) -> list[MatrixView]:
    """One view of every parameter with at least two dimensions, in `named_parameters()` order.

    Embeddings are included and shared parameters appear once, under their first name. A view is
    named for its parameter without a final ``.weight``.

    Args:
        module: any module; not modified.

    Returns:
        a list of views, each of a whole parameter; empty if there is none.
    """
    views = []
    for parameter, value in module.named_parameters():
        if value.dim() < 2:
            continue
        owner = module.get_submodule(parameter.rpartition(".")[0])
        layout: Layout = "matrix" if value.dim() == 2 else "conv"
        if isinstance(owner, _CONV_TRANSPOSE):
            layout = "conv_transpose"
        views.append(MatrixView(parameter.removesuffix(".weight"), parameter, layout=layout))
    return views
