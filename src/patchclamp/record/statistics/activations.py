"""The activations themselves: one row per token and layer, kept on disk and memory-mapped when read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where

# how values are kept: in torch, and as numpy stores them (it knows no bfloat16: their bits)
STORED: dict[str, tuple[torch.dtype, Any]] = {
    "float32": (torch.float32, np.float32),
    "float16": (torch.float16, np.float16),
    "bfloat16": (torch.bfloat16, np.uint16),
}
_SHARD_BYTES = 256 << 20


class StoredRows:
    """Activations of one layer, (n, width), in pieces that stay memory-mapped; read as float32.

    `take(numbers)` and `rows[10:20]` read what they need as float32 tensors; `pieces` gives the stored arrays one by one.
    """

    def __init__(self, pieces: Sequence[tuple[NDArray[Any], NDArray[np.int64] | None]], dtype: str) -> None:
        """pieces: stored arrays and which of their rows count (None: all). dtype: what they are, a key of `STORED`."""
        self.parts = list(pieces)
        self._kind, self.dtype = STORED[dtype][0], np.dtype(STORED[dtype][1])
        lengths = [len(array) if picked is None else len(picked) for array, picked in self.parts]
        self._starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

    @property
    def shape(self) -> tuple[int, int]:
        return int(self._starts[-1]), self.parts[0][0].shape[1]

    @property
    def ndim(self) -> int:
        return 2

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def pieces(self) -> Iterator[NDArray[Any]]:
        for array, picked in self.parts:
            yield array if picked is None else array[picked]

    def take(self, numbers: NDArray[np.int64]) -> Tensor:
        """(len(numbers), width) float32 rows, in the order given."""
        found = np.empty((len(numbers), self.shape[1]), dtype=self.dtype)
        order = np.argsort(numbers, kind="stable")  # reads go forward through the file
        bounds = np.searchsorted(numbers[order], self._starts)
        for place, (array, picked) in enumerate(self.parts):
            mine = order[bounds[place] : bounds[place + 1]]
            inner = numbers[mine] - self._starts[place]
            found[mine] = array[inner if picked is None else picked[inner]]
        return self._tensor(found)

    def __getitem__(self, which: slice) -> Tensor:
        start, stop, step = which.indices(len(self))
        return self.take(np.arange(start, stop, step))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate(list(self.pieces)).astype(dtype or self.dtype, copy=False)

    def _tensor(self, stored: NDArray[Any]) -> Tensor:
        if self._kind is torch.bfloat16:
            return torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16).float()
        return torch.from_numpy(stored).float()


@dataclass
class _Piece:
    """Rows of one shard. picked: which rows of the layers' arrays count, None for all; the rest is of those rows."""

    document: NDArray[np.int64]
    position: NDArray[np.int64]
    priority: NDArray[np.int64]
    layers: dict[int, NDArray[Any]]
    picked: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.document)

    def taken(self, keep: NDArray[np.int64]) -> _Piece:
        picked = keep if self.picked is None else self.picked[keep]
        return _Piece(self.document[keep], self.position[keep], self.priority[keep], self.layers, picked)


