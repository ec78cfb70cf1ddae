"""States that write a concept: the token that a marked character belongs to, the state before it, matched steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.find.concept_states import concept_states, token_at
from patchclamp.measure.concepts import Words
from patchclamp.measure.continuations import prompt_ids
from patchclamp.measure.sampling import sampled
from patchclamp.models.load import load

PROMPTS = ["The cat", "Two and two make", "Le chat est assis sur", "The moon and the", "Die Katze", "猫は"]


def test_a_character_belongs_to_the_token_that_begins_it(tiny_llama: Any) -> None:
    tokenizer = tiny_llama.tokenizer
    text = "The cat 猫は x"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    for character in range(len(text)):
        wanted = next(number for number, (start, stop) in enumerate(offsets) if start <= character < stop)
        assert token_at(tokenizer, ids, text, character) == wanted
    with pytest.raises(InputError, match="character 99"):
        token_at(tokenizer, ids, text, 99)


def test_words_of_the_demo_tokenizer_begin_with_their_space() -> None:
    model = load("demo")
    text = "Shut up, you fool. 滚开，笨蛋。"
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    for word in ("fool", "笨蛋", "Shut"):
        at = token_at(model.tokenizer, ids, text, text.index(word))
        before = model.tokenizer.decode(ids[:at])
        assert text.startswith(before)
        assert len(before) <= text.index(word) < len(model.tokenizer.decode(ids[: at + 1]).rstrip("�")) + 1


def judge(text: str) -> dict[str, Any]:
    where = text.find("a")
    return {"label": where >= 0, "spans": [(where, where + 1)] if where >= 0 else []}


@pytest.mark.parametrize("matched", [True, False])
def test_states_are_those_that_wrote_the_marked_token(tiny_llama: Any, matched: bool) -> None:
    how: dict[str, Any] = {"samples": 4, "max_new_tokens": 8, "seed": 1}
    found = concept_states(tiny_llama, PROMPTS, judge, matched=matched, **how)
    assert len(found.phi) == len(found.phi_steps) == len(found.phi_tokens) == round(found.flagged * len(found.texts))
    assert all("a" in token for token in found.phi_tokens)
    assert [judge(row["text"])["label"] for row in found.texts] == [row["flagged"] for row in found.texts]
    rows = prompt_ids(tiny_llama.tokenizer, PROMPTS)
    new = [(row, ids) for row, several in zip(rows, sampled(tiny_llama, rows, **how), strict=True) for ids in several]
    flagged = [pair for pair, said in zip(new, found.texts, strict=True) if said["flagged"]]
    weight = tiny_llama.hf.get_output_embeddings().weight.double().numpy()
    for state, (row, ids), step in zip(found.phi, flagged, found.phi_steps.tolist(), strict=True):
        assert "a" in tiny_llama.tokenizer.decode(ids[: step + 1], skip_special_tokens=True)
        assert "a" not in tiny_llama.tokenizer.decode(ids[:step], skip_special_tokens=True)
        logits = tiny_llama.logits(torch.tensor([[*row, *ids[:step]]]))[0, -1].double().numpy()
        np.testing.assert_allclose(state @ weight.T, logits, atol=2e-3)
    if matched:
        steps = found.phi_steps.tolist()
        assert set(found.psi_steps.tolist()) <= set(steps)
        assert len(found.psi) <= len(found.phi)
        for step in set(found.psi_steps.tolist()):
            assert found.psi_steps.tolist().count(step) == steps.count(step)
    else:
        assert not found.psi_steps.any()
        assert len(found.psi) == len(found.texts) - len(found.phi)


def test_greedy_by_default_and_the_same_every_time(tiny_llama: Any) -> None:
    texts = tiny_llama.generate(PROMPTS, max_new_tokens=8)
    first, second = (
        concept_states(tiny_llama, PROMPTS, lambda text: text in texts[:3], max_new_tokens=8, batch_tokens=size)
        for size in (4096, 1)
    )
    assert [row["text"] for row in first.texts] == [row["text"] for row in second.texts] == texts
    assert first.flagged == 0.5
    np.testing.assert_allclose(first.phi, second.phi, atol=1e-4)
    np.testing.assert_allclose(first.psi, second.psi, atol=1e-4)


def test_a_judge_without_spans_means_the_whole_text(tiny_llama: Any) -> None:
    found = concept_states(tiny_llama, PROMPTS, lambda text: "a" in text, samples=4, max_new_tokens=8)
    assert not found.phi_steps.any()


def test_one_kind_alone_is_refused(tiny_llama: Any) -> None:
    for answer in (True, False):
        with pytest.raises(InputError, match="states of both are needed"):
            concept_states(tiny_llama, PROMPTS, lambda text, a=answer: a, max_new_tokens=4)
    with pytest.raises(InputError, match="no words"):
        concept_states(tiny_llama, PROMPTS, Words([]))
