"""Paired tasks: a clean prompt and a corrupted one of equal length, the token that answers it and a wrong one.

What patching needs: the two runs differ in known places and nowhere else. `PairedTask.encode` turns the texts into aligned
token ids (`Pairs`) and refuses, by the item's number, whatever isn't aligned. Source of the format: Merullo, Eickhoff &
Pavlick 2024 (arXiv:2310.08744); their files are two index-aligned JSON lists of [prompt, answer], see `PairedTask.aligned`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.core.files import atomic_write, sha256_text, to_json, write_json
from patchclamp.data.paired_tokens import END, Pairs, encoded

if TYPE_CHECKING:
    import torch

    from patchclamp.data.tasks import Task

Span = tuple[int, int]
__all__ = ["END", "PairedItem", "PairedTask", "Pairs"]
_KEYS = ("clean", "corrupt", "answer", "wrong", "spots", "lists", "labels")


@dataclass(frozen=True)
class PairedItem:
    """One minimal pair.

    clean, corrupt: prompts. answer: what completes the clean prompt, wrong: what the logit difference is taken against (where
    the corruption flips the answer, what completes the corrupted prompt); each one token, with the space that it needs.
    spots: name -> characters (start, stop) of the clean prompt; a name that ends in +k or -k stands k tokens after or before
    the last token of its span. lists: name -> several such spans. The corrupted prompt has the same token positions.
    """

    clean: str
    corrupt: str
    answer: str
    wrong: str
    spots: Mapping[str, Span] = field(default_factory=dict)
    lists: Mapping[str, tuple[Span, ...]] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("clean", "corrupt", "answer", "wrong"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name} is {getattr(self, name)!r}; a text that isn't empty is needed")
        if self.answer == self.wrong:
            raise InputError(f"the answer and the wrong answer are both {self.answer!r}; a difference needs two")
        object.__setattr__(self, "spots", {name: _span(name, span) for name, span in self.spots.items()})
        listed = {name: tuple(_span(name, span) for span in spans) for name, spans in self.lists.items()}
        object.__setattr__(self, "lists", listed)
        for name, span in [*self.spots.items(), *((name, span) for name, spans in listed.items() for span in spans)]:
            if not 0 <= span[0] < span[1] <= len(self.clean):
                raise InputError(f"the spot {name!r} is {span}; the prompt has characters 0 to {len(self.clean)}")
        if END in self.spots or END in self.lists or set(self.spots) & set(self.lists):
            raise InputError(f"a spot can't be called {END!r} (always the last token), nor like a list of the item")

    def to_dict(self) -> dict[str, Any]:
        """Plain data; spots, lists and labels only where there are any."""
        found: dict[str, Any] = {name: getattr(self, name) for name in _KEYS[:4]}
        for name in _KEYS[4:]:
            if getattr(self, name):
                found[name] = dict(getattr(self, name))
        return found

    @classmethod
    def from_dict(cls, data: Any, where: str = "the item") -> PairedItem:
        """The item of plain data. where: how an error calls it. InputError for keys that are missing or unknown."""
        if not isinstance(data, Mapping):
            raise InputError(f"{where} is a {type(data).__name__}; an object with {', '.join(_KEYS[:4])} is needed")
        unknown, missing = set(data) - set(_KEYS), set(_KEYS[:4]) - set(data)
        if unknown or missing:
            raise InputError(
                f"{where} has {'the unknown key ' + repr(min(unknown)) if unknown else 'no ' + repr(min(missing))}; "
                f"keys are {', '.join(_KEYS)}"
            )
        try:
            return cls(**data)
        except (InputError, TypeError, AttributeError, ValueError) as problem:
            raise InputError(f"{where}: {problem}") from problem


@dataclass(frozen=True, eq=False)
class PairedTask:
    """Minimal pairs under a name. origin: plain data that says where they come from, for provenance."""

    name: str
    items: tuple[PairedItem, ...]
    origin: Mapping[str, Any] = field(default_factory=lambda: {"kind": "memory"})

    def __post_init__(self) -> None:
        object.__setattr__(self, "items", tuple(self.items))
        if not self.name or not isinstance(self.name, str):
            raise InputError(f"{self.name!r} is no name of a task; a name is a text that isn't empty")
        if not self.items:
            raise InputError(f"the paired task {self.name!r} has no items; give at least one")
        for number, item in enumerate(self.items):
            if not isinstance(item, PairedItem):
                raise InputError(f"item {number} of {self.name!r} is a {type(item).__name__}; a PairedItem is needed")

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[PairedItem]:
        return iter(self.items)

    def __getitem__(self, number: int) -> PairedItem:
        return self.items[number]

    def __repr__(self) -> str:
        return f"PairedTask({self.name}: {len(self)} pairs; spots {', '.join((END, *self.spots, *self.lists))})"

    @cached_property
    def spots(self) -> tuple[str, ...]:
        """Names of the spots that some item has, in order of appearance; END not among them."""
        return tuple(dict.fromkeys(name for item in self.items for name in item.spots))

    @cached_property
    def lists(self) -> tuple[str, ...]:
        """Names of the lists of spots."""
        return tuple(dict.fromkeys(name for item in self.items for name in item.lists))

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the items in order; the name is not part of it."""
        return sha256_text(to_json([item.to_dict() for item in self.items]))

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data for results: name, fingerprint, number of items and origin."""
        return {"name": self.name, "fingerprint": self.fingerprint, "items": len(self), "origin": dict(self.origin)}

    def chosen(self, numbers: Iterable[int]) -> PairedTask:
        """The items of these numbers, in this order."""
        picked = list(numbers)
        origin = {"kind": "chosen", "items": picked, "of": self.identity}
        return PairedTask(self.name, tuple(self.items[number] for number in picked), origin)

    def where(self, **labels: str) -> PairedTask:
        """The items whose labels have these values: where(order="ABBA"). InputError if none is left."""
        kept = [n for n, item in enumerate(self.items) if all(item.labels.get(k) == v for k, v in labels.items())]
        if not kept:
            raise InputError(f"no item of {self.name!r} has {', '.join(f'{k}={v}' for k, v in labels.items())}")
        return self.chosen(kept)

    def swapped(self) -> PairedTask:
        """Corrupted and clean exchanged, answers too: the task seen from the other side."""
        items = tuple(
            replace(
                item, clean=item.corrupt, corrupt=item.clean, answer=item.wrong, wrong=item.answer, spots={}, lists={}
            )
            for item in self.items
        )
        return PairedTask(self.name, items, {"kind": "swapped", "of": self.identity})

    # --- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write JSONL, one pair a line, whole or not at all; `read` gives the same items back."""
        with atomic_write(path) as part:
            part.write_text("".join(to_json(item.to_dict()) + "\n" for item in self.items), encoding="utf-8")
        return Path(path)

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, name: str | None = None) -> PairedTask:
        """The pairs of a JSONL file (see PairedItem for the keys), called like the file unless a name is given."""
        source = Path(path).expanduser()
        items = []
        for number, line in enumerate(_text(source).split("\n"), start=1):
            if line.strip():
                where = f"{source}, line {number}"
                items.append(PairedItem.from_dict(_json(line, where), where))
        if not items:
            raise InputError(f"{source} holds no pairs; a line is an object with {', '.join(_KEYS[:4])}")
        return cls(name or source.stem, tuple(items), {"kind": "file", "path": str(source.absolute())})

    @classmethod
    def aligned(cls, clean: Any, corrupt: Any, *, name: str = "pairs") -> PairedTask:
        """A task from two index-aligned lists of [prompt, answer], or from the JSON files that hold them.

        The answer of the corrupted prompt is the wrong one. This is the format of the published data sets.
        """
        sides = [_side(clean, "clean"), _side(corrupt, "corrupted")]
        if len(sides[0]) != len(sides[1]):
            raise InputError(f"{len(sides[0])} clean and {len(sides[1])} corrupted prompts; they go together by number")
        items = []
        for number, ((prompt, answer), (other, wrong)) in enumerate(zip(*sides, strict=True)):
            where = f"pair {number}"
            items.append(
                PairedItem.from_dict({"clean": prompt, "corrupt": other, "answer": answer, "wrong": wrong}, where)
            )
        return cls(name, tuple(items))

    def save_aligned(self, clean: str | os.PathLike[str], corrupt: str | os.PathLike[str]) -> None:
        """Write the two JSON lists that `aligned` reads; spots and labels are not part of them."""
        write_json(clean, [[item.clean, item.answer] for item in self.items], indent=None)
        write_json(corrupt, [[item.corrupt, item.wrong] for item in self.items], indent=None)

    # --- ordinary tasks ------------------------------------------------------------------------------------------

    def task(self, side: str = "clean") -> Task:
        """The prompts of one side ("clean", "corrupt") or of both ("both") as an ordinary task of two choices.

        Labels: the item's own, and side and pair (its number); the two prompts of a pair are a group. For a corruption that
        does not flip the answer the corrupted side has no right answer: its items keep `wrong`, to be ranked all the same.
        """
        from patchclamp.data.task_items import TaskItem
        from patchclamp.data.tasks import Task

        sides = {"clean": ("clean",), "corrupt": ("corrupt",), "both": ("clean", "corrupt")}
        if side not in sides:
            raise InputError(f"side={side!r} given; it is one of {', '.join(sides)}")
        items = []
        for number, item in enumerate(self.items):
            for each in sides[side]:
                right, wrong = (item.answer, item.wrong) if each == "clean" else (item.wrong, item.answer)
                labels = {**item.labels, "side": each, "pair": str(number)}
                items.append(TaskItem(getattr(item, each), (right,), (right, wrong), labels, group=str(number)))
        return Task(self.name, tuple(items))

    @classmethod
    def of_task(cls, task: Task) -> PairedTask:
        """The pairs of a task as `task("both")` makes it: items of one group whose label side is clean and corrupt."""
        groups: dict[str | None, dict[str, Any]] = {}
        for number, item in enumerate(task.items):
            side = item.labels.get("side")
            if side not in ("clean", "corrupt") or item.group is None or side in groups.get(item.group, {}):
                raise InputError(
                    f"item {number} of {task.name!r} is no half of a pair; it needs a group of two and the label side, "
                    "clean or corrupt"
                )
            groups.setdefault(item.group, {})[side] = item
        items = []
        for group, pair in groups.items():
            if len(pair) < 2:
                raise InputError(f"the group {group!r} of {task.name!r} has only its {next(iter(pair))} half")
            clean, corrupt = pair["clean"], pair["corrupt"]
            labels = {key: value for key, value in clean.labels.items() if key not in ("side", "pair")}
            items.append(PairedItem(clean.prompt, corrupt.prompt, clean.answers[0], corrupt.answers[0], labels=labels))
        return cls(task.name, tuple(items), {"kind": "task", "of": task.identity})

    # --- token ids -----------------------------------------------------------------------------------------------

    def encode(self, tokenizer: Any, device: torch.device | str | None = None, *, special: bool = True) -> Pairs:
        """Aligned token ids of all pairs. special: with the special tokens that the tokenizer puts before a text.

        InputError names the item: prompts of unequal length, an answer of more than one token, equal answer tokens, equal
        prompts are fine (their effect is 0), a spot that no token touches or whose shift leaves the prompt.
        """
        return encoded(self, tokenizer, device, special)


def _span(name: str, span: Any) -> Span:
    start, stop = span
    return int(start), int(stop)


def _side(given: Any, which: str) -> list[tuple[str, str]]:
    if isinstance(given, str | os.PathLike):
        path = Path(given).expanduser()
        given = _json(_text(path), str(path))
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise InputError(f"the {which} side is a {type(given).__name__}; a list of [prompt, answer] is needed")
    for number, pair in enumerate(given):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise InputError(f"entry {number} of the {which} side is {pair!r:.60}; [prompt, answer] is needed")
    return [(pair[0], pair[1]) for pair in given]


def _text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"no file at {path}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as problem:
        raise InputError(f"{path} is not UTF-8 text (byte {problem.start})") from problem


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as problem:
        raise InputError(f"{where} is not valid JSON ({problem.msg} at column {problem.colno})") from problem
