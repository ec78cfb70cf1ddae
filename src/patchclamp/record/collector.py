"""From what flows past the taps to the statistics: which rows count, in blocks that stay in the cache, short calls gathered
first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import Error
from patchclamp.data.batches import Batch
from patchclamp.models.hooks import Seen, Tap
from patchclamp.models.units import Layout
from patchclamp.record.statistics import Statistic, Where

_CACHE_VALUES = 1 << 18  # values of a block on a CPU: 1 MiB in float32, so that all statistics find it in the cache
_DEVICE_VALUES = 1 << 24
_BUFFER_BYTES = 64 << 20
_BUFFER_ROWS = 512
_BUFFER_LEAST = 32


class NotFiniteError(Error):
    """An activation is NaN or infinite; `place` says where, once it is known."""


@dataclass(frozen=True)
class _Block:
    """Rows that are reduced together: of the values given, a slice (no copy) or indices; and which tokens they are."""

    pick: slice | NDArray[np.int64]
    where: Where


class Collector:
    """Feeds the statistics of one shard. `begin(batch)`, then `see` for every tap, then `end()`; at last `finish()`.

    A batch with few tokens is copied into one buffer per tap, which is reduced when it is full: sums over a handful of rows
    cost more in calls than in arithmetic.
    """

    def __init__(
        self,
        layouts: Mapping[str, Layout],
        statistics: Mapping[Tap, Sequence[Statistic]],
        *,
        folds: int,
        careful: bool = False,
    ) -> None:
        """statistics: tap -> the statistics that it feeds. careful: look for NaN after every tap, not after every pass, to
        name the place.
        """
        taps = list(statistics)
        self._statistics = statistics
        self._members = list({id(each): each for fed in statistics.values() for each in fed}.values())
        self._folds = folds
        self._careful = careful
        widths = {(site, layer): layouts[site].widths[layer] for site, layer in taps}
        rows = _BUFFER_BYTES // (4 * max(1, sum(widths.values())))
        sparse = any(layouts[site].experts[layer] for site, layer in taps)
        self._capacity = 0 if sparse or rows < _BUFFER_LEAST else min(rows, _BUFFER_ROWS)
        self._buffers: dict[Tap, Tensor] = {}
        self._waiting: list[Where] = []
        self._held = 0
        self._buffering = False
        self._pass: _Pass | None = None
        self._sums: dict[torch.device, Tensor] = {}
        self.seen: set[Tap] = set()

    def begin(self, batch: Batch) -> None:
        """A forward pass over this batch starts."""
        current = _Pass.of(batch, self._folds)
        self._buffering = 2 * len(current.where) <= self._capacity
        if self._buffering:
            if self._held + len(current.where) > self._capacity:
                self._reduce_held()
        else:
            self._announce(current.where)
        self._pass = current

    def see(self, seen: Seen) -> None:
        """Take in the values of one tap (a callback of `hooks.observe`)."""
        current = self._pass
        if current is None:
            return
        tap = (seen.site, seen.layer)
        if self._buffering:
            self._hold(tap, seen.values, current)
            return
        self.seen.add(tap)
        if seen.rows is None:
            self._reduce(tap, seen.offset, seen.values, current)
        else:
            place = current.places[seen.rows.cpu().numpy()]
            counted = np.flatnonzero(place >= 0)
            if len(counted):
                part = _Pass(
                    current.where.take(place[counted]), None if len(counted) == len(place) else counted, len(place)
                )
                self._reduce(tap, seen.offset, seen.values, part)

    def end(self) -> None:
        """The forward pass is over."""
        if self._pass is None:
            return
        if self._buffering:
            self._waiting.append(self._pass.where)
            self._held += len(self._pass.where)
        else:
            self._conclude()
        self._pass = None

    def finish(self) -> None:
        """Reduce what is still held."""
        self._reduce_held()

    def _hold(self, tap: Tap, values: Tensor, current: _Pass) -> None:
        buffer = self._buffers.get(tap)
        if buffer is None:
            buffer = values.new_empty(self._capacity, values.shape[1])
            self._buffers[tap] = buffer
            self.seen.add(tap)
        room = buffer[self._held : self._held + len(current.where)]
        if current.kept is None:
            room.copy_(values)
        else:
            torch.index_select(values, 0, current.index(values.device), out=room)

    def _reduce_held(self) -> None:
        if not self._held:
            return
        parts = self._waiting
        rows = np.arange(self._held, dtype=np.int64)
        columns = [np.concatenate([getattr(part, name) for part in parts]) for name in ("document", "position", "fold")]
        gathered = _Pass(Where(columns[0], columns[1], columns[2], rows), None, self._held)
        self._announce(gathered.where)
        held, self._waiting, self._held = self._held, [], 0
        for tap, buffer in self._buffers.items():
            self._reduce(tap, 0, buffer[:held], gathered)
        self._conclude()

    def _announce(self, where: Where) -> None:
        for statistic in self._members:
            statistic.begin(where)

    def _conclude(self) -> None:
        for statistic in self._members:
            statistic.end()
        for total in self._sums.values():
            if not math.isfinite(total.item()):
                raise NotFiniteError("an activation is NaN or infinite")

    def _reduce(self, tap: Tap, offset: int, values: Tensor, current: _Pass) -> None:
        members = self._statistics[tap]
        device = values.device
        limit = _CACHE_VALUES if device.type == "cpu" else _DEVICE_VALUES
        if device not in self._sums:
            self._sums[device] = torch.zeros((), device=device)
        total = self._sums[device]
        for block in current.blocks(max(8, limit // values.shape[1])):
            if isinstance(block.pick, slice):
                part = values[block.pick]
            else:
                part = values.index_select(0, torch.from_numpy(block.pick).to(device))
            if part.dtype not in (torch.float32, torch.float64):
                part = part.float()
            total += part.sum(dtype=torch.float32)  # NaN and infinity stay in the sum; this first read fills the cache
            for statistic in members:
                statistic.update(part, tap[1], offset, block.where)
            if self._careful:
                _find_not_finite(part, tap, offset, block.where)


class _Pass:
    """The tokens of one batch that count: where they are, and how to cut them into blocks."""

    def __init__(self, where: Where, kept: NDArray[np.int64] | None, positions: int) -> None:
        """kept: rows of the values that count, None for all; positions: rows that the values have."""
        self.where = where
        self.kept = kept
        self._positions = positions
        self._blocks: dict[int, list[_Block]] = {}
        self._index: dict[torch.device, Tensor] = {}
        self._places: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, batch: Batch, folds: int) -> _Pass:
        keep = batch.keep.numpy().reshape(-1)
        length = batch.keep.shape[1]
        kept = np.flatnonzero(keep)
        row, column = np.divmod(kept, length)
        document = batch.document.numpy()[row]
        where = Where(document, batch.start.numpy()[row] + column, document % folds, np.arange(len(kept)))
        return cls(where, None if len(kept) == len(keep) else kept, len(keep))

    @property
    def places(self) -> NDArray[np.int64]:
        """For each position of the batch its place among the tokens that count, -1 if it doesn't."""
        if self._places is None:
            self._places = np.full(self._positions, -1, dtype=np.int64)
            self._places[slice(None) if self.kept is None else self.kept] = np.arange(len(self.where))
        return self._places

    def index(self, device: torch.device) -> Tensor:
        """The rows that count, as a tensor on a device."""
        if device not in self._index:
            kept = np.arange(len(self.where)) if self.kept is None else self.kept
            self._index[device] = torch.from_numpy(kept).to(device)
        return self._index[device]

    def blocks(self, rows: int) -> list[_Block]:
        """Blocks of at most `rows` rows; neighbours in memory are cut out as slices where their runs are long enough."""
        if rows not in self._blocks:
            self._blocks[rows] = [self._block(start, stop) for start, stop in self._cuts(rows)]
        return self._blocks[rows]

    def _cuts(self, rows: int) -> list[tuple[int, int]]:
        count = len(self.where)
        edges = [0, count]
        if self.kept is not None:
            breaks = np.flatnonzero(np.diff(self.kept) != 1) + 1
            if (len(breaks) + 1) * rows <= 2 * count:
                edges = [0, *breaks.tolist(), count]
        cuts = []
        for start, stop in itertools.pairwise(edges):
            parts = max(1, math.ceil((stop - start) / rows))
            bounds = np.linspace(start, stop, parts + 1).round().astype(int).tolist()
            cuts += list(itertools.pairwise(bounds))
        return [(start, stop) for start, stop in cuts if stop > start]

    def _block(self, start: int, stop: int) -> _Block:
        where = self.where.take(slice(start, stop))
        if self.kept is None:
            return _Block(slice(start, stop), where)
        kept = self.kept[start:stop]
        if kept[-1] - kept[0] == stop - start - 1:
            return _Block(slice(int(kept[0]), int(kept[-1]) + 1), where)
        return _Block(kept, where)


def _find_not_finite(values: Tensor, tap: Tap, offset: int, where: Where) -> None:
    bad = torch.nonzero(~torch.isfinite(values))
    if len(bad):
        row, column = bad[0].tolist()
        raise NotFiniteError(
            f"{float(values[row, column])} at site {tap[0]}, layer {tap[1]}, unit {offset + column}, "
            f"document {where.document[row]}, token {where.position[row]}"
        )
