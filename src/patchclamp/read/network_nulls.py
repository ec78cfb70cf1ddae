"""Networks at random with the degrees of a given one: what a modularity must be compared with.

`curveball` keeps the number of links of every row and column node of a bipartite network (Strona et al. 2014; uniform over
all such networks, Carstens 2015), `strengths` the sums of weights, `configuration` the degrees of an undirected network
(double edge swaps, Maslov and Sneppen 2002). A projection is nearly complete by construction, so its modularity is compared
with projections of randomised bipartite networks, not with randomised projections.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.read.networks import Float, checked

TRADES = 5  # per row: pairs of rows that exchange columns; swaps per link
MOVES = 10  # per cell of the matrix


def curveball(matrix: ArrayLike, rng: np.random.Generator, *, trades: int | None = None) -> Float:
    """A bipartite network with the same number of links at every node; each row keeps its weights, in random order.

    A complete network has no other form: there only the order of each row's weights changes.
    """
    b = checked(matrix, "network")
    rows = [set(np.flatnonzero(row).tolist()) for row in b]
    for _ in range(TRADES * len(rows) if trades is None else trades):
        if len(rows) < 2:
            break
        one, other = (int(number) for number in rng.choice(len(rows), size=2, replace=False))
        shared = rows[one] & rows[other]
        mine, theirs = rows[one] - shared, rows[other] - shared
        pool = rng.permutation(sorted(mine | theirs)).tolist()
        rows[one], rows[other] = shared | set(pool[: len(mine)]), shared | set(pool[len(mine) :])
    found = np.zeros_like(b)
    for number, columns in enumerate(rows):
        found[number, sorted(columns)] = rng.permutation(b[number][b[number] > 0])
    return found


def strengths(matrix: ArrayLike, rng: np.random.Generator, *, moves: int | None = None) -> Float:
    """A bipartite network with the same sum of weights at every node, weights moved around cycles of four links.

    Two rows and two columns at a time: what two opposite links gain, the other two lose, a uniform amount that leaves none
    negative (a random walk over all non-negative matrices with these margins). Links of weight 0 may appear.
    """
    found = checked(matrix, "network").copy()
    rows, columns = found.shape
    if min(rows, columns) < 2:
        return found
    total = MOVES * found.size if moves is None else moves
    first, second = _pairs(rng, rows, total), _pairs(rng, columns, total)
    share = rng.random(total)
    for (i, j), (a, b), u in zip(first, second, share, strict=True):
        low, high = -min(found[i, a], found[j, b]), min(found[i, b], found[j, a])
        step = low + u * (high - low)
        found[i, a] += step
        found[j, b] += step
        found[i, b] -= step
        found[j, a] -= step
    return np.maximum(found, 0.0)  # rounding


def configuration(matrix: ArrayLike, rng: np.random.Generator, *, swaps: int | None = None) -> Float:
    """An undirected network with the same number of links at every node, no loops; weights are dealt anew over the links."""
    a = checked(matrix, "network", symmetric=True)
    first, second = np.triu(a, 1).nonzero()
    links = [[int(x), int(y)] for x, y in zip(first, second, strict=True)]
    present = {frozenset(link) for link in links}
    for _ in range(TRADES * len(links) if swaps is None else swaps):
        if len(links) < 2:
            break
        one, other = (int(number) for number in rng.choice(len(links), size=2, replace=False))
        (x, y), (u, v) = links[one], links[other][:: 1 if rng.random() < 0.5 else -1]
        new = (frozenset((x, v)), frozenset((u, y)))
        if len(new[0]) < 2 or len(new[1]) < 2 or new[0] in present or new[1] in present:
            continue
        present -= {frozenset((x, y)), frozenset((u, v))}
        present |= set(new)
        links[one], links[other] = [x, v], [u, y]
    found = np.zeros_like(a)
    for (x, y), weight in zip(links, rng.permutation(a[first, second]), strict=True):
        found[x, y] = found[y, x] = weight
    return found


NULLS: dict[str, Callable[[Float, np.random.Generator], Float]] = {"curveball": curveball, "strengths": strengths}


def bipartite_null(kind: str) -> Callable[[Float, np.random.Generator], Float]:
    """The null of a name; InputError for an unknown one."""
    if kind not in NULLS:
        raise InputError(f"null={kind!r}; it is one of {', '.join(NULLS)}")
    return NULLS[kind]


def _pairs(rng: np.random.Generator, size: int, count: int) -> NDArray[np.int64]:
    """(count, 2) pairs of different numbers below size."""
    one = rng.integers(0, size, count)
    other = (one + rng.integers(1, size, count)) % size
    return np.stack([one, other], 1)
