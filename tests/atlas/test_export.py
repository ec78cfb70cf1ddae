"""Export: the files hold what the tables hold, read back by other tools; all of them or none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import polars
import pytest

from patchclamp.atlas import Atlas, schema
from patchclamp.core.errors import InputError


def test_parquet_files_equal_the_tables(atlas: Atlas, tmp_path: Path) -> None:
    files = atlas.export(tmp_path / "tables")
    assert [file.name for file in files] == [f"{table}.parquet" for table in schema.tables()]
    for file in files:
        read = polars.read_parquet(file)
        stored = atlas.sql(f"SELECT * FROM {file.stem}")
        assert read.columns == stored.columns
        assert read.rows() == stored.rows


def test_csv_files_have_one_line_per_row_and_a_head(atlas: Atlas, tmp_path: Path) -> None:
    atlas.export(tmp_path / "tables", "csv")
    units = polars.read_csv(tmp_path / "tables" / "units.csv")
    assert units["name"].to_list() == [row[0] for row in atlas.sql("SELECT name FROM units").rows]


def test_an_existing_folder_is_refused_unless_it_holds_an_export(atlas: Atlas, tmp_path: Path) -> None:
    target = tmp_path / "tables"
    atlas.export(target)
    with pytest.raises(InputError, match="exists already"):
        atlas.export(target)
    atlas.export(target, "csv", overwrite=True)
    assert {file.suffix for file in target.iterdir()} == {".csv"}
    (target / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match=r"mine\.txt"):
        atlas.export(target, overwrite=True)
    assert (target / "mine.txt").read_text() == "keep"


def test_bad_targets_are_refused_and_nothing_is_left(atlas: Atlas, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no export format"):
        atlas.export(tmp_path / "x", "xlsx")
    with pytest.raises(InputError, match="does not exist"):
        atlas.export(tmp_path / "no" / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file"):
        atlas.export(tmp_path / "file", overwrite=True)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_export_leaves_nothing(
    atlas: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filled: SimpleNamespace
) -> None:
    monkeypatch.setattr(schema, "tables", lambda: ["units", "no_such_table"])
    with pytest.raises(Exception, match="no_such_table"):
        atlas.export(tmp_path / "tables")
    assert list(tmp_path.iterdir()) == []
