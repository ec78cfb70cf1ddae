"""Descriptions that can be checked by machine: what holds of a token (or patch), as text and back.

An atom is a kind and an argument: ("word", "river") reads `the word "river"`. Atoms join with " or " and " and " ("and" binds
closer). A text that isn't made so is no predicate; `parse` says None.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.read.exemplar import Exemplar
from patchclamp.read.lexicon import MARKS, WORD, classes_of, language_of, script_of

Atom = tuple[str, str]
Predicate = tuple[tuple[Atom, ...], ...]  # alternatives, each of atoms that all must hold
HEADS: dict[str, str] = {
    "tag": "tagged",
    "token": "the token",
    "word": "the word",
    "end": "the end of the word",
    "after": "what follows",
    "before": "what precedes",
    "suffix": "words ending in",
    "prefix": "words beginning with",
    "class": "the class",
    "script": "letters of the script",
    "language": "text in",
    "label": "labelled",
}
NOTHING = "nothing in particular"
INACTIVE = "inactive"
_KINDS = {head: kind for kind, head in HEADS.items()}
_ATOM = re.compile(rf'(?P<head>{"|".join(map(re.escape, HEADS.values()))}) (?P<argument>"(?:[^"\\]|\\.)*")')
_SPACELESS = {"Han", "Hiragana", "Katakana", "Thai"}  # scripts without spaces: a token stands for a word
_NOWHERE: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
Atoms = tuple[list[frozenset[Atom]], frozenset[Atom]]


def worded(predicate: Predicate) -> str:
    """The text of a predicate."""
    return " or ".join(" and ".join(atom_text(atom) for atom in every) for every in predicate)


def atom_text(atom: Atom) -> str:
    """The text of one atom."""
    return f"{HEADS[atom[0]]} {json.dumps(atom[1], ensure_ascii=False)}"


@functools.lru_cache(maxsize=1 << 14)
def parse(text: str) -> Predicate | None:
    """The predicate that a text stands for; () for one that nothing fulfils; None for free text."""
    if text in (NOTHING, INACTIVE):
        return ()
    alternatives: list[list[Atom]] = [[]]
    at = 0
    while True:
        found = _ATOM.match(text, at)
        if found is None:
            return None
        alternatives[-1].append((_KINDS[found["head"]], json.loads(found["argument"])))
        at = found.end()
        if at == len(text):
            return tuple(tuple(every) for every in alternatives)
        if text.startswith(" and ", at):
            at += len(" and ")
        elif text.startswith(" or ", at):
            at += len(" or ")
            alternatives.append([])
        else:
            return None


def holds(predicate: Predicate, exemplar: Exemplar) -> NDArray[np.bool_]:
    """(n_parts,) bool: of which parts the predicate is true."""
    parts, whole = atoms_of(exemplar)
    found = np.zeros(len(parts), dtype=bool)
    for every in predicate:
        local = [atom for atom in every if atom not in whole]
        found |= np.fromiter((all(atom in own for atom in local) for own in parts), dtype=bool, count=len(parts))
    return found


def atoms_of(exemplar: Exemplar) -> Atoms:
    """What holds of each part, and what holds of all parts because it is about the passage."""
    known: Atoms | None = exemplar.remembered.get("atoms")
    if known is not None:
        return known
    whole: set[Atom] = {("label", exemplar.label)} if exemplar.label else set()
    parts: list[set[Atom]] = [set() for _ in exemplar.parts]
    for name, where in exemplar.tags.items():
        for at in np.flatnonzero(where).tolist():
            parts[at].add(("tag", name))
    if exemplar.grid is None:
        language = language_of(exemplar.text)
        whole |= {("language", language)} if language else set()
        _add_text(exemplar.parts, parts)
    found = ([frozenset(own) for own in parts], frozenset(whole))
    exemplar.remembered["atoms"] = found
    return found


def _add_text(texts: Sequence[str], parts: list[set[Atom]]) -> None:
    words = words_of(texts)
    for at, (text, (word, first, last)) in enumerate(zip(texts, words, strict=True)):
        own, bare = parts[at], text.strip()
        if bare:
            own.add(("token", bare))
        if not word:
            continue
        low = word.casefold()
        own.add(("word", low))
        script = script_of(word)
        if script is not None:
            own.add(("script", script))
        own.update(("class", name) for name in classes_of(word))
        if last > first and at == last:
            own.add(("end", low))
        if script not in _SPACELESS and WORD.fullmatch(word):
            own.update(("suffix", low[-n:]) for n in (2, 3) if len(low) > n + 1)
            own.update(("prefix", low[:n]) for n in (2, 3) if len(low) > n + 1)
        own.update(("after", neighbour) for neighbour in _neighbour(words, first, -1))
        own.update(("before", neighbour) for neighbour in _neighbour(words, last, 1))


def _neighbour(words: Sequence[tuple[str, int, int]], at: int, step: int) -> list[str]:
    at += step
    while 0 <= at < len(words):
        if words[at][0]:
            return [words[at][0].casefold()]
        at += step
    return []


def words_of(texts: Sequence[str]) -> list[tuple[str, int, int]]:
    """For each token the word that it is part of, and the first and last token of that word; ("", i, i) for bare space.

    In scripts without spaces a token counts as a word of its own.
    """
    whole = "".join(texts)
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).tolist()
    owner: list[Any] = [None] * len(whole)
    for pattern in (WORD, MARKS):
        for found in pattern.finditer(whole):
            owner[found.start() : found.end()] = [found.span()] * len(found[0])
    spans: list[tuple[int, int] | None] = []
    for at, text in enumerate(texts):
        inner = next((starts[at] + n for n, character in enumerate(text) if not character.isspace()), None)
        span = None if inner is None else owner[inner]
        if span is not None and script_of(text) in _SPACELESS and WORD.match(text.strip()):
            span = (inner, starts[at] + len(text.rstrip()))
        spans.append(span)
    first: dict[Any, int] = {}
    last: dict[Any, int] = {}
    for at, span in enumerate(spans):
        first.setdefault(span, at)
        last[span] = at
    return [
        ("", at, at) if span is None else (whole[slice(*span)], first[span], last[span])
        for at, span in enumerate(spans)
    ]


class PredicateIndex:
    """Some passages (or images) one after another, asked where predicates hold; fast for many questions."""

    def __init__(self, passages: Sequence[Exemplar]) -> None:
        self.n_parts = sum(len(one.parts) for one in passages)
        where: dict[Atom, list[int]] = {}
        start = 0
        for one in passages:
            parts, whole = atoms_of(one)
            for at, own in enumerate(parts, start):
                for atom in own:
                    where.setdefault(atom, []).append(at)
            for atom in whole:
                where.setdefault(atom, []).extend(range(start, start + len(parts)))
            start += len(parts)
        self._where = {atom: np.array(places, dtype=np.int64) for atom, places in where.items()}

    @property
    def atoms(self) -> list[Atom]:
        """All atoms that hold somewhere, sorted."""
        return sorted(self._where)

    def count(self, atom: Atom) -> int:
        """Of how many parts an atom holds."""
        return len(self._where.get(atom, ()))

    def fits(self, predicates: Sequence[Predicate]) -> NDArray[np.bool_]:
        """(n, n_parts) bool: where each predicate holds."""
        found = np.zeros((len(predicates), self.n_parts), dtype=bool)
        for row, predicate in zip(found, predicates, strict=True):
            for every in predicate:
                places = [self._where.get(atom, _NOWHERE) for atom in every]
                row[places[0] if len(places) == 1 else functools.reduce(np.intersect1d, places)] = True
        return found
