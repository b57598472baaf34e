"""A small group of models with every kind of view, and what their snapshots hold to the bit."""

import torch
from torch import Tensor

from spectral import MatrixView, Snapshot

MEASURE = ("ranks", "spectrum")

VIEWS = [
    MatrixView("in_proj", "in_proj"),
    *(MatrixView(f"query[{h}]", "in_proj", rows=(4 * h, 4 * h + 4)) for h in range(4)),
    MatrixView("embedding", "embedding"),
    MatrixView("conv", "conv", layout="conv"),
    MatrixView("low", "low"),
    MatrixView("vector", "vector", transpose=True),
]


def group(size: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    normal = {
        "in_proj": torch.randn(size, 48, 16, generator=generator),
        "embedding": torch.randn(size, 33, 64, generator=generator),
        "conv": torch.randn(size, 7, 3, 3, 3, generator=generator),
        "vector": torch.randn(size, 1, 21, generator=generator),
    }
    left = torch.randint(1, 9, (size, 80, 2), generator=generator).float()
    right = torch.randint(1, 9, (size, 2, 64), generator=generator).float()
    return {**normal, "low": left @ right}


def companions(parameters: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    return {name: value[chosen].clone() for name, value in parameters.items()}


def content(snapshot: Snapshot) -> list[object]:
    """Everything in a snapshot, to the bit."""
    spectra = [
        (r.subject, r.quantity, r.values.tobytes(), r.bounds.tobytes(), r.method, r.flag)
        for r in snapshot.spectra
    ]
    scalars = [tuple("nan" if v != v else v for v in row) for row in snapshot.scalars]
    return [*scalars, *spectra]
