"""Holm's step-down correction of the p-values of a table (Holm 1979): family-wise error, no assumption of independence."""

from __future__ import annotations

from collections.abc import Sequence

from patchclamp.core.errors import InputError


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values in the given order; entries that are None (no test was possible) stay None and don't count.

    The i-th smallest of m is multiplied by m - i + 1; the results are made non-decreasing and capped at 1.
    """
    known = [(p, number) for number, p in enumerate(p_values) if p is not None]
    for p, number in known:
        if not 0 <= p <= 1:
            raise InputError(f"p-value {p} at place {number}; p-values lie between 0 and 1")
    adjusted: list[float | None] = [None] * len(p_values)
    reached = 0.0
    for rank, (p, number) in enumerate(sorted(known)):
        reached = max(reached, min(1.0, p * (len(known) - rank)))
        adjusted[number] = reached
    return adjusted
