"""The subjective reference point of a similarity matrix, by two estimators, or the answer that there is none.

Grid: the R whose reference-log distance explains most of the dissimilarity. Neighbours: the stimulus whose neighbours
are least like it, for logarithmic compression is steepest at the reference. Source of the idea: Li et al. 2025
(arXiv 2507.15851); the estimators, the cross-validated rule and the intervals are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.distance_fits import Dissimilarity, Matrix, r2_of, stimulus_weights, weighted_sums
from patchclamp.find.distances import as_values, log_distance, reference_distance
from patchclamp.measure.bootstrap import percentile_interval

FEWEST = 20
ALPHA = 0.05
_CELLS = 4_000_000
_RELABEL_GRID = 50
_BOOTSTRAP_GRID = 200  # candidates in each bootstrap sample; a finer grid is thinned to that


@dataclass(frozen=True)
class ReferencePoint:
    """Where the reference lies, if anywhere.

    found: whether the matrix has one; why: the reason, in words. grid, neighbours: the two estimates; _low and _high: their
    95% bootstrap intervals over stimuli; _border: the estimate lies at the edge of the stimuli and is none. neighbours_stable:
    share of bootstrap samples whose estimate lies within a twentieth of the range. neighbours_peak: whether the
    neighbour estimate is one, that is off the border and stable in at least half of the samples (None without samples).
    r2: of the best reference distance; p: of that, with R chosen anew for relabelled stimuli; log_r2: of the plain log
    distance, over all pairs. cv, cv_log: R^2 of both on pairs of held-out stimuli. curve: (R, R^2) of every candidate.
    """

    found: bool
    why: str
    grid: float
    grid_low: float
    grid_high: float
    grid_border: bool
    neighbours: float
    neighbours_low: float
    neighbours_high: float
    neighbours_border: bool
    neighbours_stable: float
    neighbours_peak: bool | None
    r2: float
    p: float
    log_r2: float
    cv: float
    cv_log: float
    curve: tuple[tuple[float, float], ...]

    @property
    def estimate(self) -> float | None:
        """The grid estimate where a reference point was found, else None."""
        return self.grid if self.found else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "curve": [list(point) for point in self.curve]}


def reference_point(
    similarity: ArrayLike,
    values: ArrayLike,
    *,
    grid: ArrayLike | None = None,
    offset: float = 1.0,
    horizon: int = 5,
    smooth: int = 5,
    folds: int = 5,
    permutations: int = 99,
    resamples: int = 200,
    seed: int = 0,
) -> ReferencePoint:
    """Search the reference point of a similarity matrix.

    similarity: (n, n), as for `fit_laws`. values: (n,) stimuli, at least 20. grid: candidates, by default every integer
    in the range of the values (or the values, if fewer). offset: of the reference distance. horizon: neighbours up to so
    many stimuli away; smooth: over so many stimuli (odd). folds: of the cross-validation over stimuli, in which R, slope and
    intercept are chosen on pairs of training stimuli and scored on pairs of held-out stimuli. permutations: of the Mantel
    test in which the best R of a grid of at most 50 is chosen anew for every relabelling. resamples: of the bootstrap
    (0: no intervals).

    `found` needs all of: dissimilarity grows with the distance, and explains more than at most 5% of relabellings do; the
    cross-validated R^2 is above 0, and above that of the plain log distance by more than two standard errors over folds; the
    estimate is not at the border of the grid. Otherwise `why` says which one failed.
    Raises InputError for fewer than 20 stimuli and an empty grid.
    """
    x = as_values(values)
    if len(x) < FEWEST:
        raise InputError(f"{len(x)} stimuli given; a reference point is only searched among {FEWEST} or more")
    if horizon < 1 or smooth < 1 or smooth % 2 == 0 or folds < 2:
        raise InputError(
            f"horizon={horizon}, smooth={smooth}, folds={folds}: at least 1, odd, and at least 2 are needed"
        )
    data = Dissimilarity.of(similarity, x)
    order = np.argsort(x)
    candidates = _grid(x, grid)
    fold = np.random.default_rng(seed).permutation(np.arange(len(x)) % folds)
    training = [(fold != k).astype(np.float64) for k in range(folds)]
    curve, *trained = _curves(data, x, candidates, offset, np.stack([np.ones(len(x)), *training]))
    near = _neighbour_curve(data, order, horizon, smooth, np.ones((1, len(x))))[0]
    if np.isnan(curve).all() or np.isnan(near).all():
        return _undefined(candidates, "the similarities are constant or too few, so no R^2 is defined")
    best = int(np.nanargmax(curve))
    peak = int(np.nanargmax(near))
    cv, cv_log, ahead = _cross_validated(data, x, candidates, offset, fold, trained)
    border = best in (0, len(candidates) - 1)
    edge = peak < horizon or peak >= len(x) - horizon
    slope = data.line(reference_distance(x, candidates[best], offset=offset))[0]
    p = _relabelled_p(data, x, candidates, offset, permutations, seed)
    why = _why(slope, p, cv, cv_log, ahead, border, float(candidates[best]))
    draws, peaks = _resampled(data, x, order, candidates, offset, horizon, smooth, resamples, seed)
    estimate = float(x[order][peak])
    stable = float((np.abs(peaks - estimate) <= np.ptp(x) / 20).mean()) if resamples else math.nan
    (grid_low, grid_high), (near_low, near_high) = percentile_interval(draws), percentile_interval(peaks)
    return ReferencePoint(
        found=not why,
        why=why or "the reference law predicts held-out stimuli better than the plain log law",
        grid=float(candidates[best]),
        grid_low=grid_low,
        grid_high=grid_high,
        grid_border=border,
        neighbours=estimate,
        neighbours_low=near_low,
        neighbours_high=near_high,
        neighbours_border=edge,
        neighbours_stable=stable,
        neighbours_peak=bool(not edge and stable >= 0.5) if resamples else None,
        r2=float(curve[best]),
        p=p,
        log_r2=data.r2(_plain(x)),
        cv=cv,
        cv_log=cv_log,
        curve=tuple(zip(candidates.tolist(), curve.tolist(), strict=True)),
    )


def _why(slope: float, p: float, cv: float, cv_log: float, ahead: bool, border: bool, best: float) -> str:
    """Why there is no reference point; empty if there is one."""
    if not slope > 0:
        return f"no reference point: similarity grows with the best reference distance (slope {slope:.2g})"
    if p > ALPHA:
        return f"no reference point: relabelled stimuli are explained as well (p {p:.2g})"
    if not cv > 0:
        return f"no reference point: the best reference law explains nothing of held-out stimuli (R^2 {cv:.3f})"
    if border:
        return (
            f"no reference point: the best R, {best:g}, is at the border of the grid, so the true one may lie outside"
        )
    if not ahead:
        return (
            "no reference point: on held-out stimuli it does not beat the plain log law by two standard errors "
            f"(R^2 {cv:.3f}, log {cv_log:.3f})"
        )
    return ""


def _grid(x: NDArray[np.float64], grid: ArrayLike | None) -> NDArray[np.float64]:
    if grid is not None:
        found = np.unique(np.asarray(grid, dtype=np.float64))
        if len(found) < 3 or not np.isfinite(found).all():
            raise InputError(f"a grid of {len(found)} candidates given; a search needs at least 3 finite ones")
        return found
    whole = np.arange(math.ceil(x.min()), math.floor(x.max()) + 1, dtype=np.float64)
    return whole if len(x) // 2 <= len(whole) <= 50 * len(x) else np.sort(x)


def _plain(x: NDArray[np.float64]) -> Matrix:
    """The log distance, or the linear one for values that have no logarithm."""
    return log_distance(x) if x.min() > 0 else np.abs(x[:, None] - x[None, :])


def _curves(
    data: Dissimilarity, x: NDArray[np.float64], candidates: NDArray[np.float64], offset: float, weights: Matrix
) -> Matrix:
    """R^2 of every candidate under every weighting of the stimuli, (weightings, candidates); NaN where undefined."""
    known, _, y, _, yy, _ = data.moments(reference_distance(x, candidates[0], offset=offset))
    count, sum_y, sum_yy = weighted_sums(weights, [known, y, yy])
    found = np.empty((len(weights), len(candidates)))
    for at, candidate in enumerate(candidates):
        distance = reference_distance(x, candidate, offset=offset)
        centred = (distance - distance[data.known].mean()) * known
        sums = weighted_sums(weights, [centred, centred * centred, centred * y])
        found[:, at] = r2_of(count, sums[0], sum_y, sums[1], sum_yy, sums[2])
    return found


def _cross_validated(
    data: Dissimilarity,
    x: NDArray[np.float64],
    candidates: NDArray[np.float64],
    offset: float,
    fold: NDArray[np.int64],
    trained: list[NDArray[np.float64]],
) -> tuple[float, float, bool]:
    """R^2 on pairs of held-out stimuli for the reference law and the log law; and whether the first is clearly ahead.

    trained: for each fold, R^2 of every candidate on the stimuli outside it.
    """
    plain = _plain(x)
    scores = []
    for k, curve in enumerate(trained):
        train, test = _block(data, fold != k), _block(data, fold == k)
        if train.n_pairs < 3 or test.n_pairs < 3 or np.isnan(curve).all():
            continue
        distance = reference_distance(x, candidates[int(np.nanargmax(curve))], offset=offset)
        scores.append([_held_out(train, test, matrix) for matrix in (distance, plain)])
    if not scores:
        return math.nan, math.nan, False
    r2 = np.array(scores)  # (folds, 2)
    gap = r2[:, 0] - r2[:, 1]
    error = gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
    return float(r2[:, 0].mean()), float(r2[:, 1].mean()), bool(gap.mean() > 2 * error)


def _block(data: Dissimilarity, inside: NDArray[np.bool_]) -> Dissimilarity:
    return data.only(inside[:, None] & inside[None, :])


def _held_out(train: Dissimilarity, test: Dissimilarity, distance: Matrix) -> float:
    """1 - squared error on test pairs of the training line, over their squared deviation from the training mean."""
    slope, intercept = train.line(distance)
    y, mean = test.y[test.known], train.y[train.known].mean()
    left = ((y - intercept - slope * distance[test.known]) ** 2).sum()
    whole = ((y - mean) ** 2).sum()
    return float(1 - left / whole) if whole > 0 and not math.isnan(slope) else math.nan


def _relabelled_p(
    data: Dissimilarity,
    x: NDArray[np.float64],
    candidates: NDArray[np.float64],
    offset: float,
    permutations: int,
    seed: int,
) -> float:
    """How often the best R^2 over a thinned grid is as high for relabelled stimuli, (1 + hits) / (1 + permutations)."""
    n = len(x)
    thinned = candidates[:: math.ceil(len(candidates) / _RELABEL_GRID)]
    distances = np.stack([reference_distance(x, r, offset=offset).ravel() for r in thinned])
    distances -= distances.mean(1, keepdims=True)
    y = np.where(data.known, data.y - data.y[data.known].mean(), 0.0)
    rng = np.random.default_rng(seed)
    orders = [np.arange(n), *[rng.permutation(n) for _ in range(permutations)]]
    step, best = max(1, _CELLS // (n * n)), []
    count, sum_y, sum_yy = (np.array([total]) for total in (data.known.sum(), y.sum(), (y * y).sum()))
    for start in range(0, len(orders), step):
        part = [np.ix_(order, order) for order in orders[start : start + step]]
        moved = np.stack([y[at].ravel() for at in part], axis=1)  # (n * n, relabellings)
        known = np.stack([data.known[at].ravel() for at in part], axis=1).astype(np.float64)
        sums = distances @ known, (distances * distances) @ known, distances @ moved
        r2 = r2_of(count, sums[0], sum_y, sums[1], sum_yy, sums[2])  # (candidates, relabellings)
        best.append(np.nanmax(r2, axis=0))
    found = np.concatenate(best)
    return float((1 + np.count_nonzero(found[1:] >= found[0] - 1e-12)) / (1 + permutations))


def _neighbour_curve(
    data: Dissimilarity, order: NDArray[np.int64], horizon: int, smooth: int, weights: Matrix
) -> Matrix:
    """Smoothed mean dissimilarity of each stimulus to its neighbours, (samples, n) along the ordered stimuli."""
    y, known = data.y[order][:, order], data.known[order][:, order]
    n, sorted_weights = len(order), weights[:, order]
    total, count = np.zeros_like(sorted_weights), np.zeros_like(sorted_weights)
    for step in range(1, min(horizon, n - 1) + 1):
        beside, have = np.diagonal(y, step), np.diagonal(known, step).astype(np.float64)
        for here, there in ((slice(0, n - step), slice(step, n)), (slice(step, n), slice(0, n - step))):
            total[:, here] += sorted_weights[:, there] * (beside * have)
            count[:, here] += sorted_weights[:, there] * have
    present = sorted_weights * (count > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        w = np.where(count > 0, total / count, 0.0)
        kernel = np.ones(smooth)
        over = np.array([np.convolve(row, kernel, "same") for row in w * present])
        under = np.array([np.convolve(row, kernel, "same") for row in present])
        return np.asarray(np.where(under > 0, over / under, np.nan))


def _resampled(
    data: Dissimilarity,
    x: NDArray[np.float64],
    order: NDArray[np.int64],
    candidates: NDArray[np.float64],
    offset: float,
    horizon: int,
    smooth: int,
    resamples: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both estimates in bootstrap samples of the stimuli, (resamples,) each."""
    if not resamples:
        return np.zeros(0), np.zeros(0)
    rng = np.random.default_rng(seed)
    thinned = candidates[:: math.ceil(len(candidates) / _BOOTSTRAP_GRID)]
    grid, near = [], []
    for weights in stimulus_weights(len(x), resamples, rng):
        curves = _curves(data, x, thinned, offset, weights)
        grid.append(thinned[np.argmax(np.nan_to_num(curves, nan=-1.0), axis=1)])
        peaks = _neighbour_curve(data, order, horizon, smooth, weights)
        near.append(x[order][np.argmax(np.nan_to_num(peaks, nan=-np.inf), axis=1)])
    return np.concatenate(grid), np.concatenate(near)


def _undefined(candidates: NDArray[np.float64], why: str) -> ReferencePoint:
    nan = math.nan
    curve: Iterator[tuple[float, float]] = ((float(r), nan) for r in candidates)
    unknown: dict[str, Any] = dict.fromkeys((field.name for field in fields(ReferencePoint)), nan)
    return ReferencePoint(
        **{
            **unknown, "found": False, "why": f"no reference point: {why}", "grid_border": False, "neighbours_border": False,
            "neighbours_peak": None, "curve": tuple(curve),
        }
    )  # fmt: skip
