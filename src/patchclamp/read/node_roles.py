"""What role a node plays in its community, and what a community is about.

Participation coefficient and within-community z-score are those of Guimera and Amaral 2005; steps 9 and 10 of Bhandari,
Chen and Gao 2025 (arXiv 2508.18192).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import pearsonr, spearmanr

from patchclamp.core.errors import InputError
from patchclamp.read.networks import Float, checked
from patchclamp.read.partitions import Labels, against

TINY = 1e-8  # the paper's epsilon in a Kullback-Leibler divergence


def participation(matrix: ArrayLike, labels: ArrayLike) -> Float:
    """P_i = 1 - sum over communities c of (k_ic / k_i)^2, (n,) float64: 0 if all links stay in one community.

    k: sums of weights. A node without links has 0. The reference counts only the node's own community, which is another
    number: 3 links inside and 1 outside give 0.375 here, 0.4375 there.
    """
    inside = _by_community(matrix, labels)
    total = inside.sum(1, keepdims=True)
    share = np.divide(inside, total, out=np.zeros_like(inside), where=total > 0)
    return np.asarray(np.where(total[:, 0] > 0, 1 - np.square(share).sum(1), 0.0))


def within_z(matrix: ArrayLike, labels: ArrayLike) -> Float:
    """Weight of a node's links inside its community in standard deviations from that community's mean, (n,) float64.

    0 where all nodes of a community are alike. The reference takes all links of a node, not those inside.
    """
    inside, own = _by_community(matrix, labels), np.asarray(labels)
    degree = inside[np.arange(len(own)), own] if len(own) else np.zeros(0)
    found = np.zeros(len(own))
    for number in np.unique(own):
        mine = own == number
        spread = degree[mine].std()
        if spread > 1e-12 * max(1.0, float(np.abs(degree[mine]).max())):
            found[mine] = (degree[mine] - degree[mine].mean()) / spread
    return found


def role_correlations(participations: Float, z: Float, labels: ArrayLike) -> list[dict[str, Any]]:
    """Per community: nodes, and Pearson's and Spearman's correlation of participation with z; None for constant values."""
    own, rows = np.asarray(labels), []
    for number in np.unique(own):
        x, y = participations[own == number], z[own == number]
        defined = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
        rows.append(
            {"community": int(number), "nodes": len(x), "pearson": float(pearsonr(x, y)[0]) if defined else None,
             "spearman": float(spearmanr(x, y)[0]) if defined else None}
        )  # fmt: skip
    return rows


def community_skills(skills_modules: ArrayLike, labels: ArrayLike) -> Float:
    """Distribution over skills of every community of modules, (communities, skills) float64, rows sum to 1 (or are 0).

    For every pair of modules inside a community each skill counts with the smaller of its two weights; where weights are 0
    and 1 that is the paper's count of skills that both are linked to. A community of one module counts its own weights.
    """
    b, own = checked(skills_modules, "skills x modules"), np.asarray(labels)
    if own.shape != (b.shape[1],):
        raise InputError(f"{own.shape} labels for {b.shape[1]} modules; give one for each")
    found = np.zeros((int(own.max()) + 1 if len(own) else 0, len(b)))
    for number in range(len(found)):
        mine = b[:, own == number]
        if mine.shape[1] == 1:
            found[number] = mine[:, 0]
            continue
        # sum over pairs of the smaller weight: in ascending order, each weight is the smaller one of all that follow
        ascending = np.sort(mine, axis=1)
        found[number] = ascending @ np.arange(mine.shape[1] - 1, -1, -1)
    total = found.sum(1, keepdims=True)
    return np.divide(found, total, out=np.zeros_like(found), where=total > 0)


def matched_datasets(
    datasets_skills: ArrayLike, datasets_modules: ArrayLike, skills: Float, labels: ArrayLike, names: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """Per community the datasets, best first, by KL(dataset's skills || community's skills); rows dataset, kl, weight.

    skills: of `community_skills`. weight: sum of the dataset's links to the community's modules, the second ranking.
    """
    b_ds, b_dm = checked(datasets_skills, "datasets x skills"), checked(datasets_modules, "datasets x modules")
    own = np.asarray(labels)
    total = b_ds.sum(1, keepdims=True)
    shares = np.divide(b_ds, total, out=np.zeros_like(b_ds), where=total > 0)
    ranked = []
    for number, theirs in enumerate(skills):
        gap = divergence(shares, theirs[None])
        rows = [
            {"dataset": names[at], "kl": float(gap[at]), "weight": float(b_dm[at, own == number].sum())}
            for at in np.argsort(gap, kind="stable")
            if total[at, 0] > 0
        ]
        ranked.append(rows)
    return ranked


def divergence(p: Float, q: Float) -> Float:
    """Kullback-Leibler divergence of rows in nats; the paper's 1e-8 is added to every probability, then renormalised."""
    one, other = p + TINY, q + TINY
    one, other = one / one.sum(-1, keepdims=True), other / other.sum(-1, keepdims=True)
    return np.asarray((one * np.log(one / other)).sum(-1))


def skill_contrast(
    skills_modules: ArrayLike,
    labels: ArrayLike,
    *,
    randomised: Callable[[np.random.Generator], tuple[Float, Labels]] | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> dict[str, Any]:
    """Do the communities differ in their skills? Mean divergence of a community's skills from those of all modules.

    randomised: gives skills x modules and labels of a network at random, whose communities were looked for in the same way.
    Without it modules are dealt anew over communities of the same sizes, which is a test only of communities that were not
    found in this matrix: those that were differ in skills by construction, in noise too. Gives divergence (nats),
    null_mean, null_sd, z and p. The paper's chi-square needs counts; weights have none, and it has the same flaw.
    """
    b, own = checked(skills_modules, "skills x modules"), np.asarray(labels)
    rng = np.random.default_rng(seed)
    value = _contrast(b, own)
    draw = randomised or (lambda generator: (b, generator.permutation(own)))
    others = np.array([_contrast(*draw(rng)) for _ in range(permutations)])
    return {"divergence": value, "nulls": permutations} | against(value, others)


def _contrast(b: Float, own: NDArray[np.int64]) -> float:
    everything = b.sum(1)
    if not everything.any() or not len(own):
        return 0.0
    sums = np.stack([b[:, own == number].sum(1) for number in np.unique(own)])
    weight = sums.sum(1)
    shares = sums[weight > 0] / weight[weight > 0, None]
    gaps = divergence(shares, (everything / everything.sum())[None])
    return float((gaps * weight[weight > 0]).sum() / weight.sum())


def _by_community(matrix: ArrayLike, labels: ArrayLike) -> Float:
    """Weight of every node's links into every community, (n, communities)."""
    a, own = checked(matrix, "network", symmetric=True), np.asarray(labels)
    if own.shape != (len(a),):
        raise InputError(f"{own.shape} labels for {len(a)} nodes; give one for each")
    return a @ np.eye(int(own.max()) + 1 if len(own) else 0)[own] if len(own) else np.zeros((0, 0))
