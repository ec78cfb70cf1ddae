"""The distribution of each unit in a mergeable sketch of logarithmic buckets, with quantiles of known relative error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where

_LOWEST, _HIGHEST = -14, 14  # powers of two between which magnitudes are told apart
_MANTISSA, _BIAS = 23, 127
_SLAB = 256  # columns that are counted together
_PENDING = 1 << 22  # values whose bins are held before they are counted


@statistics.add("histogram")
class Histogram(Statistic):
    """Counts in logarithmic buckets of both signs: a sketch in the manner of DDSketch (Masson, Rim & Lee 2019), for quantiles.

    Buckets are cut by the exponent and the first `bits` mantissa bits of a float32 (the linear-in-octave mapping), so counting
    is exact and does not depend on the order of the text. counts: (buckets, total) int64, buckets in rising order of value.
    Magnitudes below 2^-14 count as 0, those of 2^14 and more fall into the outermost buckets.
    """

    name: ClassVar[str] = "histogram"

    def __init__(self, layout: Layout, *, layers: Sequence[int] | None = None, folds: int = 8, bits: int = 3) -> None:
        """bits: each octave has 2^bits buckets; the relative error of a quantile is at most 1 / (2^(bits + 1) + 1)."""
        if not 0 <= bits <= 7:
            raise InputError(f"bits={bits} given for the histogram; it must be 0-7 (3 gives quantiles within 6%)")
        super().__init__(layout, layers=layers, folds=folds)
        self.bits = bits
        self._per_sign = (_HIGHEST - _LOWEST) << bits
        self.counts: NDArray[np.int64] = np.zeros((2 * self._per_sign + 1, layout.total), dtype=np.int64)
        self._live: dict[tuple[int, int], Tensor] = {}
        self._into, self._bins = (
            torch.empty(0, 0),
            torch.empty(0, 0, dtype=torch.int32),
        )  # where the rows held will count
        self._held = 0

    @property
    def relative_error(self) -> float:
        """Largest relative error of `quantiles` for values between 2^-14 and 2^14 in magnitude."""
        return 1 / ((2 << self.bits) + 1)

    @property
    def edges(self) -> NDArray[np.float64]:
        """(per_sign + 1,) magnitudes that bound the buckets of one sign, rising; bucket i holds [edges[i], edges[i + 1])."""
        steps = np.arange(self._per_sign + 1)
        octave, inner = np.divmod(steps, 1 << self.bits)
        edges: NDArray[np.float64] = 2.0 ** (_LOWEST + octave) * (1 + inner / (1 << self.bits))
        return edges

    @property
    def values(self) -> NDArray[np.float64]:
        """(buckets,) the value that stands for each bucket: 2ab / (a + b) of its edges, which is never off by more than the
        error.
        """
        low, high = self.edges[:-1], self.edges[1:]
        middle = 2 * low * high / (low + high)
        return np.concatenate([-middle[::-1], [0.0], middle])

    def quantiles(self, q: float | Sequence[float]) -> NDArray[np.float64]:
        """(len(q), total) float64, or (total,) for one q: the value at rank floor(q (n - 1)); NaN without tokens or where not
        recorded.
        """
        wanted = np.atleast_1d(np.asarray(q, dtype=np.float64))
        if ((wanted < 0) | (wanted > 1)).any():
            raise InputError(f"quantiles {q} asked for; they lie between 0 and 1")
        running = np.cumsum(self.counts, axis=0)
        n = running[-1]
        found = np.empty((len(wanted), self.layout.total))
        for row, share in enumerate(wanted):
            rank = np.floor(share * np.maximum(n - 1, 0))
            found[row] = self.values[np.minimum((running <= rank).sum(0), len(running) - 1)]
        found[:, (n == 0) | ~self.recorded] = np.nan
        return found[0] if np.ndim(q) == 0 else found

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        rows, width = values.shape
        key = (layer, offset)
        live = self._live.get(key)
        if live is None:
            shape = (2 * self._per_sign + 1, width)
            live = self._live[key] = torch.zeros(shape, dtype=torch.int64, device=values.device)
        if live is not self._into or self._held + rows > len(self._bins):
            self._count()
            size = max(rows, _PENDING // width)
            self._into, self._bins = live, self._buffer(values[:1].expand(size, width), torch.int32)
        self._bin(values.to(torch.float32).contiguous(), self._bins[self._held : self._held + rows])
        self._held += rows
        self._route(layer, offset, where)

    def _bin(self, values: Tensor, out: Tensor) -> None:
        """Write the bin of each value: its bucket and its column within a slab of `_SLAB` columns."""
        bits = values.view(torch.int32)
        torch.bitwise_and(bits, 0x7FFFFFFF, out=out)
        # magnitudes below the lowest edge become 0
        out.bitwise_right_shift_(_MANTISSA - self.bits).sub_(((_BIAS + _LOWEST) << self.bits) - 1)
        out.clamp_(0, self._per_sign)
        sign = bits >> 31  # -1 or 0; (x ^ sign) - sign is x with that sign
        out.bitwise_xor_(sign).sub_(sign).add_(self._per_sign)
        out.mul_(_SLAB).add_(torch.arange(out.shape[1], dtype=torch.int32, device=out.device) % _SLAB)

    def _count(self) -> None:
        """Count the bins of the rows held, a few columns at a time: their counters then stay in the cache."""
        if not self._held:
            return
        live, bins = self._into, self._bins[: self._held]
        for start in range(0, live.shape[1], _SLAB):
            mine = live[:, start : start + _SLAB]
            counted = torch.bincount(bins[:, start : start + _SLAB].reshape(-1), minlength=len(live) * _SLAB)
            mine += counted.view(len(live), _SLAB)[:, : mine.shape[1]]
        self._held = 0

    def end(self) -> None:
        self._count()

    def close(self, documents: range | None = None) -> None:
        self._count()
        for (layer, offset), live in self._live.items():
            table = live.cpu().numpy()
            self.counts[:, self._flat(layer, offset, table.shape[1])] += table
        for where, missing in self._unrouted():
            self.counts[self._per_sign, where] += int(missing.sum())
        self._live.clear()
        self._into = torch.empty(0, 0)
        self._routed.clear()
        self._tokens = np.zeros_like(self._tokens)

    def merge(self, other: Self) -> Self:
        merged = type(self)(self.layout, layers=self.layers, folds=self.folds, bits=self.bits)
        merged.counts = self.counts + other.counts
        return merged

    def state(self) -> State:
        """Only the buckets in use are stored: counts (used, total) and the number of the first."""
        used = np.flatnonzero(self.counts.any(axis=1))
        first, last = (int(used[0]), int(used[-1])) if len(used) else (self._per_sign, self._per_sign)
        return {"counts": self.counts[first : last + 1], "first": np.asarray(first, dtype=np.int64)}

    def restore(self, state: Mapping[str, NDArray[np.int64]]) -> None:
        first = int(state["first"])
        self.counts[first : first + len(state["counts"])] = state["counts"]

    def __repr__(self) -> str:
        return f"Histogram({self.layout.site}: {self.layout.total} units, relative error {self.relative_error:.1%})"
