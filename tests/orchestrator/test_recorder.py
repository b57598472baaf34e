"""Anyone's training loop as a trial: what `Recorder` writes, refuses, and survives."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator import (
    Recorder,
    Results,
    environment,
    recorded,
    recorder,
    recorder_fields,
    recorder_rows,
    recording,
)
from orchestrator.errors import RecordError, StoreBusyError, StoreError, SweepError
from orchestrator.files import DriverLock
from orchestrator.nodes import show
from orchestrator.recorder_rows import Rows
from orchestrator.session import Session, check_owner, claim_epoch
from orchestrator.store import Store
from orchestrator.summaries import ensure
from orchestrator.sweep import parse
from orchestrator.verify import verify
from spectral import METHOD_VERSION, Coupling, CouplingEnd, MatrixView

ROOT = Path(__file__).parents[2]
NOT_ON_A_WORKER = ("ray", "optuna", "mlflow", "ruamel", "duckdb", "typer", "rich", "matplotlib")


def diagonal(*values: float) -> nn.Linear:
    """A layer whose singular values are known."""
    layer = nn.Linear(len(values), len(values), bias=False)
    layer.weight.data = torch.diag(torch.tensor(values))
    return layer


def record(root: Path, *, seed: int = 0, steps: int = 3, loss: float = 1.0, **given: Any) -> str:
    """A whole recording of a constant model."""
    with Recorder(root, seed=seed, **given) as recorder:
        for step in range(steps):
            recorder.scalars(step, train={"loss": loss})
            recorder.snapshot(diagonal(3.0, 1.0), step)
    return recorder.trial_id


def statuses(root: Path, **options: Any) -> list[str]:
    return Results.open(root, **options).trials()["status"].to_pylist()


def problems(call: Any) -> list[str]:
    """What a RecordError lists."""
    with pytest.raises(RecordError) as caught:
        call()
    return [str(problem) for problem in caught.value.problems]


# --- what is written --------------------------------------------------------------------------


def test_five_lines_in_a_loop_write_what_results_reads(tmp_path: Path) -> None:
    """Singular values 3 and 1: the Frobenius norm is the root of 10, the stable rank 10 / 9."""
    model = diagonal(3.0, 1.0)

    with Recorder(tmp_path / "mine", params={"weight_decay": 0.1}, seed=5) as recorder:
        for step in range(3):
            recorder.scalars(step, train={"loss": 2.0 - step}, val={"loss": torch.tensor(0.5)})
            recorder.snapshot(model, step)

    results = Results.open(tmp_path / "mine")
    [trial] = results.trials().to_pylist()
    assert (results.name, results.task) == ("mine", "mine")
    assert {
        name: trial[name]
        for name in ("trial_id", "config_id", "seed", "weight_decay", "status", "last_step")
    } == {
        "trial_id": recorder.trial_id,
        "config_id": recorder.config_id,
        "seed": 5,
        "weight_decay": 0.1,
        "status": "completed",
        "last_step": 2,
    }
    losses = results.scalars(metric="loss", subject="train").to_pylist()
    assert [(row["step"], row["value"], row["method"]) for row in losses] == [
        (0, 2.0, "recorded"),
        (1, 1.0, "recorded"),
        (2, 0.0, "recorded"),
    ]
    for metric, truth in (("norm/frobenius", math.sqrt(10)), ("stable_rank", 10 / 9)):
        for row in results.scalars(metric=metric).to_pylist():
            assert row["lower"] <= truth <= row["upper"]
    spectra = results.spectra(quantity="singular_values").to_pylist()
    assert [row["values"] for row in spectra] == [pytest.approx([3, 1])] * 3


def test_each_parameter_that_differs_is_a_swept_one(tmp_path: Path) -> None:
    """Trials stand in the order in which they were recorded; what a trial has not is null."""
    record(tmp_path, params={"lr": 0.1, "betas": (0.9, 0.98), "width": 8}, name="mine")
    record(tmp_path, params={"lr": 0.3, "betas": [0.9, 0.98]})

    results = Results.open(tmp_path)

    assert results.parameters == ("lr", "width")
    assert results.trials().select(["lr", "width", "betas"]).to_pylist() == [
        {"lr": 0.1, "width": 8, "betas": [0.9, 0.98]},
        {"lr": 0.3, "width": None, "betas": [0.9, 0.98]},
    ]


def test_an_identity_is_the_hash_of_name_parameters_and_seed(tmp_path: Path) -> None:
    """As the module says; written out by hand."""
    made = Recorder(tmp_path / "x", params={"lr": 0.5, "width": 8.0}, seed=3, name="mine")

    text = (
        f'{{"format":1,"method":{METHOD_VERSION},"params":{{"lr":0.5,"width":8}},"parents":[],'
        '"recorded":"mine","seed":3}'
    )
    assert made.trial_id == hashlib.sha256(text.encode()).hexdigest()[:16]
    without_seed = text.replace(',"seed":3', "")
    assert made.config_id == hashlib.sha256(without_seed.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "same",
    [
        {"params": {"width": 8.0, "lr": [1, 2]}},
        {"params": {"lr": (1, 2.0), "width": np.int64(8)}},
        {"params": {"lr": [1, 2], "width": torch.tensor(8)}, "seed": np.int64(0)},
        {"measure": ["agreement"]},
        {"measure": {"groups": ["agreement"], "keep": "final"}},
        {"name": "mine"},
    ],
)
def test_equal_values_are_the_same_trial(tmp_path: Path, same: dict[str, Any]) -> None:
    """Also in another order, another type, or measured otherwise."""
    given: dict[str, Any] = {"params": {"lr": [1, 2], "width": 8}}

    first = Recorder(tmp_path / "mine", **given)

    assert Recorder(tmp_path / "mine", **{**given, **same}).trial_id == first.trial_id


@pytest.mark.parametrize(
    ("other", "same_configuration"),
    [
        ({"seed": 1}, True),
        ({"params": {"flag": 1}}, False),
        ({"params": {"flag": "True"}}, False),
        ({"params": {}}, False),
        ({"name": "other"}, False),
    ],
)
def test_different_values_are_another_trial(
    tmp_path: Path, other: dict[str, Any], same_configuration: bool
) -> None:
    """True is neither 1 nor a text."""
    given: dict[str, Any] = {"params": {"flag": True}}
    first = Recorder(tmp_path / "mine", **given)
    second = Recorder(tmp_path / "mine", **{**given, **other})

    assert first.trial_id != second.trial_id
    assert (first.config_id == second.config_id) is same_configuration


def test_rows_are_published_while_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are marked as running, and count only at the end."""
    monkeypatch.setattr(recorder, "FIRST_PUBLISH_SECONDS", 0.0)

    with Recorder(tmp_path / "mine", params={"lr": 0.1}) as one:
        one.scalars(0, train={"loss": 1.0})
        live = Results.open(tmp_path / "mine", running=True)
        assert live.trials().select(["lr", "status"]).to_pylist() == [
            {"lr": 0.1, "status": "running"}
        ]
        assert live.scalars(metric="loss")["value"].to_pylist() == [1.0]
        assert Results.open(tmp_path / "mine").trials().num_rows == 0
    assert statuses(tmp_path / "mine", running=True) == ["completed"]


