"""SQL over Arrow tables, and tables out to csv, json and parquet. The only importer of DuckDB.

A query runs in a database of its own: in memory, with nothing in it but views of the tables it is
given, and locked before the query is seen. So a query that comes from elsewhere can read these
tables and nothing else of the machine.
"""

from __future__ import annotations

import datetime
import decimal
import difflib
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import duckdb
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from orchestrator import files
from orchestrator.errors import QueryError, SpectralSweepsError

FORMATS = ("csv", "json", "parquet")

_LOCKED = {
    "enable_external_access": False,  # files, network, COPY, ATTACH of a file, INSTALL
    "python_enable_replacements": False,  # FROM some_variable_of_the_caller
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "temp_directory": "",  # no spilling into the working directory
}
_NO_TABLE = re.compile(r'Table with name "?(?P<name>.+?)"? does not exist')


@dataclass
class Source:
    """A table that is read when a query scans it, and only then.

    DuckDB asks for `__arrow_c_schema__` when the view is made and for `__arrow_c_stream__` once per
    scan, so a query that does not touch the spectra never reads them from disk.

    Attributes:
        schema: known without reading.
        load: reads the table.
        failure: what `load` raised; DuckDB would only pass on its text.
    """

    schema: pa.Schema
    load: Callable[[], pa.Table]
    failure: SpectralSweepsError | None = field(default=None, init=False)

    def __arrow_c_schema__(self) -> object:
        return self.schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        try:
            return self.load().__arrow_c_stream__(requested_schema)
        except SpectralSweepsError as error:
            self.failure = error
            raise


def run(
    sql: str,
    ours: Mapping[str, Source],
    theirs: Mapping[str, Any],
    parameters: Sequence[Any] | Mapping[str, Any] | None = None,
) -> pa.Table:
    """Answer one SELECT.

    Args:
        sql: DuckDB's dialect.
        ours: our tables.
        theirs: the user's tables: anything that `to_arrow` takes.
        parameters: values for `?` or `$name`.

    Returns:
        The rows. Columns of equal name are told apart by a suffix (`trial_id_1`); sums of integers
        are int64 where they fit.

    Raises:
        QueryError: the query or a table is refused; the message says why and what there is.
        DamageError: a table that the query scans cannot be read.
    """
    if not isinstance(sql, str):
        raise QueryError(f"the query is text, got {type(sql).__name__}")
    registered = {**ours, **_accepted(theirs, ours)}
    there = ", ".join(registered)
    connection = duckdb.connect(":memory:", config=dict(_LOCKED))
    try:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in registered.items():
            connection.register(name, table)
        connection.execute("SET lock_configuration = true")
        _require_one_select(connection, sql, there)
        relation = connection.sql(sql, params=parameters)
        return _tidy(relation.to_arrow_table())
    except duckdb.Error as error:
        for source in ours.values():
            if source.failure is not None:
                raise source.failure from None
        raise _refusal(error, list(registered)) from error
    finally:
        connection.close()


def to_arrow(name: str, given: Any) -> pa.Table:
    """A user's table as Arrow.

    Args:
        name: for the message.
        given: an Arrow table, batch or reader; a pandas or polars frame (whatever exports an Arrow
            stream); a mapping of columns; a list of row mappings. A pandas index that is not just
            0, 1, 2 ... becomes a column.

    Raises:
        QueryError: it is none of these, or its columns have no Arrow type.
    """
    try:
        if isinstance(given, pa.Table):
            return given
        if isinstance(given, list):
            return pa.Table.from_pylist(given)
        if isinstance(given, Mapping):
            return pa.table(dict(given))
        if type(given).__module__.partition(".")[0] == "pandas":
            return pa.Table.from_pandas(given).replace_schema_metadata(None)
        if hasattr(given, "__arrow_c_stream__") or hasattr(given, "__arrow_c_array__"):
            return pa.table(given)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as error:
        raise QueryError(f"table {name!r} cannot be made an Arrow table: {error}") from error
    raise QueryError(
        f"table {name!r} is a {type(given).__name__}; expected an Arrow, pandas or polars table, a "
        "mapping of columns, or a list of rows"
    )


def _accepted(theirs: Mapping[str, Any], ours: Iterable[str]) -> dict[str, pa.Table]:
    taken = {name: "a table of the results" for name in (*ours, "trends")}
    accepted = {}
    for name, given in theirs.items():
        if not isinstance(name, str) or not name.strip():
            raise QueryError(f"a table's name is text, got {name!r}")
        if (by := taken.get(name.lower())) is not None:  # SQL does not tell cases apart
            raise QueryError(f"the table name {name!r} is taken by {by}; choose another")
        taken[name.lower()] = f"your table {name!r}"
        accepted[name] = to_arrow(name, given)
    return accepted


def _require_one_select(connection: Any, sql: str, there: str) -> None:
    statements = connection.extract_statements(sql)
    if not statements:
        raise QueryError(f"the query is empty; give one SELECT over the tables {there}")
    if len(statements) > 1:
        raise QueryError(f"the query has {len(statements)} statements; give one SELECT")
    # PIVOT is the only MULTI statement: it first asks which values become columns.
    kind = statements[0].type.name
    if kind not in ("SELECT", "MULTI"):
        raise QueryError(
            f"{kind} is refused: results are read-only; give one SELECT over the tables {there}. "
            "To write files: `sweep query --format` or `sweep export`."
        )


