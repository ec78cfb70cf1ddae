"""Linear probes of the distance laws, layer by layer: closed-form ridge regression from one pass of X'X and X'Y.

Li et al. 2025 (arXiv 2507.15851) train a linear map with AdamW for 5 epochs and split pairs at random, so that every
test year was trained on. Here the map is the exact ridge solution in float64, its penalty is chosen on validation pairs,
and training, validation and test share no year by default. `split="pairs"` is the paper's split, for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.distances import across, as_values, law_distances

if TYPE_CHECKING:
    from patchclamp.record.recording import Recording

SPLITS = ("years", "pairs")
SHARES = {"years": (0.6, 0.2, 0.2), "pairs": (0.8, 0.1, 0.1)}
PENALTIES = tuple(10.0**power for power in range(-8, 5))
SIDE = "side"
_ROWS = 4096

Pairs = Sequence[tuple[int, int]] | NDArray[np.integer]


@dataclass(frozen=True)
class ProbeFit:
    """Held-out R^2 of one target in one layer, mean over repeats of the split.

    target: a law, or "side", whether a pair lies across the reference. r2_same_side: of the reference law within test pairs on
    one side of the reference (NaN for other targets). low, high: smallest and largest R^2 over the repeats. null: mean R^2
    for relabelled years. p: rank of r2 among the relabelled ones. penalty: chosen, as a share of the mean variance of X.
    """

    layer: int
    target: str
    r2: float
    low: float
    high: float
    r2_same_side: float
    null: float
    p: float
    penalty: float
    n_train: int
    n_test: int

    def to_dict(self) -> dict[str, Any]:
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in self.__dict__.items()}


def probe_laws(
    recording: Recording,
    label: str,
    pairs: Pairs,
    values: ArrayLike,
    *,
    site: str = "resid",
    layers: Iterable[int] | None = None,
    reference: float = 2025,
    offset: float = 1.0,
    split: str = "years",
    shares: tuple[float, float, float] | None = None,
    penalties: Sequence[float] = PENALTIES,
    repeats: int = 5,
    shuffles: int = 19,
    seed: int = 0,
) -> list[ProbeFit]:
    """Probe every layer of a recording of pair prompts for each law; one ProbeFit per layer and target.

    recording: with the statistic `pooled`; document k of `label` is the prompt of pairs[k], read at its last token. pairs: (m, 2)
    positions in `values`. The other arguments are those of `probe_features`.
    """
    pooled = recording.get("pooled", label, site)
    layout, found = pooled.layout, []
    wanted = [k for k in range(layout.n_layers) if layout.widths[k]] if layers is None else list(layers)
    for layer in wanted:
        span = layout.slice(layer)
        columns = np.flatnonzero(
            (pooled.units >= span.start) & (pooled.units < span.stop) & pooled.recorded[pooled.units]
        )
        if not len(columns):
            continue
        blocks = [piece[:, columns] for piece in pooled.last.pieces]
        rows = probe_features(
            np.concatenate(blocks), pairs, values, reference=reference, offset=offset, split=split, shares=shares,
            penalties=penalties, repeats=repeats, shuffles=shuffles, seed=seed,
        )  # fmt: skip
        found += [ProbeFit(**{**row.__dict__, "layer": layer}) for row in rows]
    return found


def probe_features(
    features: NDArray[np.floating],
    pairs: Pairs,
    values: ArrayLike,
    *,
    reference: float = 2025,
    offset: float = 1.0,
    split: str = "years",
    shares: tuple[float, float, float] | None = None,
    penalties: Sequence[float] = PENALTIES,
    repeats: int = 5,
    shuffles: int = 19,
    seed: int = 0,
    targets: Mapping[str, ArrayLike] | None = None,
) -> list[ProbeFit]:
    """Probe one set of features, (m, d), one row per pair, for all laws in one pass of X'X.

    split: "years" sorts stimuli into training, validation and test and keeps pairs whose two stimuli lie in the same part;
    "pairs" sorts pairs. shares: of the three parts (0.6, 0.2, 0.2 of the years; 0.8, 0.1, 0.1 of the pairs). penalties: ridge
    penalties to choose from, as shares of the mean variance of X. repeats: different splits. shuffles: relabellings of the
    years, probed as further columns of the targets. targets: matrices (n, n) by name, instead of the laws.
    R^2 is 1 - squared error / squared deviation from the test mean; NaN for a target that is constant on the test pairs.
    Raises InputError if a part has fewer than 2 pairs.
    """
    x, at = np.asarray(features), np.asarray(pairs, dtype=np.int64)
    n = len(as_values(values))
    _check(x, at, n, split, penalties, repeats, shuffles)
    matrices = _matrices(values, reference, offset, targets)
    names, rng = list(matrices), np.random.default_rng(seed)
    relabelled = [np.arange(n), *[rng.permutation(n) for _ in range(shuffles)]]
    y = np.stack([matrix[order[at[:, 0]], order[at[:, 1]]] for order in relabelled for matrix in matrices.values()], 1)
    same = ~across(values, reference)[at[:, 0], at[:, 1]]
    results, sizes, chosen = [], [], []
    for _ in range(repeats):
        part = _parts(at, n, split, shares or SHARES[split], rng)
        groups = {"train": part == 0, "check": part == 1, "test": part == 2, "near": (part == 2) & same}
        sums = {name: Moments.of(x, y, inside) for name, inside in groups.items()}
        for name in ("train", "check", "test"):
            if sums[name].n < 2:
                raise InputError(
                    f"the {name} part has {sums[name].n} pairs; give more stimuli, more pairs, or other shares than "
                    f"{shares or SHARES[split]}"
                )
        r2, near, penalty = _ridge(sums, penalties)
        results.append((r2, near))
        chosen.append(penalty)
        sizes.append((sums["train"].n, sums["test"].n))
    return _fits(names, np.array([r[0] for r in results]), np.array([r[1] for r in results]), np.array(chosen), sizes)


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over the rows of a group: all that ridge regression and its error need. Parts add up."""

    n: int
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    xx: NDArray[np.float64]
    xy: NDArray[np.float64]
    yy: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.floating], y: NDArray[np.float64], inside: NDArray[np.bool_]) -> Moments:
        """Sums over the chosen rows, some at a time, in float64."""
        rows, (d, k) = np.flatnonzero(inside), (x.shape[1], y.shape[1])
        total = cls(0, np.zeros(d), np.zeros(k), np.zeros((d, d)), np.zeros((d, k)), np.zeros(k))
        for start in range(0, len(rows), _ROWS):
            a, b = x[rows[start : start + _ROWS]].astype(np.float64), y[rows[start : start + _ROWS]]
            total = total + cls(len(a), a.sum(0), b.sum(0), a.T @ a, a.T @ b, (b * b).sum(0))
        return total

    def __add__(self, other: Moments) -> Moments:
        return Moments(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def about(self, x0: NDArray[np.float64], y0: NDArray[np.float64]) -> Moments:
        """The sums of x - x0 and y - y0."""
        sx, sy = self.x - self.n * x0, self.y - self.n * y0
        xx = self.xx - np.outer(self.x, x0) - np.outer(x0, sx)
        xy = self.xy - np.outer(self.x, y0) - np.outer(x0, sy)
        return Moments(self.n, sx, sy, xx, xy, self.yy - self.y * y0 - y0 * sy)


def _ridge(
    sums: Mapping[str, Moments], penalties: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Test R^2, test R^2 within same-side pairs, and penalty of every target, (targets,) each.

    Everything is centred on the training means; one eigendecomposition of X'X serves all penalties and targets.
    """
    x0, y0 = sums["train"].x / sums["train"].n, sums["train"].y / sums["train"].n
    train, check, test, near = (sums[name].about(x0, y0) for name in ("train", "check", "test", "near"))
    spectrum, basis = np.linalg.eigh(train.xx)
    spectrum = np.maximum(spectrum, 0.0)
    scale = max(float(spectrum.mean()), np.finfo(np.float64).tiny)
    rotated = basis.T @ train.xy
    solutions = [basis @ (rotated / (spectrum + share * scale)[:, None]) for share in penalties]
    errors = np.array([_squared_error(check, weights) for weights in solutions])  # (penalties, targets)
    best = errors.argmin(0)
    weights = np.stack([solutions[k][:, target] for target, k in enumerate(best)], axis=1)
    r2 = _r2(test, weights)
    return r2, _r2(near, weights) if near.n >= 2 else np.full(len(r2), np.nan), np.asarray(penalties)[best]


def _squared_error(data: Moments, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum of (y - x w)^2 of each target, for data centred on the training means; rounding can't make it negative."""
    fitted = (weights * (data.xx @ weights)).sum(0)
    return np.asarray(np.maximum(data.yy - 2 * (weights * data.xy).sum(0) + fitted, 0.0))


def _r2(data: Moments, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    whole = data.yy - data.y**2 / data.n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 1e-12 * np.maximum(data.yy, 1e-300), 1 - _squared_error(data, weights) / whole, np.nan)


def _fits(
    names: list[str],
    r2: NDArray[np.float64],
    near: NDArray[np.float64],
    penalty: NDArray[np.float64],
    sizes: list[tuple[int, int]],
) -> list[ProbeFit]:
    """Means over repeats. r2, near, penalty: (repeats, relabellings * targets), true labels first."""
    k = len(names)
    fits = []
    for at, name in enumerate(names):
        mine, null = r2[:, at], [_mean(column) for column in r2[:, at::k][:, 1:].T]
        known, null = mine[~np.isnan(mine)], [value for value in null if not math.isnan(value)]
        value = _mean(mine)
        unknown = math.isnan(value) or not null
        fits.append(
            ProbeFit(
                layer=0,
                target=name,
                r2=value,
                low=float(known.min()) if len(known) else math.nan,
                high=float(known.max()) if len(known) else math.nan,
                r2_same_side=_mean(near[:, at]) if name == "reference" else math.nan,
                null=float(np.mean(null)) if null else math.nan,
                p=math.nan if unknown else (1 + sum(other >= value for other in null)) / (1 + len(null)),
                penalty=float(np.median(penalty[:, at])),
                n_train=round(float(np.mean([size[0] for size in sizes]))),
                n_test=round(float(np.mean([size[1] for size in sizes]))),
            )
        )
    return fits


def _mean(values: NDArray[np.float64]) -> float:
    """Mean over the splits in which the target varies; NaN if it never does."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _matrices(
    values: ArrayLike, reference: float, offset: float, targets: Mapping[str, ArrayLike] | None
) -> dict[str, NDArray[np.float64]]:
    if targets is None:
        laws = law_distances(values, reference=reference, offset=offset)
        return {**laws, SIDE: across(values, reference).astype(np.float64)}
    n = len(as_values(values))
    found = {name: np.asarray(matrix, dtype=np.float64) for name, matrix in targets.items()}
    for name, matrix in found.items():
        if matrix.shape != (n, n) or not np.isfinite(matrix).all():
            raise InputError(f"the target {name!r} has shape {matrix.shape}; a finite ({n}, {n}) matrix is needed")
    if not found:
        raise InputError("no targets given; leave targets out for the three laws")
    return found


def _parts(
    pairs: NDArray[np.int64], n: int, split: str, shares: tuple[float, float, float], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(m,) part of every pair: 0 training, 1 validation, 2 test, -1 for pairs between parts."""
    if len(shares) != 3 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-9:
        raise InputError(f"shares={shares} given; three shares above 0 that add up to 1 are needed")

    def dealt(count: int) -> NDArray[np.int64]:
        first, second = round(shares[0] * count), round((shares[0] + shares[1]) * count)
        return rng.permutation((np.arange(count) >= first).astype(np.int64) + (np.arange(count) >= second))

    if split == "pairs":
        return dealt(len(pairs))
    part = dealt(n)[pairs]  # (m, 2)
    return np.where(part[:, 0] == part[:, 1], part[:, 0], -1)


def _check(
    x: NDArray[np.floating],
    pairs: NDArray[np.int64],
    n: int,
    split: str,
    penalties: Sequence[float],
    repeats: int,
    shuffles: int,
) -> None:
    if split not in SPLITS:
        raise InputError(f"split={split!r} given; it is one of {', '.join(SPLITS)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or x.ndim != 2 or len(x) != len(pairs):
        raise InputError(f"features of shape {x.shape} for pairs of shape {pairs.shape}; one row per pair is needed")
    if len(pairs) and (pairs.min() < 0 or pairs.max() >= n):
        raise InputError(f"pairs name stimuli {pairs.min()} to {pairs.max()}, but there are {n}")
    if not np.isfinite(x).all():
        raise InputError("some features are not finite; record every layer, and prompts that hold a token")
    if not penalties or min(penalties) < 0 or repeats < 1 or shuffles < 0:
        raise InputError(f"penalties={list(penalties)}, repeats={repeats}, shuffles={shuffles} given; none is negative")
