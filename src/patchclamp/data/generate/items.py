"""One generated training or test item: a prompt, its answer, what to confuse it with, and labels to group it by."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from patchclamp.core.errors import InputError

LANGUAGES = ("en", "de", "fr", "ru", "zh", "ja")
UNSPACED = frozenset({"zh", "ja"})  # scripts written without spaces between words


@dataclass(frozen=True)
class Item:
    """A prompt and the answer that completes it.

    prompt: never ends in a space, except after a French opening quotation mark. answer: starts with the space that
    the script needs (none in Chinese or Japanese), so `prompt + answer` is running text. choices: answers to rank, the
    right one included; empty if none make sense. tail: what closes the sentence. labels: skill, language, relation,
    country, ... whatever groups the item.
    """

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()
    tail: str = ""
    split: str = "train"
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The whole sentence, as training reads it."""
        return self.prompt + self.answer + self.tail

    @property
    def segments(self) -> tuple[str, str, str]:
        """Prompt, answer and tail: tokenized apart, so that training and evaluation see the same tokens."""
        return self.prompt, self.answer, self.tail


def rng_for(*key: object) -> random.Random:
    """A random generator that depends on the key alone (same on every machine and Python hash seed)."""
    return random.Random("\x1f".join(str(part) for part in key))


def is_held_out(share: float, *key: object) -> bool:
    """True for a fixed `share` (0 to 1) of keys, whatever the seed: the split never moves between runs."""
    return rng_for("held out", *key).random() < share


def check_split(split: str, known: Sequence[str]) -> None:
    """Raise InputError unless `split` is one of `known`."""
    if split not in known:
        raise InputError(f"split {split!r} asked for; this generator has {', '.join(known)}")


def check_languages(languages: Iterable[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    """The languages to generate, in the generator's order; None means all that it has."""
    if languages is None:
        return tuple(known)
    if isinstance(languages, str):
        languages = (languages,)
    wanted = list(languages)
    unknown = [language for language in wanted if language not in known]
    if unknown or not wanted:
        raise InputError(f"languages {wanted} asked for; this generator has {', '.join(known)}")
    return tuple(language for language in known if language in wanted)


def check_count(count: int | None) -> None:
    """Raise InputError for a negative number of items."""
    if count is not None and count < 0:
        raise InputError(f"count is {count}; give the number of items, 0 or more")


def spaced(answer: str, language: str) -> str:
    """The answer with the leading space that the language's script needs."""
    return answer if language in UNSPACED else " " + answer


def sentence_case(text: str) -> str:
    """The text with its first letter in upper case; the rest untouched."""
    return text[:1].upper() + text[1:]


def with_distractors(answer: str, pool: Iterable[str], rng: random.Random, n: int = 4) -> tuple[str, ...]:
    """Up to `n` choices in random order: the answer and others drawn from the pool without repetition."""
    others = sorted(set(pool) - {answer})
    chosen = [answer, *rng.sample(others, min(n - 1, len(others)))]
    rng.shuffle(chosen)
    return tuple(chosen)
