"""What a worker is told, for tests that call `run_group` themselves."""

import tasks
from orchestrator.session import Session
from orchestrator.sweep import Sweep
from orchestrator.trial import Context


def context(sweep: Sweep, session: Session, *, checkpoint_seconds: float = 1e9) -> Context:
    """As the driver makes it, for one thread of the CPU; without checkpoints unless asked for."""
    return Context(
        root=str(session.store.root),
        epoch=session.epoch,
        threads=1,
        device="cpu",
        checkpoint_seconds=checkpoint_seconds,
        source_hash=tasks.source_hash(sweep.task_class),
        data=sweep.data or "",
    )
