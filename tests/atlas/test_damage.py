"""Files that are no atlas, a newer one, or a damaged one: each is refused with a line that says which."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest

from patchclamp.atlas import SCHEMA_VERSION, Atlas
from patchclamp.core.errors import DamagedError, InputError


def _changed(filled: SimpleNamespace, path: Path, statement: str) -> Path:
    shutil.copyfile(filled.path, path)
    with duckdb.connect(str(path)) as connection:
        connection.execute(statement)
    return path


def test_a_missing_file_is_the_callers_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no atlas at"):
        Atlas.open(tmp_path / "none")
    with pytest.raises(InputError, match="no atlas at"):
        Atlas.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello" * 1000, b"PAR1"])
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    with pytest.raises(DamagedError, match=r"not a DuckDB file|damaged"):
        Atlas.open(path)


def test_a_foreign_duckdb_file_is_refused(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "a")) as connection:
        connection.execute("CREATE TABLE units (x INTEGER)")
    with pytest.raises(DamagedError, match="no atlas"):
        Atlas.open(tmp_path / "a")


def test_a_newer_schema_is_refused_and_the_versions_named(filled: SimpleNamespace, tmp_path: Path) -> None:
    newer = SCHEMA_VERSION + 1
    path = _changed(filled, tmp_path / "a", f"UPDATE about SET schema_version = {newer}, patchclamp = '9.9'")
    with pytest.raises(
        DamagedError, match=rf"schema {newer}, written by patchclamp 9\.9.*reads schema 1 to {SCHEMA_VERSION}"
    ):
        Atlas.open(path)


@pytest.mark.parametrize(
    "statement", ["UPDATE about SET format = 'other'", "DELETE FROM about", "ALTER TABLE about DROP COLUMN format"]
)
def test_a_file_whose_about_table_says_something_else_is_refused(
    statement: str, filled: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(DamagedError):
        Atlas.open(_changed(filled, tmp_path / "a", statement))


@pytest.mark.parametrize("share", [0.001, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_called_damaged(share: float, filled: SimpleNamespace, tmp_path: Path) -> None:
    content = filled.path.read_bytes()
    path = tmp_path / "a"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DamagedError, match="damaged or truncated"):
        Atlas.open(path).unit("mlp.0.1")


def test_altered_bytes_are_found_by_the_checksums(filled: SimpleNamespace, tmp_path: Path) -> None:
    content = bytearray(filled.path.read_bytes())
    path = tmp_path / "a"
    found = []
    for start in range(3 * 4096 + 1000, len(content), 262_144):  # one place in every block
        altered = content.copy()
        altered[start : start + 64] = bytes(byte ^ 0xFF for byte in altered[start : start + 64])
        path.write_bytes(altered)
        try:
            with Atlas.open(path) as atlas:
                for table in atlas.tables():
                    atlas.sql(f"SELECT * FROM {table}")
        except DamagedError as problem:
            found.append(str(problem))
    assert found
    assert all(message.startswith(str(path)) for message in found)
