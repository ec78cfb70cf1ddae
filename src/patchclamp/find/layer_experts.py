"""Expert layers: whether two clusters of a layer's representations fall along a label (Shaik et al. 2025, arXiv 2509.16660).

The documents of a layer are parted by k-means with k = 2; the cluster is a hard prediction of the label, matched by the
better of the two assignments, so that its AUROC is the balanced accuracy and never below 0.5. The paper calls every
layer above 0.5 an expert; here the exact chance of a split as good is beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from patchclamp.core.errors import InputError
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.responses import responses
from patchclamp.measure.holm import holm


def layer_experts(
    recording: RecordingLike,
    *,
    positive: str | Sequence[str],
    site: str = "resid",
    pool: str = "mean",
    silhouette: int = 500,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row per recorded layer: how well its two clusters match the label.

    positive: label, or labels that together are the concept, against all others. site: whose pooled values are the
    layer's representation (the paper's hidden states: `resid`). pool: mean (the paper does not say), max or last.
    silhouette: computed on at most so many documents (0: not). seed: of k-means and of that sample.

    Keys: layer, auroc (= balanced accuracy), ap, f1, precision, recall, silhouette, sizes of the clusters, p (chance of a
    balanced accuracy at least this far from 0.5 with clusters of these sizes, exact) and p_holm over layers.
    InputError for a recording without pooled values of the site, and for one class only.
    """
    from sklearn.cluster import KMeans
    from sklearn.metrics import silhouette_score

    read = responses(recording, site, pool)
    truth = read.of_labels((positive,) if isinstance(positive, str) else tuple(positive))
    if not 0 < truth.sum() < len(truth):
        raise InputError(
            f"positive={positive} leaves {int((~truth).sum())} negative documents; both classes are needed"
        )
    layout, rows = read.layouts[0], []
    for layer in range(layout.n_layers):
        span = layout.slice(layer)
        first, last = np.searchsorted(read.places, (span.start, span.stop)).tolist()
        if first == last:
            continue
        hidden = np.ascontiguousarray(read.columns(first, last).T, dtype=np.float64)  # (n, d)
        cluster = KMeans(2, n_init=10, random_state=seed).fit_predict(hidden).astype(bool)
        row = {"layer": layer, **matched(cluster, truth), "silhouette": None}
        if silhouette and 0 < cluster.sum() < len(cluster):
            size = min(silhouette, len(cluster))
            row["silhouette"] = _sampled_silhouette(silhouette_score, hidden, cluster, size, seed)
        rows.append(row)
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def matched(cluster: NDArray[np.bool_], truth: NDArray[np.bool_]) -> dict[str, Any]:
    """How well a split matches the label under the better assignment, and how probable that is by chance.

    cluster, truth: (n,) bool; the result is the same for the complement of either split. auroc is (TPR + TNR) / 2.
    p: with the clusters' sizes fixed the positives inside one are hypergeometric; the probability of a balanced accuracy
    at least as far from 0.5. 1 for a single cluster.
    """
    n, n1, size = len(truth), int(truth.sum()), int(cluster.sum())
    inside = int((cluster & truth).sum())
    balanced = _balanced(np.array(inside), n1, n - n1, size)
    guess = cluster if balanced >= 0.5 else ~cluster
    tp, said = int((guess & truth).sum()), int(guess.sum())
    precision, recall = tp / said if said else 0.0, tp / n1
    prevalence = n1 / n
    counts = np.arange(max(0, size - (n - n1)), min(n1, size) + 1)
    off = np.abs(_balanced(counts, n1, n - n1, size) - 0.5)
    far = off >= abs(float(balanced) - 0.5) - 1e-12
    return {
        "auroc": 0.5 + abs(float(balanced) - 0.5),
        "ap": recall * precision + (1 - recall) * prevalence,  # two thresholds: the cluster, then everything
        "f1": 2 * tp / (said + n1),
        "precision": precision,
        "recall": recall,
        "sizes": sorted((size, n - size), reverse=True),
        "p": min(1.0, float(hypergeom.pmf(counts[far], n, n1, size).sum())),
    }


def _balanced(inside: NDArray[Any], n1: int, n0: int, size: int) -> NDArray[np.float64]:
    """Balanced accuracy of "the cluster is positive" with so many positives inside."""
    return np.asarray((inside / n1 + (n0 - (size - inside)) / n0) / 2)


def _sampled_silhouette(score: Any, hidden: NDArray[Any], cluster: NDArray[np.bool_], size: int, seed: int) -> Any:
    chosen = np.random.default_rng(seed).permutation(len(hidden))[:size]
    if len(set(cluster[chosen].tolist())) < 2 or size < 3:
        return None
    return float(score(hidden[chosen], cluster[chosen]))
