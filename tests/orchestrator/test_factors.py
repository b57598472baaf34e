"""Singular vectors on disk: written, read, refused when damaged, and compared between trials."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator import factors, files, planning, preflight
from orchestrator.display import vectors_on_disk
from orchestrator.driver import Options, run_sweep
from orchestrator.errors import DamageError, QueryError, StoreError
from orchestrator.export import export
from orchestrator.factors import FactorArrays
from orchestrator.kept import AGREEMENT
from orchestrator.measure import Measure
from orchestrator.results import Results
from orchestrator.schemas import commit_table, seal
from orchestrator.session import Session
from orchestrator.store import Store
from orchestrator.sweep import parse
from orchestrator.trial import Assignment, Progress, run_group
from orchestrator.verify import verify
from tests.orchestrator.contexts import context
from tests.stores import FakeTrial, build_store, commit_row

FIELDS = [field.name for field in dataclasses.fields(FactorArrays)]
AGREED = Measure(("agreement",))


def arrays(m: int, n: int, k: int, seed: int = 0) -> FactorArrays:
    """Numbers without meaning, different in every entry."""
    rng = np.random.default_rng(seed)
    numbers = {name: rng.random(k) for name in FIELDS if name not in ("left", "right")}
    left, right = (rng.random((size, k)).astype(np.float32) for size in (m, n))
    return FactorArrays(left=left, right=right, **numbers)


def same(one: FactorArrays, other: FactorArrays) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in FIELDS]
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


# --- one file -------------------------------------------------------------------------------


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """Bit for bit: shapes, single precision of the vectors, NaN and infinities of the numbers."""
    wide = arrays(2, 9, 2)
    wide.values[:] = math.nan, math.inf
    written = {"decoder": arrays(5, 3, 3), "layers.0.query[1]": wide, "empty": arrays(0, 4, 0)}
    entry = factors.write(tmp_path, "00aa-1.2", "00aa", 40, written)
    found = factors.read(tmp_path, entry)

    assert list(found) == list(written)
    assert all(same(found[view], written[view]) for view in written)
    assert found["decoder"].shape == (5, 3)


def test_the_layout_of_a_matrix_in_memory_does_not_matter(tmp_path: Path) -> None:
    """Columns of row-major and of column-major arrays come back as the same columns."""
    rows = arrays(6, 4, 3)
    columns = dataclasses.replace(rows, left=np.asfortranarray(rows.left))
    entry = factors.write(tmp_path, "00aa-1.1", "00aa", 0, {"a": rows, "b": columns})
    found = factors.read(tmp_path, entry)

    np.testing.assert_array_equal(found["a"].left, rows.left)
    np.testing.assert_array_equal(found["b"].left, rows.left)


def test_a_manifest_entry_describes_its_file(tmp_path: Path) -> None:
    """As those of other shards do, so that a commit can name it."""
    entry = factors.write(tmp_path, "00aa-1.2", "00aa", 40, {"a": arrays(5, 3, 3)})
    payload = (tmp_path / entry["path"]).read_bytes()

    assert (entry["table"], entry["rows"], entry["bytes"]) == ("factors", 1, len(payload))
    assert entry["checksum"] == files.checksum(payload)
    assert entry["path"].startswith("factors/00aa-1.2-40-")
    assert factors.by_step([entry, {"table": "scalars", "path": "scalars/x"}]) == {40: entry}


@pytest.mark.parametrize(
    "shapes",
    [
        {"a": (1, 1)},
        {"a": (300, 7), "b": (7, 300)},
        {"layers.0.attention.query[10]": (128, 512), "x": (101, 99)},
        {str(i): (16, 16) for i in range(70)},
    ],
)
def test_sizes_are_known_before_anything_is_written(
    shapes: dict[str, tuple[int, int]], tmp_path: Path
) -> None:
    """To the byte: `sweep plan` computes them from the shapes of the matrices."""
    written = {view: arrays(m, n, min(m, n, 100)) for view, (m, n) in shapes.items()}
    entry = factors.write(tmp_path, "00aa-1.1", "0123456789abcdef", 10**6, written)

    assert factors.num_bytes(shapes, AGREED) == entry["bytes"]
    least = sum(4 * (m + n) * min(m, n, 100) for m, n in shapes.values())
    assert least <= entry["bytes"] <= least + 6000 * (len(shapes) + 1)


def test_files_are_removed_once(tmp_path: Path) -> None:
    """What is gone already is no error: an attempt may have been here before."""
    entries = [
        factors.write(tmp_path, "00aa-1.1", "00aa", n, {"a": arrays(2, 2, 2)}) for n in (0, 1)
    ]
    factors.discard(tmp_path, entries[:1])
    factors.discard(tmp_path, entries[:1])

    assert [path.name for path in (tmp_path / "factors").iterdir()] == [
        Path(entries[1]["path"]).name
    ]


def test_scratch_of_all_attempts_goes_and_what_is_named_stays(tmp_path: Path) -> None:
    """Other trials are left alone, also one whose id begins alike."""

    def write(stem: str, step: int) -> str:
        entry = factors.write(tmp_path, stem, stem[:4], step, {"a": arrays(2, 2, 2)})
        return str(entry["path"])

    paths = [
        write("00aa-1.1", 0),
        write("00aa-1.2", 0),
        write("00aa-2.3", 9),
        write("00aab-1.1", 0),
    ]
    factors.discard_scratch(tmp_path, "00aa", [paths[2]])

    assert [(tmp_path / path).exists() for path in paths] == [False, False, True, True]


# --- damage ---------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> str:
    """Damage a file; the message that readers refuse it with."""
    payload = path.read_bytes()
    if how == "gone":
        path.unlink()
        return f"{path} is missing, although a commit names it"
    if how == "cut":
        path.write_bytes(payload[:-100])
        return f"{path} is damaged: {len(payload) - 100} bytes where {len(payload)} were committed"
    half = len(payload) // 2
    path.write_bytes(payload[:half] + bytes([payload[half] ^ 1]) + payload[half + 1 :])
    return f"{path} is damaged: its content does not match its checksum"


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_damaged_file_is_refused_by_name(how: str, tmp_path: Path) -> None:
    """A wrong number is never guessed around; the twin is every test that reads a whole file."""
    entry = factors.write(tmp_path, "00aa-1.1", "00aa", 3, {"a": arrays(30, 20, 5)})
    message = spoil(tmp_path / entry["path"], how)

    with pytest.raises(DamageError) as refused:
        factors.read(tmp_path, entry)
    assert str(refused.value) == message


# --- in a store -----------------------------------------------------------------------------

ONE, TWO, NONE = (FakeTrial(seed=seed) for seed in (0, 1, 2))


def triples(turned: float = 0.0, swapped: bool = False) -> FactorArrays:
    """Singular vectors that are unit vectors: of diag(4, 2, 1) on top of two rows of zeros.

    Args:
        turned: angle by which the first left vector is turned out of the others' space.
        swapped: whether the second and third triple change places.
    """
    left, right = np.eye(5, 3), np.eye(3)
    left[0, 0], left[4, 0] = math.cos(turned), math.sin(turned)
    if swapped:
        left, right = left[:, [0, 2, 1]], right[:, [0, 2, 1]]
    small = np.full(3, 1e-7)
    vectors = {"left": left.astype(np.float32), "right": right.astype(np.float32)}
    return FactorArrays(np.array([4.0, 2.0, 1.0]), **vectors, **dict.fromkeys(FIELDS[3:], small))


def store_of(root: Path, kept: dict[int, dict[int, dict[str, FactorArrays]]]) -> Results:
    """A store whose commits name these factors: seed -> step -> view -> arrays."""
    build_store(root, [ONE, TWO, NONE], committed=False)
    rows = [commit_row(root, trial) for trial in (ONE, TWO, NONE)]
    for trial, row in zip((ONE, TWO, NONE), rows, strict=True):
        for step, views in kept.get(trial.seed, {}).items():
            stem = f"{trial.trial_id}-1.1"
            row["shards"].append(factors.write(root, stem, trial.trial_id, step, views))
    files.publish(root / "trials" / "000001-000001.arrow", seal(commit_table(rows)))
    return Results.open(root)


KEPT = {
    0: {0: {"a": triples(), "b": triples()}, 100: {"a": triples(), "b": triples()}},
    1: {100: {"a": triples(0.3), "b": triples(swapped=True)}},
}


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return store_of(tmp_path / "demo", KEPT)


def test_factors_that_were_kept_are_found_by_step_and_subject(results: Results) -> None:
    """All of them, or those that a filter names."""
    everything = results.factors(ONE.trial_id)

    assert list(everything) == [(0, "a"), (0, "b"), (100, "a"), (100, "b")]
    assert list(results.factors(ONE.trial_id, 100, "b")) == [(100, "b")]
    assert list(results.factors(ONE.trial_id, subject=["a"])) == [(0, "a"), (100, "a")]
    assert same(results.factors(TWO.trial_id)[100, "a"], triples(0.3))


def test_other_tables_do_not_see_them(results: Results) -> None:
    """A commit with factors has the same rows of scalars and spectra as one without."""
    counts = results.sql("SELECT trial_id, count(*) AS n FROM scalars GROUP BY ALL")

    assert len(set(counts["n"].to_pylist())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (NONE.trial_id,),
            f"no singular vectors were kept of trial {NONE.trial_id}: write measure: {{groups: "
            "[agreement], keep: final} into the sweep file and run it",
        ),
        ((ONE.trial_id, 99), "there is no step 99 (did you mean 0 or 100?); there are: 0, 100"),
        (
            (ONE.trial_id, 100, "c"),
            "there is no subject 'c'; there are: a, b",
        ),
    ],
)
def test_what_was_not_kept_is_an_error_that_lists_what_was(
    arguments: tuple[Any, ...], message: str, results: Results
) -> None:
    with pytest.raises(QueryError) as refused:
        results.factors(*arguments)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None,), "expected the id of one trial, got None"),
        (([ONE.trial_id],), f"expected the id of one trial, got [{ONE.trial_id!r}]"),
        (
            (ONE.trial_id, "last"),
            "step takes an integer, a list of integers or 'final', got 'last'",
        ),
        ((ONE.trial_id, 0.5), "step takes an integer or a list of integers, got 0.5"),
        ((ONE.trial_id, True), "step takes an integer or a list of integers, got True"),
    ],
)
def test_factors_take_one_trial_and_steps(
    arguments: tuple[Any, ...], message: str, results: Results
) -> None:
    with pytest.raises(QueryError) as refused:
        results.factors(*arguments)
    assert str(refused.value) == message


def test_the_last_step_that_was_kept_is_final(results: Results) -> None:
    """The same word as `agreement` takes."""
    assert list(results.factors(ONE.trial_id, "final")) == [(100, "a"), (100, "b")]
    assert list(results.factors(ONE.trial_id, "final", "b")) == [(100, "b")]


@pytest.mark.parametrize("step", [[0, 10], "last", 0.5, True])
def test_agreement_takes_one_step(step: Any, results: Results) -> None:
    """Several are compared without `step`, one by one; the twin is a NumPy integer."""
    with pytest.raises(QueryError) as refused:
        results.agreement(ONE.trial_id, TWO.trial_id, step)
    assert str(refused.value) == f"step takes an integer or 'final', got {step!r}"

    assert results.agreement(ONE.trial_id, TWO.trial_id, np.int64(100)).num_rows == 2


def test_agreement_takes_ids(results: Results) -> None:
    with pytest.raises(QueryError) as refused:
        results.agreement(ONE.trial_id, None)  # type: ignore[arg-type]
    assert str(refused.value) == "expected the id of one trial, got None"


def test_trials_without_a_common_matrix_are_an_error_that_says_what_each_has(
    tmp_path: Path,
) -> None:
    """An empty table would be read as no agreement."""
    kept = {0: {1: {"b": triples(), "a": triples()}}, 1: {1: {"c": triples()}}}
    results = store_of(tmp_path / "demo", kept)

    for step in (None, 1, "final"):
        with pytest.raises(QueryError) as refused:
            results.agreement(ONE.trial_id, TWO.trial_id, step)
        assert str(refused.value) == (
            f"no matrix was kept of both trials: {ONE.trial_id} has a, b; {TWO.trial_id} has c"
        )


def test_a_trial_that_is_not_there_is_an_error_that_lists_near_ones(results: Results) -> None:
    wrong = ONE.trial_id[:-1] + "x"
    with pytest.raises(QueryError) as refused:
        results.factors(wrong)
    assert f"there is no trial_id {wrong!r} (did you mean {ONE.trial_id}" in str(refused.value)


def test_agreement_of_two_trials_is_the_cosine_of_what_was_turned(results: Results) -> None:
    """By construction: one vector turned by 0.3, two triples that changed places."""
    table = results.agreement(ONE.trial_id, TWO.trial_id)

    assert table.schema == AGREEMENT
    a, b = table.to_pylist()
    assert [a[name] for name in ("first", "second", "first_step", "second_step", "subject")] == [
        ONE.trial_id, TWO.trial_id, 100, 100, "a",
    ]  # fmt: skip
    assert a["values"] == pytest.approx([math.cos(0.3), 1.0, 1.0], abs=1e-6)
    assert b["values"] == pytest.approx([1.0, 0.0, 0.0], abs=1e-6)
    assert a["lower"] <= (math.cos(0.3) + 2) / 3 <= a["upper"]
    assert b["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert a["chance"] == pytest.approx(2 / math.pi / math.sqrt(15))
    assert (b["dimension"], b["right_overlap"]) == (3, pytest.approx(1.0, abs=1e-6))


def test_the_last_steps_can_be_compared_though_they_differ(tmp_path: Path) -> None:
    """Two sweeps may have stopped at different steps; so may the steps that a trial kept."""
    kept = {0: {50: {"a": triples()}}, 1: {100: {"a": triples(), "c": triples()}}}
    results = store_of(tmp_path / "demo", kept)
    [row] = results.agreement(ONE.trial_id, TWO.trial_id, "final").to_pylist()

    assert (row["first_step"], row["second_step"], row["subject"]) == (50, 100, "a")
    assert row["value"] == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(QueryError) as refused:
        results.agreement(ONE.trial_id, TWO.trial_id)
    assert str(refused.value) == (
        f"no step was kept of both trials: {ONE.trial_id} has 50, {TWO.trial_id} has 100; "
        "step='final' compares the last of each"
    )


def test_matrices_of_different_shapes_are_not_compared(tmp_path: Path) -> None:
    wide = dataclasses.replace(triples(), right=np.eye(4, 3, dtype=np.float32))
    results = store_of(tmp_path / "demo", {0: {1: {"a": triples()}}, 1: {1: {"a": wide}}})

    with pytest.raises(QueryError) as refused:
        results.agreement(ONE.trial_id, TWO.trial_id)
    assert str(refused.value) == (
        "the matrices 'a' cannot be compared: 5 x 3 in one trial, 5 x 4 in the other"
    )


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_verify_finds_damaged_factors_and_says_what_they_cost(how: str, results: Results) -> None:
    assert verify(results.root).damage == []
    [path] = (results.root / "factors").glob(f"{TWO.trial_id}-*")
    message = spoil(path, how)

    [damage] = verify(results.root).damage
    assert damage.startswith(f"{message}: trial {TWO.trial_id} loses its rows of factors; restore")
    with pytest.raises(DamageError, match="factors"):
        results.factors(TWO.trial_id)


def test_verify_counts_factors_that_no_commit_names(results: Results) -> None:
    """Scratch of a running trial, or of one that was killed."""
    factors.write(results.root, "00aa-1.1", "00aa", 0, {"a": triples()})

    assert (
        "1 shard that no commit names: of attempts that are running or were lost"
        in verify(results.root).information
    )


def test_an_export_says_that_it_leaves_them_out(results: Results, tmp_path: Path) -> None:
    left_out = export(results, tmp_path / "out")
    paths = list((results.root / "factors").iterdir())
    size = sum(path.stat().st_size for path in paths)

    assert left_out == (
        f"the singular vectors that were kept, 3 files of {size:,} bytes in factors/ of the "
        "results folder (Results.factors reads them)"
    )
    dictionary = json.loads((tmp_path / "out" / "data_dictionary.json").read_text())
    assert dictionary["left_out"] == left_out
    assert left_out in (tmp_path / "out" / "data_dictionary.md").read_text()
    assert not (tmp_path / "out" / "factors").exists()


def test_an_export_without_any_leaves_nothing_out(tmp_path: Path) -> None:
    results = store_of(tmp_path / "demo", {})

    assert export(results, tmp_path / "out") == ""


# --- what a plan says -----------------------------------------------------------------------

TEXT = """
name: toy
task: modular_addition
base: {modulus: 7, width: 16, heads: 2, feed_forward: 16}
grid: {layers: [1, 2], steps: [2, 4]}
snapshots: {every: 2}
tracking: none
"""


@pytest.mark.parametrize("keep", ["none", "final", "all"])
def test_a_plan_has_the_bytes_that_a_run_writes(
    keep: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two models and two lengths; what is scratch is gone when the run has ended."""
    monkeypatch.chdir(tmp_path)
    sweep = parse(TEXT + f"measure: {{groups: [agreement], keep: {keep}}}\n")
    plan = planning.plan(sweep, "0" * 16)
    run_sweep(sweep, Options(in_process=True))

    outcomes = Store.open(sweep.root).outcomes()
    kept = [factors.by_step(shards) for shards in outcomes["shards"].to_pylist()]
    sizes = [sum(entry["bytes"] for entry in own.values()) for own in kept]
    assert outcomes.num_rows == 4
    assert plan.kept_bytes_total == sum(sizes)
    assert plan.kept_bytes == max(sizes)
    snapshots = [len(trial.snapshots) for trial in sweep.trials()]
    expected = {"none": 0, "final": 4, "all": sum(snapshots)}[keep]
    assert sum(map(len, kept)) == expected
    assert len(list((sweep.root / "factors").glob("*"))) == expected


