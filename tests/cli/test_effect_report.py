"""`patchclamp effect` and `patchclamp edit` on sets and on interventions, with a page: the real commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Chain
from tests.cli.program import Ran, program, real_program

from patchclamp.intervene import Interventions, intervention
from patchclamp.measure import SideEffects
from patchclamp.models import load
from patchclamp.models.units import UnitSet

CHEAP = ("--controls", 2, "--permutations", 1999, "--resamples", 50, "--json")
EDIT = ("--controls", 2, "--permutations", 1999, "--json")


@pytest.fixture(scope="module")
def changes(small: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """French neurons set to 0, as interventions in a file."""
    units = UnitSet.load(small.sets, "fr")
    path = tmp_path_factory.mktemp("changes") / "quiet.json"
    return Interventions([intervention(units.model, units, to=0.0)]).save(path)


def refused(ran: Ran, *words: str) -> None:
    assert ran.code == 2, ran.err
    assert ran.out == ""
    for word in words:
        assert word in ran.err
    assert "Traceback" not in ran.err


def test_interventions_have_the_rows_of_the_set_that_they_clamp(small: Chain, changes: Path, tmp_path: Path) -> None:
    out = tmp_path / "effects.json"
    ran = program("effect", small.model, changes, *small.texts, *CHEAP, "--out", out)
    assert ran.code == 0, ran.err
    by_set = program("effect", small.model, small.sets, "--set", "fr", *small.texts, *CHEAP)
    same = ("text", "plain", "clamped", "effect", "control_mean", "p", "n_units")
    assert {row["set"] for row in ran.json["rows"]} == {"quiet"}
    assert [[row[key] for key in same] for row in ran.json["rows"]] == [
        [row[key] for key in same] for row in by_set.json["rows"]
    ]
    again = program("replay", out, "--json")
    assert (again.code, again.json["agrees"]) == (0, True)


def test_a_report_finds_the_planted_language_hit_and_the_others_spared(
    small: Chain, changes: Path, tmp_path: Path
) -> None:
    page, out = tmp_path / "fr.html", tmp_path / "fr.json"
    tasks = tmp_path / "questions.jsonl"
    words = (small.folder / "fr.txt").read_text().splitlines()[0].split()
    items = [{"prompt": " ".join(words[:3]), "answer": f" {words[3]}"}, {"prompt": words[0], "answer": f" {words[1]}"}]
    tasks.write_text("".join(json.dumps(item) + "\n" for item in items))
    ran = program(
        "effect", small.model, changes, *small.texts, "--task", tasks, "--target", "fr", "--prompt", words[0],
        "--report", page, "--out", out, *CHEAP,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    found = SideEffects.load(out)
    assert ran.json == json.loads(out.read_text())
    assert page.read_text() == found.html()
    assert f"wrote {page}" in ran.err
    assert [row["text"] for row in found.rows] == ["fr", "questions", "en", "de"]
    assert found.row("fr")["role"] == "target"
    assert found.row("fr")["said"].startswith("worse")
    assert found.row("questions")["metric"] == "answer loss"  # no choices
    plain = {row["text"]: row for row in small.ran["effect"].json["rows"] if row["set"] == "fr"}
    for label in ("en", "fr", "de"):
        assert found.row(label)["clamped"] == pytest.approx(plain[label]["clamped"], rel=1e-5)
    assert [sample["prompt"] for sample in found.samples] == [words[0]]
    again = program("replay", out, "--json")
    assert (again.code, again.json["agrees"], again.json["call"]) == (0, True, "side_effects")


def test_an_edit_with_a_report_keeps_what_was_measured_in_its_card(small: Chain, changes: Path, tmp_path: Path) -> None:
    page, out = tmp_path / "fr.html", tmp_path / "edited"
    ran = program("edit", small.model, changes, "--out", out, "--report", page, *small.texts, "--target", "fr", *EDIT)
    assert ran.code == 0, ran.err
    card = json.loads((out / "edit.json").read_text())
    assert [row["text"] for row in card["effects"]] == ["fr", "en", "de"]
    assert ran.json["effects"] == card["effects"]
    assert (out / "report.html").read_text() == page.read_text()
    assert "Measured effects" in (out / "README.md").read_text()
    clamped = {row["text"]: row["clamped"] for row in small.ran["effect"].json["rows"] if row["set"] == "fr"}
    for row in card["effects"]:
        assert row["clamped"] == pytest.approx(clamped[row["text"]], rel=1e-4)
    measured = program("perplexity", out, *small.texts, "--json").json["rows"]
    assert {row["text"]: row["value"] for row in measured} == pytest.approx(clamped, rel=1e-4)


def test_an_edit_needs_no_set_where_there_is_one_and_can_scale(small: Chain, changes: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.json"
    UnitSet.load(small.sets, "fr").save(one)
    ran = program(
        "edit", small.model, one, "--out", tmp_path / "half", "--mode", "scale", "--scale", 0.5, "--why", "x", "--json"
    )
    assert (ran.code, ran.json["mode"], ran.json["why"], ran.json["effects"]) == (0, "scale", "x", None)
    assert program("edit", small.model, changes, "--out", tmp_path / "quiet").code == 0
    ran = program("edit", small.model, small.sets, "--set", "fr", "--out", tmp_path / "fr")
    assert ran.code == 0
    assert "set to 0" in ran.out


def test_requests_that_make_no_sense_are_refused_before_the_work(small: Chain, changes: Path, tmp_path: Path) -> None:
    page, sets, quiet = tmp_path / "x.html", small.sets, changes
    effect = ("effect", small.model)
    refused(program(*effect, sets, *small.texts, "--report", page), "a report is on one change", "--set")
    refused(program(*effect, quiet, *small.texts, "--report", tmp_path / "x.pdf"), "ends in .html")
    refused(program(*effect, quiet, *small.texts, "--report", tmp_path / "no" / "x.html"), "does not exist")
    refused(program(*effect, quiet, *small.texts, "--target", "fr"), "--target has a meaning with --report")
    refused(program(*effect, quiet, *small.texts, "--prompt", "fr"), "--prompt has a meaning with --report")
    refused(program(*effect, quiet, *small.texts, "--set", "fr"), "holds interventions", "--set")
    refused(program(*effect, quiet, *small.texts, "--to", 1), "to= says")
    refused(program(*effect, quiet, "--report", page), "brings no tasks and no text of its own")
    refused(program(*effect, quiet, *small.texts, "--report", page, "--target", "xx"), "'xx' is neither", "en, fr, de")
    refused(program(*effect, quiet, *small.texts, "--how", "loss", "--report", page), "--how has no meaning")
    edit = ("edit", small.model)
    refused(program(*edit, sets, "--out", tmp_path / "e"), "en, fr, de", "say which")
    refused(program(*edit, quiet, "--set", "fr", "--out", tmp_path / "e"), "holds interventions")
    refused(program(*edit, quiet, "--mode", "mean", "--out", tmp_path / "e"), "holds interventions")
    refused(program(*edit, quiet, *small.texts, "--out", tmp_path / "e"), "give --report")
    (tmp_path / "e").mkdir()
    refused(program(*edit, quiet, *small.texts, "--report", page, "--out", tmp_path / "e"), "exists already")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.slow
def test_the_real_program_reports_on_the_demo_model_without_any_data(tmp_path: Path) -> None:
    UnitSet.of(load("demo"), ["mlp.5.1", "mlp.5.2"]).save(tmp_path / "set.json")
    ran = real_program(
        "effect", "demo", "set.json", "--target", "fr", "--report", "fr.html", "--controls", 1, "--permutations", 99,
        folder=tmp_path,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "fr *" in ran.out
    assert "Side effects of a change to demo" in (tmp_path / "fr.html").read_text()


def test_help_shows_the_examples() -> None:
    texts: Any = {name: program(name, "--help").out for name in ("effect", "edit")}
    assert "--report french.html" in texts["effect"]
    assert "interventions.json --out edited/" in texts["edit"]
    for text in texts.values():
        assert "SETS|INTERVENTIONS" in text
