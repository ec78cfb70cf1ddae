"""Prose in other spellings: the same language, other tokens. What tells whether a selection looks at words or at form."""

from __future__ import annotations

import re
import unicodedata

from patchclamp.core.errors import InputError

SPELLINGS = ("plain", "upper", "backwards", "vowelless")
_VOWELS = frozenset("aeiouyаеёиоуыэюя")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def respelled(text: str, spelling: str) -> str:
    """The text as it is (plain), in capitals (upper), with the words of each sentence in reverse order (backwards), or
    without vowels except where a word begins with one (vowelless). For scripts with spaces and letter case.
    """
    if spelling not in SPELLINGS:
        raise InputError(f"no spelling is called {spelling!r}; there are {', '.join(SPELLINGS)}")
    if spelling == "upper":
        return text.upper()
    if spelling == "backwards":
        return " ".join(" ".join(reversed(sentence.split())) for sentence in _SENTENCE_END.split(text))
    if spelling == "vowelless":
        return " ".join(_without_vowels(word) for word in text.split())
    return text


def _without_vowels(word: str) -> str:
    first = next((at for at, character in enumerate(word) if character.isalpha()), 0)
    return word[: first + 1] + "".join(character for character in word[first + 1 :] if not _is_vowel(character))


def _is_vowel(character: str) -> bool:
    return unicodedata.normalize("NFD", character.casefold())[:1] in _VOWELS