def test_a_number_is_the_one_at_the_time_of_the_call(tmp_path: Path) -> None:
    """A loop may go on adding to the tensor; one that requires a gradient keeps its graph."""
    total = torch.zeros(())
    weight = torch.tensor([2.0], requires_grad=True)

    with Recorder(tmp_path / "mine") as one:
        one.scalars(0, train={"loss": total, "mean": (weight * 3).sum(), "n": np.float32(7)})
        total += 5

    rows = Results.open(tmp_path / "mine").scalars(step=0).to_pylist()
    assert {row["metric"]: row["value"] for row in rows} == {"loss": 0.0, "mean": 6.0, "n": 7.0}


# --- how it ends ------------------------------------------------------------------------------


def test_a_block_that_raises_is_a_failed_attempt(tmp_path: Path) -> None:
    """The exception passes through; its rows are kept beside the results, not among them."""

    def loop() -> None:
        with Recorder(tmp_path / "mine", params={"lr": 0.1}) as one:
            one.scalars(7, train={"loss": float("nan")})
            one.snapshot(diagonal(1.0, 2.0), 7)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        loop()

    results = Results.open(tmp_path / "mine")
    [row] = results.trials(history=True).to_pylist()
    assert results.trials().num_rows == 0
    assert (row["status"], row["error_kind"], row["last_step"]) == (
        "failed",
        "ZeroDivisionError",
        7,
    )
    assert row["error"].endswith("ZeroDivisionError: division by zero\n")
    assert {shard["table"] for shard in row["shards"]} == {"scalars", "spectra"}

    record(tmp_path / "mine", params={"lr": 0.1})  # no again=True: there is no result
    rows = Results.open(tmp_path / "mine").trials(history=True)
    assert [rows[name].to_pylist() for name in ("status", "attempt")] == [
        ["failed", "completed"],
        [1, 2],
    ]


def test_a_loss_that_is_not_finite_is_a_divergence(tmp_path: Path) -> None:
    """From any split; the first such step is the last of the trial, and later rows are kept."""
    with Recorder(tmp_path / "mine") as one:
        for step, loss in enumerate([1.0, math.inf, math.nan, 1.0]):
            one.scalars(step, train={"loss": 1.0}, val={"loss": loss, "error": math.nan})

    results = Results.open(tmp_path / "mine")
    assert results.trials().select(["status", "last_step"]).to_pylist() == [
        {"status": "diverged", "last_step": 1}
    ]
    losses = results.scalars(metric="loss", subject="val")
    assert losses["flag"].to_pylist() == [None, "diverged", "diverged", None]


def test_another_metric_that_is_not_finite_is_none(tmp_path: Path) -> None:
    """A correlation may be undefined without any harm."""
    with Recorder(tmp_path / "mine") as one:
        one.scalars(0, val={"correlation": math.nan})

    assert statuses(tmp_path / "mine") == ["completed"]


def test_weights_that_are_not_finite_are_a_divergence(tmp_path: Path) -> None:
    """Found when a snapshot meets them."""
    with Recorder(tmp_path / "mine") as one:
        one.snapshot(diagonal(1.0, 1.0), 0)
        one.snapshot(diagonal(1.0, math.inf), 4)
        one.snapshot(diagonal(1.0, 1.0), 8)

    assert Results.open(tmp_path / "mine").trials().select(["status", "last_step"]).to_pylist() == [
        {"status": "diverged", "last_step": 4}
    ]


def test_a_recording_of_nothing_is_refused_at_its_end(tmp_path: Path) -> None:
    """An empty data loader would look like a result."""
    root = tmp_path / "mine"

    def nothing() -> None:
        with Recorder(root, params={"lr": 0.1}):
            pass

    trial_id = Recorder(root, params={"lr": 0.1}).trial_id
    assert problems(nothing) == [
        f"nothing was recorded of trial {trial_id} (lr=0.1 seed=0): it has no result"
    ]


class Lost(torch.Tensor):
    """A number on a CUDA device that answers nothing any more."""

    @staticmethod
    def __new__(cls) -> Lost:
        return torch.Tensor._make_wrapper_subclass(cls, (), device="cuda")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.detach, torch.ops.aten.clone):
            return cls()
        raise RuntimeError("CUDA error: device-side assert triggered")


def test_numbers_that_a_broken_device_keeps_cost_no_other_rows(tmp_path: Path) -> None:
    """The failure is recorded, with everything that could still be had."""

    def loop() -> None:
        with Recorder(tmp_path / "mine") as one:
            one.scalars(0, train={"loss": 1.0})
            one.scalars(1, train={"loss": Lost(), "error": 0.5})
            raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(RuntimeError) as caught:
        loop()

    assert getattr(caught.value, "__notes__", []) == []
    [row] = Results.open(tmp_path / "mine").trials(history=True).to_pylist()
    assert (row["status"], row["last_step"]) == ("failed", 1)
    [shard] = row["shards"]
    kept = Store.open(tmp_path / "mine").read_shard(shard)
    assert [kept[name].to_pylist() for name in ("step", "metric", "value")] == [
        [0, 1],
        ["loss", "error"],
        [1.0, 0.5],
    ]


def test_an_interrupt_anywhere_loses_and_doubles_no_row(tmp_path: Path) -> None:
    """At every line between a number and its shard in turn, until one run is not interrupted."""
    trial = recorded.announcement("mine", {}, 0, method=METHOD_VERSION, at="")
    num_lines, ended = 0, False
    while not ended:
        rows, lines = Rows(trial), iter(range(num_lines))
        for step in range(3):
            rows.add(step, {"train": {"loss": float(step)}})

        def trace(frame: Any, event: str, _: Any, lines: Any = lines) -> Any:
            if frame.f_code.co_filename != recorder_rows.__file__:
                return None
            if event == "line" and next(lines, None) is None:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            rows.fetch()
            rows.publish(tmp_path, f"{trial.trial_id}-1.1")
            ended = True
        except KeyboardInterrupt:
            num_lines += 1
        finally:
            sys.settrace(before)
        rows.fetch()
        rows.publish(tmp_path, f"{trial.trial_id}-1.1")
        shards = [Store(tmp_path).read_shard(shard) for shard in rows.shards]
        assert [v for shard in shards for v in shard["value"].to_pylist()] == [0.0, 1.0, 2.0]
    assert num_lines > 20


