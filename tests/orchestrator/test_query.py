"""SQL over the results: what it answers, what it refuses, and tables out to files."""

import csv
import io
import json
import math
import re
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator import Results
from orchestrator.errors import QueryError
from orchestrator.query import FORMATS, Source, run, to_arrow, write_table
from tests.stores import STEPS, FakeTrial, build_store, rank_value

OURS = "trials, scalars, spectra, commits"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results") / "demo"
    trials = [
        FakeTrial(seed=seed, params={"weight_decay": decay, "lr": 0.001})
        for seed in (0, 1, 2)
        for decay in (0.0, 1.0)
    ]
    build_store(root, [*trials, FakeTrial(seed=9, status="failed", error="boom")])
    return Results.open(root)


def refused(results, sql, **options) -> str:
    with pytest.raises(QueryError) as caught:
        results.sql(sql, **options)
    return str(caught.value)


# --- answers --------------------------------------------------------------------------------


def test_a_mean_over_seeds_is_the_mean_of_the_formula(results):
    found = results.sql(
        """
        SELECT weight_decay, step, avg(value) AS mean, count(*) AS n
        FROM scalars JOIN trials USING (trial_id)
        WHERE metric = 'effective_rank/normalised' AND subject = 'layers.0.a'
        GROUP BY ALL ORDER BY ALL
        """
    ).to_pylist()

    assert [(row["weight_decay"], row["step"], row["n"]) for row in found] == [
        (decay, step, 3) for decay in (0.0, 1.0) for step in STEPS
    ]
    for row in found:
        values = [rank_value(row["step"], row["weight_decay"], seed) for seed in (0, 1, 2)]
        assert row["mean"] == pytest.approx(sum(values) / 3, rel=1e-14)  # a sum of three doubles


def test_spectra_are_lists_in_sql(results):
    found = results.sql(
        "SELECT max(len(values)) AS n, min(values[1] / values[3]) AS r FROM spectra"
    )

    assert found.to_pylist() == [{"n": 3, "r": 4.0}]


def test_commits_hold_the_attempts_that_failed(results):
    found = results.sql("SELECT status, error, count(*) AS n FROM commits GROUP BY ALL ORDER BY n")

    assert found.to_pylist() == [
        {"status": "failed", "error": "boom", "n": 1},
        {"status": "completed", "error": None, "n": 6},
    ]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("FROM trials LIMIT 2", 2),
        ("WITH t AS (SELECT * FROM trials) SELECT * FROM t", 6),
        ("VALUES (1), (2)", 2),
        ("SELECT seed FROM trials ORDER BY seed LIMIT 1;", 1),
        ("PIVOT (FROM scalars WHERE step = 0) ON metric USING avg(value) GROUP BY subject", 4),
        ("DESCRIBE scalars", 9),
        ("SUMMARIZE spectra", 8),
        ("SHOW TABLES", 4),
        ("SELECT * FROM trials a, trials b", 36),
        ("SELECT * FROM query('SELECT * FROM tri' || 'als')", 6),
    ],
    ids=str,
)
def test_everything_that_is_a_question_is_answered(results, sql, rows):
    """The last one reads a table whose name stands nowhere in the text; it must not be empty."""
    assert results.sql(sql).num_rows == rows


def test_equal_column_names_are_told_apart(results):
    found = results.sql("SELECT a.seed, b.seed, 7 AS seed_1 FROM trials a, trials b LIMIT 1")

    assert len(set(found.column_names)) == 3
    assert found.column_names[0] == "seed"


def test_sums_of_integers_are_integers_where_they_fit(results):
    found = results.sql(
        "SELECT sum(seed) AS small, 2::HUGEINT ** 100 AS x, max(2::HUGEINT) FROM trials"
    )
    large = results.sql("SELECT (2::HUGEINT << 100) AS large")

    assert found["small"].to_pylist() == [6]
    assert found["small"].type == pa.int64()
    assert int(large["large"][0].as_py()) == 2**101


