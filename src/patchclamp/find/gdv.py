"""Generalized discrimination value: how well classes of points separate, 0 not at all, about -1 perfectly.

Schilling et al. 2018 (used by Surendra et al. 2023, arXiv 2302.07588). Every dimension is z-scored over all points (population
standard deviation) and halved; GDV = 1/sqrt(D) * [mean intra-class distance - mean inter-class distance], Euclidean, where
the means go over classes and over pairs of classes. It does not depend on shift or scale of a dimension, on their order or
number. It is not invariant under rotation, and -1 is no bound when classes differ in size: give balanced samples.

GDV2 is a fast relative with squared distances, which follow from class means and variances; never compare the two.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError

LARGEST = 6000  # points of a distance matrix: 288 MB
FAR = 20.0  # a z-score beyond this is worth a note
BLOCK = 512
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Discrimination:
    """GDV of labelled points. classes: in sorted order; intra: (L,) mean distance within each; inter: (L, L) between each two
    (the diagonal holds intra). dimensions, constant: D, and how many of them do not vary; far: dimensions with |z| > 20.
    """

    value: float
    classes: tuple[Any, ...]
    intra: Floats
    inter: Floats
    dimensions: int
    constant: int
    far: int

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "intra": self.intra.tolist(), "inter": self.inter.tolist()}


@dataclass(frozen=True)
class Chance:
    """GDV of shuffled labels. z: (value - mean) / sd; p: (1 + how often as low) / (1 + permutations), one-sided."""

    value: float
    mean: float
    sd: float
    z: float | None
    p: float
    permutations: int


def gdv(points: ArrayLike, labels: ArrayLike, *, allow_large: bool = False) -> Discrimination:
    """GDV of points (n, D) with labels (n,). Dimensions without variance stay in D as zeros.

    All points identical: 0, with a warning. InputError for fewer than 2 classes, a class with 1 point, values that are not
    finite, and more than 6,000 points unless allow_large.
    """
    s, dimensions = checked(points, labels, allow_large)
    names, numbers = np.unique(np.asarray(labels), return_inverse=True)
    value, means = _value(block_sums(distances(s), members(numbers)), np.bincount(numbers), s.shape[1])
    return Discrimination(value, tuple(names.tolist()), np.diag(means).copy(), means, s.shape[1], *dimensions)


def gdv2(points: ArrayLike, labels: ArrayLike) -> float:
    """The same with squared distances and 1/D, from class means and variances in O(n D); not comparable with `gdv`."""
    s, _ = checked(points, labels, True)
    numbers = np.unique(np.asarray(labels), return_inverse=True)[1]
    counts = np.bincount(numbers)
    indicator = members(numbers)
    means = indicator.T @ s / counts[:, None]
    spread = np.array([((s[numbers == at] - means[at]) ** 2).sum() / counts[at] for at in range(len(counts))])
    between = spread[:, None] + spread[None, :] + _squared(means, means)
    np.fill_diagonal(between, 2 * spread * counts / (counts - 1))
    return _combined(between) / s.shape[1]


def shuffled(
    points: ArrayLike,
    labels: ArrayLike,
    *,
    permutations: int = 200,
    seed: int = 0,
    blocks: ArrayLike | None = None,
    allow_large: bool = False,
) -> Chance:
    """What GDV does when labels are shuffled over points; distances stay.

    blocks: (n,) the document of every point. Whole documents then change places, each with its sequence of labels, which
    keeps the dependence between the points of a document that plain shuffling ignores (its p is too small for those).
    """
    value, null = permuted(points, labels, permutations=permutations, seed=seed, blocks=blocks, allow_large=allow_large)
    return chance_of(value, null)


def permuted(
    points: ArrayLike,
    labels: ArrayLike,
    *,
    permutations: int,
    seed: int = 0,
    blocks: ArrayLike | None = None,
    allow_large: bool = False,
) -> tuple[float, Floats]:
    """GDV, and its value for every shuffling of the labels, (permutations,)."""
    s, _ = checked(points, labels, allow_large)
    numbers = np.unique(np.asarray(labels), return_inverse=True)[1]
    if permutations < 1:
        raise InputError(f"permutations={permutations} asked for; at least 1 is needed")
    table, rng = distances(s), np.random.default_rng(seed)
    counts, width = np.bincount(numbers), s.shape[1]
    value = _value(block_sums(table, members(numbers)), counts, width)[0]
    found: list[float] = []
    at_once = max(1, min(permutations, 256 // len(counts)))
    while len(found) < permutations:
        several = min(at_once, permutations - len(found))
        drawn = [_permuted(numbers, blocks, rng) for _ in range(several)]
        indicators = [members(one, len(counts)) for one in drawn]
        products = (table @ np.concatenate(indicators, axis=1)).reshape(len(numbers), several, -1)
        found += [_value(one.T @ products[:, at], counts, width)[0] for at, one in enumerate(indicators)]
    return value, np.array(found)


def chance_of(value: float, null: Floats) -> Chance:
    """Where a value lies among those of shuffled labels; lower is more discriminating."""
    sd, as_low = float(null.std()), int((null <= value + 1e-12).sum())
    z = float((value - null.mean()) / sd) if sd > 0 else None
    return Chance(value, float(null.mean()), sd, z, (1 + as_low) / (1 + len(null)), len(null))


def checked(points: ArrayLike, labels: ArrayLike, allow_large: bool) -> tuple[Floats, tuple[int, int]]:
    """Scaled points (n, D), and how many dimensions are constant and how many have a |z| above 20."""
    x, y = np.asarray(points, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or y.shape != x.shape[:1] or not x.shape[1]:
        raise InputError(f"points of shape {x.shape} and labels of shape {y.shape} given; needed are (n, D) and (n,)")
    if not np.isfinite(x).all():
        raise InputError("the points hold NaN or infinite values; look for the layer that makes them")
    names, counts = np.unique(y, return_counts=True)
    if len(names) < 2:
        raise InputError(f"{len(names)} class given; a discrimination value needs at least 2")
    if counts.min() < 2:
        raise InputError(f"class {names[counts.argmin()]!r} has a single point; give every class at least 2")
    if len(x) > LARGEST and not allow_large:
        raise InputError(
            f"{len(x)} points given, more than {LARGEST}: take fewer of each class, or say allow_large=True"
        )
    s, constant, far = scaled(x)
    if constant == x.shape[1]:
        warnings.warn("all points are identical: their discrimination value is 0", stacklevel=3)
    return s, (constant, far)


def scaled(x: Floats) -> tuple[Floats, int, int]:
    """Half z-scores of every dimension, zeros where it is constant; how many are constant, how many reach |z| > 20."""
    centred = x - x.mean(axis=0)
    sd = np.sqrt((centred**2).mean(axis=0))
    constant = sd <= 1e-12 * np.maximum(np.abs(x).max(axis=0), 1e-300)
    z = np.where(constant, 0.0, centred / np.where(constant, 1.0, sd))
    return z / 2, int(constant.sum()), int((np.abs(z).max(axis=0) > FAR).sum())


def distances(s: Floats) -> Floats:
    """Euclidean distances between all points, (n, n), block by block."""
    table = np.empty((len(s), len(s)))
    for start in range(0, len(s), BLOCK):
        table[start : start + BLOCK] = np.sqrt(_squared(s[start : start + BLOCK], s))
    np.fill_diagonal(table, 0.0)
    return table


def members(numbers: NDArray[np.int64], classes: int | None = None) -> Floats:
    """Class numbers (n,) as indicators (n, L)."""
    return np.eye(int(numbers.max()) + 1 if classes is None else classes)[numbers]


def block_sums(table: Floats, indicator: Floats) -> Floats:
    """Sums of distances between each two classes, (L, L); within a class every pair counts twice."""
    return np.asarray(indicator.T @ (table @ indicator))


def _squared(a: Floats, b: Floats) -> Floats:
    """Squared distances (n, m); differences of identical points may round to a little above 0."""
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :]
    found = squares - 2 * a @ b.T
    return np.asarray(np.where(found < 1e-13 * squares, 0.0, found))


def _value(sums: Floats, counts: NDArray[np.int64], width: int) -> tuple[float, Floats]:
    pairs = np.outer(counts, counts).astype(np.float64)
    np.fill_diagonal(pairs, counts * (counts - 1))
    means = sums / pairs
    return _combined(means) / float(np.sqrt(width)), means


def _combined(means: Floats) -> float:
    """Mean over classes minus mean over pairs of classes."""
    classes = len(means)
    inter = (means.sum() - np.trace(means)) / (classes * (classes - 1))
    return float(np.trace(means) / classes - inter)


def _permuted(numbers: NDArray[np.int64], blocks: ArrayLike | None, rng: np.random.Generator) -> NDArray[np.int64]:
    if blocks is None:
        return rng.permutation(numbers)
    block = np.asarray(blocks)
    order = np.argsort(block, kind="stable")  # points by document, in the order given
    parts = np.split(numbers[order], np.flatnonzero(np.diff(block[order])) + 1)
    found = np.empty_like(numbers)
    found[order] = np.concatenate([parts[at] for at in rng.permutation(len(parts))])
    return found
