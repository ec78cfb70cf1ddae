"""The skill study: every stage on a tiny model, verdicts from the numbers, resuming, bad input; units of the demo's skills."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.find.skill import skill
from patchclamp.measure import effect
from patchclamp.studies.halves import halves
from patchclamp.studies.skill_detection import TAUGHT, _split, _without
from patchclamp.studies.skill_detection_view import ahead, harm, proven, relative, useful
from patchclamp.studies.study import study

OPTIONS = {"controls": 1, "found_on": 12, "items": 4, "documents": 3, "share": 0.05}


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    sums = [
        {"prompt": f"We ask what {n} and {n} make", "answer": f" {2 * n}", "choices": [f" {2 * n}", f" {2 * n + 1}"]}
        for n in range(24)
    ]
    cats = [{"prompt": f"The cat {n} sat on the", "answer": " mat", "choices": [" mat", " moon"]} for n in range(24)]
    return {"sums": Task.of(sums, name="sums"), "cats": Task.of(cats, name="cats")}


@pytest.fixture(scope="module")
def text():
    lines = {
        "en": [f"The cat {n} sat on the mat." for n in range(20)],
        "fr": [f"Le chat {n} est assis." for n in range(20)],
    }
    return pc.corpus({k: v[:12] for k, v in lines.items()}), pc.corpus({k: v[12:] for k, v in lines.items()})


@pytest.fixture(scope="module")
def outcome(tiny_llama, tasks, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "skills"
    return study(
        "skill-detection", tiny_llama, out=out, tasks=tasks, text=text[0], measure=text[1], quiet=True, **OPTIONS
    )


def test_the_study_reports_every_part_and_judges_a_model_without_skills(outcome) -> None:
    titles = [table.title for table in outcome.report.tables]
    for part in ("Units of each skill", "held at 0", "importance", "Regions", "Languages", "normal", "accuracy"):
        assert any(part in title for title in titles), part
    assert len(outcome.report.verdict) == 13
    assert any("does NOT hold" in line for line in outcome.report.verdict)
    assert {row["skill"] for row in outcome.report.tables[5].rows} == {"sums", "cats"}
    assert len(outcome.report.beside.rows) == 5
    assert any("the tasks given" in line for line in outcome.report.differs)
    kept = json.loads((outcome.out / "report.json").read_text(encoding="utf-8"))
    assert kept["format"] == "patchclamp.study/1"
    page = (outcome.out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 4
    found = pc.Finding.load(outcome.out / "skills-difference.sets.json")
    assert found.site == "pre"
    assert set(found.labels) == {"sums", "cats"}


def test_a_resumed_study_reports_the_same(outcome, tiny_llama, tasks, text) -> None:
    again = study(
        "skill-detection", tiny_llama, out=outcome.out, resume=True, tasks=tasks, text=text[0], measure=text[1], quiet=True,
        **OPTIONS,
    )  # fmt: skip
    assert again.report.to_dict() == outcome.report.to_dict()


def test_bad_input_is_refused_before_any_work(tiny_llama, tasks, text, tmp_path) -> None:
    with pytest.raises(InputError, match="at least two"):
        study("skill-detection", tiny_llama, out=tmp_path / "one", tasks={"sums": tasks["sums"]}, quiet=True)
    with pytest.raises(InputError, match="measure="):
        study("skill-detection", tiny_llama, out=tmp_path / "two", text=text[0], quiet=True)
    few = Task.of(list(tasks["sums"])[:2], name="few")
    with pytest.raises(InputError, match="at least 4"):
        study("skill-detection", tiny_llama, out=tmp_path / "three", tasks={**tasks, "few": few}, quiet=True)


def test_halves_share_no_prompt_and_keep_groups_together() -> None:
    items = [{"prompt": f"p{n} is", "answer": " x", "group": str(n // 3)} for n in range(30)]
    first, second = halves(Task.of(items, name="facts"), 0)
    assert len(first) + len(second) == 30
    assert not {item.group for item in first} & {item.group for item in second}
    assert [i.prompt for i in halves(Task.of(items, name="facts"), 0)[0]] == [i.prompt for i in first]


def test_bundled_skills_are_measured_on_items_that_were_not_found_on() -> None:
    known, held = _split(None, 30, 0)
    assert tuple(known) == TAUGHT
    for name, task in known.items():
        assert not {item.prompt for item in task} & {item.prompt for item in held[name]}
        assert 4 <= len(held[name]) <= 30


def test_the_mean_of_the_rest_leaves_the_skill_out(tiny_llama, text, tmp_path) -> None:
    whole = pc.record(tiny_llama, text[0], out=tmp_path / "rec", quiet=True)
    rest = _without(whole, "en")
    assert rest.labels == ("fr",)
    assert rest.get("moments", "fr").mean[0] == whole.get("moments", "fr").mean[0]


def test_predicates_read_the_numbers() -> None:
    row = {"set": "a", "text": "a", "metric": "answer loss", "plain": 1.0, "clamped": 1.5, "effect": 0.5}
    row |= {"control_mean": 0.1, "p_holm": 0.01}
    other = {**row, "text": "b", "effect": 0.2}
    assert proven(row)
    assert not proven({**row, "p_holm": 0.2})
    assert not proven({**row, "effect": 0.05})
    assert not proven({**row, "effect": -0.5, "control_mean": -0.9})
    assert ahead([row, other]) == ["a"]
    assert ahead([{**row, "effect": 0.1}, other]) == []
    assert harm({"metric": "perplexity", "plain": 10.0, "clamped": 20.0}) == pytest.approx(0.6931, abs=1e-4)
    assert useful({"forget": 0.9, "retain": 0.02})
    assert not useful({"forget": 0.9, "retain": 0.2})
    accuracy = [
        {"way": "to mean", "share": 0.015, "set": "a", "text": text, "plain": 0.8, "clamped": value}
        for text, value in (("a", 0.4), ("b", 0.8))
    ]
    assert relative(SimpleNamespace(accuracy=accuracy), "to mean", 0.015) == (0.5, 1.0)
    assert relative(SimpleNamespace(accuracy=accuracy), "pruned", 0.015) is None


@pytest.mark.slow
def test_units_of_the_demos_skills_carry_these_skills() -> None:
    """Units found on training items, clamped on held-out ones: their own task suffers far more than under random sets."""
    model = pc.load("demo")
    known, held = _split(None, 60, 1)
    asked = {name: held[name].limited(16) for name in ("code", "dates", "manners")}
    solved = {name: list(task.corpus(prompts_only=False).documents(task.name)) for name, task in known.items()}
    recording = pc.record(model, pc.corpus(solved), sites=("pre", "mlp"), statistics=("shape", "moments"), quiet=True)
    by_mean = skill(recording, site="pre", forget="code")
    by_size = skill(recording, site="mlp", forget="dates", distance="importance")
    sets = {"code": by_mean.sets["code"], "dates": by_size.sets["dates"]}
    for finding in (by_mean, by_size):
        assert next(iter(finding.null["labels"].values()))["share"] < 0.1
    found = effect(model, sets, on=asked, how="loss", options={"normalise": "tokens"}, controls=3, quiet=True)
    for name in sets:
        own = found.row(name, name)
        others = [found.row(name, text)["effect"] for text in asked if text != name]
        assert own["effect"] > 0.05
        assert own["effect"] > 3 * max(abs(own["control_mean"]), *map(abs, others))
