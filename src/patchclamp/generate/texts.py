"""Which rows of a batch continue which prompt, and which of their positions are real tokens of it."""

from __future__ import annotations

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.hooks import Seen, Step

Part = tuple[int, Tensor]


class Texts:
    """The prompts of a batch. rows: the prompt of every row; tokens: of every prompt, so far; columns: where prompts end.

    parts: (row, columns (n,) int64) of every prompt in the pass that is under way.
    """

    def __init__(self, rows: list[int], columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.count = max(rows, default=-1) + 1
        self.tokens = [0] * self.count
        self.parts: list[Part] = []

    @classmethod
    def begun(cls, seen: Seen, *, whole: bool) -> Texts:
        """The texts of a pass on an empty cache. whole: it holds all of the prompts and nothing else, so that rows with equal
        tokens (beams and samples of one prompt) are one text."""
        step = seen.step
        rows = _equal_rows(seen) if whole else list(range(step.batch))
        return cls(rows, step.start + step.seq)

    def leader(self, text: int) -> int:
        """The first row of a text."""
        return self.rows.index(text)

    def of_text(self, text: int) -> list[int]:
        """All rows of a text."""
        return [row for row, one in enumerate(self.rows) if one == text]

    def fit(self, batch: int) -> bool:
        """Whether rows had to be repeated for a batch with several rows (beams) for each one that was read."""
        each, rest = divmod(batch, len(self.rows))
        if rest or not each:
            raise InputError(
                f"the prompts were read as a batch of {len(self.rows)}, but {batch} rows follow; keep a batch together"
            )
        if each > 1:
            self.rows = [text for text in self.rows for _ in range(each)]
        return each > 1

    def split(self) -> list[int] | None:
        """Make every row a text of its own, as the rest of a prompt may differ; the text each was, None if nothing changed."""
        if self.count == len(self.rows):
            return None
        before, self.rows = self.rows, list(range(len(self.rows)))
        self.tokens, self.count = [self.tokens[text] for text in before], len(before)
        return before

    def read(self, step: Step, prompt: Tensor | None) -> None:
        """Note which positions of a pass are tokens of the prompts. prompt: (batch, seq) bool, None for all."""
        real = torch.ones(step.batch, step.seq, dtype=torch.bool) if prompt is None else prompt.cpu()
        if step.attention_mask is not None:
            real = real & step.attention_mask.cpu()
        self.parts = [(row, real[row].nonzero()[:, 0]) for row in map(self.leader, range(self.count))]
        self.tokens = [before + len(columns) for before, (_, columns) in zip(self.tokens, self.parts, strict=True)]


def _equal_rows(seen: Seen) -> list[int]:
    """The text of every row: rows with the same values and padding as the row before are the same text."""
    step = seen.step
    values = seen.values.view(step.batch, step.seq, -1)
    rows = [0]
    for row in range(1, step.batch):
        same = torch.equal(values[row], values[row - 1])
        if same and step.attention_mask is not None:
            same = torch.equal(step.attention_mask[row], step.attention_mask[row - 1])
        rows.append(rows[-1] + (not same))
    return rows
