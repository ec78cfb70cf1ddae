"""Prompts of facts for relation neurons: split by subject, filtered by what the model knows, checked for leaks."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.measure.completion import completion

if TYPE_CHECKING:
    from patchclamp.data.task_items import TaskItem
    from patchclamp.data.tasks import Task
    from patchclamp.models.load import LanguageModel


@dataclass(frozen=True)
class Validated:
    """Prompts that the model completes right.

    task: their items. kept: label -> (prompts kept, prompts asked). skipped: label -> why none of its prompts are used.
    """

    task: Task
    kept: dict[str, tuple[int, int]]
    skipped: dict[str, str]


def validated(
    model: LanguageModel,
    task: Task,
    *,
    by: str = "relation",
    tokens: int | None = 2,
    least: int = 5,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Validated:
    """Keep the prompts whose answer the model writes; labels with fewer than `least` of them are skipped, with the reason.

    A prompt counts if greedy decoding writes the first `tokens` tokens of a right answer (all of a shorter one; None: the
    whole answer). The paper takes any text of two tokens that is a prefix of the object, which an empty text is too.
    InputError if fewer than two labels are left.
    """
    right = completion(model, task, tokens=tokens, batch_tokens=batch_tokens, quiet=quiet).totals > 0.5
    asked = Counter(label_of(item, by) for item in task)
    knows = Counter(label_of(item, by) for item, knows in zip(task, right, strict=True) if knows)
    skipped = {
        label: f"the model completes {knows[label]} of {n} prompts; at least {least} are needed"
        for label, n in asked.items()
        if knows[label] < least
    }
    if len(asked) - len(skipped) < 2:
        said = "; ".join(f"{label}: {why}" for label, why in skipped.items())
        raise InputError(f"fewer than two labels are left after asking the model ({said})")
    items = [item for item, ok in zip(task, right, strict=True) if ok and label_of(item, by) not in skipped]
    kept = {label: (knows[label], n) for label, n in asked.items()}
    return Validated(with_items(task, items), kept, skipped)


def split_subjects(
    task: Task, *, subject: str = "subject", by: str = "relation", evaluation: int = 50, seed: int = 0
) -> tuple[Task, Task]:
    """Part a task into prompts to detect with and prompts to evaluate on, with no subject in both.

    A subject goes with all its relations, so that father and mother of one person stay together. evaluation: subjects of
    each relation to evaluate on, at most half of them. Raises InputError for items without the labels, and where too few
    subjects leave a side empty.
    """
    if evaluation < 1:
        raise InputError(f"evaluation={evaluation}; at least 1 subject of a relation is needed")
    relations_of: dict[str, set[str]] = defaultdict(set)
    for item in task:
        relations_of[label_of(item, subject)].add(label_of(item, by))
    n_subjects = Counter(relation for found in relations_of.values() for relation in found)
    missing = {relation: min(evaluation, n // 2) for relation, n in n_subjects.items()}
    drawn = sorted(relations_of)
    random.Random(f"subjects {seed}").shuffle(drawn)
    chosen = set()
    for name in drawn:
        if any(missing[relation] > 0 for relation in relations_of[name]):
            chosen.add(name)
            for relation in relations_of[name]:
                missing[relation] -= 1
    parts = ([item for item in task if (item.labels[subject] in chosen) == wanted] for wanted in (False, True))
    detection, evaluated = (list(part) for part in parts)
    if not detection or not evaluated:
        raise InputError(f"{len(drawn)} subjects can't be parted into detection and evaluation; give more of them")
    return with_items(task, detection), with_items(task, evaluated)


def check_leakage(detection: Task, evaluation: Task, *, subject: str = "subject") -> None:
    """InputError if a subject is in both tasks: a unit of that subject would look like a unit of the relation."""
    shared = {label_of(item, subject) for item in detection} & {label_of(item, subject) for item in evaluation}
    if shared:
        named = ", ".join(sorted(shared)[:3])
        raise InputError(
            f"{len(shared)} subjects are in the prompts to detect with and in those to evaluate on ({named}); "
            "part them with split_subjects"
        )


def subject_overlap(task: Task, *, subject: str = "subject", by: str = "relation") -> dict[str, Any]:
    """Subjects that relations share: {"labels": [...], "matrix": counts, symmetric, own subjects on the diagonal}."""
    subjects: dict[str, set[str]] = defaultdict(set)
    for item in task:
        subjects[label_of(item, by)].add(label_of(item, subject))
    labels = sorted(subjects)
    return {"labels": labels, "matrix": [[len(subjects[a] & subjects[b]) for b in labels] for a in labels]}


def with_items(task: Task, items: list[TaskItem]) -> Task:
    """The task with some of its items, held in memory (a filter by a model can't be repeated from a file)."""
    return replace(task, items=tuple(items), origin={"kind": "memory", "from": task.identity}, steps=())


def label_of(item: TaskItem, key: str) -> str:
    """A label of an item; InputError if it has none."""
    if key not in item.labels:
        raise InputError(
            f"an item has no label {key!r} ({', '.join(item.labels) or 'no labels'}): {item.prompt[:60]!r}"
        )
    return item.labels[key]
