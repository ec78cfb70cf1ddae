"""What side effects are looked for in: tasks with their metrics, text, prompts to go on from; what of it is the target."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.data.corpora import Corpus
from patchclamp.data.demo import demo_text
from patchclamp.data.demo_tasks import demo_tasks
from patchclamp.data.documents import Document
from patchclamp.data.sources import Source
from patchclamp.data.tasks import Task
from patchclamp.measure.effect_work import OnTasks, OnText
from patchclamp.measure.likelihood import Reading
from patchclamp.measure.task_measurement import check_task

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

DEMO_DOCUMENTS = 24  # of each language, which with the tasks takes a minute or two on a CPU
BEGINNING = 8  # tokens of a document that a sample goes on from
REST = "second half"  # of a document, as a span
SAMPLES = 12  # prompts where none are given

Target = str | Sequence[str] | Task | Mapping[str, Task] | Corpus


@dataclass(frozen=True)
class Wanted:
    """What to measure. tasks: name -> task. texts: up to two corpora (that of the target first). targets: names among their
    tasks and labels. how: task -> metric; options: metric -> its keywords."""

    tasks: dict[str, Task]
    texts: dict[str, Corpus]
    targets: tuple[str, ...]
    how: dict[str, str]
    options: dict[str, dict[str, Any]]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all that is measured: the target's first, then tasks, then labels of text."""
        every = (*self.tasks, *(label for text in self.texts.values() for label in text.labels))
        return (*self.targets, *(name for name in every if name not in self.targets))

    def works(self, reading: Reading, *, halves: bool) -> list[OnText | OnTasks]:
        """The work, one entry per metric and corpus. halves: the first half of every document counts as a prompt, and the
        second half is measured."""
        found: list[OnText | OnTasks] = []
        for metric in dict.fromkeys(self.how.values()):
            chosen = {name: task for name, task in self.tasks.items() if self.how[name] == metric}
            found.append(OnTasks(chosen, metric, self.options.get(metric, {}), reading.batch_tokens))
        if not halves:
            return [*found, *(OnText(text, reading) for text in self.texts.values())]
        rest = replace(reading, select=replace(reading.select, inside=REST))
        return [*found, *(OnText(_in_halves(text), rest) for text in self.texts.values())]

    def items(self, name: str, numbers: Sequence[int]) -> list[str]:
        """The texts of some items of a task (prompt and right answer) or some documents of a label."""
        if name in self.tasks:
            return [self.tasks[name][number].prompt + self.tasks[name][number].answers[0] for number in numbers]
        text = next(text for text in self.texts.values() if name in text.labels)
        read = itertools.islice(text.documents(name), max(numbers, default=-1) + 1)
        kept = {number: one.text for number, one in enumerate(read) if number in set(numbers)}
        return [kept[number] for number in numbers]

    def prompts(self, model: LanguageModel) -> list[str]:
        """A prompt of every task and the beginning of a document of every label, those of the target first."""
        found = []
        for name in self.names[:SAMPLES]:
            if name in self.tasks:
                found.append(self.tasks[name][0].prompt)
            else:
                found.append(_beginning(model, self.items(name, [0])[0]))
        return [prompt for prompt in dict.fromkeys(found) if prompt]

    @property
    def inputs(self) -> dict[str, Any]:
        """Identities for the provenance."""
        tasks = {"tasks": {name: task.identity for name, task in self.tasks.items()}} if self.tasks else {}
        return {**tasks, **{name: text.identity for name, text in self.texts.items()}}


