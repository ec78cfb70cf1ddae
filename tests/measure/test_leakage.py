"""Leakage: the variations of a task, and what comes back of a skill that is only refused as it is usually asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.intervene import intervention
from patchclamp.intervene.abstention import Abstention, Box
from patchclamp.intervene.key_space import Region
from patchclamp.measure import completion, generation
from patchclamp.measure.leakage import AS_ASKED, leakage, variations
from patchclamp.models.collect import collect


def echo(model: Any, prompts: list[str]) -> Task:
    """Items whose answers are the token that the random model writes; only those that read the same when they are encoded."""
    items = [{"prompt": prompt, "answer": model.generate(prompt, max_new_tokens=1)[0]} for prompt in prompts]
    found = Task.of([{**item, "alternatives": [f"{item['prompt']}!"]} for item in items if item["answer"].strip()])
    right = completion(model, found, quiet=True).totals == 1
    return Task.of([item for item, kept in zip(found, right, strict=True) if kept], name="echo")


@pytest.fixture(scope="module")
def task(tiny_llama: Any) -> Task:
    found = echo(tiny_llama, [f"{word} and {n}" for word in ("one", "six", "cat", "moon") for n in range(9)])
    assert len(found) >= 4
    return Task.of(found.items[:4], name="echo")


@pytest.fixture(scope="module")
def refusing(tiny_llama: Any, task: Task) -> Abstention:
    """Refuses these very prompts, by the keys of their last tokens."""
    rows = [torch.tensor([tiny_llama.tokenize(item.prompt)]) for item in task]
    keys = np.stack([collect(tiny_llama, "mlp", row)[0, -1].double().numpy()[48:96] for row in rows])
    boxes = []
    for number, key in enumerate(keys):
        region = Region("mlp", 1, key, np.full(48, 1e-4), 1.0, 20, 0, dict(tiny_llama.identity))
        boxes.append(Box(f"skill {number}", region, 1.0))
    return Abstention(tuple(boxes), "No.")


def test_the_variations_of_a_task(task: Task) -> None:
    found = variations(task, prefixes={"loudly": "Hey! "}, shots=Task.of([{"prompt": "a b", "answer": " c"}]))
    assert list(found) == [AS_ASKED, "in other words", "loudly", "after an example"]
    assert found[AS_ASKED] is task
    assert [item.prompt for item in found["in other words"]] == [item.alternatives[0] for item in task]
    assert found["loudly"][0].prompt == f"Hey! {task[0].prompt}"
    assert found["loudly"][0].alternatives == (f"Hey! {task[0].alternatives[0]}",)
    assert found["after an example"][0].prompt.startswith("a b c")
    assert all(each[0].answers == task[0].answers for each in found.values())
    with pytest.raises(InputError, match="name"):
        variations(task, prefixes={AS_ASKED: "x"})


@pytest.mark.parametrize("how", ["generation", "completion"])
def test_a_refusal_of_certain_prompts_leaks_all_others(
    tiny_llama: Any, task: Task, refusing: Abstention, how: str
) -> None:
    options = {"max_new_tokens": 1, "checker": "contains"} if how == "generation" else {}
    prefixed = variations(task, prefixes={"after a word": "So: "})["after a word"]
    asked = {AS_ASKED: task, "after a word": echo(tiny_llama, [item.prompt for item in prefixed])}
    other = intervention(tiny_llama, ["mlp.0.1"], to=0.0)
    found = leakage(tiny_llama, {"refused": refusing, "clamped": other}, asked, how=how, options=options, quiet=True)
    usual, differently = found.row("refused", AS_ASKED), found.row("refused", "after a word")
    assert usual["plain"] == 1
    assert usual["changed"] == usual["left"] == usual["leaked"] == 0
    assert usual["refused"] == 1
    assert differently["changed"] == differently["plain"] == 1
    assert differently["leaked"] == 1
    assert differently["refused"] == 0
    assert found.row("clamped", AS_ASKED)["refused"] is None
    assert "after a word" in repr(found)
    assert "<table" in found._repr_html_()
    with pytest.raises(InputError):
        found.row("refused", "in song")


def test_scored_answers_say_what_generated_ones_do(tiny_llama: Any, task: Task, refusing: Abstention) -> None:
    others = echo(tiny_llama, [f"The {n} sat" for n in range(12)])
    both = Task.of([*task, *others])
    with refusing.applied(tiny_llama):
        written = generation(tiny_llama, both, max_new_tokens=1, checker="contains", quiet=True)
    assert completion(tiny_llama, both, quiet=True).value == 1
    twice = {"refusing": refusing, "again": refusing}  # two of one layer share the blocks below it
    found = leakage(tiny_llama, twice, {"all": both}, how="completion", quiet=True)
    assert found.rows[0]["changed"] == found.rows[1]["changed"]
    assert written.totals.tolist() == [0] * len(task) + [1] * len(others)
    assert found.rows[0]["changed"] == pytest.approx(written.value)


def test_what_was_never_known_leaves_nothing_to_compare(tiny_llama: Any, refusing: Abstention) -> None:
    wrong = Task.of([{"prompt": "Two", "answer": " zzzzzz"}] * 2)
    found = leakage(tiny_llama, refusing, {"all": wrong}, how="completion", quiet=True)
    assert found.rows[0]["left"] is None
    assert found.rows[0]["leaked"] is None
