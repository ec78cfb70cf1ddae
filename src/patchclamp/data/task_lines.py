"""Task files: one JSON object per line."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.task_items import TaskItem, item_of


def read_items(path: str | os.PathLike[str]) -> tuple[TaskItem, ...]:
    """The items of a file with one JSON object per line; blank lines are skipped.

    Keys: prompt, answers (list) or answer, choices, labels (object), alternatives, group, id, tail; or good and bad for a
    minimal pair. InputError names the file and line of what can't be used; warns where answers seem to lack their space.
    """
    source = Path(path).expanduser()
    if not source.is_file():
        raise InputError(f"no file at {source}")
    items = []
    for number, line in enumerate(_lines(source), start=1):
        if line.strip():
            items.append(item_of(_object(line, f"{source}, line {number}"), f"{source}, line {number}"))
    if not items:
        raise InputError(f'{source} holds no items; a line is an object such as {{"prompt": ..., "answer": ...}}')
    _warn_of_missing_spaces(source, items)
    return tuple(items)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as problem:
        line = path.read_bytes()[: problem.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line} is not UTF-8 text") from problem


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except json.JSONDecodeError as problem:
        raise InputError(f"{where} is not valid JSON ({problem.msg} at column {problem.colno})") from problem
    if not isinstance(found, dict):
        raise InputError(f"{where} is a {type(found).__name__}; an object with prompt and answers is needed")
    return found


def _warn_of_missing_spaces(path: Path, items: list[TaskItem]) -> None:
    """Where a letter of a prompt meets a letter of the answer, in scripts that put spaces between words."""
    glued = [item for item in items if item.prompt and _cased(item.prompt[-1]) and _cased(item.answers[0][0])]
    if len(glued) > len(items) / 2:
        joined = glued[0].prompt[-20:] + glued[0].answers[0][:20]
        warnings.warn(
            f"{path}: answers follow their prompts without a space, as in {joined!r}; begin them with the space they need",
            stacklevel=4,
        )


def _cased(letter: str) -> bool:
    return letter.lower() != letter.upper()
