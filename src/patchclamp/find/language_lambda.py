"""The largest lambda for which no selected unit serves all labels: bisection as in the paper's code, and the exact check.

A unit's score falls linearly in lambda, s(lambda) = evenness - (lambda / m_K) * top, so units overtake each other at
finitely many lambdas. `search_lambda` bisects as the reference does; `first_failure` walks the overtakings and gives
the first lambda at which a general unit enters the selection, without a grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.find.ranking import lowest

Floats = NDArray[np.floating[Any]]
UPPER = 0.2
EPS = 1e-3
MAX_DOUBLINGS = 40


@dataclass(frozen=True)
class LambdaSearch:
    """How lambda (code form) was found.

    rule: "largest" (that works, the paper's rule) or "smallest" (that idles no unit, ours for when nothing fails).
    lam: the value used; 0 if none works. works: no selected unit is general at `lam`. success_below, failure_above:
    whether a working value was seen at or below, and a failing one above. first_failure: exact lambda from which on a
    general unit is first selected; None if that never happens or it was not computed (see `exact`). monotone: False if
    a value above the first failure was seen to work. tried: (lambda, selected units that serve all labels, or none).
    """

    rule: str
    lam: float
    works: bool
    success_below: bool
    failure_above: bool
    first_failure: float | None
    exact: bool
    monotone: bool
    eps: float
    tried: tuple[tuple[float, int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def search_lambda(
    evenness: Floats,
    top: Floats,
    general: NDArray[np.bool_],
    r: int,
    *,
    norm: float,
    idle: NDArray[np.bool_] | None = None,
    upper: float = UPPER,
    eps: float = EPS,
    exact: bool = True,
) -> LambdaSearch:
    """Bisect lambda on [0, upper] to a width of eps; the upper end is doubled while it still works and may yet fail.

    evenness, top, general, idle: (total,), entropy / ln K, largest probability, serves all labels, serves none.
    r: units selected. norm: m_K. Keeps the last value that worked, as the reference does. If not even 0 works (r
    leaves no room), lam is 0 and `works` False.

    Where `upper` and all large enough lambdas work, which the paper does not meet, the rule does not decide. lam is
    then `upper` unless idle units are selected there; if they are, the smallest larger lambda that selects as few of
    them as there must be: a selection that serves no label would be of no use.
    """
    tried: dict[float, tuple[int, int]] = {}
    idling = np.zeros(len(top), dtype=bool) if idle is None else idle
    fewest = max(0, r - int((~idling).sum()))

    def look(lam: float) -> tuple[int, int]:
        if lam not in tried:
            chosen = lowest(evenness - (lam / norm) * top, r)
            tried[lam] = int(general[chosen].sum()), int(idling[chosen].sum())
        return tried[lam]

    def works(lam: float) -> bool:
        return look(lam)[0] == 0

    def useful(lam: float) -> bool:
        return look(lam) == (0, fewest)

    rule, low = "largest", 0.0
    if works(0.0):
        if not works(upper) or _fails_in_the_limit(evenness, top, general, r):
            low, _ = _bisected(works, upper, eps)
        elif useful(upper):
            low = upper
        else:
            rule, low = "smallest", _bisected(lambda lam: not useful(lam), upper, eps)[1]
    failure = first_failure(evenness, top, general, r) if exact else None
    failure = None if failure is None else failure * norm
    successes = [lam for lam, (n, _) in tried.items() if n == 0]
    return LambdaSearch(
        rule=rule,
        lam=low,
        works=low in successes,
        success_below=bool(successes),
        failure_above=any(n > 0 and lam >= low for lam, (n, _) in tried.items()),
        first_failure=failure,
        exact=exact,
        monotone=failure is None or all(lam <= failure * (1 + 1e-9) for lam in successes),
        eps=eps,
        tried=tuple((lam, *tried[lam]) for lam in sorted(tried)),
    )


def _bisected(holds: Callable[[float], bool], upper: float, eps: float) -> tuple[float, float]:
    """(last lambda seen to hold, first seen not to), at most eps apart; `upper` is doubled while it holds."""
    low, high = 0.0, upper
    for _ in range(MAX_DOUBLINGS):
        if not holds(high):
            break
        low, high = high, 2 * high
    while high - low > max(eps, 1e-12 * high):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low, high


def _fails_in_the_limit(evenness: Floats, top: Floats, general: NDArray[np.bool_], r: int) -> bool:
    """Whether a general unit is selected at infinite lambda: ranked by top, then evenness, then position."""
    if r >= len(top):
        return bool(general.any())
    last = np.partition(-top, r - 1)[r - 1]
    above, tied = -top < last, np.flatnonzero(-top == last)
    return bool(general[above].any() or general[tied[lowest(evenness[tied], r - int(above.sum()))]].any())


def first_failure(evenness: Floats, top: Floats, general: NDArray[np.bool_], r: int) -> float | None:
    """Smallest weight w >= 0 from which on one of the r lowest of `evenness - w * top` is general; None if never.

    Exact up to rounding: the lowest general unit follows the lower envelope of the general lines, a handful of pieces;
    on each piece the units ahead of it change only where their lines cross. Costs O(total log total) per piece.
    Times m_K it is the first failing lambda in code form.
    """
    if not general.any():
        return None
    if general[lowest(evenness, r)].any():
        return 0.0
    index = np.arange(len(top))
    theirs = np.flatnonzero(general)
    rivals = (evenness[~general], top[~general], index[~general])
    weight = 0.0
    current = theirs[np.lexsort((theirs, -top[theirs], evenness[theirs]))[0]]  # ahead just after weight 0
    while True:
        steeper = theirs[top[theirs] > top[current]]
        crossings = (evenness[steeper] - evenness[current]) / (top[steeper] - top[current])
        until = float(crossings.min()) if len(steeper) else np.inf
        failed = _falls_behind(evenness[current], top[current], current, rivals, r, weight, until)
        if failed is not None:
            return failed
        if not len(steeper):
            return None
        weight = max(until, weight)
        at = steeper[crossings == until]
        current = at[np.lexsort((at, -top[at]))[0]]


def _falls_behind(
    evenness: Any,
    top: Any,
    index: Any,
    rivals: tuple[Floats, Floats, NDArray[np.int64]],
    r: int,
    start: float,
    stop: float,
) -> float | None:
    """First weight in [start, stop) at which fewer than r rivals are ahead of this general line, or None."""
    higher, steeper = rivals[0] - evenness, rivals[1] - top
    flat = steeper == 0
    always = flat & ((higher < 0) | ((higher == 0) & (rivals[2] < index)))
    crossing = np.divide(higher, steeper, out=np.full(len(higher), np.inf), where=~flat)
    enters, leaves = (
        steeper > 0,
        steeper < 0,
    )  # a steeper rival is ahead after the crossing, a flatter one before it
    ahead = int(always.sum() + (enters & (crossing <= start)).sum() + (leaves & (crossing > start)).sum())
    if ahead < r:
        return start
    between = ~flat & (crossing > start) & (crossing < stop)
    if not between.any():
        return None
    times, step = crossing[between], np.where(enters[between], 1, -1)
    order = np.lexsort((-step, times))  # at one weight those that enter go first: no failure that lasts no time
    behind = np.flatnonzero(ahead + np.cumsum(step[order]) < r)
    return float(times[order][behind[0]]) if len(behind) else None