def test_scratch_is_what_a_trial_holds_until_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All snapshots of the longest trial of the largest model, less what stays."""
    monkeypatch.chdir(tmp_path)
    spaces = {
        keep: preflight.Inspection(
            parse(TEXT + f"measure: {{groups: [agreement], keep: {keep}}}\n")
        ).space()
        for keep in ("none", "final", "all")
    }
    assert all(space is not None for space in spaces.values())
    one = spaces["final"].kept

    assert [spaces[keep].scratch for keep in ("none", "final", "all")] == [3 * one, 2 * one, 0]
    assert [spaces[keep].kept for keep in ("none", "final", "all")] == [0, one, 3 * one]
    without = parse(TEXT + "measure: {groups: [update], keep: final}\n")
    assert preflight.Inspection(without).space().scratch == 0


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_scratch_that_is_lost_while_a_trial_runs_stops_it_and_a_plain_run_completes_it(
    how: str, tmp_path: Path
) -> None:
    """No result is damaged, so the sweep ends as when the storage refuses (exit code 3)."""
    text = TEXT.replace("[1, 2]", "[1]").replace("[2, 4]", "[4]")
    sweep = parse(f"{text}measure: [agreement]\nstorage: {tmp_path}\n")
    assignment = Assignment((next(sweep.trials()),), (1,))

    def lose(told: Progress) -> None:
        if told.step == 4:
            [path] = (sweep.root / "factors").glob("*-2-*")
            spoil(path, how)

    with Session.claim(sweep) as session:
        told = context(sweep, session, checkpoint_seconds=0.0)
        with pytest.raises(StoreError) as refused:
            run_group(assignment, told, progress=lose)
        damage = verify(sweep.root).damage
        result = run_group(assignment, told)

    assert (str(refused.value), refused.value.exit_code) == (
        "singular vectors of a running trial are missing or damaged: run the same command again; "
        "the trial continues from an earlier checkpoint",
        3,
    )
    assert not isinstance(refused.value, DamageError)
    assert len(damage) == 1, "one line, although two checkpoints name the file"
    assert "nothing has to be removed" in damage[0]
    assert [row["status"] for row in result.rows] == ["completed"]


@pytest.mark.parametrize(
    ("scratch", "stays", "total", "lines"),
    [
        (0, 0, 0, []),
        (1500, 0, 0, [("singular vectors, scratch", "1.5 kB per running trial, 3 kB at once")]),
        (
            2_620_000_000,
            999,
            10**6,
            [
                ("singular vectors, scratch", "2.62 GB per running trial, 5.24 GB at once"),
                ("singular vectors, kept", "999 bytes per trial, 1 MB in all"),
            ],
        ),
        (None, None, None, [("singular vectors", "of unknown size: the model cannot be built")]),
    ],
)
def test_a_plan_is_shown_in_units_that_people_read(
    scratch: int | None, stays: int | None, total: int | None, lines: list[tuple[str, str]]
) -> None:
    """Nothing is said of singular vectors where none are written."""
    plan = planning.Plan(
        *("toy", "toy", "results/toy"),
        **dict.fromkeys(("trials", "configurations", "committed", "failed", "checkpointed"), 0),
        **dict.fromkeys(("remaining", "unnamed", "changed"), 0),
        device="cpu",
        workers=2,
        estimate_seconds=None,
        estimate_basis="",
        scratch_bytes=scratch,
        kept_bytes=stays,
        kept_bytes_total=total,
    )

    assert vectors_on_disk(plan) == lines


def test_a_plan_says_what_the_model_fails_with() -> None:
    plan = planning.Plan(
        *("toy", "toy", "results/toy"),
        **dict.fromkeys(("trials", "configurations", "committed", "failed", "checkpointed"), 0),
        **dict.fromkeys(("remaining", "unnamed", "changed"), 0),
        device="cpu",
        workers=2,
        estimate_seconds=None,
        estimate_basis="",
        **dict.fromkeys(("scratch_bytes", "kept_bytes", "kept_bytes_total")),
        model_failure="RuntimeError: no model today",
    )

    assert vectors_on_disk(plan) == [
        (
            "singular vectors",
            "of unknown size: the model cannot be built (RuntimeError: no model today)",
        )
    ]