@statistics.add("activations")
class RawActivations(Statistic):
    """The activation vectors of tokens, layer by layer.

    rows(layer): `StoredRows` (kept, width). document, position: (kept,) int64, which tokens the rows are, in text order. n:
    tokens that counted, of which `rows` are kept. It takes `dtype` bytes per kept token and unit: choose layers, and rows for
    long texts. Where experts did not see a token, their activations are 0. After merging recordings of one label, the rows
    kept are an even sample too, but not the one that a single recording would have kept.
    """

    name: ClassVar[str] = "activations"

    def __init__(
        self,
        layout: Layout,
        *,
        layers: Sequence[int] | None = None,
        folds: int = 8,
        dtype: str = "float32",
        rows: int | None = None,
    ) -> None:
        """dtype: "float32", "float16" or "bfloat16". rows: most tokens to keep per label, an even sample; None keeps all."""
        super().__init__(layout, layers=layers, folds=folds)
        if dtype not in STORED:
            raise InputError(f"dtype={dtype!r} given; activations are kept as {', '.join(STORED)}")
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
            raise InputError(f"rows={rows!r} given; it is a number of tokens, at least 1")
        self.dtype, self.most = dtype, rows
        self.kept_layers = tuple(layer for layer in self.layers if layout.widths[layer])
        self._pieces = [self._empty()]
        self._before = 0  # tokens of stored shards
        self._held: list[_Piece] = []
        self._where: Where | None = None
        self._priority = np.zeros(0, dtype=np.int64)
        self._buffers: dict[int, Tensor] = {}
        self._largest: dict[torch.device, Tensor] = {}

    @property
    def n(self) -> int:
        """Tokens that counted."""
        return self._before + int(self._tokens.sum())

    @property
    def document(self) -> NDArray[np.int64]:
        return np.concatenate([piece.document for piece in self._pieces])

    @property
    def position(self) -> NDArray[np.int64]:
        return np.concatenate([piece.position for piece in self._pieces])

    def __len__(self) -> int:
        return sum(map(len, self._pieces))

    def rows(self, layer: int) -> StoredRows:
        """The rows of one layer; InputError if it was not recorded."""
        if layer not in self.kept_layers:
            have = ", ".join(map(str, self.kept_layers))
            raise InputError(f"layer {layer} of {self.layout.site} was not recorded; recorded are {have}")
        return StoredRows([(piece.layers[layer], piece.picked) for piece in self._pieces], self.dtype)

    def begin(self, where: Where) -> None:
        super().begin(where)
        self._where = where
        self._priority = _priority(where.document, where.position) if self.most else np.zeros_like(where.document)

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        if self._where is None:
            raise InputError("update came before begin")
        if layer not in self._buffers:
            kind, width = STORED[self.dtype][0], self.layout.widths[layer]
            self._buffers[layer] = torch.zeros(len(self._where), width, dtype=kind, device=values.device)
        buffer, slots = self._buffers[layer], where.rows
        if self.dtype == "float16":
            self._watch(values)
        kept = values.to(buffer.dtype)
        columns = slice(offset, offset + values.shape[1])
        if len(slots) and (np.diff(slots) == 1).all():
            buffer[int(slots[0]) : int(slots[-1]) + 1, columns] = kept
        else:
            buffer[torch.from_numpy(slots).to(buffer.device), columns] = kept

    def end(self) -> None:
        where = self._where
        if where is None:
            return
        layers: dict[int, Any] = {}
        for layer in self.kept_layers:
            buffer = self._buffers.pop(layer, None)
            kind, width = STORED[self.dtype][0], self.layout.widths[layer]
            layers[layer] = torch.zeros(len(where), width, dtype=kind) if buffer is None else buffer.cpu()
        arrays = {layer: _as_stored(values) for layer, values in layers.items()}
        self._held.append(_Piece(where.document, where.position, self._priority, arrays))
        self._where = None
        if self.most and sum(map(len, self._held)) > 2 * self.most:
            self._held = [self._sampled(_gathered(self._held))]

    def close(self, documents: range | None = None) -> None:
        self.end()
        for device, largest in self._largest.items():
            if float(largest) > torch.finfo(torch.float16).max:
                raise InputError(
                    f"an activation of {self.layout.site} reaches {float(largest):.3g} (on {device}), more than float16 "
                    "holds; keep activations as bfloat16 or float32"
                )
        whole = _gathered(self._held) if self._held else self._empty()
        self._held.clear()
        self._pieces = [self._sampled(whole)]

    def merge(self, other: Self) -> Self:
        merged = self._like()
        merged._before = self.n + other.n
        merged._pieces = [piece for piece in (*self._pieces, *other._pieces) if len(piece)] or [self._empty()]
        if self.most and len(merged) > self.most:
            merged._pieces = merged._best()
        return merged

    def shifted(self, documents: int) -> Self:
        moved = self._like()
        moved._before = self.n
        moved._pieces = [replace(piece, document=piece.document + documents) for piece in self._pieces]
        return moved

    def state(self) -> State:
        tokens = {"document": self.document, "position": self.position}
        if self.most:
            tokens["priority"] = np.concatenate([piece.priority for piece in self._pieces])
        rows: dict[str, Any] = {f"layer.{layer}": self.rows(layer) for layer in self.kept_layers}
        if len(self._pieces) == 1:
            rows = {name: next(stored.pieces) for name, stored in rows.items()}
        return {"n": np.array([self.n]), **tokens, **rows}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        document = np.asarray(state["document"])
        priority = np.asarray(state["priority"]) if self.most else np.zeros(len(document), dtype=np.int64)
        position = np.asarray(state["position"])
        self._before = int(np.asarray(state["n"])[0])
        stored = {layer: _split(state[f"layer.{layer}"]) for layer in self.kept_layers}
        self._pieces, start = [], 0
        for place, (first, picked) in enumerate(next(iter(stored.values()), [(document, None)])):
            span = slice(start, start + (len(first) if picked is None else len(picked)))
            arrays = {layer: pieces[place][0] for layer, pieces in stored.items()}
            self._pieces.append(_Piece(document[span], position[span], priority[span], arrays, picked))
            start = span.stop

    @classmethod
    def tokens_per_shard(cls, layout: Layout, layers: Sequence[int], **arguments: Any) -> int | None:
        """As many tokens as fit into 256 MiB, where all are kept."""
        if arguments.get("rows") is not None:
            return None
        size = STORED[arguments.get("dtype", "float32")][0].itemsize
        return max(1024, _SHARD_BYTES // (size * max(1, sum(layout.widths[layer] for layer in layers))))

    def __repr__(self) -> str:
        return f"RawActivations({self.layout.site}: {len(self)} of {self.n} tokens, {self.dtype})"

    def _like(self) -> Self:
        return type(self)(self.layout, layers=self.layers, folds=self.folds, dtype=self.dtype, rows=self.most)

    def _empty(self) -> _Piece:
        none = np.zeros(0, dtype=np.int64)
        kind = STORED[self.dtype][1]
        layers = {layer: np.zeros((0, self.layout.widths[layer]), dtype=kind) for layer in self.kept_layers}
        return _Piece(none, none, none, layers)

    def _watch(self, values: Tensor) -> None:
        """Remember the largest size, on the device: float16 would turn it into an infinity."""
        if not values.numel():
            return
        here = values.abs().amax().float()
        known = self._largest.get(values.device)
        self._largest[values.device] = here if known is None else torch.maximum(known, here)

    def _sampled(self, piece: _Piece) -> _Piece:
        """The rows of a piece that are kept, in text order, copied."""
        order = np.lexsort((piece.position, piece.document))
        if self.most and len(piece) > self.most:
            best = np.lexsort((piece.position, piece.document, piece.priority))[: self.most]
            order = order[np.isin(order, best)]
        found = piece.taken(order)
        arrays = {layer: array[found.picked] for layer, array in piece.layers.items()}
        return replace(found, layers=arrays, picked=None)

    def _best(self) -> list[_Piece]:
        """The pieces with only their rows of the lowest priorities over all of them; nothing is read from disk."""
        priority = np.concatenate([piece.priority for piece in self._pieces])
        best = np.sort(np.lexsort((self.position, self.document, priority))[: self.most])
        starts = np.cumsum([0, *map(len, self._pieces)])
        cuts = np.searchsorted(best, starts)
        pieces = []
        for place, piece in enumerate(self._pieces):
            keep = best[cuts[place] : cuts[place + 1]] - starts[place]
            if len(keep):
                pieces.append(piece.taken(keep))
        return pieces


def _split(rows: Any) -> list[tuple[NDArray[Any], NDArray[np.int64] | None]]:
    """Stored arrays and which of their rows count; an array of a shard is one piece."""
    return rows.parts if isinstance(rows, StoredRows) else [(rows, None)]


def _as_stored(values: Tensor) -> NDArray[Any]:
    if values.dtype is torch.bfloat16:
        return values.view(torch.int16).numpy().view(np.uint16)
    return values.numpy()


def _gathered(pieces: list[_Piece]) -> _Piece:
    """Pieces in one, layer by layer, so that not everything is there twice."""
    document, position, priority = (
        np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("document", "position", "priority")
    )
    layers = {}
    for layer in list(pieces[0].layers):
        layers[layer] = np.concatenate([piece.layers.pop(layer) for piece in pieces])
    return _Piece(document, position, priority, layers)


def _priority(document: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
    """A fixed pseudo-random number of each token (splitmix64 of its place): the lowest ones are an even sample."""
    mixed = document.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + position.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return (mixed >> np.uint64(1)).astype(np.int64)
