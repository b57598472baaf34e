"""What one snapshot hands to the next: tensors only, so that a checkpoint can hold it.

Every tensor has a leading group dimension K; a trial's state is a slice of them.

| key | tensor |
|---|---|
| initial_frobenius/VIEW | [K] float64: Frobenius norm at step 0 |
| initial/left/VIEW, initial/right/VIEW | [K, m, k], [K, n, k] float32: singular vectors at step 0 |
| initial/known/VIEW | [K, 5, k] float64: their values and errors |
| previous/... | the same of the previous snapshot |
| weights/PARAMETER | [K, ...]: the parameter at the previous snapshot |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from spectral.decomposition import Decomposition
from spectral.entropy import Array
from spectral.vectors import SingularVectors

SnapshotState = dict[str, Tensor]

_NORM = "initial_frobenius/"
_WEIGHTS = "weights/"


def initial_norms(
    state: SnapshotState | None, names: Sequence[str], norms: Array
) -> tuple[SnapshotState, Array]:
    """The state to write to, and the Frobenius norms at step 0: these, if there is no state yet.

    Args:
        state: what the previous snapshot returned; None at step 0. Not modified.
        names: of the views.
        norms: shape (K, number of views), of this snapshot.

    Returns:
        (a copy of the state, norms at step 0 in the shape of `norms`).

    Raises:
        ValueError: the state is of other views or of another number of trials.
    """
    if state is None:
        of_names = zip(names, norms.T, strict=True)
        return {_NORM + name: torch.tensor(each, device="cpu") for name, each in of_names}, norms
    columns = []
    for name in names:
        known = state.get(_NORM + name)
        if known is None or known.shape != (len(norms),):
            found = "nothing" if known is None else f"the shape {tuple(known.shape)}"
            raise ValueError(
                f"the snapshot state is of other views or of another group: for {name!r} it must "
                f"hold the norms of {len(norms)} trials at step 0, but holds {found}"
            )
        columns.append(known.cpu().numpy())
    return dict(state), np.stack(columns, axis=1) if columns else norms


def remember_vectors(
    state: SnapshotState, slot: str, name: str, vectors: Sequence[SingularVectors]
) -> None:
    """Keep the float32 vectors of one view, of all trials, under `slot`."""
    state[f"{slot}/left/{name}"] = torch.stack([own.left for own in vectors])
    state[f"{slot}/right/{name}"] = torch.stack([own.right for own in vectors])
    known = [
        np.stack(
            [
                own.values,
                own.left_errors,
                own.right_errors,
                own.left_span_errors,
                own.right_span_errors,
            ]
        )
        for own in vectors
    ]
    state[f"{slot}/known/{name}"] = torch.tensor(np.stack(known), device="cpu")


def recalled_vectors(
    state: Mapping[str, Tensor], slot: str, name: str, trial: int
) -> SingularVectors | None:
    """What `remember_vectors` kept of one trial, or None."""
    left = state.get(f"{slot}/left/{name}")
    if left is None:
        return None
    right, known = state[f"{slot}/right/{name}"], state[f"{slot}/known/{name}"]
    # on the CPU whatever device a checkpoint was loaded to: these are bounds, not factors
    return SingularVectors(known[trial, 0].cpu().numpy(), left[trial], right[trial], *(
        known[trial, i].cpu().numpy() for i in range(1, 5)
    ))  # fmt: skip


def remember_weights(state: SnapshotState, parameters: Mapping[str, Tensor]) -> None:
    """Keep a copy of these parameters."""
    for name, value in parameters.items():
        state[_WEIGHTS + name] = value.detach().clone()


def recalled_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `remember_weights` kept."""
    return {
        key.removeprefix(_WEIGHTS): value
        for key, value in state.items()
        if key.startswith(_WEIGHTS)
    }


def factors_of(decomposition: Decomposition) -> SingularVectors:
    """The leading vectors of a decomposition in float32.

    Raises:
        ValueError: it was made without vectors.
    """
    if decomposition.vectors is None:
        raise ValueError("this decomposition has no singular vectors: ask for them")
    return decomposition.vectors.rounded()
