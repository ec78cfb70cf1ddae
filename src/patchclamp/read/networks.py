"""Skill-dataset-module networks: the three matrices, their projections on modules and skills, sparsifying, statistics.

Bhandari, Chen and Gao 2025 (arXiv 2508.18192), steps 1, 5, 6 and 8. B_DS (datasets, skills) says what a dataset asks for,
B_DM (datasets, modules) what pruning says that it needs; B_SM = B_DS^T B_DM; modules are joined by B_SM^T B_SM, skills by
B_SM B_SM^T, without self-loops. All matrices are float64, non-negative and dense: hundreds of nodes, not thousands.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task

Float = NDArray[np.float64]
RIDGE, FLOOR = 1e-5, 5e-5
ROUNDING = 1e-12  # relative: residuals below this are differences of rounding
FEW = 0.2  # of the edges: a network sparsified below this has lost its communities


def skill_matrix(
    tasks: Mapping[str, Task], labels: Sequence[str] = ("skill",), *, tags: Mapping[str, Sequence[str]] | None = None
) -> tuple[Float, tuple[str, ...]]:
    """What each dataset asks for: (datasets, skills) float64 in [0, 1], and the skills' names.

    Every item counts once for each value of its `labels` (keys of the items; "kind" = "ioi" is the skill "ioi"). tags:
    dataset -> skills, instead of labels or beside them, each counted once per item. Counts are divided by the items of the
    dataset, then each skill is scaled to [0, 1] over the datasets; one that all datasets have alike becomes 1, where the
    paper's formula divides by 0. A dataset without a skill keeps a row of zeros, with a warning.
    """
    counts: dict[str, dict[str, float]] = {}
    for name, task in tasks.items():
        mine = counts.setdefault(name, {})
        for skill in dict.fromkeys((tags or {}).get(name, ())):
            mine[skill] = mine.get(skill, 0.0) + 1.0
        for item in task:
            for skill in dict.fromkeys(item.labels[key] for key in labels if key in item.labels):
                mine[skill] = mine.get(skill, 0.0) + 1.0 / len(task)
    skills = tuple(dict.fromkeys(skill for mine in counts.values() for skill in mine))
    if not skills:
        raise InputError(f"no item has one of the labels {', '.join(labels)}; give others, or tags= for the datasets")
    matrix = np.array([[mine.get(skill, 0.0) for skill in skills] for mine in counts.values()])
    if empty := [name for name, mine in counts.items() if not mine]:
        warnings.warn(f"no skill is known of {', '.join(empty)}; they join nothing", stacklevel=2)
    low, high = matrix.min(0, keepdims=True), matrix.max(0, keepdims=True)
    spread = np.where(high > low, high - low, 1.0)
    return np.where(high > low, (matrix - low) / spread, 1.0), skills


@dataclass(frozen=True, eq=False)
class Projections:
    """skills_modules (skills, modules); modules (modules, modules) and skills (skills, skills), symmetric, diagonal 0."""

    skills_modules: Float
    modules: Float
    skills: Float


def project(datasets_skills: ArrayLike, datasets_modules: ArrayLike, *, normalise: bool = False) -> Projections:
    """Join skills with modules through the datasets, then modules through skills and skills through modules.

    normalise: divide an edge by the product of the norms of its two nodes' profiles, so that it becomes their cosine and
    strong nodes don't join everything. InputError for shapes that don't fit, and for negative or non-finite weights.
    """
    b_ds, b_dm = checked(datasets_skills, "datasets x skills"), checked(datasets_modules, "datasets x modules")
    if len(b_ds) != len(b_dm):
        raise InputError(f"{len(b_ds)} datasets have skills but {len(b_dm)} have modules; the rows must be the same")
    b_sm = b_ds.T @ b_dm
    return Projections(b_sm, joined(b_sm.T, normalise=normalise), joined(b_sm, normalise=normalise))


def joined(profiles: Float, *, normalise: bool = False) -> Float:
    """profiles @ profiles^T without its diagonal, (n, n); cosines if `normalise`, 0 for empty profiles."""
    if normalise:
        norms = np.sqrt(np.square(profiles).sum(1, keepdims=True))
        profiles = np.divide(profiles, norms, out=np.zeros_like(profiles), where=norms > 0)
    edges = profiles @ profiles.T
    np.fill_diagonal(edges, 0)
    return np.asarray((edges + edges.T) / 2)


def sharpened(datasets_modules: ArrayLike) -> Float:
    """What a dataset needs of a module beyond what both need and get on average: max(0, w - row mean - column mean + mean).

    Pruning finds the same few modules for every dataset; their shared weight joins all nodes alike and hides what differs.
    Both means go: without the dataset's own, a dataset from which little is pruned would be joined with every module.
    """
    matrix = checked(datasets_modules, "datasets x modules")
    if not matrix.size:
        return matrix
    residual = matrix - matrix.mean(0, keepdims=True) - matrix.mean(1, keepdims=True) + matrix.mean()
    return np.where(residual > ROUNDING * np.abs(matrix).max(), residual, 0.0)


def checked(matrix: ArrayLike, what: str, *, symmetric: bool = False) -> Float:
    """The matrix as float64; InputError if it isn't two-dimensional, finite and non-negative (and symmetric, if asked)."""
    found = np.asarray(matrix, dtype=np.float64)
    if found.ndim != 2:
        raise InputError(f"{what}: a matrix is needed, not an array of shape {found.shape}")
    if not np.isfinite(found).all():
        raise InputError(
            f"{what}: {int((~np.isfinite(found)).sum())} weights are NaN or infinite; leave them out first"
        )
    if (found < 0).any():
        raise InputError(f"{what}: {int((found < 0).sum())} weights are negative; a network's weights are 0 or more")
    if symmetric and (found.shape[0] != found.shape[1] or not np.allclose(found, found.T)):
        raise InputError(f"{what}: an undirected network needs a symmetric matrix, not one of shape {found.shape}")
    return found


