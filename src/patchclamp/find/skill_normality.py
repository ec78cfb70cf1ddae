"""Whether the units of a set are normal on the skill and on the rest, as interventions that fit normals to them assume."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.record.statistics.shape import Distribution

Floats = NDArray[np.float64]


def normality(
    of: Distribution, units: NDArray[Any], *, edges: Floats | None = None, counts: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Skew, excess kurtosis and Kolmogorov distance of some units, as medians and 90% quantiles of their sizes.

    units: positions in the last axis of `of`. edges, counts: what `kolmogorov` takes, counts of these units only. A normal has
    0 in all three. What was not recorded is None.
    """
    shown: dict[str, Any] = {"units": len(units), "tokens": int(of.n)}
    values = {"skew": of.skew, "kurtosis": of.kurtosis}
    for name, each in values.items():
        shown[name] = None if each is None else _summary(each[units])
    far = None
    if edges is not None and counts is not None and len(units):
        far = kolmogorov(edges, counts, of.mean[units], of.std[units])
    shown["kolmogorov"] = None if far is None else _summary(far)
    return shown


def kolmogorov(edges: Floats, counts: NDArray[np.int64], mean: Floats, std: Floats) -> Floats:
    """Largest gap between what was counted and the normal with this mean and spread, (units,), at the edges of buckets.

    edges: (buckets - 1,) upper bounds of all buckets but the last, rising. counts: (buckets, units). A unit without any spread
    has the distance 1 (a normal cannot be fitted), one without tokens 0. Between edges the gap may be larger by at most the
    share of one bucket.
    """
    from scipy.stats import norm

    tokens = counts.sum(0)
    below = np.cumsum(counts, axis=0)[:-1] / np.maximum(tokens, 1)
    fitted = norm.cdf((edges[:, None] - mean) / np.where(std > 0, std, 1.0))
    gap = np.abs(below - fitted).max(axis=0, initial=0.0)
    return np.where(tokens == 0, 0.0, np.where(std > 0, gap, 1.0))


def bucket_edges(magnitudes: Floats) -> Floats:
    """Upper bounds of all buckets of a `Histogram` but the last. magnitudes: its `edges`, (per_sign + 1,).

    Below 0 bucket i ends just above -magnitudes[i]; what counts as 0 ends at magnitudes[0].
    """
    return np.concatenate([-magnitudes[:-1][::-1], magnitudes[:-1]])


def _summary(values: Floats | Sequence[float]) -> dict[str, float] | None:
    sizes = np.abs(np.asarray(values))
    if not len(sizes):
        return None
    return {"median": float(np.median(sizes)), "high": float(np.quantile(sizes, 0.9))}
