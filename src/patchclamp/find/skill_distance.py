"""How far a unit's activation on a skill lies from its activation on everything else: distances and their p-values.

Li, Sun & Weng 2025 (arXiv 2503.21730) rank by the plain difference of means; `importance` is the ratio of selective pruning,
which the paper compares with. Distances take `Distribution`s over the tokens of both sets and give one number per unit.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.record.statistics.shape import Distribution

Floats = NDArray[np.float64]
Distance = Callable[[Distribution, Distribution], Floats]
FLOOR = 1e-6  # of the median spread: below it a spread is rounding
IMPORTANCE = "importance"


def mean_difference(skill: Distribution, retain: Distribution) -> Floats:
    """mu_f - mu_r, in units of activation: the paper's distance (its step 2). Units of larger scale weigh more."""
    return np.where(_alike(skill, retain), 0.0, skill.mean - retain.mean)


def standardised(skill: Distribution, retain: Distribution) -> Floats:
    """(mu_f - mu_r) / sqrt((var_f + var_r) / 2): in standard deviations, so that units of any scale compare (Cohen's d).

    A unit that is constant in both sets is divided by a millionth of the median unit's spread: 0 if its means agree.
    """
    spread = np.sqrt((skill.variance + retain.variance) / 2)
    return np.asarray(mean_difference(skill, retain) / _floored(spread))


def hellinger(skill: Distribution, retain: Distribution) -> Floats:
    """Hellinger distance of the two normals with these means and spreads, in [-1, 1], with the sign of mu_f - mu_r.

    H^2 = 1 - sqrt(2 s_f s_r / (s_f^2 + s_r^2)) exp(-(mu_f - mu_r)^2 / (4 (s_f^2 + s_r^2))). 0: the same normal, 1: no overlap.
    Unlike the others it also sees a change of spread. Spreads are floored as for `standardised`.
    """
    both = np.concatenate([skill.std, retain.std])
    first, second = np.split(_floored(both), 2)
    total = first**2 + second**2
    gap = mean_difference(skill, retain)
    overlap = np.sqrt(2 * first * second / total) * np.exp(-(gap**2) / (4 * total))
    distance = np.sqrt(np.clip(1 - overlap, 0, 1))
    return np.where(gap < 0, -distance, distance)


def importance(skill: Distribution, retain: Distribution) -> Floats:
    """(mean |a| on the skill) / (mean |a| on the rest + 1e-8): selective pruning, never negative."""
    return np.asarray(_size(skill) / (_size(retain) + 1e-8))


DISTANCES: dict[str, Distance] = {
    "mean difference": mean_difference,
    "standardised": standardised,
    "hellinger": hellinger,
    IMPORTANCE: importance,
}


def welch(skill: Distribution, retain: Distribution, *, signed: bool, of_size: bool = False) -> Floats | None:
    """p-value of every unit, (units,), that its mean is the same in both sets; clusters, not tokens, are the sample.

    skill, retain: with a leading axis of clusters of documents (folds), at least two with tokens in each set, else None.
    Tokens of one document depend on each other, so a test over tokens would call noise significant; clusters are independent.
    The mean of a set is a ratio of sums over its c clusters with the variance c / (c - 1) sum (n_i (m_i - mu))^2 / n^2; the
    two sets are compared by Welch's t (1947). signed: one-sided, higher on the skill. of_size: of mean absolute values.
    """
    from scipy.stats import t as student

    parts = [_ratio(each, of_size) for each in (skill, retain)]
    if any(part is None for part in parts):
        return None
    (mean_f, var_f, c_f), (mean_r, var_r, c_r) = (part for part in parts if part is not None)
    gap = np.where(np.abs(mean_f - mean_r) <= 1e-9 * (np.abs(mean_f) + np.abs(mean_r)), 0.0, mean_f - mean_r)
    variance = var_f + var_r
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(gap == 0, 0.0, gap / np.sqrt(variance))  # without any variance: infinite
        freedom = variance**2 / (var_f**2 / (c_f - 1) + var_r**2 / (c_r - 1))
    freedom = np.where(np.isfinite(freedom), np.maximum(freedom, 1.0), c_f + c_r - 2.0)
    p = student.sf(t, freedom) if signed else 2 * student.sf(np.abs(t), freedom)
    return np.clip(p, np.finfo(np.float32).tiny, 1.0)


def _ratio(clusters: Distribution, of_size: bool) -> tuple[Floats, Floats, int] | None:
    """Mean over all tokens, the variance of that mean, and the number of clusters; None with fewer than two."""
    filled = np.flatnonzero(clusters.n > 0)
    if len(filled) < 2:
        return None
    means = (_size(clusters) if of_size else clusters.mean)[filled]
    share = (clusters.n[filled] / clusters.n[filled].sum())[:, None]
    mean = (share * means).sum(0)
    count = len(filled)
    return mean, count / (count - 1) * ((share * (means - mean)) ** 2).sum(0), count


def _alike(skill: Distribution, retain: Distribution) -> NDArray[np.bool_]:
    """Where two means differ by rounding only (1e-9 of them): float sums of the same constant do."""
    return np.asarray(np.abs(skill.mean - retain.mean) <= 1e-9 * (np.abs(skill.mean) + np.abs(retain.mean)))


def _floored(spread: Floats) -> Floats:
    """Spreads, at least a millionth of the median of those above 0 (of 1 if there are none)."""
    some = spread[spread > 0]
    return np.maximum(spread, FLOOR * (float(np.median(some)) if len(some) else 1.0))


def _size(of: Distribution) -> Floats:
    if of.size is None:
        raise InputError(
            "selective pruning's importance needs mean absolute values; record with statistics=('shape',), not only 'moments'"
        )
    return of.size
