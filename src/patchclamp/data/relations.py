"""Facts by relation as a Task, from files of the LRE relations dataset (Hernandez et al. 2024, evandez/relations).

One JSON file per relation: {"name", "prompt_templates", "prompt_templates_zs", "properties", "samples": [{"subject",
"object"}]}, a template holding {} where the subject goes. The data are not part of this package.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.data.generate.items import rng_for, sentence_case, with_distractors
from patchclamp.data.task_items import TaskItem
from patchclamp.data.tasks import Task

KINDS = ("prompt_templates", "prompt_templates_zs")


def relations(
    path: str | os.PathLike[str],
    *,
    names: Iterable[str] | None = None,
    zero_shot: bool = False,
    every_template: bool = False,
    at_least: int = 2,
    limit: int | None = None,
    seed: int = 0,
) -> Task:
    """The facts of one relation file or of a folder of them (subfolders too) as one task.

    names: relations to read, by file name without .json (default: all). zero_shot: templates that ask by themselves.
    every_template: an item per wording; otherwise the first one, the others as `alternatives`. at_least: relations with
    fewer subjects are left out (the paper takes those with more than 300 facts). limit: at most so many subjects of a
    relation, drawn at random. seed: of the draw and of the choices.

    Items: labels relation (file name), kind (folder), subject, template; answers are all objects that a subject has,
    each after a space; choices one of them and up to three other objects of the relation; group: relation and subject.
    InputError for a missing path or relation and for no fact left, DamagedError for a file of another format.
    """
    root = Path(path).expanduser()
    files = _files(root, names)
    items = [
        item
        for file in files
        for item in _items(
            file, "prompt_templates_zs" if zero_shot else KINDS[0], every_template, at_least, limit, seed
        )
    ]
    if not items:
        raise InputError(f"no relation of {root} has {at_least} subjects or more")
    return Task(root.stem, tuple(items), {"kind": "memory", "path": str(root.absolute())})


def _files(root: Path, names: Iterable[str] | None) -> list[Path]:
    if root.is_file():
        found = [root]
    elif root.is_dir():
        found = sorted(root.rglob("*.json"), key=lambda file: file.stem)
    else:
        raise InputError(f"no relation file or folder at {root}")
    if not found:
        raise InputError(f"the folder {root} holds no .json file; give one of relation files")
    if names is None:
        return found
    wanted = [names] if isinstance(names, str) else list(names)
    known = {file.stem: file for file in found}
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"no relation {unknown[0]!r} in {root}; there are {', '.join(known)}")
    return [known[name] for name in wanted]


def _items(
    file: Path, kind: str, every_template: bool, at_least: int, limit: int | None, seed: int
) -> Iterator[TaskItem]:
    templates, facts = _facts(file, kind)
    if len(facts) < at_least:
        return
    rng = rng_for("relations", file.stem, seed)
    pool = [value for objects in facts.values() for value in objects]
    subjects = list(facts)
    if limit is not None and limit < len(subjects):
        subjects = sorted(rng.sample(subjects, limit), key=subjects.index)
    for subject in subjects:
        objects = facts[subject]
        others = [value for value in pool if value not in objects]
        answers = tuple(f" {value}" for value in objects)
        choices = tuple(f" {value}" for value in with_distractors(objects[0], others, rng)) if others else ()
        wordings = [sentence_case(template.replace("{}", subject)) for template in templates]
        shown = enumerate(wordings) if every_template else [(0, wordings[0])]
        for number, prompt in shown:
            labels = {"relation": file.stem, "kind": file.parent.name, "subject": subject, "template": str(number)}
            yield TaskItem(
                prompt=prompt,
                answers=answers,
                choices=choices,
                labels=labels,
                alternatives=() if every_template else tuple(wordings[1:]),
                group=f"{file.stem}: {subject}",
            )


def _facts(file: Path, kind: str) -> tuple[list[str], Mapping[str, tuple[str, ...]]]:
    """Templates, and subject -> its objects, of one file."""
    try:
        data: Any = json.loads(file.read_text(encoding="utf-8"))
        templates = [str(template) for template in data.get(kind) or data[KINDS[0]]]
        facts: dict[str, dict[str, None]] = {}
        for sample in data["samples"]:
            subject, value = sample["subject"].strip(), sample["object"].strip()
            if subject and value:
                facts.setdefault(subject, {})[value] = None
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DamagedError(f"{file} is no relation file: {problem!r}") from problem
    if not templates or any("{}" not in template for template in templates):
        raise DamagedError(f"{file}: a template has no {{}} where the subject goes")
    return templates, {subject: tuple(values) for subject, values in facts.items()}
