"""Options of commands that work on tasks, and how their values become tasks and a metric's keywords."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from patchclamp.core.errors import InputError

if TYPE_CHECKING:
    from patchclamp.data import Task
    from patchclamp.models import LanguageModel

TASK_HELP = (
    "Task, repeatable: a .jsonl file (prompt, answers, choices, labels), or items of a generator, such as "
    "generate:facts,split=heldout,language=en+fr,count=200 (see `patchclamp list generator`)."
)
Tasks = Annotated[list[str], typer.Option("--task", metavar="[NAME=]FILE|generate:...", help=TASK_HELP)]
OptionalTasks = Annotated[list[str] | None, typer.Option("--task", metavar="[NAME=]FILE|generate:...", help=TASK_HELP)]
How = Annotated[
    str | None,
    typer.Option("--how", help="Metric of tasks: choice (the default), completion, pairs, generation or loss."),
]
By = Annotated[str | None, typer.Option("--by", help="Split every task by the values of this label.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="LABEL=VALUE", help="Only items with this label value; repeatable."),
]
MaxItems = Annotated[int | None, typer.Option("--max-items", min=1, help="At most so many items, drawn at random.")]
Shots = Annotated[int | None, typer.Option("--shots", min=1, help="Solved items before every prompt.")]
Chat = Annotated[bool, typer.Option("--chat", help="Put prompts into the model's chat template.")]
Normalise = Annotated[
    str | None, typer.Option("--normalise", help="choice, pairs, loss: none (the default), tokens or characters.")
]
AnswerTokens = Annotated[
    int | None,
    typer.Option("--tokens", min=1, help="completion: compare only so many tokens; the whole answer if not given."),
]
CheckerName = Annotated[
    str | None, typer.Option("--checker", help="generation: exact (the default), contains or number.")
]
MaxNewTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="generation: tokens to write; 16.")]
Alternatives = Annotated[bool, typer.Option("--alternatives", help="Also ask in the items' other wordings; averaged.")]


@dataclass(frozen=True)
class Request:
    """What the options of a command ask for: tasks, which of their items and in which form, and a metric with options."""

    tasks: list[str]
    how: str
    options: Mapping[str, Any]
    chosen: Mapping[str, Any]
    chat: bool

    @classmethod
    def of(
        cls, tasks: list[str], how: str | None, chat: bool, chosen: Mapping[str, Any], options: Mapping[str, Any]
    ) -> Request:
        """chosen: by, where, max_items, shots, seed as they were given. options: the metric's, None and False: not given.

        Opens the tasks once: what can't be had is known before a model is loaded.
        """
        how = how or "choice"
        open_tasks(tasks, **chosen)
        return cls(tasks, how, metric_options(how, **options), chosen, chat)

    def open(self, model: LanguageModel) -> dict[str, Task]:
        """Name -> task for a model."""
        found = open_tasks(self.tasks, **self.chosen)
        return {name: task.with_chat(model.tokenizer) for name, task in found.items()} if self.chat else found


def open_tasks(
    specifications: list[str],
    *,
    by: str | None = None,
    where: list[str] | None = None,
    max_items: int | None = None,
    shots: int | None = None,
    seed: int = 0,
) -> dict[str, Task]:
    """Name -> task for repeated `--task` options: FILE, NAME=FILE, generate:..., NAME=generate:....

    Then, in this order: where, by, max_items, shots.
    """
    found: dict[str, Task] = {}
    for text in specifications:
        task = open_one(text)
        if where:
            task = task.where(**labels_of(where))
        for name, part in _parts(task, by, alone=len(specifications) == 1).items():
            if name in found:
                raise InputError(f"two tasks are called {name!r}; give them names: --task NAME={text}")
            found[name] = part
    for name, task in found.items():
        if max_items is not None:
            task = task.limited(max_items, seed=seed)
        found[name] = task if shots is None else task.with_shots(shots, seed=seed)
    return found


def open_one(text: str) -> Task:
    """The task of one `--task` option."""
    from patchclamp.data import task

    if text.startswith("generate:"):
        return task(text)
    name, separator, source = text.partition("=")
    if not separator:
        return task(text)
    if not name or not source:
        raise InputError(f"--task {text!r} is not NAME=FILE; write for example --task facts=facts.jsonl")
    return task(source, name=name)


def labels_of(where: list[str]) -> dict[str, list[str]]:
    """Label -> wanted values of repeated `--where LABEL=VALUE` options."""
    found: dict[str, list[str]] = {}
    for entry in where:
        key, separator, value = entry.partition("=")
        if not separator or not key or not value:
            raise InputError(f"--where {entry!r} is not LABEL=VALUE; write for example --where language=en")
        found.setdefault(key, []).append(value)
    return found


def metric_options(how: str, **given: Any) -> Mapping[str, Any]:
    """The options that were given (None and False: not given); InputError for one that the metric doesn't have."""
    from patchclamp.measure import metrics

    known = next((entry.parameters for entry in metrics if entry.name == how), None)
    found = {key: value for key, value in given.items() if value not in (None, False)}
    for key in found:
        if known is not None and key not in known:
            raise InputError(f"--{key.replace('_', '-')} has no meaning for --how {how}")
    return found


def _parts(task: Task, by: str | None, *, alone: bool) -> dict[str, Task]:
    if by is None:
        return {task.name: task}
    return {name if alone else f"{task.name}:{name}": part for name, part in task.by(by).items()}