def test_a_recorder_that_goes_away_unclosed_lets_go_of_its_trial(tmp_path: Path) -> None:
    """In a notebook, say; its rows count for nothing, and a warning says so."""
    one = Recorder(tmp_path / "mine").open()
    one.scalars(0, train={"loss": 1.0})
    trial_id = one.trial_id

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del one
        gc.collect()

    assert [str(each.message) for each in caught] == [
        f"a Recorder of trial {trial_id} (seed=0) was opened and never closed: nothing that it "
        "recorded counts. Use it as `with Recorder(...) as recorder:`, or call its close()"
    ]
    assert statuses(tmp_path / "mine") == []
    record(tmp_path / "mine")
    assert statuses(tmp_path / "mine") == ["completed"]


# --- once more --------------------------------------------------------------------------------


def test_what_is_recorded_already_is_refused_unless_again(tmp_path: Path) -> None:
    """Then only the new rows count; the earlier attempt is history."""
    root = tmp_path / "mine"
    trial_id = record(root, params={"lr": 0.1}, loss=1.0)

    assert problems(lambda: record(root, params={"lr": 0.1})) == [
        f"trial {trial_id} (lr=0.1 seed=0) is recorded already: completed at step 2. Give another "
        "seed or other parameters, or record it anew with again=True: what is there then no longer "
        "counts"
    ]
    record(root, params={"lr": 0.1}, again=True, loss=2.0, steps=1)

    results = Results.open(root)
    assert results.scalars(metric="loss")["value"].to_pylist() == [2.0]
    assert results.trials(history=True)["attempt"].to_pylist() == [1, 2]
    assert verify(root).damage == []


def test_a_trial_that_is_being_recorded_is_not_recorded_twice(tmp_path: Path) -> None:
    """Better now than after both have trained to the end."""
    root = tmp_path / "mine"
    with Recorder(root, seed=1) as first:
        first.scalars(0, train={"loss": 1.0})
        assert problems(Recorder(root, seed=1).open) == [
            f"trial {first.trial_id} (seed=1) is being recorded right now, by another process or "
            "another Recorder of this one: end that, or give this one another seed"
        ]
    assert statuses(root) == ["completed"]


@pytest.mark.parametrize(("again", "why"), [(False, "finished it"), (True, "begun it anew")])
def test_where_files_cannot_be_locked_the_commit_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool, why: str
) -> None:
    """Of two recorders of one trial one result counts, and the other one is told."""
    monkeypatch.setattr(recorded, "hold", lambda root, trial: -1)
    root = tmp_path / "mine"
    first = Recorder(root).open()
    if again:
        record(root)
    second = Recorder(root, again=again).open()
    for value, one in ((1.0, first), (2.0, second)):
        one.scalars(0, train={"loss": value})
    second.close()

    assert problems(first.close) == [
        f"trial {first.trial_id} (seed=0) does not count: another recorder has {why} meanwhile"
    ]
    assert Results.open(root).scalars(metric="loss")["value"].to_pylist() == [2.0]


def test_a_trial_recorded_anew_leaves_others_under_way_alone(tmp_path: Path) -> None:
    """The epoch that fences off the old result does not fence off what began before it."""
    root = tmp_path / "mine"
    record(root, seed=0)
    with Recorder(root, seed=1) as under_way:
        under_way.scalars(0, train={"loss": 1.0})
        record(root, seed=0, again=True)

    assert statuses(root) == ["completed", "completed"]
    assert len(Store.open(root).epochs()) == 2
    assert verify(root).damage == []


def test_a_commit_that_a_new_epoch_has_not_seen_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch claimed between looking and writing cannot lose a trial."""
    root, real, calls = tmp_path / "mine", recording._published, []

    def slow(store: Store, epoch: int, sequence: int, payload: bytes) -> bool:
        if not calls:
            claim_epoch(store, 1, frozenset())
        calls.append(epoch)
        return real(store, epoch, sequence, payload)

    monkeypatch.setattr(recording, "_published", slow)
    record(root)

    assert calls == [1, 2]
    assert statuses(root) == ["completed"]


def test_a_number_that_another_recorder_took_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network file system may show a folder as it was some seconds ago."""
    root = tmp_path / "mine"
    record(root, seed=0)
    real, stale = Store.segment_names, [True]
    monkeypatch.setattr(
        Store, "segment_names", lambda store: [] if stale and stale.pop() else real(store)
    )
    with Recorder(root, seed=1) as one:
        one.scalars(0, train={"loss": 1.0})
        stale.append(True)

    monkeypatch.undo()
    assert statuses(root) == ["completed", "completed"]


def test_a_lock_that_is_held_is_waited_for_and_costs_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who begins is refused after a while; who ends commits beside whoever hangs there."""
    root = tmp_path / "mine"
    for seconds in ("BEGIN_SECONDS", "COMMIT_SECONDS"):
        monkeypatch.setattr(recording, seconds, 0.05)
    one = Recorder(root).open()
    one.scalars(0, train={"loss": 1.0})
    lock = DriverLock(root / "epochs" / "driver.lock")
    lock.acquire()

    with pytest.raises(StoreBusyError, match=r"epochs is in use by another driver: process \d+"):
        Recorder(root, seed=1).open()
    one.close()

    lock.release()
    assert statuses(root) == ["completed"]


def test_a_trial_costs_no_more_in_a_fuller_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the announcements nor the commits of other trials are read for it."""
    read, num_read, real = [], [], Path.read_bytes

    def reading(path: Path) -> bytes:
        read.append(path)
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    for seed in range(4):
        read.clear()
        record(tmp_path / "mine", seed=seed, steps=1, measure={"groups": ["agreement"]})
        num_read.append(len(read))

    assert num_read[1:] == [num_read[1]] * 3


# --- threads and forks ------------------------------------------------------------------------


def test_threads_that_share_a_recorder_lose_and_double_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published again and again meanwhile, and switched as often as can be."""
    monkeypatch.setattr(recorder_rows, "MOST_ROWS", 200)
    num_threads, num_steps = 4, 250
    interval = sys.getswitchinterval()

    with Recorder(tmp_path / "mine") as one:

        def loop(number: int) -> None:
            for step in range(num_steps):
                one.scalars(step, train={f"metric{number}": number + step})

        threads = [threading.Thread(target=loop, args=(n,)) for n in range(num_threads)]
        sys.setswitchinterval(1e-6)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)

    results = Results.open(tmp_path / "mine")
    for number in range(num_threads):
        values = results.scalars(metric=f"metric{number}")["value"].to_pylist()
        assert sorted(values) == [float(number + step) for step in range(num_steps)]


def test_many_rows_are_published_before_their_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that memory does not grow with the length of a loop."""
    monkeypatch.setattr(recorder_rows, "MOST_ROWS", 3)
    monkeypatch.setattr(recorder, "FIRST_PUBLISH_SECONDS", 1e9)

    with Recorder(tmp_path / "mine") as one:
        for step in range(7):
            one.scalars(step, train={"loss": step})
        live = Results.open(tmp_path / "mine", running=True)
        assert live.scalars(metric="loss")["value"].to_pylist() == [0, 1, 2, 3, 4, 5]
        one.snapshot(diagonal(3.0, 1.0), 6)  # many rows of one step
        live = Results.open(tmp_path / "mine", running=True)
        assert live.scalars(metric="norm/spectral")["value"].to_pylist() == [pytest.approx(3.0)]

    losses = Results.open(tmp_path / "mine").scalars(metric="loss")["value"].to_pylist()
    assert losses == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of fork beside threads
