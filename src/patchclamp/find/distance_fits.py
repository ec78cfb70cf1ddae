"""How well each law of distance explains a similarity matrix: R^2, intervals over stimuli, Mantel tests.

Pairs share stimuli, so pairs are never treated as independent: intervals resample stimuli (whole rows and columns),
p-values relabel them (Mantel 1967). Li et al. 2025 (arXiv 2507.15851) regress dissimilarity on each distance; the
side indicator, the fit within same-side pairs, the intervals and the tests are ours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.distances import across, as_values, law_distances
from patchclamp.measure.bootstrap import percentile_interval

Matrix = NDArray[np.float64]
_CELLS = 4_000_000


@dataclass(frozen=True)
class LawFit:
    """One law against one similarity matrix, over the n_pairs pairs of different stimuli.

    r2: of dissimilarity regressed on the distance alone. slope, intercept: of that line. low, high: 95% bootstrap interval
    of r2 over stimuli. p: one-sided Mantel test that dissimilarity grows with the distance. unique: what the law adds to
    the R^2 of all laws together. NaN where it can't be known, such as for constant similarities.
    """

    law: str
    r2: float
    slope: float
    intercept: float
    low: float
    high: float
    p: float
    unique: float
    n_pairs: int


@dataclass(frozen=True)
class LawFits:
    """Fits of all laws. baselines: the side indicator, and the reference law within pairs on one side of it.

    side_share: share of the reference distance's own variance that the side indicator explains. asymmetry: mean
    |S_ij - S_ji|, an effect of the order of asking. missing: pairs without a judgement.
    """

    laws: tuple[LawFit, ...]
    baselines: tuple[LawFit, ...]
    reference: float
    offset: float
    side_share: float
    asymmetry: float
    missing: int
    notes: tuple[str, ...] = ()

    def __getitem__(self, law: str) -> LawFit:
        found = {fit.law: fit for fit in (*self.laws, *self.baselines)}
        if law not in found:
            raise InputError(f"no fit of {law!r}; there are {', '.join(found)}")
        return found[law]

    @property
    def best(self) -> str | None:
        """Law of the highest R^2; None where no R^2 is known."""
        known = [fit for fit in self.laws if not math.isnan(fit.r2)]
        return max(known, key=lambda fit: fit.r2).law if known else None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One plain dict per law and baseline."""
        return [asdict(fit) for fit in (*self.laws, *self.baselines)]

    def to_dict(self) -> dict[str, Any]:
        kept = {name: value for name, value in asdict(self).items() if name not in ("laws", "baselines")}
        return {"rows": self.rows, "best": self.best, **kept}


def fit_laws(
    similarity: ArrayLike,
    values: ArrayLike,
    *,
    reference: float = 2025,
    offset: float = 1.0,
    texts: Sequence[str] | None = None,
    permutations: int = 999,
    resamples: int = 1000,
    seed: int = 0,
) -> LawFits:
    """Regress 1 - similarity, made symmetric, on each law's distance.

    similarity: (n, n), any scale, NaN for pairs without a judgement; the diagonal is not used. values: (n,) the stimuli.
    reference, offset: of the reference law (see `reference_distance`). texts: how the stimuli are written. permutations:
    of the Mantel test; resamples: of the bootstrap; 0 leaves either out (NaN).
    """
    data = Dissimilarity.of(similarity, values)
    laws = law_distances(values, reference=reference, offset=offset, texts=texts)
    opposite = across(values, reference)
    within = data.only(~opposite)
    notes = list(data.notes)
    rng_p, rng_b = (list(part.spawn(1)) for part in np.random.SeedSequence(seed).spawn(2))
    together = _joint_r2(data, list(laws.values()))
    fits = []
    targets: dict[str, tuple[Dissimilarity, Matrix]] = {name: (data, distance) for name, distance in laws.items()}
    targets["side"] = (data, opposite.astype(np.float64))
    targets["reference, same side"] = (within, laws["reference"])
    for name, (part, distance) in targets.items():
        others = [other for key, other in laws.items() if key != name]
        unique = together - _joint_r2(data, others) if name in laws else math.nan
        slope, intercept = part.line(distance)
        low, high = part.interval(distance, resamples, np.random.default_rng(rng_b[0]))
        fits.append(
            LawFit(
                law=name,
                r2=part.r2(distance),
                slope=slope,
                intercept=intercept,
                low=low,
                high=high,
                p=part.mantel(distance, permutations, np.random.default_rng(rng_p[0])),
                unique=unique,
                n_pairs=part.n_pairs,
            )
        )
    if not opposite[np.triu_indices(len(opposite), 1)].any():
        notes.append(f"no stimulus lies beyond the reference {reference:g}: the side indicator is constant")
    return LawFits(
        laws=tuple(fits[: len(laws)]),
        baselines=tuple(fits[len(laws) :]),
        reference=float(reference),
        offset=float(offset),
        side_share=_side_share(laws["reference"], opposite),
        asymmetry=data.asymmetry,
        missing=data.missing,
        notes=tuple(notes),
    )


