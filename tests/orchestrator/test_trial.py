"""The training loop and the driver's session, called as the driver calls them."""

from __future__ import annotations

import errno
import fcntl
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from orchestrator import checkpoints, environment, files, parse, run_sweep, trial
from orchestrator.errors import ClusterError, StoreError
from orchestrator.session import Session
from orchestrator.store import Store
from orchestrator.sweep import Sweep
from orchestrator.trial import Assignment, run_group
from tests.orchestrator.contexts import context
from tests.orchestrator.test_resume import TASK

TEXT = """
name: toy
task: faulty_task.py:Faulty
base: {steps: 100, width: 4}
grid: {weight_decay: [0.0, 1.0]}
snapshots: {every: 50}
tracking: none
"""


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    shutil.copy(TASK, tmp_path / "faulty_task.py")
    monkeypatch.chdir(tmp_path)
    return parse(TEXT, base=tmp_path)


def test_a_checkpoint_whose_shards_are_gone_is_not_continued(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the trial would be committed with a shard that nobody can read."""
    monkeypatch.setattr(trial, "FIRST_PUBLISH_SECONDS", 0.0)
    assignment = Assignment((next(sweep.trials()),), (1,))
    [trial_id] = assignment.trial_ids
    with Session.claim(sweep) as session:
        asked = iter([False] * 60 + [True])
        stopped = run_group(assignment, context(sweep, session), stop=lambda: next(asked))
        header = checkpoints.newest_header(session.store.root, trial_id)
        assert header is not None
        assert (stopped.stopped_at, header.step) == (60, 60)
        assert header.shards
        (session.store.root / header.shards[0]["path"]).unlink()

        started: list[int] = []
        result = run_group(
            assignment, context(sweep, session), progress=lambda p: started.append(p.step)
        )
        session.commit(result.rows)

    assert started[0] == 0
    store = Store.open(sweep.root)
    assert store.scan("scalars", store.outcomes()).num_rows > 0


def test_a_trial_on_a_gpu_does_not_round_to_tf32(sweep: Sweep) -> None:
    """Before it asks for the GPU: so this is seen on a machine without one, too, where it fails."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with Session.claim(sweep) as session:
            gpu = replace(context(sweep, session), device="cuda")
            run_group(Assignment((next(sweep.trials()),), (1,)), gpu)
        assert not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = allowed


def test_a_driver_that_was_taken_over_says_so(sweep: Sweep) -> None:
    """What it commits after the next epoch was claimed does not count, so it must not go on."""
    with Session.claim(sweep) as session:
        root = session.store.root
        facts = files.unseal_json(root / "epochs" / "000001.json")
        claimed = files.seal_json({**facts, "epoch": 2, "seen": {"1": 0}})
        files.publish(root / "epochs" / "000002.json", claimed)

        with pytest.raises(StoreError) as caught:
            session.commit([{"trial_id": "aa", "status": "completed"}])

    assert str(caught.value) == (
        f"another driver has taken over {root}: see the newest file in epochs/. What this one "
        "committed since does not count; let the other one finish."
    )
    assert Store.open(root).commits().num_rows == 0


@pytest.mark.ray
def test_a_worker_with_other_code_stops_the_sweep_and_blames_no_trial(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's first act compares the packages with the driver's; a mismatch is no failure."""
    digests = environment.package_digests()
    elsewhere = {**digests, "tasks": "/somewhere/else/tasks.py 0123456789abcdef"}
    monkeypatch.setattr(environment, "package_digests", lambda: elsewhere)

    with pytest.raises(ClusterError) as caught:
        run_sweep(sweep)

    assert "a worker cannot start: " in str(caught.value)
    differing = f"tasks: driver {elsewhere['tasks']}, worker {digests['tasks']}"
    assert differing in str(caught.value)
    assert Store.open(sweep.root).commits().num_rows == 0


def test_where_flock_is_not_supported_the_heartbeat_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some shared file systems have no flock: that is no other driver."""

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", unsupported)

    first = files.DriverLock(tmp_path / "driver.lock", watch_seconds=0.2)
    first.acquire()
    first.release()
