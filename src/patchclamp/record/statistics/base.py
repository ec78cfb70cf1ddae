"""What every statistic is: fed with blocks of activations, closed at the end of a shard, merged in shard order, stored as
arrays.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout, Unit, UnitSet

State = dict[str, NDArray[Any]]
_FEW_RUNS = 4


@dataclass(eq=False)
class Where:
    """Which tokens the rows of a block of activations are.

    document, position, fold: (n,) int64 on the CPU: number of the document within its label, position of the token in it, and
    the document's fold. rows: (n,) int64, place of each row within the pass that `Statistic.begin` announced.
    """

    document: NDArray[np.int64]
    position: NDArray[np.int64]
    fold: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.document)

    def take(self, which: Any) -> Where:
        """The rows at some places (a slice or indices)."""
        return Where(self.document[which], self.position[which], self.fold[which], self.rows[which])

    @functools.cached_property
    def fold_runs(self) -> list[tuple[int, int, int]] | None:
        """(fold, start, stop) of runs of rows of one fold; None if there are so many that a matrix product is faster."""
        runs = _runs(self.fold)
        return runs if len(runs) <= _FEW_RUNS else None

    @functools.cached_property
    def document_runs(self) -> list[tuple[int, int, int]]:
        """(document, start, stop) of runs of rows of one document."""
        return _runs(self.document)

    def one_hot(self, folds: int, device: torch.device) -> Tensor:
        """(folds, n) float32: 1 where a row belongs to a fold."""
        key = ("one_hot", folds, device)
        if key not in self._kept:
            matrix = torch.zeros(folds, len(self))
            matrix[torch.from_numpy(self.fold), torch.arange(len(self))] = 1
            self._kept[key] = matrix.to(device)
        return self._kept[key]

    def on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(document, position) as int64 tensors on a device."""
        key = ("on", device)
        if key not in self._kept:
            self._kept[key] = torch.from_numpy(np.stack([self.document, self.position])).to(device)
        return self._kept[key][0], self._kept[key][1]

    @functools.cached_property
    def _kept(self) -> dict[Any, Tensor]:
        return {}


def _runs(values: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    return [(int(values[a]), a, b) for a, b in itertools.pairwise(edges) if b > a]


class Statistic:
    """Base of all statistics of one site and one label.

    Life: `begin(where)` announces the tokens of a pass; `update(values, layer, offset, where)` brings blocks of their
    activations, layer by layer; `end()` closes the pass. `close(documents)` ends a shard. `a.merge(b)` (b later in the text)
    equals one pass over both. `state()` and `from_state` go to arrays and back. Experts that a token was not routed to have the
    activation 0 there.
    """

    name: ClassVar[str] = ""

    def __init__(self, layout: Layout, *, layers: Sequence[int] | None = None, folds: int = 8) -> None:
        """layout: units of the site. layers: those recorded (default: all). folds: document d belongs to fold d % folds."""
        self.layout = layout
        self.layers = tuple(range(layout.n_layers)) if layers is None else tuple(layers)
        self.folds = folds
        self._tokens = np.zeros(folds, dtype=np.int64)
        self._routed: dict[tuple[int, int], NDArray[np.int64]] = {}
        self._scratch: dict[Any, Tensor] = {}

    def begin(self, where: Where) -> None:
        """A pass over these tokens starts."""
        self._tokens += np.bincount(where.fold, minlength=self.folds)

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        """Take in a block. values: (n, width) float32 or float64 of the units offset .. offset + width - 1 of a layer; not to
        be written.
        """
        raise TypeError(f"{type(self).__name__} must define update")

    def end(self) -> None:
        """The pass is over: all layers have been seen."""

    def close(self, documents: range | None = None) -> None:
        """The shard is over. documents: numbers of the documents it covered, those without tokens included."""

    def merge(self, other: Self) -> Self:
        """The statistic over this text followed by the other's."""
        raise TypeError(f"{type(self).__name__} must define merge")

    def state(self) -> State:
        """Arrays that hold everything; call `close` first."""
        raise TypeError(f"{type(self).__name__} must define state")

    @classmethod
    def from_state(cls, layout: Layout, state: Mapping[str, NDArray[Any]], **arguments: Any) -> Self:
        """The statistic of stored arrays; arguments are those of the constructor."""
        found = cls(layout, **arguments)
        found.restore(state)
        return found

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take stored arrays over; by default each becomes the attribute of its name."""
        for key, value in state.items():
            setattr(self, key, value)

    def shifted(self, documents: int) -> Self:
        """The same statistic with document numbers raised, to be merged after a text of so many documents."""
        return self

    @classmethod
    def documents_per_shard(cls, layout: Layout, **arguments: Any) -> int | None:
        """At most so many documents in a shard, for a statistic that keeps something per document."""
        return None

    @classmethod
    def tokens_per_shard(cls, layout: Layout, layers: Sequence[int], **arguments: Any) -> int | None:
        """At most so many tokens in a shard by default, for a statistic that keeps something per token."""
        return None

    @property
    def recorded(self) -> NDArray[np.bool_]:
        """(total,) which units were recorded."""
        mask = np.zeros(self.layout.total, dtype=bool)
        for layer in self.layers:
            mask[self.layout.slice(layer)] = True
        return mask

    def _flat(self, layer: int, offset: int, width: int) -> slice:
        start = self.layout.offsets[layer] + offset
        return slice(start, start + width)

    def _route(self, layer: int, offset: int, where: Where) -> None:
        """Remember which tokens an expert saw; nothing to do for a dense layer."""
        if self.layout.experts[layer]:
            seen = self._routed.setdefault((layer, offset), np.zeros(self.folds, dtype=np.int64))
            seen += np.bincount(where.fold, minlength=self.folds)

    def _unrouted(self) -> Iterator[tuple[slice, NDArray[np.int64]]]:
        """Flat positions of each recorded expert, and per fold the tokens that it did not see."""
        for layer in self.layers:
            experts = self.layout.experts[layer]
            width = self.layout.widths[layer] // max(experts, 1)
            for expert in range(experts):
                seen = self._routed.get((layer, expert * width))
                yield self._flat(layer, expert * width, width), self._tokens - (0 if seen is None else seen)

    def _buffer(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """A reused uninitialised tensor of the shape of `like`: fresh memory would cost more than the sums."""
        rows, width = like.shape
        key = (like.device, dtype, width)
        held = self._scratch.get(key)
        if held is None or held.shape[0] < rows:
            held = self._scratch[key] = torch.empty(rows, width, dtype=dtype, device=like.device)
        return held[:rows]

    def _ones(self, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        key = (device, dtype, "ones")
        held = self._scratch.get(key)
        if held is None or held.shape[0] < n:
            held = self._scratch[key] = torch.ones(n, dtype=dtype, device=device)
        return held[:n]


def wide(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device that has none (Apple's)."""
    return torch.float32 if device.type == "mps" else torch.float64


def chosen_positions(layout: Layout, units: UnitSet | Sequence[str] | None) -> NDArray[np.int64]:
    """Sorted flat positions of the units of this site; all units for None. InputError if none belongs to the site."""
    if units is None:
        return np.arange(layout.total)
    if isinstance(units, UnitSet):
        units = units.names()
    parsed = [Unit.parse(name) for name in units]
    found = sorted({layout.position(unit) for unit in parsed if unit.site == layout.site})
    if not found:
        raise InputError(f"none of the {len(parsed)} chosen units belongs to site {layout.site}")
    return np.array(found, dtype=np.int64)
