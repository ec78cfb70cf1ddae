"""Do two groupings of the same things agree? Adjusted mutual information and Rand indices, beside shuffled labels.

Step 11 of Bhandari, Chen and Gao 2025 (arXiv 2508.18192). Both indices depend on the table of counts alone, and shuffling
leaves its margins, so one table per shuffle serves all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import xlogy
from scipy.stats import rankdata
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score, rand_score

from patchclamp.core.errors import InputError
from patchclamp.read.networks import Float, checked
from patchclamp.read.partitions import against


def alignment(
    one: Sequence[Hashable], other: Sequence[Hashable], *, permutations: int = 9999, seed: int = 0
) -> dict[str, Any]:
    """Agreement of two groupings: ami, ari (0 by chance, 1 if equal), nmi, rand, jaccard (of pairs), with p-values.

    p_ami and p_ari: share of shufflings of the labels that agree at least as much, (k + 1) / (permutations + 1), None without
    shufflings. n: things grouped. Fewer than two things, or one group on either side, say nothing: p is then 1.
    """
    first, second = _coded(one), _coded(other)
    if len(first) != len(second):
        raise InputError(
            f"{len(first)} things on one side, {len(second)} on the other; both must group the same things"
        )
    n = len(first)
    if n < 2:
        return {"n": n, "groups": [n, n], "ami": None, "ari": None, "nmi": None, "rand": None, "jaccard": None,
                "p_ami": None, "p_ari": None}  # fmt: skip
    groups = [int(first.max()) + 1, int(second.max()) + 1]
    information, pairs = _sums(first, second, groups)
    rng, above_information, above_pairs = np.random.default_rng(seed), 0, 0
    for _ in range(permutations):
        shuffled = _sums(first, rng.permutation(second), groups)
        above_information += shuffled[0] >= information - 1e-9
        above_pairs += shuffled[1] >= pairs - 1e-9
    return {
        "n": n,
        "groups": groups,
        "ami": float(adjusted_mutual_info_score(first, second)),
        "ari": float(adjusted_rand_score(first, second)),
        "nmi": float(normalized_mutual_info_score(first, second)),
        "rand": float(rand_score(first, second)),
        "jaccard": _jaccard(first, second),
        "p_ami": (above_information + 1) / (permutations + 1) if permutations else None,
        "p_ari": (above_pairs + 1) / (permutations + 1) if permutations else None,
    }


def categorised(names: Sequence[str], categories: Mapping[str, str]) -> list[str]:
    """The category of every name; a name without one is a category of its own."""
    return [categories.get(name, f"({name})") for name in names]


def mantel(one: ArrayLike, other: ArrayLike, *, permutations: int = 9999, seed: int = 0) -> dict[str, Any]:
    """Spearman's correlation of two networks over the same nodes, with the p-value of shuffled nodes (Mantel 1967).

    One-sided: p is the share of shufflings at least as correlated. Fewer than 4 nodes, or constant weights: None.
    """
    a, b = checked(one, "network", symmetric=True), checked(other, "network", symmetric=True)
    if a.shape != b.shape:
        raise InputError(f"networks of {len(a)} and {len(b)} nodes; they must have the same nodes")
    upper = np.triu_indices(len(a), 1)
    if len(a) < 4 or np.ptp(a[upper]) == 0 or np.ptp(b[upper]) == 0:
        return {"correlation": None, "p": None, "z": None}
    ranks = _ranked(a, upper)
    mine, theirs = _standard(ranks[upper]), _ranked(b, upper)
    value = float(mine @ _standard(theirs[upper]))
    rng = np.random.default_rng(seed)
    others = np.empty(permutations)
    for number in range(permutations):
        order = rng.permutation(len(a))
        others[number] = mine @ _standard(theirs[np.ix_(order, order)][upper])
    found = against(value, others)
    return {"correlation": value, "p": found["p"], "z": found["z"]}


def profile_match(one: ArrayLike, other: ArrayLike, *, permutations: int = 9999, seed: int = 0) -> dict[str, Any]:
    """Do the rows of two matrices (datasets' importances in two models) match? Mean correlation of row i with row i.

    Null: the rows of one dealt anew, which keeps what all rows share. Constant rows correlate 0. p is one-sided.
    """
    a, b = checked(one, "first matrix"), checked(other, "second matrix")
    if a.shape != b.shape:
        raise InputError(f"matrices of {a.shape} and {b.shape}; they must have the same rows and columns")
    if len(a) < 2:
        return {"correlation": None, "p": None, "z": None}
    table = _rows(a) @ _rows(b).T
    value = float(np.trace(table) / len(a))
    rng = np.random.default_rng(seed)
    places = np.arange(len(a))
    others = np.array([table[places, rng.permutation(len(a))].mean() for _ in range(permutations)])
    found = against(value, others)
    return {"correlation": value, "p": found["p"], "z": found["z"]}


def _coded(given: Sequence[Hashable]) -> NDArray[np.int64]:
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(label, len(number)) for label in given], dtype=np.int64)


def _table(one: NDArray[np.int64], other: NDArray[np.int64], groups: Sequence[int]) -> NDArray[np.int64]:
    return np.bincount(one * groups[1] + other, minlength=groups[0] * groups[1])


def _sums(one: NDArray[np.int64], other: NDArray[np.int64], groups: Sequence[int]) -> tuple[float, float]:
    """What mutual information and the Rand index grow with where margins are fixed: sum n log n, sum n^2."""
    counts = _table(one, other, groups).astype(np.float64)
    return float(xlogy(counts, counts).sum()), float(np.square(counts).sum())


def _jaccard(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Pairs together on both sides among the pairs together on either; 1 if there are none."""
    first, second = one[:, None] == one[None], other[:, None] == other[None]
    off = ~np.eye(len(one), dtype=bool)
    either = int(((first | second) & off).sum())
    return int((first & second & off).sum()) / either if either else 1.0


def _ranked(a: Float, upper: Any) -> Float:
    found = np.zeros_like(a)
    found[upper] = rankdata(a[upper])
    return found + found.T


def _standard(values: Float) -> Float:
    """Mean 0, length 1; a constant stays 0."""
    centred = values - values.mean()
    size = np.sqrt(np.square(centred).sum())
    return np.asarray(centred / size if size > 0 else centred)


def _rows(a: Float) -> Float:
    return np.stack([_standard(row) for row in a])
