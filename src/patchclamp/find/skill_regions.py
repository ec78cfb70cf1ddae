"""Regions of key space that a skill's queries fill: one box per layer, held-out coverage curves, the layer that separates best.

Li, Sun & Weng 2025 (arXiv 2503.21730), Key Space Detection. The paper uses the last layer's vectors that enter the down
projection and tunes alpha by hand; here every layer gets a region, alpha and layer are chosen on documents that the regions
were not fitted to, and coverage is reported on documents that nothing was chosen on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.provenance import provenance
from patchclamp.find.recordings import RecordingLike
from patchclamp.find.skill import pairs
from patchclamp.find.skill_box import Region
from patchclamp.measure.holm import holm
from patchclamp.models.units import Layout, describe, layouts_of

Floats = NDArray[np.float64]
FITS = ("last", "all")
# of the box that holds every fitted vector; the paper's 2 (GSM8K), 1.4 (MBPP) and 0.06 (MLQA) are among them
ALPHAS = (0.02, 0.06, *(round(0.1 * step, 1) for step in range(1, 31)), 4.0, 5.0, 7.0, 10.0)


@dataclass(frozen=True)
class LayerCoverage:
    """How well one layer's region tells the skill's held-out queries from others.

    k, floored: of the region. alpha: chosen on the validation documents, where forget minus retain coverage is highest.
    separation: that difference, there. forget, retain: shares of the test documents inside at this alpha, low, high: their 95%
    Wilson intervals. fitted: share of the vectors that the region was fitted to. expected: see `Region.expected_coverage`.
    auroc: chance that a test query of the skill lies nearer than another one; p: Mann-Whitney, one-sided; p_holm: over layers.
    curve: alpha, then forget and retain coverage of the test documents.
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
    p_holm: float
    curve: tuple[tuple[float, float, float], ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Regions:
    """A skill's region in every layer and how far it holds. best: the layer of the largest separation in validation.

    counts: documents in each part. `regions[layer]` is what an abstaining model would use, with `coverage(layer).alpha`.
    """

    label: str
    retain: tuple[str, ...]
    site: str
    regions: Mapping[int, Region]
    layers: tuple[LayerCoverage, ...]
    best: int
    counts: Mapping[str, int]
    provenance: Mapping[str, Any]

    def coverage(self, layer: int) -> LayerCoverage:
        """The entry of a layer; InputError for one without a region."""
        for entry in self.layers:
            if entry.layer == layer:
                return entry
        raise InputError(f"no region in layer {layer}; there are some in {', '.join(map(str, self.regions))}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data: everything but the boxes themselves."""
        return {
            "label": self.label, "retain": list(self.retain), "site": self.site, "best": self.best,
            "counts": dict(self.counts), "layers": [entry.to_dict() for entry in self.layers],
            "provenance": dict(self.provenance),
        }  # fmt: skip

    def __iter__(self) -> Iterator[LayerCoverage]:
        return iter(self.layers)

    def __repr__(self) -> str:
        found = self.coverage(self.best)
        return (
            f"Regions({self.label} at {self.site}: best layer {self.best}, alpha {found.alpha:g}, "
            f"held out inside: {found.forget:.0%} of {self.label}, {found.retain:.0%} of the rest)"
        )


def skill_regions(
    recording: RecordingLike,
    *,
    forget: str,
    retain: Sequence[str] | None = None,
    site: str = "mlp",
    fit: str = "last",
    held_out: RecordingLike | None = None,
    alphas: Sequence[float] = ALPHAS,
    seed: int = 0,
) -> Regions:
    """Fit a region per layer to a skill's key vectors and measure how many held-out queries of it, and of others, lie inside.

    forget: the skill's label. retain: other labels (None: all). site: mlp, what enters the down projection. fit: "last" fits to
    the vector at each document's last token (the statistic `pooled`), "all" to every token (the statistic `moments`: its minimum
    and maximum give k exactly). held_out: a recording of other documents with `pooled`; None splits the documents of `recording`
    at random: half of the skill's to fit, a quarter to choose layer and alpha (with half of the others'), the rest to report.
    fit="all" needs held_out, because moments hold all documents. With held_out its documents are split in halves to choose and to
    report. alphas: sizes of the box to try, of the one that holds every fitted vector.

    InputError for unknown labels, statistics that were not recorded, and fewer than 2 documents in any part.
    """
    _check(recording, held_out, site, fit, alphas)
    _, retained = pairs(recording.labels, forget, retain)
    others = tuple(label for label, kept in zip(recording.labels, retained[0], strict=True) if kept)
    layout = layouts_of(recording.model)[site]
    source = recording if held_out is None else held_out
    parts = _parts(source, forget, others, site, seed, fitting=held_out is None)
    if fit == "last" and held_out is not None:
        parts["fit"] = _rows(recording, (forget,), site, "fit")
    fitted = _FITTERS[fit](recording, forget, layout, parts)
    found = [_coverage(region, layout, parts, alphas) for region in fitted.values()]
    corrected = holm([entry.p for entry in found])
    layers = tuple(
        LayerCoverage(**{**vars(entry), "p_holm": float(p if p is not None else 1.0)})
        for entry, p in zip(found, corrected, strict=True)
    )
    best = max(layers, key=lambda entry: (round(entry.separation, 9), entry.layer)).layer
    arguments = {
        "forget": forget, "retain": None if retain is None else list(retain), "site": site, "fit": fit,
        "alphas": [float(alpha) for alpha in alphas], "seed": seed,
    }  # fmt: skip
    inputs = {
        name: {"fingerprint": given.fingerprint, "path": None if given.folder is None else str(given.folder.absolute())}
        for name, given in (("recording", recording), ("held_out", held_out))
        if given is not None
    }
    made = provenance("find.skill_regions", arguments=arguments, inputs=inputs, seed=seed)
    counts = {name: sum(len(part) for part in pieces) for name, pieces in parts.items()}
    return Regions(forget, others, site, fitted, layers, best, counts, made)


Parts = dict[str, list[NDArray[np.float32]]]  # name -> rows (documents, total), one array per label


def _parts(source: RecordingLike, forget: str, others: Sequence[str], site: str, seed: int, *, fitting: bool) -> Parts:
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
        if sum(map(len, pieces)) < 2 and (name != "fit" or fitting):
            raise InputError(
                f"{sum(map(len, pieces))} documents are left for the part {name!r}; at least 2 are needed, so give "
                f"{forget!r} and the others more documents"
            )
    return parts


def _rows(recording: RecordingLike, labels: Sequence[str], site: str, what: str) -> list[NDArray[np.float32]]:
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


def _fit_last(recording: RecordingLike, forget: str, layout: Layout, parts: Parts) -> dict[int, Region]:
    vectors = np.concatenate(parts["fit"])
    return {
        layer: Region.of(vectors[:, layout.slice(layer)], site=layout.site, layer=layer, model=recording.model)
        for layer in _recorded(layout, np.asarray(np.isfinite(vectors).all(0)))
    }


def _fit_all(recording: RecordingLike, forget: str, layout: Layout, parts: Parts) -> dict[int, Region]:
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


def _coverage(region: Region, layout: Layout, parts: Parts, alphas: Sequence[float]) -> LayerCoverage:
    """Everything about one layer but the correction of p over layers."""
    from scipy.stats import mannwhitneyu

    where = layout.slice(region.layer)
    reach = {
        name: region.reach(np.concatenate(pieces)[:, where]) if pieces else np.zeros(0)
        for name, pieces in parts.items()
    }
    grid = np.array(sorted(set(map(float, alphas))))
    gaps = _share(reach["forget validation"], grid) - _share(reach["retain validation"], grid)
    alpha = float(grid[_middle_of_best(gaps)])
    test, other = reach["forget test"], reach["retain test"]
    ranked = mannwhitneyu(test, other, alternative="less", method="asymptotic")
    curve = zip(grid.tolist(), _share(test, grid).tolist(), _share(other, grid).tolist(), strict=True)
    return LayerCoverage(
        layer=region.layer,
        k=region.k,
        floored=region.floored,
        alpha=alpha,
        separation=float(gaps.max()),
        fitted=float((reach["fit"] <= alpha).mean()) if len(reach["fit"]) else float(alpha >= 1),
        expected=region.expected_coverage(alpha),
        **_shares("forget", test, alpha),
        **_shares("retain", other, alpha),
        auroc=float(1 - ranked.statistic / (len(test) * len(other))),
        p=float(ranked.pvalue) if np.isfinite(ranked.pvalue) else 1.0,
        p_holm=1.0,
        curve=tuple(curve),
    )


def _share(reach: Floats, grid: Floats) -> Floats:
    """Share of vectors inside at every alpha."""
    return np.asarray((reach[:, None] <= grid).mean(0))


def _middle_of_best(gaps: Floats) -> int:
    """Place of the highest gap; of a run of equally high ones its middle, which is the farthest from losing any."""
    best = np.flatnonzero(gaps >= gaps.max() - 1e-12)
    runs = np.split(best, np.flatnonzero(np.diff(best) != 1) + 1)
    longest = max(runs, key=len)
    return int(longest[(len(longest) - 1) // 2])


def _shares(name: str, reach: Floats, alpha: float) -> dict[str, float]:
    """Share inside with its Wilson interval."""
    n, share, z = len(reach), float((reach <= alpha).mean()), 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return {name: share, f"{name}_low": max(0.0, centre - half), f"{name}_high": min(1.0, centre + half)}


def _check(
    recording: RecordingLike, held_out: RecordingLike | None, site: str, fit: str, alphas: Sequence[float]
) -> None:
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
