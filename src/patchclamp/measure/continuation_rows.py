"""Continuations as rows to run: what several of them share is run once, and every token finds its logits again.

A row is fed the context and all tokens of a continuation but the last, which predicts nothing that is asked for. So the
choices of an item that differ in their last token share a row, and so does a choice that another one begins with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import ModelError
from patchclamp.data.batches import Batch, Tokens, batches
from patchclamp.measure.columns import can_choose
from patchclamp.measure.continuations import Continuation
from patchclamp.measure.likelihood import CHUNK, LOGITS

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of all tokens of all continuations, and the model's own first choice at each.

    log_p: (n_tokens,) float64, nats. best: (n_tokens,) int64. first: (n + 1,) int64, where each continuation starts.
    """

    log_p: NDArray[np.float64]
    best: NDArray[np.int64]
    token: NDArray[np.int64]
    first: NDArray[np.int64]

    @property
    def totals(self) -> NDArray[np.float64]:
        """(n,) float64: log-probability of each continuation given its context, nats."""
        return np.add.reduceat(self.log_p, self.first[:-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens of each continuation."""
        return np.diff(self.first)

    @property
    def matched(self) -> NDArray[np.int64]:
        """(n,) how many tokens of each continuation greedy decoding writes before it writes another one."""
        missed = np.where(self.best == self.token, np.iinfo(np.int64).max, _within(self.first))
        return np.minimum(np.minimum.reduceat(missed, self.first[:-1]), self.lengths)

    def said(self, number: int) -> list[int]:
        """What greedy decoding writes instead of a continuation: ids up to and with the first that differs."""
        start = int(self.first[number])
        return self.best[start : start + int(min(self.matched[number] + 1, self.lengths[number]))].tolist()


@dataclass(eq=False)
class Rows:
    """The rows of a list of continuations and their scores under several runs.

    Token t of a continuation is predicted at column `column` of row `row`; arrays have one entry per scored token,
    continuation after continuation.
    """

    model: LanguageModel
    asked: Sequence[Continuation]
    name: str
    batch_tokens: int = 4096
    found: dict[str, tuple[NDArray[np.float64], NDArray[np.int64]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lengths = [len(one.tokens) for one in self.asked]
        self.first = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.token = np.array([token for one in self.asked for token in one.tokens], dtype=np.int64)
        self.rows, row_of = _shared_rows(self.asked)
        self.row = np.repeat(np.asarray(row_of, dtype=np.int64), lengths)
        self.column = np.repeat([len(one.context) - 1 for one in self.asked], lengths) + _within(self.first)
        self._by_row = np.argsort(self.row, kind="stable")
        self._row_first = np.searchsorted(self.row[self._by_row], np.arange(len(self.rows) + 1))

    @property
    def title(self) -> str:
        return self.name

    def batches(self) -> Iterator[Batch]:
        """The rows in batches on the model's device; what counts (`keep`) are the tokens after the contexts."""
        for batch in batches(self.rows, token_budget=self.batch_tokens, pad_id=self.model.pad_id):
            for part in self._bounded(batch):
                yield part.to(self.model.device)

    def columns(self, part: Batch) -> Tensor:
        """(k,) int64: the columns of a batch whose logits are asked for, ascending."""
        return torch.from_numpy(np.unique(self.column[self._targets(part)])).to(part.input_ids.device)

    def evaluate(self, part: Batch, logits: Tensor) -> Tensor:
        """(n_targets, 2) float64: log-probability and the most likely id, of the tokens asked for, row by row.

        logits: (B, k, vocabulary) of `columns(part)`; log-softmax in float32.
        """
        targets = self._targets(part)
        columns = self.columns(part).cpu().numpy()
        local = np.repeat(np.arange(len(part)), self._counts(part))
        place = local * len(columns) + np.searchsorted(columns, self.column[targets])
        places, back = np.unique(place, return_inverse=True)  # the choices of an item ask for the same first place
        flat = logits.reshape(-1, logits.shape[-1])
        found = torch.empty((len(targets), 2), dtype=torch.float64)
        step = max(1, CHUNK // logits.shape[-1])
        for start in range(0, len(places), step):
            some = flat[torch.from_numpy(places[start : start + step]).to(flat.device)].float()
            inside = np.flatnonzero((back >= start) & (back < start + step))
            which = torch.from_numpy(back[inside] - start).to(flat.device)
            wanted = torch.from_numpy(self.token[targets[inside]]).to(flat.device)
            log_p = some[which, wanted].double() - some.logsumexp(-1).double()[which]
            best = some.argmax(-1)[which].double()
            found[torch.from_numpy(inside)] = torch.stack([log_p, best], 1).cpu()
        return found

    def score(self, part: Batch, budget: Any, forward: Any) -> Tensor:
        """`evaluate` of a forward pass, in parts if the device runs out of memory."""
        return torch.cat(budget.run(lambda some: self.evaluate(some, forward(some)), part))

    def add(self, key: str, part: Batch, values: Tensor) -> None:
        """Keep what `evaluate` gave under a run. ModelError where a probability is not a number."""
        if key not in self.found:
            self.found[key] = (np.full(len(self.token), np.nan), np.zeros(len(self.token), dtype=np.int64))
        log_p, best = self.found[key]
        targets = self._targets(part)
        log_p[targets], best[targets] = values[:, 0].numpy(), values[:, 1].numpy().astype(np.int64)
        bad = targets[~np.isfinite(log_p[targets])]
        if len(bad):
            number = int(np.searchsorted(self.first, bad[0], side="right")) - 1
            raise ModelError(
                f"the log-probability of continuation {number} of {self.name!r} is not finite ({key}); the model gives NaN "
                "or infinite logits there: try dtype float32, or a milder intervention"
            )

    def scores(self, key: str) -> Scores:
        """The scores under one run."""
        log_p, best = self.found[key]
        return Scores(log_p, best, self.token, self.first)

    def _targets(self, part: Batch) -> NDArray[np.int64]:
        """Numbers of the tokens that the rows of a batch predict, row by row."""
        numbers = part.document.cpu().numpy()
        return np.concatenate([self._by_row[self._row_first[n] : self._row_first[n + 1]] for n in numbers])

    def _counts(self, part: Batch) -> NDArray[np.int64]:
        numbers = part.document.cpu().numpy()
        return self._row_first[numbers + 1] - self._row_first[numbers]

    def _bounded(self, batch: Batch) -> Iterator[Batch]:
        """The batch, or parts of it whose logits take no more memory than LOGITS."""
        width = len(self.columns(batch)) if can_choose(self.model) else batch.input_ids.shape[1]
        vocabulary = int(self.model.hf.config.get_text_config().vocab_size)
        if len(batch) > 1 and 4 * len(batch) * width * vocabulary > LOGITS:
            for half in batch.halves():
                yield from self._bounded(half)
        else:
            yield batch


def _shared_rows(asked: Sequence[Continuation]) -> tuple[list[Tokens], list[int]]:
    """The rows to run, and the row of each continuation; contexts of different lengths never share one.

    In sorted order whatever begins with a row's ids follows it at once, so that a look at the next one is enough.
    """
    keys = [(len(one.context), one.context + one.tokens[:-1]) for one in asked]
    ordered = sorted(set(keys))
    longest: dict[tuple[int, tuple[int, ...]], int] = {}
    rows: list[Tokens] = []
    following: tuple[int, tuple[int, ...]] | None = None
    for key in reversed(ordered):
        context, ids = key
        if following is not None and following[0] == context and following[1][: len(ids)] == ids:
            longest[key] = longest[following]
        else:
            keep = [False] * context + [True] * (len(ids) - context)
            longest[key] = len(rows)
            rows.append(Tokens(list(ids), keep, len(rows), 0))
        following = key
    return rows, [longest[key] for key in keys]


def _within(first: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... within each of the runs that start at `first`."""
    return np.arange(first[-1]) - np.repeat(first[:-1], np.diff(first))
