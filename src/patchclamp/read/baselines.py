"""What a decomposition must beat, as dictionaries: differences of means, principal components, random directions, neurons.

Each is a list of directions at one site of one layer, made by the same means as any other dictionary, so that the scores
of concepts.py and everything that works on features treat them alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.features import LinearDictionary
from patchclamp.record.activations import Activations

ROWS = 4096


def difference_of_means(
    positives: Mapping[str, Activations], neutrals: Activations | Mapping[str, Activations], *, name: str = "diffmeans"
) -> LinearDictionary:
    """One direction per concept: mean activation on its tokens minus mean activation on neutral tokens (supervised).

    positives: concept -> activations of its texts. neutrals: of the texts to tell all concepts from, or per concept.
    Raises InputError for activations of different places, without tokens, or with equal means.
    """
    if not positives:
        raise InputError("no concept was given; give at least one name with its activations")
    against = neutrals if isinstance(neutrals, Mapping) else dict.fromkeys(positives, neutrals)
    known: dict[int, Tensor] = {}
    rows = []
    for concept, there in positives.items():
        if concept not in against:
            raise InputError(f"no neutral activations for {concept!r}; they are given for {', '.join(against)}")
        rows.append(_mean(there, known) - _mean(against[concept], known))
        if not bool(rows[-1].any()):
            raise InputError(
                f"{concept!r} has the same mean activations as its neutral text; no direction tells them apart"
            )
    first = next(iter(positives.values()))
    return _dictionary(name, first, torch.stack(rows), list(positives))


def pca(activations: Activations, k: int, *, both_signs: bool = True, name: str = "pca") -> LinearDictionary:
    """The k directions of most variance around the mean, in order; with both_signs each is followed by its negative.

    A projection of a principal component has no preferred sign, while a feature that is added has one: both are offered.
    Two passes over the activations, (width, width) float64 in memory. Raises InputError for k above the rank.
    """
    _check_count(k, activations.width)
    mean = _mean(activations, {})
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for block in activations.blocks(ROWS):
        centred = block.cpu().double() - mean
        covariance += centred.T @ centred
    values, vectors = torch.linalg.eigh(covariance)
    rank = int((values > values[-1].clamp_min(0) * 1e-12).sum()) if float(values[-1]) > 0 else 0
    if k > rank:
        raise InputError(f"k={k} components asked for, but the activations vary in {rank} directions only")
    axes = vectors.T.flip(0)[:k]
    axes = axes * torch.sign(axes.gather(1, axes.abs().argmax(1, keepdim=True)))  # eigenvectors come with any sign
    labels = [f"component {number}" for number in range(k)]
    if both_signs:
        axes = torch.stack([axes, -axes], dim=1).reshape(2 * k, -1)
        labels = [f"{sign}{label}" for label in labels for sign in ("+", "-")]
    return _dictionary(name, activations, axes, labels)


def random_directions(
    like: Activations | LinearDictionary, k: int, *, keep: int | None = None, seed: int = 0, name: str = "random"
) -> LinearDictionary:
    """k Gaussian directions of length 1 at the place of `like`; keep: non-zeros of each, by default all.

    With the support size of another dictionary's features they are its matched control.
    """
    width = like.width if isinstance(like, Activations) else like.d_in
    if k < 1:
        raise InputError(f"k={k} random directions asked for; at least 1 is needed")
    if keep is not None and not 1 <= keep <= width:
        raise InputError(f"keep={keep} non-zeros asked for; it lies between 1 and the width, {width}")
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((k, width))
    if keep is not None and keep < width:
        chosen = np.argsort(generator.random((k, width)), axis=1)[:, :keep]
        mask = np.zeros((k, width), dtype=bool)
        np.put_along_axis(mask, chosen, True, axis=1)
        rows = np.where(mask, rows, 0.0)
    return _dictionary(name, like, torch.from_numpy(rows), None)


def single_neurons(like: Activations | LinearDictionary, *, name: str = "neurons") -> LinearDictionary:
    """Every coordinate of the place as a feature of its own: what a decomposition adds to looking at units."""
    width = like.width if isinstance(like, Activations) else like.d_in
    return _dictionary(name, like, torch.eye(width), None)


def _dictionary(name: str, like: Any, rows: Tensor, labels: list[str] | None) -> LinearDictionary:
    if like.site is None or like.layer is None:
        raise InputError(
            "these activations don't know where they come from; give site= and layer= to Activations.of_tensor"
        )
    return LinearDictionary.of_directions(name, like.site, like.layer, rows, labels, model=like.model or None)


def _mean(activations: Activations, known: dict[int, Tensor]) -> Tensor:
    """(width,) float64 mean over all rows; computed once per object."""
    if id(activations) not in known:
        total, count = torch.zeros(activations.width, dtype=torch.float64), 0
        for block in activations.blocks(ROWS):
            total += block.cpu().double().sum(0)
            count += len(block)
        if not count or not math.isfinite(float(total.sum())):
            raise InputError(f"{activations!r} has no rows" if not count else f"{activations!r} holds NaN or infinity")
        known[id(activations)] = total / count
    return known[id(activations)]


def _check_count(k: int, width: int) -> None:
    if not 1 <= k <= width:
        raise InputError(f"k={k} components asked for; it lies between 1 and the width, {width}")
