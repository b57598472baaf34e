"""How trials are chosen, run, recorded and read back.

Names are imported on first use (PEP 562): a worker that only trains needs neither Ray nor MLflow,
and `from orchestrator import Results` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.driver import run_sweep
    from orchestrator.recorder import Recorder
    from orchestrator.results import Results
    from orchestrator.sweep import Sweep, Trial, load, parse
    from orchestrator.trial import run_group

__all__ = ["Recorder", "Results", "Sweep", "Trial", "load", "parse", "run_group", "run_sweep"]

_HOMES = {
    "Recorder": "recorder",
    "Results": "results",
    "Sweep": "sweep",
    "Trial": "sweep",
    "load": "sweep",
    "parse": "sweep",
    "run_group": "trial",
    "run_sweep": "driver",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"orchestrator.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'orchestrator' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
