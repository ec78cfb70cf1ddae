"""The data-selection study on a planted pool says what was planted, resumes, and says plainly what does not hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.planted_topics import VARIANTS, latents, planted_model, texts

from patchclamp.core.errors import InputError
from patchclamp.data import corpus
from patchclamp.studies.monosemantic_data_selection import _built_in
from patchclamp.studies.study import Outcome, study

NAME = "monosemantic-data-selection"


def arguments(folder: Path) -> dict[str, Any]:
    """A pool of three topics, targets of two; the target's words are not those of the pool."""
    dictionary = folder / "latents"
    if not dictionary.exists():
        latents().save(dictionary)
    return {
        "pool": corpus({topic: texts(topic, 20, range(12, VARIANTS), 0) for topic in "abc"}),
        "target": corpus({topic: texts(topic, 5, range(12), 1) for topic in "ab"}),
        "held_out": corpus({topic: texts(topic, 30, range(12, VARIANTS), 2) for topic in "ab"}),
        "dictionary": str(dictionary),
        "budget": 0.33,
        "controls": 2,
        "steps": 10,
        "learning_rate": 4e-3,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("selection")
    return study(NAME, planted_model(), out=folder / "out", quiet=True, **arguments(folder))


def table(made: Outcome, start: str) -> list[dict]:
    return next(list(found.rows) for found in made.report.tables if found.title.startswith(start))


def test_features_choose_the_targets_topic_and_the_farthest_are_of_others(made: Outcome) -> None:
    rows = {(row["target"], row["way"]): row for row in table(made, "What was selected")}
    for target in "ab":
        assert rows[target, "features"]["precision"] == 1.0
        assert rows[target, "features"]["chance"] == pytest.approx(1 / 3)
        assert rows[target, "neurons"]["precision"] < 1.0  # a and b share neurons
        assert rows[target, "farthest"]["precision"] == 0.0


def test_training_on_what_features_choose_lowers_the_targets_loss(made: Outcome) -> None:
    rows = {(row["target"], row["way"]): row for row in table(made, "Loss on held-out")}
    for target in "ab":
        features = rows[target, "features"]
        assert features["better"]
        assert features["beaten"] == features["n_random"] == 2
        assert features["loss"] < rows[target, "farthest"]["loss"]
        assert features["low"] <= features["effect"] <= features["high"] < 0
    said = "\n".join(made.report.verdict)
    assert (
        "training on what features select lowers the target's loss more than training on random samples: holds" in said
    )


def test_effects_are_plain_differences_of_the_kept_losses(made: Outcome) -> None:
    def loss(stage: str) -> float:
        kept = json.loads((made.out / "stages" / f"{stage}.json").read_text(encoding="utf-8"))["data"]["on"]["a"]
        return sum(kept["totals"]) / sum(kept["tokens"])

    row = next(row for row in table(made, "Loss on held-out") if (row["target"], row["way"]) == ("a", "bm25"))
    random = np.mean([loss("tuned-random-0"), loss("tuned-random-1")])
    assert row["effect"] == pytest.approx(loss("tuned-a-bm25") - random)
    assert row["base"] == pytest.approx(loss("base"))


def test_a_resumed_run_says_the_same_and_the_page_shows_the_paper(made: Outcome) -> None:
    folder = made.out.parent
    again = study(NAME, planted_model(), out=made.out, resume=True, quiet=True, **arguments(folder))
    assert list(again.report.verdict) == list(made.report.verdict)
    report = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    assert {"what": "metric cosine (ours: R-precision)", "paper": "63.78"}.items() <= next(
        row.items() for row in report["beside"]["rows"] if row["what"].startswith("metric cosine")
    )
    assert "<svg" in (made.out / "report.html").read_text(encoding="utf-8")


def test_a_pool_that_does_not_name_the_target_has_no_precision(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    given["pool"] = corpus({"mixed": [text for topic in "abc" for text in texts(topic, 6, range(12, VARIANTS), 0)]})
    given |= {"ways": ("features",), "controls": 1, "steps": 1}
    made = study(NAME, planted_model(), out=tmp_path / "out", quiet=True, **given)
    assert all(row["precision"] is None for row in table(made, "What was selected"))
    assert any("can't be told (the pool's labels don't name" in line for line in made.report.verdict)


def test_built_in_texts_keep_pool_target_and_held_out_apart() -> None:
    texts_ = _built_in(["en upper", "ru vowelless"], 0)
    parts = [
        {document.text for label in part.labels for document in part.documents(label)}
        for part in (texts_.pool, texts_.target, texts_.held_out)
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
    assert [texts_.pool.count(label) for label in texts_.pool.labels] == [32] * 16
    assert [texts_.target.count(label) for label in texts_.target.labels] == [10, 10]


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    for change, message in (
        ({"held_out": None}, "go together"),
        ({"held_out": corpus(a=["a0x1 a1x1"])}, "target 'b' has no held_out"),
        ({"controls": 0}, "controls=0"),
        ({"pool": None, "target": None, "held_out": None, "targets": ("xx",)}, "no built-in target is called 'xx'"),
    ):
        with pytest.raises(InputError, match=message):
            study(NAME, planted_model(), out=tmp_path / f"out{len(message)}", quiet=True, **{**given, **change})
