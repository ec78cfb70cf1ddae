"""What stands before an item's prompt: solved items (shots), or the frame of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.generate.items import rng_for
from patchclamp.data.task_items import TaskItem


def shots_for(item: TaskItem, pool: Sequence[TaskItem], k: int, seed: int, separator: str) -> TaskItem:
    """The item with k solved items of the pool before each of its wordings; none of them tells its answer away.

    Left out are items that share a wording with the item or belong to its group, and repetitions of a shot.
    """
    rng = rng_for("shots", seed, *item.wordings, *item.answers)
    shots = _distinct(item, pool, rng.sample(range(len(pool)), min(len(pool), 4 * k + 16)), k)
    if len(shots) < k:  # rare: a small pool, or one with many repetitions
        shots = _distinct(item, pool, rng.sample(range(len(pool)), len(pool)), k)
    if len(shots) < k:
        raise InputError(
            f"{k} shots asked for, but only {len(shots)} items can stand before the prompt {item.prompt!r}: "
            "itself, its group and repetitions don't count"
        )
    before = separator.join(shots) + separator
    return replace(item, prompt=before + item.prompt, alternatives=tuple(before + text for text in item.alternatives))


def chatted(item: TaskItem, tokenizer: Any, system: str | None) -> TaskItem:
    """The item with its wordings in the tokenizer's chat template and answers without leading spaces."""
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("this tokenizer has no chat template; use the task as it is, or the tokenizer of a chat model")

    def framed(prompt: str) -> str:
        said = [{"role": "system", "content": system}] if system is not None else []
        said.append({"role": "user", "content": prompt})
        return str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))

    return replace(
        item,
        prompt=framed(item.prompt),
        alternatives=tuple(map(framed, item.alternatives)),
        answers=tuple(answer.lstrip(" ") for answer in item.answers),
        choices=tuple(choice.lstrip(" ") for choice in item.choices),
    )


def _distinct(item: TaskItem, pool: Sequence[TaskItem], order: Sequence[int], k: int) -> list[str]:
    """The first k texts of the pool in this order that may stand before the item, no text and no fact twice."""
    found: list[str] = []
    used = {*item.wordings}
    groups = {item.group} - {None}
    for number in order:
        other = pool[number]
        if len(found) == k:
            break
        if used.isdisjoint(other.wordings) and other.group not in groups:
            found.append(other.solved)
            used |= {*other.wordings}
            groups |= {other.group} - {None}
    return found
