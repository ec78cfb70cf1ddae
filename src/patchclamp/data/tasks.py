"""Tasks: items with a prompt, right answers, choices and labels; read, cut, joined with shots, turned into text.

    task("generate:facts,split=heldout,language=en")    items of our own generators
    task("capitals.jsonl")                              one JSON object per line: prompt, answers, choices, labels, ...
    task([{"prompt": "2 + 2 =", "answer": " 4", "choices": [" 4", " 5"]}])

A task is data: how it is scored is chosen when it is measured (`patchclamp.measure.score`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.core.files import atomic_write, sha256_text, to_json
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.data.documents import Document
from patchclamp.data.generate.items import rng_for
from patchclamp.data.task_items import TaskItem, item_of
from patchclamp.data.task_lines import read_items
from patchclamp.data.task_prompts import chatted, shots_for


@dataclass(frozen=True, eq=False)
class Task:
    """Items under a name.

    origin: plain data that says where the items come from ({"kind": "file" | "generator" | "memory", ...}). steps: what
    was done to them since, as [name, arguments] pairs, so that a result can open the task again.
    """

    name: str
    items: tuple[TaskItem, ...]
    origin: Mapping[str, Any] = field(default_factory=lambda: {"kind": "memory"})
    steps: tuple[tuple[str, Mapping[str, Any]], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"{self.name!r} is no name of a task; a name is a text that isn't empty")
        if not self.items:
            raise InputError(f"the task {self.name!r} has no items{self._after_steps()}")

    @classmethod
    def of(cls, items: Iterable[Any], *, name: str = "task") -> Task:
        """A task of TaskItems, generated Items, or dicts with the keys of a task file's lines."""
        if isinstance(items, str | bytes | os.PathLike):
            raise InputError(f"{items!r} is a text; give items, or open it with task(...)")
        return cls(name, tuple(item_of(item, f"item {number}") for number, item in enumerate(items)))

    @classmethod
    def read(cls, path: str | os.PathLike[str], *, name: str | None = None) -> Task:
        """A task from a JSONL file, called like the file unless a name is given; see `task_lines.read_items`."""
        source = Path(path).expanduser()
        return cls(name or source.stem, read_items(source), {"kind": "file", "path": str(source.absolute())})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the items as JSONL, one per line, whole or not at all; `read` gives the same items back."""
        with atomic_write(path) as part:
            part.write_text("".join(to_json(item.to_dict()) + "\n" for item in self.items), encoding="utf-8")
        return Path(path)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[TaskItem]:
        return iter(self.items)

    def __getitem__(self, number: int) -> TaskItem:
        return self.items[number]

    def __repr__(self) -> str:
        keys = {key: len(self.values(key)) for key in self.label_keys}
        labels = ", ".join(f"{key} ({number})" for key, number in keys.items())
        return f"Task({self.name}: {len(self)} items; labels {labels or 'none'})"

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over the items in order; the name is not part of it."""
        return sha256_text(to_json([item.to_dict() for item in self.items]))

    @property
    def identity(self) -> dict[str, Any]:
        """Plain data for results: name, fingerprint, number of items, origin and steps."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "items": len(self),
            "origin": dict(self.origin),
            "steps": [[step, dict(arguments)] for step, arguments in self.steps],
        }

    @cached_property
    def label_keys(self) -> tuple[str, ...]:
        """Keys of the items' labels, in order of appearance."""
        return tuple(dict.fromkeys(key for item in self.items for key in item.labels))

    def values(self, key: str) -> tuple[str, ...]:
        """The values of a label, sorted. InputError for a label that no item has."""
        if key not in self.label_keys:
            raise InputError(
                f"no item of {self.name!r} has the label {key!r}; labels are {', '.join(self.label_keys) or 'none'}"
            )
        return tuple(sorted({item.labels[key] for item in self.items if key in item.labels}))

    def where(self, **labels: str | Iterable[str]) -> Task:
        """The items whose labels have these values: where(split="heldout", language=("en", "fr")).

        InputError for a label that no item has, a value that it never takes, or if no item is left.
        """
        wanted: dict[str, list[str]] = {}
        for key, given in labels.items():
            wanted[key] = [given] if isinstance(given, str) else [str(value) for value in given]
            known = self.values(key)
            if unknown := [value for value in wanted[key] if value not in known]:
                raise InputError(
                    f"no item of {self.name!r} has {key}={unknown[0]!r}; {key} is one of {', '.join(known)}"
                )
        kept = tuple(
            item for item in self.items if all(item.labels.get(key) in values for key, values in wanted.items())
        )
        return self._derived(kept, "where", wanted)

    def by(self, key: str) -> dict[str, Task]:
        """Label value -> the task of its items, called by the value."""
        return {value: replace(self.where(**{key: value}), name=value) for value in self.values(key)}

    def limited(self, n: int, *, seed: int = 0) -> Task:
        """At most n items, drawn at random, in their order."""
        if n < 1:
            raise InputError(f"{n} items asked for; at least 1 is needed")
        drawn = range(len(self)) if n >= len(self) else sorted(rng_for("limited", seed).sample(range(len(self)), n))
        return self._derived(tuple(self.items[i] for i in drawn), "limited", {"n": n, "seed": seed})

    def with_shots(self, k: int, *, source: Task | None = None, seed: int = 0, separator: str = "\n") -> Task:
        """The task with k solved items before every prompt (and before every alternative wording).

        source: where the shots come from, by default the task itself; an item never meets itself, nor an item of its
        prompt or of its group. Which shots an item gets depends on the item and the seed, not on the other items.
        """
        pool = self if source is None else source
        if k < 1:
            raise InputError(f"{k} shots asked for; give 1 or more")
        items = tuple(shots_for(item, pool.items, k, seed, separator) for item in self.items)
        arguments = {"k": k, "seed": seed, "separator": separator, "source": source and source.identity}
        return self._derived(items, "with_shots", arguments)

    def with_chat(self, tokenizer: Any, *, system: str | None = None) -> Task:
        """The task as a conversation: every prompt is what the user says, in the tokenizer's chat template.

        Answers and choices lose their leading spaces, for templates end where the assistant's words begin.
        InputError for a tokenizer without a chat template.
        """
        items = tuple(chatted(item, tokenizer, system) for item in self.items)
        return self._derived(items, "with_chat", {"system": system})

    def corpus(self, by: str | None = None, *, prompts_only: bool = True) -> Corpus:
        """The prompts as labelled text, to be recorded; with spans "prompt" and "response".

        by: the label key whose values label the text (items without it are left out); None: one label, the task's name.
        prompts_only: only the prompts; otherwise prompt, right answer and what closes the sentence.
        """
        groups = {self.name: self} if by is None else self.by(by)
        return corpus({label: [_document(item, prompts_only) for item in group] for label, group in groups.items()})

    def _derived(self, items: tuple[TaskItem, ...], step: str, arguments: Mapping[str, Any]) -> Task:
        return Task(self.name, items, self.origin, (*self.steps, (step, arguments)))

    def _after_steps(self) -> str:
        return f" left after {self.steps[-1][0]}({dict(self.steps[-1][1])})" if self.steps else "; give at least one"


def _document(item: TaskItem, prompts_only: bool) -> Document:
    answer = "" if prompts_only else item.answers[0]
    spans = {"prompt": ((0, len(item.prompt)),)}
    if answer:
        spans["response"] = ((len(item.prompt), len(item.prompt) + len(answer)),)
    return Document(item.prompt + answer + ("" if prompts_only else item.tail), spans, item.id)
