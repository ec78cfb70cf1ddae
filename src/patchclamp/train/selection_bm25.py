"""Score a pool by the words that it shares with the target: Okapi BM25, in two streaming passes.

Robertson & Zaragoza 2009, with the idf of Lucene, ln(1 + (N - df + 1/2) / (df + 1/2)), which is never negative. Only the
target's words are counted, so memory grows with the target and not with the pool.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.train.samples import Samples
from patchclamp.train.selections import Scores, selections

UNSPACED = "぀-ヿ㐀-䶿一-鿿豈-﫿"  # kana and Han: scripts without spaces, a word per character
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")


@selections.add("bm25")
def bm25(pool: Samples, target: Samples, *, k1: float = 1.5, b: float = 0.75) -> Scores:
    """BM25 with the target samples as queries, averaged over them: the lexical baseline. Needs no model.

    k1: how fast repetitions of a word stop to count. b: how much long samples are held back, 0 to 1.

    Example: `patchclamp select bm25 --pool all=pool.jsonl --target t=target.txt --budget 0.05`.
    """
    if k1 < 0 or not 0 <= b <= 1:
        raise InputError(f"k1={k1}, b={b}; k1 is at least 0, b lies between 0 and 1")
    queries = [words(document.text) for document in target]
    asked = Counter(word for query in queries for word in query)
    if not asked:
        raise InputError("the target has no words; give text that isn't empty")
    frequency: Counter[str] = Counter()
    lengths = []
    for document in pool:
        found = words(document.text)
        lengths.append(len(found))
        frequency.update(asked.keys() & set(found))
    n, mean = len(lengths), max(1e-12, sum(lengths) / max(1, len(lengths)))
    weight = {
        word: times / len(queries) * math.log1p((n - frequency[word] + 0.5) / (frequency[word] + 0.5))
        for word, times in asked.items()
    }
    scores = np.zeros(n)
    for number, document in enumerate(pool):
        damped = k1 * (1 - b + b * lengths[number] / mean)
        counts = Counter(word for word in words(document.text) if word in asked)
        scores[number] = math.fsum(weight[word] * tf * (k1 + 1) / (tf + damped) for word, tf in counts.items())
    return Scores(scores, details={"target_words": len(asked), "words_in_the_pool": len(frequency)})


def words(text: str) -> list[str]:
    """Lower-case words; in scripts without spaces, characters."""
    return _WORD.findall(text.casefold())
