"""A task in two halves without a shared prompt or group: one to find on, one to measure on."""

from __future__ import annotations

from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.generate.items import rng_for
from patchclamp.data.tasks import Task


def halves(task: Task, seed: int) -> tuple[Task, Task]:
    """The items in two halves, drawn at random; items of one group, or of one prompt, stay together."""
    groups: dict[str, list[Any]] = {}
    for item in task:
        groups.setdefault(f"group {item.group}" if item.group is not None else f"prompt {item.prompt}", []).append(item)
    keys = sorted(groups)
    rng_for("halves", seed).shuffle(keys)
    if len(keys) < 4:
        raise InputError(f"the task {task.name!r} has {len(keys)} different items or groups; at least 4 are needed")
    parts = keys[: len(keys) // 2], keys[len(keys) // 2 :]
    first, second = (Task.of([item for key in half for item in groups[key]], name=task.name) for half in parts)
    return first, second
