"""The query API without SQL: tables, filters, what is visible when."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator import Results, files
from orchestrator.errors import DamageError, QueryError, StoreError
from orchestrator.rows import Buffer
from orchestrator.schemas import SCALARS, SPECTRA, commit_table, seal
from orchestrator.trends import TRENDS
from spectral import ScalarRow
from spectral.metrics import METRICS_OF, QUANTITIES_OF
from tests.stores import STEPS, FakeTrial, accept, build_store, commit_row, loss_value, rank_value

IDENTIFIERS = ["trial_id", "config_id", "seed"]


def fake(seed=0, status="completed", **params):
    return FakeTrial(seed=seed, params={"weight_decay": 0.0, "lr": 0.001, **params}, status=status)


def four_trials():
    return [fake(seed, weight_decay=decay) for seed in (0, 1) for decay in (0.0, 1.0)]


def commit(root: Path, sequence: int, *rows, epoch=1) -> None:
    """Publish one more segment, as the driver would."""
    payload = seal(commit_table(rows))
    files.publish(root / "trials" / f"{epoch:06d}-{sequence:06d}.arrow", payload)


def accept_again(root: Path, n: int, trial_ids, **facts) -> None:
    """Record a version of the sweep file that names these trials and is else like the first."""
    first = files.unseal_json(root / "sweep" / "1.json")
    accept(root, n, first | facts, trial_ids)


# --- trials ---------------------------------------------------------------------------------


def test_trials_have_one_column_per_parameter_with_the_swept_ones_first(tmp_path):
    build_store(tmp_path / "demo", [fake(betas=[0.9, 0.98], optimizer="adamw", width=128)])

    trials = Results.open(tmp_path / "demo").trials()

    assert trials.column_names[:11] == [
        *IDENTIFIERS,
        "weight_decay",
        *("status", "last_step", "wall_seconds"),
        *("betas", "lr", "optimizer", "width"),
    ]
    assert "params" not in trials.column_names
    [row] = trials.to_pylist()
    assert (row["betas"], row["optimizer"], row["width"]) == ([0.9, 0.98], "adamw", 128)
    assert row["shards"][0]["path"].startswith("scalars/")


@pytest.mark.parametrize(
    ("values", "expected_type", "expected"),
    [
        ([1, 2], pa.int64(), [1, 2]),
        ([1, 0.5], pa.float64(), [1.0, 0.5]),
        ([True, False], pa.bool_(), [True, False]),
        (["cosine", None], pa.string(), ["cosine", None]),
        ([None, 1.0], pa.float64(), [None, 1.0]),
        ([None, None], pa.null(), [None, None]),
        ([[0.9, 1], []], pa.list_(pa.float64()), [[0.9, 1.0], []]),
        ([True, 1], pa.string(), ["true", "1"]),
        (["auto", 2], pa.string(), ['"auto"', "2"]),
        ([{"b": 1, "a": [2]}, None], pa.string(), ['{"a": [2], "b": 1}', None]),
        ([2**63, 1], pa.string(), [str(2**63), "1"]),
    ],
    ids=str,
)
def test_the_type_of_a_parameter_is_the_narrowest_that_holds_all_its_values(
    tmp_path, values, expected_type, expected
):
    build_store(tmp_path / "demo", [fake(seed, x=value) for seed, value in enumerate(values)])

    column = Results.open(tmp_path / "demo").trials()["x"]

    assert column.type == expected_type
    assert column.to_pylist() == expected


def test_a_parameter_that_older_trials_lack_is_null_there(tmp_path):
    """Adding a parameter to a task must not make its earlier results unreadable."""
    build_store(tmp_path / "demo", [fake(0), fake(1, momentum=0.9)])

    assert Results.open(tmp_path / "demo").trials()["momentum"].to_pylist() == [None, 0.9]


def test_trials_stand_in_the_order_of_the_sweep_file_not_of_their_commits(tmp_path):
    trials = four_trials()
    build_store(tmp_path / "demo", trials)
    ids = [t.trial_id for t in reversed(trials)]
    accept_again(tmp_path / "demo", 1, ids)

    results = Results.open(tmp_path / "demo")

    assert results.trials()["trial_id"].to_pylist() == ids
    assert list(dict.fromkeys(results.scalars()["trial_id"].to_pylist())) == ids


def test_failed_trials_are_history_and_no_results(tmp_path):
    failed = fake(7, status="failed")
    build_store(tmp_path / "demo", [fake(0), failed, fake(1, status="diverged")])

    results = Results.open(tmp_path / "demo")

    assert results.trials()["status"].to_pylist() == ["completed", "diverged"]
    history = results.trials(history=True)
    assert history["status"].to_pylist() == ["completed", "failed", "diverged"]
    assert history.schema == results.trials().schema
    assert failed.trial_id not in results.scalars()["trial_id"].to_pylist()


def test_a_store_without_results_gives_empty_tables_of_the_right_schema(tmp_path):
    """A notebook may be written before the first trial ends: filters on it are no mistakes yet."""
    build_store(tmp_path / "demo", [fake(status="running", clip=1.0)])

    results = Results.open(tmp_path / "demo")

    assert results.trials().num_rows == 0
    assert {"weight_decay", "lr", "clip"} < set(results.trials().column_names)
    assert results.scalars(metric="anything", step=3).equals(SCALARS.empty_table())
    assert results.spectra(subject="anything").equals(SPECTRA.empty_table())
    assert results.trends(kind="seeds").equals(TRENDS.empty_table())
    assert results.sql("SELECT * FROM scalars, trends").num_rows == 0
    assert repr(results) == "<Results demo: 0 of 1 trials (no result yet) by weight_decay>"


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    with pytest.raises(StoreError) as caught:
        Results.open(tmp_path)

    assert str(caught.value) == (
        f"{tmp_path} is not a results folder: it holds no epochs/ folder. Give the folder that "
        "`sweep run` printed, for example results/grokking."
    )


def test_the_representation_says_how_far_the_sweep_is(tmp_path):
    trials = [*four_trials(), fake(9, "diverged"), fake(8, "failed")]
    build_store(tmp_path / "demo", trials, axes=["weight_decay", "lr"])

    assert repr(Results.open(tmp_path / "demo")) == (
        "<Results demo: 5 of 6 trials (4 completed, 1 diverged) by weight_decay, lr>"
    )


# --- rows -----------------------------------------------------------------------------------


def test_filters_take_a_value_or_several_and_must_all_match(tmp_path):
    trials = four_trials()
    build_store(tmp_path / "demo", trials)
    results = Results.open(tmp_path / "demo")

    one = results.scalars(metric="loss", subject="val", step=10, trial_id=trials[3].trial_id)
    several = results.scalars(metric=["loss", "error"], subject={"train"}, step=range(0, 2))

    assert one["value"].to_pylist() == [2 * loss_value(10, 1.0, 1)]
    assert set(several["step"].to_pylist()) == {0, 1}
    assert several.num_rows == 4 * 2 * 2
    assert results.scalars(metric=[]).num_rows == 0


def test_filters_mean_the_same_before_and_after_a_table_is_in_memory(tmp_path):
    """Whether shards are filtered while they are read or afterwards is no one's business."""
    build_store(tmp_path / "demo", four_trials())
    filters = {"metric": "norm/frobenius", "subject": "layers.0.b", "step": [1, 100]}

    fresh = Results.open(tmp_path / "demo").scalars(**filters)
    loaded = Results.open(tmp_path / "demo")
    everything = loaded.sql("SELECT * FROM scalars")

    assert loaded.scalars(**filters).equals(fresh)
    assert fresh.num_rows == 4 * 2
    assert everything.num_rows == loaded.scalars().num_rows


