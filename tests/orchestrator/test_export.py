"""Exported results must be complete, and readable where this project is not installed."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator import Results
from orchestrator.errors import DamageError, QueryError, UserError
from orchestrator.export import COLUMNS, export
from orchestrator.schemas import SCALARS, SPECTRA, TRIALS
from orchestrator.trends import TRENDS
from spectral import METRICS
from tests.stores import FakeTrial, build_store, loss_value

READ_WITH_PANDAS_ALONE = """
import json, sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("orchestrator", "spectral", "tasks"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, NotInstalled())
import pandas
trials, scalars, spectra, commits = (
    pandas.read_parquet(f"{name}.parquet") for name in ("trials", "scalars", "spectra", "commits")
)
joined = scalars.merge(trials, on="trial_id")
val = joined[(joined.metric == "loss") & (joined.subject == "val") & (joined.step == 10)]
print(json.dumps({
    "loss": dict(zip(val.seed.astype(str), val.value)),
    "values": list(spectra["values"][0]),
    "betas": list(trials.betas[0]),
    "statuses": list(commits.status),
    "columns": {name: list(frame) for name, frame in
                dict(trials=trials, scalars=scalars, spectra=spectra, commits=commits).items()},
}))
"""


@pytest.fixture
def root(tmp_path):
    params = {"weight_decay": 1.0, "lr": 0.001, "betas": [0.9, 0.98]}
    trials = [FakeTrial(seed=seed, params=params) for seed in (0, 1, 2)]
    failed = FakeTrial(seed=3, params=params, status="failed", error="boom")
    build_store(tmp_path / "demo", [*trials, failed])
    return tmp_path / "demo"


def test_pandas_alone_reads_an_export(root, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.export._TRIALS_AT_ONCE", 2)  # more than one row group
    out = tmp_path / "new" / "out"
    export(Results.open(root), out)

    done = subprocess.run(
        [sys.executable, "-I", "-c", READ_WITH_PANDAS_ALONE],
        cwd=out,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert read["loss"] == {str(seed): 2 * loss_value(10, 1.0, seed) for seed in (0, 1, 2)}
    assert read["values"] == Results.open(root).spectra()["values"][0].as_py()
    assert read["betas"] == [0.9, 0.98]
    assert read["statuses"] == ["completed"] * 3 + ["failed"]
    dictionary = json.loads((out / "data_dictionary.json").read_text())
    described = {
        table["name"]: [column["name"] for column in table["columns"]]
        for table in dictionary["tables"]
    }
    assert described == read["columns"]


def test_an_export_holds_exactly_the_rows_of_the_results(root, tmp_path):
    results = Results.open(root)
    export(results, tmp_path / "out")

    for name, table in (
        ("trials", results.trials()),
        ("commits", results.trials(history=True)),
        ("scalars", results.scalars()),
        ("spectra", results.spectra()),
    ):
        read = pq.read_table(tmp_path / "out" / f"{name}.parquet")
        assert read.to_pylist() == table.select(read.column_names).to_pylist()
        assert set(table.column_names) - set(read.column_names) <= {"shards"}


def test_the_sweep_file_and_the_environments_go_along_verbatim(root, tmp_path):
    (root / "sweep" / ".1.yaml.0123abcd").write_text("half of a")
    export(Results.open(root), tmp_path / "out")

    for kept in ("sweep", "environments"):
        there = {path.name: path.read_bytes() for path in (tmp_path / "out" / kept).iterdir()}
        assert there == {
            path.name: path.read_bytes()
            for path in (root / kept).iterdir()
            if not path.name.startswith(".")
        }


def test_the_dictionary_explains_every_column_and_metric_that_is_there(root, tmp_path):
    pq.write_table(TRENDS.empty_table(), root / "trends.parquet")
    export(Results.open(root), tmp_path / "out")

    dictionary = json.loads((tmp_path / "out" / "data_dictionary.json").read_text())
    tables = {table["name"]: table for table in dictionary["tables"]}
    metrics = {metric["name"]: metric for metric in dictionary["metrics"]}

    assert [(name, table["rows"]) for name, table in tables.items()] == [
        ("trials", 3),
        ("commits", 4),
        ("scalars", 3 * 40),
        ("spectra", 3 * 8),
        ("trends", 0),
    ]
    meanings = {column["name"]: column["meaning"] for column in tables["trials"]["columns"]}
    assert meanings["weight_decay"] == "Swept parameter of the task modular_addition."
    assert meanings["lr"] == "Parameter of the task modular_addition."
    assert meanings["wall_seconds"] == "Time spent on the trial over all its attempts, in seconds."
    assert set(metrics) == {
        *("effective_rank", "effective_rank/normalised", "norm/frobenius"),
        *("loss", "error"),
    }
    for name in set(metrics) & set(METRICS):
        assert metrics[name] == vars(METRICS[name])
    assert metrics["error"]["range"] == "[0, 1]"
    assert [quantity["name"] for quantity in dictionary["quantities"]] == ["singular_values"]
    text = (tmp_path / "out" / "data_dictionary.md").read_text()
    assert "| norm/frobenius | sqrt(sum_ij W_ij^2) | [0, inf) | weights | textbook |" in text
    assert "## scalars.parquet (120 rows)" in text


def test_every_column_of_every_table_has_a_meaning():
    """A column that the dictionary does not know would be taken for a parameter of the task."""
    columns = {*TRIALS.names, *SCALARS.names, *SPECTRA.names, *TRENDS.names}

    assert columns - {"params", "shards"} == set(COLUMNS)


def test_an_export_of_no_results_has_the_tables_without_rows(tmp_path):
    build_store(tmp_path / "demo", [FakeTrial(status="running")])
    export(Results.open(tmp_path / "demo"), tmp_path / "out")

    assert pq.read_table(tmp_path / "out" / "scalars.parquet").equals(SCALARS.empty_table())
    assert not (tmp_path / "out" / "trends.parquet").exists()


@pytest.mark.parametrize(("kind", "held"), [("file", "is a file"), ("folder", "is not empty")])
def test_what_is_there_is_never_overwritten(root, tmp_path, kind, held):
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "thesis.tex").write_text("years")
    else:
        out.write_text("years")

    with pytest.raises(UserError) as caught:
        export(Results.open(root), out)

    assert str(caught.value) == f"{out} {held}; give a folder that does not exist yet"
    assert caught.value.exit_code == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "out"]


def test_an_empty_folder_is_filled(root, tmp_path):
    (tmp_path / "out").mkdir()
    export(Results.open(root), tmp_path / "out")

    assert (tmp_path / "out" / "trials.parquet").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "out"]


def test_an_export_that_fails_midway_leaves_nothing(root, tmp_path):
    """The spectra come after the scalars, so part of the export is written when this is met."""
    victim = sorted((root / "spectra").iterdir())[0]
    victim.unlink()

    with pytest.raises(DamageError) as caught:
        export(Results.open(root), tmp_path / "out")

    assert str(caught.value) == f"{victim} is missing, although a commit names it"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_uncommitted_rows_are_not_exported(root, tmp_path):
    with pytest.raises(QueryError) as caught:
        export(Results.open(root, running=True), tmp_path / "out")

    assert str(caught.value) == (
        "an export holds committed rows only; open the results without running"
    )


def test_trends_are_exported_as_they_were_computed(root, tmp_path):
    table = pa.Table.from_pylist([{"kind": "seeds", "value": 0.5, "n": 3}], schema=TRENDS)
    pq.write_table(table, root / "trends.parquet")
    export(Results.open(root), tmp_path / "out")

    assert pq.read_table(tmp_path / "out" / "trends.parquet").equals(table)
