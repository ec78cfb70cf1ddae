"""One value per document and unit: mean, maximum and last activation; kept on disk and memory-mapped when read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout, UnitSet
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where, chosen_positions, wide

POOLS = ("mean", "max", "last")
_SHARD_BYTES = 256 << 20
_GROWTH = 64


class Rows:
    """An array (documents, units) that lies in pieces, memory-mapped where they come from files.

    `rows[3]` and `rows[10:20]` read what they need; `for piece in rows.pieces` streams; `np.asarray(rows)` reads everything.
    """

    def __init__(self, pieces: Sequence[NDArray[Any]]) -> None:
        self.pieces = list(pieces)

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(len(piece) for piece in self.pieces), *self.pieces[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for piece in self.pieces:
            yield from piece

    def __getitem__(self, which: int | slice) -> NDArray[Any]:
        if isinstance(which, slice):
            start, stop, step = which.indices(len(self))
            found = [piece[max(start - at, 0) : max(stop - at, 0)] for at, piece in self._placed()]
            return np.concatenate(found)[:: max(step, 1)]
        wanted = which + len(self) if which < 0 else which
        for at, piece in self._placed():
            if 0 <= wanted - at < len(piece):
                return np.asarray(piece[wanted - at])
        raise IndexError(f"document {which} asked for, but there are {len(self)}")

    def _placed(self) -> Iterator[tuple[int, NDArray[Any]]]:
        at = 0
        for piece in self.pieces:
            yield at, piece
            at += len(piece)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate(self.pieces).astype(dtype or self.pieces[0].dtype, copy=False)


@statistics.add("pooled")
class Pooled(Statistic):
    """Mean, maximum and last activation of each unit in each document.

    mean, max, last: `Rows` of shape (documents, m) float32, NaN for a document without tokens that count. n: (documents,) int64
    tokens. units: (m,) int64 flat positions. It takes 12 bytes per document and unit: choose units for a large model.
    """

    name: ClassVar[str] = "pooled"

    def __init__(
        self,
        layout: Layout,
        *,
        layers: Sequence[int] | None = None,
        folds: int = 8,
        units: UnitSet | Sequence[str] | None = None,
    ) -> None:
        """units: a unit set or names; by default all units of the site."""
        super().__init__(layout, layers=layers, folds=folds)
        self.units = chosen_positions(layout, units)
        self._every = units is None
        empty = np.zeros((0, len(self.units)), dtype=np.float32)
        self.mean, self.max, self.last = Rows([empty]), Rows([empty]), Rows([empty])
        self.n: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._counts: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._slabs: dict[tuple[int, int], _Slab] = {}

    def begin(self, where: Where) -> None:
        super().begin(where)
        for document, start, stop in where.document_runs:
            self._counts[document] = self._counts.get(document, 0) + stop - start
            end = int(where.position[start:stop].max())
            self._ends[document] = max(self._ends.get(document, end), end)

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        span = self._flat(layer, offset, values.shape[1])
        first, last = (int(place) for place in np.searchsorted(self.units, (span.start, span.stop)))
        if first == last:
            return
        if not self._every:
            values = values[:, torch.from_numpy(self.units[first:last] - span.start).to(values.device)]
        if (layer, offset) not in self._slabs:
            self._slabs[layer, offset] = _Slab(slice(first, last), values)
        self._slabs[layer, offset].add(values, where)

    def close(self, documents: range | None = None) -> None:
        numbers = list(documents) if documents is not None else sorted(self._counts)
        missing = set(self._counts) - set(numbers)
        if missing:
            raise InputError(
                f"tokens of the documents {sorted(missing)[:3]} were pooled, which the shard does not cover"
            )
        place = {document: row for row, document in enumerate(numbers)}
        self.n = np.array([self._counts.get(document, 0) for document in numbers], dtype=np.int64)
        pooled = {name: np.zeros((len(numbers), len(self.units)), dtype=np.float32) for name in POOLS}
        for slab in self._slabs.values():
            slab.write(pooled, place, self.n, self._ends)
        for values in pooled.values():
            values[self.n == 0] = np.nan
            values[:, ~self.recorded[self.units]] = np.nan
        self.mean, self.max, self.last = (Rows([pooled[name]]) for name in POOLS)
        self._slabs.clear()

    def merge(self, other: Self) -> Self:
        names = None if self._every else self.layout.names(self.units)
        merged = type(self)(self.layout, layers=self.layers, folds=self.folds, units=names)
        merged.mean = Rows(self.mean.pieces + other.mean.pieces)
        merged.max = Rows(self.max.pieces + other.max.pieces)
        merged.last = Rows(self.last.pieces + other.last.pieces)
        merged.n = np.concatenate([self.n, other.n])
        return merged

    def state(self) -> State:
        pooled = {name: np.asarray(getattr(self, name)) for name in POOLS}
        return {**pooled, "n": self.n, "units": self.units}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        self.mean, self.max, self.last = (Rows([state[name]]) for name in POOLS)
        self.n, self.units = np.asarray(state["n"]), np.asarray(state["units"])

    @classmethod
    def documents_per_shard(cls, layout: Layout, **arguments: Any) -> int | None:
        """As many documents as fit into 256 MiB at 16 bytes per unit."""
        return max(1, _SHARD_BYTES // (16 * max(1, len(chosen_positions(layout, arguments.get("units"))))))

    def __repr__(self) -> str:
        return f"Pooled({self.layout.site}: {len(self.n)} documents, {len(self.units)} units)"


class _Slab:
    """Running values of a layer's chosen units, one row per document; rows are added as documents appear."""

    def __init__(self, columns: slice, values: Tensor) -> None:
        self.columns = columns
        self.rows: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self.ends: dict[int, int] = {}
        width, device = values.shape[1], values.device
        self.total = torch.zeros(0, width, dtype=wide(device), device=device)
        self.high = torch.zeros(0, width, dtype=values.dtype, device=device)
        self.last = torch.zeros(0, width, dtype=values.dtype, device=device)

    def add(self, values: Tensor, where: Where) -> None:
        for document, start, stop in where.document_runs:
            row = self._row(document)
            block = values[start:stop]
            self.total[row] += block.sum(0, dtype=self.total.dtype)
            torch.maximum(self.high[row], block.amax(0), out=self.high[row])
            self.seen[document] = self.seen.get(document, 0) + stop - start
            ends = where.position[start:stop]
            latest = int(ends.argmax())
            if document not in self.ends or ends[latest] > self.ends[document]:
                self.ends[document] = int(ends[latest])
                self.last[row] = block[latest]

    def _row(self, document: int) -> int:
        if document not in self.rows:
            self.rows[document] = len(self.rows)
            if len(self.rows) > len(self.total):
                more = max(_GROWTH, len(self.total))
                self.total = _grown(self.total, more, 0.0)
                self.high = _grown(self.high, more, -torch.inf)
                self.last = _grown(self.last, more, 0.0)
        return self.rows[document]

    def write(
        self, pooled: dict[str, NDArray[np.float32]], place: dict[int, int], n: NDArray[np.int64], ends: dict[int, int]
    ) -> None:
        """Put mean, maximum and last into the shard's arrays; tokens that an expert did not see count as 0."""
        at = np.array([place[document] for document in self.rows], dtype=np.int64)
        total, high, last = (
            values[: len(at)].to("cpu").double().numpy() for values in (self.total, self.high, self.last)
        )
        unseen = np.array([self.seen[document] < n[place[document]] for document in self.rows])
        early = np.array([self.ends[document] < ends[document] for document in self.rows])
        pooled["mean"][at, self.columns] = total / n[at][:, None]
        pooled["max"][at, self.columns] = np.where(unseen[:, None], np.maximum(high, 0), high)
        pooled["last"][at, self.columns] = np.where(early[:, None], 0, last)


def _grown(values: Tensor, more: int, fill: float) -> Tensor:
    return torch.cat([values, values.new_full((more, values.shape[1]), fill)])
