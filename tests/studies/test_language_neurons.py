"""The study end to end on a planted model: its numbers are the floors' numbers, its page needs nothing but itself."""

from __future__ import annotations

import html.parser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tests.cli.program import contents, program
from tests.find.planted import Plant, plant

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.core.page import cell
from patchclamp.measure import Effects
from patchclamp.studies import language_neurons_view as view
from patchclamp.studies.language_neurons import LanguageNeurons, language_neurons

Made = tuple[Plant, Any, LanguageNeurons, list[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    planted = plant(tmp_path_factory.mktemp("model"), labels=("en", "fr", "<b>"), n_layers=2, width=500)
    model, said = pc.load(planted.path), []
    study = language_neurons(
        model,
        find_on=pc.corpus(planted.text()),
        measure_on=pc.corpus(planted.text(documents=8, seed=1)),
        out=tmp_path_factory.mktemp("study") / "new",
        name="planted",
        controls=2,
        say=said.append,
    )
    return planted, model, study, said


def test_it_finds_the_planted_neurons_and_measures_on_other_text(made: Made) -> None:
    planted, _, study, said = made
    assert {label: units.names() for label, units in study.finding.sets.items()} == planted.sets()
    assert study.recording.documents("fr") == 24
    assert {row["n_documents"] for row in study.effects.rows} == {8}
    assert len(study.effects.rows) == 9
    assert all(study.effects.row(label, label)["effect"] > 2 for label in planted.labels)
    assert [line[:4] for line in said] == ["1/5 ", "2/5 ", "3/5 ", "4/5 ", "5/5 "]


def test_every_file_holds_the_result(made: Made) -> None:
    _, _, study, _ = made
    assert {kind: path.name for kind, path in study.files.items()} == {
        "recording": "planted.recording",
        "sets": "planted.sets.json",
        "effects": "planted.effects.json",
        "atlas": "planted.atlas.duckdb",
        "page": "planted.html",
    }
    assert Effects.load(study.files["effects"]).rows == study.effects.rows
    assert pc.Recording.open(study.files["recording"]).fingerprint == study.recording.fingerprint
    assert pc.Finding.load(study.files["sets"]).class_counts() == study.finding.class_counts()
    with pc.Atlas.open(study.files["atlas"]) as atlas:
        assert atlas.sql("SELECT count(*) AS n FROM effects").rows == [(9,)]
        assert atlas.sql("SELECT count(*) AS n FROM units").rows[0][0] >= study.finding.layout.total
    plain = study.to_dict()
    assert plain["effects"]["rows"] == study.effects.rows
    assert plain["finding"]["classes"] == study.finding.class_counts()


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, the cells of all tables, and how deep the page is nested at its end."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.fixture(scope="module")
def page(made: Made) -> tuple[str, Reader]:
    source = made[2].files["page"].read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(source)
    return source, reader


def test_the_page_is_whole_and_fetches_nothing(page: tuple[str, Reader]) -> None:
    source, reader = page
    assert reader.open == []
    assert source.startswith("<!doctype html>")
    assert sum(tag == "svg" for tag, _ in reader.tags) == 3
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "object", "embed"}
    for _, attributes in reader.tags:
        for name, value in attributes.items():
            if not name.startswith("xmlns"):
                assert "http://" not in (value or ""), (name, value)
                assert "https://" not in (value or ""), (name, value)
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", source)


def test_the_pages_tables_hold_the_numbers(made: Made, page: tuple[str, Reader]) -> None:
    _, _, study, _ = made
    cells = page[1].cells
    for row in study.effects.rows:
        for key in ("plain", "clamped", "effect", "low", "high", "p", "p_holm"):
            assert cell(row[key]) in cells
    for row in view.set_rows(study):
        assert str(row["units"]) in cells
    assert "<b>" in cells  # the label, escaped in the source
    assert "<td>&lt;b&gt;" in page[0] or ">&lt;b&gt;</td>" in page[0]
    assert "<b>" not in page[0]
    assert study.finding.sets["fr"].top(1).names()[0] in cells
    assert any("⟦fr" in text for text in cells)


def test_the_terminal_shows_the_same_in_80_columns(made: Made) -> None:
    _, _, study, _ = made
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(study)
    shown = console.export_text()
    for row in view.own_rows(study):
        assert view.short(row["effect"]) in shown
    assert "patchclamp replay" in shown
    assert "patchclamp edit" in shown
    assert "…" not in shown.partition("Done in")[0]


def test_what_the_page_suggests_works(made: Made) -> None:
    planted, _, study, _ = made
    commands = view.next_commands(study)
    assert any(str(planted.path) in line for line in commands)  # the model of this run, not the demo
    assert shlex.split(commands[1])[-1] == "SELECT * FROM labels"
    ran = program(*shlex.split(commands[0])[1:], "--json")
    assert ran.code == 0, ran.err


def test_its_sets_replay_from_the_files_alone(made: Made) -> None:
    assert pc.replay(made[2].files["sets"]).agrees


def test_it_refuses_other_labels_and_files_that_exist(made: Made) -> None:
    planted, model, study, _ = made
    text = pc.corpus(planted.text())
    out: Path = study.files["page"].parent
    with pytest.raises(InputError, match="labels to measure en, fr"):
        language_neurons(model, find_on=text, measure_on=text.subset(["en", "fr"]), out=out)
    before = contents(out)
    with pytest.raises(InputError, match=r"planted\.recording exists already"):
        language_neurons(model, find_on=text, measure_on=text, out=out, name="planted")
    assert contents(out) == before


def test_bars_and_p_values() -> None:
    assert view.bars([0, 1, 8, 4]) == " ▁█▄"
    assert view.bars([0, 0]) == "  "
    assert [view.p_text(p) for p in (None, 0.5, 0.00001)] == ["–", "0.5000", "<0.0001"]
