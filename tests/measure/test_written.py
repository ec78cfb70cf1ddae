"""Text under interventions: the model's own generation, the same draws with and without changes, bad values in one line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from patchclamp.core.errors import InputError
from patchclamp.intervene import force_attention, intervention
from patchclamp.measure.written import written

PROMPTS = ["The cat sat", "Two and two make four and", "moon"]


def test_it_is_what_the_model_generates_in_the_context(tiny_llama: Any) -> None:
    item = intervention(tiny_llama, ["mlp.0.3", "mlp.1.7"], to=[2.0, -3.0])
    with item.applied(tiny_llama):
        wanted = tiny_llama.generate(PROMPTS, max_new_tokens=6)
    assert written(tiny_llama, PROMPTS, item, max_new_tokens=6) == wanted
    assert written(tiny_llama, PROMPTS, max_new_tokens=6) == tiny_llama.generate(PROMPTS, max_new_tokens=6) != wanted
    assert written(tiny_llama, PROMPTS[0], item + item, max_new_tokens=6) == wanted[:1]


def test_draws_depend_on_seed_and_prompt_and_not_on_the_change(tiny_llama: Any) -> None:
    how: dict[str, Any] = {"max_new_tokens": 6, "sample": True, "temperature": 2.0}
    nothing = intervention(tiny_llama, ["mlp.0.3"], add=0.0)
    drawn = written(tiny_llama, PROMPTS, **how, seed=1)
    assert drawn == written(tiny_llama, PROMPTS, nothing, **how, seed=1)
    assert drawn[1:2] == written(tiny_llama, PROMPTS[1], **how, seed=1)
    assert drawn != written(tiny_llama, PROMPTS, **how, seed=2)
    narrow = written(tiny_llama, PROMPTS, max_new_tokens=6, sample=True, top_p=1e-6)
    assert narrow == written(tiny_llama, PROMPTS, max_new_tokens=6)


@pytest.mark.parametrize(
    ("prompts", "how", "message"),
    [
        (["The", ""], {}, "a prompt is empty"),
        (["The " * 40], {}, "more than the 64 that this model takes"),
        (["The"], {"max_new_tokens": 0}, "at least 1 is needed"),
        (["The"], {"sample": True, "top_p": 0.0}, "top_p=0.0"),
        (["The"], {"sample": True, "temperature": -1.0}, "temperature=-1.0"),
        (["The"], {"sample": True, "seed": -1}, "whole number from 0"),
    ],
)
def test_what_cant_be_written_is_said(tiny_llama: Any, prompts: list[str], how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        written(tiny_llama, prompts, **how)


def test_no_prompts_give_no_text(tiny_llama: Any) -> None:
    assert written(tiny_llama, []) == []


def test_changes_with_a_row_per_prompt_meet_their_own_prompt(tiny_llama: Any) -> None:
    prompts = ["moon", "Two and two make four and", "The cat sat"]  # not in the order in which batches are made
    mask = np.zeros((3, 12), dtype=bool)
    mask[2, 1:] = True
    item = replace(intervention(tiny_llama, ["mlp.0.3", "mlp.1.7"], to=[9.0, -9.0]), mask=mask)
    plain = written(tiny_llama, prompts, max_new_tokens=6)
    changed = written(tiny_llama, prompts, item, max_new_tokens=6)
    assert [one == other for one, other in zip(plain, changed, strict=True)] == [True, True, False]
    alone = replace(item, mask=mask[2:])
    assert written(tiny_llama, prompts[2:], alone, max_new_tokens=6) == changed[2:]
    last = np.array([len(tiny_llama.tokenize(prompt)) - 1 for prompt in prompts])
    forced = force_attention(tiny_llama, ["head.0.1", "head.2.3"], last, np.ones((3, 1), dtype=np.int64))
    for number, prompt in enumerate(prompts):
        one = forced.of_rows([number])
        assert written(tiny_llama, prompt, one, max_new_tokens=6) == [
            written(tiny_llama, prompts, forced, max_new_tokens=6)[number]
        ]
    with pytest.raises(InputError, match="2 prompts given, but this change has rows for 3"):
        written(tiny_llama, prompts[:2], forced)
