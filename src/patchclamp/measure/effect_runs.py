"""Scoring under many interventions in one pass: plain, each change, each of its controls, batch by batch.

Where a change and its controls touch blocks >= k only, the blocks below k run once per batch for all of them.
Only one batch's residual stream is held, whatever the size of the corpus.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from patchclamp.core.progress import progress
from patchclamp.data.batches import Batch, Budget
from patchclamp.data.corpora import Corpus
from patchclamp.intervene.kinds import Interventions, Prepared
from patchclamp.measure.columns import Columns
from patchclamp.measure.likelihood import Documents, Reading, score
from patchclamp.models.fast_passes import fast_passes
from patchclamp.models.hooks import changed_layers, prompt_scope
from patchclamp.models.prefix import Prefix

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

PLAIN = "plain"


@dataclass
class Run:
    """One way to run the model. key: name of its sums; block: first block whose computation it can change."""

    key: str
    prepared: Prepared
    block: int


def runs_of(model: LanguageModel, name: str, changes: Sequence[Interventions], *, first: int = 0) -> list[Run]:
    """A run for each change: the change itself is number 0, its controls are 1, 2, ...; first: number of the first one."""
    blocks = [block for change in changes if (block := change.lowest_block()) is not None]
    block = min(
        min(blocks, default=0), model.anatomy.n_layers - 1
    )  # what enters the LM head counts as the last block's
    return [
        Run(run_key(name, number), Prepared(change.items, model), block) for number, change in enumerate(changes, first)
    ]


def run_key(name: str, number: int) -> str:
    """Key of the sums of a change (number 0) or of its control (1, 2, ...)."""
    return f"{number}#{name}"


def run_number(key: str) -> int:
    """The number in such a key."""
    return int(key.partition("#")[0])


class Work(Protocol):
    """What is asked of every batch under every run: text (`TextWork`) or a task's continuations (`Rows`)."""

    @property
    def title(self) -> str: ...
    def batches(self) -> Iterator[Batch]: ...
    def columns(self, part: Batch) -> Tensor | None:
        """Columns whose logits are needed; None for all."""

    def score(self, part: Batch, budget: Budget, forward: Callable[[Batch], Tensor]) -> Tensor: ...
    def add(self, key: str, part: Batch, values: Tensor) -> None: ...


def over_runs(
    model: LanguageModel, work: Work, runs: list[Run], *, budget: Budget, scope: str, reuse: bool, quiet: bool
) -> None:
    """Do the work plain (key PLAIN: under the caller's own clamps) and under every run; one pass over its batches.

    reuse: compute the blocks below a group's first block once per batch. scope: "all", or the scope of the runs, for
    which what is selected counts as generated.
    """
    ceiling = min(changed_layers(model), default=model.anatomy.n_layers)  # the caller's own clamps reach up from here
    groups: dict[int, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.block if reuse and run.block <= ceiling else 0, []).append(run)
    with fast_passes(model), progress(work.title, unit="tokens x runs", quiet=quiet) as advance:
        for batch in work.batches():
            tokens = float(batch.attention_mask.sum())
            for part in fitting(batch, budget):
                work.add(PLAIN, part, work.score(part, budget, _Forward(model, work, scope)))
            advance(tokens)
            for block, members in sorted(groups.items()):
                for part in fitting(batch, budget):
                    forward = _Forward(model, work, scope, block if len(members) > 1 else 0)
                    for run in members:
                        with run.prepared.applied():
                            work.add(run.key, part, work.score(part, budget, forward))
                advance(tokens * len(members))


@dataclass
class TextWork:
    """Sums of negative log-likelihood per document of one label."""

    model: LanguageModel
    on: Corpus
    label: str
    reading: Reading
    scored: Documents

    @property
    def title(self) -> str:
        return f"effects on {self.label}"

    def batches(self) -> Iterator[Batch]:
        return self.reading.batches(self.model, self.on, self.label)

    def columns(self, part: Batch) -> Tensor | None:
        return None

    def score(self, part: Batch, budget: Budget, forward: Callable[[Batch], Tensor]) -> Tensor:
        return score(self.model, part, budget, forward)

    def add(self, key: str, part: Batch, values: Tensor) -> None:
        self.scored.add(key, part.document, values)
        if key == PLAIN:
            self.scored.count(part)


def score_runs(
    model: LanguageModel,
    on: Corpus,
    text: str,
    reading: Reading,
    runs: list[Run],
    *,
    scope: str,
    reuse: bool,
    quiet: bool,
) -> Documents:
    """Sums per document of one label, plain (key PLAIN) and under every run; one pass over the text."""
    work = TextWork(model, on, text, reading, Documents(text))
    over_runs(model, work, runs, budget=Budget(reading.batch_tokens), scope=scope, reuse=reuse, quiet=quiet)
    work.scored.check()
    return work.scored


def fitting(batch: Batch, budget: Budget) -> Iterator[Batch]:
    """The batch, or parts of it of at most the budget's positions (at least one sequence each)."""
    if len(batch) > 1 and batch.input_ids.numel() > budget.tokens:
        for half in batch.halves():
            yield from fitting(half, budget)
    else:
        yield batch


class _Forward:
    """Logits of a batch; blocks below `block` are computed on the first call and kept for the next ones."""

    def __init__(self, model: LanguageModel, work: Work, scope: str, block: int = 0) -> None:
        self.model, self.work, self.scope, self.block = model, work, scope, block
        self._kept: tuple[Batch, Prefix] | None = None

    def __call__(self, batch: Batch) -> Tensor:
        columns = self.work.columns(batch)
        model: Any = self.model if columns is None else Columns(self.model, columns)
        with _scoped(self.model, batch, self.scope):
            if not self.block:
                logits: Tensor = model.logits(batch.input_ids, batch.attention_mask)
                return logits
            if self._kept is None or self._kept[0] is not batch:
                self._kept = None  # frees the residual stream of a batch that did not fit
                self._kept = (batch, Prefix(model, self.block, batch.input_ids, batch.attention_mask))
            return self._kept[1].logits()


def _scoped(model: LanguageModel, batch: Batch, scope: str) -> contextlib.AbstractContextManager[None]:
    """Where the scope is not "all": the first selected token of a row begins what counts as generated."""
    if scope == "all":
        return contextlib.nullcontext()
    return prompt_scope(model, prompt_lengths(batch))


def prompt_lengths(batch: Batch) -> Tensor:
    """(B,) int64: tokens before the first selected one, padding not counted; all tokens where none is selected."""
    real, keep = batch.attention_mask.bool(), batch.keep.bool()
    before = real & (torch.cumsum(keep.long(), 1) == 0)
    return before.sum(1)
