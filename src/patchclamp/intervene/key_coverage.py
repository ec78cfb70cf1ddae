"""How far a region of key space holds: boxes in every layer, sizes chosen on some held-out queries, coverage reported on others.

Li, Sun & Weng 2025 (arXiv 2503.21730), Key Space Detection. The paper takes the last layer and tunes alpha by hand; here every
layer gets a box, its size is chosen on documents that it was not fitted to, and what is reported comes from yet other documents.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.intervene.key_space import Region
from patchclamp.models.units import Layout, describe, layouts_of

Floats = NDArray[np.float64]
Parts = dict[str, list[NDArray[np.float32]]]  # name -> rows (documents, total), one array per label
FITS = ("last", "all")
# of the box that holds every fitted vector; the paper's 2 (GSM8K), 1.4 (MBPP) and 0.06 (MLQA) are among them
ALPHAS = (0.02, 0.06, *(round(0.1 * step, 1) for step in range(1, 31)), 4.0, 5.0, 7.0, 10.0)


@dataclass(frozen=True)
class Coverage:
    """How well one layer's region tells the skill's held-out queries from others.

    k, floored: of the region. alpha: chosen on the validation documents, where forget minus retain coverage is highest.
    separation: that difference, there. forget, retain: shares of the test documents inside at this alpha, low, high: their 95%
    Wilson intervals. fitted: share of the vectors that the region was fitted to. expected: see `Region.expected_coverage`.
    auroc: chance that a test query of the skill lies nearer than another one; p: Mann-Whitney, one-sided. curve: alpha, then
    forget and retain coverage of the test documents. Without other labels alpha is 1, and what concerns them is NaN.
    """

    layer: int
    k: float
    floored: int
    alpha: float
    separation: float
    fitted: float
    expected: float
    forget: float
    forget_low: float
    forget_high: float
    retain: float
    retain_low: float
    retain_high: float
    auroc: float
    p: float
    curve: tuple[tuple[float, float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Region and coverage of every layer. counts: documents in each part."""

    regions: dict[int, Region]
    layers: tuple[Coverage, ...]
    counts: dict[str, int]

    @property
    def best(self) -> int:
        """The layer of the largest separation in validation; the last of equally good ones."""
        return best_layer(self.layers)


def best_layer(layers: Sequence[Coverage]) -> int:
    """The layer of the largest separation in validation; the last of equally good ones."""
    return max(layers, key=lambda entry: (round(np.nan_to_num(entry.separation), 9), entry.layer)).layer


def fitted_regions(
    recording: Any,
    *,
    forget: str,
    others: Sequence[str],
    site: str = "mlp",
    fit: str = "last",
    held_out: Any = None,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
) -> Fitted:
    """A region per layer and how many held-out queries of the skill, and of others, lie inside.

    recording, held_out: recordings (or what keeps their statistics). others: labels that the skill is told apart from; without
    any, a warning says that alpha can't be tuned. See `find.skill_regions` for the rest.
    """
    _check(recording, held_out, site, fit, alphas)
    source = recording if held_out is None else held_out
    for given, labels in ((recording, (forget,)), (source, (forget, *others))):
        if unknown := [label for label in labels if label not in given.labels]:
            raise InputError(f"the recording has no label {unknown[0]!r}; it has {', '.join(given.labels)}")
    if not others:
        warnings.warn("no other text was given: the box can't be tuned, its size stays alpha = 1", stacklevel=3)
    layout = layouts_of(recording.model)[site]
    parts = _parts(source, forget, others, site, seed, fitting=held_out is None)
    if fit == "last" and held_out is not None:
        parts["fit"] = _rows(recording, (forget,), site, "fit")
    boxes = _FITTERS[fit](recording, forget, layout, parts)
    found = tuple(_coverage(region, layout, parts, alphas) for region in boxes.values())
    return Fitted(boxes, found, {name: sum(len(part) for part in pieces) for name, pieces in parts.items()})


