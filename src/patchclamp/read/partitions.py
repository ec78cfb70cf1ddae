"""Communities of a weighted network: Louvain or Leiden runs, their consensus, its stability, modularity against nulls.

Bhandari, Chen and Gao 2025 (arXiv 2508.18192), step 7. Louvain (Blondel et al. 2008) is networkx's, which torch needs
anyway; Leiden (Traag et al. 2019) is graspologic-native's, an extra without further dependencies under the MIT licence,
several times faster on networks of hundreds of nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster.hierarchy import average, fcluster
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from patchclamp.core.errors import InputError
from patchclamp.read.networks import Float, checked

METHODS = ("louvain", "leiden")
ROUNDING = 1e-12  # modularities nearer to 0 are differences of rounding
LEIDEN_ROUNDS = 4  # each starts from the partition before it; more change nothing on networks of this size
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Partition:
    """Communities of n nodes. labels: (n,) int64, 0 for the largest community. modularity: of these labels.

    agreement: (n, n) share of the runs in which two nodes are together. stability: mean adjusted Rand index between runs,
    1 for a single run. runs: modularity of every run.
    """

    labels: Labels
    modularity: float
    stability: float
    agreement: Float
    runs: Float
    resolution: float

    @property
    def n_communities(self) -> int:
        return int(self.labels.max()) + 1 if len(self.labels) else 0

    def members(self, names: Sequence[str]) -> list[list[str]]:
        """Names of the nodes of every community, largest first."""
        return [
            [names[at] for at in np.flatnonzero(self.labels == number).tolist()] for number in range(self.n_communities)
        ]


def modularity(matrix: ArrayLike, labels: ArrayLike, *, resolution: float = 1.0) -> float:
    """Newman's modularity of a partition: sum over communities of L_c / m - resolution (d_c / 2m)^2; 0 without links."""
    a = checked(matrix, "network", symmetric=True)
    found = np.asarray(labels)
    if found.shape != (len(a),):
        raise InputError(f"{found.shape} labels for {len(a)} nodes; give one for each")
    twice = a.sum()
    if not twice:
        return 0.0
    together = found[:, None] == found[None]
    degree = a.sum(1)
    expected = resolution * np.outer(degree, degree) / twice
    value = float(((a - expected) * together).sum() / twice)
    return value if abs(value) > ROUNDING else 0.0


def detect(matrix: ArrayLike, *, method: str = "louvain", resolution: float = 1.0, seed: int = 0) -> Labels:
    """Communities of one run, (n,) int64, the largest first. A node without links is a community of its own."""
    a = checked(matrix, "network", symmetric=True)
    if method not in METHODS:
        raise InputError(f"method={method!r}; it is one of {', '.join(METHODS)}")
    if not resolution > 0:
        raise InputError(f"resolution={resolution}; it is above 0, 1 by default")
    if not a.any():
        return np.arange(len(a))
    if method == "leiden":
        return ordered(_leiden(a, resolution, seed))
    parts = nx.community.louvain_communities(nx.from_numpy_array(a), resolution=resolution, seed=seed)
    labels = np.zeros(len(a), dtype=np.int64)
    for number, part in enumerate(parts):
        labels[sorted(part)] = number
    return ordered(labels)


def communities_of(
    matrix: ArrayLike, *, method: str = "louvain", resolution: float = 1.0, runs: int = 100, seed: int = 0
) -> Partition:
    """Consensus of many runs: average linkage on 1 - share of runs together, cut into the mean number of communities.

    runs: with seeds seed, seed + 1, ... The mean number is rounded down, as in the paper. The reference clusters the rows of
    the agreement matrix as points; here its entries are the distances, as the paper says.
    """
    a = checked(matrix, "network", symmetric=True)
    if runs < 1:
        raise InputError(f"runs={runs}; at least 1 is needed")
    each = np.stack([detect(a, method=method, resolution=resolution, seed=seed + run) for run in range(runs)])
    agreement = np.zeros((len(a), len(a)))
    for labels in each:
        agreement += labels[:, None] == labels[None]
    agreement /= runs
    if len(a) < 2:
        chosen = np.zeros(len(a), dtype=np.int64)
    else:
        wanted = max(1, int(np.floor(np.mean([labels.max() + 1 for labels in each]) + 1e-9)))
        tree = average(squareform(1 - agreement, checks=False))
        chosen = ordered(fcluster(tree, wanted, criterion="maxclust") - 1)
    values = np.array([modularity(a, labels, resolution=resolution) for labels in each])
    return Partition(
        chosen, modularity(a, chosen, resolution=resolution), _stability(each), agreement, values, resolution
    )


