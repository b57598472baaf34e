"""A task that dawdles until it is told to go on, so that a test can look at a running sweep.

The environment variable GO names a file; while it is not there every step takes its time.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from faulty_task import Faulty
from torch import Tensor

from tasks.random import Streams


class Held(Faulty):
    """As `Faulty`, which lies beside it, at a walking pace."""

    def batch(self, streams: Streams, step: int, micro: int) -> dict[str, Tensor]:
        if step and not Path(os.environ["GO"]).exists():
            time.sleep(0.02)
        return super().batch(streams, step, micro)
