"""How often each unit fires: counts of tokens above a threshold, per fold of documents, and the tokens counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where

SIGNALS = ("gate", "value")
_EXACT = 1 << 23  # float32 counts whole numbers exactly up to twice this


@statistics.add("firing")
class Firing(Statistic):
    """Counts of tokens on which a unit is above a threshold (strictly), per fold of documents.

    A neuron of a gated MLP fires where its gate is open: its activation function's output counts, not the product with
    `up`, whose sign says nothing about firing (Tang et al. 2024, arXiv 2402.16438). signal="value" counts the product.
    In layers without a gate of their own (plain MLPs, fused experts) and at other sites the value itself counts.

    counts: (folds, total) int64. n: (folds,) int64, tokens. Counts are exact, whatever the order of the text.
    """

    name: ClassVar[str] = "firing"

    def __init__(
        self,
        layout: Layout,
        *,
        layers: Sequence[int] | None = None,
        folds: int = 8,
        threshold: float = 0.0,
        signal: str = "gate",
    ) -> None:
        """threshold: a unit fires where its activation is above this. signal: "gate" or "value"."""
        if signal not in SIGNALS:
            raise InputError(f"firing of signal {signal!r} asked for; signals are {', '.join(SIGNALS)}")
        super().__init__(layout, layers=layers, folds=folds)
        self.signal = signal
        self.threshold = float(threshold)
        self.counts: NDArray[np.int64] = np.zeros((folds, layout.total), dtype=np.int64)
        self.n: NDArray[np.int64] = np.zeros(folds, dtype=np.int64)
        self._sums: dict[tuple[int, int], Tensor] = {}
        self._pending = 0

    @property
    def rate(self) -> NDArray[np.float64]:
        """(total,) share of tokens on which each unit fires; NaN without tokens and for units not recorded."""
        tokens = int(self.n.sum())
        rate = self.counts.sum(0) / tokens if tokens else np.full(self.layout.total, np.nan)
        return np.where(self.recorded, rate, np.nan)

    def begin(self, where: Where) -> None:
        super().begin(where)
        self._pending += len(where)
        if self._pending > _EXACT:
            self._flush()
            self._pending = len(where)

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        sums = self._sums.get((layer, offset))
        if sums is None:
            sums = self._sums[layer, offset] = torch.zeros(self.folds, values.shape[1], device=values.device)
        fires = torch.gt(values, self.threshold, out=self._buffer(values, torch.float32))
        runs = where.fold_runs
        if runs is None:
            sums.addmm_(where.one_hot(self.folds, values.device), fires)
        else:
            ones = self._ones(len(fires), torch.float32, values.device)
            # sums over rows as products with a vector of ones: the fastest reduction there is
            for fold, start, stop in runs:
                sums[fold].addmv_(fires[start:stop].t(), ones[: stop - start])
        self._route(layer, offset, where)

    def _flush(self) -> None:
        for (layer, offset), sums in self._sums.items():
            counted = sums.to("cpu", torch.float64).numpy().astype(np.int64)
            self.counts[:, self._flat(layer, offset, sums.shape[1])] += counted
            sums.zero_()

    def close(self, documents: range | None = None) -> None:
        self._flush()
        self._sums.clear()
        self.n = self.n + self._tokens
        if self.threshold < 0:
            for where, missing in self._unrouted():
                self.counts[:, where] += missing[:, None]
        self._tokens = np.zeros_like(self._tokens)
        self._routed.clear()

    def merge(self, other: Self) -> Self:
        merged = type(self)(
            self.layout, layers=self.layers, folds=self.folds, threshold=self.threshold, signal=self.signal
        )
        merged.counts = self.counts + other.counts
        merged.n = self.n + other.n
        return merged

    def state(self) -> State:
        return {"counts": self.counts, "n": self.n}

    def __repr__(self) -> str:
        return f"Firing({self.layout.site}: {self.layout.total} units, {int(self.n.sum())} tokens, threshold {self.threshold:g})"
