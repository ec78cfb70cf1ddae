"""Units with known meaning, planted in made-up passages: digits, what follows "the", animals, birds, a constant, noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore

ANIMALS = ("dog", "cat", "horse", "cow")
BIRDS = ("owl", "robin", "crow", "finch")
OTHERS = ("the", "house", "7", "ran", "old", "12", "river", "and", "green", "stone", "said", "405", "table", "slowly")
BAR = 0.5


def passage(rng: np.random.Generator, number: int, words: tuple[str, ...], length: int = 16) -> Exemplar:
    """A passage of random words; tags animal and bird say which are."""
    chosen = [words[at] for at in rng.integers(0, len(words), length)]
    texts = tuple(word if at == 0 else f" {word}" for at, word in enumerate(chosen))
    tags = {
        "animal": np.array([word in ANIMALS + BIRDS for word in chosen]),
        "bird": np.array([word in BIRDS for word in chosen]),
    }
    return Exemplar(texts, np.zeros(length, dtype=np.float32), "en", number, 0, tags)


def words_of(one: Exemplar) -> list[str]:
    return [text.strip() for text in one.parts]


MEANINGS: dict[str, Callable[[Exemplar], np.ndarray]] = {
    "mlp.0.0": lambda one: np.array([word.isdigit() for word in words_of(one)], dtype=float),
    "mlp.0.1": lambda one: np.array([False, *(word == "the" for word in words_of(one)[:-1])], dtype=float),
    "mlp.0.2": lambda one: one.tags["animal"].astype(float),
    "mlp.0.3": lambda one: one.tags["bird"].astype(float),
    "mlp.0.4": lambda one: np.full(len(one.parts), 0.25),
    "mlp.0.5": lambda one: np.random.default_rng(one.document).random(len(one.parts)) * 0.6,
}


def planted_store(seed: int = 0) -> ExemplarStore:
    """A store of the six units. The birds' top passages hold birds as their only animals."""
    rng = np.random.default_rng(seed)
    probe = [passage(rng, number, OTHERS + ANIMALS + BIRDS) for number in range(40)]
    fresh = [passage(rng, 100 + number, OTHERS + ANIMALS + BIRDS, length=5) for number in range(30)]
    units = []
    for name, meaning in MEANINGS.items():
        pool = OTHERS + BIRDS if name == "mlp.0.3" else OTHERS + ANIMALS + BIRDS
        made = [passage(rng, 200 + number, pool) for number in range(10)]
        top = sorted((one.with_values(meaning(one)) for one in made), key=lambda one: -one.value)
        values = np.concatenate([meaning(one) for one in probe]).astype(np.float32)
        held = tuple(one.with_values(meaning(one)) for one in fresh)
        units.append(Exemplars(name, BAR, tuple(top), tuple(top[::3]), held, values))
    return ExemplarStore(units, probe=probe)