def _parts(source: Any, forget: str, others: Sequence[str], site: str, seed: int, *, fitting: bool) -> Parts:
    """Last-token vectors of documents drawn for fitting, choosing and reporting. The same draw for the same seed."""
    rng = np.random.default_rng(seed)
    parts: Parts = {"fit": [], "forget validation": [], "forget test": [], "retain validation": [], "retain test": []}
    mine = _rows(source, (forget,), site, "held out")[0]
    order = rng.permutation(len(mine))
    cut = len(mine) // 2 if fitting else 0
    middle = cut + (len(mine) - cut) // 2
    parts["fit"] = [mine[np.sort(order[:cut])]] if fitting else []
    parts["forget validation"] = [mine[np.sort(order[cut:middle])]]
    parts["forget test"] = [mine[np.sort(order[middle:])]]
    for label in others:
        rest = _rows(source, (label,), site, "held out")[0]
        order = rng.permutation(len(rest))
        parts["retain validation"].append(rest[np.sort(order[: len(rest) // 2])])
        parts["retain test"].append(rest[np.sort(order[len(rest) // 2 :])])
    for name, pieces in parts.items():
        needed = fitting if name == "fit" else bool(others) or name.startswith("forget")
        if needed and sum(map(len, pieces)) < 2:
            raise InputError(
                f"{sum(map(len, pieces))} documents are left for the part {name!r}; at least 2 are needed, so give "
                f"{forget!r} and the others more documents"
            )
    return parts


def _rows(recording: Any, labels: Sequence[str], site: str, what: str) -> list[NDArray[np.float32]]:
    """Vectors at the last token of every document with tokens, per label."""
    if "pooled" not in recording.statistics:
        raise InputError(
            f"the recording ({what}) holds {', '.join(recording.statistics)}; regions need the vectors of documents: "
            "record with statistics=('pooled',)"
        )
    found = []
    for label in labels:
        pooled = recording.get("pooled", label, site)
        total = layouts_of(recording.model)[site].total
        if len(pooled.units) != total:
            raise InputError(f"only {len(pooled.units)} of {total} units were pooled; regions need all of a layer")
        found.append(np.asarray(pooled.last)[pooled.n > 0])
    return found


def _fit_last(recording: Any, forget: str, layout: Layout, parts: Parts) -> dict[int, Region]:
    vectors = np.concatenate(parts["fit"])
    return {
        layer: Region.of(vectors[:, layout.slice(layer)], site=layout.site, layer=layer, model=recording.model)
        for layer in _recorded(layout, np.asarray(np.isfinite(vectors).all(0)))
    }


def _fit_all(recording: Any, forget: str, layout: Layout, parts: Parts) -> dict[int, Region]:
    moments = recording.get("moments", forget, layout.site)
    arrays = [np.asarray(each, dtype=np.float64) for each in (moments.mean, moments.m2, moments.min, moments.max)]
    found = {}
    for layer in _recorded(layout, np.isfinite(arrays[0])):
        mean, m2, low, high = (each[layout.slice(layer)] for each in arrays)
        found[layer] = Region.of_moments(
            int(moments.n), mean, m2, low, high, site=layout.site, layer=layer, model=recording.model
        )
    return found


_FITTERS = {"last": _fit_last, "all": _fit_all}


def _recorded(layout: Layout, finite: NDArray[np.bool_]) -> list[int]:
    layers = [n for n in range(layout.n_layers) if layout.widths[n] and finite[layout.slice(n)].all()]
    if not layers:
        raise InputError(f"no layer of site {layout.site} was recorded whole; a region needs all units of a layer")
    return layers


def _coverage(region: Region, layout: Layout, parts: Parts, alphas: Sequence[float]) -> Coverage:
    """Everything about one layer."""
    where = layout.slice(region.layer)
    reach = {
        name: region.reach(np.concatenate([piece[:, where] for piece in pieces])) if pieces else np.zeros(0)
        for name, pieces in parts.items()
    }
    grid = np.array(sorted(set(map(float, alphas))))
    test, other = reach["forget test"], reach["retain test"]
    alpha, separation = 1.0, math.nan
    if len(other):
        gaps = _share(reach["forget validation"], grid) - _share(reach["retain validation"], grid)
        alpha, separation = float(grid[_middle_of_best(gaps)]), float(gaps.max())
    auroc, p = _ranked(test, other)
    curve = zip(grid.tolist(), _share(test, grid).tolist(), _share(other, grid).tolist(), strict=True)
    return Coverage(
        layer=region.layer,
        k=region.k,
        floored=region.floored,
        alpha=alpha,
        separation=separation,
        fitted=float((reach["fit"] <= alpha).mean()) if len(reach["fit"]) else float(alpha >= 1),
        expected=region.expected_coverage(alpha),
        **_shares("forget", test, alpha),
        **_shares("retain", other, alpha),
        auroc=auroc,
        p=p,
        curve=tuple(curve),
    )


def _ranked(test: Floats, other: Floats) -> tuple[float, float]:
    """Chance that one of `test` lies nearer than one of `other`, and its p-value; (NaN, 1) without others."""
    from scipy.stats import mannwhitneyu

    if not len(other):
        return math.nan, 1.0
    ranked = mannwhitneyu(test, other, alternative="less", method="asymptotic")
    p = float(ranked.pvalue) if np.isfinite(ranked.pvalue) else 1.0
    return float(1 - ranked.statistic / (len(test) * len(other))), p


def _share(reach: Floats, grid: Floats) -> Floats:
    """Share of vectors inside at every alpha; NaN without vectors."""
    if not len(reach):
        return np.full(len(grid), np.nan)
    return np.asarray((reach[:, None] <= grid).mean(0))


def _middle_of_best(gaps: Floats) -> int:
    """Place of the highest gap; of a run of equally high ones its middle, which is the farthest from losing any."""
    best = np.flatnonzero(gaps >= gaps.max() - 1e-12)
    runs = np.split(best, np.flatnonzero(np.diff(best) != 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def _shares(name: str, reach: Floats, alpha: float) -> dict[str, float]:
    """Share inside with its Wilson interval; NaN without vectors."""
    if not len(reach):
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), math.nan)
    n, share, z = len(reach), float((reach <= alpha).mean()), 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return {name: share, f"{name}_low": max(0.0, centre - half), f"{name}_high": min(1.0, centre + half)}


def _check(recording: Any, held_out: Any, site: str, fit: str, alphas: Sequence[float]) -> None:
    if fit not in FITS:
        raise InputError(f"fit={fit!r} given; it is {' or '.join(FITS)}")
    for given in (recording, held_out):
        if given is not None and site not in given.sites:
            raise InputError(f"site {site!r} was not recorded; this recording has {', '.join(given.sites)}")
    if fit == "all" and held_out is None:
        raise InputError(
            "fit='all' takes the moments of all documents, so none of them is held out; give held_out=, a recording of others"
        )
    if fit == "all" and "moments" not in recording.statistics:
        raise InputError(
            f"fit='all' needs the statistic moments; the recording holds {', '.join(recording.statistics)}"
        )
    if held_out is not None and held_out.model.get("fingerprint") != recording.model.get("fingerprint"):
        raise MismatchError(
            f"the recordings are of {describe(recording.model)} and of {describe(held_out.model)}; give two of one model"
        )
    if not len(alphas) or not all(np.isfinite(alpha) and alpha > 0 for alpha in alphas):
        raise InputError(f"alphas={list(alphas)} given; they are numbers above 0, at least one")
