"""What this machine has to offer to trials."""

from __future__ import annotations

import os

import torch


def machine_resources() -> dict[str, float]:
    """CPUs that this process may use and GPUs that CUDA sees."""
    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}
