"""Pool samples that repeat the target or an earlier pool sample: they would rank first, and measure memory alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.files import sha256_text
from patchclamp.data.documents import Document
from patchclamp.train.selection_bm25 import words

SHINGLE = 5  # words in a row
SHARE = 0.8  # of a sample's shingles that the target has, from which on it is a copy


def target_copies(pool: Iterable[Document], target: Iterable[Document]) -> NDArray[np.bool_]:
    """(n,) which pool samples say the same words as a target sample, or share most of their runs of five words with it.

    Target samples are pooled; samples of fewer than five words must agree wholly.
    """
    known = set().union(*(_shingles(document.text) for document in target))
    found = []
    for document in pool:
        mine = _shingles(document.text)
        found.append(bool(mine) and len(mine & known) >= SHARE * len(mine))
    return np.array(found, dtype=bool)


def repeated(pool: Iterable[Document]) -> NDArray[np.bool_]:
    """(n,) which pool samples have the words of an earlier one."""
    seen: set[str] = set()
    found = []
    for document in pool:
        mark = sha256_text(" ".join(words(document.text)))
        found.append(mark in seen)
        seen.add(mark)
    return np.array(found, dtype=bool)


def _shingles(text: str) -> set[tuple[str, ...]]:
    found = words(text)
    if len(found) < SHINGLE:
        return {tuple(found)} if found else set()
    return {tuple(found[at : at + SHINGLE]) for at in range(len(found) - SHINGLE + 1)}