def test_spectra_come_with_their_bounds(tmp_path):
    build_store(tmp_path / "demo", [fake(weight_decay=1.0)])

    found = Results.open(tmp_path / "demo").spectra(subject="layers.0.a", step=100)

    rank = rank_value(100, 1.0, 0)
    [row] = found.to_pylist()
    assert row["values"] == [4.0 * rank, 2.0 * rank, rank]
    assert row["quantity"] == "singular_values"
    assert len(row["bounds"]) == 3


def test_rows_of_a_group_are_sorted_by_trial_and_step(tmp_path):
    """A group writes its trials' rows interleaved; the commits decide which become visible."""
    root = tmp_path / "demo"
    build_store(root, [fake(0, "running"), fake(1, "running"), fake(2, "running")])
    ids = (root / "sweep" / "1.trials").read_text().split()
    buffer = Buffer()
    for step in (1, 0):
        for k in (2, 1, 0):
            rows = [ScalarRow("val", m, 10 * k + step, None, None, "x", None) for m in "ba"]
            buffer.scalars(ids[k], step, rows)
    shards = buffer.publish(root, "abcd-1.1")
    rows = [commit_row(root, fake(k, "completed")) | {"shards": shards} for k in (0, 2)]
    commit(root, 1, *rows)

    found = Results.open(root).scalars()

    assert list(zip(found["value"].to_pylist(), found["metric"].to_pylist(), strict=True)) == [
        *((0.0, "b"), (0.0, "a"), (1.0, "b"), (1.0, "a")),
        *((20.0, "b"), (20.0, "a"), (21.0, "b"), (21.0, "a")),
    ]


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (
            {"metric": "effective_rnk"},
            "there is no metric 'effective_rnk' (did you mean effective_rank or "
            "effective_rank/normalised?); there are: effective_rank, effective_rank/normalised, "
            "error, loss, norm/frobenius",
        ),
        (
            {"subject": ["val", "zzz"]},
            "there is no subject 'zzz'; there are: layers.0.a, layers.0.b, train, val",
        ),
        ({"step": 12}, "there is no step 12 (did you mean 1 or 10?); there are: 0, 1, 10, 100"),
        (
            {"subject": "trian", "metric": "los"},
            "there is no metric 'los' (did you mean loss?); there are: effective_rank, "
            "effective_rank/normalised, error, loss, norm/frobenius\n"
            "there is no subject 'trian' (did you mean train?); there are: layers.0.a, "
            "layers.0.b, train, val",
        ),
        ({"metric": 3}, "metric takes a name or a list of names, got 3"),
        ({"subject": ["a", None]}, "subject takes a name or a list of names, got ['a', None]"),
        ({"step": 1.5}, "step takes an integer or a list of integers, got 1.5"),
        ({"step": [True]}, "step takes an integer or a list of integers, got [True]"),
    ],
    ids=str,
)
def test_a_filter_that_nothing_can_match_is_refused_with_what_there_is(tmp_path, filters, message):
    """An empty table would be read as "nothing happened" where the truth is a misspelling."""
    build_store(tmp_path / "demo", [fake()])

    with pytest.raises(QueryError) as caught:
        Results.open(tmp_path / "demo").scalars(**filters)

    assert str(caught.value) == message