def test_times_are_utc_whatever_the_machine_says(results, monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")

    found = results.sql(
        "SELECT max(started_at) AS t, strftime(max(started_at), '%H') h FROM trials"
    )

    assert found["t"].type == pa.timestamp("us", tz="UTC")
    assert found.to_pylist() == [{"t": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), "h": "03"}]


def test_values_are_passed_as_parameters(results):
    named = results.sql("SELECT count(*) n FROM trials WHERE lr = $lr", parameters={"lr": 0.001})
    placed = results.sql("SELECT count(*) n FROM trials WHERE seed > ?", parameters=[0])

    assert (named["n"].to_pylist(), placed["n"].to_pylist()) == ([6], [4])
    assert refused(results, "SELECT $lr", parameters={"wd": 1}) == (
        "the query is refused: Values were not provided for the following parameters: lr"
    )


def test_a_query_reads_only_the_tables_it_scans():
    """Spectra are the bulk of a store; a question about scalars must not load them."""
    read = []

    def source(name):
        table = pa.table({"x": [1, 2]})
        return Source(table.schema, lambda: read.append(name) or table)

    tables = {"scalars": source("scalars"), "spectra": source("spectra")}
    run("SELECT 'spectra', a.x FROM scalars a, scalars b", tables, {})

    assert set(read) == {"scalars"}
    run("SELECT x FROM spectra", tables, {})
    assert "spectra" in read, "the check can fail"


# --- tables of the user ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        pa.table({"seed": [0, 1], "x": [0.5, 1.5]}),
        pa.table({"seed": [0, 1], "x": [0.5, 1.5]}).to_batches()[0],
        pa.table({"seed": [0, 1], "x": [0.5, 1.5]}).to_reader(),
        pd.DataFrame({"seed": [0, 1], "x": [0.5, 1.5]}),
        pd.DataFrame({"x": [0.5, 1.5]}, index=pd.Index([0, 1], name="seed")),
        {"seed": np.array([0, 1]), "x": [0.5, 1.5]},
        [{"seed": 0, "x": 0.5}, {"seed": 1, "x": 1.5}],
    ],
    ids=["table", "batch", "reader", "pandas", "pandas index", "mapping", "rows"],
)
def test_a_table_of_the_user_is_joined(results, given):
    found = results.sql(
        "SELECT sum(x) AS total FROM trials JOIN mine USING (seed)", tables={"mine": given}
    )

    assert found.to_pylist() == [{"total": 2 * (0.5 + 1.5)}]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (
            {"Scalars": {"x": [1]}},
            "the table name 'Scalars' is taken by a table of the results; choose another",
        ),
        (
            {"trends": {"x": [1]}},
            "the table name 'trends' is taken by a table of the results; choose another",
        ),
        (
            {"mine": {"x": [1]}, "MINE": {"x": [2]}},
            "the table name 'MINE' is taken by your table 'mine'; choose another",
        ),
        ({" ": {"x": [1]}}, "a table's name is text, got ' '"),
        (
            {"mine": 3},
            "table 'mine' is a int; expected an Arrow, pandas or polars table, a mapping of "
            "columns, or a list of rows",
        ),
    ],
    ids=["ours", "not yet there", "twice", "no name", "no table"],
)
def test_a_table_of_the_user_that_cannot_be_used_is_refused(results, tables, message):
    assert refused(results, "SELECT 1", tables=tables) == message


