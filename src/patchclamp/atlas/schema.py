"""The atlas's tables: created from schema.sql with their documentation, checked when a file is opened, described."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import DamagedError, InputError

if TYPE_CHECKING:
    import duckdb

FORMAT = "patchclamp.atlas"
SCHEMA_VERSION = 2  # 2 added descriptions
_BLOCK = re.compile(r"((?:^--[^\n]*\n)*)^CREATE (TABLE|VIEW) (\w+)(.*?);$", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(r"^  (\w+) [A-Z]+[,]?\s+-- (.+)$", re.MULTILINE)
_IDENTIFIER = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_TYPES = {"i": "BIGINT", "u": "BIGINT", "b": "BOOLEAN", "f": "DOUBLE"}


def create(connection: duckdb.DuckDBPyConnection, *, created: str) -> None:
    """Make all tables, empty and documented, in the current database, and the row that says what the file is."""
    import duckdb

    connection.begin()
    for kind, name, body, about in _blocks():
        if kind == "TABLE":
            _create_table(connection, name, body, about)
    row = [FORMAT, SCHEMA_VERSION, _own_version(), duckdb.__version__, created]
    connection.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?)", row)
    connection.commit()


def complete(connection: duckdb.DuckDBPyConnection) -> None:
    """Add the tables that an atlas of an earlier schema lacks, empty and documented, and say that it is of this schema."""
    query = "SELECT table_name FROM duckdb_tables() WHERE database_name = current_database()"
    known = {row[0] for row in fetched(connection, query)}
    connection.begin()
    for kind, name, body, about in _blocks():
        if kind == "TABLE" and name not in known:
            _create_table(connection, name, body, about)
    connection.execute("UPDATE about SET schema_version = ?, patchclamp = ?", [SCHEMA_VERSION, _own_version()])
    connection.commit()


def create_views(connection: duckdb.DuckDBPyConnection) -> None:
    """Make or remake the views; run it after columns were added, because a view fixes its columns."""
    for kind, name, body, about in _blocks():
        if kind == "VIEW":
            connection.execute(f"CREATE OR REPLACE VIEW {name} {body}")
            _comment(connection, f"VIEW {name}", about)


def check(connection: duckdb.DuckDBPyConnection, path: Path) -> dict[str, Any]:
    """The `about` row of an opened file; DamagedError if it is no atlas or its schema is newer than ours."""
    import duckdb

    try:
        cursor = connection.execute("SELECT format, schema_version, patchclamp, duckdb, created FROM about")
    except (duckdb.CatalogException, duckdb.BinderException) as problem:
        raise DamagedError(f"{path} is a DuckDB file but no atlas: it lacks the table 'about'; build one") from problem
    names, rows = [column[0] for column in cursor.description or ()], cursor.fetchall()
    about = dict(zip(names, rows[0], strict=True)) if rows else {}
    if about.get("format") != FORMAT:
        raise DamagedError(f"{path} has format {about.get('format')!r}, but {FORMAT!r} is needed here")
    if not isinstance(about["schema_version"], int) or not 1 <= about["schema_version"] <= SCHEMA_VERSION:
        raise DamagedError(
            f"{path} has atlas schema {about['schema_version']}, written by patchclamp {about['patchclamp']}, but this "
            f"patchclamp {_own_version()} reads schema 1 to {SCHEMA_VERSION}; upgrade patchclamp or build the atlas again"
        )
    return about


def describe(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, Any]]:
    """Table or view -> {"about", "rows" (None for a view), "columns": {name: {"type", "about"}}}, from the file itself."""
    kinds = fetched(
        connection,
        "SELECT table_name, comment FROM duckdb_tables() WHERE database_name = current_database() UNION ALL "
        "SELECT view_name, comment FROM duckdb_views() WHERE database_name = current_database() AND NOT internal",
    )
    columns = fetched(
        connection,
        "SELECT table_name, column_name, data_type, comment FROM duckdb_columns() "
        "WHERE database_name = current_database() AND NOT internal ORDER BY table_name, column_index",
    )
    known = tables()
    order = {name: number for number, (_, name, _, _) in enumerate(_blocks())}
    found: dict[str, dict[str, Any]] = {}
    for name, about in sorted(kinds, key=lambda kind: (order.get(kind[0], len(order)), kind[0])):
        counted = fetched(connection, f"SELECT count(*) FROM {quoted(name)}")[0][0] if name in known else None
        mine = {column: {"type": kind, "about": note} for table, column, kind, note in columns if table == name}
        found[name] = {"about": about, "rows": counted, "columns": mine}
    return found


def tables() -> list[str]:
    """Names of the tables (views left out) in the order of schema.sql."""
    return [name for kind, name, _, _ in _blocks() if kind == "TABLE"]


def add_column(connection: duckdb.DuckDBPyConnection, table: str, column: str, dtype_kind: str, about: str) -> None:
    """Add a column for a numpy dtype kind (i, u, b or f) to a table; InputError for a name that is no identifier."""
    kind = _TYPES.get(dtype_kind)
    if kind is None:
        raise InputError(
            f"column {column!r} of {table} has numpy kind {dtype_kind!r}; numbers and booleans can be stored"
        )
    connection.execute(f"ALTER TABLE {table} ADD COLUMN {quoted(identifier(column))} {kind}")
    _comment(connection, f"COLUMN {table}.{quoted(column)}", about)


def fetched(connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query. From DuckDB 2 on a connection is blocked until a result is read to its end: never fetchone."""
    return connection.execute(query, list(parameters)).fetchall()


def columns_of(connection: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    """Names of a table's columns in order."""
    query = (
        "SELECT column_name FROM duckdb_columns() WHERE database_name = current_database() AND table_name = ? "
        "ORDER BY column_index"
    )
    return [row[0] for row in fetched(connection, query, [table])]


def identifier(name: str) -> str:
    """The name itself if it may be a column (lower-case letters, digits, underscore); InputError otherwise."""
    if _IDENTIFIER.fullmatch(name) is None:
        raise InputError(f"{name!r} can't name a column of the atlas; use lower-case letters, digits and underscores")
    return name


def quoted(name: str) -> str:
    """An SQL identifier in quotes."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string literal, for the few statements (ATTACH, COMMENT) that take no bound values."""
    return "'" + text.replace("'", "''") + "'"


def _blocks() -> list[tuple[str, str, str, str]]:
    """(TABLE or VIEW, name, text behind the name, documentation) of each statement of schema.sql."""
    text = files("patchclamp.atlas").joinpath("schema.sql").read_text(encoding="utf-8")
    found = []
    for comment, kind, name, body in _BLOCK.findall(text):
        about = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
        found.append((kind, name, body.strip(), about))
    return found


def _create_table(connection: duckdb.DuckDBPyConnection, name: str, body: str, about: str) -> None:
    connection.execute(f"CREATE TABLE {name} {body}")
    _comment(connection, f"TABLE {name}", about)
    for column, meaning in _COLUMN.findall(body):
        _comment(connection, f"COLUMN {name}.{column}", meaning)


def _comment(connection: duckdb.DuckDBPyConnection, what: str, about: str) -> None:
    connection.execute(f"COMMENT ON {what} IS {literal(about)}")


def _own_version() -> str:
    try:
        return version("patchclamp")
    except PackageNotFoundError:
        return "not installed"