def test_a_process_forked_off_inside_the_block_records_nothing(tmp_path: Path) -> None:
    """It may leave by sys.exit: the trial is the parent's, and stays so."""
    root = tmp_path / "mine"
    with Recorder(root) as one:
        one.scalars(0, train={"loss": 1.0})
        child = os.fork()
        if child == 0:
            try:
                with contextlib.ExitStack() as stack:
                    stack.push(one)  # as the block around would end
                    one.scalars(0, train={"loss": 2.0})
                    one.snapshot(diagonal(1.0), 0)
                    sys.exit()
            except SystemExit:
                os._exit(7)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert "is being recorded right now" in problems(Recorder(root).open)[0]
        one.scalars(1, train={"loss": 3.0})

    results = Results.open(root)
    assert results.trials(history=True)["status"].to_pylist() == ["completed"]
    assert results.scalars()["value"].to_pylist() == [1.0, 3.0]


# --- several processes, and a kill ------------------------------------------------------------

PROCESSES, EACH = 4, 3
SCRIPT = f"""
import os, signal, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {NOT_ON_A_WORKER!r}:
            raise ModuleNotFoundError("No module named " + repr(name))

sys.meta_path.insert(0, Blocker())  # a notebook needs torch, numpy, scipy, pyarrow and pydantic
from orchestrator import Recorder, recorder
from orchestrator.errors import RecordError
root = sys.argv[1]

def one(seed, **given):
    with Recorder(root, params={{"lr": 0.1}}, seed=seed, **given) as made:
        for step in range(3):
            made.scalars(step, train={{"loss": seed + step}})

for number in range({PROCESSES}):
    if os.fork() == 0:
        for i in range({EACH}):
            one({EACH} * number + i)
        try:
            one(99)
        except RecordError:
            os._exit(7)
        os._exit(0)
codes = sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range({PROCESSES}))
recorder.FIRST_PUBLISH_SECONDS = 0.0
last = Recorder(root, params={{"lr": 0.1}}, seed=100).open()
last.scalars(0, train={{"loss": 1.0}})
print(codes, flush=True)
signal.pause()
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, list[str]]:
    """A folder to which four processes have recorded at once, and one that was killed midway."""
    root = tmp_path_factory.mktemp("shared") / "mine"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=root.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    codes = process.stdout.readline().strip()
    refused = problems(Recorder(root, params={"lr": 0.1}, seed=100).open)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # which closes the pipe
    return root, codes, refused


def test_processes_that_record_at_once_lose_and_double_nothing(
    shared: tuple[Path, str, list[str]],
) -> None:
    """Each seed has one result with its own rows; of four recordings of one trial one is kept.

    Not one of the packages that orchestrate can be imported there.
    """
    root, codes, _ = shared
    results = Results.open(root)

    rows = results.trials().select(["seed", "status", "attempt"]).to_pylist()

    seeds = [*range(PROCESSES * EACH), 99]
    assert sorted(row["seed"] for row in rows) == seeds
    assert {row["status"] for row in rows} == {"completed"}
    # Whoever comes while another records, or after it has, is refused.
    assert codes == "[0, 7, 7, 7]"
    assert results.sql(
        "SELECT seed, list(value ORDER BY step) AS losses "
        "FROM scalars JOIN trials USING (trial_id) GROUP BY seed ORDER BY seed"
    ).to_pylist() == [{"seed": s, "losses": [s, s + 1.0, s + 2.0]} for s in seeds]
    assert results.trials(history=True).num_rows == len(seeds)
    assert verify(root).damage == []


def test_a_process_that_is_killed_leaves_nothing_that_counts(
    shared: tuple[Path, str, list[str]], tmp_path: Path
) -> None:
    """While it lived its trial was taken; afterwards it can be recorded as if nothing had been."""
    root, _, refused = shared
    trial_id = Recorder(root, params={"lr": 0.1}, seed=100).trial_id

    assert refused == [
        f"trial {trial_id} (lr=0.1 seed=100) is being recorded right now, by another process or "
        "another Recorder of this one: end that, or give this one another seed"
    ]
    assert 100 not in Results.open(root).trials()["seed"].to_pylist()
    live = Results.open(root, running=True).trials().to_pylist()
    assert [row["seed"] for row in live if row["status"] == "running"] == [100]
    with Recorder(root, params={"lr": 0.1}, seed=100) as one:
        for step in range(3):
            one.scalars(step, train={"loss": 5.0})
    row = Results.open(root).sql("SELECT * FROM trials WHERE seed = 100").to_pylist()[0]
    assert (row["status"], row["attempt"]) == ("completed", 2)
    assert Results.open(root).scalars(trial_id=trial_id)["value"].to_pylist() == [5.0] * 3
    report = verify(root)
    assert report.damage == []
    assert (
        "1 shard that no commit names: of attempts that are running or were lost"
        in report.information
    )


# --- which folder -----------------------------------------------------------------------------

SWEEP = "name: grokking\ntask: modular_addition\nbase: {steps: 1}\n"


def test_a_folder_of_a_sweep_is_refused(tmp_path: Path) -> None:
    """And stays as it was."""
    sweep = parse(f"{SWEEP}storage: {tmp_path}\n")
    Session.claim(sweep).close()
    before = sorted(tmp_path.rglob("*"))

    assert problems(lambda: Recorder(sweep.root)) == [
        "it holds the sweep 'grokking': give a Recorder a folder of its own"
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_into_a_recorded_folder_is_refused(tmp_path: Path) -> None:
    """Even if the recorded thing has the name of the sweep's task."""
    record(tmp_path / "grokking", name="modular_addition")
    sweep = parse(f"{SWEEP}storage: {tmp_path}\n")

    with pytest.raises(SweepError) as caught:
        check_owner(sweep)

    assert str(caught.value) == (
        f"<string>: 1 problem\n  {sweep.root} holds trials that a Recorder recorded; choose "
        "another name or storage"
    )


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    """Files of the user's are in no danger."""
    (tmp_path / "thesis.tex").write_text("")

    assert problems(lambda: Recorder(tmp_path)) == [
        "it exists and is not a results folder: give another one"
    ]
    assert problems(lambda: Recorder(tmp_path / "thesis.tex")) == [
        "it is not a folder: give another one"
    ]


def test_a_folder_keeps_to_what_is_trained_in_it(tmp_path: Path) -> None:
    """Other models are recorded elsewhere; a folder may be renamed and goes on."""
    record(tmp_path / "mine", name="resnet")
    assert problems(lambda: record(tmp_path / "mine", name="vgg")) == [
        "it holds trials of 'resnet', not of 'vgg': give another folder"
    ]

    (tmp_path / "mine").rename(tmp_path / "moved")
    record(tmp_path / "moved", seed=1)

    assert Results.open(tmp_path / "moved").task == "resnet"
    assert statuses(tmp_path / "moved") == ["completed"] * 2