def test_values_that_exist_but_never_together_give_no_rows(tmp_path):
    build_store(tmp_path / "demo", [fake()])

    assert (
        Results.open(tmp_path / "demo").scalars(metric="loss", subject="layers.0.a").num_rows == 0
    )


def test_asking_for_a_trial_without_a_result_says_so(tmp_path):
    root = tmp_path / "demo"
    failed = fake(1, status="failed")
    build_store(root, [fake(0), failed])

    with pytest.raises(QueryError) as caught:
        Results.open(root).scalars(trial_id=failed.trial_id)

    assert str(caught.value) == (
        f"trial {failed.trial_id} has no result yet: `sweep show {root} {failed.trial_id}` tells "
        "why"
    )


def test_a_long_list_of_what_there_is_is_cut(tmp_path):
    build_store(tmp_path / "demo", [FakeTrial(steps=range(30))])

    with pytest.raises(QueryError) as caught:
        Results.open(tmp_path / "demo").scalars(step=31)

    listed = ", ".join(map(str, range(20)))
    assert str(caught.value) == (
        f"there is no step 31 (did you mean 28 or 29?); there are: {listed} and 10 more"
    )


def test_rows_of_a_damaged_shard_are_refused_not_guessed(tmp_path):
    root = tmp_path / "demo"
    build_store(root, [fake()])
    [shard] = (root / "scalars").iterdir()
    shard.write_bytes(shard.read_bytes()[:-1])
    results = Results.open(root)

    with pytest.raises(DamageError) as caught:
        results.scalars(metric="loss")

    size = shard.stat().st_size
    message = f"{shard} is damaged: {size} bytes where {size + 1} were committed"
    assert str(caught.value) == message
    with pytest.raises(DamageError) as caught:  # through DuckDB too, with the same words
        results.sql("SELECT count(*) FROM scalars")
    assert str(caught.value) == message
    assert results.sql("SELECT count(*) AS n FROM spectra").to_pylist() == [{"n": 8}]


