"""BLEnD and CountryRC in small, as their authors write them, become tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data.culture_files import NAME_WORDINGS, blend, country_rc

PLACES = ("China", "Mexico", "South_Korea", "Spain", "UK")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five places, three questions: q1 answered everywhere, q2 the same in all, q3 by one place only."""
    for at, place in enumerate(PLACES):
        answers = [{"en_answers": [f"rare{at}"], "count": 1}, {"en_answers": [f"dish{at}", f"meal{at}"], "count": 4}]
        rows = [
            {"id": "q1", "topic": "Food", "en_question": f"What do people eat in {place}?", "answers": answers},
            {"id": "q2", "topic": "Sport", "en_question": "Which sport?", "answers": [{"en_answers": ["Football!"]}]},
            {"id": "q3", "topic": "Family", "en_question": "Who?", "answers": [] if at else answers},
        ]
        (tmp_path / f"{place}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


@pytest.fixture
def passages(tmp_path: Path) -> Path:
    rows = [
        {"id": str(n), "context": f"Emma went to {{country}}, not to {{country_dummy}}, {n}.", "question": "Where?"}
        for n in range(4)
    ]
    path = tmp_path / "rc.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_the_answer_most_gave_is_right_and_others_are_wrong(folder: Path) -> None:
    task = blend(folder)
    assert [item.labels["country"] for item in task] == list(PLACES)  # q2 and q3 have no wrong options
    for at, item in enumerate(task):
        lines = item.prompt.split("\n")
        assert lines[0] == f"Question: What do people eat in {PLACES[at]}?"
        assert lines[-1] == "Answer:"
        assert item.choices == (" A", " B", " C", " D")
        right = next(line for line in lines if line.startswith(item.answers[0].strip() + ". "))
        assert right.endswith(f"dish{at}")
        assert not any(f"meal{at}" in line for line in lines[1:])


def test_the_control_is_the_same_without_the_question(folder: Path) -> None:
    for asked, control in zip(blend(folder), blend(folder, question=False), strict=True):
        assert asked.prompt.split("\n", 1)[1] == control.prompt
        assert (asked.answers, asked.labels) == (control.answers, control.labels)


def test_answers_can_be_written_out(folder: Path) -> None:
    item = blend(folder, form="answers", options=3)[0]
    assert item.answers == (" dish0",)
    assert len(item.choices) == 3
    assert item.prompt.endswith("Question: What do people eat in China? Answer:")


def test_limits_and_choices_of_places_and_topics(folder: Path) -> None:
    assert len(blend(folder, topics=["Food"], per_country=1)) == 5
    with pytest.raises(InputError, match="no items"):
        blend(folder, countries=["China", "Spain"])  # too few others for three wrong options
    assert len(blend(folder, countries=["China", "Spain"], options=2)) == 2


def test_passages_ask_for_the_name_they_mention(passages: Path) -> None:
    task = country_rc(passages, countries=PLACES)
    assert len(task) == 2 * len(NAME_WORDINGS) * len(PLACES)
    for item in task:
        name = item.labels["country"].replace("_", " ")
        assert f"went to {name}, not to" in item.prompt
        assert "{" not in item.prompt
        assert f"{item.answers[0].strip()}. {name}" in item.prompt
    held = country_rc(passages, countries=PLACES, split="heldout")
    assert not {i.labels["template"] for i in task} & {i.labels["template"] for i in held}
    assert len(country_rc(passages, countries=PLACES, split="all")) == 2 * len(task)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"form": "numbers"}, "form='numbers'"),
        ({"options": 1}, "options=1"),
        ({"countries": ["Atlantis"]}, r"Atlantis\.jsonl"),
        ({"topics": ["Weather"]}, "Weather"),
    ],
)
def test_nonsense_is_refused(folder: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        blend(folder, **asked)


def test_broken_and_missing_files_are_named(folder: Path, passages: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="BLEnD"):
        blend(tmp_path / "nowhere")
    (folder / "China.jsonl").write_text('{"id": "q1"}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"China\.jsonl, line 1"):
        blend(folder)
    (folder / "China.jsonl").write_text("{nothing", encoding="utf-8")
    with pytest.raises(DamagedError, match="line 1"):
        blend(folder)
    with pytest.raises(InputError, match="no file"):
        country_rc(tmp_path / "none.json", countries=PLACES)
    with pytest.raises(InputError, match="at least as many"):
        country_rc(passages, countries=PLACES[:2])
    passages.write_text('{"id": 3}', encoding="utf-8")
    with pytest.raises(InputError, match="CountryRC"):
        country_rc(passages, countries=PLACES)
