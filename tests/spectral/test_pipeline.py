"""Snapshots finished beside training: the same rows, in order, none dropped, errors heard of."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor

from spectral import Pipeline, Request, Snapshot, take_snapshot
from spectral.snapshot import BegunSnapshot
from tests.spectral.groups import VIEWS, content, group

REQUEST = Request(VIEWS, ("ranks", "spectrum", "agreement", "update"))


def weights(step: int) -> dict[str, Tensor]:
    return {name: value * (1.0 + step) + step for name, value in group(2).items()}


def synchronous(steps: int) -> list[list[Snapshot]]:
    state = None
    found = []
    for step in range(steps):
        snapshots, state = take_snapshot(VIEWS, weights(step), REQUEST.measure, state)
        found.append(snapshots)
    return found


def test_rows_are_those_of_snapshots_taken_one_after_the_other() -> None:
    with Pipeline() as pipeline:
        for step in range(5):
            pipeline.submit(REQUEST, weights(step), step)
        results = list(pipeline.results(wait=True))

    assert [result.step for result in results] == [0, 1, 2, 3, 4]
    for result, expected in zip(results, synchronous(5), strict=True):
        assert [content(s) for s in result.snapshots] == [content(s) for s in expected]


def test_weights_may_change_as_soon_as_they_are_submitted() -> None:
    """The snapshot is of the weights as they were: they are copied, and only read."""
    parameters = weights(0)
    before = {name: value.clone() for name, value in parameters.items()}
    with Pipeline() as pipeline:
        pipeline.submit(REQUEST, parameters, 0)
        for value in parameters.values():
            value.zero_()
        [result] = pipeline.results(wait=True)

    expected, _ = take_snapshot(VIEWS, before, REQUEST.measure, None)
    assert [content(s) for s in result.snapshots] == [content(s) for s in expected]


def test_a_full_queue_waits_and_drops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one snapshot is held up, one waits in the queue, and the next submission waits too."""
    go_on = threading.Event()
    finish = BegunSnapshot.finish

    def held_up(begun: BegunSnapshot, state: object) -> object:
        assert go_on.wait(60)
        return finish(begun, state)  # type: ignore[arg-type]

    monkeypatch.setattr(BegunSnapshot, "finish", held_up)
    submitted: list[int] = []
    with Pipeline(depth=1) as pipeline:

        def submit_all() -> None:
            for step in range(4):
                pipeline.submit(REQUEST, weights(step), step)
                submitted.append(step)

        training = threading.Thread(target=submit_all)
        training.start()
        training.join(1.0)
        waiting = training.is_alive()
        so_far = len(submitted)
        go_on.set()
        training.join(60)
        results = list(pipeline.results(wait=True))

    assert waiting
    assert so_far <= 2
    assert [result.step for result in results] == [0, 1, 2, 3]
    assert pipeline.waited_seconds > 0.0


def test_what_goes_wrong_in_the_thread_is_raised_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(begun: BegunSnapshot, state: object) -> object:
        raise MemoryError("no memory for a snapshot")

    monkeypatch.setattr(BegunSnapshot, "finish", broken)
    with Pipeline() as pipeline:
        pipeline.submit(REQUEST, weights(0), 0)
        with pytest.raises(MemoryError, match=r"^no memory for a snapshot$"):
            list(pipeline.results(wait=True))
        with pytest.raises(MemoryError, match=r"^no memory for a snapshot$"):
            pipeline.submit(REQUEST, weights(1), 1)


def test_a_request_that_makes_no_sense_is_refused_at_once() -> None:
    with Pipeline() as pipeline, pytest.raises(ValueError, match=r"^unknown measurement 'rank'"):
        pipeline.submit(Request(VIEWS, ("rank",)), weights(0), 0)


def test_the_state_of_a_pipeline_is_that_of_its_last_snapshot() -> None:
    """A checkpoint takes it; another pipeline goes on from there."""
    with Pipeline() as first:
        first.submit(REQUEST, weights(0), 0)
        first.submit(REQUEST, weights(1), 1)
        list(first.results(wait=True))
        state = first.state
    with Pipeline(state) as second:
        second.submit(REQUEST, weights(2), 2)
        [result] = second.results(wait=True)

    expected = synchronous(3)[2]
    assert [content(s) for s in result.snapshots] == [content(s) for s in expected]


def test_leaving_by_an_exception_does_not_wait_for_what_is_queued() -> None:
    class Stop(Exception):
        pass

    def train() -> None:
        with Pipeline(depth=8) as pipeline:
            for step in range(8):
                pipeline.submit(REQUEST, weights(step), step)
            raise Stop

    with pytest.raises(Stop):
        train()

    assert not any(thread.name == "snapshots" for thread in threading.enumerate())


def test_one_thread_count_for_both_threads() -> None:
    """A new thread would begin with as many as there are cores, and round differently."""
    seen: list[int] = []
    finish = BegunSnapshot.finish

    def looking(begun: BegunSnapshot, state: object) -> object:
        seen.append(torch.get_num_threads())
        return finish(begun, state)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BegunSnapshot, "finish", looking)
        with Pipeline() as pipeline:
            pipeline.submit(REQUEST, weights(0), 0)
            list(pipeline.results(wait=True))

    assert seen == [torch.get_num_threads()]


def test_leaving_in_order_raises_what_went_wrong_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the last snapshots would be missing without a word."""

    def broken(begun: BegunSnapshot, state: object) -> object:
        raise MemoryError("no memory for a snapshot")

    monkeypatch.setattr(BegunSnapshot, "finish", broken)

    def train() -> None:
        with Pipeline() as pipeline:
            pipeline.submit(REQUEST, weights(0), 0)

    with pytest.raises(MemoryError, match=r"^no memory for a snapshot$"):
        train()