# --- what is visible when -------------------------------------------------------------------


def test_results_are_as_of_open_until_they_are_refreshed(tmp_path):
    root = tmp_path / "demo"
    late = fake(1)
    build_store(root, [fake(0), fake(1, status="running")])
    results = Results.open(root)
    before = results.trials(), results.scalars()
    commit(root, 2, commit_row(root, late))

    assert (results.trials(), results.scalars()) == before
    assert results.sql("SELECT count(*) AS n FROM trials").to_pylist() == [{"n": 1}]
    assert results.refresh() is results
    assert results.trials()["trial_id"].to_pylist()[1] == late.trial_id
    assert results.scalars(trial_id=late.trial_id).num_rows == before[1].num_rows
    assert before[0].num_rows == 1


def test_running_attempts_are_shown_only_when_asked_for_and_are_marked(tmp_path):
    root = tmp_path / "demo"
    under_way = fake(0, status="running")
    build_store(root, [under_way, fake(1)])

    plain, running = Results.open(root), Results.open(root, running=True)

    assert plain.trials()["status"].to_pylist() == ["completed"]
    assert running.trials()["status"].to_pylist() == ["running", "completed"]
    assert running.trials(history=True)["status"].to_pylist() == ["completed"]
    loss = running.scalars(metric="loss", subject="train", trial_id=under_way.trial_id)
    assert loss["value"].to_pylist() == [loss_value(step, 0.0, 0) for step in STEPS]


def test_an_attempt_that_failed_is_not_running(tmp_path):
    """Its shards lie about until the next attempt, and would be shown as live."""
    root = tmp_path / "demo"
    failed = fake(0, status="failed")
    build_store(root, [failed, fake(1)])

    results = Results.open(root, running=True)

    assert results.trials()["status"].to_pylist() == ["completed"]
    commit_row(root, failed, attempt=2)  # a second attempt has begun to publish
    again = results.refresh().trials()
    assert again["status"].to_pylist() == ["running", "completed"]
    assert again["attempt"].to_pylist() == [2, 1]


def test_the_newest_file_decides_which_trials_are_results_unless_all_are_asked_for(tmp_path):
    root = tmp_path / "demo"
    dropped, kept = fake(0, lr=0.1), fake(0, weight_decay=1.0)
    build_store(root, [dropped, kept])
    accept_again(root, 2, [kept.trial_id], axes=["weight_decay"])

    newest, everything = Results.open(root), Results.open(root, scope="all")

    assert newest.trials()["trial_id"].to_pylist() == [kept.trial_id]
    assert newest.trials(history=True)["trial_id"].to_pylist() == [kept.trial_id]
    assert newest.parameters == ("weight_decay",)
    assert everything.trials()["trial_id"].to_pylist() == [kept.trial_id, dropped.trial_id]
    assert everything.parameters == ("weight_decay", "lr"), "lr differs although no file sweeps it"
    assert repr(everything) == "<Results demo: all trials (2 completed) by weight_decay, lr>"


