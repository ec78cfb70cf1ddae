"""One item of a task: checked when it is made; from a generated Item or a dict, and back to plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.generate.items import Item


@dataclass(frozen=True)
class TaskItem:
    """A prompt with its right answers.

    answers: the right ones, answers[0] the canonical one; each begins with the space that it needs, so that
    `prompt + answer` is running text. choices: what is ranked, at least one right and one wrong answer; empty if there
    is nothing to rank. labels: what groups the item. alternatives: other wordings of the prompt. group: items of one
    group say the same thing (a fact in several wordings), and never serve each other as shots. tail: what closes the
    sentence after the answer. A minimal pair has an empty prompt (or the shared beginning), answers=(good,),
    choices=(good, bad). InputError for an item that can't be asked.
    """

    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    group: str | None = None
    id: str | None = None
    tail: str = ""

    def __post_init__(self) -> None:
        for name in ("answers", "choices", "alternatives"):
            given = getattr(self, name)
            if isinstance(given, str) or not all(isinstance(text, str) for text in given):
                raise InputError(f"{name} is {given!r}; a list of texts is needed")
            object.__setattr__(self, name, tuple(given))
        for name in ("prompt", "tail"):
            if not isinstance(getattr(self, name), str):
                raise InputError(f"{name} is {getattr(self, name)!r}; a text is needed")
        if not self.answers or not all(self.answers):
            raise InputError(f"the item {_short(self.prompt)} has no answer, or an empty one")
        if self.choices:
            self._check_choices()

    @property
    def wordings(self) -> tuple[str, ...]:
        """The prompt and its alternatives."""
        return (self.prompt, *self.alternatives)

    @property
    def right(self) -> tuple[bool, ...]:
        """Which choices are right."""
        return tuple(choice in self.answers for choice in self.choices)

    @property
    def solved(self) -> str:
        """The whole sentence: prompt, canonical answer and tail."""
        return self.prompt + self.answers[0] + self.tail

    def to_dict(self) -> dict[str, Any]:
        """Plain data; what is empty is left out, prompt and answers never."""
        found: dict[str, Any] = {"prompt": self.prompt, "answers": list(self.answers)}
        for name in ("choices", "labels", "alternatives", "group", "id", "tail"):
            value = getattr(self, name)
            if value:
                found[name] = dict(value) if name == "labels" else list(value) if isinstance(value, tuple) else value
        return found

    def _check_choices(self) -> None:
        name = f"the item {_short(self.prompt)}"
        if not all(self.choices):
            raise InputError(f"{name} has an empty choice")
        if len(set(self.choices)) < len(self.choices):
            raise InputError(f"{name} has the same choice twice: {', '.join(map(repr, self.choices))}")
        if not any(self.right):
            listed = ", ".join(map(repr, self.choices))
            raise InputError(f"{name}: the answer {self.answers[0]!r} is not among the choices {listed}")
        if all(self.right):
            raise InputError(f"{name} has no wrong choice; give one, or leave the choices out")


KEYS = tuple(entry.name for entry in fields(TaskItem))


def item_of(value: Any, where: str) -> TaskItem:
    """A TaskItem from one, from a generated Item, or from a dict. where: how to call it in an error.

    Keys of a dict: those of TaskItem; `answer` for a single answer; `good` and `bad` for a minimal pair.
    """
    if isinstance(value, TaskItem):
        return value
    if isinstance(value, Item):
        return _of_generated(value)
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is a {type(value).__name__}; an object with prompt and answers is needed")
    given = _without_shorthands(dict(value), where)
    if unknown := [key for key in given if key not in KEYS]:
        raise InputError(
            f"{where} has the key {unknown[0]!r}; keys are {', '.join(KEYS)}, answer, good, bad; "
            'whatever else groups items goes into "labels"'
        )
    if "answers" not in given:
        raise InputError(f"{where} has no answer; give answers (a list) or answer (a text)")
    given["labels"] = _labels(given.get("labels", {}), where)
    for key in ("group", "id"):
        if given.get(key) is not None:
            given[key] = str(given[key])
    try:
        return TaskItem(**{"prompt": "", **given})
    except InputError as problem:
        raise InputError(f"{where}: {problem}") from problem


def _without_shorthands(given: dict[str, Any], where: str) -> dict[str, Any]:
    if "good" in given or "bad" in given:
        if {"answer", "answers", "choices"} & set(given) or not {"good", "bad"} <= set(given):
            raise InputError(f"{where}: a minimal pair has good and bad, and no answers and choices beside them")
        good, bad = given.pop("good"), given.pop("bad")
        return {**given, "answers": (good,), "choices": (good, bad)}
    if "answer" in given:
        if "answers" in given:
            raise InputError(f"{where} has both answer and answers; give one of them")
        answer = given.pop("answer")
        if not isinstance(answer, str):
            raise InputError(f"{where}: answer is {answer!r}; it is the text of the answer, not its number")
        given["answers"] = (answer,)
    for key in ("answers", "choices", "alternatives"):
        if isinstance(given.get(key), list):
            given[key] = tuple(given[key])
        elif given.get(key) is None:
            given.pop(key, None)
    return given


def _labels(given: Any, where: str) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise InputError(f'{where}: labels are {given!r}; an object such as {{"relation": "capital"}} is needed')
    for key, value in given.items():
        if not isinstance(value, str | int | float | bool):
            raise InputError(f"{where}: the label {key!r} is {value!r}; a label's value is a text or a number")
    return {str(key): str(value) for key, value in given.items()}


def _of_generated(item: Item) -> TaskItem:
    """The generated item; its split becomes a label, and items of one fact become a group."""
    labels = {**item.labels, "split": item.split}
    fact = [labels.get(key) for key in ("skill", "relation", "country")]
    group = "/".join(map(str, fact)) if all(fact) else None
    return TaskItem(item.prompt, (item.answer,), tuple(item.choices), labels, group=group, tail=item.tail)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
