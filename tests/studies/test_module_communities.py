"""The study of module communities on a hand-wired model finds its two modules, and its verdict follows the numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.read.planted_modules import planted_model, planted_tasks

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.studies.study import Outcome, study


def datasets() -> dict[str, Task]:
    """Three datasets of each skill, over other words."""
    found = {}
    for name, task in planted_tasks().items():
        for part in range(3):
            items = [
                {"prompt": item.prompt, "answers": item.answers, "choices": item.choices,
                 "labels": {"skill": name, "part": f"{name}{part}"}}
                for number, item in enumerate(task)
                if number % 3 == part or number % 3 == (part + 1) % 3
            ]  # fmt: skip
            found[f"{name}{part}"] = Task.of(items, name=f"{name}{part}")
    return found


def learnable() -> dict[str, Task]:
    """The same, every item often enough to be learned and tested."""
    return {
        name: Task.of(
            [
                {"prompt": item.prompt, "answers": item.answers, "labels": item.labels}
                for item in task
                for _ in range(5)
            ],
            name=name,
        )
        for name, task in datasets().items()
    }


HOW: dict[str, Any] = {
    "by": ("part",), "ratio": 0.85, "prompts": 4, "repeats": 2, "items": 4, "runs": 5, "nulls": 19, "room": 0.05, "seeds": 2,
    "steps": 6, "learning_rate": 0.02,
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    out = tmp_path_factory.mktemp("study") / "planted"
    return study(
        "module-communities",
        planted_model(strength=0.01),
        out=out,
        quiet=True,
        tasks=datasets(),
        learn=learnable(),
        **HOW,
    )


def table(made: Outcome, start: str) -> list[dict[str, Any]]:
    return [dict(row) for found in made.report.tables if found.title.startswith(start) for row in found.rows]


def test_the_wired_modules_form_the_communities(made: Outcome) -> None:
    members = [set(row["members"].split()) for row in table(made, "Communities of modules")]
    for layer in range(2):
        home = next(names for names in members if f"down.{layer}" in names)
        assert {f"gate.{layer}", f"up.{layer}"} <= home
        assert f"down.{1 - layer}" not in home
    skills = [set(row["categories"].split(", ")) for row in table(made, "Communities of skills")]
    assert skills == [{"first"}, {"second"}]


def test_their_own_skill_is_learned_better_than_by_as_many_others(made: Outcome) -> None:
    trained = table(made, "Fine-tuning")
    assert {row["condition"] for row in trained} >= {"none", "all", "community"}
    nearest = [row for row in table(made, "What training other modules costs") if row["condition"] == "none"]
    assert nearest
    assert all(row["difference"] > 0 for row in nearest)


def test_the_verdict_follows_the_numbers(made: Outcome) -> None:
    said = "\n".join(made.report.verdict)
    row = next(row for row in table(made, "Networks") if row["network"].startswith("needed more"))
    holds = "holds" if row["p_ami"] < 0.05 else "does NOT hold"
    assert f"communities of skills follow the human categories: {holds} (adjusted mutual information 1" in said
    assert "random pruning shows none of this" in said
    assert made.report.beside is not None


def test_the_report_is_a_page_and_a_resumed_run_says_the_same(made: Outcome) -> None:
    report = json.loads((made.out / "report.json").read_text(encoding="utf-8"))
    assert report["study"] == "module-communities"
    assert "<svg" in (made.out / "report.html").read_text(encoding="utf-8")
    how = {"tasks": datasets(), "learn": learnable(), **HOW}
    again = study("module-communities", planted_model(strength=0.01), out=made.out, resume=True, quiet=True, **how)
    assert list(again.report.verdict) == list(made.report.verdict)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seeds=0"):
        study("module-communities", planted_model(strength=0.01), out=tmp_path / "run", quiet=True, seeds=0)
