"""The unlearning study: every stage on a tiny model, verdicts from the numbers, resuming, bad input; the demo's taught skills."""

from __future__ import annotations

import json
from typing import Any

import pytest

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find.skill import skill
from patchclamp.intervene import Interventions, intervention
from patchclamp.intervene.key_fit import abstain
from patchclamp.intervene.skill_fit import neuron_adjust
from patchclamp.measure import Effects, score_all
from patchclamp.studies.skill_unlearning import TAUGHT, _split
from patchclamp.studies.skill_unlearning_numbers import (
    ahead,
    left,
    left_by_chance,
    lost,
    proven,
    summary,
    useful,
    way_name,
)
from patchclamp.studies.study import study

OPTIONS = {"controls": 1, "found_on": 12, "items": 4, "language_items": 3, "shares": (0.05, 0.2), "share": 0.05}


@pytest.fixture(scope="module")
def tasks(tiny_llama: Any) -> dict[str, Task]:
    """Three tasks of which the random model knows one: its answers are what it writes."""
    sums = [f"We ask what {n} and {n} make" for n in range(24)]
    cats = [f"The cat {n} sat on the" for n in range(24)]
    years = [f"In the year {n} of" for n in range(24)]
    known = [{"prompt": prompt, "answer": tiny_llama.generate(prompt, max_new_tokens=1)[0] or " x"} for prompt in sums]
    return {
        "sums": Task.of(known, name="sums"),
        "cats": Task.of([{"prompt": prompt, "answer": " mat"} for prompt in cats], name="cats"),
        "years": Task.of([{"prompt": prompt, "answer": " peace"} for prompt in years], name="years"),
    }


@pytest.fixture(scope="module")
def languages() -> Task:
    lines = {"en": "The cat number {} sat on", "fr": "Le chat {} est assis sur"}
    return Task.of(
        [
            {"prompt": line.format(n), "answer": " it", "labels": {"language": language}}
            for language, line in lines.items()
            for n in range(24)
        ],
        name="spoken",
    )


@pytest.fixture(scope="module")
def outcome(tiny_llama: Any, tasks: dict[str, Task], languages: Task, tmp_path_factory: Any) -> Any:
    out = tmp_path_factory.mktemp("study") / "unlearning"
    return study("skill-unlearning", tiny_llama, out=out, tasks=tasks, languages=languages, quiet=True, **OPTIONS)


