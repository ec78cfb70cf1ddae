"""Relation files of the LRE form become a task; damaged and missing ones are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data.relations import relations


def write(folder: Path, name: str, **changes: Any) -> Path:
    facts = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Kenya": "Nairobi", "Chad": "N'Djamena"}
    data = {
        "name": name,
        "prompt_templates": ["the capital of {} is", "{}'s capital is"],
        "prompt_templates_zs": ["What is the capital of {}? It is"],
        "properties": {},
        "samples": [{"subject": s, "object": o} for s, o in facts.items()],
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_a_folder_is_one_task_labelled_by_relation(tmp_path: Path) -> None:
    write(tmp_path / "factual", "capital")
    write(
        tmp_path / "factual", "city", samples=[{"subject": "Peru", "object": "Lima"}, {"subject": "X", "object": "Y"}]
    )
    task = relations(tmp_path)
    assert task.values("relation") == ("capital", "city")
    assert task.values("kind") == ("factual",)
    assert len(task) == 7
    first = task[0]
    assert first.prompt == "The capital of France is"
    assert first.answers == (" Paris",)
    assert first.alternatives == ("France's capital is",)
    assert " Paris" in first.choices
    assert len(first.choices) == 4
    assert first.labels["subject"] == "France"
    assert relations(tmp_path, at_least=3).values("relation") == ("capital",)
    assert relations(tmp_path, names=["city"]).values("relation") == ("city",)


def test_every_template_is_an_item_of_its_own(tmp_path: Path) -> None:
    task = relations(write(tmp_path, "capital"), every_template=True)
    assert len(task) == 10
    assert {item.labels["template"] for item in task} == {"0", "1"}
    assert len({item.group for item in task}) == 5
    assert relations(write(tmp_path, "b"), zero_shot=True)[0].prompt == "What is the capital of France? It is"


def test_a_subject_with_several_objects_has_several_answers(tmp_path: Path) -> None:
    samples = [{"subject": "A", "object": "x"}, {"subject": "A", "object": "y"}, {"subject": "B", "object": "x"}]
    task = relations(write(tmp_path, "many", samples=samples))
    assert [item.answers for item in task] == [(" x", " y"), (" x",)]
    assert task[0].choices == ()  # no other object is wrong
    assert set(task[1].choices) == {" x", " y"}


def test_a_limit_draws_the_same_subjects_every_time(tmp_path: Path) -> None:
    path = write(tmp_path, "capital")
    first, second = relations(path, limit=3), relations(path, limit=3)
    assert len(first) == 3
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != relations(path, limit=3, seed=1).fingerprint


def test_what_is_no_relation_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no relation file or folder"):
        relations(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no \.json file"):
        relations(tmp_path)
    path = write(tmp_path, "capital")
    with pytest.raises(InputError, match="no relation 'river'"):
        relations(tmp_path, names=["river"])
    with pytest.raises(InputError, match="99 subjects"):
        relations(path, at_least=99)
    for changes in ({"samples": [{"subject": "x"}]}, {"samples": 3}, {"prompt_templates": ["no place"]}):
        with pytest.raises(DamagedError, match=r"capital\.json"):
            relations(write(tmp_path, "capital", **changes))
    path.write_text("{", encoding="utf-8")
    with pytest.raises(DamagedError, match="no relation file"):
        relations(path)
