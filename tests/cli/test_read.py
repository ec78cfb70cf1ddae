"""`patchclamp read`: readings as commands, saved and used by the next command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.program import program

from patchclamp.read import TokenMap


def test_tokens_of_some_units_are_printed_and_saved(tmp_path: Path) -> None:
    out = tmp_path / "tokens.json"
    ran = program("read", "tokens", "demo", "--units", "mlp.4.17,mlp.5.3", "--k", 4, "--out", out, "--json")
    assert ran.code == 0, ran.err
    rows = ran.json["rows"]
    assert [row["unit"] for row in rows] == ["mlp.4.17", "mlp.5.3"]
    assert [len(row["promotes"]) for row in rows] == [4, 4]
    assert f"wrote {out}" in ran.err
    assert TokenMap.load(out).names == ("mlp.4.17", "mlp.5.3")
    shown = program("read", "tokens", "demo", "--units", "mlp.4.17", "--norm", "none")
    assert "mlp.4.17" in shown.out
    built = program("atlas", "build", tmp_path / "a.duckdb", "--tokens", out, "--json")
    assert built.code == 0, built.err
    page = program("atlas", "query", tmp_path / "a.duckdb", "--unit", "mlp.5.3", "--json").json
    assert [row["token"] for row in page["tokens"] if row["sign"] == 1] == rows[1]["promotes"]


def test_words_become_sets_that_other_commands_take(tmp_path: Path) -> None:
    out = tmp_path / "words.json"
    ran = program("read", "word", "demo", "--words", "blue,water=water|eau", "--top", 3, "--out", out, "--json")
    assert ran.code == 0, ran.err
    assert list(json.loads(out.read_text())["sets"]) == ["blue", "water"]
    again = program("read", "tokens", "demo", "--units", f"{out}:blue", "--k", 2, "--json")
    assert len(again.json["rows"]) == 3
    assert program("read", "tokens", "demo", "--units", f"{out}:red").err.startswith("patchclamp: ")
    assert "\n" in program("read", "word", "demo", "--words", "blue").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tokens", "demo", "--units", "mlp.99.1"), "layer 99"),
        (("tokens", "demo", "--sites", "nowhere"), "no site"),
        (("tokens", "demo", "--units", "missing.json"), "no file at"),
        (("word", "demo", "--words", "zqxwv"), "not even its beginning"),
    ],
)
def test_bad_requests_are_one_line_and_exit_two(arguments: tuple[str, ...], said: str) -> None:
    ran = program("read", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert len(ran.err.strip().splitlines()) == 1


def test_help_shows_an_example_that_is_a_command() -> None:
    assert "patchclamp read tokens demo --units" in program("read", "tokens", "--help").out
    assert "tokens" in program("read", "--help").out
