"""Sign-flip permutation test of paired differences, and the rank of a value among controls.

Under the null hypothesis each document's difference is as likely to have either sign. The statistic is the absolute
sum of the differences; all sign patterns are enumerated when they are no more than the permutations allowed, else
random ones are drawn. Source: Phipson & Smyth (2010), "Permutation p-values should never be zero": (k + 1) / (m + 1).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError

CELLS = 4_000_000  # signs held at once
TIES = 1e-9  # sums that differ by less, relative to the sum of magnitudes, count as equal: rounding must not break ties


def sign_flip(differences: ArrayLike, *, permutations: int = 9999, seed: int = 0) -> float:
    """Two-sided p-value that the differences, shape (n,), are symmetric about 0.

    Exact (all 2^n patterns) where 2^n <= permutations + 1, else Monte Carlo with `permutations` random patterns.
    All-zero, single or no differences give 1.0. Raises InputError for differences that are not finite.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"a list of finite differences is needed, not {values.shape} with non-finite values")
    if permutations < 1:
        raise InputError(f"permutations={permutations}; at least 1 is needed")
    n = len(values)
    if n < 2 or not values.any():
        return 1.0
    bar = abs(values.sum()) - TIES * np.abs(values).sum()
    if n < 63 and 2**n <= permutations + 1:
        return float(np.count_nonzero(np.abs(_all_signs(n) @ values) >= bar)) / 2**n
    rng = np.random.default_rng(seed)
    step, reached = max(1, CELLS // n), 0
    for start in range(0, permutations, step):
        signs = 1 - 2 * rng.integers(0, 2, size=(min(step, permutations - start), n), dtype=np.int8)
        reached += int(np.count_nonzero(np.abs(signs @ values) >= bar))
    return (reached + 1) / (permutations + 1)


def rank_p(value: float, controls: ArrayLike) -> float | None:
    """(k + 1) / (n + 1), k of the n controls lying at least as far from 0 as `value`; None without controls."""
    others = np.asarray(controls, dtype=np.float64)
    if not others.size:
        return None
    return (int(np.count_nonzero(np.abs(others) >= abs(value))) + 1) / (others.size + 1)


def _all_signs(n: int) -> NDArray[np.float64]:
    """All patterns of n signs, shape (2^n, n)."""
    bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
    return (1 - 2 * bits).astype(np.float64)
