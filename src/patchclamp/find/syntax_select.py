"""Choosing sentence, phrase and shared units from effect sizes and p-values: the paper's relative rule and an absolute one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.find.finding import Finding
from patchclamp.find.ranking import discoveries
from patchclamp.models.units import UnitSet

KINDS = ("sentence", "phrase", "shared")


def standardised(effect: NDArray[np.float64]) -> NDArray[np.float64]:
    """z over the whole last axis, zeros included, with the population's standard deviation; 0 where nothing varies."""
    spread = effect.std(axis=-1, keepdims=True)
    gap = effect - effect.mean(axis=-1, keepdims=True)
    return np.asarray(np.divide(gap, spread, out=np.zeros_like(gap), where=spread > 0))


def relative(effect: NDArray[np.float64], passed: NDArray[np.bool_], bar: float = 2.0) -> NDArray[np.bool_]:
    """Steps A and C: effects that fail the permutation test count as 0; units with z above `bar` are taken.

    effect, passed: (2, n) for sentence and phrase. About 3% of all units pass at bar 2 even where nothing is tagged,
    for z is relative to the model's own spread.
    """
    return standardised(np.where(passed, effect, 0.0)) > bar


def absolute(effect: NDArray[np.float64], p: NDArray[np.float64], q: float = 0.05) -> NDArray[np.bool_]:
    """Units whose p passes Benjamini-Hochberg at rate q over all units, per rate, and whose effect is above 0. (2, n) each."""
    if not 0 < q < 1:
        raise InputError(f"q={q} given; a false-discovery rate lies between 0 and 1")
    return np.stack([discoveries(row, q) for row in p]) & (effect > 0)


def disjoint(tagged: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(3, n): sentence only, phrase only, shared; from (2, n) sentence and phrase."""
    both = tagged[0] & tagged[1]
    return np.stack([tagged[0] & ~both, tagged[1] & ~both, both])


def chosen_by(finding: Finding, method: str, *, q: float = 0.05, bar: float = 2.0) -> dict[str, UnitSet]:
    """The sets of a syntax finding by the other method, from its scores ("reference") or p-values ("fdr")."""
    values = finding.scores if method == "reference" else finding.p_values
    if values is None or method not in ("reference", "fdr") or len(finding.labels) % len(KINDS):
        raise InputError(f"method={method!r}: a syntax finding with its scores and 'reference' or 'fdr' is needed")
    sets: dict[str, UnitSet] = {}
    for at in range(0, len(finding.labels), len(KINDS)):
        pair = values[at : at + 2]
        tagged = pair > bar if method == "reference" else np.stack([discoveries(row, q) for row in pair])
        for label, taken in zip(finding.labels[at : at + len(KINDS)], disjoint(tagged), strict=True):
            sets[label] = UnitSet.at(finding.model, finding.site, np.flatnonzero(taken))
    return sets


def two_periodic(profile: NDArray[Any]) -> NDArray[np.float64]:
    """(n,) share of a profile's variance over places that repeats every two places; NaN for a flat profile or odd U.

    profile: (U, n). A burst once per sentence has 1/3 at U = 4 (equal energy at 1 and 2 Hz, which counts once), a unit that
    follows phrases 1.
    """
    n_units = len(profile)
    gap = profile - profile.mean(axis=0)
    total = np.square(gap).sum(axis=0)
    if n_units % 2:
        return np.full(profile.shape[1], np.nan)
    folded = gap.reshape(-1, 2, profile.shape[1]).mean(axis=0)
    kept = np.square(folded).sum(axis=0) * (n_units // 2)
    return np.asarray(np.divide(kept, total, out=np.full_like(total, np.nan), where=total > 0))


def dice(left: UnitSet, right: UnitSet, site: str = "mlp") -> NDArray[np.float64]:
    """(n_layers, n_layers) Dice overlap of unit indices, 2|A and B| / (|A| + |B|), of a layer of `left` and one of `right`.

    0 where both are empty. The diagonal compares the same layer: the same units. Off it only index numbers agree, as in the
    paper's matrix, which means nothing unless layers share an order.
    """
    left.check_model(right.model)
    layout = left.layouts[site]
    mine, theirs = (_per_layer(units, site) for units in (left, right))
    found = np.zeros((layout.n_layers, layout.n_layers))
    for i, a in enumerate(mine):
        for j, b in enumerate(theirs):
            size = len(a) + len(b)
            found[i, j] = 2 * len(a & b) / size if size else 0.0
    return found


def dice_by_chance(left: UnitSet, right: UnitSet, site: str = "mlp") -> NDArray[np.float64]:
    """(n_layers,) Dice overlap expected of two random sets with as many units in each layer: 2ab / (width (a + b))."""
    widths = np.array(left.layouts[site].widths, dtype=float)
    a, b = (units.per_layer(site)[: len(widths)].astype(float) for units in (left, right))
    size = widths * (a + b)
    return np.divide(2 * a * b, size, out=np.zeros_like(widths), where=size > 0)


def _per_layer(units: UnitSet, site: str) -> list[set[int]]:
    layout = units.layouts[site]
    where: Mapping[str, Any] = units.positions
    flat = where.get(site, np.zeros(0, dtype=np.int64))
    starts = layout.offsets
    return [
        set((flat[(flat >= starts[layer]) & (flat < starts[layer + 1])] - starts[layer]).tolist())
        for layer in range(layout.n_layers)
    ]
