"""A file is written whole or not at all, and what can't be read is named."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from patchclamp.core.errors import DamagedError, Error, InputError
from patchclamp.core.files import atomic_folder, atomic_write, read_json, sha256_file, sha256_text, to_json, write_json


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(target) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(Error, match=r"result\.json.*No space left"), atomic_write(tmp_path / "result.json"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"n": 1})
    with pytest.raises(InputError, match="exists already"):
        write_json(target, {"n": 2}, overwrite=False)
    assert read_json(target) == {"n": 1}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        write_json(tmp_path / "no" / "a.json", 1)


def test_json_holds_numpy_paths_and_turns_what_json_lacks_into_null(tmp_path: Path) -> None:
    value = {
        "a": np.float64(0.5),
        "b": np.arange(3),
        "c": float("nan"),
        "d": tmp_path,
        "e": float("inf"),
        "f": np.True_,
    }
    assert json.loads(to_json(value)) == {"a": 0.5, "b": [0, 1, 2], "c": None, "d": str(tmp_path), "e": None, "f": True}


def test_floats_survive_the_round_trip_exactly(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=50).tolist()
    write_json(tmp_path / "v.json", values)
    assert read_json(tmp_path / "v.json") == values


def test_truncated_json_and_another_format_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"format": "other')
    with pytest.raises(DamagedError, match="not valid JSON"):
        read_json(path)
    path.write_text('{"format": "other/1"}')
    with pytest.raises(DamagedError, match=r"'other/1', but 'mine/1'"):
        read_json(path, format="mine/1")
    with pytest.raises(InputError, match="no file at"):
        read_json(tmp_path / "absent.json")


def test_sha256_of_a_file_and_of_text_agree(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("ünïcode", encoding="utf-8")
    assert sha256_file(tmp_path / "t") == sha256_text("ünïcode")


def test_a_folder_appears_whole_and_as_readable_as_others(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new") as part:
        (part / "one").write_text("1")
        assert not (tmp_path / "new").exists()
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new" / "one").read_text() == "1"
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "plain"]


def test_a_folder_whose_writing_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "new") as part:
        (part / "one").write_text("1")
        raise KeyboardInterrupt
    with pytest.raises(Error, match="No space left"), atomic_folder(tmp_path / "new"):
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_or_has_no_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists already"), atomic_folder(tmp_path):
        pass
    with pytest.raises(InputError, match="does not exist"), atomic_folder(tmp_path / "a" / "b"):
        pass
