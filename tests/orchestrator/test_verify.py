"""`verify` must notice whatever happens to a file, and say what it costs."""

import json
import shutil
from pathlib import Path

import pytest

from orchestrator import Results, checkpoints, files
from orchestrator.errors import DamageError, StoreError
from orchestrator.rows import Buffer
from orchestrator.schemas import commit_table, seal
from orchestrator.store import Store
from orchestrator.verify import Report, verify
from spectral import ScalarRow
from tests.stores import FakeTrial, build_store, commit_row

SEGMENT = "trials/000001-000001.arrow"
UNREAD = "No result of this store is read until it is restored from a backup."


@pytest.fixture
def root(tmp_path):
    build_store(tmp_path / "demo", [FakeTrial(seed=0), FakeTrial(seed=1)])
    return tmp_path / "demo"


def ids(root: Path) -> list[str]:
    return (root / "sweep" / "1.trials").read_text().split()


def shard_of(root: Path, table: str, trial_id: str) -> Path:
    [path] = (root / table).glob(f"{trial_id}-*.arrow")
    return path


def claim(root: Path, n: int, seen: dict[str, int], **facts) -> None:
    """Write the epoch file that a further driver run would write."""
    first = files.unseal_json(root / "epochs" / "000001.json")
    payload = files.seal_json(first | {"epoch": n, "seen": seen} | facts)
    files.publish(root / "epochs" / f"{n:06d}.json", payload)


def checkpoint(root: Path, trial: FakeTrial, step: int, shards=()) -> Path:
    identity = {"trial_id": trial.trial_id, "config_id": trial.config_id, "seed": trial.seed}
    identity["params"] = json.dumps(trial.params)
    header = checkpoints.Header(step, 1, 1, "0" * 16, identity, list(shards), 1.0)
    return checkpoints.write(root, trial.trial_id, header, b"tensors" * 100)


def loses(trial_id: str, table: str) -> str:
    return (
        f"trial {trial_id} loses its rows of {table}; restore the file from a backup, or run the "
        f"trial again: sweep run sweeps/fake.yaml --rerun {trial_id}"
    )


# --- intact stores --------------------------------------------------------------------------


def test_an_intact_store_has_no_damage(root):
    assert verify(root) == Report(
        root=str(root),
        damage=[],
        information=["checked 1 epoch, 2 commits, 4 shards with 96 rows, 1 environment"],
    )


def test_a_store_without_commits_has_no_damage(tmp_path):
    build_store(tmp_path / "demo", [FakeTrial(status="running")])

    assert verify(tmp_path / "demo").damage == []


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is not a results folder"):
        verify(tmp_path)


def test_progress_is_told_for_every_shard(root):
    told = []
    verify(root, lambda done, total: told.append((done, total)))

    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_leftovers_are_information_and_no_damage(root):
    """What a killed worker or driver leaves lies about for ever; it must not look like damage."""
    done, under_way = FakeTrial(seed=0), FakeTrial(seed=7)
    commit_row(root, under_way)
    commit_row(root, done, attempt=2)
    zombie = seal(commit_table([commit_row(root, FakeTrial(seed=8))]))
    claim(root, 2, {"1": 1})
    files.publish(root / "trials" / "000001-000002.arrow", zombie)
    (root / "scalars" / ".half.arrow.0123abcd").write_bytes(b"half")
    checkpoint(root, done, 10).write_bytes(b"torn: and nobody needs it")
    checkpoint(root, under_way, 10)

    report = verify(root)

    assert report.damage == []
    assert report.information == [
        "checked 2 epochs, 2 commits, 4 shards with 96 rows, 1 environment",
        "1 commit segment written by a driver thought dead: none counts",
        "6 shards that no commit names: of attempts that are running or were lost",
        "1 hidden file of writes that are under way or were interrupted",
        "1 trial with a result and a checkpoint that is not needed any more",
    ]


