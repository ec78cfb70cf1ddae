"""Opening tasks: from our generators, from files, and from the identity of a task in a result."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data.generate import TASK_GENERATORS, Item
from patchclamp.data.task_items import TaskItem, item_of
from patchclamp.data.tasks import Task

PREFIX = "generate:"
REPEATS = 50  # draws per distinct item after which a generator counts as exhausted


def task(source: Any, *, name: str | None = None) -> Task:
    """A task from "generate:NAME,key=value,...", the path of a JSONL file, items in memory, or a task.

    See `generated` for what can be asked of a generator (several values: language=en+fr) and `Task.read` for files.
    """
    if isinstance(source, Task):
        return source if name is None else Task(name, source.items, source.origin, source.steps)
    if isinstance(source, str) and source.startswith(PREFIX):
        return _specified(source, name)
    if isinstance(source, str | os.PathLike):
        return Task.read(source, name=name)
    if isinstance(source, Iterable):
        return Task.of(source, name=name or "task")
    raise InputError(f"{source!r} is no task; give generate:NAME, a .jsonl file, or items")


def generated(
    name: str,
    *,
    split: str = "train",
    languages: str | Iterable[str] | None = None,
    count: int | None = None,
    seed: int = 0,
    **kinds: Any,
) -> Task:
    """Items of one of our generators (facts, culture, arithmetic, ...), each prompt once.

    count: at most so many, by default as many as the generator gives; kinds: the generator's own keywords, such as
    relations=("capital",). InputError for what the generator doesn't have.
    """
    make = _generator(name)
    known = _parameters(name)
    for key in kinds:
        if key not in known:
            raise InputError(f"the generator {name!r} has no {key}=; it has {', '.join(known)}")
    if count is not None and count < 1:
        raise InputError(f"count={count} items asked for; at least 1 is needed")
    wanted: dict[str, Any] = {"seed": seed, "split": split, "languages": _listed(languages)}
    wanted |= {key: _listed(value) for key, value in kinds.items()}
    stream = make(**wanted) if count is None else islice(make(**wanted, count=None), REPEATS * count)
    items = _distinct(stream, count)
    arguments = {key: value for key, value in {**wanted, "count": count}.items() if value is not None}
    return Task(name, items, {"kind": "generator", "name": name, "arguments": arguments})


def open_task(identity: Mapping[str, Any], *, tokenizer: Any = None) -> Task:
    """Open the task of an identity again: its origin, then every step. tokenizer: for tasks in a chat template.

    InputError for items that were in memory, MismatchError if the items are not those of the identity.
    """
    try:
        found = _opened(identity, tokenizer)
    except (KeyError, TypeError) as problem:
        raise DamagedError(f"this is no complete identity of a task: {problem!r}") from problem
    if found.fingerprint != identity["fingerprint"]:
        raise MismatchError(f"the task {identity['name']!r} has other items now than when the result was made")
    return found


def _opened(identity: Mapping[str, Any], tokenizer: Any) -> Task:
    origin, name = identity["origin"], identity["name"]
    if origin["kind"] == "file":
        found = Task.read(origin["path"], name=name)
    elif origin["kind"] == "generator":
        made = generated(origin["name"], **origin["arguments"])
        found = Task(name, made.items, made.origin)
    else:
        raise InputError(f"the items of the task {name!r} were in memory and can't be opened again; give the task")
    for step, given in identity["steps"]:
        arguments = dict(given)
        if step == "with_chat":
            arguments["tokenizer"] = tokenizer
        if step == "with_shots" and arguments["source"] is not None:
            arguments["source"] = open_task(arguments["source"], tokenizer=tokenizer)
        if step not in ("where", "limited", "with_shots", "with_chat"):
            raise DamagedError(f"the task {name!r} was changed by {step!r}, which is unknown here")
        found = getattr(found, step)(**arguments)
    return found


def _specified(text: str, name: str | None) -> Task:
    """The task of "generate:NAME,key=value,..."; singular keys (language, relation) stand for the plural keyword."""
    which, *pairs = text.removeprefix(PREFIX).split(",")
    known = ("split", "count", "seed", *_parameters(which))
    given: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = (part.strip() for part in pair.partition("="))
        full = key if key in known else f"{key}s"
        if not separator or not value or full not in known:
            raise InputError(
                f"{pair!r} in {text!r} is no key=value that this generator knows; it has {', '.join(known)}"
            )
        if full in given:
            raise InputError(f"{text!r} gives {key} twice; join several values with +, as in language=en+fr")
        given[full] = (
            value if full == "split" else _number(key, value) if full in ("count", "seed") else value.split("+")
        )
    found = generated(which, **given)
    return found if name is None else Task(name, found.items, found.origin)


def _generator(name: str) -> Any:
    if name not in TASK_GENERATORS:
        raise InputError(f"no generator is called {name!r}; there are {', '.join(sorted(TASK_GENERATORS))}")
    return TASK_GENERATORS[name]


def _parameters(name: str) -> tuple[str, ...]:
    """The generator's keywords beside split, count and seed."""
    parameters = inspect.signature(_generator(name)).parameters
    return tuple(key for key in parameters if key not in ("split", "count", "seed"))


def _distinct(stream: Iterable[Item], count: int | None) -> tuple[TaskItem, ...]:
    """The first `count` items (None: all) without a prompt that came before."""
    found: dict[str, TaskItem] = {}
    for item in stream:
        found.setdefault(item.prompt, item_of(item, "a generated item"))
        if len(found) == count:
            break
    return tuple(found.values())


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value if value is None else list(value)


def _number(key: str, value: str) -> int:
    if not value.removeprefix("-").isdecimal():
        raise InputError(f"{key}={value!r} given; it is a whole number")
    return int(value)
