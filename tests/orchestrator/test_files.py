"""Publishing, locks and checkpoints: complete or not at all, one driver at a time."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from orchestrator import checkpoints, files
from orchestrator.errors import DamageError, StoreBusyError, StoreError


def test_a_published_file_is_complete_and_leaves_no_temporary_name(tmp_path: Path) -> None:
    """After `publish` the folder holds the final name and nothing else."""
    files.publish(tmp_path / "a" / "x.arrow", b"content")

    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.arrow"]
    assert (tmp_path / "a" / "x.arrow").read_bytes() == b"content"


def test_publishing_never_replaces_an_existing_file(tmp_path: Path) -> None:
    """A taken name is an error, and its content stays what it was."""
    files.publish(tmp_path / "x", b"first")

    with pytest.raises(FileExistsError):
        files.publish(tmp_path / "x", b"second")
    assert (tmp_path / "x").read_bytes() == b"first"
    assert len(list(tmp_path.iterdir())) == 1


def test_of_many_publishers_of_one_name_exactly_one_wins(tmp_path: Path) -> None:
    """Create-if-absent is what makes claiming an epoch safe."""
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def publish(content: bytes) -> None:
        barrier.wait()
        try:
            files.publish(tmp_path / "x", content)
            outcomes.append("won")
        except FileExistsError:
            outcomes.append("lost")

    threads = [threading.Thread(target=publish, args=(bytes([i]) * 100,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == ["lost"] * 7 + ["won"]
    assert len(set((tmp_path / "x").read_bytes())) == 1


def test_a_full_disk_is_reported_with_what_to_do(tmp_path: Path) -> None:
    """/dev/full refuses every byte as a full disk does."""

    def write() -> None:
        with files.storage_errors(tmp_path / "x", "write"), Path("/dev/full").open("wb", 0) as full:
            full.write(b"x")

    with pytest.raises(StoreError) as caught:
        write()

    assert str(caught.value) == (
        f"cannot write {tmp_path / 'x'}: {os.strerror(errno.ENOSPC)}. The disk is full: free some "
        "space, then run the same command again: everything committed so far is kept and the sweep "
        "resumes."
    )
    assert caught.value.exit_code == 3


def test_a_second_driver_is_refused_by_host_and_process(tmp_path: Path) -> None:
    """The message names who holds the store."""
    path = tmp_path / "driver.lock"
    script = (
        "import sys, pathlib\n"
        "from orchestrator.files import DriverLock\n"
        "DriverLock(pathlib.Path(sys.argv[1])).acquire()\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        since = json.loads(path.read_text())["since"]

        with pytest.raises(StoreBusyError) as caught:
            files.DriverLock(path).acquire()
        assert str(caught.value) == (
            f"{tmp_path} is in use by another driver: process {holder.pid} on host "
            f"{socket.gethostname()}, since {since}. Wait for it, or end that process; then run "
            "the same command again to resume."
        )
        holder.kill()

    # The kernel let go with the holder: nothing is left to clean up by hand.
    lock = files.DriverLock(path)
    lock.acquire()
    lock.release()


def test_a_driver_on_another_host_is_refused_only_while_its_heart_beats(tmp_path: Path) -> None:
    """Where flock is ignored (some shared file systems) the heartbeat decides."""
    path = tmp_path / "driver.lock"
    foreign = {"host": "node7", "pid": 42, "since": "2026-01-01T00:00:00Z", "ended": False}
    path.write_text(json.dumps({**foreign, "beat": "42.1"}))

    silent = files.DriverLock(path, watch_seconds=0.3)
    silent.acquire()  # nothing beats: the driver is dead, take over
    silent.release()

    path.write_text(json.dumps({**foreign, "beat": "42.1"}))
    stop = threading.Event()

    def beat() -> None:
        number = 2
        while not stop.wait(0.02):
            path.write_text(json.dumps({**foreign, "beat": f"42.{number}"}))
            number += 1

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(StoreBusyError, match="process 42 on host node7, since 2026-01-01"):
            files.DriverLock(path, watch_seconds=10).acquire()
    finally:
        stop.set()
        thread.join()


def header(step: int) -> checkpoints.Header:
    return checkpoints.Header(
        step=step,
        epoch=1,
        attempt=1,
        source_hash="s",
        trial={"trial_id": "aa"},
        shards=[{"path": "scalars/x"}],
        wall_seconds=1.5,
    )


def test_the_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    """Newest by step, whatever the nonce in the name."""
    for step in (10, 20, 30):
        checkpoints.write(tmp_path, "aa", header(step), b"payload %d" % step)

    names = sorted(path.name[:9] for path in (tmp_path / "checkpoints" / "aa").iterdir())
    assert names == ["000000020", "000000030"]
    found = checkpoints.newest_valid(tmp_path, "aa")
    assert found is not None
    assert found == (header(30), b"payload 30")


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    """No damaged checkpoint is ever loaded: the one before it is taken instead."""
    checkpoints.write(tmp_path, "aa", header(10), b"older")
    path = checkpoints.write(tmp_path, "aa", header(20), b"payload")
    intact = path.read_bytes()
    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1
        path.write_bytes(damaged)

        with pytest.raises(DamageError, match="is damaged"):
            checkpoints.read(path)
    for length in range(len(intact)):
        path.write_bytes(intact[:length])
        with pytest.raises(DamageError, match="is damaged"):
            checkpoints.read(path)

    assert checkpoints.newest_valid(tmp_path, "aa") == (header(10), b"older")


def test_discarding_checkpoints_leaves_nothing_of_that_trial(tmp_path: Path) -> None:
    """After a commit a trial's checkpoints are of no more use."""
    checkpoints.write(tmp_path, "aa", header(10), b"x")
    checkpoints.write(tmp_path, "bb", header(10), b"x")

    checkpoints.discard(tmp_path, "aa")

    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["bb"]
    assert checkpoints.newest_valid(tmp_path, "aa") is None
