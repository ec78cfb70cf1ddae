"""Tables of plug-ins: decorated things are found by name, clashes and unknown names are refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.registry import Registry


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with one file that registers one function."""
    package = tmp_path / "sample_room"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from patchclamp.core.registry import Registry\ntable = Registry('sample', room=__name__)\n"
    )
    (package / "one.py").write_text(
        "from sample_room import table\n\n"
        "@table.add('one')\ndef one(recording, *, rate=0.01):\n    '''Finds one thing.\n\n    More.'''\n    return rate\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "sample_room"
    for name in [name for name in sys.modules if name.partition(".")[0] == "sample_room"]:
        del sys.modules[name]


def test_a_file_in_the_room_is_found_without_being_named_anywhere(room: str) -> None:
    table = __import__(room).table
    assert [entry.name for entry in table] == ["one"]
    assert table["one"](None) == 0.01
    assert "one" in table
    assert "two" not in table


def test_a_file_in_a_folder_of_the_room_is_found_too(room: str, tmp_path: Path) -> None:
    folder = tmp_path / "sample_room" / "inner"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "two.py").write_text("from sample_room import table\n\n@table.add('two')\ndef two():\n    'Two.'\n")
    assert [entry.name for entry in __import__(room).table] == ["one", "two"]


def test_an_entry_describes_itself_from_docstring_and_signature(room: str) -> None:
    (entry,) = __import__(room).table
    assert entry.to_dict() == {
        "kind": "sample",
        "name": "one",
        "summary": "Finds one thing.",
        "parameters": {"recording": None, "rate": 0.01},
    }


def test_an_unknown_name_lists_what_there_is(room: str) -> None:
    with pytest.raises(InputError, match="no sample is called 'two'; there are: one"):
        __import__(room).table["two"]


def test_two_files_can_not_take_one_name() -> None:
    table: Registry = Registry("sample", room="patchclamp.core")

    def first() -> None: ...

    def second() -> None: ...

    second.__module__ = "elsewhere"
    table.add("x")(first)
    with pytest.raises(InputError, match="two samples are called 'x'"):
        table.add("x")(second)


def test_a_callable_room_calls_the_function_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twice.py").write_text("def twice(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(tmp_path)
    import twice

    make_callable("twice")
    assert twice(21) == 42
    assert twice.twice(21) == 42


def test_packages_add_theirs_under_the_kind_with_underscores(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from patchclamp.core import registry

    asked: list[str] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: asked.append(group) or [])
    list(Registry("intervention kind", room=room))
    assert asked == ["patchclamp.intervention_kinds"]
