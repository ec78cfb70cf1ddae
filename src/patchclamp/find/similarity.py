"""Representational similarity of unit sets with other channels: brain recordings, another model, any array or CSV.

Per unit and per channel a matrix of distances between conditions (RDM, cosine); a set's mean RDM in each layer is compared
with every channel's by Spearman's rho. arXiv 2510.13255 and its code (An et al. 2025); RDMs: Kriegeskorte et al. 2008.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.find.similarity_channels import Channels, Features, itpc, responses
from patchclamp.models.units import UnitSet

__all__ = ["Channels", "Features", "Similarity", "itpc", "rdm", "responses", "similarity"]


@dataclass(frozen=True)
class Similarity:
    """How like the channels each set is. rows: one per set and layer with units; regions: one per set and region.

    A row: set, layer, units, channels (how many are in the mean), score (mean rho of the most similar channels), chance
    and p (the same, channels chosen anew, under permuted condition labels), random and random_sd (as many random units of
    the layer), p_random. A region: set, region, score (mean rho of its channels among the most similar ones, mean over
    layers), layers, gate (chi-square p that the most similar channels are spread over regions as all channels are).
    """

    rows: list[dict[str, Any]]
    regions: list[dict[str, Any]]
    conditions: tuple[str, ...]
    notes: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def score(self, name: str) -> float | None:
        """Mean score of a set over the layers in which it has units; None if it has none."""
        found = [row["score"] for row in self.rows if row["set"] == name]
        return float(np.mean(found)) if found else None


def similarity(
    features: Features,
    channels: Channels,
    units: UnitSet | Mapping[str, UnitSet],
    *,
    top: int = 100,
    permutations: int = 1000,
    random_sets: int = 20,
    seed: int = 0,
) -> Similarity:
    """Compare sets of units with channels over the same conditions.

    features: of `responses`, or Features.of(model, site, array). units: one set or name -> set. top: how many of the most
    similar channels are averaged (all, if there are fewer). permutations: of the condition labels; all of them if there are
    no more than that. random_sets: matched-random sets for comparison, none of whose units are in the set.

    The mean over the most similar channels is above 0 by choice alone: compare it with `chance`, never with 0. rho is 0
    where a distance matrix is constant. Raises InputError where conditions differ or are fewer than 4.
    """
    sets = {"units": units} if isinstance(units, UnitSet) else dict(units)
    if set(features.conditions) != set(channels.conditions):
        raise InputError(
            f"conditions of the model are {', '.join(features.conditions)}, of the channels {', '.join(channels.conditions)}"
        )
    if len(features.conditions) < 4:
        raise InputError(f"{len(features.conditions)} conditions given; fewer than 4 have too few pairs to compare")
    if top < 1 or permutations < 1 or random_sets < 0:
        raise InputError(f"top={top}, permutations={permutations}, random_sets={random_sets}; all are numbers above 0")
    order = [channels.conditions.index(name) for name in features.conditions]
    theirs = _ranked(_pairs(rdm(channels.values[:, order])))
    layout = features.layout
    shuffles = _orders(len(features.conditions), permutations, seed)
    rows: list[dict[str, Any]] = []
    regions: list[dict[str, Any]] = []
    for name, chosen in sets.items():
        controls = [chosen.matched_random(seed + number) for number in range(random_sets)]
        best = []
        for layer in range(layout.n_layers):
            where = _within(chosen, layout, layer)
            if not len(where):
                continue
            mine = rdm(features.values[where]).mean(axis=0)
            rho = _ranked(_pairs(mine[None])) @ theirs.T
            chance = _top_mean(_ranked(_pairs(np.stack([mine[np.ix_(o, o)] for o in shuffles]))) @ theirs.T, top)
            others = [rdm(features.values[_within(other, layout, layer)]).mean(axis=0) for other in controls]
            random = _top_mean(_ranked(_pairs(np.stack(others))) @ theirs.T, top) if others else np.zeros(0)
            rows.append(_row(name, layer, len(where), rho, chance, random, top))
            best.append((rho[0], np.argsort(-rho[0], kind="stable")[:top]))
        if channels.regions is not None and best:
            regions += _regions(name, best, channels.regions)
    notes = () if rows else ("no set has a unit at this site",)
    keywords = {"top": top, "permutations": len(shuffles), "random_sets": random_sets, "seed": seed}
    return Similarity(rows, regions, features.conditions, notes, keywords)


def rdm(values: NDArray[Any]) -> NDArray[np.float64]:
    """(n, K, K) cosine distances between the K conditions of (n, K, F) features; 0 on the diagonal.

    With a single feature per condition (F = 1) the absolute difference, for a cosine would only know signs. A condition that is
    all 0 has distance 1 to others and 0 to another such one.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 3:
        raise InputError(f"features of shape {x.shape} given; (units, conditions, features) is needed")
    if x.shape[2] == 1:
        return np.abs(x - x.transpose(0, 2, 1))
    size = np.linalg.norm(x, axis=2, keepdims=True)
    unit = np.divide(x, size, out=np.zeros_like(x), where=size > 0)
    distance = (1 - unit @ unit.transpose(0, 2, 1)).clip(0, 2)
    empty = size[:, :, 0] == 0
    distance[empty[:, :, None] & empty[:, None, :]] = 0
    distance[:, np.arange(x.shape[1]), np.arange(x.shape[1])] = 0
    return np.asarray(distance)


