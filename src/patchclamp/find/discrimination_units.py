"""How much of each unit's variance the classes explain (eta squared, with F-tests), and how well a line tells classes apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import f as f_distribution

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Explained:
    """overall: (D,) share of each unit's variance between the classes, 0 to 1; of_class: (L, D) between a class and all others.

    p_overall, p_of_class: F-tests of these. A unit without variance has 0 and p 1.
    """

    overall: Floats
    of_class: Floats
    p_overall: Floats
    p_of_class: Floats


def explained(points: NDArray[np.floating], labels: ArrayLike) -> Explained:
    """Eta squared of every unit. points: (n, D); labels: (n,), classes in sorted order."""
    overall, of_class = eta_squared(points, labels)
    n, classes = len(points), len(of_class)
    return Explained(overall, of_class, _p(overall, classes - 1, n - classes), _p(of_class, 1, n - 2))


def eta_squared(points: NDArray[np.floating], labels: ArrayLike) -> tuple[Floats, Floats]:
    """(D,) over all classes, (L, D) for each class against the others."""
    x = np.asarray(points, dtype=np.float64)
    numbers = np.unique(np.asarray(labels), return_inverse=True)[1]
    counts = np.bincount(numbers).astype(np.float64)[:, None]
    x = x - x.mean(axis=0)
    total = (x**2).sum(axis=0)
    sums = np.eye(len(counts))[numbers].T @ x  # (L, D); what a class sums to, the others sum to minus that
    between = (sums**2 / counts).sum(axis=0)
    single = sums**2 / counts + sums**2 / (len(x) - counts)
    flat = total <= 1e-20 * len(x)
    whole = np.where(flat, 1.0, total)
    return np.where(flat, 0.0, between / whole), np.where(flat, 0.0, single / whole)


def shuffled_largest(points: NDArray[np.floating], labels: ArrayLike, *, shuffles: int, seed: int) -> Floats:
    """The largest one-against-rest eta squared of any unit and class, for every shuffling of the labels, (shuffles,)."""
    rng = np.random.default_rng(seed)
    given = np.asarray(labels)
    return np.array([eta_squared(points, rng.permutation(given))[1].max(initial=0.0) for _ in range(shuffles)])


def probe(points: NDArray[np.floating], labels: ArrayLike, documents: ArrayLike, *, folds: int = 5) -> float | None:
    """Balanced accuracy of a linear (ridge) probe on documents that it was not fitted to; None with fewer than 2 documents.

    Points are z-scored with the fitted part's mean and deviation; the penalty is a tenth of the number of points.
    """
    x = np.asarray(points, dtype=np.float64)
    numbers = np.unique(np.asarray(labels), return_inverse=True)[1]
    document = np.unique(np.asarray(documents), return_inverse=True)[1]
    if document.max(initial=0) < 1:
        return None
    fold = document % min(folds, int(document.max()) + 1)
    guessed = np.empty_like(numbers)
    for held in np.unique(fold):
        rest, mine = fold != held, fold == held
        mean, sd = x[rest].mean(axis=0), x[rest].std(axis=0)
        z = np.pad((x - mean) / np.where(sd > 0, sd, 1.0), ((0, 0), (0, 1)), constant_values=1.0)
        target = np.eye(numbers.max() + 1)[numbers[rest]]
        gram = z[rest].T @ z[rest] + 0.1 * rest.sum() * np.eye(z.shape[1])
        guessed[mine] = (z[mine] @ np.linalg.solve(gram, z[rest].T @ target)).argmax(axis=1)
    return float(np.mean([(guessed == at)[numbers == at].mean() for at in range(numbers.max() + 1)]))


def _p(share: Floats, between: int, within: int) -> Floats:
    if within < 1:
        return np.ones_like(share)
    with np.errstate(divide="ignore"):
        ratio = (share / between) / ((1 - share) / within)
    return np.asarray(f_distribution.sf(ratio, between, within))
