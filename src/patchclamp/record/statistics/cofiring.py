"""How often chosen units fire on the same token: a matrix of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout, UnitSet
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where, chosen_positions

_MOST = 8192


@statistics.add("cofiring")
class Cofiring(Statistic):
    """Counts of tokens on which two units of a chosen set both fire (strictly above a threshold), across layers.

    units: (m,) int64 flat positions, rising. counts: (m, m) int64, symmetric; the diagonal counts each unit's own firing. n: ()
    int64 tokens.
    """

    name: ClassVar[str] = "cofiring"

    def __init__(
        self,
        layout: Layout,
        *,
        layers: Sequence[int] | None = None,
        folds: int = 8,
        units: UnitSet | Sequence[str] | None = None,
        threshold: float = 0.0,
    ) -> None:
        """units: the chosen units (a unit set or names), at most 8192 of this site. threshold: as for firing."""
        super().__init__(layout, layers=layers, folds=folds)
        if units is None and layout.total > _MOST:
            raise InputError(
                f"{layout.site} has {layout.total} units; choose at most {_MOST} for co-firing (units=...)"
            )
        self.units = chosen_positions(layout, units)
        if len(self.units) > _MOST:
            raise InputError(f"{len(self.units)} units chosen for co-firing; at most {_MOST} are possible")
        self.threshold = float(threshold)
        self.counts: NDArray[np.int64] = np.zeros((len(self.units), len(self.units)), dtype=np.int64)
        self.n: NDArray[np.int64] = np.zeros((), dtype=np.int64)
        self._fires: Tensor | None = None
        self._inner: dict[tuple[int, int, int], tuple[Tensor, slice]] = {}

    def begin(self, where: Where) -> None:
        super().begin(where)
        silent = 1.0 if self.threshold < 0 else 0.0  # an expert's units are 0 on tokens that it does not see
        self._fires = torch.full((len(where), len(self.units)), silent)

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        inner, columns = self._columns(layer, offset, values.shape[1])
        if self._fires is None or not len(inner):
            return
        fires = (values[:, inner.to(values.device)] > self.threshold).to("cpu", torch.float32)
        self._fires[torch.from_numpy(where.rows), columns] = fires

    def _columns(self, layer: int, offset: int, width: int) -> tuple[Tensor, slice]:
        """Which units of a slab are chosen, and their columns among the chosen."""
        key = (layer, offset, width)
        if key not in self._inner:
            span = self._flat(layer, offset, width)
            first, last = np.searchsorted(self.units, (span.start, span.stop))
            self._inner[key] = (torch.from_numpy(self.units[first:last] - span.start), slice(int(first), int(last)))
        return self._inner[key]

    def end(self) -> None:
        if self._fires is not None:
            self.counts += (self._fires.t() @ self._fires).to(torch.int64).numpy()
        self._fires = None

    def close(self, documents: range | None = None) -> None:
        self.n = np.asarray(self.n + self._tokens.sum(), dtype=np.int64)
        self._tokens = np.zeros_like(self._tokens)

    def merge(self, other: Self) -> Self:
        merged = type(self)(
            self.layout,
            layers=self.layers,
            folds=self.folds,
            units=self.layout.names(self.units),
            threshold=self.threshold,
        )
        merged.counts, merged.n = self.counts + other.counts, np.asarray(self.n + other.n)
        return merged

    def state(self) -> State:
        return {"units": self.units, "counts": self.counts, "n": self.n}

    def __repr__(self) -> str:
        return f"Cofiring({self.layout.site}: {len(self.units)} units, {int(self.n)} tokens)"