# --- everything after it ----------------------------------------------------------------------


@pytest.mark.mlflow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of MLflow's own dependencies
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_what_works_on_a_sweep_works_on_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trends, plots, every reading command, and MLflow: a second time changes nothing."""
    from orchestrator import cli

    root = tmp_path / "mine"
    for seed in range(2):
        for decay in (0.0, 1.0):
            record(root, seed=seed, params={"weight_decay": decay}, loss=1.0 + seed + decay)

    def sweep(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sweep", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().out  # type: ignore[return-value]

    assert sweep("status", str(root))[1].split("\n")[:2] == ["trials     4", "completed  4"]
    assert sweep("verify", str(root))[1].endswith("\nintact\n")
    shown = Recorder(root, params={"weight_decay": 1}).trial_id
    assert "weight_decay=1.0" in sweep("show", str(root), shown[:8])[1]
    # 4 trials, 2 means, 1 of all
    assert "7 runs written, 0 unchanged" in sweep("track", str(root))[1]
    assert sweep("export", str(root), str(tmp_path / "out"))[0] == 0
    assert (tmp_path / "out" / "scalars.parquet").is_file()
    paired = Results.open(root).trends(kind="paired", metric="loss")
    assert paired["value"].to_pylist() == [1.0]  # the loss grows by 1 with the weight decay
    assert list((root / "report").glob("*.png"))

    record(root, seed=2, params={"weight_decay": 0.0}, steps=1)  # no mean, but a run of its own
    code, said = sweep("track", str(root))
    assert (code, " runs written, " in said) == (2, True)


def test_damage_says_how_a_trial_is_recorded_again(tmp_path: Path) -> None:
    """There is no sweep file that could be run."""
    root = tmp_path / "mine"
    trial_id = record(root)
    [shard] = (root / "scalars").iterdir()
    shard.unlink()
    [announced] = (root / "recorded").iterdir()

    assert verify(root).damage == [
        f"{shard} is missing, although a commit names it: trial {trial_id} loses its rows of "
        f"scalars; restore the file from a backup, or record it again, with again=True: trial "
        f"{trial_id}"
    ]
    announced.write_text(announced.read_text().replace('"seed": 0', '"seed": 1'))
    assert verify(root).damage[0] == (
        f"{announced} is damaged: its content does not match its checksum. No result of this store "
        "is read until it is restored from a backup."
    )


def test_a_committed_trial_without_its_announcement_is_damage(tmp_path: Path) -> None:
    """Its result is passed over by readers; who records it again brings it back."""
    root = tmp_path / "mine"
    record(root, seed=0)
    trial_id = record(root, seed=1)
    announced = root / "recorded" / f"{trial_id}.json"
    announced.unlink()

    assert len(statuses(root)) == 1
    assert verify(root).damage == [
        f"{announced} is missing, although trial {trial_id} was committed: no result of that trial "
        "is read until it is restored from a backup, or written again by opening a Recorder with "
        "the same name, parameters and seed."
    ]

    assert "is recorded already" in problems(lambda: record(root, seed=1))[0]
    assert len(statuses(root)) == 2
    assert verify(root).damage == []


def test_an_announcement_under_another_name_is_damage(tmp_path: Path) -> None:
    """Its checksum is right: a file that was copied, or renamed."""
    root = tmp_path / "mine"
    trial_id = record(root)
    moved = root / "recorded" / f"{'0' * 16}.json"
    recorded.path_of(root, trial_id).rename(moved)

    assert (
        f"{moved} is damaged: it says that it is of trial {trial_id}. No result of this store "
        "is read until it is restored from a backup." in verify(root).damage
    )
    with pytest.raises(StoreError) as caught:
        Results.open(root)
    assert str(caught.value) == f"{moved} is damaged: it says that it is of trial {trial_id}"


def test_seeds_recorded_at_unequal_steps_have_no_mean(tmp_path: Path) -> None:
    """Early stopping is no error of the recorder; who averages is told which trials differ."""
    record(tmp_path / "mine", seed=0, steps=2)
    record(tmp_path / "mine", seed=1, steps=3)

    with pytest.raises(ValueError, match=r"lacks train loss at 1 of 3 steps, the first is 2"):
        ensure(Store.open(tmp_path / "mine"))


# --- the model --------------------------------------------------------------------------------


def test_a_snapshot_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Modes, gradients, buffers, weights and generators, also where a forward pass is needed."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5), nn.Flatten())
    model[2].eval()
    model(torch.ones(1, 1, 5, 5)).sum().backward()
    modes = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    groups = ["ranks", "spectrum", "agreement", "update", "operator"]
    with Recorder(tmp_path / "x", measure=groups, example=torch.ones(1, 1, 5, 5)) as one:
        for step in range(2):
            one.snapshot(model, step)

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(found) == len(grads)
    assert all(map(torch.equal, found, grads))
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert np.random.get_state()[1].tolist() == generators[1]
    assert random.getstate() == generators[2]


@pytest.mark.parametrize("groups", [["ranks", "spectrum"], ["agreement", "update"]])
def test_the_default_device_of_a_loop_does_not_matter(tmp_path: Path, groups: list[str]) -> None:
    """Tensors of our own do not go where a loop lets its new ones go."""
    ids = []
    for seed, device in enumerate(("cpu", "meta")):
        model = diagonal(3.0, 1.0)
        with Recorder(tmp_path / "x", seed=seed, measure=groups) as one, torch.device(device):
            for step in range(2):
                one.snapshot(model, step)
                model.weight.data.mul_(2)
        ids.append(one.trial_id)

    there, here = (Results.open(tmp_path / "x").scalars(trial_id=each) for each in ids)
    columns = ["step", "subject", "metric", "value", "lower", "upper"]
    assert here.select(columns).equals(there.select(columns))
    assert here.num_rows > 0


def test_a_snapshot_that_the_storage_refused_can_be_taken_again(tmp_path: Path) -> None:
    """Once, with what it would have been: the update since the snapshot before, 6 - 3 = 3."""
    root, model = tmp_path / "mine", diagonal(3.0, 1.0)
    with Recorder(root, measure={"groups": ["ranks", "agreement", "update"]}) as one:
        one.snapshot(model, 0)
        model.weight.data *= 2
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as on a full disk
        try:
            with pytest.raises(StoreError, match="File too large"):
                one.snapshot(model, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        one.snapshot(model, 1)

    results = Results.open(root)
    norms = results.scalars(metric="norm/spectral")
    assert norms["step"].to_pylist() == [0, 1]
    assert norms["value"].to_pylist() == pytest.approx([3.0, 6.0])
    update = results.scalars(metric="update_norm/spectral", step=1)
    assert update["value"].to_pylist() == pytest.approx([3.0])


def test_complex_matrices_are_left_out_with_a_warning(tmp_path: Path) -> None:
    """And a model that has no other is told so."""
    model = nn.Module()
    model.real = diagonal(2.0, 1.0)
    model.wave = nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    parts = "give snapshot() a mapping of names to their real and imaginary parts, with views"

    with Recorder(tmp_path / "mine") as one, pytest.warns(UserWarning, match="wave") as caught:
        one.snapshot(model, 0)

    assert [(str(each.message), each.filename) for each in caught] == [
        (f"complex matrices are left out: wave. To measure them, {parts}", __file__)
    ]
    assert subjects(tmp_path / "mine") == ["real"]
    del model.real
    with Recorder(tmp_path / "mine", seed=1) as one:
        one.scalars(0, train={"loss": 1.0})
        assert problems(lambda: one.snapshot(model, 0)) == [
            f"the model has no real matrix, and wave are complex: {parts}"
        ]


def subjects(root: Path) -> list[str]:
    rows = Results.open(root).spectra(quantity="singular_values", step=0)
    return rows["subject"].to_pylist()


@pytest.mark.parametrize("wrap", ["plain", "compiled", "data parallel", "ddp"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_what_wraps_a_model_changes_no_name(tmp_path: Path, wrap: str) -> None:
    """torch.compile and its parallel twins put words in front of the names, or in their middle."""
    model: Any = nn.Sequential(diagonal(2.0, 1.0), nn.ReLU(), diagonal(4.0, 3.0))
    try:
        if wrap == "compiled":
            model[2] = torch.compile(model[2])
            model = torch.compile(model)
        elif wrap == "data parallel":
            model = nn.DataParallel(model)
        elif wrap == "ddp":
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
            model = nn.parallel.DistributedDataParallel(model)
        with Recorder(tmp_path / "mine") as one:
            one.snapshot(model, 0)
    finally:
        if wrap == "ddp":
            torch.distributed.destroy_process_group()

    assert subjects(tmp_path / "mine") == ["0", "2"]


def test_tied_frozen_and_quantised_weights(tmp_path: Path) -> None:
    """A tied matrix is one matrix, a frozen one is measured, integers are left out."""
    model = nn.Module()
    model.embedding = nn.Embedding(3, 2)
    model.head = nn.Linear(2, 3, bias=False)
    model.head.weight = model.embedding.weight
    model.frozen = diagonal(1.0, 2.0).requires_grad_(False)
    model.codes = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)

    with Recorder(tmp_path / "mine") as one:
        one.snapshot(model, 0)

    assert subjects(tmp_path / "mine") == ["embedding", "frozen"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_measured_as_it_is_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    """Within the stated bounds of torch's own decomposition in float64, also under autocast."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 4).to(dtype)

    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        Recorder(tmp_path / "mine", measure=["spectrum"]) as one,
    ):
        one.snapshot(layer, 0)

    [row] = Results.open(tmp_path / "mine").spectra().to_pylist()
    truth = torch.linalg.svdvals(layer.weight.detach().double()).numpy()
    assert np.all(np.abs(np.array(row["values"]) - truth) <= np.array(row["bounds"]) + 1e-14)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_loop_on_a_gpu_is_recorded_without_waiting(tmp_path: Path) -> None:
    """More numbers than may wait, and snapshots that are finished beside the loop."""
    model = nn.Sequential(diagonal(3.0, 1.0)).cuda()
    total = torch.zeros((), device="cuda")

    with Recorder(tmp_path / "mine", measure=["ranks", "agreement"]) as one:
        for step in range(1500):
            one.scalars(step, train={"loss": total})
            total += 1
            if step % 500 == 0:
                one.snapshot(model, step)
                model[0].weight.data *= 2

    results = Results.open(tmp_path / "mine")
    assert results.trials()["device"].to_pylist() == ["cuda"]
    assert results.scalars(metric="loss")["value"].to_pylist() == [float(i) for i in range(1500)]
    norms = results.scalars(metric="norm/spectral")["value"].to_pylist()
    assert norms == pytest.approx([3.0, 6.0, 12.0])