def test_verify_only_reads(root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    verify(root)

    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


# --- shards ---------------------------------------------------------------------------------


def flipped(payload: bytes, position: int, bit: int) -> bytes:
    return payload[:position] + bytes([payload[position] ^ (1 << bit)]) + payload[position + 1 :]


def test_every_flipped_bit_of_a_shard_is_found_and_its_rows_are_refused(root):
    trial_id = ids(root)[0]
    path = shard_of(root, "scalars", trial_id)
    payload = path.read_bytes()
    message = f"{path} is damaged: its content does not match its checksum"
    for position in range(0, len(payload), 97):
        path.write_bytes(flipped(payload, position, position % 8))

        assert verify(root).damage == [f"{message}: {loses(trial_id, 'scalars')}"]
        with pytest.raises(DamageError) as caught:
            Results.open(root).scalars()
        assert str(caught.value) == message


def test_a_truncated_shard_is_found(root):
    trial_id = ids(root)[1]
    path = shard_of(root, "spectra", trial_id)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])

    assert verify(root).damage == [
        f"{path} is damaged: {size - 1} bytes where {size} were committed: "
        f"{loses(trial_id, 'spectra')}"
    ]


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_missing_shard_is_found(root, how):
    trial_id = ids(root)[0]
    path = shard_of(root, "scalars", trial_id)
    if how == "deleted":
        path.unlink()
    else:
        path.rename(path.with_name(path.name.replace("-1.1-", "-1.2-")))
    message = f"{path} is missing, although a commit names it"

    report = verify(root)

    assert report.damage == [f"{message}: {loses(trial_id, 'scalars')}"]
    assert len(report.information) == (1 if how == "deleted" else 2), "the renamed one is an orphan"
    with pytest.raises(DamageError) as caught:
        Results.open(root).scalars()
    assert str(caught.value) == message


def test_damage_is_told_for_every_trial_of_a_shard_and_does_not_hide_other_damage(tmp_path):
    """A group's trials share a shard; a check that stops at the first finding is no check."""
    root = tmp_path / "demo"
    group = [FakeTrial(seed=0), FakeTrial(seed=1)]
    build_store(root, [FakeTrial(seed=9)])
    buffer = Buffer()
    for trial in group:
        buffer.scalars(trial.trial_id, 0, [ScalarRow("val", "loss", 1.0, None, None, "x", None)])
    shards = buffer.publish(root, "abcd-1.1")
    rows = [commit_row(root, trial) | {"shards": shards} for trial in group]
    files.publish(root / "trials" / "000001-000002.arrow", seal(commit_table(rows)))
    shared = root / shards[0]["path"]
    shared.unlink()
    other = shard_of(root, "spectra", FakeTrial(seed=9).trial_id)
    other.unlink()

    gone = "is missing, although a commit names it"
    assert verify(root).damage == [
        f"{other} {gone}: {loses(FakeTrial(seed=9).trial_id, 'spectra')}",
        *(f"{shared} {gone}: {loses(trial.trial_id, 'scalars')}" for trial in group),
    ]


def test_a_shard_that_does_not_hold_what_its_commit_says_is_found(tmp_path):
    """Checksums prove that a file is what was written, not that the right thing was committed."""
    root = tmp_path / "demo"
    build_store(root, [FakeTrial(seed=9)])
    row = commit_row(root, FakeTrial(seed=0))
    [scalars, spectra] = row["shards"]
    other = FakeTrial(seed=1)
    rows = [
        row | {"shards": [scalars | {"rows": 41}]},
        commit_row(root, other) | {"shards": [spectra]},
    ]
    files.publish(root / "trials" / "000001-000002.arrow", seal(commit_table(rows)))

    assert verify(root).damage == [
        f"{root / scalars['path']} holds 40 rows where 41 were committed: "
        f"{loses(FakeTrial(seed=0).trial_id, 'scalars')}",
        f"{root / spectra['path']} holds no row of trial {other.trial_id}: "
        f"{loses(other.trial_id, 'spectra')}",
    ]


def test_damage_to_the_rows_of_a_failed_attempt_costs_no_result(tmp_path):
    root = tmp_path / "demo"
    failed = FakeTrial(seed=0, status="failed", error="boom")
    build_store(root, [failed])
    path = shard_of(root, "scalars", failed.trial_id)
    path.unlink()

    assert verify(root).damage == [
        f"{path} is missing, although a commit names it: attempt 1 (failed) of trial "
        f"{failed.trial_id} loses its rows of scalars; no result depends on them"
    ]


def test_damage_is_over_once_the_trial_has_been_run_again(root):
    """What the advice leads to: the fence of a rerun makes the damaged commit history."""
    trial = FakeTrial(seed=0)
    path = shard_of(root, "scalars", trial.trial_id)
    path.unlink()
    claim(root, 2, {"1": 1}, rerun=[trial.trial_id])
    again = seal(commit_table([commit_row(root, trial, epoch=2, attempt=2)]))
    files.publish(root / "trials" / "000002-000001.arrow", again)

    report = verify(root)

    assert report.damage == []
    assert report.information[1] == (
        f"{path} is missing, although a commit names it: nothing: that commit has been replaced"
    )
    assert Results.open(root).scalars(trial_id=trial.trial_id).num_rows == 40


