"""Connections to atlas files: a new file to fill, an existing one read-only and shut off from everything else.

The file is attached to a database in memory, so that every opened atlas has its own memory limit and threads, whatever
else this process has open. Files are written in the storage format of DuckDB 1.2, which all later ones read.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.atlas.schema import literal
from patchclamp.core.errors import DamagedError, Error, InputError

if TYPE_CHECKING:
    import duckdb

NAME = "atlas"  # of the attached database within the connection
_STORAGE = "v1.2.0"


@contextlib.contextmanager
def writing(
    path: Path, scratch: Path, *, memory_limit: str | None, threads: int | None, shown: Path | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection whose current database is the file at `path`, made if there is none. Each statement is its own
    transaction, since a single one over everything would have to fit into memory: write beside the real file.

    scratch: an existing folder for what does not fit into memory. shown: the path to name in errors. On leaving without
    an exception the file is complete, with no write-ahead log beside it.
    """
    connection = _connect(scratch, memory_limit, threads)
    try:
        with explained(shown or path):
            connection.execute(f"ATTACH {literal(str(path))} AS {NAME} (STORAGE_VERSION {literal(_STORAGE)})")
            connection.execute(f"USE {NAME}")
            yield connection
            connection.execute(f"CHECKPOINT {NAME}")
    finally:
        connection.close()


def reading(
    path: Path, scratch: Path, *, memory_limit: str | None, threads: int | None, locked: bool = True
) -> duckdb.DuckDBPyConnection:
    """A connection to which the file is attached read-only under the name `atlas`.

    locked: it can then reach no other file, no network and no extension, and its settings can't be changed.
    """
    if not path.is_file():
        raise InputError(f"no atlas at {path}; make one with patchclamp.atlas.build or `patchclamp atlas build`")
    connection = _connect(scratch, memory_limit, threads)
    try:
        with explained(path):
            connection.execute(f"ATTACH {literal(str(path))} AS {NAME} (READ_ONLY)")
            connection.execute(f"USE {NAME}")
        if locked:
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn DuckDB's complaints about a file into ours: damaged, foreign, too new, or no room on the disk."""
    import duckdb

    try:
        yield
    except duckdb.Error as problem:
        text = str(problem)
        first = text.splitlines()[0] if text else type(problem).__name__
        if "version number" in text or "newer version of DuckDB" in text:
            raise DamagedError(
                f"{path} was written by a newer DuckDB than the {duckdb.__version__} installed here; "
                f"upgrade with `pip install -U duckdb` ({first})"
            ) from problem
        if "not a valid DuckDB database" in text:
            raise DamagedError(f"{path} is no atlas: it is not a DuckDB file") from problem
        if _is_damage(text):
            raise DamagedError(f"{path} is damaged or truncated ({first}); build or copy it again") from problem
        if isinstance(problem, duckdb.OutOfMemoryException):
            raise Error(f"{path}: DuckDB ran out of memory ({first}); give a larger memory_limit") from problem
        if isinstance(problem, duckdb.IOException | duckdb.TransactionException | duckdb.FatalException):
            raise Error(f"{path}: {first}") from problem  # a full disk shows as any of them
        raise


def _is_damage(text: str) -> bool:
    signs = (
        "Corrupt database",
        "checksum",
        "Could not read enough bytes",
        "Serialization Error",
        "Failed to deserialize",
    )
    return any(sign in text for sign in signs)


def _connect(scratch: Path, memory_limit: str | None, threads: int | None) -> duckdb.DuckDBPyConnection:
    import duckdb

    config: dict[str, Any] = {
        "temp_directory": str(scratch),
        "python_enable_replacements": False,  # else a query could name a variable of the calling Python code as a table
        "pandas_analyze_sample": 0,  # object columns are text: nothing is guessed from a sample
        "autoinstall_known_extensions": False,
    }
    if memory_limit is not None:
        config["memory_limit"] = memory_limit
    if threads is not None:
        if threads < 1:
            raise InputError(f"threads={threads} given; at least 1 is needed")
        config["threads"] = threads
    try:
        return duckdb.connect(":memory:", config=config)
    except duckdb.Error as problem:
        raise InputError(
            f"DuckDB does not take memory_limit={memory_limit!r}, threads={threads!r}: {problem}"
        ) from problem


def scratch_folder(near: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A private temporary folder, in `near` if given; removed with the returned object."""
    return tempfile.TemporaryDirectory(prefix=".atlas-", dir=near, ignore_cleanup_errors=True)
