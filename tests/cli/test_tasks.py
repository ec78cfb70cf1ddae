"""`patchclamp score`, `effect --task` and `list`: results as the library gives them; bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import Chain
from tests.cli.program import program

from patchclamp import measure
from patchclamp.data import task
from patchclamp.measure import Effects, Measurements
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet, save_sets

WORDS = {"en": ["en1", "en2", "en3", "en4"], "fr": ["fr1", "fr2", "fr3", "fr4"]}


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions in two languages as a task file."""
    path = tmp_path_factory.mktemp("tasks") / "words.jsonl"
    rows = []
    for label, (one, two, three, four) in WORDS.items():
        other = WORDS["fr" if label == "en" else "en"]
        for prompt, answer in (
            (f"{one} {two}", three),
            (f"{two} {three}", four),
            (f"{four} {one}", two),
            (f"{three}", one),
        ):
            rows.append(
                {
                    "prompt": prompt,
                    "answer": f" {answer}",
                    "choices": [f" {other[0]}", f" {answer}"],
                    "labels": {"language": label},
                }
            )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def sets(small: Chain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load(small.model)
    path = tmp_path_factory.mktemp("sets") / "sets.json"
    save_sets(path, {"few": UnitSet.of(model, ["mlp.0.3", "mlp.0.4"])})
    return path


def one_line(ran: Any, code: int, *words: str) -> None:
    said = [line for line in ran.err.splitlines() if not line.startswith("patchclamp: warning: ")]
    assert (ran.code, ran.out, len(said)) == (code, "", 1), ran
    for word in words:
        assert word in said[0]


def test_scores_are_those_of_the_library(small: Chain, items: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    ran = program("score", small.model, "--task", items, "--by", "language", "--how", "loss", "--normalise", "tokens",
                  "--json", "--out", out)  # fmt: skip
    assert ran.code == 0, ran.err
    assert "measurements" not in ran.json
    expected = measure.score_all(load(small.model), task(items).by("language"), "loss", normalise="tokens", quiet=True)
    assert [row["text"] for row in ran.json["rows"]] == ["en", "fr"]
    for row, wanted in zip(ran.json["rows"], expected.rows, strict=True):
        assert row["value"] == pytest.approx(wanted["value"], rel=1e-6)
        assert (row["metric"], row["n_documents"]) == ("answer loss", 4)
    assert Measurements.load(out)["fr"].totals == pytest.approx(expected["fr"].totals)


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("choice", []),
        ("completion", ["--tokens", 1]),
        ("pairs", []),
        ("generation", ["--max-new-tokens", 2]),
        ("loss", []),
    ],
)
def test_every_metric_has_a_table_and_items(small: Chain, items: Path, how: str, more: list[Any]) -> None:
    ran = program("score", small.model, "--task", f"words={items}", "--how", how, *more, "--json", "--per-item")
    assert ran.code == 0, ran.err
    (found,) = ran.json["measurements"]
    assert (found["text"], len(found["items"])) == ("words", 8)
    assert ("chance" in ran.json["rows"][0]) == (how == "choice")
    shown = program(
        "score", small.model, "--task", items, "--how", how, *more, "--max-items", 2, "--where", "language=fr"
    )
    assert shown.code == 0, shown.err
    assert "words" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80


def test_an_effect_on_tasks_and_its_replay(small: Chain, items: Path, sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "effects.json"
    ran = program(
        "effect", small.model, sets, "--task", items, "--by", "language", "--how", "loss", "--shots", 1, "--scope",
        "generated", "--controls", 2, "--permutations", 99, "--resamples", 50, "--json", "--out", out,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert [(row["set"], row["text"], row["metric"]) for row in ran.json["rows"]] == [
        ("few", "en", "answer loss"), ("few", "fr", "answer loss"),
    ]  # fmt: skip
    assert Effects.load(out).provenance["arguments"]["how"] == "loss"
    again = program("replay", out, "--json")
    assert (again.code, again.json["agrees"]) == (0, True)


def test_the_list_names_metrics_and_generators() -> None:
    listed = program("list", "--json").json["entries"]
    kinds = {kind: [row["name"] for row in listed if row["kind"] == kind] for kind in ("metric", "generator", "finder")}
    assert kinds["metric"] == ["choice", "completion", "generation", "loss", "pairs"]
    assert {"facts", "arithmetic", "sentences"} <= set(kinds["generator"])
    assert all(row["summary"] for row in listed)
    assert "arithmetic" in program("list", "generator").out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "none.jsonl"], ["no file at none.jsonl"]),
        (["--task", "=x.jsonl"], ["is not NAME=FILE"]),
        (["--task", "generate:poems"], ["no generator is called 'poems'"]),
        (["--task", "generate:facts,mood=good"], ["'mood=good'"]),
        (["--task", "ITEMS", "--how", "mood"], ["no metric is called 'mood'", "choice"]),
        (["--task", "ITEMS", "--by", "country"], ["label 'country'", "language"]),
        (["--task", "ITEMS", "--where", "language"], ["--where 'language' is not LABEL=VALUE"]),
        (["--task", "ITEMS", "--where", "language=de"], ["en, fr"]),
        (["--task", "ITEMS", "--task", "ITEMS"], ["two tasks are called 'words'"]),
        (["--task", "ITEMS", "--shots", "8"], ["only 7 items"]),
        (["--task", "ITEMS", "--chat"], ["chat template"]),
        (["--task", "ITEMS", "--how", "loss", "--tokens", "1"], ["--tokens has no meaning for --how loss"]),
        (["--task", "ITEMS", "--how", "generation", "--checker", "fuzzy"], ["checker='fuzzy'"]),
        (["--task", "ITEMS", "--out", "nowhere/x.json"], ["nowhere"]),
    ],
)
def test_a_score_that_cannot_be_had_is_one_line(
    small: Chain, items: Path, options: list[str], words: list[str]
) -> None:
    one_line(program("score", small.model, *[str(items) if part == "ITEMS" else part for part in options]), 2, *words)


def test_an_effect_is_on_text_or_on_tasks(small: Chain, items: Path, sets: Path) -> None:
    run = ["effect", small.model, sets]
    one_line(program(*run), 2, "either --text LABEL=FILE or --task NAME=FILE")
    one_line(program(*run, *small.texts, "--task", items), 2, "either --text")
    one_line(program(*run, *small.texts, "--how", "loss"), 2, "--how has no meaning for --text")
    one_line(program(*run, "--task", items, "--select", "response"), 2, "--select has no meaning for --task")
    one_line(program(*run, *small.texts, "--shots", 1), 2, "--shots has no meaning for --text")
    one_line(program(*run, *small.texts, "--alternatives"), 2, "--alternatives has no meaning for --text")


def test_a_broken_task_file_is_named_with_its_line(small: Chain, items: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(items.read_text() + '{"prompt": "en1", "answer": " en2"\n')
    one_line(program("score", small.model, "--task", bad), 2, "bad.jsonl, line 9 is not valid JSON")
