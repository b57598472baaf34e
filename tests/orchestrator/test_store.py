"""What counts in a store: epochs, segments, commits and the rows they select."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from orchestrator import files
from orchestrator.errors import DamageError, StoreError
from orchestrator.schemas import commit_table, seal
from orchestrator.store import Store
from tests.stores import START, STEPS, FakeTrial, accept, build_store, commit_row, loss_value

ONE = FakeTrial(seed=0, params={"weight_decay": 1.0})
TWO = FakeTrial(seed=1, params={"weight_decay": 1.0})


def segment(root: Path, epoch: int, sequence: int, rows: list[dict[str, Any]]) -> None:
    name = f"{epoch:06d}-{sequence:06d}.arrow"
    payload = seal(commit_table([{**row, "epoch": epoch} for row in rows]))
    files.publish(root / "trials" / name, payload)


def claim(root: Path, epoch: int, seen: dict[int, int], rerun: tuple[str, ...] = ()) -> None:
    facts = {
        "format": 1,
        "sweep": 1,
        "seen": {str(k): v for k, v in seen.items()},
        "rerun": list(rerun),
        "started_at": START.isoformat(),
    }
    files.publish(root / "epochs" / f"{epoch:06d}.json", files.seal_json(facts))


def ids(table: pa.Table) -> list[str]:
    return list(table["trial_id"].to_pylist())


def test_rows_come_back_as_they_were_measured(tmp_path: Path) -> None:
    """The formula that wrote the rows is the truth for those read."""
    store = build_store(tmp_path / "s", [ONE, TWO])

    rows = store.scan("scalars", store.outcomes(), subjects=["train"], metrics=["loss"])

    found = {(r["trial_id"], r["step"]): r["value"] for r in rows.to_pylist()}
    assert found == {
        (t.trial_id, step): loss_value(step, 1.0, t.seed) for t in (ONE, TWO) for step in STEPS
    }


def test_a_commit_selects_only_its_own_trials_rows(tmp_path: Path) -> None:
    """A neighbour in the same shard stays invisible until its own commit."""
    root = tmp_path / "s"
    build_store(root, [ONE, TWO], committed=False)
    row = commit_row(root, ONE)
    other = commit_row(root, TWO)
    segment(root, 1, 1, [{**row, "shards": row["shards"] + other["shards"]}])
    store = Store.open(root)

    assert ids(store.outcomes()) == [ONE.trial_id]
    assert set(ids(store.scan("scalars", store.outcomes()))) == {ONE.trial_id}
    assert set(ids(store.scan("spectra", store.outcomes()))) == {ONE.trial_id}


def test_a_segment_written_after_the_next_epoch_was_claimed_never_counts(tmp_path: Path) -> None:
    """A driver thought dead that wakes up cannot change a result, in any later epoch either."""
    root = tmp_path / "s"
    store = build_store(root, [ONE])
    claim(root, 2, seen={1: 1})
    segment(root, 1, 2, [commit_row(root, TWO)])  # the zombie of epoch 1

    assert ids(store.outcomes("all")) == [ONE.trial_id]

    claim(root, 3, seen={1: 1, 2: 0})
    assert ids(store.outcomes("all")) == [ONE.trial_id]
    segment(root, 3, 1, [commit_row(root, TWO, epoch=3)])
    assert ids(store.outcomes("all")) == [ONE.trial_id, TWO.trial_id]


def test_the_first_counted_result_wins_and_failures_are_history(tmp_path: Path) -> None:
    """`failed` and `lost` rows are kept but are never a result; a second result changes nothing."""
    root = tmp_path / "s"
    store = build_store(root, [])
    failed = {**commit_row(root, ONE), "status": "failed", "attempt": 1}
    lost = {**commit_row(root, ONE), "status": "lost", "attempt": 2}
    first = {**commit_row(root, ONE), "status": "diverged", "attempt": 3}
    second = {**commit_row(root, ONE), "status": "completed", "attempt": 4}
    segment(root, 1, 1, [failed, lost])
    segment(root, 1, 2, [first, second])

    outcomes = store.outcomes("all")

    assert outcomes["attempt"].to_pylist() == [3]
    assert outcomes["status"].to_pylist() == ["diverged"]
    assert store.commits()["attempt"].to_pylist() == [1, 2, 3, 4]


def test_a_rerun_fences_off_earlier_results(tmp_path: Path) -> None:
    """From the epoch that names a trial in `rerun`, only commits of that epoch on are results."""
    root = tmp_path / "s"
    store = build_store(root, [ONE, TWO])
    claim(root, 2, seen={1: 1}, rerun=(ONE.trial_id,))

    assert ids(store.outcomes()) == [TWO.trial_id]

    segment(root, 2, 1, [commit_row(root, ONE, epoch=2)])
    outcomes = store.outcomes()
    assert ids(outcomes) == [ONE.trial_id, TWO.trial_id]
    assert outcomes["epoch"].to_pylist() == [2, 1]


def test_the_newest_file_sets_scope_and_order(tmp_path: Path) -> None:
    """Trials that the newest sweep file does not name are there under scope "all" only."""
    root = tmp_path / "s"
    store = build_store(root, [ONE, TWO])
    accept(root, 2, files.unseal_json(root / "sweep" / "1.json"), [TWO.trial_id])

    assert ids(store.outcomes("newest")) == [TWO.trial_id]
    assert ids(store.outcomes("all")) == [TWO.trial_id, ONE.trial_id]


def test_a_missing_segment_is_damage_not_silence(tmp_path: Path) -> None:
    """Results must not vanish because a file did."""
    root = tmp_path / "s"
    store = build_store(root, [ONE])
    segment(root, 1, 2, [commit_row(root, TWO)])
    (root / "trials" / "000001-000001.arrow").unlink()

    with pytest.raises(DamageError) as caught:
        store.commits()
    assert str(caught.value) == (
        f"{root / 'trials'} is damaged: segment 000001-000001.arrow is missing. Restore it from a "
        "backup, or run the sweep again under a new name."
    )


def test_hidden_files_are_invisible(tmp_path: Path) -> None:
    """A write that was cut short leaves a name that no reader looks at."""
    root = tmp_path / "s"
    store = build_store(root, [ONE])
    (root / "trials" / ".000001-000002.arrow.abcd1234").write_bytes(b"half")
    (root / "epochs" / ".000002.json.abcd1234").write_bytes(b"{")

    assert ids(store.outcomes()) == [ONE.trial_id]


def test_an_altered_shard_is_refused_by_name(tmp_path: Path) -> None:
    """A reader never guesses: the message names the file and how it differs."""
    root = tmp_path / "s"
    store = build_store(root, [ONE])
    [shard] = (root / "scalars").iterdir()
    intact = shard.read_bytes()

    shard.write_bytes(intact[:-1])
    with pytest.raises(DamageError) as caught:
        store.scan("scalars", store.outcomes())
    assert str(caught.value) == (
        f"{shard} is damaged: {len(intact) - 1} bytes where {len(intact)} were committed"
    )

    flipped = bytearray(intact)
    flipped[len(intact) // 2] ^= 4
    shard.write_bytes(flipped)
    with pytest.raises(DamageError) as caught:
        store.scan("scalars", store.outcomes())
    assert str(caught.value) == f"{shard} is damaged: its content does not match its checksum"

    shard.unlink()
    with pytest.raises(DamageError) as caught:
        store.scan("scalars", store.outcomes())
    assert str(caught.value) == f"{shard} is missing, although a commit names it"


def test_every_flipped_bit_of_a_segment_is_noticed(tmp_path: Path) -> None:
    """Segments carry their own checksum, because nothing else names them."""
    root = tmp_path / "s"
    build_store(root, [ONE])
    path = root / "trials" / "000001-000001.arrow"
    intact = path.read_bytes()
    for position in range(0, len(intact), 3):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)

        with pytest.raises(DamageError, match=r"000001-000001\.arrow is damaged"):
            Store.open(root).commits()


def test_running_trials_are_shown_apart_from_results(tmp_path: Path) -> None:
    """Rows of an uncommitted attempt are readable, marked, and never among the results."""
    running = FakeTrial(seed=5, status="running")
    store = build_store(tmp_path / "s", [ONE, running])

    shown = store.running()

    assert ids(shown) == [running.trial_id]
    assert shown["status"].to_pylist() == ["running"]
    assert shown["params"].to_pylist() == ['{"lr": 0.001, "weight_decay": 0.0}']
    assert store.scan("scalars", shown, metrics=["loss"]).num_rows == 2 * len(STEPS)
    assert ids(store.outcomes("all")) == [ONE.trial_id]


def test_a_folder_that_is_no_store_is_named(tmp_path: Path) -> None:
    """The message says what is missing and what to give instead."""
    with pytest.raises(StoreError) as caught:
        Store.open(tmp_path / "nowhere")
    assert str(caught.value) == (
        f"{tmp_path / 'nowhere'} is not a results folder: it does not exist. Give the folder that "
        "`sweep run` printed, for example results/grokking."
    )
    with pytest.raises(StoreError, match="it holds no epochs/ folder"):
        Store.open(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    """A future format is not guessed at."""
    root = tmp_path / "s"
    build_store(root, [ONE])
    path = root / "epochs" / "000001.json"
    path.write_bytes(files.seal_json({**files.unseal_json(path), "format": 2}))

    with pytest.raises(StoreError) as caught:
        Store.open(root)
    assert str(caught.value) == (
        f"{root} has store format 2; this version of spectral-sweeps reads format 1. Use the "
        "version that wrote it."
    )


def test_every_altered_record_of_what_was_accepted_is_noticed(tmp_path: Path) -> None:
    """Epochs and sweep versions decide what counts: a changed digit in them must not pass."""
    root = tmp_path / "s"
    build_store(root, [ONE, TWO])
    for relative in ("epochs/000001.json", "sweep/1.json", "sweep/1.trials", "sweep/1.yaml"):
        path = root / relative
        intact = path.read_bytes()
        for position in range(len(intact)):
            if intact[position : position + 1].isspace() and path.suffix == ".json":
                continue  # white space between tokens of JSON means nothing
            damaged = bytearray(intact)
            damaged[position] ^= 1
            path.write_bytes(damaged)
            with pytest.raises((DamageError, StoreError)):
                Store.open(root).outcomes()
        path.unlink()
        with pytest.raises((DamageError, StoreError)):
            Store.open(root).outcomes()
        path.write_bytes(intact)
    assert ids(Store.open(root).outcomes()) == [ONE.trial_id, TWO.trial_id]