def test_views_and_couplings_that_are_given(tmp_path: Path) -> None:
    """Both matrices are diagonal: the first one's outputs meet the second's inputs exactly."""
    views = [MatrixView("first", "0.weight"), MatrixView("second", "2.weight")]
    meet = Coupling(CouplingEnd("first", "left"), CouplingEnd("second", "right"), length=3)
    model = nn.Sequential(diagonal(3.0, 2.0, 1.0), nn.ReLU(), diagonal(9.0, 5.0, 4.0))

    with Recorder(tmp_path / "mine", measure=["alignment"], views=views, couplings=[meet]) as one:
        one.snapshot(model, 0)
        one.snapshot(dict(model.named_parameters()), 1)

    rows = Results.open(tmp_path / "mine").scalars(metric="alignment").to_pylist()
    assert [row["subject"] for row in rows] == ["first->second"] * 2
    assert [row["value"] for row in rows] == pytest.approx([1.0, 1.0], abs=1e-6)


def test_the_measure_of_a_sweep_file_is_taken(tmp_path: Path) -> None:
    """Patterns choose matrices; the vectors that are kept can be read; agreement knows the end."""
    model = nn.Sequential(diagonal(3.0, 2.0, 1.0), nn.ReLU(), diagonal(9.0, 5.0, 4.0))
    measure = {"groups": ["agreement", "update"], "views": ["2"], "keep": "final"}

    with Recorder(tmp_path / "mine", measure=measure) as one:
        for step in range(3):
            one.snapshot(model, step)
            model[2].weight.data *= 2

    results = Results.open(tmp_path / "mine")
    assert set(results.scalars()["subject"].to_pylist()) == {"2"}
    final = results.scalars(metric="agreement/final")
    assert final["value"].to_pylist() == pytest.approx([1.0] * 3, abs=1e-6)
    update = results.scalars(metric="update_norm/spectral", step=1)
    assert update["value"].to_pylist() == pytest.approx([9.0])
    assert list(results.factors(one.trial_id)) == [(2, "2")]


