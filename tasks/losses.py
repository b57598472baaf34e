"""Losses written so that they are cheap under `torch.vmap`."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example, in nats: -ln softmax(logits)[label].

    The same numbers as `torch.nn.functional.cross_entropy(..., reduction="none")`, whose rule under
    vmap is a decomposition in Python: 130 microseconds more per step, as much as a small model.

    Args:
        logits: [N, C], floating point.
        labels: int64 [N], each in 0..C-1; not checked beyond what `gather` checks.

    Returns:
        [N], in the dtype of the logits, each >= 0.
    """
    return -logits.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
