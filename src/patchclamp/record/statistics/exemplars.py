"""The tokens that drive each unit most: document, position and value of the k highest activations."""

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

_NONE = -1


@statistics.add("exemplars")
class Exemplars(Statistic):
    """The k highest activations of each unit and the tokens they stand on.

    value: (k, total) float32, falling. document: (k, total) int64, number within the label. position: (k, total) int64, token
    position in the document (see `Tokens.start`). Equal values are ordered by document, then position. Fewer than k tokens
    leave -inf with document -1. Tokens that an expert did not see are no exemplars of it.
    """

    name: ClassVar[str] = "exemplars"

    def __init__(self, layout: Layout, *, layers: Sequence[int] | None = None, folds: int = 8, k: int = 10) -> None:
        """k: how many tokens to keep per unit."""
        if k < 1:
            raise InputError(f"k={k} exemplars asked for; at least 1 is needed")
        super().__init__(layout, layers=layers, folds=folds)
        self.k = k
        self.value: NDArray[np.float32] = np.full((k, layout.total), -np.inf, dtype=np.float32)
        self.document: NDArray[np.int64] = np.full((k, layout.total), _NONE, dtype=np.int64)
        self.position: NDArray[np.int64] = np.full((k, layout.total), _NONE, dtype=np.int64)
        self._best: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def update(self, values: Tensor, layer: int, offset: int, where: Where) -> None:
        values = values.to(torch.float32)
        if (layer, offset) not in self._best:
            shape, device = (self.k, values.shape[1]), values.device
            self._best[layer, offset] = (
                torch.full(shape, -torch.inf, device=device),
                torch.full((2, *shape), _NONE, dtype=torch.int64, device=device),
            )
        best, tokens = self._best[layer, offset]
        hit = torch.nonzero(values.amax(0) >= best[-1]).reshape(-1)  # the other units keep what they have
        if not len(hit):
            return
        document, position = where.on(values.device)
        row = _first_highest(values[:, hit], _reading_order(document, position), self.k)
        value = values[:, hit].gather(0, row)
        token = torch.stack([document[row], position[row]])
        best[:, hit], tokens[:, :, hit] = _highest(
            torch.cat([best[:, hit], value]), torch.cat([tokens[:, :, hit], token], dim=1), self.k
        )

    def close(self, documents: range | None = None) -> None:
        for (layer, offset), (best, tokens) in self._best.items():
            where = self._flat(layer, offset, best.shape[1])
            self.value[:, where] = best.cpu().numpy()
            self.document[:, where], self.position[:, where] = tokens.cpu().numpy()
        self._best.clear()

    def merge(self, other: Self) -> Self:
        merged = type(self)(self.layout, layers=self.layers, folds=self.folds, k=self.k)
        both = np.stack(
            [np.concatenate([getattr(self, name), getattr(other, name)]) for name in ("document", "position")]
        )
        value, token = _highest(
            torch.from_numpy(np.concatenate([self.value, other.value])), torch.from_numpy(both), self.k
        )
        merged.value = value.numpy()
        merged.document, merged.position = token.numpy()
        return merged

    def shifted(self, documents: int) -> Self:
        moved = type(self)(self.layout, layers=self.layers, folds=self.folds, k=self.k)
        moved.value, moved.position = self.value, self.position
        moved.document = np.where(self.document >= 0, self.document + documents, self.document)
        return moved

    def state(self) -> State:
        return {"value": self.value, "document": self.document, "position": self.position}

    def __repr__(self) -> str:
        return f"Exemplars({self.layout.site}: {self.layout.total} units, top {self.k})"


def _reading_order(document: Tensor, position: Tensor) -> Tensor:
    """Rows ordered by document, then position, (n,) int64."""
    order = torch.sort(position, stable=True).indices
    return order[torch.sort(document[order], stable=True).indices]


def _first_highest(values: Tensor, order: Tensor, k: int) -> Tensor:
    """Rows of the k highest values of each column, among equal ones those that come first in `order`; (k, m) int64.

    topk is fast but takes any of equal values; columns where that matters (the next value equals the last one taken, as
    for units that are often exactly 0) are sorted.
    """
    if len(values) <= k:
        return torch.arange(len(values), device=values.device)[:, None].expand(-1, values.shape[1])
    value, row = torch.topk(values, k + 1, dim=0)
    tied = torch.nonzero(value[k - 1] == value[k]).reshape(-1)
    row = row[:k]
    if len(tied):
        ranked = torch.sort(values[order][:, tied], dim=0, descending=True, stable=True).indices[:k]
        row[:, tied] = order[ranked]
    return row


def _highest(values: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest of each column, ties by document then position. values: (n, m); tokens: (2, n, m) -> (k, m), (2, k, m).

    Stable sorts by the least important key first: position, document, value.
    """
    order = torch.sort(tokens[1], dim=0, stable=True).indices
    order = order.gather(0, torch.sort(tokens[0].gather(0, order), dim=0, stable=True).indices)
    ranked = torch.sort(values.gather(0, order), dim=0, descending=True, stable=True).indices[:k]
    order = order.gather(0, ranked)
    return values.gather(0, order), tokens.gather(1, order[None].expand(2, -1, -1))
