"""The clean prompts of paired tasks as generated items: `generate:ioi` and `generate:colored_objects` as ordinary tasks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.generate.colored_objects import colored_objects
from patchclamp.data.generate.ioi import TEMPLATES, ioi
from patchclamp.data.generate.items import LANGUAGES, Item, check_count, check_languages, check_split
from patchclamp.data.paired import PairedTask

SPLITS = ("train", "heldout")
_CHUNK = 200


def ioi_items(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    templates: Iterable[str] | None = None,
    count: int | None = 1000,
) -> Iterator[Item]:
    """Yield `count` clean prompts of `ioi` (None: without end); choices: the two names.

    templates: "paper" (by default), in six languages, or "demo": the English frames that the bundled model was taught, whose
    pairs of names are split into those of its training and "heldout" ones. Labels: those of `ioi`, and skill.
    """
    yield from _items(ioi, seed, split, languages, templates, count)


def colored_object_items(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    templates: Iterable[str] | None = None,
    count: int | None = 1000,
) -> Iterator[Item]:
    """Yield `count` clean prompts of `colored_objects` with one example (None: without end).

    Choices: the right colour, and that of the object which the corrupted prompt asks for. templates and labels as in `ioi_items`.
    """
    yield from _items(colored_objects, seed, split, languages, templates, count)


def _items(
    make: Callable[..., PairedTask],
    seed: int,
    split: str,
    languages: Iterable[str] | None,
    templates: Iterable[str] | None,
    count: int | None,
) -> Iterator[Item]:
    check_split(split, SPLITS)
    check_count(count)
    kinds = check_languages("paper" if templates is None else templates, TEMPLATES)
    spoken = check_languages(languages, ("en",) if "demo" in kinds else LANGUAGES)
    if split == "heldout" and kinds != ("demo",):
        raise InputError("split='heldout' asked for, but only templates='demo' has pairs that a training left out")
    stream = _stream(make, seed, [(language, kind) for kind in kinds for language in spoken])
    yield from itertools.islice((item for item in stream if item.split == split), count)


def _stream(make: Callable[..., PairedTask], seed: int, kinds: list[tuple[str, str]]) -> Iterator[Item]:
    for chunk in itertools.count():
        parts = [
            make(_CHUNK, None, language=language, templates=template, seed=seed * 1_000_003 + chunk)
            for language, template in kinds
        ]
        for pairs in zip(*parts, strict=True):
            for pair in pairs:
                labels: dict[str, Any] = {"skill": pair.labels["task"], **pair.labels}
                part = labels.pop("split", "train")
                yield Item(pair.clean, pair.answer, (pair.answer, pair.wrong), "", part, labels)
