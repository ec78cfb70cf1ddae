"""Answers to pairs equal what the model's own logits say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.paired import PairedItem, PairedTask, Pairs
from patchclamp.measure.pair_answers import candidate_tokens, pair_answers


def pairs_of(n: int = 6) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(3, 320, (n, 6), generator=generator) for _ in range(2))
    end = torch.tensor([5, 4] * (n // 2))
    mask = torch.arange(6)[None, :] <= end[:, None]
    answer = torch.randint(3, 300, (n,), generator=generator)
    return Pairs(clean, corrupt, mask, answer, answer + 7, end, {"END": end}, {}, torch.arange(n))


@pytest.mark.parametrize("side", ["clean", "corrupt"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_answers_equal_the_logits(name: str, side: str, request: pytest.FixtureRequest) -> None:
    model, pairs = request.getfixturevalue(f"tiny_{name}"), pairs_of()
    rows = torch.arange(len(pairs))
    logits = model.logits(getattr(pairs, side), pairs.mask)[rows, pairs.end]
    pairs.answer[0] = logits[0].argmax()
    asked, other = (pairs.answer, pairs.wrong) if side == "clean" else (pairs.wrong, pairs.answer)
    candidates = torch.stack([asked, other, torch.full_like(asked, 9)], 1)
    candidates[1, 2] = -1
    got = pair_answers(model, pairs, candidates, side=side)
    difference = logits[rows, pairs.answer] - logits[rows, pairs.wrong]
    np.testing.assert_allclose(got.difference, difference.numpy(), atol=1e-4)
    among = [bool(logits[i, asked[i]] >= logits[i, [int(c) for c in candidates[i] if c >= 0]].max()) for i in rows]
    assert got.among.tolist() == among
    assert got.first.tolist() == (logits.argmax(1) == asked).tolist()
    alone = pair_answers(model, pairs, side=side)
    assert alone.among.tolist() == (difference > 0 if side == "clean" else difference < 0).tolist()


def test_candidates_are_found_by_the_items_that_they_answer(tiny_tokenizer: Any) -> None:
    def item(answer: str, wrong: str) -> PairedItem:
        return PairedItem(
            "a red, a blue, a x", "a blue, a red, a x", answer, wrong, lists={"colors": ((2, 5), (9, 13))}
        )

    task = PairedTask("colours", (item(" Red", " Blue"), item(" Blue", " Red")))
    pairs: Any = type("P", (), {"answer": torch.tensor([4, 6]), "wrong": torch.tensor([6, 4])})
    assert candidate_tokens(task, pairs, "colors", tiny_tokenizer).tolist() == [[4, 6], [4, 6]]
    odd = PairedTask("colours", (item(" Red", " Pink"),))
    with pytest.raises(InputError, match="item 0 of 'colours': the candidate ' Blue' is"):
        candidate_tokens(odd, pairs, "colors", tiny_tokenizer)
    letter = PairedItem("a x", "a y", "z", "y", lists={"letters": ((2, 3),)})
    [[found]] = candidate_tokens(PairedTask("letters", (letter,)), pairs, "letters", tiny_tokenizer).tolist()
    assert tiny_tokenizer.decode([found]) == "x"
    with pytest.raises(InputError, match="no list 'names'"):
        candidate_tokens(task, pairs, "names", tiny_tokenizer)


def test_an_unknown_side_is_refused(tiny_gpt2: Any) -> None:
    with pytest.raises(InputError, match="clean or corrupt"):
        pair_answers(tiny_gpt2, pairs_of(), side="left")
