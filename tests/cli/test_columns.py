"""Prompts and responses in columns, tags in treebanks: only the selected tokens count."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Chain
from tests.cli.program import program

from patchclamp.cli.options import clamp_value, columns, layer_numbers, open_texts, statistics_of
from patchclamp.core.errors import InputError
from patchclamp.models.units import UnitSet, save_sets


@pytest.fixture
def talk(tmp_path: Path) -> list[str]:
    """Two labels, 30 rows each: a question of 3 words of one language, an answer of 5 of the other."""
    options = []
    for label, other in (("en", "fr"), ("fr", "en")):
        rows = [
            {"question": f"{other}1 {other}2 {other}3 ", "answer": " ".join(f"{label}{n}" for n in range(1, 6))}
            for _ in range(30)
        ]
        path = tmp_path / f"{label}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        options += ["--text", f"{label}={path}"]
    return options


ROLES = ("--column", "prompt=question", "--column", "response=answer")


def test_only_responses_count_where_asked(small: Chain, talk: list[str], tmp_path: Path) -> None:
    everything = program("record", small.model, *talk, *ROLES, "--out", tmp_path / "all", "--json")
    assert {entry["tokens"] for entry in everything.json["labels"].values()} == {30 * 8}
    responses = ("--select", "response", "--out", tmp_path / "responses", "--json")
    chosen = program("record", small.model, *talk, *ROLES, *responses)
    assert {entry["tokens"] for entry in chosen.json["labels"].values()} == {30 * 5}
    sets = tmp_path / "sets.json"
    program("find", "language", tmp_path / "responses", "--out", sets, "--min-tokens", 10, "--rate", "0.02")
    found = {label: entry["units"] for label, entry in json.loads(sets.read_text())["sets"].items()}
    specific = small.plant.sets("specific")
    assert set(specific["en"]) <= set(found["en"])  # the questions are in the other language: they don't count
    assert not set(specific["fr"]) & set(found["en"])


def test_perplexity_and_effect_score_the_response_only(small: Chain, talk: list[str]) -> None:
    select = (*talk, *ROLES, "--select", "response", "--json")
    rows = program("perplexity", small.model, *select).json["rows"]
    assert [row["n_tokens"] for row in rows] == [150, 150]
    cheap = ("--controls", 1, "--permutations", 99, "--resamples", 20, "--set", "en")
    ran = program("effect", small.model, small.sets, *select, *cheap, "--scope", "generated")
    assert ran.code == 0, ran.err
    assert [(row["text"], row["n_tokens"]) for row in ran.json["rows"]] == [("en", 150), ("fr", 150)]
    assert [row["plain"] for row in ran.json["rows"]] == pytest.approx([row["value"] for row in rows])


def test_a_plain_name_is_the_text_column(small: Chain, talk: list[str]) -> None:
    for name in ("answer", "text=answer"):
        rows = program("perplexity", small.model, *talk, "--column", name, "--json").json["rows"]
        assert [row["n_tokens"] for row in rows] == [30 * 4, 30 * 4]
    ran = program("perplexity", small.model, *talk, "--column", "reply")
    assert (ran.code, "no column 'reply'" in ran.err) == (2, True)


def test_words_of_a_part_of_speech_count_where_asked(small: Chain, tmp_path: Path) -> None:
    path = tmp_path / "en.conllu"
    words = [("en1", "DET"), ("en2", "NOUN"), ("en3", "VERB"), ("en4", "NOUN")]
    lines = [f"{n}\t{word}\t{word}\t{tag}\t_\t_\t0\troot\t_\t_" for n, (word, tag) in enumerate(words, 1)]
    path.write_text("\n".join(["\n".join(lines) + "\n"] * 40) + "\n")
    texts = ("--text", f"en={path}")
    ran = program("record", small.model, *texts, "--select", "upos=NOUN", "--out", tmp_path / "rec", "--json")
    assert ran.json["labels"]["en"] == {"documents": 40, "tokens": 80}
    rows = program("perplexity", small.model, *texts, "--select", "upos=DET", "--json")
    assert rows.code == 2  # a first word has nothing before it to be predicted from
    assert "no token of 'en' can be scored" in rows.err


def test_text_from_standard_input_and_from_a_folder(
    small: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (small.folder / "en.txt").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    (tmp_path / "fr").mkdir()
    for number in range(2):
        (tmp_path / "fr" / f"{number}.txt").write_bytes((small.folder / "fr.txt").read_bytes())
    texts = ("--text", "en=-", "--text", f"fr={tmp_path / 'fr'}")
    ran = program("record", small.model, *texts, "--out", tmp_path / "rec", "--json")
    assert ran.json["labels"] == {"en": {"documents": 24, "tokens": 480}, "fr": {"documents": 48, "tokens": 960}}
    again = program("replay", tmp_path / "rec")
    assert (again.code, "'en' was stdin and can't be opened again" in again.err) == (2, True)


def test_columns_by_role() -> None:
    assert columns([]) == {}
    assert columns(["body"]) == columns(["text=body"]) == {"text": "body"}
    given = ["prompt=q", "response=a=b", "tags=upos", "tags=ner"]
    assert columns(given) == {"prompt": "q", "response": "a=b", "tags": ["upos", "ner"]}
    for wrong in (["text="], ["colour=red"], ["=x"], [""], ["a", "text=b"]):
        with pytest.raises(InputError, match="--column"):
            columns(wrong)


def test_layers_values_and_statistics_of_options() -> None:
    assert layer_numbers(None) is None
    assert layer_numbers("0-2, 7") == [0, 1, 2, 7]
    for wrong in ("a", "1-", "-1", "1-b", "3-1"):
        with pytest.raises(InputError, match="--layers"):
            layer_numbers(wrong)
    assert (clamp_value("mean"), clamp_value("-1.5")) == ("mean", -1.5)
    assert statistics_of("firing, moments", 0.5, []) == {"firing": {"threshold": 0.5}, "moments": {}}


def test_arguments_of_statistics_are_numbers_lists_words_and_sets(tmp_path: Path, tiny_gpt2: Any) -> None:
    units = UnitSet.of(tiny_gpt2, ["mlp.0.1", "mlp.1.2"])
    save_sets(tmp_path / "sets.json", {"a": units})
    given = [
        f"cofiring.units=@{tmp_path / 'sets.json'}",
        "exemplars.k=5",
        "firing.signal=value",
        "cofiring.threshold=0.5",
    ]
    found = statistics_of("firing,exemplars,cofiring", 0.0, given)
    assert found["firing"] == {"threshold": 0.0, "signal": "value"}
    assert found["exemplars"] == {"k": 5}
    assert found["cofiring"]["units"].names() == units.names()
    assert found["cofiring"]["threshold"] == 0.5
    assert statistics_of("cofiring", 0.0, ["cofiring.units=mlp.0.1,mlp.1.2"])["cofiring"]["units"] == [
        "mlp.0.1",
        "mlp.1.2",
    ]


@pytest.mark.parametrize("entry", ["exemplars.k", "k=5", "exemplars.=5", "moments.k=5"])
def test_arguments_that_are_none_are_refused(entry: str) -> None:
    with pytest.raises(InputError, match=r"STATISTIC\.NAME=VALUE|asks for"):
        statistics_of("exemplars", 0.0, [entry])


@pytest.mark.parametrize(("split", "count"), [("demo", 240), ("demo:find", 200), ("demo:measure", 40)])
def test_the_demo_text_by_name(split: str, count: int) -> None:
    options: dict[str, Any] = {"unit": "line", "column": None, "max_documents": None, "max_tokens": None}
    text = open_texts([split], **options)
    assert text.labels == ("en", "de", "fr", "ru", "zh", "ja")
    assert text.count("ru") == count
    assert open_texts([split], **{**options, "max_documents": 3}).count("ru") == 3
