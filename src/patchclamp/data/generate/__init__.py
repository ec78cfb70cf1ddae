"""Generators of the curricula that the demo model is taught, and of the questions that test it.

Each is `name(seed=0, split="train", languages=None, count=...) -> Iterator[Item]`, seeded and free of any data file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from patchclamp.data.generate.arithmetic import arithmetic
from patchclamp.data.generate.binding import binding
from patchclamp.data.generate.code import code
from patchclamp.data.generate.culture import culture
from patchclamp.data.generate.dates import dates
from patchclamp.data.generate.facts import facts
from patchclamp.data.generate.items import LANGUAGES, Item
from patchclamp.data.generate.manners import manners
from patchclamp.data.generate.paired_items import colored_object_items, ioi_items
from patchclamp.data.generate.sentences import sentences

GENERATORS: dict[str, Callable[..., Iterator[Item]]] = {
    "facts": facts,
    "culture": culture,
    "arithmetic": arithmetic,
    "code": code,
    "dates": dates,
    "manners": manners,
    "binding": binding,
    "sentences": sentences,
}

# items that no curriculum holds: the clean prompts of paired tasks
TASK_GENERATORS: dict[str, Callable[..., Iterator[Item]]] = {
    **GENERATORS,
    "ioi": ioi_items,
    "colored_objects": colored_object_items,
}

__all__ = [
    "GENERATORS",
    "LANGUAGES",
    "TASK_GENERATORS",
    "Item",
    "arithmetic",
    "binding",
    "code",
    "colored_object_items",
    "culture",
    "dates",
    "facts",
    "ioi_items",
    "manners",
    "sentences",
]