def test_a_convolution_as_an_operator_needs_an_example(tmp_path: Path) -> None:
    """A 1 x 1 convolution by 2 doubles every entry: all its singular values are 2."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False))
    model[0].weight.data.fill_(2.0)

    with Recorder(tmp_path / "mine", measure=["operator"], example=torch.ones(1, 1, 3, 3)) as one:
        one.snapshot(model, 0)

    [row] = Results.open(tmp_path / "mine").spectra().to_pylist()
    assert row["values"] == pytest.approx([2.0] * 9)


# --- what is refused --------------------------------------------------------------------------


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Before anything is written."""
    root = tmp_path / "mine"
    given: dict[str, Any] = {
        "params": {
            "seed": 1,
            "Status": 1,
            "lr": math.inf,
            "LR": 1,
            "opt": {"lr": 1},
            "path": Path("data"),
            "big": 2**70,
            "a b": 1,
            "list": [1, object],
        },
        "seed": -1,
        "measure": {"groups": ["rank"], "vectors": 0},
        "couplings": ["a->b"],
    }
    accepted = "a number, a text, true, false, None or a list of them"
    name = "a name of at most 100 characters A-Z, a-z, 0-9, _, . and -"

    assert sorted(problems(lambda: Recorder(root, **given))) == sorted(
        [
            "expected a whole number >= 0, got -1  @ seed",
            "mine has a parameter 'seed', a column of the trials table: rename it  @ params.seed",
            "mine has a parameter 'Status', a column of the trials table: rename it"
            "  @ params.Status",
            "expected a finite number, got inf  @ params.lr",
            "LR and lr differ in upper and lower case only: rename one  @ params.LR",
            f"expected {accepted}, got a mapping: give its entries names of their own"
            "  @ params.opt",
            f"expected {accepted}, got PosixPath('data') (PosixPath): give a text of it"
            "  @ params.path",
            "expected a number that fits 64 bits, got 1180591620717411303424  @ params.big",
            f"expected {name}, got 'a b'  @ params['a b']",
            f"expected {accepted}, got <class 'object'> (type): give a text of it  @ params.list",
            "expected a spectral.Coupling, got 'a->b'  @ couplings[0]",
            "unknown measurement 'rank' (did you mean ranks?): one of ranks, spectrum, alignment, "
            "agreement, pruned, update, operator  @ measure.groups[0]",
            "expected a whole number >= 1, got 0  @ measure.vectors",
            "couplings have no effect: add alignment to measure",
        ]
    )
    assert not root.exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"measure": ["pruned"]},
            "pruned models are evaluated by a task, which a Recorder has not: leave pruned out of "
            "measure, or write a task",
        ),
        (
            {"measure": ["alignment"]},
            "alignment needs to know which matrices meet: give couplings=[...]",
        ),
        ({"measure": ["operator"]}, "operator needs an input of the model: give example=..."),
        ({"example": torch.ones(1)}, "example has no effect: add operator to measure"),
        (
            {"measure": "ranks"},
            "expected a list of measurements, or a mapping of groups, vectors, views, residual, "
            "heads, keep, workspace and pruned, got 'ranks': write [ranks]  @ measure",
        ),
        ({"params": [1]}, "expected a mapping of parameters to values, got [1]  @ params"),
        (
            {"name": "a/b"},
            "expected a name of at most 100 characters A-Z, a-z, 0-9, _, . and -, got 'a/b'"
            "  @ name",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(
    tmp_path: Path, given: dict[str, Any], said: str
) -> None:
    """Says what to do instead."""
    assert problems(lambda: Recorder(tmp_path / "mine", **given)) == [said]


def test_parameters_that_no_file_could_hold_are_refused(tmp_path: Path) -> None:
    """Control characters and noncharacters, and a list that holds itself."""
    itself: list[Any] = [1]
    itself.append(itself)
    params = {"a": "x\0y", "b": "\ufffe", "c": "\ud800", "d": "two\nlines", "e": itself}

    said = "expected a text of printable characters, got {}: give a text without control "
    said += "characters, such as a name for it  @ params.{}"
    assert problems(lambda: Recorder(tmp_path / "mine", params=params)) == [
        *(said.format(repr(params[name]), name) for name in "abcd"),
        "expected lists in lists at most 20 deep, got deeper ones  @ params.e",
    ]


def test_a_folder_whose_name_is_no_name_needs_one(tmp_path: Path) -> None:
    """MLflow would refuse it much later."""
    assert problems(lambda: Recorder(tmp_path / "my results")) == [
        "expected a name of at most 100 characters A-Z, a-z, 0-9, _, . and -, got 'my results', "
        "the name of the folder: give name=...  @ name"
    ]


def test_a_reserved_parameter_is_named_also_where_the_folder_gives_no_name(tmp_path: Path) -> None:
    """Both are said at once, and neither message begins with a name that is not there."""
    found = problems(lambda: Recorder(tmp_path / "my results", params={"seed": 1}))

    assert sorted(found)[1:] == [
        "the trial has a parameter 'seed', a column of the trials table: rename it  @ params.seed"
    ]
    assert len(found) == 2


def test_numbers_that_cannot_be_recorded_are_refused(tmp_path: Path) -> None:
    """All of a call at once, and then nothing of it is recorded."""
    with Recorder(tmp_path / "mine") as one:
        one.scalars(5, train={"loss": 1.0, "a/b": 1.0})
        bad: dict[str, Any] = {
            "loss": 1.0,
            "none": None,
            "text": "1.0",
            "vector": torch.ones(2),
            "a_b": 1.0,
            " ": 1.0,
        }
        assert problems(lambda: one.scalars(5, train=bad, val=3.0, test={"error": 0.1})) == [
            "train/loss: steps must grow: 5 comes after 5",
            "train/none: expected a number, got null",
            "train/text: expected a number, got '1.0'",
            "train/vector: expected a real number, got a tensor of torch.float32 with the shape "
            "(2,)",
            "train/a_b: it differs from train/a/b in / and _ only: rename one",
            "expected the name of a metric, a text of at most 200 characters, got ' '",
            "val: expected a mapping of metrics to numbers, got 3.0",
        ]
        for step in (-1, True, 0.5, "1"):
            assert problems(lambda step=step: one.scalars(step, train={"x": 1.0})) == [
                f"expected a step, a whole number >= 0, got {show(step)}"
            ]
        one.snapshot(diagonal(1.0, 2.0), 3)
        assert problems(lambda: one.snapshot(diagonal(1.0, 2.0), 3)) == [
            "steps must grow: 3 comes after 3"
        ]

    rows = Results.open(tmp_path / "mine").scalars(subject="train")
    assert rows["metric"].to_pylist() == ["loss", "a/b"]


def test_numbers_of_other_libraries_are_numbers(tmp_path: Path) -> None:
    """As the plain ones that they hold: True is 1; what is complex or too large is refused."""
    with Recorder(tmp_path / "mine") as one:
        one.scalars(0, val={"a": np.bool_(True), "b": True, "c": np.array([2.5]), "d": 10**30})
        bad: dict[str, Any] = {"a": np.complex64(1), "b": 1j, "c": 10**400, "d": 10**5000}
        far = "expected a number, got one beyond the range of float64"
        assert problems(lambda: one.scalars(1, val=bad)) == [
            f"val/a: expected a number, got {show(np.complex64(1))}",
            "val/b: expected a number, got 1j",
            f"val/c: {far}",
            f"val/d: {far}",
        ]
        assert problems(lambda: one.scalars(1, val={"a": torch.ones((), device="meta")})) == [
            "val/a: expected a number, got a tensor on the device meta, which has none"
        ]

    values = Results.open(tmp_path / "mine").scalars(subject="val")["value"].to_pylist()
    assert values == [1.0, 1.0, 2.5, 1e30]


def test_a_split_and_a_matrix_do_not_share_a_metric(tmp_path: Path) -> None:
    """Whichever comes first; metrics that snapshots do not measure may have any split."""
    model = nn.ModuleDict({"val": diagonal(2.0, 1.0)})
    with Recorder(tmp_path / "mine") as one:
        one.scalars(0, val={"loss": 1.0})
        one.snapshot(model, 0)
        assert problems(lambda: one.scalars(1, val={"loss": 1.0, "effective_rank": 2.0})) == [
            "val/effective_rank: snapshots measure this of a matrix called val: rename the split"
        ]
    with Recorder(tmp_path / "mine", seed=1) as one:
        one.scalars(0, val={"loss": 1.0, "effective_rank": 2.0})
        assert problems(lambda: one.snapshot(model, 0)) == [
            "scalars() has recorded val/effective_rank, which snapshots measure of a matrix of "
            "that name: give the split or the metric another name"
        ]


def of_head(**fields: Any) -> Coupling:
    ends = CouplingEnd("0", "left"), CouplingEnd("1", "right")
    return Coupling(*ends, length=2, per_head=True, **fields)


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        (nn.ReLU(), {}, ["the model has no parameters"]),
        (5, {}, ["expected a torch.nn.Module or a mapping of names to tensors, got 5"]),
        (
            {"weight": np.ones((2, 2))},
            {"views": [MatrixView("a", "weight")]},
            ["parameter 'weight': expected a torch.Tensor, got ndarray"],
        ),
        (
            {0: torch.ones(2, 2)},
            {"views": [MatrixView("a", "0")]},
            ["expected the names of tensors as texts, got 0"],
        ),
        (
            nn.Linear(2, 2, device="meta"),
            {},
            [
                "parameter 'weight' is on the device meta, where it has no entries: materialise "
                "the weights, or give snapshot() a mapping of names to tensors that have them"
            ],
        ),
        (
            nn.LayerNorm(3),
            {},
            [
                "the model has no matrix: no parameter of two dimensions or more. If its weights "
                "are sharded (FSDP, ZeRO-3), gather them, and give snapshot() a mapping of names "
                "to whole tensors, with views"
            ],
        ),
        (
            nn.Sequential(nn.Linear(2, 2)),
            {"measure": {"groups": ["ranks"], "views": ["head*", "0", "x"]}},
            [
                "views: no matrix is called 'head*'; there are 0",
                "views: no matrix is called 'x'; there are 0",
            ],
        ),
        (
            {"weight": torch.ones(2, 2)},
            {},
            ["tensors by name do not say which are matrices: give views=[...]"],
        ),
        (
            nn.Sequential(nn.Linear(2, 2)),
            {"views": [MatrixView("a", "0.weight"), MatrixView("b", "1.weight")]},
            ["matrix view 'b': there is no parameter '1.weight'; there are 0.bias, 0.weight"],
        ),
        (
            nn.Sequential(nn.Conv2d(1, 1, 1)),
            {
                "measure": ["alignment"],
                "couplings": [
                    Coupling(
                        CouplingEnd("0", "left"),
                        CouplingEnd("0", "right"),
                        length=1,
                        residual=True,
                    )
                ],
            },
            [
                "alignment: no coupling is left: residual ones are measured with residual: True, "
                "and views must choose both matrices"
            ],
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            {"measure": ["alignment"], "couplings": [of_head(), of_head(residual=True, name="r")]},
            [
                "alignment: no coupling is left: those per head are measured with heads: True, and "
                "residual ones are measured with residual: True, and views must choose both "
                "matrices"
            ],
        ),
        (
            nn.Sequential(nn.Linear(2, 2)),
            {"views": [MatrixView("a", "0.weight", on_demand=True)]},
            [
                "views: all matrices are on demand, and no coupling that is measured has one: give "
                "couplings=[...]"
            ],
        ),
        (
            nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
            {
                "measure": {"groups": ["alignment"], "views": ["0", "1", "part"]},
                "views": [
                    *(MatrixView(str(i), f"{i}.weight") for i in range(2)),
                    MatrixView("part", "1.weight", columns=(0, 1), on_demand=True),
                ],
                "couplings": [
                    Coupling(CouplingEnd("0", "left"), CouplingEnd("1", "right"), length=2),
                    Coupling(
                        CouplingEnd("0", "left", entries=(0, 1)),
                        CouplingEnd("part", "right"),
                        length=2,
                        per_head=True,
                    ),
                ],
            },
            [
                "views: all matrices called 'part' are on demand, and no coupling that is measured "
                "has one: those per head are measured with heads: True, and views must choose both "
                "matrices"
            ],
        ),
    ],
)
def test_a_model_that_cannot_be_measured_is_refused(
    tmp_path: Path, model: Any, given: dict[str, Any], said: list[str]
) -> None:
    """At the first snapshot, before hours of training."""
    with Recorder(tmp_path / "mine", **given) as one:
        one.scalars(0, train={"loss": 1.0})
        assert problems(lambda: one.snapshot(model, 0)) == said


