"""Negative log-likelihood of the tokens that count, summed per document: what perplexity and effects are made of.

A token is scored where it counts (selected, no padding, no special token unless asked) and has a predecessor in its
piece: the first token of a piece has no prediction, so the first token of a document is scored only after a BOS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from patchclamp.core.errors import InputError, ModelError
from patchclamp.data.batches import PIECE, Batch, Budget, Selection, Tokens, batches, encode
from patchclamp.data.corpora import Corpus

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

RUN = 2**18  # tokens held and sorted by length at once
LOGITS = 2**28  # bytes of float32 logits that one batch may give: (batch tokens) x vocabulary x 4
CHUNK = 2**22  # logits turned into log-probabilities at once


@dataclass
class Documents:
    """Sums per document of one label while they grow.

    totals: run name -> (n_documents,) float64, summed negative log-likelihood in nats. tokens: (n_documents,) int64.
    """

    label: str
    tokens: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    totals: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def add(self, name: str, document: Tensor, sums: Tensor) -> None:
        """Add a batch's sums, (B,) float64, of one run. Raises ModelError naming a document whose sum is not finite."""
        where, values = document.cpu().numpy(), sums.cpu().numpy()
        bad = where[~np.isfinite(values)]
        if len(bad):
            raise ModelError(
                f"the loss of {self.label!r}, document {int(bad[0])}, is not finite ({name}); the model gives NaN or infinite "
                "logits there: try dtype float32, or a milder intervention"
            )
        self._grow(int(where.max()) + 1)
        known = self.totals.setdefault(name, np.zeros(len(self.tokens)))
        np.add.at(known, where, values)

    def count(self, batch: Batch) -> None:
        """Count the scored tokens of a batch."""
        where = batch.document.cpu().numpy()
        self._grow(int(where.max()) + 1)
        np.add.at(self.tokens, where, targets(batch).sum(1).cpu().numpy())

    def _grow(self, size: int) -> None:
        if size > len(self.tokens):
            self.tokens = np.pad(self.tokens, (0, size - len(self.tokens)))
        for name, values in self.totals.items():
            if len(values) < len(self.tokens):
                self.totals[name] = np.pad(values, (0, len(self.tokens) - len(values)))

    def check(self) -> None:
        """Raise InputError if no token was scored."""
        if not self.tokens.any():
            raise InputError(
                f"no token of {self.label!r} can be scored: its documents have fewer than 2 tokens each, or none is selected"
            )


@dataclass(frozen=True)
class Reading:
    """How text is cut and batched: tokens per batch, longest piece, which tokens count, padding side."""

    batch_tokens: int = 4096
    max_length: int | None = None
    select: Selection = field(default_factory=Selection)
    side: str = "right"

    def batches(self, model: LanguageModel, text: Corpus, label: str) -> Iterator[Batch]:
        """The batches of one label, on the model's device. A bounded run of pieces is held in memory at a time."""
        pieces = encode(
            model.tokenizer,
            text.documents(label),
            max_length=self.length(model),
            max_tokens=text.max_tokens,
            select=self.select,
        )
        vocabulary = int(model.hf.config.get_text_config().vocab_size)
        budget = max(1, min(self.batch_tokens, LOGITS // (4 * vocabulary)))
        for run in _runs(pieces):
            for batch in batches(run, token_budget=budget, pad_id=model.pad_id, side=self.side):
                yield batch.to(model.device)

    def length(self, model: LanguageModel) -> int:
        """Longest piece in tokens; InputError if the model can't take it."""
        if self.max_length is None:
            return min(model.max_length, PIECE)
        if not 2 <= self.max_length <= model.max_length:
            raise InputError(f"max_length={self.max_length}; this model takes 2 to {model.max_length} tokens at once")
        return self.max_length

    def to_dict(self) -> dict[str, Any]:
        return {
            "batch_tokens": self.batch_tokens,
            "max_length": self.max_length,
            "select": self.select.to_dict(),
        }


def targets(batch: Batch) -> Tensor:
    """(B, S - 1) bool: whether the token at column s + 1 is scored, from the logits at column s."""
    real = batch.attention_mask.bool()
    return batch.keep[:, 1:].bool() & real[:, 1:] & real[:, :-1]


def batch_sums(logits: Tensor, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the scored tokens of each row, (B,) float64, nats; log-softmax in float32.

    logits: (B, S, vocabulary), any dtype. Rows of logits are taken a few at a time: no second copy of all of them.
    """
    chosen = targets(batch)
    row, column = chosen.nonzero(as_tuple=True)
    flat = logits.reshape(-1, logits.shape[-1])
    source = row * logits.shape[1] + column
    wanted = batch.input_ids[row, column + 1].to(logits.device)
    sums = torch.zeros(len(chosen), dtype=torch.float64, device=logits.device)
    step = max(1, CHUNK // logits.shape[-1])
    with torch.inference_mode():
        for start in range(0, len(source), step):
            part = slice(start, start + step)
            losses = F.cross_entropy(flat[source[part].to(logits.device)].float(), wanted[part], reduction="none")
            sums.index_add_(0, row[part].to(logits.device), losses.double())
    return sums


def score(
    model: LanguageModel, batch: Batch, budget: Budget, logits: Callable[[Batch], Tensor] | None = None
) -> Tensor:
    """`batch_sums` of a forward pass, in parts if the device runs out of memory; (B,) float64 on the CPU."""
    forward = logits or (lambda part: model.logits(part.input_ids, part.attention_mask))
    return torch.cat([sums.cpu() for sums in budget.run(lambda part: batch_sums(forward(part), part), batch)])


def _runs(pieces: Iterable[Tokens]) -> Iterator[list[Tokens]]:
    """Consecutive pieces, about RUN tokens at a time."""
    stream = iter(pieces)
    while True:
        run: list[Tokens] = []
        size = 0
        for piece in stream:
            run.append(piece)
            size += len(piece.ids)
            if size >= RUN:
                break
        if not run:
            return
        yield run
