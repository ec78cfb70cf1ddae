"""The core-neuron study: every stage on a tiny model, verdicts from the numbers, resuming, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.studies.coreinfer_view import ORDER, better
from patchclamp.studies.study import study

OPTIONS: dict[str, Any] = {
    "shares": (0.2, 0.5), "token_shares": (0.4,), "length": 16, "documents": 3, "fitted_on": 8, "items": 2, "shots": 1,
    "refresh": 4, "epochs": 1,
}  # fmt: skip


def lines(seed: int) -> dict[str, list[str]]:
    return {
        "en": [f"The cat number {seed + n} sat on the mat and looked at the moon." for n in range(8)],
        "fr": [f"Le chat numéro {seed + n} est assis sur le tapis et regarde la lune." for n in range(8)],
    }


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    task = Task.of([{"prompt": f"The cat {n} sat on the", "answer": " mat"} for n in range(6)], name="cats")
    return {"text": pc.corpus(lines(10)), "measure": pc.corpus(lines(40)), "tasks": {"cats": task}}


@pytest.fixture(scope="module")
def outcome(tiny_llama: Any, given: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return study("coreinfer", tiny_llama, out=tmp_path_factory.mktemp("study") / "core", quiet=True, **given, **OPTIONS)


def test_every_part_is_reported_and_judged(outcome: Any) -> None:
    titles = [table.title for table in outcome.report.tables]
    assert len(titles) == 7
    curve, own, stable, _, groups, answers, switched = (table.rows for table in outcome.report.tables)
    assert {row["guide"] for row in curve} == set(ORDER)
    assert {row["by"] for row in own} == {"positive", "abs"}
    assert {row["label"] for row in stable} == {"en", "fr"}
    assert sum(row[name] for row in groups for name in row if name != "label") == 16
    assert [(row["task"], row["shots"], row["share"]) for row in answers] == [("cats", 0, 0.2), ("cats", 1, 0.2)]
    assert [(row["text"], row["refresh"]) for row in switched] == [
        ("same", None),
        ("same", 4),
        ("other", None),
        ("other", 4),
    ]
    assert len(outcome.report.verdict) == 11
    assert len(outcome.report.beside.rows) == 6
    assert "<svg" in (outcome.out / "report.html").read_text(encoding="utf-8")


def test_a_finished_run_is_read_again_and_its_guides_are_kept(
    outcome: Any, tiny_llama: Any, given: dict[str, Any]
) -> None:
    before = json.loads((outcome.out / "report.json").read_text(encoding="utf-8"))
    again = study("coreinfer", tiny_llama, out=outcome.out, resume=True, quiet=True, **given, **OPTIONS)
    assert json.loads((outcome.out / "report.json").read_text(encoding="utf-8"))["tables"] == before["tables"]
    assert again.report.verdict == outcome.report.verdict
    for name in ("labels", "k-means", "frequent"):
        assert (outcome.out / f"{name}.clusters.json").is_file()
    assert (outcome.out / "predictor.json").is_file()


def test_one_guide_is_better_only_where_the_difference_on_the_same_texts_is_beyond_chance() -> None:
    base = [5.0, 9.0, 2.0, 7.0, 4.0, 8.0]
    worse, mixed = [value + 0.1 for value in base], [value + (-1) ** at for at, value in enumerate(base)]
    assert better({"losses": base}, {"losses": worse}) is True
    assert better({"losses": worse}, {"losses": base}) is False
    assert better({"losses": base}, {"losses": mixed}) is None
    assert better({"losses": base}, {"losses": base}) is None
    assert better(None, {"losses": base}) is None


def test_text_without_measure_is_refused(tiny_llama: Any, given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give both text= and measure="):
        study("coreinfer", tiny_llama, out=tmp_path / "core", text=given["text"], quiet=True)