def test_a_recorder_is_used_once_and_inside_its_block(tmp_path: Path) -> None:
    """A closed one would record into nothing."""
    one = Recorder(tmp_path / "mine")
    outside = ["it is not open: use it as `with Recorder(...) as recorder:`"]
    assert problems(lambda: one.scalars(0, train={"loss": 1.0})) == outside
    with one:
        one.scalars(0, train={"loss": 1.0})
    one.close()  # again: nothing

    assert problems(lambda: one.snapshot(diagonal(1.0), 1)) == outside
    assert problems(one.open) == [
        "it has been opened before: a Recorder records one trial, make a new one"
    ]


# --- distributed training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "records"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "3", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"NODE_RANK": "1", "SLURM_PROCID": "1"}, True),
        ({"RANK": "\u00b2"}, True),  # a digit, and no number
    ],
)
def test_only_rank_0_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], records: bool
) -> None:
    """The others run the same lines, to no effect."""
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    record(tmp_path / "mine", steps=1)

    assert (tmp_path / "mine").exists() is records


def test_processes_that_train_apart_can_all_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher's ranks may be independent trials; `enabled` says so, either way."""
    monkeypatch.setenv("RANK", "1")

    record(tmp_path / "mine", seed=1, steps=1, enabled=True)
    record(tmp_path / "mine", seed=0, steps=1, enabled=False)

    assert Results.open(tmp_path / "mine").trials()["seed"].to_pylist() == [1]


def test_a_notebook_is_recorded_with_the_state_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python was started with is its kernel then, a file of the installation."""
    kernel = Path(nn.__file__)
    assert Path(sys.prefix).resolve() in kernel.resolve().parents
    monkeypatch.setattr(sys, "argv", [str(kernel)])
    monkeypatch.chdir(tmp_path)

    assert recorder_fields.origin() == {
        **environment.git_facts(tmp_path),
        "recorded_by": "__init__.py",
    }
