"""A small task that can kill processes at a chosen moment; tests name it by path.

The environment variable FAULTS names a folder. `start-<step>-...` files there record the first
step of each attempt, `data-folder` where the last one looks for real data sets. A file in it that
is named as one of KINDS is a fault: the first process whose moment has come takes it (by renaming,
so it strikes once) and carries it out. While a file named `hold` is there, every trial waits
at its 20th step.

The moment is read off the store that this process works for, the folder that STORE names:
a checkpoint exists, and a shard was published after it, so that work is lost and a file orphaned.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from tasks import FullBatchConfig, Task, data, initialise_
from tasks.config import PerTrial
from tasks.models.mlp import MLP
from tasks.random import Streams


class Faulty(Task):
    """Fit random targets with a small MLP; correct but for the faults it is told to commit."""

    version = 1

    class Config(FullBatchConfig):
        streams = ("init", "noise")
        width: int = 8
        explode: Annotated[bool, PerTrial] = Field(False, description="diverge on purpose")

    def __init__(self, configs: Any) -> None:
        super().__init__(configs)
        self._begun = False

    def build(self, streams: Streams) -> nn.Module:
        model = MLP([4, self.config.width, 2])  # type: ignore[attr-defined]
        initialise_(model, streams)
        return model

    def eval_data(self, streams: Streams, split: str) -> dict[str, Tensor]:
        which = self.splits.index(split)
        blow = self.per_trial("explode", streams.device)[:, None, None].to(self.config.dtype)
        x = streams.normal("noise", 2 * which, (32, 4), self.config.dtype)
        y = streams.normal("noise", 2 * which + 1, (32, 2), self.config.dtype)
        return {"x": x, "y": y * (1 + 1e30 * blow)}

    def batch(self, streams: Streams, step: int, micro: int) -> dict[str, Tensor]:
        faults = os.environ.get("FAULTS")
        if faults:
            self._misbehave(Path(faults), step)
        return streams.remember("data", lambda: self.eval_data(streams, "train"))

    def loss(self, forward: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return ((forward(batch["x"]) - batch["y"]) ** 2).sum(), torch.tensor(32)

    def evaluate(self, forward: Any, data: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        return {"loss": self.loss(forward, data)}

    def _misbehave(self, faults: Path, step: int) -> None:
        if not self._begun:
            self._begun = True
            name = f"start-{step}-{os.getpid()}-{threading.get_ident()}-{os.urandom(4).hex()}"
            (faults / name).touch()
            (faults / "data-folder").write_text(str(data.folder()))
        if step % 20:
            return
        while step and (faults / "hold").exists():
            time.sleep(0.05)
        if not any((faults / f).exists() for f in KINDS):
            return
        root = Path(os.environ["STORE"])
        if (faults / "raise").exists() and step >= 100:
            _take(faults / "raise")
            raise ValueError(f"the fault [/that/was ordered], at step {step}")
        if (faults / "edit").exists() and step >= 100:
            _take(faults / "edit")
            own = Path(__file__)
            own.write_text(own.read_text().replace("** 2).sum()", "** 4).sum()"))
        if not _work_would_be_lost(root):
            return
        if _take(faults / "kill-worker"):
            os.kill(os.getpid(), signal.SIGKILL)
        if _take(faults / "kill-driver"):
            os.kill(
                json.loads((root / "epochs" / "driver.lock").read_text())["pid"], signal.SIGKILL
            )
        if _take(faults / "interrupt-driver"):
            os.kill(_driver(root), signal.SIGINT)


KINDS = ("kill-worker", "kill-driver", "interrupt-driver", "raise", "edit")


def _driver(root: Path) -> int:
    return int(json.loads((root / "epochs" / "driver.lock").read_text())["pid"])


def _take(fault: Path) -> bool:
    try:
        fault.rename(fault.with_name(f"done-{fault.name}"))
    except FileNotFoundError:
        return False
    return True


def _work_would_be_lost(root: Path) -> bool:
    """Some trial has a checkpoint, and a shard that is newer than its newest checkpoint."""
    for folder in (root / "checkpoints").iterdir():
        newest = max((p.stat().st_mtime_ns for p in folder.glob("[0-9]*")), default=None)
        shards = (root / "scalars").glob(f"{folder.name}-*.arrow")
        if newest is not None and any(p.stat().st_mtime_ns > newest for p in shards):
            return True
    return False
