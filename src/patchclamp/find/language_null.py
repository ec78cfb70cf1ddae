"""How many language neurons chance alone would name: the same selection on documents whose labels were shuffled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.find.language_selection import CLASSES, Split, label_scores, probabilities, profile

BINS = 1 << 15
WHAT = (
    "documents of a label lie in folds; each shuffle hands the non-empty (label, fold) cells, whole, to labels at random, "
    "as many cells to each label as it had (so its tokens may differ); probabilities and the whole selection are redone"
)


def shuffled_labels(
    cells: NDArray[Any],
    tokens: NDArray[Any],
    labels: Sequence[str],
    observed: Split,
    scores: NDArray[np.float64],
    select: Callable[[NDArray[np.float64]], Split],
    *,
    shuffles: int,
    seed: int,
) -> tuple[dict[str, Any], NDArray[np.float32] | None]:
    """What `select` names when labels mean nothing, and a p-value for every score.

    cells: (labels, folds, total) int64 firing counts. tokens: (labels, folds). scores: (labels, total) of `observed`.
    Returns the record, and p-values (labels, total): how often shuffled scores of the same label, pooled over units and
    shuffles, reach the score, (1 + hits) / (1 + draws) (pooled permutations as in Tusher et al. 2001; scores are
    compared in bins of 1/32768 of their range, rounded against discovery). Sound for false-discovery control over
    units, not for a single unit that was picked beforehand. The p of a count is (1 + shuffles that name at least as
    many) / (1 + shuffles); `share` is the mean under shuffling over the observed number.

    With one non-empty fold per label a shuffle only renames labels: the record says so and p-values are None.
    """
    if shuffles < 0:
        raise InputError(f"shuffles={shuffles} given; it is at least 0 (0: no null)")
    filled = np.argwhere(tokens > 0)
    record: dict[str, Any] = {"shuffles": shuffles, "seed": seed, "cells": len(filled), "what": WHAT}
    if shuffles == 0:
        return record | {"available": False, "why": "shuffles=0 was asked for"}, None
    if len(filled) <= len(labels):
        why = "every label has its documents in a single fold; record at least two documents per label with folds >= 2"
        return record | {"available": False, "why": why}, None
    rng = np.random.default_rng(seed)
    tally = _ScoreTally(scores, observed.weight)
    named, per_label, per_class = [], [], []
    with progress("shuffling labels", shuffles) as advance:
        for _ in range(shuffles):
            given = rng.permutation(filled[:, 0])
            counts = np.stack([_total(cells, filled[given == label]) for label in range(len(labels))])
            sums = [int(tokens[tuple(filled[given == label].T)].sum()) for label in range(len(labels))]
            p = probabilities(counts, sums)
            split = select(p)
            tally.add(p)
            named.append(int(split.chosen.any(axis=0).sum()))
            per_label.append(split.chosen.sum(axis=1))
            per_class.append(list(split.counts.values()))
            advance(1)
    by_label, by_class = np.array(per_label), np.array(per_class)
    record |= {
        "available": True,
        "named": _against(int(observed.chosen.any(axis=0).sum()), np.array(named)),
        "classes": {name: _against(observed.counts[name], by_class[:, at]) for at, name in enumerate(CLASSES)},
        "labels": {label: _against(int(observed.chosen[at].sum()), by_label[:, at]) for at, label in enumerate(labels)},
    }
    return record, tally.p_values()


def _total(cells: NDArray[Any], chosen: NDArray[Any]) -> NDArray[Any]:
    """Sum of some cells, one at a time: a fancy-indexed sum would copy them all first."""
    counts = np.zeros(cells.shape[-1], dtype=np.int64)
    for label, fold in chosen:
        counts += cells[label, fold]
    return counts


def _against(observed: int, null: NDArray[Any]) -> dict[str, Any]:
    return {
        "observed": observed,
        "mean": float(null.mean()),
        "max": int(null.max()),
        "share": float(null.mean() / observed) if observed else None,
        "p": float((1 + (null >= observed).sum()) / (1 + len(null))),
    }


class _ScoreTally:
    """Histogram of shuffled scores per label: 32,768 numbers a label instead of every shuffled score."""

    def __init__(self, scores: NDArray[np.float64], weight: float) -> None:
        self._weight = weight
        self._width = (1 + weight) / BINS  # a label score is at most 1 + weight
        self._bins = self._binned(scores)
        self._hits = np.zeros((len(scores), BINS), dtype=np.int64)
        self._draws = 0

    def add(self, p: NDArray[np.float64]) -> None:
        binned = self._binned(label_scores(p, profile(p), self._weight))
        self._hits += np.stack([np.bincount(row, minlength=BINS) for row in binned])
        self._draws += p.shape[1]

    def p_values(self) -> NDArray[np.float32]:
        at_least = np.cumsum(self._hits[:, ::-1], axis=1)[:, ::-1]
        reached = np.take_along_axis(at_least, self._bins.astype(np.int64), axis=1)
        return ((1 + reached) / (1 + self._draws)).astype(np.float32)

    def _binned(self, scores: NDArray[np.float64]) -> NDArray[np.int32]:
        return np.clip(scores / self._width, 0, BINS - 1).astype(np.int32)
