"""The word-class study on a planted network: its verdicts follow its numbers, it resumes, its default text is tagged right."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.find.automaton import tagged, trained

from patchclamp.studies.study import Outcome, study
from patchclamp.studies.word_class_emergence import _generated, _targets, _texts

SMALL: dict[str, Any] = {
    "per_class": 60, "min_per_class": 12, "permutations": 49, "resamples": 2, "by_document": False, "top": 10,
    "controls": 3, "documents": 12,
}  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("study") / "run"
    return study("word-class-emergence", trained("two back"), out=out, quiet=True, text=tagged("two back"), **SMALL)


def said(outcome: Outcome, begins: str) -> str:
    return next(line for line in outcome.report.verdict if line.startswith(begins))


def test_what_the_planted_network_does_is_said(done: Outcome) -> None:
    for claim in (
        "states before a word separate", "more than with random weights", "more than in the embedding",
        "also after last words of the same class", "also after the same last word", "it holds in every text",
    ):  # fmt: skip
        assert ": holds" in said(done, claim), said(done, claim)
    assert "best at embed.0" in said(done, "the last word's class")


def test_tables_hold_every_layer_text_and_class(done: Outcome) -> None:
    layers, copying, texts, clamped, neurons, pairs = done.report.tables
    assert copying.rows == layers.rows
    assert [row["tap"] for row in layers.rows] == ["embed.0", "resid.0"]
    assert [row["best"] for row in layers.rows] == [False, True]
    assert [row["text"] for row in texts.rows] == ["automaton"]
    assert [row["layer"] for row in clamped.rows] == [0]
    assert [row["set"] for row in neurons.rows] == ["C0", "C1", "C2", "C3"]
    assert len(pairs.rows) == 4 + 6
    written = json.loads(done.files["report"].read_text())
    assert written["tables"][0]["rows"][1]["gdv"] == layers.rows[1]["gdv"]
    assert done.files["page"].read_text().count("<svg") == 4


def test_a_resumed_run_says_the_same(done: Outcome) -> None:
    again = study(
        "word-class-emergence",
        trained("two back"),
        out=done.out,
        quiet=True,
        resume=True,
        text=tagged("two back"),
        **SMALL,
    )
    assert again.report.to_dict() == done.report.to_dict()


@pytest.mark.parametrize(("language", "first"), [("en", "ADJ"), ("fr", "DET"), ("zh", "ADJ"), ("ja", None)])
def test_the_default_text_carries_its_classes(language: str, first: str | None) -> None:
    documents = list(_generated(language, "train", 12, 0))
    assert len(documents) == 3
    for document in documents:
        places = sorted((place, name) for name, found in document.spans.items() for place in found)
        assert len(places) == 4 * 5
        covered = "".join(document.text[start:stop] for (start, stop), _ in places)
        assert covered == document.text.replace(" ", "")
        assert [name for _, name in places][4::5] == ["upos=PUNCT"] * 4
        assert first is None or places[0][1] == f"upos={first}"


def test_measuring_uses_other_sentences() -> None:
    found, measured = _texts(None, ("en", "ja"), 80, 0)
    assert found.labels == measured.labels == ("en", "ja")
    sentences = [{part for one in text.documents("en") for part in one.text.split(". ")} for text in (found, measured)]
    assert not sentences[0] & sentences[1]
    mine = tagged("none", count=8)
    rest, held = _texts(mine, (), 0, 0)
    assert (rest.count("automaton"), held.count("automaton")) == (6, 2)


def test_targets_are_the_words_of_a_class() -> None:
    text = tagged("none", count=4)
    targets = _targets(text, "upos", ("C0", "CX"), ("C1=CX", "C2=CX"), 3)
    assert targets.labels == ("C0", "CX")
    for label, names in (("C0", {"w0"}), ("CX", {"w1", "w2"})):
        documents = list(targets.documents(label))
        assert len(documents) == 3
        for document in documents:
            assert {document.text[a:b][:2] for a, b in document.spans["target"]} == names
