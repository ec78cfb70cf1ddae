"""The geometry of numbers in a text: how often each year is written, and how alike the words around it are (PPMI cosine).

PPMI: positive pointwise mutual information, max(0, ln p(x, c) / (p(x) p(c))) (Bullinaria & Levy 2007). The corpus variant
of the similarity matrix of Li et al. 2025 (arXiv 2507.15851); the same fits apply.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.distances import as_values

_WORD = re.compile(r"\w+")


@dataclass(frozen=True, eq=False)
class Cooccurrence:
    """Counts of a text. values: (n,); counts: (n,) int64, how often each value is written; words: the m context words;
    together: (n, m) int64, how often a context word stands within the window of a value.
    """

    values: tuple[int, ...]
    counts: NDArray[np.int64]
    words: tuple[str, ...]
    together: NDArray[np.int64]

    def ppmi(self) -> NDArray[np.float64]:
        """(n, m) positive pointwise mutual information, nats; 0 where nothing was seen together."""
        joint = self.together.astype(np.float64)
        total = joint.sum()
        if not total:
            return joint
        expected = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True) / total
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.maximum(np.where(joint > 0, np.log(joint / expected), 0.0), 0.0)

    def similarity(self) -> NDArray[np.float64]:
        """(n, n) cosine of the PPMI rows; NaN for values without any context, so that fits leave them out."""
        rows = self.ppmi()
        norm = np.linalg.norm(rows, axis=1)
        unit = rows / np.where(norm > 0, norm, 1.0)[:, None]
        found = np.clip(unit @ unit.T, -1.0, 1.0)
        found[norm == 0] = np.nan
        found[:, norm == 0] = np.nan
        return found

    def to_dict(self) -> dict[str, Any]:
        """Counts per value, without the matrix."""
        return {"values": list(self.values), "counts": self.counts.tolist(), "words": len(self.words)}


def cooccurrence(
    texts: Iterable[str], values: Sequence[int], *, window: int = 5, least: int = 2, vocabulary: int = 20_000
) -> Cooccurrence:
    """Count values and their neighbours in a stream of texts, such as `(d.text for d in corpus.documents("en"))`.

    A value counts where it stands as a whole word. window: words on either side that count as its context, within one text.
    least: context words that occur near values at least so often; vocabulary: at most so many, the commonest first.
    Other values are context too. Case is ignored. Raises InputError if no value occurs at all.
    """
    as_values(values)
    if window < 1 or least < 1 or vocabulary < 1:
        raise InputError(f"window={window}, least={least}, vocabulary={vocabulary}; all are at least 1")
    place = {str(value): row for row, value in enumerate(values)}
    counts = np.zeros(len(values), dtype=np.int64)
    near: Counter[tuple[int, str]] = Counter()
    common: Counter[str] = Counter()
    for text in texts:
        words = _WORD.findall(text.lower())
        for at, word in enumerate(words):
            row = place.get(word)
            if row is None:
                continue
            counts[row] += 1
            context = words[max(0, at - window) : at] + words[at + 1 : at + 1 + window]
            near.update((row, other) for other in context)
            common.update(context)
    if not counts.any():
        raise InputError(f"none of the {len(values)} values occurs in the text; nothing to compare")
    kept = [word for word, count in sorted(common.items(), key=lambda item: (-item[1], item[0])) if count >= least]
    column = {word: at for at, word in enumerate(kept[:vocabulary])}
    together = np.zeros((len(values), len(column)), dtype=np.int64)
    for (row, word), count in near.items():
        if word in column:
            together[row, column[word]] = count
    return Cooccurrence(tuple(values), counts, tuple(column), together)
