"""Paired comparison of two conditions, unit by unit: effect sizes, log p-values that never underflow, consistency.

Used where every stimulus comes in two versions ("Year: 1900", "Number: 1900"): row i of both arrays is one stimulus.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import special

from patchclamp.core.errors import InputError

RESOLUTION = float(np.finfo(np.float32).eps)  # recorded values are float32: a smaller relative spread is rounding
_COLUMNS = 4096


@dataclass(frozen=True, eq=False)
class Paired:
    """One number per unit, each (units,) float64.

    mean_first, mean_second: means of the conditions. d: Cohen's d, their difference over the pooled standard deviation
    (ddof 1) of the two conditions. d_z: mean difference over the standard deviation of the differences. t: paired t.
    log_p: natural logarithm of the two-sided p-value. consistency: share of stimuli with first > second; reverse: share
    with first < second. A unit that is the same in both conditions everywhere has d = d_z = t = 0 and log_p = 0.
    """

    mean_first: NDArray[np.float64]
    mean_second: NDArray[np.float64]
    d: NDArray[np.float64]
    d_z: NDArray[np.float64]
    t: NDArray[np.float64]
    log_p: NDArray[np.float64]
    consistency: NDArray[np.float64]
    reverse: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[Paired]) -> Paired:
        """Units of several parts, one after another."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def compare_paired(first: NDArray[np.floating], second: NDArray[np.floating]) -> Paired:
    """Compare two conditions of the same stimuli, (n, units) each; n is at least 2.

    Standard deviations below the resolution of float32 (1.2e-7 of the larger mean) count as that resolution, so that
    d, d_z and t stay finite for a unit that is constant in both conditions. Raises InputError for unequal shapes, fewer
    than two stimuli, and values that are not finite.
    """
    if first.shape != second.shape or first.ndim != 2 or len(first) < 2:
        raise InputError(
            f"arrays of shape {first.shape} and {second.shape} given; both conditions need the same stimuli, "
            "at least two, as (stimuli, units)"
        )
    starts = range(0, first.shape[1], _COLUMNS)
    parts = [_compare(first[:, at : at + _COLUMNS], second[:, at : at + _COLUMNS]) for at in starts]
    return Paired.joined(parts) if parts else Paired(*(np.zeros(0) for _ in fields(Paired)))


def _compare(first: NDArray[np.floating], second: NDArray[np.floating]) -> Paired:
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(
            "some values are not finite; record all layers, and stimuli with at least one token that counts"
        )
    n, difference = len(a), a - b
    gap = difference.mean(0)
    floor = np.maximum(RESOLUTION * np.maximum(np.abs(a).max(0), np.abs(b).max(0)), np.finfo(np.float64).tiny)
    pooled = np.maximum(np.sqrt((a.var(0, ddof=1) + b.var(0, ddof=1)) / 2), floor)
    spread = np.maximum(difference.std(0, ddof=1), floor)
    t = gap / spread * math.sqrt(n)
    return Paired(
        mean_first=a.mean(0),
        mean_second=b.mean(0),
        d=gap / pooled,
        d_z=gap / spread,
        t=t,
        log_p=log_two_sided_p(t, n - 1),
        consistency=(difference > 0).mean(0),
        reverse=(difference < 0).mean(0),
    )


def log_two_sided_p(t: NDArray[np.floating], df: int) -> NDArray[np.float64]:
    """Natural logarithm of Student's two-sided p, P(|T| >= |t|) with `df` degrees of freedom; exact where p itself is 0.

    p = I_x(df/2, 1/2) with x = df / (df + t^2) (regularised incomplete beta function, DLMF 8.17); where that underflows,
    log p comes from its hypergeometric form x^a (1 - x)^b / (a B(a, b)) * F(a + b, 1; a + 1; x), all in logarithms.
    """
    if df < 1:
        raise InputError(f"df={df}; a t-test needs at least 2 stimuli")
    t = np.abs(np.asarray(t, dtype=np.float64))
    a, b = df / 2, 0.5
    with np.errstate(over="ignore", divide="ignore"):
        ratio = (t / math.sqrt(df)) ** 2
        p = special.betainc(a, b, 1 / (1 + ratio))
        log_p = np.log(p)
    small = p < 1e-250
    if small.any():
        far = t[small]
        log_x = -np.where(far > 1e100, 2 * np.log(far) - math.log(df), np.log1p(np.minimum(ratio[small], 1e200)))
        x = np.exp(log_x)
        lead = a * log_x + b * np.log1p(-x) - math.log(a) - special.betaln(a, b)
        log_p[small] = lead + np.log(_series(a, b, x))
    return np.asarray(log_p)


def _series(a: float, b: float, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """F(a + b, 1; a + 1; x) for 0 <= x < 1: terms are positive and shrink by a factor below x, so it is summed as it is."""
    total, term, k = np.ones_like(x), np.ones_like(x), 0
    while (term > 1e-16 * total).any():
        term = term * x * (a + b + k) / (a + 1 + k)
        total += term
        k += 1
    return total


def log_benjamini_hochberg(log_p: NDArray[np.floating]) -> NDArray[np.float64]:
    """Benjamini-Hochberg adjusted p-values, in logarithms, for log p-values (tests,); an empty array stays empty.

    log q_(i) = min over j >= i of log p_(j) + log(m / j), at most 0.
    """
    m = len(log_p)
    order = np.argsort(-np.asarray(log_p), kind="stable")  # largest first
    scaled = log_p[order] + np.log(m / np.arange(m, 0, -1)) if m else np.zeros(0)
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled), 0.0)
    return adjusted