def wanted(
    model: LanguageModel,
    target: Target | None,
    tasks: Task | Mapping[str, Task] | None,
    text: Corpus | None,
    how: str | Mapping[str, str] | None,
    options: Mapping[str, Mapping[str, Any]] | None,
) -> Wanted:
    """What to measure; the demo model's own tasks and text where neither is given. InputError for anything else without."""
    if tasks is None and text is None:
        tasks, text = _own(model)
    named = _tasks(tasks)
    texts = {} if text is None else {"text": _corpus(text)}
    targets: list[str] = []
    if isinstance(target, Corpus):
        texts, targets = {"target_text": target, **texts}, list(target.labels)
    elif isinstance(target, Task | Mapping):
        own = _tasks(target)
        named, targets = {**_without(named, own), **own}, list(own)
    elif target is not None:
        targets = [target] if isinstance(target, str) else list(target)
    known = [*named, *(label for one in texts.values() for label in one.labels)]
    if twice := sorted({name for name in known if known.count(name) > 1}):
        raise InputError(f"{twice[0]!r} names two things that are measured; give the task or the text another name")
    if unknown := [name for name in targets if name not in known]:
        raise InputError(f"the target {unknown[0]!r} is neither a task nor a label; there are {', '.join(known)}")
    metrics = _metrics(named, how)
    if unused := [name for name in options or {} if name not in metrics.values()]:
        raise InputError(f"options for the metric {unused[0]!r}, but the tasks are measured by {_listed(metrics)}")
    return Wanted(named, texts, tuple(targets), metrics, {name: dict(one) for name, one in (options or {}).items()})


def _own(model: LanguageModel) -> tuple[dict[str, Task], Corpus]:
    if model.source != "demo":
        raise InputError(
            f"{model.name} brings no tasks and no text of its own, as the demo model does: give tasks= (task(...), or name -> "
            "task) or text= (corpus(en=...)), best both, to look for side effects in"
        )
    return demo_tasks(), demo_text(split="measure").limited(max_documents=DEMO_DOCUMENTS)


def _tasks(given: Any) -> dict[str, Task]:
    if given is None:
        return {}
    tasks = {given.name: given} if isinstance(given, Task) else given
    if not isinstance(tasks, Mapping):
        raise InputError(f"tasks={given!r:.60}; give a task (task(...)), or name -> task")
    for found in tasks.values():
        check_task(found)
    return dict(tasks)


def _corpus(given: Any) -> Corpus:
    if not isinstance(given, Corpus):
        raise InputError(f"text={given!r:.60}; give labelled text: corpus(en=...)")
    return given


def _in_halves(text: Corpus) -> Corpus:
    """The same documents, their second halves in a span."""

    def source(label: str) -> Source:
        return Source(lambda: map(_halved, text.documents(label)), text.source(label))

    return Corpus({label: source(label) for label in text.labels}, max_tokens=text.max_tokens)


def _halved(document: Document) -> Document:
    """A document with its second half, from the next word on where there are words, in the span REST."""
    size = len(document.text)
    space = document.text.find(" ", size // 2)
    return replace(document, spans={**document.spans, REST: ((size // 2 if space < 0 else space, size),)})


def _without(tasks: dict[str, Task], own: Mapping[str, Task]) -> dict[str, Task]:
    """The tasks that aren't the target's: the same task may stand in both."""
    return {name: task for name, task in tasks.items() if name not in own or own[name].fingerprint != task.fingerprint}


def _metrics(tasks: Mapping[str, Task], how: str | Mapping[str, str] | None) -> dict[str, str]:
    """Task -> metric: what was asked for; else choice where every item has choices, and the loss of the answers."""
    given = dict.fromkeys(tasks, how) if isinstance(how, str) else dict(how or {})
    if unknown := [name for name in given if name not in tasks]:
        raise InputError(f"how= names {unknown[0]!r}, which is no task; there are {', '.join(tasks) or 'none'}")
    return {
        name: given.get(name) or ("choice" if all(item.choices for item in task) else "loss")
        for name, task in tasks.items()
    }


def _listed(metrics: Mapping[str, str]) -> str:
    return ", ".join(dict.fromkeys(metrics.values())) or "none"


def _beginning(model: LanguageModel, text: str) -> str:
    """The first tokens of a text (half of them if it has no more), up to the end of a word in scripts with spaces."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    kept = str(model.tokenizer.decode(ids[: max(1, min(BEGINNING, len(ids) // 2))], skip_special_tokens=True))
    return kept if text[len(kept) : len(kept) + 1].isspace() else kept.rpartition(" ")[0] or kept
