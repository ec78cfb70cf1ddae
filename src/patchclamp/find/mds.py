"""A 2-D map of points whose distances are kept as well as a plane can: metric multidimensional scaling by SMACOF.

Borg and Groenen, Modern Multidimensional Scaling, ch. 8: X <- B(X) X / n never raises the stress.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Map:
    """points: (n, k). stress: sum of squared errors over the sum of squared distances, 0 to 1. path: stress per iteration."""

    points: Floats
    stress: float
    path: tuple[float, ...]


def mds(distances: Floats, *, k: int = 2, starts: int = 4, iterations: int = 300, seed: int = 0) -> Map:
    """The best of a classical (Torgerson) start and so many random ones; each stops at a relative change below 1e-6.

    distances: (n, n), symmetric. Fewer than 2 points or no distance at all: points at 0, stress 0.
    """
    n = len(distances)
    total = float((distances**2).sum() / 2)
    if n < 2 or total == 0:
        return Map(np.zeros((n, k)), 0.0, (0.0,))
    rng = np.random.default_rng(seed)
    scale = np.sqrt(total / (n * n))
    begun = [torgerson(distances, k), *(rng.standard_normal((n, k)) * scale for _ in range(starts))]
    found = [_smacof(distances, start, iterations, total) for start in begun]
    return min(found, key=lambda one: one.stress)


def torgerson(distances: Floats, k: int) -> Floats:
    """Classical scaling: the leading k axes of the doubly centred squared distances, (n, k)."""
    squared = distances**2
    centred = squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    leading = np.argsort(values)[::-1][:k]
    found = vectors[:, leading] * np.sqrt(np.maximum(values[leading], 0.0))
    return np.pad(found, ((0, 0), (0, k - found.shape[1])))


def _smacof(distances: Floats, points: Floats, iterations: int, total: float) -> Map:
    path: list[float] = []
    for _ in range(iterations):
        mapped = _euclidean(points)
        path.append(float(((mapped - distances) ** 2).sum() / 2 / total))
        if path[-1] < 1e-14 or (len(path) > 1 and path[-2] - path[-1] < 1e-6 * path[-2]):
            break
        ratio = np.divide(distances, mapped, out=np.zeros_like(distances), where=mapped > 0)
        b = -ratio
        np.fill_diagonal(b, 0.0)
        np.fill_diagonal(b, -b.sum(axis=1))
        points = b @ points / len(points)
    return Map(points, path[-1], tuple(path))


def _euclidean(points: Floats) -> Floats:
    return np.asarray(np.sqrt(((points[:, None, :] - points[None, :, :]) ** 2).sum(axis=2)))
