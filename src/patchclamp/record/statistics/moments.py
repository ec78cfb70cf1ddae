"""Mean and spread of each unit: n, mean, sum of squared deviations, minimum and maximum, stable where the mean dwarfs the
spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.models.units import Layout
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where, wide


@dataclass
class _Sums:
    """Running sums of one layer, about a shift close to the mean: squares about 0 would cancel where |mean| >> std."""

    shift: Tensor  # (width,) float64
    total: Tensor  # sum of x - shift, float64
    square: Tensor  # sum of (x - shift)^2, float64
    low: Tensor
    high: Tensor


@statistics.add("moments")
class Moments(Statistic):
    """Mean, variance, minimum and maximum of each unit over the tokens that count.

    n: () int64, tokens. mean, m2 (sum of squared deviations from the mean), min, max: (total,) float64; NaN for units that were
    not recorded. Sums run in float64 about a value near each unit's mean; shards merge by Chan, Golub & LeVeque (1983), eq.
    2.1.
    """

    name: ClassVar[str] = "moments"

    def __init__(self, layout: Layout, *, layers: Sequence[int] | None = None, folds: int = 8) -> None:
        super().__init__(layout, layers=layers, folds=folds)
        self.n: NDArray[np.int64] = np.zeros((), dtype=np.int64)
        self.mean, self.m2, self.min, self.max = (np.full(layout.total, np.nan) for _ in range(4))
        self._sums: dict[tuple[int, int], _Sums] = {}

    @property
    def variance(self) -> NDArray[np.float64]:
        """(total,) unbiased variance; 0 for a single token."""
        return self.m2 / max(int(self.n) - 1, 1)

    @property
    def std(self) -> NDArray[np.float64]:
        """(total,) standard deviation."""
        deviation: NDArray[np.float64] = np.sqrt(self.variance)
        return deviation

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        sums = self._sums.get((layer, offset))
        if sums is None:
            sums = self._sums[layer, offset] = _new_sums(values)
        moved = self._buffer(values, sums.shift.dtype)
        moved.copy_(values).sub_(sums.shift)  # faster than one subtraction of mixed types
        ones = self._ones(len(moved), moved.dtype, moved.device)
        sums.total.addmv_(moved.t(), ones)
        sums.square.addmv_(moved.mul_(moved).t(), ones)
        torch.minimum(sums.low, values.amin(0), out=sums.low)
        torch.maximum(sums.high, values.amax(0), out=sums.high)
        self._route(layer, offset, where)

    def close(self, documents: range | None = None) -> None:
        tokens = int(self._tokens.sum())
        if not tokens:
            return
        for (layer, offset), sums in self._sums.items():
            where = self._flat(layer, offset, len(sums.shift))
            seen = self._routed.get((layer, offset))
            n = tokens if seen is None else int(seen.sum())
            shift, total, square, low, high = (
                _array(t) for t in (sums.shift, sums.total, sums.square, sums.low, sums.high)
            )
            self.mean[where] = shift + total / n
            self.m2[where] = np.maximum(square - total * (total / n), 0.0)
            self.min[where], self.max[where] = low, high
        for where, missing in self._unrouted():
            self._add_zeros(where, tokens, int(missing.sum()))
        self.n = np.asarray(tokens, dtype=np.int64)
        self._tokens = np.zeros_like(self._tokens)
        self._routed.clear()
        self._sums.clear()

    def _add_zeros(self, where: slice, tokens: int, zeros: int) -> None:
        """Count the tokens that an expert did not see as activation 0."""
        if not zeros:
            return
        if zeros == tokens:
            for values in (self.mean, self.m2, self.min, self.max):
                values[where] = 0.0
            return
        seen = tokens - zeros
        self.m2[where] += self.mean[where] ** 2 * (seen * zeros / tokens)
        self.mean[where] *= seen / tokens
        self.min[where] = np.minimum(self.min[where], 0.0)
        self.max[where] = np.maximum(self.max[where], 0.0)

    def merge(self, other: Self) -> Self:
        if not int(self.n) or not int(other.n):
            return self if int(self.n) else other
        merged = type(self)(self.layout, layers=self.layers, folds=self.folds)
        n = self.n + other.n
        gap = other.mean - self.mean
        merged.n = np.asarray(n)
        merged.mean = self.mean + gap * (other.n / n)
        merged.m2 = self.m2 + other.m2 + gap * gap * (self.n * (other.n / n))
        merged.min = np.minimum(self.min, other.min)
        merged.max = np.maximum(self.max, other.max)
        return merged

    def state(self) -> State:
        return {"n": self.n, "mean": self.mean, "m2": self.m2, "min": self.min, "max": self.max}

    def __repr__(self) -> str:
        return f"Moments({self.layout.site}: {self.layout.total} units, {int(self.n)} tokens)"


def _new_sums(values: Tensor) -> _Sums:
    """Empty sums about the mean of the first rows."""
    shift = values.to(wide(values.device)).mean(0)
    return _Sums(shift, torch.zeros_like(shift), torch.zeros_like(shift), values[0].clone(), values[0].clone())


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.to("cpu").to(torch.float64).numpy()
