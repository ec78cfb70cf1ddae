"""Frequency-tagged streams: sentences of equally many units, joined without punctuation, in two conditions.

`experiment` shuffles the order of the sentences; `control` also permutes the units inside every sentence so that no two
neighbours stay neighbours in their order (control-B of An et al. 2025, arXiv 2510.13255). Everything is seeded.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError

CONDITIONS = ("experiment", "control")
UNITS = ("auto", "word", "character")
SEPARATOR = "|"  # between units that the user wrote out
FEWEST = 8
_TRIES = 200
_JOINERS = "'’-‐·"
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@dataclass(frozen=True)
class Sentences:
    """Sentences of one language. units: one tuple of units per sentence, all equally long. gap: what joins units."""

    units: tuple[tuple[str, ...], ...]
    gap: str

    @classmethod
    def of(cls, values: Iterable[Any], *, unit: str = "auto", name: str = "text", fewest: int = FEWEST) -> Sentences:
        """Read sentences from strings, documents, generated items (label "units") or lists of units.

        unit: "word" (split at spaces), "character" (a letter with its marks), "auto": words if any sentence holds a space
        inside, else characters. Units may be written out, "the|old|man|sings", or given as lists. Punctuation and symbols
        are dropped, but for apostrophes and hyphens inside a word.
        Raises InputError for fewer than `fewest` sentences, fewer than 2 units, and unequal lengths (names the first).
        """
        if unit not in UNITS:
            raise InputError(f"unit={unit!r} given; it is one of {', '.join(UNITS)}")
        if isinstance(values, str):
            raise InputError(f"{name}: one string given; give a list of sentences")
        raw = [_raw(value) for value in values]
        written_out = any(not isinstance(value, str) or SEPARATOR in value for value in raw)
        if written_out:
            rows = [tuple(value.split(SEPARATOR)) if isinstance(value, str) else tuple(value) for value in raw]
            units = [tuple(filter(None, (" ".join(_plain(part).split()) for part in row))) for row in rows]
            gap = "" if all(_unspaced(part) for row in units for part in row) else " "
        else:
            plain = [_plain(str(value)).strip() for value in raw]
            words = unit == "word" or (unit == "auto" and any(len(text.split()) > 1 for text in plain))
            units = [tuple(text.split()) if words else tuple(_characters(text)) for text in plain]
            gap = " " if words else ""
        _check_units(units, name, fewest)
        return cls(tuple(units), gap)

    def __len__(self) -> int:
        return len(self.units)

    @property
    def n_units(self) -> int:
        """Units in each sentence."""
        return len(self.units[0])

    @functools.cached_property
    def words(self) -> NDArray[np.int64]:
        """(sentences, units): number of each unit's word form, the same for the same word in any case."""
        known: dict[str, int] = {}
        return np.array([[known.setdefault(unit.casefold(), len(known)) for unit in row] for row in self.units])


@dataclass(frozen=True)
class Stream:
    """One text to read. spans: (T, 2) characters of each unit. sentence, source: (T,) where each unit came from.

    Unit t stands at place t % n_units of its sentence; source is its place in the sentence as written.
    """

    text: str
    spans: NDArray[np.int64]
    sentence: NDArray[np.int64]
    source: NDArray[np.int64]


def streams(
    sentences: Sentences,
    condition: str,
    n: int,
    *,
    seed: int = 0,
    per_stream: int | None = None,
    shuffle_order: bool = True,
    replicate: int = 0,
) -> list[Stream]:
    """`n` streams of a condition, each of `per_stream` sentences (None: all of them).

    Stream number i of the experiment puts random sentences (each at most once) in random order. The control takes the very
    order of the experiment's stream i, or with shuffle_order=False the order of the file, and permutes units within
    sentences. replicate: another draw of the control's permutations and, with shuffle_order, of the order.
    """
    if condition not in CONDITIONS:
        raise InputError(f"condition {condition!r} given; there are {' and '.join(CONDITIONS)}")
    size = len(sentences) if per_stream is None else per_stream
    if not FEWEST <= size <= len(sentences):
        raise InputError(f"per_stream={size} sentences asked for; give {FEWEST} to {len(sentences)}")
    if n < 1:
        raise InputError(f"{n} streams asked for; at least one is needed")
    made = []
    for number in range(n):
        order = np.random.default_rng([seed, 0, replicate, number]).permutation(len(sentences))[:size]
        if condition == "control" and not shuffle_order:
            order = np.arange(size)
        places = np.tile(np.arange(sentences.n_units), (size, 1))
        if condition == "control":
            rng = np.random.default_rng([seed, 1, replicate, number])
            places = np.stack([control_order(sentences.n_units, rng) for _ in range(size)])
        made.append(joined(sentences, order, places))
    return made