def contrast(
    first: ArrayLike,
    second: ArrayLike,
    values: ArrayLike,
    *,
    reference: float = 2025,
    offset: float = 1.0,
    resamples: int = 1000,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """R^2 of each law in a first condition (years) minus a second one (numbers), with an interval over shared stimuli."""
    a, b = Dissimilarity.of(first, values), Dissimilarity.of(second, values)
    rows = []
    for law, distance in law_distances(values, reference=reference, offset=offset).items():
        draws = [part.draws(distance, resamples, np.random.default_rng(seed)) for part in (a, b)]
        low, high = percentile_interval(draws[0] - draws[1]) if resamples else (math.nan, math.nan)
        rows.append({"law": law, "difference": a.r2(distance) - b.r2(distance), "low": low, "high": high})
    return rows


def by_distance(
    similarity: ArrayLike,
    values: ArrayLike,
    *,
    reference: float,
    edges: Sequence[float] = (0, 10, 25, 50, 100, 250, 500),
) -> list[dict[str, Any]]:
    """Mean similarity among the stimuli that lie so far before or after the reference: where the clusters are dense.

    One row per side and band of distances (from, to]; None for a band with fewer than two stimuli.
    """
    data, x = Dissimilarity.of(similarity, values), as_values(values)
    rows: list[dict[str, Any]] = []
    for side, away in (("past", reference - x), ("future", x - reference)):
        for start, stop in itertools.pairwise(edges):
            inside = (away > start) & (away <= stop)
            pairs = data.known & inside[:, None] & inside[None, :]
            mean = float(1 - data.y[pairs].mean()) if pairs.any() else None
            rows.append({"side": side, "from": start, "to": stop, "n": int(inside.sum()), "similarity": mean})
    return rows


@dataclass(frozen=True, eq=False)
class Dissimilarity:
    """1 - S, symmetric, with the pairs that count. y: (n, n), 0 where unknown. known: (n, n) bool, False on the diagonal."""

    y: Matrix
    known: NDArray[np.bool_]
    asymmetry: float = 0.0
    missing: int = 0
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def of(cls, similarity: ArrayLike, values: ArrayLike) -> Dissimilarity:
        """Check shapes, average both orders where both were judged."""
        s, n = np.asarray(similarity, dtype=np.float64), len(as_values(values))
        if s.shape != (n, n):
            raise InputError(
                f"a similarity matrix of shape {s.shape} for {n} values; it has one row and column per value"
            )
        if np.isinf(s).any():
            raise InputError("the similarity matrix holds infinite values; use NaN for pairs without a judgement")
        have = ~np.isnan(s)
        filled = np.where(have, s, 0.0)
        count = have + have.T.astype(np.int64)
        mean = (filled + filled.T) / np.maximum(count, 1)
        known = count > 0
        np.fill_diagonal(known, False)
        both = (count == 2) & known
        gaps = np.abs(s - s.T)[both]
        missing = int((~known[np.triu_indices(n, 1)]).sum())
        notes: tuple[str, ...] = (f"{missing} pairs have no judgement and are left out",) if missing else ()
        found = mean[known]
        if not len(found) or np.ptp(found) <= 1e-12 * max(1.0, float(np.abs(found).max())):
            notes += ("the similarities are constant, so no R^2 is defined",)
        return cls(np.where(known, 1 - mean, 0.0), known, float(gaps.mean()) if len(gaps) else 0.0, missing, notes)

    @property
    def n_pairs(self) -> int:
        return int(self.known.sum()) // 2

    def only(self, pairs: NDArray[np.bool_]) -> Dissimilarity:
        """The same with fewer pairs."""
        known = self.known & pairs
        return Dissimilarity(np.where(known, self.y, 0.0), known, self.asymmetry, self.missing, self.notes)

    def r2(self, distance: Matrix) -> float:
        """R^2 of the line of y on a distance, over all known pairs; NaN if either is constant."""
        if not self.n_pairs:
            return math.nan
        return float(r2_of(*weighted_sums(np.ones((1, len(self.y))), self.moments(distance)))[0])

    def line(self, distance: Matrix) -> tuple[float, float]:
        """Slope and intercept of that line; NaN if the distance is constant."""
        x, y = distance[self.known], self.y[self.known]
        if not len(x) or _constant(x):
            return math.nan, math.nan
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
        return slope, float(y.mean() - slope * x.mean())

    def draws(self, distance: Matrix, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
        """R^2 in bootstrap samples of the stimuli, (resamples,). A pair of two draws of one stimulus does not count."""
        n, moments = len(self.y), self.moments(distance)
        found = [r2_of(*weighted_sums(weights, moments)) for weights in stimulus_weights(n, resamples, rng)]
        return np.concatenate(found) if found else np.zeros(0)

    def interval(self, distance: Matrix, resamples: int, rng: np.random.Generator) -> tuple[float, float]:
        """95% bootstrap interval of R^2 over stimuli."""
        if not resamples or math.isnan(self.r2(distance)):
            return math.nan, math.nan
        return percentile_interval(self.draws(distance, resamples, rng))

    def mantel(self, distance: Matrix, permutations: int, rng: np.random.Generator) -> float:
        """One-sided p that relabelled stimuli give a correlation of y and distance as high as the true one."""
        if not permutations or math.isnan(self.r2(distance)):
            return math.nan
        known = self.known.astype(np.float64)
        x = distance - distance[self.known].mean()
        y = (self.y - self.y[self.known].mean()) * known
        every = self.n_pairs * 2 == known.size - len(known)  # then relabelling changes neither mean nor spread of x

        def correlation(order: NDArray[np.int64]) -> float:
            moved = x[np.ix_(order, order)]
            product = float(np.vdot(moved, y))
            if every:
                return product
            mean, square = np.vdot(moved, known) / known.sum(), np.vdot(moved * moved, known) / known.sum()
            spread = square - mean * mean
            return product / math.sqrt(spread) if spread > 1e-12 * square else 0.0  # y is centred, so mean * y vanishes

        observed = correlation(np.arange(len(y)))
        bar = observed - 1e-12 * abs(observed)
        reached = sum(correlation(rng.permutation(len(y))) >= bar for _ in range(permutations))
        return (1 + reached) / (1 + permutations)

    def moments(self, distance: Matrix) -> list[Matrix]:
        """Matrices whose weighted sums are the arguments of `r2_of`; both variables are centred, so that nothing cancels."""
        x, y = distance - distance[self.known].mean(), self.y - self.y[self.known].mean()
        known = self.known.astype(np.float64)
        x, y = x * known, y * known
        return [known, x, y, x * x, y * y, x * y]


def stimulus_weights(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Matrix]:
    """How often each of n stimuli is drawn, (some resamples, n) at a time, `resamples` in all."""
    step = max(1, _CELLS // n)
    for start in range(0, resamples, step):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(step, resamples - start)).astype(np.float64)


def weighted_sums(weights: Matrix, moments: list[Matrix]) -> list[NDArray[np.float64]]:
    """Sum of w_i w_j m_ij for each row of weights and each matrix."""
    return [((weights @ matrix) * weights).sum(1) for matrix in moments]


def r2_of(
    count: NDArray[np.float64],
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    xx: NDArray[np.float64],
    yy: NDArray[np.float64],
    xy: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Squared correlation from weighted sums; NaN where either variable is constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        var_x, var_y = xx - x * x / count, yy - y * y / count
        flat = (var_x <= 1e-12 * xx) | (var_y <= 1e-12 * yy) | (xx <= 0) | (yy <= 0)
        found = (xy - x * y / count) ** 2 / (var_x * var_y)
    return np.where(flat | (count <= 0), np.nan, found)


def _constant(x: NDArray[np.float64]) -> bool:
    return bool(np.ptp(x) <= 1e-12 * max(1.0, float(np.abs(x).max())))


def _joint_r2(data: Dissimilarity, distances: Sequence[Matrix]) -> float:
    """R^2 of y on several distances at once; NaN for constant y."""
    y = data.y[data.known]
    if not len(y) or _constant(y):
        return math.nan
    columns = [distance[data.known] for distance in distances]
    design = np.stack([np.ones(len(y)), *[x - x.mean() for x in columns]], axis=1)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(1 - (residual**2).sum() / ((y - y.mean()) ** 2).sum())


def _side_share(distance: Matrix, opposite: NDArray[np.bool_]) -> float:
    """R^2 of the reference distance on the side indicator, over pairs of different stimuli; 0 if all are on one side."""
    upper = np.triu_indices(len(distance), 1)
    x, side = distance[upper], opposite[upper].astype(np.float64)
    if _constant(x) or _constant(side):
        return 0.0
    return float(np.corrcoef(x, side)[0, 1] ** 2)


def plain_rows(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows with None for NaN, as JSON has it."""
    return [
        {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()}
        for row in rows
    ]