def test_the_study_reports_every_part_and_judges_a_model_without_skills(outcome: Any) -> None:
    titles = [table.title for table in outcome.report.tables]
    for part in (
        "left of each skill",
        "Accuracy",
        "at once",
        "Languages",
        "Regions of",
        "entered",
        "Leakage",
        "normal",
    ):
        assert any(part in title for title in titles), part
    assert any("does NOT hold" in line for line in outcome.report.verdict)
    assert {row["skill"] for row in outcome.report.tables[0].rows} == {
        "sums",
        "cats",
    }  # years stand for general knowledge
    assert any("left of years" in heading for heading in outcome.report.tables[0].headings.values())
    assert len(outcome.report.beside.rows) == 12
    assert any("the tasks given" in line for line in outcome.report.differs)
    kept = json.loads((outcome.out / "report.json").read_text(encoding="utf-8"))
    assert kept["format"] == "patchclamp.study/1"
    page = (outcome.out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") >= 3


def test_what_was_done_can_be_done_again_from_the_files(outcome: Any, tiny_llama: Any) -> None:
    kept = Interventions.load(outcome.out / "adjust-0.2.interventions.json")
    assert [change.components[0].name for change in kept] == ["sums", "cats"]
    refusing = Interventions.load(outcome.out / "abstain-best.interventions.json")
    with kept.applied(tiny_llama), refusing.applied(tiny_llama):
        assert len(tiny_llama.generate(["Two", "The cat"], max_new_tokens=3)) == 2
    assert Effects.load(outcome.out / "abstain-best.effects.json").sets == ("sums", "cats")
    assert Effects.load(outcome.out / "languages-abstain.effects.json").sets == ("en", "fr")


def test_a_resumed_study_reports_the_same(outcome: Any, tiny_llama: Any, tasks: Any, languages: Task) -> None:
    again = study(
        "skill-unlearning", tiny_llama, out=outcome.out, resume=True, tasks=tasks, languages=languages, quiet=True, **OPTIONS
    )  # fmt: skip
    assert again.report.to_dict() == outcome.report.to_dict()


@pytest.mark.parametrize(
    "arguments",
    [
        {"forget": ["nothing"]}, {"forget": []}, {"forget": ["years"]}, {"general": "nothing"}, {"shares": ()},
        {"shares": (0.5, 1.5)}, {"forget": ["sums", "sums"]},
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(tiny_llama: Any, tasks: Any, tmp_path: Any, arguments: Any) -> None:
    with pytest.raises(InputError):
        study("skill-unlearning", tiny_llama, out=tmp_path / "bad", tasks=tasks, quiet=True, **{**OPTIONS, **arguments})


def test_one_task_is_too_few(tiny_llama: Any, tasks: Any, tmp_path: Any) -> None:
    with pytest.raises(InputError, match="at least two"):
        study("skill-unlearning", tiny_llama, out=tmp_path / "one", tasks={"sums": tasks["sums"]}, quiet=True)


def test_bundled_skills_are_measured_on_items_that_were_not_fitted_on() -> None:
    known, held = _split(None, 30, 20, 0)
    assert tuple(known) == TAUGHT
    for name, task in known.items():
        assert not {item.prompt for item in task} & {item.prompt for item in held[name]}
        assert 4 <= len(held[name]) <= 20


def row(name: str, text: str, plain: float, clamped: float, **more: Any) -> dict[str, Any]:
    found = {"set": name, "text": text, "metric": "completion accuracy", "plain": plain, "clamped": clamped}
    found |= {"effect": clamped - plain, "control_mean": -0.1, "p_holm": 0.01, "p_controls": 0.2, "n_units": 3}
    return found | {"low": None, "high": None} | more


def test_the_numbers_read_the_rows() -> None:
    found = Effects(
        [
            row("a", "a", 1.0, 0.2), row("a", "b", 0.8, 0.4), row("a", "c", 0.5, 0.5),
            row("b", "a", 1.0, 0.9, control_mean=None), row("b", "b", 0.8, 0.8, p_holm=1.0), row("b", "c", 0.0, 0.0),
        ]
    )  # fmt: skip
    told = summary(found, "a", "c")
    assert told["own"] == pytest.approx(0.2)
    assert told["others"] == pytest.approx(0.5)
    assert told["general"] == 1.0
    assert told["random"] == pytest.approx(0.9)
    assert told["proven"]
    assert left(found.row("b", "c")) is None
    assert left_by_chance(found.row("b", "a")) is None
    assert not proven(found.row("b", "b"))
    assert not proven(row("a", "a", 1.0, 0.95))  # less than under the controls
    assert ahead(found, "a")
    assert not ahead(found, "b")
    assert lost(Effects([row("a", "a", 0.0, 0.0)])) is None
    own, others, most = lost(found) or (0, 0, 0)
    assert (own, most) == (pytest.approx(0.4), pytest.approx(0.5))
    assert others == pytest.approx((0.5 + 0 + 0.1) / 3)
    assert useful({"forget": 0.9, "retain": 0.02})
    assert not useful({"forget": 0.9, "retain": 0.2})
    assert [way_name(way) for way in ("adjust-0.015", "pruning-0.1", "abstain-last", "abstain")] == [
        "Neuron Adjust 1.5%", "selective pruning 10%", "Key Space Detection, last layer", "Key Space Detection",
    ]  # fmt: skip


@pytest.mark.slow
def test_taught_skills_are_taken_from_the_demo_and_others_stay() -> None:
    """More units take more of the skill, random ones leave it; a tuned region refuses nearly all of it and little else."""
    model = pc.load("demo")
    names = ("arithmetic", "code", "facts", "binding")
    known = {name: generated(name, split="train", count=150, seed=3) for name in names}
    held = {name: generated(name, split="train" if name == "facts" else "heldout", count=24, seed=4) for name in names}
    solved = pc.corpus({name: list(task.corpus(prompts_only=False).documents(name)) for name, task in known.items()})
    asked = pc.corpus({name: list(task.corpus().documents(name)) for name, task in known.items()})
    moments = pc.record(model, solved, sites=("pre", "mlp"), statistics=("shape",), quiet=True)
    keys = pc.record(model, asked, statistics=("pooled",), quiet=True)

    def accuracy(change: Any) -> dict[str, float]:
        with change.applied(model):
            found = score_all(model, held, "generation", max_new_tokens=16, checker="contains", quiet=True)
        return {name: found[name].value for name in names}

    curve = [accuracy(neuron_adjust(moments, forget="code", share=share)) for share in (0.005, 0.03, 0.1)]
    assert [one["code"] for one in curve] == sorted([one["code"] for one in curve], reverse=True)
    assert curve[0]["code"] > 0.9
    assert curve[-1]["code"] < 0.3
    assert min(curve[-1]["facts"], curve[-1]["binding"]) > 0.8
    assert accuracy(neuron_adjust(moments, forget="code", share=0.1).matched_random(0))["code"] > 0.8
    pruned = skill(moments, site="mlp", forget="arithmetic", distance="importance", shuffles=0).sets["arithmetic"]
    found = accuracy(intervention(model, pruned, to=0.0))
    assert found["arithmetic"] < 0.5
    assert min(found["code"], found["facts"], found["binding"]) > 0.8
    for name in ("arithmetic", "code"):
        found = accuracy(abstain(keys, forget=name, layer="best"))
        assert found[name] < 0.3
        assert all(found[other] > 0.85 for other in names if other != name)
    both = accuracy(abstain(keys, forget=["arithmetic", "code"], layer="best"))
    assert max(both["arithmetic"], both["code"]) < 0.3
    assert min(both["facts"], both["binding"]) > 0.8
