"""The examination grades a model whose knowledge is planted, and refuses what it can't grade."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.generate import GENERATORS
from patchclamp.train.demo import Recipe, train
from patchclamp.train.exam import SPLITS, evaluate, skill_accuracy, text_loss, wilson
from patchclamp.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer({"en": ["some words to start with"] * 30}, vocab_size=700)


class Oracle:
    """Knows the texts it was given by heart: after a known prefix it is sure of the next token."""

    def __init__(self, tokenizer: Any, texts: list[str]) -> None:
        self.vocabulary = len(tokenizer)
        self.next: dict[tuple[int, ...], int] = {}
        for text in texts:
            ids = [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]
            for place in range(1, len(ids)):
                self.next[tuple(ids[:place])] = ids[place]

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> Any:
        logits = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                known = self.next.get(tuple(ids[: place + 1]))
                if known is not None:
                    logits[row, place, known] = 20.0
        return SimpleNamespace(logits=logits)


def _known(tokenizer: Any, skill: str, split: str) -> list[list[int]]:
    encode = tokenizer.backend_tokenizer.encode
    return [
        [i for part in item.segments for i in encode(part, add_special_tokens=False).ids]
        for item in GENERATORS[skill](seed=1, split=split, count=30)
    ]


@pytest.mark.parametrize("skill", ["facts", "arithmetic", "code", "binding"])
def test_an_oracle_passes_and_an_ignorant_model_does_not(tokenizer: Any, skill: str) -> None:
    oracle: Any = Oracle(tokenizer, _known(tokenizer, skill, "train"))
    passed = skill_accuracy(oracle, tokenizer, skill, "train", items=30)
    assert passed["exact"] == 1.0
    assert passed["choice"] == 1.0
    ignorant: Any = Oracle(tokenizer, [])
    assert skill_accuracy(ignorant, tokenizer, skill, "train", items=30)["exact"] == 0.0


def test_chance_is_one_over_the_number_of_choices(tokenizer: Any) -> None:
    ignorant: Any = Oracle(tokenizer, [])
    assert skill_accuracy(ignorant, tokenizer, "facts", "train", items=20)["chance"] == pytest.approx(0.25)


def test_the_loss_of_an_ignorant_model_is_the_log_of_its_vocabulary(tokenizer: Any) -> None:
    ignorant: Any = Oracle(tokenizer, [])
    text = ["the sea was dark", "and the ship came home"]
    loss = text_loss(ignorant, tokenizer, text, "en")
    n = len(tokenizer(" ".join(text)).input_ids) - 1
    assert loss["tokens"] == n
    assert loss["nats_per_token"] == pytest.approx(math.log(len(tokenizer)), rel=1e-5)
    assert loss["bits_per_byte"] == pytest.approx(n * math.log2(len(tokenizer)) / len(" ".join(text)), rel=1e-5)


def test_wilson_interval_matches_a_published_example() -> None:
    low, high = wilson(81, 263)  # Newcombe 1998, table I: 0.2553 to 0.3662
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)


def test_the_whole_examination_covers_all_skills_and_languages(
    texts: dict[str, Path], recipe: Recipe, tmp_path: Path
) -> None:
    folder = train(texts, tmp_path / "run", tokens=2 * recipe.step_tokens, recipe=recipe, quiet=True)
    result = evaluate(folder, texts, items=3)
    assert set(result["loss"]) == set(texts)
    assert {skill: tuple(splits) for skill, splits in result["skills"].items()} == SPLITS
    assert all(0 <= split["choice"] <= 1 for splits in result["skills"].values() for split in splits.values())


def test_a_missing_model_and_no_items_are_refused(texts: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"config\.json"):
        evaluate(tmp_path, texts)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="items is 0"):
        evaluate(tmp_path, texts, items=0)