def control_orders(n_units: int) -> list[tuple[int, ...]]:
    """All permutations in which no unit i is directly followed by unit i + 1; 11 of them for four units."""
    return [order for order in itertools.permutations(range(n_units)) if _apart(order)]


def control_order(n_units: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """One such permutation, uniform over all; after 200 vain tries the reversal, which always is one."""
    for _ in range(_TRIES):
        order = rng.permutation(n_units)
        if _apart(order):
            return order
    return np.arange(n_units)[::-1].copy()


def _apart(order: Sequence[int] | NDArray[np.int64]) -> bool:
    return not bool((np.diff(np.asarray(order)) == 1).any())


def joined(sentences: Sentences, order: NDArray[np.int64], places: NDArray[np.int64]) -> Stream:
    """The stream of some sentences in an order, (slots,), each with its units in the order of its row of places (slots, U)."""
    sentence = np.repeat(order, sentences.n_units)
    source = places.reshape(-1)
    units = [sentences.units[s][k] for s, k in zip(sentence.tolist(), source.tolist(), strict=True)]
    stops = np.cumsum([len(unit) + len(sentences.gap) for unit in units]) - len(sentences.gap)
    starts = stops - np.array([len(unit) for unit in units])
    return Stream(sentences.gap.join(units), np.stack([starts, stops], axis=1), sentence, source)


def _raw(value: Any) -> str | tuple[str, ...]:
    """A sentence as text, or as the units that the user gave."""
    labels = getattr(value, "labels", None)
    if labels is not None and "units" in labels:
        return tuple(str(labels["units"]).split(SEPARATOR))
    text = getattr(value, "text", value)
    if isinstance(text, str):
        return text
    if isinstance(text, Sequence) and all(isinstance(part, str) for part in text):
        return tuple(text)
    raise InputError(f"{type(value).__name__} given as a sentence; give text or a list of units")


def _plain(text: str) -> str:
    """The text without punctuation and symbols; a dash between words becomes a space."""
    kept = []
    for at, letter in enumerate(text):
        kind = unicodedata.category(letter)
        inside = letter in _JOINERS and 0 < at < len(text) - 1 and text[at - 1].isalnum() and text[at + 1].isalnum()
        if kind[0] not in "PS" or inside:
            kept.append(letter)
        elif kind == "Pd":
            kept.append(" ")
    return "".join(kept)


def _characters(text: str) -> list[str]:
    """Letters with the marks that belong to them; spaces are left out."""
    found: list[str] = []
    for letter in text:
        if letter.isspace():
            continue
        if found and unicodedata.category(letter)[0] == "M":
            found[-1] += letter
        else:
            found.append(letter)
    return found


def _unspaced(text: str) -> bool:
    """Whether all letters belong to scripts that are written without spaces."""
    letters = [letter for letter in text if letter.isalpha()]
    return bool(letters) and all(unicodedata.name(letter, "").startswith(_UNSPACED) for letter in letters)


def _check_units(units: Sequence[tuple[str, ...]], name: str, fewest: int) -> None:
    if len(units) < fewest:
        raise InputError(f"{name}: {len(units)} sentences given; at least {fewest} are needed for a stream")
    first = len(units[0])
    for row, found in enumerate(units, 1):
        if len(found) != first:
            raise InputError(
                f"{name}: sentence {row} ({' '.join(found)!r}) has {len(found)} units, sentence 1 has {first}; all need "
                "equally many (write units out as in 'the|old|man|sings' where spaces or characters don't tell them)"
            )
    if first < 2:
        raise InputError(f"{name}: sentences of {first} unit given; at least 2 units make a sentence rate")
