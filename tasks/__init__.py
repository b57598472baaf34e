"""What is trained: the Task contract, random streams, training of a group, and our own tasks.

A task of your own derives from `Task`; `examples/my_task.py` is one in 40 lines.
"""

from tasks.config import (
    FullBatchConfig,
    PerTrial,
    TrainingConfig,
    per_trial_fields,
    structural_fields,
)
from tasks.random import Streams, initialise_
from tasks.registry import REGISTRY, available, resolve, source_files, source_hash
from tasks.task import Batch, Forward, Task, TaskError
from tasks.training import GroupState, evaluate, make_streams, start, train_step

__all__ = [
    "REGISTRY",
    "Batch",
    "Forward",
    "FullBatchConfig",
    "GroupState",
    "PerTrial",
    "Streams",
    "Task",
    "TaskError",
    "TrainingConfig",
    "available",
    "evaluate",
    "initialise_",
    "make_streams",
    "per_trial_fields",
    "resolve",
    "source_files",
    "source_hash",
    "start",
    "structural_fields",
    "train_step",
]