# --- commit segments ------------------------------------------------------------------------


def test_every_flipped_bit_of_a_segment_is_found_and_refused(root):
    """Nothing names a segment, so its seal must cover every bit of it, the seal included."""
    path = root / SEGMENT
    payload = path.read_bytes()
    store = Store.open(root)
    for position in range(0, len(payload), 53):
        path.write_bytes(flipped(payload, position, position % 8))

        report = verify(root)
        assert len(report.damage) == 1
        assert report.damage[0].startswith(f"{path} is damaged: ")
        assert report.damage[0].endswith(f": its commits are lost. {UNREAD}")
        with pytest.raises(DamageError) as caught:
            Store(store.root).commits()
        assert report.damage[0] == f"{caught.value}: its commits are lost. {UNREAD}"


def test_every_bit_of_the_seal_itself_is_covered(root):
    path = root / SEGMENT
    payload = path.read_bytes()
    at = payload.index(b"seal:")
    for position in range(at, at + len("seal:") + 32):
        for bit in range(8):
            path.write_bytes(flipped(payload, position, bit))
            with pytest.raises(DamageError):
                Store(root).commits()
    path.write_bytes(payload)
    assert Store(root).commits().num_rows == 2


def test_a_truncated_segment_is_found(root):
    path = root / SEGMENT
    payload = path.read_bytes()
    for length in (0, 1, len(payload) // 2, len(payload) - 1):
        path.write_bytes(payload[:length])
        [damage] = verify(root).damage
        assert damage.startswith(f"{path} is damaged: ")
        assert damage.endswith(f": its commits are lost. {UNREAD}")
        with pytest.raises(DamageError):
            Results.open(root)


def test_a_gap_between_segments_is_found_and_refused(root):
    row = commit_row(root, FakeTrial(seed=5))
    files.publish(root / "trials" / "000001-000002.arrow", seal(commit_table([row])))
    (root / SEGMENT).unlink()

    assert verify(root).damage == [
        f"{root / SEGMENT} is missing: its commits are lost. {UNREAD}",
    ]
    with pytest.raises(DamageError) as caught:
        Results.open(root)
    assert str(caught.value) == (
        f"{root}/trials is damaged: segment 000001-000001.arrow is missing. Restore it from a "
        "backup, or run the sweep again under a new name."
    )


def test_a_segment_that_a_later_epoch_has_seen_cannot_vanish(root):
    """At the end of an epoch no gap shows it, but the next driver wrote down what it saw."""
    claim(root, 2, {"1": 1})
    (root / SEGMENT).unlink()

    assert verify(root).damage == [f"{root / SEGMENT} is missing: its commits are lost. {UNREAD}"]
    with pytest.raises(DamageError):
        Results.open(root)


def test_a_segment_under_another_epochs_name_is_found(root):
    claim(root, 2, {"1": 1})
    shutil.copy(root / SEGMENT, root / "trials" / "000002-000001.arrow")

    assert verify(root).damage == [
        f"{root}/trials/000002-000001.arrow is damaged: it holds commits of epoch 1: its commits "
        f"are lost. {UNREAD}"
    ]


# --- epochs, sweep files, environments ------------------------------------------------------


@pytest.mark.parametrize("name", ["epochs/000001.json", "sweep/1.json"])
def test_a_damaged_record_is_found_and_refused(root, name):
    """Altered so that it still makes sense, cut short, or emptied."""
    path = root / name
    payload = path.read_bytes()
    assert payload.count(b"T03:04:05") == 1
    for damaged in (payload.replace(b"T03:04:05", b"T03:04:06"), payload[:-1], b"{}", b""):
        path.write_bytes(damaged)
        with pytest.raises(DamageError) as caught:
            Results.open(root)

        assert verify(root).damage == [f"{caught.value}. {UNREAD}"]
        assert str(caught.value).startswith(f"{path} is damaged: ")


@pytest.mark.parametrize(
    ("fact", "said"), [("epoch", "it is epoch 7"), ("format", "its format is 7")]
)
def test_an_epoch_under_another_name_or_of_another_format_is_found(root, fact, said):
    claim(root, 2, {"1": 1}, **{fact: 7})

    assert verify(root).damage == [
        f"{root}/epochs/000002.json is damaged: it says that {said}. {UNREAD}"
    ]


@pytest.mark.parametrize("n", [1, 2])
def test_a_missing_epoch_is_found(root, n):
    """Its commits would not count: results would vanish in silence."""
    claim(root, 2, {"1": 1})
    claim(root, 3, {"1": 1, "2": 0})
    (root / "epochs" / f"{n:06d}.json").unlink()

    assert verify(root).damage == [
        f"{root}/epochs/{n:06d}.json is missing: the commits of epoch {n} do not count without it. "
        "Restore it from a backup."
    ]


def test_the_only_epoch_missing_is_found(root):
    (root / "epochs" / "000001.json").unlink()

    assert len(verify(root).damage) == 1


def test_epochs_that_disagree_on_what_counts_are_found(root):
    """The number is the fence: altered, it hides commits or lets a zombie's count."""
    claim(root, 2, {"1": 1})
    claim(root, 3, {"1": 0, "2": 0})

    assert verify(root).damage == [
        f"{root}/epochs is damaged: later epochs disagree on the last commit segment of epoch 1 "
        "(epoch 2 says 1, epoch 3 says 0). Restore the folder from a backup."
    ]


@pytest.mark.parametrize("suffix", ["json", "yaml", "trials"])
def test_a_missing_part_of_a_sweep_record_is_found(root, suffix):
    (root / "sweep" / f"1.{suffix}").unlink()

    assert verify(root).damage == [f"{root}/sweep/1.{suffix} is missing. {UNREAD}"]


@pytest.mark.parametrize("suffix", ["yaml", "trials"])
def test_an_altered_part_of_a_sweep_record_is_found_and_refused(root, suffix):
    path = root / "sweep" / f"1.{suffix}"
    path.write_bytes(flipped(path.read_bytes(), 3, 0))
    message = f"{path} is damaged: its content does not match its checksum"

    assert verify(root).damage == [f"{message}. {UNREAD}"]
    with pytest.raises(DamageError) as caught:
        Results.open(root)
    assert str(caught.value) == message


def test_a_sweep_record_that_was_being_accepted_is_no_damage(root):
    """Its JSON file comes last; a driver that dies before leaves the other two."""
    (root / "sweep" / "2.yaml").write_text("name: demo\n")
    (root / "sweep" / "2.trials").write_text(ids(root)[0])

    assert verify(root).damage == []


@pytest.mark.parametrize("how", ["missing", "torn"])
def test_a_damaged_environment_is_found(root, how):
    path = root / "environments" / "00000000000000aa.json"
    if how == "missing":
        path.unlink()
        said = "is missing, although a commit names it"
    else:
        path.write_text('{"python"')
        said = "is damaged: Expecting ':' delimiter: line 1 column 10 (char 9)"

    assert verify(root).damage == [
        f"{path} {said}: what ran 2 trials is not known; no number depends on it"
    ]


# --- checkpoints and trends -----------------------------------------------------------------


def test_every_flipped_bit_of_a_checkpoint_is_found(root):
    trial = FakeTrial(seed=7)
    path = checkpoint(root, trial, 10)
    payload = path.read_bytes()
    assert verify(root).damage == []
    for position in range(0, len(payload), 41):
        path.write_bytes(flipped(payload, position, position % 8))

        [damage] = verify(root).damage
        assert damage.startswith(f"{path} is damaged: ")
        assert damage.endswith(
            f": trial {trial.trial_id} resumes from the checkpoint before it, or from step 0"
        )


def test_a_checkpoint_whose_shards_are_gone_is_found(root):
    """A resume would commit rows that are not there."""
    trial = FakeTrial(seed=7)
    row = commit_row(root, trial)
    for step in (10, 20):  # one line, although two checkpoints name it
        checkpoint(root, trial, step, row["shards"])
    assert verify(root).damage == []
    shard = root / row["shards"][0]["path"]
    shard.unlink()
    nothing_lost = (
        "nothing has to be removed: run the same command again, and trial "
        f"{trial.trial_id} resumes from a checkpoint that does without it, or from step 0"
    )

    assert verify(root).damage == [
        f"{shard} is missing, although a checkpoint names it: {nothing_lost}"
    ]
    shard.write_bytes(b"half")
    size = row["shards"][0]["bytes"]
    assert verify(root).damage == [
        f"{shard} is damaged: 4 bytes where {size} were written: {nothing_lost}"
    ]


def test_damaged_trends_are_found_and_lose_nothing(root):
    path = root / "trends.parquet"
    path.write_bytes(b"PAR1 and no more")

    [damage] = verify(root).damage
    assert damage.startswith(f"{path} is damaged: ")
    assert damage.endswith(f": no result is lost; `sweep track {root}` makes it anew")


def test_a_report_can_be_written_as_json(root):
    """`sweep verify --json`."""
    assert json.loads(json.dumps(vars(verify(root))))["damage"] == []