def effective_resistance(matrix: ArrayLike) -> Float:
    """Effective resistance between every row and column node of a bipartite network, (rows, columns) float64.

    The Laplacian of the network gets the paper's ridge of 1e-5, R_ij = L+_ii + L+_jj - 2 L+_ij. Between nodes of different
    components, where no current flows, the value is huge and means nothing.
    """
    b = checked(matrix, "network")
    rows, columns = b.shape
    laplacian = np.zeros((rows + columns, rows + columns))
    laplacian[:rows, rows:], laplacian[rows:, :rows] = -b, -b.T
    np.fill_diagonal(laplacian, np.concatenate([b.sum(1), b.sum(0)]) + RIDGE)
    inverse = np.linalg.inv(laplacian) if laplacian.size else laplacian
    own = np.diag(inverse)
    return np.asarray(own[:rows, None] + own[None, rows:] - 2 * inverse[:rows, rows:])


def sparsify(matrix: ArrayLike, alpha: float, *, seed: int = 0, floor: float = FLOOR) -> Float:
    """Keep each edge of a bipartite network with p = min(1, alpha R (degree_i + degree_j)), then at weight / p.

    alpha: the paper's is 0.01. floor: lighter edges are dropped afterwards. Expected weights are unchanged: each edge is
    drawn once (the reference draws twice, which doubles them). Degrees are sums of weights. In a dense network
    p is about 4 alpha whatever the weight: 0.01 destroys the communities, and a warning says so where fewer than 20% of
    the edges are left.
    """
    b = checked(matrix, "network")
    if not alpha > 0:
        raise InputError(f"alpha={alpha}; it is above 0, such as 0.1 (the paper: 0.01)")
    degrees = b.sum(1, keepdims=True) + b.sum(0, keepdims=True)
    chance = np.clip(alpha * effective_resistance(b) * degrees, 0.0, 1.0)
    drawn = (np.random.default_rng(seed).random(b.shape) < chance) & (b > 0)
    found = np.divide(b, chance, out=np.zeros_like(b), where=drawn)
    found[found <= floor] = 0.0
    if (b > 0).any() and (found > 0).sum() < FEW * (b > 0).sum():
        warnings.warn(
            f"alpha={alpha:g} keeps {int((found > 0).sum())} of {int((b > 0).sum())} edges; communities rarely survive that",
            stacklevel=2,
        )
    return found


