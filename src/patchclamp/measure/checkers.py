"""Is a generated text right? `checker="exact"`, "contains", "number", or a function of the text and the item."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data.task_items import TaskItem

Checker = Callable[[str, TaskItem], Any]

ENDS = " \t\n.。!！?？,，;；:：\"'“”„‘’«»「」『』"  # what may stand around an answer without being part of it
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def exact(text: str, item: TaskItem) -> bool:
    """Whether the text is a right answer; the item's tail, and spaces and punctuation around either, left aside."""
    tail = item.tail.strip()
    return text.strip().removesuffix(tail).strip(ENDS) in {answer.strip(ENDS) for answer in item.answers}


def contains(text: str, item: TaskItem) -> bool:
    """Whether a right answer occurs in the text, whatever the case; "7" occurs in "17"."""
    return any(answer.strip().casefold() in text.casefold() for answer in item.answers)


def number(text: str, item: TaskItem) -> bool:
    """Whether the first number of the text equals the first number of a right answer; 1,000 is 1000 and 4.0 is 4.

    InputError for an item whose answers hold no number.
    """
    wanted = {_first_number(answer) for answer in item.answers} - {None}
    if not wanted:
        raise InputError(f"the answer {item.answers[0]!r} holds no number; use checker='exact' or 'contains'")
    return _first_number(text) in wanted


CHECKERS: dict[str, Checker] = {"exact": exact, "contains": contains, "number": number}


def checker_of(checker: str | Checker) -> Checker:
    """The checker of a name, or the function given; InputError for anything else."""
    if isinstance(checker, str) and checker in CHECKERS:
        return CHECKERS[checker]
    if callable(checker):
        return checker
    raise InputError(f"checker={checker!r}; it is one of {', '.join(CHECKERS)}, or a function of a text and an item")


def checked(checker: Checker, text: str, item: TaskItem) -> float:
    """What a checker says as a number: True 1, False 0, or a share of its own. InputError for anything else."""
    said = checker(text, item)
    if not isinstance(said, bool | int | float | np.bool_ | np.integer | np.floating) or not np.isfinite(said):
        name = getattr(checker, "__qualname__", checker)
        raise InputError(f"the checker {name} said {said!r} of {text[:40]!r}; it returns True, False or a number")
    return float(said)


def _first_number(text: str) -> float | None:
    found = NUMBER.search(text)
    return None if found is None else float(found[0].replace(",", ""))