def sweep(
    matrix: ArrayLike,
    resolutions: Sequence[float] = (0.5, 1.0, 2.0),
    *,
    runs: int = 20,
    method: str = "louvain",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How the communities depend on the resolution: rows of resolution, communities, modularity, stability."""
    rows = []
    for resolution in resolutions:
        found = communities_of(matrix, method=method, resolution=resolution, runs=runs, seed=seed)
        rows.append(
            {"resolution": resolution, "communities": found.n_communities, "modularity": found.modularity,
             "stability": found.stability}
        )  # fmt: skip
    return rows


def modularity_test(
    observed: ArrayLike,
    randomised: Callable[[np.random.Generator], ArrayLike],
    *,
    nulls: int = 199,
    best_of: int = 3,
    method: str = "louvain",
    resolution: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Is the network more modular than networks at random? Best modularity of a few runs, of it and of every null alike.

    randomised: a generator of random numbers -> the network of one null. Gives modularity, null_mean, null_sd, z (None where
    the nulls don't vary) and p = (nulls at least as modular + 1) / (nulls + 1). nulls=0: p and z are None.
    """
    if nulls < 0 or best_of < 1:
        raise InputError(f"nulls={nulls} and best_of={best_of}; at least 0 and 1 are needed")
    rng = np.random.default_rng(seed)

    def best(matrix: ArrayLike) -> float:
        runs = (detect(matrix, method=method, resolution=resolution, seed=run) for run in range(best_of))
        return max(modularity(matrix, labels, resolution=resolution) for labels in runs)

    value = best(observed)
    others = np.array([best(randomised(rng)) for _ in range(nulls)])
    return {"modularity": value, "nulls": nulls} | against(value, others)


def against(value: float, others: Float, *, ties: float = 1e-12) -> dict[str, float | None]:
    """A value beside those of nulls: null_mean, null_sd, z, and p that nulls are at least as large (never 0)."""
    if not len(others):
        return {"null_mean": None, "null_sd": None, "z": None, "p": None}
    spread = float(others.std(ddof=1)) if len(others) > 1 else 0.0
    z = (value - float(others.mean())) / spread if spread > 1e-12 else None
    p = (int((others >= value - ties).sum()) + 1) / (len(others) + 1)
    return {"null_mean": float(others.mean()), "null_sd": spread, "z": z, "p": p}


def ordered(labels: ArrayLike) -> Labels:
    """The same partition numbered by size, the largest first; of equal ones that with the first node."""
    found = np.asarray(labels)
    names, first, inverse, counts = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(names), dtype=np.int64)
    rank[np.lexsort((first, -counts))] = np.arange(len(names))
    return rank[inverse.reshape(-1)]


def _stability(each: NDArray[np.int64]) -> float:
    """Mean adjusted Rand index between different runs; equal runs are compared once."""
    kinds, counts = np.unique(each, axis=0, return_counts=True)
    runs = len(each)
    if runs < 2 or each.shape[1] < 2:
        return 1.0
    total = float((counts * (counts - 1) / 2).sum())
    for one in range(len(kinds)):
        for other in range(one):
            total += counts[one] * counts[other] * adjusted_rand_score(kinds[one], kinds[other])
    return float(total / (runs * (runs - 1) / 2))


def _leiden(a: Float, resolution: float, seed: int) -> Labels:
    try:
        from graspologic_native import leiden
    except ImportError as problem:
        raise InputError(
            "method='leiden' needs graspologic-native: pip install 'patchclamp[leiden]', or use method='louvain'"
        ) from problem
    first, second = np.triu(a, 1).nonzero()
    edges = [(str(x), str(y), float(a[x, y])) for x, y in zip(first.tolist(), second.tolist(), strict=True)]
    _, places = leiden(
        edges=edges, starting_communities=None, resolution=resolution, randomness=0.001, iterations=LEIDEN_ROUNDS,
        use_modularity=True, seed=seed, trials=1,
    )  # fmt: skip
    return np.array([places.get(str(node), len(a) + node) for node in range(len(a))], dtype=np.int64)
