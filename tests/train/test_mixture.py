"""The data stream: blocks that depend on the seed alone, nothing held out in them, positions per document."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from patchclamp.data.generate.binding import NAMES
from patchclamp.train.demo import read_texts
from patchclamp.train.mixture import STAGES, TEXT_SHARE, Mixture, split_lines
from patchclamp.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def lines(texts: dict[str, Path]) -> dict[str, list[str]]:
    return {name: split_lines(t)[0] for name, t in read_texts(texts).items()}


@pytest.fixture(scope="module")
def tokenizer(lines: dict[str, list[str]]) -> Any:
    return train_tokenizer(lines, vocab_size=700)


@pytest.fixture(scope="module")
def mixture(lines: dict[str, list[str]], tokenizer: Any) -> Mixture:
    return Mixture(lines, tokenizer, seed=0, row_length=64, block_tokens=20_000)


def test_shares_add_up_to_one_in_every_stage() -> None:
    assert STAGES[0].first_block == 0
    for stage in STAGES:
        assert sum(stage.shares.values()) + TEXT_SHARE == pytest.approx(1.0)


def test_only_the_kinds_of_the_stage_are_drawn(mixture: Mixture, tokenizer: Any) -> None:
    early, late = (tokenizer.decode(mixture.block(stage.first_block)[0].ravel()) for stage in STAGES[:2])
    assert "What color is the" not in early
    assert "What color is the" in late


def test_answers_weigh_what_the_stage_says(mixture: Mixture, tokenizer: Any) -> None:
    assert set(mixture.block(0)[1].ravel().tolist()) == {1.0, STAGES[0].answer_weight}
    rows, weights = mixture.block(STAGES[1].first_block)
    assert set(weights.ravel().tolist()) == {1.0, STAGES[1].answer_weight}
    stream, heavy = rows.ravel(), weights.ravel() > 1
    ends = [k for k in range(1, len(stream)) if heavy[k - 1] and not heavy[k]]
    starts = [k for k in range(1, len(stream)) if heavy[k] and not heavy[k - 1]]
    answers = {tokenizer.decode(stream[a:b]) for a, b in zip(starts, ends, strict=False)}
    assert answers & {f" {name}" for name in NAMES}
    assert any(answer.strip().isdigit() for answer in answers)


def test_a_block_is_the_same_in_any_order_and_unlike_its_neighbours(
    mixture: Mixture, lines: Any, tokenizer: Any
) -> None:
    later, _ = mixture.block(3)
    again = Mixture(lines, tokenizer, seed=0, row_length=64, block_tokens=20_000)
    assert np.array_equal(again.block(3)[0], later)
    assert not np.array_equal(again.block(2)[0][:10], later[:10])


def test_a_block_has_about_the_tokens_asked_for(mixture: Mixture) -> None:
    assert 0.7 < mixture.block(0)[0].size / 20_000 < 1.3


def test_held_out_lines_never_appear(texts: dict[str, Path], mixture: Mixture, tokenizer: Any) -> None:
    held = [line for t in read_texts(texts).values() for line in split_lines(t)[1]]
    assert len(held) == 6
    text = "".join(tokenizer.decode(mixture.block(number)[0].ravel()) for number in range(4))
    assert "The capital of" in text
    assert not [line for line in held if line in text]


def test_an_epoch_reads_every_passage_once(lines: dict[str, list[str]], tokenizer: Any) -> None:
    numbered = {"en": [f"line {k} end" for k in range(101)]}
    mixture = Mixture(numbered, tokenizer, seed=0, row_length=64, block_tokens=20_000)
    mixture._passages["en"] = 19  # (101 - 4) // 5 passages make one epoch
    seen = [tokenizer.decode(ids) for ids, _ in mixture._text_documents("en", 0)]
    assert len(set(seen)) == 19
    assert len({line for passage in seen for line in passage.split(" end")}) == 19 * 5 + 1


def test_positions_count_from_each_document_start(mixture: Mixture) -> None:
    rows = np.array([[5, 6, 1, 7, 8, 1, 9], [1, 5, 5, 5, 5, 5, 5]])
    assert mixture.positions(rows).tolist() == [[0, 1, 0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 5, 6]]


def test_tokenizer_restores_any_string_and_splits_digits(tokenizer: Any) -> None:
    for text in ("The sea, 1923!\n  x", "море 海の水 🐟", "«ça» → \t", "def f(x):\n    return x[:3]"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    ids = tokenizer("1923", add_special_tokens=False).input_ids
    assert len(ids) == 4


def test_special_ids_come_first(tokenizer: Any) -> None:
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_no_token_straddles_prompt_and_answer(mixture: Mixture, tokenizer: Any) -> None:
    from patchclamp.data.generate import facts

    item = next(facts(languages=["zh"]))
    ids, _ = mixture._encode_items([item], 1.0)[0]
    start = len(tokenizer(item.prompt, add_special_tokens=False).input_ids)
    assert tokenizer.decode(ids[:start]) == item.prompt
    assert tokenizer.decode(ids[start:]) == item.answer + item.tail
    assert all(a <= b for a, b in pairwise([0, start, len(ids)]))