def _pairs(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, K (K - 1) / 2): each pair once; both triangles, as in the paper, have the same rank correlation."""
    upper = np.triu_indices(matrices.shape[-1], k=1)
    return matrices[:, upper[0], upper[1]]


def _ranked(pairs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average ranks of each row, less their mean, of length 1: products are Spearman's rho; all 0 for a constant row."""
    ranks = stats.rankdata(pairs.round(12), axis=1)  # distances that differ by rounding only are tied
    ranks -= ranks.mean(axis=1, keepdims=True)
    size = np.linalg.norm(ranks, axis=1, keepdims=True)
    return np.asarray(np.divide(ranks, size, out=np.zeros_like(ranks), where=size > 0))


def _orders(n: int, permutations: int, seed: int) -> list[NDArray[np.int64]]:
    """Permutations of the conditions: all of them, or the given one and so many random ones."""
    if math.factorial(n) <= permutations:
        return [np.array(order) for order in itertools.permutations(range(n))]
    rng = np.random.default_rng(seed)
    return [np.arange(n), *(rng.permutation(n) for _ in range(permutations))]


def _top_mean(rho: NDArray[np.float64], top: int) -> NDArray[np.float64]:
    """Mean of the `top` largest of each row."""
    return np.asarray(-np.sort(-rho, axis=1)[:, :top].mean(axis=1))


def _within(units: UnitSet, layout: Any, layer: int) -> NDArray[np.int64]:
    where = units.positions.get(layout.site, np.zeros(0, dtype=np.int64))
    span = layout.slice(layer)
    return np.asarray(where[(where >= span.start) & (where < span.stop)])


def _row(
    name: str, layer: int, n: int, rho: NDArray[np.float64], chance: NDArray[np.float64], random: NDArray[Any], top: int
) -> dict[str, Any]:
    score = float(_top_mean(rho, top)[0])
    return {
        "set": name,
        "layer": layer,
        "units": n,
        "channels": min(top, rho.shape[1]),
        "score": score,
        "chance": float(chance.mean()),
        "p": float((chance >= score - 1e-12).mean()),  # the given order is among them
        "random": float(random.mean()) if len(random) else None,
        "random_sd": float(random.std(ddof=1)) if len(random) > 1 else None,
        "p_random": float((1 + (random >= score).sum()) / (1 + len(random))) if len(random) else None,
    }


def _regions(
    name: str, best: Sequence[tuple[NDArray[np.float64], NDArray[np.int64]]], regions: Sequence[str]
) -> list[dict[str, Any]]:
    """One row per region: mean rho of its channels among each layer's best, over the layers in which it occurs."""
    known = sorted(set(regions))
    number = np.array([known.index(region) for region in regions])
    counts = np.sum([np.bincount(number[top], minlength=len(known)) for _, top in best], axis=0)
    expected = np.bincount(number, minlength=len(known)) * counts.sum() / len(number)
    gate = float(stats.chisquare(counts, expected).pvalue) if len(known) > 1 else None
    found = []
    for at, region in enumerate(known):
        means = [float(rho[top][number[top] == at].mean()) for rho, top in best if (number[top] == at).any()]
        found.append(
            {
                "set": name,
                "region": region,
                "score": float(np.mean(means)) if means else None,
                "layers": len(means),
                "among_best": int(counts[at]),
                "expected": float(expected[at]),
                "gate": gate,
            }
        )
    return found


make_callable(__name__)
