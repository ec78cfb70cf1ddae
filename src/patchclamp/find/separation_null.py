"""What chance gives: p-values of an AUROC, random labels for all units at once, average precision of random rankings."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from patchclamp.core.errors import InputError

Floats = NDArray[np.float64]

ALTERNATIVES = ("two-sided", "greater", "less")
EXACT_PAIRS = 2500  # positives x negatives up to which the exact distribution is used where there are no ties
BINS = 1 << 15
_CELLS = 1 << 22


def mann_whitney_p(
    auroc: ArrayLike, n1: int, n0: int, *, ties: ArrayLike = 0.0, alternative: str = "two-sided"
) -> Floats:
    """p-value that positives and negatives come from one distribution, for AUROCs of any shape.

    n1, n0: positives and negatives. ties: share of ties of each AUROC, as `Separation.ties`. Without ties and with at
    most 2,500 pairs the exact distribution of U = n1 n0 AUROC; else its normal approximation, tie-corrected, with
    continuity correction. 1 for a constant unit. alternative: "greater" asks whether positives lie higher.
    """
    if alternative not in ALTERNATIVES:
        raise InputError(f"alternative={alternative!r}; choose {', '.join(ALTERNATIVES)}")
    if n1 < 1 or n0 < 1:
        raise InputError(f"{n1} positives and {n0} negatives; both are needed")
    area, tied = np.broadcast_arrays(np.asarray(auroc, dtype=np.float64), np.asarray(ties, dtype=np.float64))
    if alternative == "two-sided":
        area = 0.5 + np.abs(area - 0.5)
    elif alternative == "less":
        area = 1 - area
    pairs, n = n1 * n0, n1 + n0
    above = pairs * (area - 0.5)
    sd = np.sqrt(pairs * (n + 1) / 12 * np.maximum(1 - tied, 0))
    flat = sd < 1e-9 * max(pairs, 1)
    upper = np.where(flat, 1.0, ndtr(-(above - 0.5) / np.where(flat, 1, sd)))
    if pairs <= EXACT_PAIRS and not tied.all():
        u = np.clip(np.rint(pairs * area), 0, pairs).astype(np.int64)
        upper = np.where(tied > 0, upper, _upper_tail(min(n1, n0), max(n1, n0))[u])
    return np.minimum(1.0, 2 * upper if alternative == "two-sided" else upper)


@functools.lru_cache(maxsize=32)
def _upper_tail(few: int, many: int) -> Floats:
    """P(U >= u) for u = 0..few * many under the null, without ties; a recursion over sizes that only adds."""
    rows = [np.ones(1) for _ in range(many + 1)]  # distribution of U for (0, j)
    for i in range(1, few + 1):
        fresh = [np.ones(1)]
        for j in range(1, many + 1):
            p = np.zeros(i * j + 1)
            p[j:] += i / (i + j) * rows[j]  # the highest document is positive: it lies above all j negatives
            p[: i * (j - 1) + 1] += j / (i + j) * fresh[j - 1]
            fresh.append(p)
        rows = fresh
    return np.minimum(1.0, np.cumsum(rows[many][::-1])[::-1])


def shuffled_truth(truth: NDArray[np.bool_], counted: NDArray[np.bool_], shuffles: int, seed: int) -> NDArray[np.bool_]:
    """Labels dealt anew among the documents that count, (labels, shuffles, n) bool; as many positives as before."""
    rng = np.random.default_rng(seed)
    dealt = np.zeros((len(truth), shuffles, truth.shape[1]), dtype=bool)
    for label, (ones, used) in enumerate(zip(truth, counted, strict=True)):
        where = np.flatnonzero(used)
        for shuffle in range(shuffles):
            dealt[label, shuffle, rng.permutation(where)[: int(ones.sum())]] = True
    return dealt


class ShuffledScores:
    """Scores in [0, 1] of all units under shuffled labels, kept as histograms: 32,768 numbers per label and shuffle."""

    def __init__(self, labels: int, shuffles: int) -> None:
        self._hits = np.zeros((labels, shuffles, BINS), dtype=np.int64)

    def add(self, scores: Floats) -> None:
        """scores: (labels, shuffles, units) of some further units."""
        binned = _binned(scores)
        for label, shuffle in np.ndindex(*binned.shape[:2]):
            self._hits[label, shuffle] += np.bincount(binned[label, shuffle], minlength=BINS)

    def p_values(self, scores: Floats) -> Floats:
        """(1 + hits) / (1 + draws) of scores (labels, units): draws of the same label reaching them, pooled over units
        and shuffles. Sound for false-discovery control over units, not for one unit picked beforehand."""
        pooled = self._hits.sum(axis=1)
        at_least = np.cumsum(pooled[:, ::-1], axis=1)[:, ::-1]
        reached = np.take_along_axis(at_least, _binned(scores).astype(np.int64), axis=1)
        return np.asarray((1 + reached) / (1 + pooled.sum(axis=1, keepdims=True)))

    def kth(self, label: int, k: int) -> Floats:
        """The k-th highest score of each shuffle, (shuffles,), rounded down to the bin."""
        at_least = np.cumsum(self._hits[label, :, ::-1], axis=1)  # (shuffles, BINS), from the highest bin
        return np.asarray((BINS - 1 - (at_least >= k).argmax(axis=1)) / BINS)

    def reaching(self, label: int, score: float) -> float:
        """How many units of a shuffle reach a score, on average."""
        return float(self._hits[label, :, int(_binned(np.array(score))) :].sum() / self._hits.shape[1])


def _binned(scores: Floats) -> NDArray[np.int32]:
    return np.clip(scores * BINS, 0, BINS - 1).astype(np.int32)


@dataclass(frozen=True)
class APNull:
    """Average precision of units that know nothing: random rankings without ties.

    n, positives: documents and how many are positive. samples: sorted draws. `kth(k, m)` is what the k-th best of m
    independent units reaches; units that move together reach less extreme values, but in fewer independent draws.
    """

    n: int
    positives: int
    samples: Floats

    @property
    def mean(self) -> float:
        return float(self.samples.mean())

    def quantile(self, q: float) -> float:
        return float(np.quantile(self.samples, q))

    def kth(self, k: int, m: int) -> float:
        """Median of the k-th highest of m independent draws (quantile 1 - (k - 0.3) / (m + 0.4)).

        InputError if m needs more of the tail than was drawn: fewer than 4 draws above that quantile.
        """
        if not 1 <= k <= m:
            raise InputError(f"the {k}-th best of {m} units asked for")
        tail = (k - 0.3) / (m + 0.4)
        if tail * len(self.samples) < 2:
            raise InputError(f"{len(self.samples)} draws can't tell the {k}-th best of {m}; give draws={4 * m}")
        return self.quantile(1 - tail)


def ap_null(n: int, positives: int, *, draws: int = 20_000, seed: int = 0) -> APNull:
    """Simulate average precision under the null for n documents, `positives` of them positive."""
    if not 0 < positives < n:
        raise InputError(f"{positives} of {n} documents positive; at least one positive and one negative are needed")
    if draws < 1:
        raise InputError(f"draws={draws}; at least 1 is needed")
    rng = np.random.default_rng(seed)
    ranks, found = np.arange(1, n + 1), []
    for size in _steps(draws, max(1, _CELLS // n)):
        keys = rng.random((size, n), dtype=np.float32)
        cut = np.partition(keys, positives - 1, axis=1)[:, positives - 1 : positives]
        hits = keys <= cut
        precision = np.cumsum(hits, axis=1) / ranks
        found.append((hits * precision).sum(1) / hits.sum(1))
    return APNull(n, positives, np.sort(np.concatenate(found)))


def expected_max_auroc(n1: int, n0: int, m: int) -> float:
    """Median of the best AUROC of m independent units that know nothing (normal approximation)."""
    from scipy.special import ndtri

    sd = math.sqrt((n1 + n0 + 1) / (12 * n1 * n0))
    return float(0.5 + sd * -ndtri(0.7 / (m + 0.4)))


def _steps(total: int, step: int) -> Iterator[int]:
    for start in range(0, total, step):
        yield min(step, total - start)
