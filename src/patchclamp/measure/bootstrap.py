"""Bootstrap intervals over documents: resampled column sums, and the percentile interval of what is computed from them.

A token-weighted figure such as perplexity is a function of sums over documents, so drawing documents with replacement
needs only the resampled sums: one matrix product of draw counts with the columns, never a loop over resamples.
Source: Efron & Tibshirani (1993), An Introduction to the Bootstrap, chapter 13 (percentile interval).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError

CELLS = 2_000_000  # draw counts held at once: 16 MB


def resampled_sums(columns: ArrayLike, *, resamples: int = 1000, seed: int = 0) -> NDArray[np.float64]:
    """Sums of each column over documents drawn with replacement, shape (resamples, n_columns) float64.

    columns: (n_documents, n_columns), all columns drawn together (paired). The draws depend on the seed and on
    n_documents only, so two calls with equal numbers of documents resample alike.
    """
    values = np.asarray(columns, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise InputError(
            f"columns of shape (documents, columns) with at least one document are needed, not {values.shape}"
        )
    if resamples < 1:
        raise InputError(f"resamples={resamples}; at least 1 is needed")
    n = len(values)
    rng = np.random.default_rng(seed)
    step = max(1, CELLS // n)
    chance = np.full(n, 1.0 / n)
    parts = []
    for start in range(0, resamples, step):
        draws = rng.multinomial(n, chance, size=min(step, resamples - start))  # (step, n): times each document is drawn
        parts.append(draws @ values)
    return np.concatenate(parts)


def percentile_interval(samples: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """The central `level` of the samples; samples that are not finite (a resample without any token) are left out.

    Returns (nan, nan) if no sample is finite. Raises InputError for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise InputError(f"level={level}; an interval's level lies between 0 and 1, such as 0.95")
    kept = np.asarray(samples, dtype=np.float64)
    kept = kept[np.isfinite(kept)]
    if not len(kept):
        return float("nan"), float("nan")
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