def test_a_column_without_an_arrow_type_is_refused_by_the_tables_name():
    with pytest.raises(QueryError) as caught:
        to_arrow("mine", pd.DataFrame({"x": [object()]}))

    assert str(caught.value).startswith("table 'mine' cannot be made an Arrow table: ")


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", f"the query is empty; give one SELECT over the tables {OURS}"),
        ("-- nothing", f"the query is empty; give one SELECT over the tables {OURS}"),
        ("SELECT", "the query does not parse: SELECT clause without selection list"),
        (
            "SELECT valeu FROM scalars",
            'the query is refused: Referenced column "valeu" not found in FROM clause!\n'
            'Candidate bindings: "value", "trial_id"',
        ),
        (
            "SELECT * FROM scalar",
            f"there is no table 'scalar' (did you mean scalars?). The tables are: {OURS}. Pass a "
            "table of your own as tables={'scalar': frame}.",
        ),
        ("SELECT 1; SELECT 2", "the query has 2 statements; give one SELECT"),
        (3, "the query is text, got int"),
    ],
    ids=str,
)
def test_a_mistake_in_a_query_is_explained(results, sql, message):
    assert without_excerpt(refused(results, sql)) == message


def without_excerpt(message: str) -> str:
    """A message without DuckDB's excerpt of the query with a caret below."""
    return re.sub(r"\s*LINE \d+:.*", "", message, flags=re.DOTALL)


# --- escapes --------------------------------------------------------------------------------


WRITES = {
    "COPY scalars TO '{file}'": "COPY",
    "COPY (SELECT 1) TO '{file}' (FORMAT parquet)": "COPY",
    "EXPORT DATABASE '{file}'": "EXPORT",
    "IMPORT DATABASE '{file}'": "PRAGMA",
    "ATTACH '{file}' AS other": "ATTACH",
    "ATTACH ':memory:' AS other": "ATTACH",
    "DETACH memory": "DETACH",
    "INSTALL httpfs": "LOAD",
    "LOAD httpfs": "LOAD",
    "LOAD '{file}'": "LOAD",
    "SET threads = 1": "SET",
    "SET enable_external_access = true": "SET",
    "SET GLOBAL lock_configuration = false": "SET",
    "RESET enable_external_access": "SET",
    "USE memory": "SET",
    "PRAGMA threads = 1": "SET",
    "PRAGMA enable_profiling": "PRAGMA",
    "PRAGMA table_info('scalars')": "PRAGMA",
    "CALL pragma_version()": "CALL",
    "CHECKPOINT": "CALL",
    "VACUUM": "VACUUM",
    "ANALYZE": "VACUUM",
    "BEGIN TRANSACTION": "TRANSACTION",
    "PREPARE q AS SELECT 1": "PREPARE",
    "EXECUTE q": "EXECUTE",
    "EXPLAIN ANALYZE SELECT 1": "EXPLAIN",
    "CREATE TABLE t AS SELECT 1": "CREATE",
    "CREATE OR REPLACE TEMP VIEW scalars AS SELECT 1": "CREATE",
    "CREATE MACRO f() AS 1": "CREATE",
    "CREATE SECRET (TYPE s3)": "CREATE",
    "ALTER VIEW scalars RENAME TO other": "ALTER",
    "COMMENT ON VIEW scalars IS 'x'": "ALTER",
    "DROP VIEW scalars": "DROP",
    "INSERT INTO scalars SELECT * FROM scalars": "INSERT",
    "UPDATE scalars SET value = 0": "UPDATE",
    "DELETE FROM scalars": "DELETE",
    "TRUNCATE scalars": "DELETE",
    "MERGE INTO scalars USING scalars s ON true WHEN MATCHED THEN DELETE": "MERGE_INTO",
}