def _refusal(error: duckdb.Error, there: list[str]) -> QueryError:
    """What DuckDB says, with what it cannot know."""
    # "Catalog Error: Table ... does not exist!": the class of the error says nothing to a user.
    text = re.sub(r"^[A-Z][\w ]* Error: ", "", str(error).strip())
    tables = f"The tables are: {', '.join(there)}."
    if isinstance(error, duckdb.PermissionException):
        first = text.splitlines()[0]
        return QueryError(
            f"the query reaches outside the results: {first}. {tables} Pass other data as "
            "tables={'name': frame}."
        )
    if (missing := _NO_TABLE.search(text)) is not None:
        name = missing["name"]
        near = difflib.get_close_matches(name.lower(), there, n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return QueryError(
            f"there is no table {name!r}{hint}. {tables} Pass a table of your own as "
            f"tables={{{name!r}: frame}}."
        )
    if isinstance(error, duckdb.ParserException):
        return QueryError(f"the query does not parse: {text}")
    return QueryError(f"the query is refused: {text}")


def _tidy(table: pa.Table) -> pa.Table:
    names: list[str] = []
    for name in table.column_names:
        unique, n = name, 0
        while unique in names:
            n += 1
            unique = f"{name}_{n}"
        names.append(unique)
    table = table.rename_columns(names)
    for index, column in enumerate(table.schema):
        if column.type == pa.decimal128(38, 0):  # HUGEINT: what a sum of integers is in DuckDB
            try:
                table = table.set_column(index, column.name, table[index].cast(pa.int64()))
            except pa.ArrowInvalid:  # does not fit
                continue
    return table


# --- tables out -----------------------------------------------------------------------------


def write_table(table: pa.Table, format: str, destination: BinaryIO | str | Path) -> None:
    """Write a table for other programs.

    csv: a header, then RFC 4180; null is empty, an empty string is "", NaN and infinities are
    `nan`, `inf` and `-inf`; lists and structs are JSON text.
    json: an array of objects, one per line. JSON has no NaN: it is the string "NaN", infinities are
    "Infinity" and "-Infinity" (what float() and Number() read), because null already means that
    there is no value. Times are ISO 8601 text.
    parquet: as it is, zstd.

    Args:
        table: any table that `Results` returns.
        format: one of `FORMATS`.
        destination: a path, which is replaced in one go, or a binary stream.

    Raises:
        QueryError: another format.
        StoreError: the path cannot be written.
    """
    writers = {"csv": _csv, "json": _json, "parquet": _parquet}
    if format not in writers:
        raise QueryError(f"unknown format {format!r}; expected {', '.join(FORMATS)}")
    path = Path(destination).absolute() if isinstance(destination, (str, Path)) else None
    sink: Any = io.BytesIO() if path else destination
    try:
        writers[format](table, sink)
    except pa.ArrowNotImplementedError as error:
        raise QueryError(f"{format} cannot hold a column of this table: {error}") from error
    if path:
        files.replace(path, sink.getvalue())


def _parquet(table: pa.Table, sink: Any) -> None:
    pq.write_table(table, sink, compression="zstd")


def _csv(table: pa.Table, sink: Any) -> None:
    for index, column in enumerate(table.schema):
        values = table[index]
        if pa.types.is_dictionary(column.type):
            values = values.cast(column.type.value_type)
        elif pa.types.is_null(column.type):
            values = values.cast(pa.string())
        elif not _fits_csv(column.type):
            texts = [None if v is None else _text(v) for v in values.to_pylist()]
            values = pa.chunked_array([pa.array(texts, pa.string())])
        table = table.set_column(index, column.name, values)
    pyarrow.csv.write_csv(table, sink)


def _fits_csv(type_: pa.DataType) -> bool:
    plain = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)
    times = (pa.types.is_temporal, pa.types.is_large_string, pa.types.is_decimal)
    return any(test(type_) for test in (*plain, *times)) and not pa.types.is_interval(type_)


def _text(value: Any) -> str:
    plain = _jsonable(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)


def _json(table: pa.Table, sink: Any) -> None:
    separator = "[\n"
    for batch in table.to_batches(max_chunksize=10_000):
        lines = [
            json.dumps(_jsonable(row), ensure_ascii=False, allow_nan=False)
            for row in batch.to_pylist()
        ]
        if lines:
            sink.write((separator + ",\n".join(lines)).encode())
            separator = ",\n"
    sink.write(b"[]\n" if separator == "[\n" else b"\n]\n")


def _jsonable(value: Any) -> Any:
    match value:
        case None | bool() | int() | str():
            return value
        case float() if math.isfinite(value):
            return value
        case float():
            return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        case decimal.Decimal():
            return int(value) if value == value.to_integral_value() else float(value)
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case dict():
            return {str(key): _jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [_jsonable(item) for item in value]
        case _:
            return str(value)
