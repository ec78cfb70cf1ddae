"""Counting and choosing core neurons of each sequence of a batch while its prompt is read (Wang et al. 2024, Eqs. 1-3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchclamp.record.statistics.core import token_core


class Counts:
    """One layer's counts for each text of a batch: in how many token cores a neuron was, and its summed activation there.

    counts, mass: (texts, width) float64 (float32 where a device has none). Additive over parts of a text.
    """

    def __init__(self, texts: int, width: int, device: torch.device) -> None:
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.counts = torch.zeros(texts, width, dtype=wide, device=device)
        self.mass = torch.zeros(texts, width, dtype=wide, device=device)

    def add(self, text: int, values: Tensor, *, token_share: float, by: str, shared_k: bool) -> None:
        """Count the tokens of one text. values: (tokens, width) what enters the down projection."""
        if not len(values):
            return
        ranked = values.abs() if by == "abs" else values
        core = token_core(ranked, token_share, shared_k=shared_k)
        self.counts[text] += core.sum(0)
        self.mass[text] += torch.where(core, ranked, 0).sum(0, dtype=self.mass.dtype)

    def chosen(self, texts: Sequence[int]) -> Counts:
        """The counts of some texts, in this order, perhaps repeated."""
        found = Counts(0, self.counts.shape[1], self.counts.device)
        found.counts, found.mass = self.counts[list(texts)], self.mass[list(texts)]
        return found

    def fade(self, keep: float) -> None:
        """Let what was counted so far weigh less."""
        self.counts *= keep
        self.mass *= keep

    def cores(self, size: int) -> list[Tensor]:
        """The core of every text: at most `size` neurons, rising; fewer where fewer were ever in a token's core."""
        return [most_frequent(counts, mass, size) for counts, mass in zip(self.counts, self.mass, strict=True)]


def most_frequent(counts: Tensor, mass: Tensor, size: int) -> Tensor:
    """The `size` neurons with the largest counts, rising int64; equal counts by the larger mass, then by position; none at 0."""
    order = torch.argsort(mass, descending=True, stable=True)
    order = order[torch.argsort(counts[order], descending=True, stable=True)][:size]
    return order[counts[order] > 0].sort().values