@pytest.mark.parametrize("sql", WRITES)
def test_only_a_select_is_taken(results, tmp_path, sql):
    """Anything else would change something, or be forgotten with the connection."""
    message = refused(results, sql.format(file=tmp_path / "out"))

    assert message == (
        f"{WRITES[sql]} is refused: results are read-only; give one SELECT over the tables {OURS}. "
        "To write files: `sweep query --format` or `sweep export`."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "reads",
    [
        "'{file}'",
        "read_csv('{file}')",
        "read_csv_auto(['{file}'])",
        "sniff_csv('{file}')",
        "read_text('{file}')",
        "read_blob('{folder}/*')",
        "read_json('{file}')",
        "read_ndjson_objects('{file}')",
        "read_parquet('{file}')",
        "parquet_metadata('{file}')",
        "read_duckdb('{file}')",
        "glob('{folder}/*')",
        "read_text('/proc/self/environ')",
        "'https://example.org/data.csv'",
        "read_parquet('s3://bucket/x.parquet')",
        "query('SELECT * FROM read_text(''{file}'')')",
        "(SELECT * FROM read_text('{file}') LIMIT 0)",
    ],
)
def test_a_query_reaches_no_file_and_no_network(results, tmp_path, reads):
    file = tmp_path / "secret.csv"
    file.write_text("password\nhunter2\n")

    message = refused(results, f"SELECT * FROM {reads.format(file=file, folder=tmp_path)}")

    assert message.startswith("the query reaches outside the results: Cannot access file ")
    assert message.endswith(f"The tables are: {OURS}. Pass other data as tables={{'name': frame}}.")
    assert "hunter2" not in message


def test_a_query_sees_no_python_variable(results, monkeypatch):
    """DuckDB looks for unknown tables among the locals and globals of the code that calls it."""
    frame = pd.DataFrame({"x": [1]})
    monkeypatch.setattr("orchestrator.query.frame", frame, raising=False)

    message = refused(results, "SELECT * FROM frame")

    assert message == (
        f"there is no table 'frame'. The tables are: {OURS}. Pass a table of your own as "
        "tables={'frame': frame}."
    )
    assert results.sql("SELECT * FROM frame", tables={"frame": frame}).num_rows == 1


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        (
            "SELECT getenv('HOME')",
            "the query is refused: Scalar Function with name getenv does not exist!",
        ),
        (
            "SELECT * FROM enable_logging()",
            'the query is refused: Cannot change configuration option ""enable_logging"" - the '
            "configuration has been locked",
        ),
        (
            "SELECT * FROM enable_profiling()",
            'the query is refused: Cannot change configuration option ""enable_profiling"" - the '
            "configuration has been locked",
        ),
        (
            "SELECT * FROM pandas_scan(1::POINTER)",
            "the query is refused: Type with name POINTER does not exist!",
        ),
        (
            "SELECT * FROM query('DROP VIEW scalars')",
            "the query does not parse: Expected a single SELECT statement",
        ),
        (
            "SELECT * FROM query('SELECT 1; SELECT 2')",
            "the query does not parse: Expected a single SELECT statement",
        ),
        (
            "WITH x AS (INSERT INTO scalars VALUES (1) RETURNING *) FROM x",
            "the query is refused: scalars is not an table",
        ),
        (
            "SELECT * FROM python_map_function((SELECT 1))",
            "the query is refused: python_map_function requires a callable bind input",
        ),
    ],
    ids=lambda value: value if value.startswith(("SELECT", "WITH")) else "",
)
def test_functions_that_would_reach_out_are_refused(results, sql, message):
    assert refused(results, sql).startswith(message)


def test_queries_know_nothing_of_each_other_or_of_duckdbs_default_connection(results):
    import duckdb

    duckdb.sql("CREATE OR REPLACE TABLE leaked AS SELECT 1 AS x")
    try:
        assert refused(results, "SELECT * FROM leaked").startswith("there is no table 'leaked'.")
        before = results.sql("SELECT count(*) FROM duckdb_tables()").to_pylist()
        results.sql("PIVOT scalars ON metric USING avg(value)")
        assert results.sql("SELECT count(*) FROM duckdb_tables()").to_pylist() == before
    finally:
        duckdb.sql("DROP TABLE leaked")


# --- tables out -----------------------------------------------------------------------------


AWKWARD = pa.table(
    {
        "name": ["a,b", 'say "hi"', "two\nlines", "", None],
        "value": pa.array([0.1, math.nan, math.inf, -math.inf, None]),
        "list": pa.array([[1.0, math.nan], [], None, [0.5], [2.0]]),
        "nothing": pa.nulls(5),
        "flag": [True, False, None, True, True],
        "when": pa.array([datetime(2026, 1, 2, 3, 4, 5, 6, UTC)] * 5, pa.timestamp("us", "UTC")),
        "struct": [{"x": 1, "y": None}] * 5,
        "kind": pa.array(["x"] * 5).dictionary_encode(),
    }
)


