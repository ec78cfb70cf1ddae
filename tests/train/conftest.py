"""Six tiny invented texts and a recipe that trains in a second."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from patchclamp.train import tokenizer
from patchclamp.train.demo import Recipe

WORDS = {
    "en": ["the", "sea", "was", "dark", "and", "the", "ship", "came", "home", "with", "seven", "men"],
    "ru": ["море", "было", "тёмным", "и", "корабль", "пришёл", "домой", "с", "людьми"],
    "zh": list("海黑船回家人天地水火山石"),
}


@pytest.fixture(scope="session", autouse=True)
def quick_tokenizers() -> Iterator[None]:
    """Tokenizers of tests learn from a few hundred items a curriculum."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "ITEMS_PER_GENERATOR", 400)
        yield


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """language -> file of 120 random lines."""
    folder, rng = tmp_path_factory.mktemp("texts"), random.Random(0)
    paths = {}
    for language, words in WORDS.items():
        joiner = "" if language == "zh" else " "
        lines = [joiner.join(rng.choices(words, k=8)) for _ in range(120)]
        paths[language] = folder / f"{language}.txt"
        paths[language].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Two layers of width 32, four rows of 32 tokens per step."""
    return Recipe(
        hidden_size=32, layers=2, heads=2, intermediate_size=48, vocab_size=700, row_length=32, rows_per_step=4,
        warmup_steps=2, block_tokens=6000,
    )  # fmt: skip
