"""How alike core sets are: Jaccard similarity, what random sets of the same size would share, documents, growing text.

Wang et al. 2024 (arXiv 2410.18311), sections 3.2 and 3.3: cores become stable as a text grows, and texts of one topic share more
of their core than texts of different topics.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.models.units import Layout
from patchclamp.record.statistics.core import Core

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def jaccard(first: Bools, second: Bools) -> Floats:
    """|A and B| / |A or B| over the last axis, (...) float64 in [0, 1]; 1 for two empty sets, which are the same."""
    both, either = (first & second).sum(-1), (first | second).sum(-1)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def pairwise(first: Bools, second: Bools) -> Floats:
    """Jaccard similarity of every row of (n, units) with every row of (m, units): (n, m)."""
    a, b = first.astype(np.float32), second.astype(np.float32)
    both = (a @ b.T).astype(np.float64)
    either = a.sum(1, dtype=np.float64)[:, None] + b.sum(1, dtype=np.float64)[None] - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


@functools.lru_cache(maxsize=4096)
def random_jaccard(first: int, second: int, width: int) -> float:
    """Expected Jaccard similarity of two sets of these sizes drawn at random from `width` units (hypergeometric, exact)."""
    from scipy.stats import hypergeom

    if first + second == 0:
        return 1.0
    shared = np.arange(max(0, first + second - width), min(first, second) + 1)
    return float((hypergeom.pmf(shared, width, first, second) * shared / (first + second - shared)).sum())


def by_layer(first: Bools, second: Bools, layout: Layout) -> Floats:
    """Jaccard similarity in each layer that holds units, (layers, ...); sets are (..., total)."""
    spans = [layout.slice(layer) for layer in range(layout.n_layers) if layout.widths[layer]]
    return np.stack([jaccard(first[..., span], second[..., span]) for span in spans])


def between_labels(cores: Bools, layout: Layout, recorded: Bools) -> dict[str, Any]:
    """Jaccard similarity of every two labels' cores, mean over the recorded layers, beside that of random sets.

    cores: (labels, total). Returns {"mean": of all pairs, "matrix": (labels, labels) nested lists, "random": expected}.
    """
    layers = _layers(layout, recorded)
    matrix = np.mean([pairwise(cores[:, span], cores[:, span]) for span in layers], axis=0)
    chance = np.mean(
        [_random(cores[:, span].sum(1), cores[:, span].sum(1), span.stop - span.start) for span in layers], axis=0
    )
    return {"mean": mean_pair(matrix), "matrix": matrix.tolist(), "random": mean_pair(chance)}


def mean_pair(matrix: Floats) -> float | None:
    """Mean over pairs of different rows; None for a single row."""
    if len(matrix) < 2:
        return None
    return float(matrix[np.triu_indices(len(matrix), 1)].mean())


@dataclass(frozen=True)
class DocumentSimilarity:
    """Whether documents of one label share more of their cores than documents of different labels, in one layer (or on average).

    within, between: mean Jaccard similarity of pairs of documents. random: expected for sets of their sizes drawn at random.
    gap: within - between. p: share of shuffles of the documents' labels with at least this gap, (1 + hits) / (1 + shuffles).
    """

    layer: int | None
    within: float
    between: float
    random: float
    gap: float
    p: float


def documents_alike(
    statistics: Mapping[str, Core], *, max_documents: int, shuffles: int, seed: int
) -> list[DocumentSimilarity]:
    """One entry per recorded layer, and first one for their mean (layer None); empty with fewer than two labels or documents.

    max_documents: at most so many documents of a label, evenly spread over its text; documents without tokens don't count.
    """
    rows = {label: _evenly(np.flatnonzero(found.document_n > 0), max_documents) for label, found in statistics.items()}
    if len(rows) < 2 or not any(len(chosen) > 1 for chosen in rows.values()):
        return []
    first = next(iter(statistics.values()))
    given = np.repeat(np.arange(len(rows)), [len(chosen) for chosen in rows.values()])
    sets = np.concatenate([statistics[label].document_sets(chosen) for label, chosen in rows.items()])
    layers = list(first.layers)
    spans = [first.layout.slice(layer) for layer in layers]
    similar = np.stack([pairwise(sets[:, span], sets[:, span]) for span in spans])
    sizes = np.array([sets[:, span].sum(1).mean() for span in spans])
    chance = [random_jaccard(round(k), round(k), span.stop - span.start) for k, span in zip(sizes, spans, strict=True)]
    stacked = np.concatenate([similar.mean(0, keepdims=True), similar])
    observed = _gaps(stacked, given)
    rng = np.random.default_rng(seed)
    null = np.array([_gaps(stacked, rng.permutation(given))[2] for _ in range(shuffles)]).reshape(
        shuffles, len(stacked)
    )
    p = (1 + (null >= observed[2]).sum(0)) / (1 + shuffles)
    named = zip((None, *layers), (float(np.mean(chance)), *chance), *observed, p, strict=True)
    return [
        DocumentSimilarity(layer, float(within), float(between), random, float(gap), float(reached))
        for layer, random, within, between, gap, reached in named
    ]


@dataclass(frozen=True)
class Stability:
    """How much of the final core the first `prefix` positions of a text already give, mean over documents that are longer.

    own: Jaccard similarity of the beginning's core with the whole document's, low, high: its 95% bootstrap interval over
    documents. others: with the core of other whole documents of the label. random: expected for random sets of these sizes.
    """

    label: str
    prefix: int
    documents: int
    own: float
    low: float
    high: float
    others: float | None
    random: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def stability(label: str, found: Core, *, max_documents: int, seed: int) -> list[Stability]:
    """One entry per recorded beginning that at least one document outgrows. Means over documents and recorded layers."""
    spans = [found.layout.slice(layer) for layer in found.layers]
    listed = []
    for number, prefix in enumerate(found.prefixes, 1):
        rows = _evenly(np.flatnonzero(found.document_n > prefix), max_documents)
        if not len(rows):
            continue
        early, whole = found.document_sets(rows, number), found.document_sets(rows)
        grid = np.mean([pairwise(early[:, span], whole[:, span]) for span in spans], axis=0)
        own = np.diagonal(grid)
        others = float((grid.sum() - own.sum()) / (len(rows) * (len(rows) - 1))) if len(rows) > 1 else None
        chance = np.mean(
            [
                random_jaccard(
                    round(early[:, span].sum(1).mean()), round(whole[:, span].sum(1).mean()), span.stop - span.start
                )
                for span in spans
            ]
        )
        low, high = _interval(own, seed)
        listed.append(Stability(label, prefix, len(rows), float(own.mean()), low, high, others, float(chance)))
    return listed


def _gaps(similar: Floats, given: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Mean similarity within and between labels, and their difference, (layers,) each. similar: (layers, n, n)."""
    upper = np.triu(np.ones(similar.shape[1:], dtype=bool), 1)
    same = given[:, None] == given[None]
    inside, across = upper & same, upper & ~same
    within = similar[:, inside].mean(1) if inside.any() else np.zeros(len(similar))
    between = similar[:, across].mean(1) if across.any() else np.zeros(len(similar))
    return within, between, within - between


def _random(first: NDArray[Any], second: NDArray[Any], width: int) -> Floats:
    return np.array([[random_jaccard(int(a), int(b), width) for b in second] for a in first])


def _layers(layout: Layout, recorded: Bools) -> Sequence[slice]:
    spans = [layout.slice(layer) for layer in range(layout.n_layers) if layout.widths[layer]]
    return [span for span in spans if recorded[span].any()]


def _evenly(rows: NDArray[Any], most: int) -> NDArray[np.int64]:
    """At most so many of some rows, evenly spread."""
    if len(rows) <= most:
        return np.asarray(rows, dtype=np.int64)
    return np.asarray(rows[np.linspace(0, len(rows) - 1, most).round().astype(int)], dtype=np.int64)


def _interval(values: Floats, seed: int, resamples: int = 1000) -> tuple[float, float]:
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.quantile(values[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)
