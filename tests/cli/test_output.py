"""What people and programs see: tables that fit 80 columns, help with examples, listings, checks, warnings in one line."""

from __future__ import annotations

import io
import json
import re
import warnings
from pathlib import Path

import pytest
from rich.console import Console
from tests.cli.conftest import Chain
from tests.cli.program import program, real_program

from patchclamp.cli.main import app, main
from patchclamp.cli.signatures import documented

COMMANDS = (
    "demo", "record", "find", "find language", "effect", "perplexity", "edit", "atlas build", "atlas query",
    "atlas export", "check", "models check", "train demo", "replay", "list",
)  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    ran = program(*name.split(), "--help")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(rf"patchclamp {name}\b", ran.out.partition("Example")[2]), ran.out


def test_the_help_names_every_command() -> None:
    ran = program("--help")
    listed = {line.split()[0] for line in ran.out.partition("Commands:")[2].splitlines() if line.startswith("  ")}
    assert {name.split()[0] for name in COMMANDS} <= listed
    assert app.info.name == "patchclamp"
    assert program("--version").out.startswith("patchclamp 0.")


def test_help_needs_no_torch(tmp_path: Path) -> None:
    ran = real_program("--help", folder=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1", "PATH": "/usr/bin:/bin"})
    assert ran.code == 0
    imported = {line.rpartition("|")[2].strip() for line in ran.err.splitlines() if line.startswith("import time:")}
    assert "patchclamp.cli.main" in imported or "patchclamp.cli.options" in imported
    assert not {name.partition(".")[0] for name in imported} & {"torch", "transformers", "numpy", "duckdb", "altair"}


def test_finder_options_come_from_the_signature_and_the_docstring() -> None:
    ran = program("find", "language", "--help")
    for option in ("--method", "--rate", "--bar", "--lambda", "--site", "--shuffles", "--classes", "--out"):
        assert option in ran.out
    assert "Share of units to select" in ran.out
    text, helps = documented("First line.\n\nrate: the share. bar: the bar,\nin full.\n\nMore.", ["rate", "bar"])
    assert (text, helps) == ("First line.\n\nMore.", {"rate": "The share.", "bar": "The bar, in full."})


def test_tables_fit_a_terminal_of_80_columns(small: Chain, tmp_path: Path) -> None:
    from patchclamp.measure import Effects

    stored = json.loads(small.effects.read_text())
    for row in stored["rows"]:  # large values and long names are what breaks tables
        row |= {"clamped": 1.2345e9, "effect": 1.2345e9, "low": -1234567.8, "high": 9.87e11, "control_mean": -1234.5678}
    path = tmp_path / "e.json"
    path.write_text(json.dumps(stored))
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(Effects.load(path))
    lines = console.export_text().rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    assert {"set", "text"} <= set(lines[2].split())
    assert "1.2e+09" in lines[-1]
    assert "-1,235" in lines[-1]
    atlas = tmp_path / "a.duckdb"
    wide = [
        program("perplexity", small.model, *small.texts),
        program("find", "language", small.recording, "--out", tmp_path / "s.json"),
        program(
            "atlas", "build", atlas, "--recording", small.recording, "--sets", small.sets, "--effects", small.effects
        ),
        program("atlas", "query", atlas, "--unit", small.plant.sets()["fr"][0]),
        program("atlas", "query", atlas, "SELECT * FROM labels"),
        program("check", small.model),
        program("list"),
    ]
    for ran in wide:
        assert ran.code == 0, ran.err
        assert max(map(len, ran.out.splitlines())) <= 80
        assert "…" not in ran.out
    runs = program("atlas", "query", atlas, "SELECT * FROM runs").out.splitlines()  # wide: one value a line
    assert max(map(len, runs)) <= 80
    assert [line.split()[1] for line in runs if line.startswith("kind ")] == ["recording", "finding", "effects"]


def test_the_effects_table_says_what_matters(small: Chain) -> None:
    cheap = ("--controls", 2, "--permutations", 99, "--resamples", 20)
    ran = program("effect", small.model, small.sets, *small.texts, *cheap)
    assert ran.code == 0, ran.err
    for heading in ("set", "text", "plain", "clamped", "effect [95%]", "random", "p (Holm)"):
        assert heading in ran.out
    row = next(line for line in ran.out.splitlines() if line.split()[:2] == ["fr", "fr"])
    assert re.search(r"\d\d\.\d\d +\d\d\.\d\d +\+\d+\.\d+ \[\+\d+\.\d+, \+\d+\.\d+\] +[-+0]", row), row
    assert len(ran.warnings) == len(ran.err.splitlines()) == 1  # too few permutations for so many tests
    assert "permutations" in ran.warnings[0]


def test_list_names_everything_that_can_be_plugged_in() -> None:
    entries = program("list", "--json").json["entries"]
    assert {entry["name"] for entry in entries if entry["kind"] == "finder"} >= {"language"}
    assert {entry["name"] for entry in entries if entry["kind"] == "statistic"} >= {"firing", "moments", "exemplars"}
    assert all(entry["summary"] for entry in entries)
    assert {entry["kind"] for entry in program("list", "finder", "--json").json["entries"]} == {"finder"}


def test_models_check_passes_types_and_writes_the_table(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    ran = program("models", "check", "llama", "gpt2", "--json", "--markdown", page)
    assert (ran.code, ran.json["counts"]) == (0, {"pass": 2})
    assert {row["type"] for row in ran.json["rows"]} == {"llama", "gpt2"}
    assert "llama" in page.read_text()
    shown = program("models", "check", "gpt2")
    assert (shown.code, "gpt2" in shown.out, shown.err) == (0, True, "1 pass\n")


def test_check_reports_every_check(small: Chain) -> None:
    ran = program("check", small.model, "--json")
    assert ran.code == 0
    assert {check["status"] for check in ran.json["checks"]} == {"ok"}
    assert len(ran.json["checks"]) >= 3


def test_a_warning_is_one_clean_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(*_: object, **__: object) -> None:
        warnings.warn("something\n  odd", stacklevel=1)
        warnings.warn("something\n  odd", stacklevel=1)

    monkeypatch.setattr("patchclamp.cli.listing.emit", warn)
    shown = warnings.showwarning
    with pytest.raises(SystemExit):
        main(["list"])
    assert capsys.readouterr().err == "patchclamp: warning: something odd\n" * 2
    assert warnings.showwarning is shown
