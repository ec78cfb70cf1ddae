"""Core neurons: how often each unit is among the strongest of a token, and the core set of every document, as bits.

Wang et al. 2024 (CoreInfer, arXiv 2410.18311): the token core of Eq. 1 and the sentence core of Eqs. 2-3. What is made of them
(sets per label, stability, similarity) is in `patchclamp.find.core`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout
from patchclamp.record.statistics import statistics
from patchclamp.record.statistics.base import State, Statistic, Where

RANKED_BY = ("positive", "abs")
_SHARD_BYTES = 256 << 20
_GROWTH = 64

Slab = tuple[int, Tensor, Where]  # offset within the layer, values, which tokens


@statistics.add("core")
class Core(Statistic):
    """Counts of tokens whose core holds a unit, per fold, and the sentence core of every document (and of its beginnings).

    The core of a token are the round(alpha * m) strongest of its m positive units in a layer (at least one where m > 0; equal
    ones by position). The core of a document are, in each layer, the floor(beta * width) units that are in the most token cores,
    none that is in no token core; equal ones by the sum of their activation there, then by position.

    counts: (folds, total) int64. n: (folds,) int64, tokens. mass: (total,) float64, sums of the activation (of its size, for
    by="abs") over the tokens whose core holds the unit. document_n: (documents,) int64, tokens of each document. sets:
    (documents, 1 + prefixes, ceil(total / 8)) uint8, bits of the document's core, then of the cores of its beginnings; read
    them with `document_sets`. In a layer with experts the units of all experts that saw the token compete.
    """

    name: ClassVar[str] = "core"

    def __init__(
        self,
        layout: Layout,
        *,
        layers: Sequence[int] | None = None,
        folds: int = 8,
        alpha: float = 0.4,
        beta: float = 0.2,
        by: str = "positive",
        prefixes: Sequence[int] = (),
    ) -> None:
        """alpha: share of a token's positive units. beta: share of a layer in a document's core (0.2 and 0.4 in the paper).

        by: "positive" ranks positive activations, "abs" all that are not 0, by their size. prefixes: also keep the core of the
        tokens that stand below these positions, rising.
        """
        super().__init__(layout, layers=layers, folds=folds)
        if by not in RANKED_BY:
            raise InputError(f"by={by!r} given; core neurons are ranked by {' or '.join(RANKED_BY)}")
        self.alpha, self.beta = check_share("alpha", alpha), check_share("beta", beta)
        self.by = by
        self.prefixes = tuple(int(length) for length in prefixes)
        if any(length < 1 for length in self.prefixes) or list(self.prefixes) != sorted(set(self.prefixes)):
            raise InputError(f"prefixes={list(prefixes)} given; they are rising numbers of positions, at least 1")
        self.counts: NDArray[np.int64] = np.zeros((folds, layout.total), dtype=np.int64)
        self.n: NDArray[np.int64] = np.zeros(folds, dtype=np.int64)
        self.mass: NDArray[np.float64] = np.zeros(layout.total)
        self.document_n: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self.sets: NDArray[np.uint8] = np.zeros((0, 1 + len(self.prefixes), -(-layout.total // 8)), dtype=np.uint8)
        self._lengths: dict[int, int] = {}
        self._tallies: dict[int, _Tally] = {}
        self._waiting: dict[int, list[Slab]] = {}

    @property
    def frequency(self) -> NDArray[np.float64]:
        """(total,) share of tokens whose core holds the unit; NaN without tokens and for units not recorded."""
        tokens = int(self.n.sum())
        share = self.counts.sum(0) / tokens if tokens else np.full(self.layout.total, np.nan)
        return np.where(self.recorded, share, np.nan)

    def document_sets(self, documents: slice | NDArray[Any] = slice(None), prefix: int = 0) -> NDArray[np.bool_]:
        """(documents, total) bool: the core of each document; prefix: 1 for the shortest beginning, 2 for the next, ..."""
        bits = np.unpackbits(self.sets[documents, prefix], axis=-1, count=self.layout.total)
        return bits.astype(bool)

    def begin(self, where: Where) -> None:
        super().begin(where)
        for document, start, stop in where.document_runs:
            self._lengths[document] = self._lengths.get(document, 0) + stop - start

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        if self.layout.experts[layer]:  # the units of a token's experts compete, so wait until all have been seen
            self._waiting.setdefault(layer, []).append((offset, values.clone(), where))
            return
        self._count(values, layer, where)

    def end(self) -> None:
        for layer, slabs in self._waiting.items():
            values, where = _joined(slabs, self.layout.widths[layer])
            self._count(values, layer, where)
        self._waiting.clear()

    def _count(self, values: Tensor, layer: int, where: Where) -> None:
        ranked = values.abs() if self.by == "abs" else values
        if layer not in self._tallies:
            self._tallies[layer] = _Tally(values.shape[1], self.prefixes, self.folds, values.device)
        self._tallies[layer].add(token_core(ranked, self.alpha), ranked, where)

    def close(self, documents: range | None = None) -> None:
        numbers = list(documents) if documents is not None else sorted(self._lengths)
        missing = set(self._lengths) - set(numbers)
        if missing:
            raise InputError(f"the shard does not cover the documents {sorted(missing)[:3]}, which have tokens")
        place = {document: row for row, document in enumerate(numbers)}
        self.document_n = np.array([self._lengths.get(document, 0) for document in numbers], dtype=np.int64)
        chosen = np.zeros((len(numbers), 1 + len(self.prefixes), self.layout.total), dtype=bool)
        for layer, tally in self._tallies.items():
            where = self.layout.slice(layer)
            self.counts[:, where] += tally.counts.cpu().numpy()
            self.mass[where] += tally.mass.cpu().numpy()
            size = core_size(self.beta, self.layout.widths[layer])
            rows = np.array([place[document] for document in tally.rows], dtype=np.int64)
            for part, (counts, mass) in enumerate(tally.documents()):
                chosen[rows, part, where] = sentence_core(counts, mass, size)
        self.sets = np.packbits(chosen, axis=-1)
        self.n = self.n + self._tokens
        self._tokens = np.zeros_like(self._tokens)
        self._lengths.clear()
        self._tallies.clear()

    def merge(self, other: Self) -> Self:
        merged = type(self)(
            self.layout, layers=self.layers, folds=self.folds, alpha=self.alpha, beta=self.beta, by=self.by,
            prefixes=self.prefixes,
        )  # fmt: skip
        for key in ("counts", "n", "mass"):
            setattr(merged, key, getattr(self, key) + getattr(other, key))
        for key in ("document_n", "sets"):
            setattr(merged, key, np.concatenate([getattr(self, key), getattr(other, key)]))
        return merged

    def state(self) -> State:
        return {key: getattr(self, key) for key in ("counts", "n", "mass", "document_n", "sets")}

    @classmethod
    def documents_per_shard(cls, layout: Layout, **arguments: Any) -> int | None:
        """As many documents as fit into 256 MiB at 12 bytes per unit, document and beginning."""
        parts = 1 + len(arguments.get("prefixes", ()))
        return max(1, _SHARD_BYTES // (12 * max(1, layout.total) * parts))

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        for key, value in state.items():
            setattr(self, key, np.asarray(value))

    def __repr__(self) -> str:
        return (
            f"Core({self.layout.site}: {self.layout.total} units, {int(self.n.sum())} tokens, {len(self.document_n)} documents, "
            f"alpha {self.alpha:g}, beta {self.beta:g})"
        )


def token_core(values: Tensor, alpha: float, *, shared_k: bool = False) -> Tensor:
    """Which units are in the core of each token (Eq. 1): (n, width) bool of values (n, width).

    Of m positive values the round(alpha * m) largest (halves to even, as Python rounds; at least one where m > 0). Equal
    values: the smaller positions. Scaling a token by a positive number changes nothing. shared_k: the inference code's form, one
    size for all tokens given, floor(alpha * mean of m), but never more than a token's positive values.
    """
    positives = (values > 0).sum(1)
    if shared_k:
        mean = float(positives.double().mean()) if len(values) else 0.0
        sizes = torch.full_like(positives, int(alpha * mean))
    else:
        sizes = torch.round(alpha * positives.double()).long()
    return strongest(values, sizes.clamp_(min=1).minimum(positives))


def strongest(values: Tensor, sizes: Tensor) -> Tensor:
    """The `sizes` (n,) largest values of each row of (n, width), as bool; of equal ones the smaller positions."""
    most = int(sizes.max()) if len(sizes) else 0
    if not most:
        return torch.zeros_like(values, dtype=torch.bool)
    top = torch.topk(values, most, dim=1).values
    bar = top.gather(1, (sizes - 1).clamp(min=0)[:, None])
    chosen = values >= bar
    chosen &= (sizes > 0)[:, None]
    crowded = torch.nonzero(chosen.sum(1) > sizes)[:, 0]
    if len(crowded):
        some, limit = values[crowded], bar[crowded]
        above, tied = some > limit, some == limit
        left = sizes[crowded] - above.sum(1)
        chosen[crowded] = above | (tied & (tied.cumsum(1) <= left[:, None]))
    return chosen


def sentence_core(counts: NDArray[Any], mass: NDArray[Any], size: int) -> NDArray[np.bool_]:
    """Which units are the `size` most frequent (Eqs. 2-3): bool of counts (..., width), those with a count of 0 never.

    Equal counts: the larger mass, then the smaller position. mass: (..., width), sums of activation.
    """
    chosen = np.zeros(counts.shape, dtype=bool)
    order = np.lexsort((-mass, -counts), axis=-1)[..., :size]  # stable: what is still equal keeps its position's order
    np.put_along_axis(chosen, order, True, axis=-1)
    return np.asarray(chosen & (counts > 0))


def core_size(beta: float, width: int) -> int:
    """K = floor(beta * width); a beta such as 0.3 that lies a rounding error below its decimal still gives 3 of 10."""
    return int(np.floor(beta * width + 1e-9))


def check_share(name: str, value: float) -> float:
    """A share above 0 and at most 1; InputError otherwise."""
    if not 0 < value <= 1:
        raise InputError(f"{name}={value} given; it is a share, above 0 and at most 1")
    return float(value)


class _Tally:
    """One layer's counts: over all tokens per fold, and per document (and beginning) until the shard is closed."""

    def __init__(self, width: int, prefixes: Sequence[int], folds: int, device: torch.device) -> None:
        self.prefixes = tuple(prefixes)
        self.rows: dict[int, int] = {}
        self.counts = torch.zeros(folds, width, dtype=torch.int64, device=device)
        self.mass = torch.zeros(width, dtype=_wide(device), device=device)
        parts = 1 + len(self.prefixes)
        self._counts = torch.zeros(0, parts, width, dtype=torch.int32, device=device)
        self._mass = torch.zeros(0, parts, width, dtype=_wide(device), device=device)

    def add(self, core: Tensor, values: Tensor, where: Where) -> None:
        """core: (n, width) bool. values: (n, width) what they were ranked by."""
        held = torch.where(core, values, 0).to(self.mass.dtype)
        for document, start, stop in where.document_runs:
            row = self._row(document)
            positions = where.position[start:stop]
            for part, length in enumerate((None, *self.prefixes)):
                if length is None:
                    mine, weight = core[start:stop], held[start:stop]
                else:
                    early = torch.from_numpy(positions < length).to(core.device)
                    if not early.any():
                        continue
                    mine, weight = core[start:stop][early], held[start:stop][early]
                counted, total = mine.sum(0), weight.sum(0)
                self._counts[row, part] += counted.to(torch.int32)
                self._mass[row, part] += total
                if part == 0:
                    self.counts[int(where.fold[start])] += counted
                    self.mass += total

    def documents(self) -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """(counts, mass) of the documents in `rows`, whole and then each beginning."""
        filled = len(self.rows)
        return [
            (self._counts[:filled, part].cpu().numpy(), self._mass[:filled, part].cpu().numpy())
            for part in range(1 + len(self.prefixes))
        ]

    def _row(self, document: int) -> int:
        if document not in self.rows:
            self.rows[document] = len(self.rows)
            if len(self.rows) > len(self._counts):
                more = max(_GROWTH, len(self._counts))
                self._counts, self._mass = (
                    torch.cat([held, held.new_zeros(more, *held.shape[1:])]) for held in (self._counts, self._mass)
                )
        return self.rows[document]


def _joined(slabs: list[Slab], width: int) -> tuple[Tensor, Where]:
    """The slabs of a layer's experts as one block (tokens, width), 0 where a token was not routed."""
    places = np.unique(np.concatenate([where.rows for _, _, where in slabs]))
    first = slabs[0][1]
    values = first.new_zeros(len(places), width)
    columns = {name: np.zeros(len(places), dtype=np.int64) for name in ("document", "position", "fold")}
    for offset, part, where in slabs:
        at = np.searchsorted(places, where.rows)
        values[torch.from_numpy(at).to(first.device), offset : offset + part.shape[1]] = part
        for name, column in columns.items():
            column[at] = getattr(where, name)
    return values, Where(columns["document"], columns["position"], columns["fold"], places)


def _wide(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
