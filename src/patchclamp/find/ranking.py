"""Choosing from scores, the same way for every finder: the k lowest with defined ties, and false-discovery control."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def lowest(score: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Positions of the k lowest scores, ascending; of equal scores the smaller positions go first. score: (total,)."""
    if k <= 0:
        return np.zeros(0, dtype=np.int64)
    if k >= len(score):
        return np.arange(len(score))
    last = np.partition(score, k - 1)[k - 1]
    below = np.flatnonzero(score < last)
    tied = np.flatnonzero(score == last)[: k - len(below)]
    return np.sort(np.concatenate([below, tied]))


def highest(score: NDArray[np.floating[Any]], k: int) -> NDArray[np.int64]:
    """Positions of the k highest scores, ascending; of equal scores the smaller positions go first."""
    return lowest(-score, k)


def discoveries(p_values: NDArray[np.floating[Any]], rate: float) -> NDArray[np.bool_]:
    """Which p-values pass Benjamini and Hochberg's (1995) bound on the false-discovery rate, over the whole array."""
    ordered = np.sort(p_values, axis=None)
    passing = np.flatnonzero(ordered <= rate * np.arange(1, ordered.size + 1) / ordered.size)
    if not len(passing):
        return np.zeros(p_values.shape, dtype=bool)
    return np.asarray(p_values <= ordered[passing[-1]])
