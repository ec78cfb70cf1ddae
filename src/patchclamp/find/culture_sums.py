"""What the prompts of each group give to each unit, summed: the data from which culture sets are chosen.

Sums are kept per group and block (a relation, a topic, a question), so that the null can hand blocks to other groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.core.files import sha256_text
from patchclamp.find.attribution import TINY, attribute, encoded, layouts_for
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True, eq=False)
class Contributions:
    """Sums over prompts of P * max over tokens of (activation * dP/d activation), by group and block.

    groups, blocks: names of the first two axes. layouts: the units. sums: (groups, blocks, total) float64. rows: prompts,
    (groups, blocks) int64. probability: summed P of the right answers, (groups,) float64. tiny: prompts whose P is below
    1e-6 and which therefore say nothing. positive: prompts that a unit had a positive value in, (total,) int64.
    ambiguous: prompts whose answer begins like another of their choices.
    """

    groups: tuple[str, ...]
    blocks: tuple[str, ...]
    layouts: tuple[Layout, ...]
    sums: NDArray[np.float64]
    rows: NDArray[np.int64]
    probability: NDArray[np.float64]
    positive: NDArray[np.int64]
    tiny: int = 0
    ambiguous: int = 0

    @property
    def n(self) -> int:
        """Prompts of all groups."""
        return int(self.rows.sum())

    @property
    def group_rows(self) -> NDArray[np.int64]:
        """Prompts of each group, (groups,)."""
        return np.asarray(self.rows.sum(axis=1))

    @property
    def totals(self) -> NDArray[np.float64]:
        """Sums of each group, (groups, total)."""
        return np.asarray(self.sums.sum(axis=1))

    def merge(self, other: Contributions) -> Contributions:
        """The sums of both together: those of two parts of a task equal those of the whole."""
        if self.layouts != other.layouts:
            raise MismatchError("contributions of other units can't be added: the sites or the models differ")
        groups = tuple(sorted({*self.groups, *other.groups}))
        blocks = tuple(sorted({*self.blocks, *other.blocks}))
        mine, theirs = (part.spread(groups, blocks) for part in (self, other))
        return Contributions(
            groups,
            blocks,
            self.layouts,
            mine.sums + theirs.sums,
            mine.rows + theirs.rows,
            mine.probability + theirs.probability,
            self.positive + other.positive,
            self.tiny + other.tiny,
            self.ambiguous + other.ambiguous,
        )

    def spread(self, groups: Sequence[str], blocks: Sequence[str] | None = None) -> Contributions:
        """The same sums on other axes, which hold at least the groups and blocks with prompts; zero where there is none."""
        blocks = self.blocks if blocks is None else tuple(blocks)
        at = [list(groups).index(name) for name in self.groups]
        cells = np.ix_(at, [list(blocks).index(name) for name in self.blocks])
        sums = np.zeros((len(groups), len(blocks), self.sums.shape[2]))
        rows = np.zeros(sums.shape[:2], dtype=np.int64)
        probability = np.zeros(len(groups))
        sums[cells], rows[cells], probability[at] = self.sums, self.rows, self.probability
        return Contributions(
            tuple(groups),
            tuple(blocks),
            self.layouts,
            sums,
            rows,
            probability,
            self.positive,
            self.tiny,
            self.ambiguous,
        )


def contributions(
    model: LanguageModel,
    task: Iterable[Any],
    *,
    group: str = "country",
    sites: Sequence[str] = ("pre", "q", "k", "v"),
    block: str | None = None,
    max_blocks: int = 16,
    clip: bool = False,
    tokens: int | None = 1,
    pad_zero: bool = False,
    batch_tokens: int = 2048,
    quiet: bool = True,
) -> Contributions:
    """Attribute every item of a task and sum by group (steps 2 to 5).

    group: the label whose values are the groups. block: the label that says which items belong together (by default
    `relation`, else `topic`, if all items have it, else the item's `group`, its id, or its answer); more blocks than
    max_blocks are thrown together by a hash of their names. clip: values below 0 count as 0 (for controls).
    InputError for a task without items or with items that lack the label.
    """
    items = list(task)
    if not items:
        raise InputError(f"the task {getattr(task, 'name', '')!r} has no items")
    of_group = [_label(item, group, number) for number, item in enumerate(items)]
    of_block = _blocks(items, block, max_blocks)
    groups, blocks = tuple(sorted(set(of_group))), tuple(sorted(set(of_block)))
    layouts = layouts_for(model, sites)
    total = sum(layout.total for layout in layouts)
    cell = np.array([groups.index(a) * len(blocks) + blocks.index(b) for a, b in zip(of_group, of_block, strict=True)])
    sums = torch.zeros(len(groups) * len(blocks), total, dtype=torch.float64)
    positive = torch.zeros(total, dtype=torch.int64)
    probability, tiny = np.zeros(len(groups)), 0
    for rows, values, scores in attribute(
        model, items, sites=sites, tokens=tokens, pad_zero=pad_zero, batch_tokens=batch_tokens, quiet=quiet
    ):
        weighted = values * scores[:, None]
        positive += (values > 0).sum(0).cpu()
        given = weighted.clamp(min=0) if clip else weighted
        sums.index_add_(0, torch.from_numpy(cell[rows]), given.double().cpu())
        np.add.at(probability, cell[rows] // len(blocks), scores.double().cpu().numpy())
        tiny += int((scores < TINY).sum())
    shape = (len(groups), len(blocks))
    counts = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    return Contributions(
        groups, blocks, layouts, sums.view(*shape, total).numpy(), counts, probability, positive.numpy(), tiny,
        _ambiguous(model, items, tokens),
    )  # fmt: skip


def _label(item: Any, key: str, number: int) -> str:
    if key not in item.labels:
        have = ", ".join(item.labels) or "none"
        raise InputError(f"item {number} has no label {key!r} to group it by; it has {have}; give group=")
    return str(item.labels[key])


def _blocks(items: Sequence[Any], block: str | None, limit: int) -> list[str]:
    """The block of each item: which items are about the same thing, and go to another group together in the null."""
    if limit < 1:
        raise InputError(f"max_blocks={limit} given; it is at least 1")
    usual = (key for key in ("relation", "topic") if all(key in item.labels for item in items))
    key = block if block is not None else next(usual, None)
    if key is not None:
        named = [_label(item, key, number) for number, item in enumerate(items)]
    else:
        named = [str(item.group or item.id or item.answers[0]) for item in items]
    if len(set(named)) <= limit:
        return named
    return [f"part {int(sha256_text(name)[:8], 16) % limit}" for name in named]


def _ambiguous(model: LanguageModel, items: Sequence[Any], tokens: int | None) -> int:
    """Items whose scored tokens would be the same for another of their choices."""
    asked = [
        (number, choice)
        for number, item in enumerate(items)
        for choice in (item.answers[0], *(choice for choice in item.choices if choice not in item.answers))
    ]
    read = encoded(model, [items[number].prompt for number, _ in asked], [choice for _, choice in asked], tokens=tokens)
    right: dict[int, tuple[int, ...]] = {}
    shared = set()
    for (number, _), one in zip(asked, read, strict=True):
        if right.setdefault(number, one.tokens) is not one.tokens and right[number] == one.tokens:
            shared.add(number)
    return len(shared)
