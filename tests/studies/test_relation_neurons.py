"""The relation study on a planted model says what was planted, and says plainly where a model knows nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.find.planted_relations import RELATIONS, WIDTH, M, plant

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.studies.study import Outcome, study

SHARES = (4 / (2 * WIDTH), M / (2 * WIDTH))  # 4 and 8 of two layers' neurons


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    planted = plant(shared=False)
    out = tmp_path_factory.mktemp("study") / "planted"
    how = {"task": planted.task(), "sites": ("mlp",), "shares": SHARES, "evaluation": 5, "controls": 2}
    return study("relation-neurons", planted.model, out=out, quiet=True, **how)


def table(made: Outcome, start: str) -> list[dict]:
    return next(list(found.rows) for found in made.report.tables if found.title.startswith(start))


def test_four_of_eight_redundant_neurons_change_nothing_and_eight_everything(made: Outcome) -> None:
    for row in table(made, "A relation's own facts with its 4 units"):
        assert (row["plain"], row["masked"], row["random"]) == (1, 1, 1)
    for row in table(made, "A relation's own facts with its 8 units"):
        assert (row["plain"], row["masked"], row["random"]) == (1, 0, 1)
        assert row["nats"] > row["nats_random"] > -0.1
    for row in table(made, "Drop of accuracy"):
        assert {name: row[name] for name in RELATIONS} == {name: float(name == row["masked"]) for name in RELATIONS}


def test_the_verdict_follows_the_numbers(made: Outcome) -> None:
    said = "\n".join(made.report.verdict)
    assert "masking 4 units (3.12%) lowers the accuracy on the relation's own facts: does NOT hold" in said
    assert "masking 8 units (6.25%) lowers the accuracy on the relation's own facts: holds" in said
    assert "of 6 pairs of different relations, 0 lose accuracy" in said
    assert "the units act only together" in said
    assert "index 1.00 at 8 units" in said


def test_the_report_is_plain_data_and_a_page(made: Outcome) -> None:
    report = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    assert report["study"] == "relation-neurons"
    assert report["beside"]["rows"]
    assert "<svg" in (made.out / "report.html").read_text(encoding="utf-8")


def test_resuming_reads_what_was_made(made: Outcome) -> None:
    planted = plant(shared=False)
    how = {"task": planted.task(), "sites": ("mlp",), "shares": SHARES, "evaluation": 5, "controls": 2}
    again = study("relation-neurons", planted.model, out=made.out, resume=True, quiet=True, **how)
    assert list(again.report.verdict) == list(made.report.verdict)


def test_a_model_that_knows_nothing_is_said_to_know_nothing(tmp_path: Path) -> None:
    planted = plant()
    items = [
        {"prompt": item.prompt, "answers": [" wrong"], "labels": dict(item.labels)} for item in planted.task(range(12))
    ]
    how = {"task": Task.of(items, name="wrong"), "sites": ("mlp",), "shares": (0.05,), "controls": 1}
    made = study("relation-neurons", planted.model, out=tmp_path / "out", quiet=True, **how)
    said = "\n".join(made.report.verdict)
    assert "the model does not know these facts" in said
    assert "lowers the accuracy on the relation's own facts: can't be told" in said
    assert "no prompt was lost" in said


def test_relation_files_can_be_given(tmp_path: Path) -> None:
    folder = tmp_path / "lre"
    folder.mkdir()
    for relation in RELATIONS[:2]:
        samples = [{"subject": f"s{i}", "object": f"is-{relation}"} for i in range(12)]
        data = {"name": relation, "prompt_templates": [f"{{}} {relation}0"], "samples": samples}
        (folder / f"{relation}.json").write_text(json.dumps(data), encoding="utf-8")
    planted = plant()
    how = {"relations": str(folder), "sites": ("mlp",), "shares": (M / (2 * WIDTH),), "controls": 1, "evaluation": 4}
    made = study("relation-neurons", planted.model, out=tmp_path / "out", quiet=True, **how)
    assert [row["relation"] for row in table(made, "Prompts")] == ["capital", "river"]
    with pytest.raises(InputError, match="not both"):
        study("relation-neurons", planted.model, out=tmp_path / "b", task=planted.task(), relations=str(folder))
    one = planted.task().where(relation="food")
    with pytest.raises(InputError, match="one relation"):
        study("relation-neurons", planted.model, out=tmp_path / "c", task=one, quiet=True)
