"""Opening paired tasks: from our generators, from files, from items in memory, and from the identity in a result.

paired("generate:ioi,n=200,language=de", tokenizer)
paired("generate:colored_objects,n=100,shots=0,templates=demo,seed=3", tokenizer)
paired("pairs.jsonl")
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.data.generate.colored_objects import colored_objects
from patchclamp.data.generate.ioi import ioi
from patchclamp.data.paired import PairedItem, PairedTask

PREFIX = "generate:"
MAKERS: dict[str, Callable[..., PairedTask]] = {"ioi": ioi, "colored_objects": colored_objects}


def paired(source: Any, tokenizer: Any = None, *, name: str | None = None) -> PairedTask:
    """A paired task from "generate:NAME,key=value,..." (100 pairs unless n= says otherwise), a JSONL file, items, or a task.

    tokenizer: of the model that the task is for; generators use only words that it takes as one token. InputError for what
    can't be opened, with what there is.
    """
    if isinstance(source, PairedTask):
        found = source
    elif isinstance(source, str) and source.startswith(PREFIX):
        found = _generated(source, tokenizer)
    elif isinstance(source, str | os.PathLike):
        found = PairedTask.read(source)
    elif isinstance(source, Iterable):
        items = [
            item if isinstance(item, PairedItem) else PairedItem.from_dict(item, f"item {number}")
            for number, item in enumerate(source)
        ]
        found = PairedTask("pairs", tuple(items))
    else:
        raise InputError(f"{source!r:.60} is no paired task; give generate:NAME, a .jsonl file, or items")
    return found if name is None else PairedTask(name, found.items, found.origin)


def open_paired(identity: Mapping[str, Any], tokenizer: Any = None) -> PairedTask:
    """Open the task of an identity again. InputError for items that were in memory, MismatchError if they differ now."""
    try:
        found = _opened(identity["origin"], identity["name"], tokenizer)
        same = found.fingerprint == identity["fingerprint"]
    except (KeyError, TypeError) as problem:
        raise DamagedError(f"this is no complete identity of a paired task: {problem!r}") from problem
    if not same:
        raise MismatchError(f"the paired task {identity['name']!r} has other items now than when the result was made")
    return found


def _opened(origin: Mapping[str, Any], name: str, tokenizer: Any) -> PairedTask:
    if origin["kind"] == "file":
        return PairedTask.read(origin["path"], name=name)
    if origin["kind"] == "paired":
        arguments = dict(origin["arguments"])
        return MAKERS[origin["name"]](arguments.pop("n"), tokenizer, **arguments)
    if origin["kind"] == "chosen":
        return open_paired(origin["of"], tokenizer).chosen(origin["items"])
    if origin["kind"] == "swapped":
        return open_paired(origin["of"], tokenizer).swapped()
    raise InputError(f"the pairs of {name!r} were in memory and can't be opened again; give the task")


def _generated(text: str, tokenizer: Any) -> PairedTask:
    which, *pairs = text.removeprefix(PREFIX).split(",")
    if which not in MAKERS:
        raise InputError(f"no paired task is called {which!r}; there are {', '.join(MAKERS)}")
    known = {key: p.default for key, p in inspect.signature(MAKERS[which]).parameters.items() if key != "tokenizer"}
    given: dict[str, Any] = {"n": 100}
    for pair in pairs:
        key, separator, value = (part.strip() for part in pair.partition("="))
        if not separator or not value or key not in known:
            raise InputError(f"{pair!r} in {text!r} is no key=value that it knows; it has {', '.join(known)}")
        given[key] = _value(key, value, known[key])
    return MAKERS[which](given.pop("n"), tokenizer, **given)


def _value(key: str, value: str, default: Any) -> Any:
    if isinstance(default, bool):
        if value not in ("true", "false"):
            raise InputError(f"{key}={value!r} given; it is true or false")
        return value == "true"
    if isinstance(default, str):
        return value
    if not value.removeprefix("-").isdecimal():
        raise InputError(f"{key}={value!r} given; it is a whole number")
    return int(value)