def written(table, format_):
    sink = io.BytesIO()
    write_table(table, format_, sink)
    return sink.getvalue()


def test_csv_holds_every_value_and_lists_as_json(results):
    rows = list(csv.DictReader(io.StringIO(written(AWKWARD, "csv").decode(), newline="")))

    assert [row["name"] for row in rows] == ["a,b", 'say "hi"', "two\nlines", "", ""]
    assert [row["value"] for row in rows] == ["0.1", "nan", "inf", "-inf", ""]
    assert [row["list"] for row in rows] == ['[1.0, "NaN"]', "[]", "", "[0.5]", "[2.0]"]
    assert {row["nothing"] for row in rows} == {""}
    assert rows[0]["struct"] == '{"x": 1, "y": null}'
    assert datetime.fromisoformat(rows[0]["when"]) == datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
    assert rows[0]["kind"] == "x"
    assert b'\n"",' in written(AWKWARD.slice(3), "csv"), "an empty string is not a null"


def test_json_is_strict_and_tells_nan_from_null():
    text = written(AWKWARD, "json").decode()
    rows = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    assert [row["value"] for row in rows] == [0.1, "NaN", "Infinity", "-Infinity", None]
    assert rows[0]["list"] == [1.0, "NaN"]
    assert rows[0]["when"] == "2026-01-02T03:04:05.000006+00:00"
    assert rows[0]["struct"] == {"x": 1, "y": None}
    assert len(text.splitlines()) == len(rows) + 2, "one row per line, for line-based tools"
    assert all(math.isnan(float(row["value"])) for row in rows[1:2]), "what float() reads"


def test_parquet_is_the_table_itself():
    read = pq.read_table(pa.BufferReader(written(AWKWARD, "parquet")))

    assert read.column_names == AWKWARD.column_names
    assert repr(read.to_pylist()) == repr(AWKWARD.to_pylist())  # repr: NaN is not equal to itself


@pytest.mark.parametrize("format_", FORMATS)
def test_every_table_of_results_can_be_written_in_every_format(results, tmp_path, format_):
    tables = [results.trials(), results.scalars(), results.spectra(), results.trials().slice(0, 0)]
    for table in tables:
        path = tmp_path / f"table.{format_}"

        write_table(table, format_, path)

        read = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}[format_]
        assert len(read(path)) == table.num_rows
    assert [path.name for path in tmp_path.iterdir()] == [f"table.{format_}"]


def test_json_of_no_rows_is_an_empty_array():
    assert written(AWKWARD.slice(0, 0), "json") == b"[]\n"


def test_durations_bytes_and_decimals_of_a_query_can_be_written(results):
    found = results.sql(
        "SELECT interval 1 day AS i, 'ab'::BLOB AS b, 1.5 AS d, date '2026-01-02' t"
    )

    assert written(found, "json").decode() == (
        '[\n{"i": [0, 1, 0], "b": "6162", "d": 1.5, "t": "2026-01-02"}\n]\n'
    )
    assert written(found, "csv").decode().splitlines()[1] == '"[0, 1, 0]","6162",1.5,2026-01-02'


def test_a_type_that_a_format_lacks_is_refused_by_column(results):
    found = results.sql("SELECT 1 AS n, interval 1 day AS lasted")

    with pytest.raises(QueryError) as caught:
        write_table(found, "parquet", io.BytesIO())

    assert str(caught.value) == (
        "parquet cannot hold a column of this table: Unhandled type for Arrow to Parquet schema "
        "conversion: month_day_nano_interval"
    )


def test_an_unknown_format_is_refused():
    with pytest.raises(QueryError) as caught:
        write_table(AWKWARD, "xlsx", io.BytesIO())

    assert str(caught.value) == "unknown format 'xlsx'; expected csv, json, parquet"