def test_another_scope_is_refused(tmp_path):
    build_store(tmp_path / "demo", [fake()])

    with pytest.raises(QueryError) as caught:
        Results.open(tmp_path / "demo", scope="oldest")

    assert str(caught.value) == "scope must be 'newest' or 'all', got 'oldest'"


# --- trends ---------------------------------------------------------------------------------


def write_trends(root: Path) -> pa.Table:
    rows = [
        {"kind": "seeds", "metric": "loss", "subject": "val", "statistic": "final/mean"},
        {"kind": "across", "metric": "loss", "subject": "train", "parameter": "weight_decay"},
    ]
    table = pa.Table.from_pylist(rows, schema=TRENDS)
    pq.write_table(table, root / "trends.parquet")
    return table


def test_trends_are_read_as_of_open(tmp_path):
    root = tmp_path / "demo"
    build_store(root, [fake()])
    table = write_trends(root)
    results = Results.open(root)
    (root / "trends.parquet").unlink()

    assert results.has_trends
    assert results.trends().equals(table)
    assert results.trends(kind="across")["parameter"].to_pylist() == ["weight_decay"]
    assert results.sql("SELECT kind FROM trends ORDER BY kind")["kind"].to_pylist() == [
        "across",
        "seeds",
    ]
    with pytest.raises(QueryError) as caught:
        results.trends(kind="seed")
    assert str(caught.value) == (
        "there is no kind 'seed' (did you mean seeds?); there are: across, seeds"
    )


@pytest.mark.parametrize(
    "ask", [lambda r: r.trends(), lambda r: r.sql("SELECT * FROM trends")], ids=["table", "sql"]
)
def test_trends_that_were_not_computed_are_not_an_empty_table(tmp_path, ask):
    root = tmp_path / "demo"
    build_store(root, [fake()])
    results = Results.open(root)

    with pytest.raises(QueryError) as caught:
        ask(results)

    assert str(caught.value) == (
        f"{root}/trends.parquet does not exist: trends are computed at the end of a run, or by "
        f"`sweep track {root}`"
    )
    assert results.sql("SELECT 1 AS trends").num_rows == 1  # the word alone is no question


def test_damaged_trends_are_refused_with_the_command_that_makes_them_anew(tmp_path):
    root = tmp_path / "demo"
    build_store(root, [fake()])
    write_trends(root)
    path = root / "trends.parquet"
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(DamageError) as caught:
        Results.open(root).trends()

    assert str(caught.value).startswith(f"{path} is damaged: ")
    assert str(caught.value).endswith(
        f"Everything in it follows from the store: `sweep track {root}` makes it anew."
    )


# --- imports --------------------------------------------------------------------------------


def loaded_modules(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_results_need_neither_torch_nor_pandas_nor_duckdb_to_import():
    """A notebook on a laptop reads results without the training stack."""
    heavy = {"torch", "pandas", "duckdb", "ray", "optuna", "mlflow", "scipy"}

    assert not heavy & loaded_modules("from orchestrator import Results")
    assert "duckdb" in loaded_modules("import orchestrator.query"), "the check can fail"


# --- the manual -----------------------------------------------------------------------------


def test_the_manual_names_every_metric_and_quantity_beside_its_group():
    """Variants are abbreviated there, so what stands before the slash is looked for."""
    manual = (Path(__file__).parents[2] / "docs" / "results.md").read_text("utf-8")
    rows = {line.split("|")[1].strip(): line for line in manual.splitlines() if line[:1] == "|"}
    for group, metrics in METRICS_OF.items():
        for metric in metrics:
            name = metric.name.partition("/")[0].replace("<metric>", "loss")
            assert f"`{name}" in rows.get(f"`{group}`", ""), f"{group}: {metric.name}"
    named = {name for row in rows for name in row.replace("`", "").split(", ")}
    quantities = {quantity.name for each in QUANTITIES_OF.values() for quantity in each}

    assert quantities <= named
    assert "no such quantity" not in named
