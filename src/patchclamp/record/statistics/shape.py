"""The shape of each unit's distribution, per fold of documents: mean, spread, skew, kurtosis and mean size.

`moments` says where a unit lies; `shape` also says whether a normal distribution describes it, and, because folds are kept
apart, how far two texts would differ if the labels of their documents meant nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.models.units import Layout
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where, wide

Floats = NDArray[np.float64]
_KEPT = ("mean", "m2", "m3", "m4", "size")


@dataclass(frozen=True, eq=False)
class Distribution:
    """Moments of some units over some tokens, which merge exactly (Pébay 2008, SAND2008-6212, eqs. 1.5, 3.1).

    n: (...) tokens. mean, m2, m3, m4 (sums of powers of the deviation from the mean), size (mean absolute value): (..., units)
    float64. m3, m4 and size are None where only mean and spread are known. Without tokens mean, sums and size are 0.
    """

    n: Floats
    mean: Floats
    m2: Floats
    m3: Floats | None = None
    m4: Floats | None = None
    size: Floats | None = None

    @property
    def variance(self) -> Floats:
        """(..., units) unbiased variance; 0 for a single token."""
        return np.asarray(self.m2 / np.maximum(self.n - 1, 1)[..., None])

    @property
    def std(self) -> Floats:
        """(..., units) standard deviation, the root of `variance`."""
        return np.asarray(np.sqrt(self.variance))

    @property
    def constant(self) -> NDArray[np.bool_]:
        """(..., units) whether the spread is nothing but rounding: below a billionth of the mean, or none at all."""
        return np.asarray(self.std <= 1e-9 * np.abs(self.mean))

    @property
    def skew(self) -> Floats | None:
        """(..., units) third standardised moment, 0 for a normal and for a constant unit; None if not recorded."""
        if self.m3 is None:
            return None
        return np.asarray(np.sqrt(self.n)[..., None] * _over(self.m3, self.m2**1.5, ~self.constant))

    @property
    def kurtosis(self) -> Floats | None:
        """(..., units) fourth standardised moment minus 3, 0 for a normal and for a constant unit; None if not recorded."""
        if self.m4 is None:
            return None
        ratio = self.n[..., None] * _over(self.m4, self.m2**2, ~self.constant)
        return np.where(self.constant, 0.0, ratio - 3)

    def merge(self, other: Distribution) -> Distribution:
        """The distribution over both sets of tokens."""
        a, b = self.n[..., None], other.n[..., None]
        n = np.maximum(a + b, 1)
        gap = other.mean - self.mean
        mean = self.mean + gap * (b / n)
        m2 = self.m2 + other.m2 + gap**2 * (a * b / n)
        m3 = m4 = size = None
        if self.m3 is not None and other.m3 is not None:
            m3 = self.m3 + other.m3 + gap**3 * (a * b * (a - b) / n**2) + 3 * gap * (a * other.m2 - b * self.m2) / n
        if self.m3 is not None and other.m3 is not None and self.m4 is not None and other.m4 is not None:
            m4 = self.m4 + other.m4 + gap**4 * (a * b * (a**2 - a * b + b**2) / n**3)
            m4 += 6 * gap**2 * (a**2 * other.m2 + b**2 * self.m2) / n**2 + 4 * gap * (a * other.m3 - b * self.m3) / n
        if self.size is not None and other.size is not None:
            size = self.size * (a / n) + other.size * (b / n)
        return Distribution(self.n + other.n, mean, m2, m3, m4, size)


@dataclass
class _Sums:
    """Running sums of one slab per fold, about a shift close to the mean; powers about 0 would cancel."""

    shift: Tensor  # (width,)
    powers: Tensor  # (4, folds, width): sums of (x - shift), its square, cube and fourth power
    size: Tensor  # (folds, width): sums of |x|


@statistics.add("shape")
class Shape(Statistic):
    """Moments up to the fourth and the mean absolute value of each unit, per fold of documents.

    n: (folds,) int64 tokens. mean, m2, m3, m4 (sums of powers of the deviation from the fold's mean), size (mean absolute value):
    (folds, total) float64; NaN for units that were not recorded, 0 in a fold without tokens. Sums run in float64.
    """

    name: ClassVar[str] = "shape"

    def __init__(self, layout: Layout, *, layers: Sequence[int] | None = None, folds: int = 8) -> None:
        super().__init__(layout, layers=layers, folds=folds)
        self.n: NDArray[np.int64] = np.zeros(folds, dtype=np.int64)
        empty = np.where(self.recorded, 0.0, np.nan)
        self.mean, self.m2, self.m3, self.m4, self.size = (np.tile(empty, (folds, 1)) for _ in _KEPT)
        self._sums: dict[tuple[int, int], _Sums] = {}

    @property
    def by_fold(self) -> Distribution:
        """Every fold's distribution, leading axis (folds,)."""
        return Distribution(self.n.astype(np.float64), self.mean, self.m2, self.m3, self.m4, self.size)

    @property
    def whole(self) -> Distribution:
        """The distribution over all tokens."""
        folds = self.by_fold
        found = _fold(folds, 0)
        for number in range(1, self.folds):
            found = found.merge(_fold(folds, number))
        return found

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        sums = self._sums.get((layer, offset))
        if sums is None:
            sums = self._sums[layer, offset] = _new_sums(values, self.folds)
        dtype = sums.shift.dtype
        folds = where.one_hot(self.folds, values.device).to(dtype)
        moved = self._buffer(values, dtype)
        sums.size.addmm_(folds, moved.copy_(values).abs_())
        moved.copy_(values).sub_(sums.shift)
        power = moved.clone()
        for at in range(4):
            sums.powers[at].addmm_(folds, power)
            power.mul_(moved)
        self._route(layer, offset, where)

    def close(self, documents: range | None = None) -> None:
        tokens = self._tokens.astype(np.float64)
        for (layer, offset), sums in self._sums.items():
            where = self._flat(layer, offset, len(sums.shift))
            seen = self._routed.get((layer, offset))
            zeros = np.zeros(self.folds) if seen is None else tokens - seen
            self._write(where, sums, tokens, zeros)
        self.n = self._tokens.copy()
        self._tokens = np.zeros_like(self._tokens)
        self._routed.clear()
        self._sums.clear()

    def _write(self, where: slice, sums: _Sums, tokens: Floats, zeros: Floats) -> None:
        """Moments about the means from sums about the shift. zeros: tokens per fold that an expert did not see."""
        shift = sums.shift.cpu().double().numpy()
        s1, s2, s3, s4 = (
            power.cpu().double().numpy() + zeros[:, None] * (-shift) ** (at + 1) for at, power in enumerate(sums.powers)
        )
        n = tokens[:, None]
        share = np.maximum(n, 1)
        off = s1 / share
        self.mean[:, where] = np.where(n > 0, shift + off, 0.0)
        self.m2[:, where] = np.maximum(s2 - n * off**2, 0.0)
        self.m3[:, where] = s3 - 3 * off * s2 + 2 * n * off**3
        self.m4[:, where] = np.maximum(s4 - 4 * off * s3 + 6 * off**2 * s2 - 3 * n * off**4, 0.0)
        self.size[:, where] = sums.size.cpu().double().numpy() / share

    def merge(self, other: Self) -> Self:
        merged = type(self)(self.layout, layers=self.layers, folds=self.folds)
        both = self.by_fold.merge(other.by_fold)
        merged.n = self.n + other.n
        for key in _KEPT:
            setattr(merged, key, getattr(both, key))
        return merged

    def state(self) -> State:
        return {"n": self.n, **{key: getattr(self, key) for key in _KEPT}}

    def __repr__(self) -> str:
        return f"Shape({self.layout.site}: {self.layout.total} units, {int(self.n.sum())} tokens in {self.folds} folds)"


def _new_sums(values: Tensor, folds: int) -> _Sums:
    """Empty sums about the mean of the first rows."""
    shift = values.to(wide(values.device)).mean(0)
    return _Sums(shift, shift.new_zeros(4, folds, len(shift)), shift.new_zeros(folds, len(shift)))


def _fold(folds: Distribution, number: int) -> Distribution:
    def part(values: Floats | None) -> Floats | None:
        return None if values is None else values[number]

    moments = (part(folds.m3), part(folds.m4), part(folds.size))
    return Distribution(folds.n[number], folds.mean[number], folds.m2[number], *moments)


def _over(top: Floats, bottom: Floats, where: NDArray[np.bool_]) -> Floats:
    return np.divide(top, bottom, out=np.zeros_like(top), where=where & (bottom > 0))