def statistics(matrix: ArrayLike) -> dict[str, Any]:
    """Step 8: what a weighted undirected network looks like, as plain numbers; None where it isn't defined.

    Distances count links, not weights; path length and diameter are those of the largest component. Clustering is the
    weighted one of Onnela et al. 2005; assortativity is that of the numbers of links (Newman 2002).
    """
    a = checked(matrix, "network", symmetric=True)
    n, linked = len(a), a > 0
    graph = nx.from_numpy_array(a)
    found: dict[str, Any] = {
        "nodes": n,
        "edges": int(linked.sum()) // 2,
        "mean_degree": float(linked.sum(1).mean()) if n else None,
        "mean_strength": float(a.sum(1).mean()) if n else None,
        "density": float(linked.sum() / (n * (n - 1))) if n > 1 else None,
    }
    parts = sorted(nx.connected_components(graph), key=len, reverse=True)
    largest = graph.subgraph(parts[0]) if parts else graph
    found |= {
        "components": len(parts),
        "largest_component": len(largest),
        "path_length": float(nx.average_shortest_path_length(largest)) if len(largest) > 1 else None,
        "diameter": int(nx.diameter(largest)) if len(largest) > 1 else None,
        "clustering": float(nx.average_clustering(graph, weight="weight")) if n else None,
        "global_efficiency": float(nx.global_efficiency(graph)) if n > 1 else None,
        "assortativity": _assortativity(linked),
    }
    return found | {key: value for key, value in spectrum(a).items() if key != "fiedler"}


def spectrum(matrix: ArrayLike) -> dict[str, Any]:
    """Spectral measures: radius of the adjacency matrix, its gap, the Fiedler value and vector of the Laplacian.

    spectral_radius and spectral_gap: the largest eigenvalue, and how far the second lies below. fiedler_value: second
    smallest Laplacian eigenvalue, 0 if and only if the network falls apart. fiedler: its vector, (n,), None for n < 2.
    """
    a = checked(matrix, "network", symmetric=True)
    if not len(a):
        return {"spectral_radius": None, "spectral_gap": None, "fiedler_value": None, "fiedler": None}
    values = np.linalg.eigvalsh(a)
    small, vectors = np.linalg.eigh(np.diag(a.sum(1)) - a)
    alone = len(a) < 2
    return {
        "spectral_radius": float(np.abs(values).max()),
        "spectral_gap": None if alone else float(values[-1] - values[-2]),
        "fiedler_value": None if alone else float(max(0.0, small[1])),
        "fiedler": None if alone else vectors[:, 1],
    }


def centralities(matrix: ArrayLike, names: Sequence[str], *, top: int = 20) -> dict[str, list[dict[str, Any]]]:
    """The most central nodes by strength, betweenness, closeness and eigenvector, each a list of {"node", "value"}.

    Betweenness and closeness take 1 / weight as a link's length.
    """
    a = checked(matrix, "network", symmetric=True)
    if len(a) != len(names):
        raise InputError(f"{len(names)} names for {len(a)} nodes")
    graph = nx.from_numpy_array(a)
    for _, _, link in graph.edges(data=True):
        link["length"] = 1.0 / link["weight"]
    leading = np.abs(np.linalg.eigh(a)[1][:, -1]) if len(a) else np.zeros(0)
    measures = {
        "strength": a.sum(1),
        "betweenness": np.array(list(nx.betweenness_centrality(graph, weight="length").values())),
        "closeness": np.array(list(nx.closeness_centrality(graph, distance="length").values())),
        "eigenvector": leading,
    }
    return {
        name: [{"node": names[at], "value": float(values[at])} for at in np.argsort(-values, kind="stable")[:top]]
        for name, values in measures.items()
    }


def _assortativity(linked: NDArray[np.bool_]) -> float | None:
    """Correlation of the degrees at the two ends of a link; None where all are alike or there is no link."""
    degree = linked.sum(1).astype(np.float64)
    first, second = linked.nonzero()
    if not len(first) or np.ptp(degree[first]) == 0:
        return None
    return float(np.corrcoef(degree[first], degree[second])[0, 1])
