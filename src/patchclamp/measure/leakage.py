"""Does a skill that was taken away come back if it is asked for differently? Other wordings, prefixes, examples in front.

Abstention and unlearning act on what a query looks like inside the model, and a query can look different while it asks the same
(Li, Sun & Weng 2025 name this as the limit of Key Space Detection). `variations` makes the differently asked tasks, `leakage`
measures what is left of the skill in each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data.task_items import TaskItem
from patchclamp.data.tasks import Task
from patchclamp.intervene.abstention import Abstention
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.intervene.verdicts import verdicts
from patchclamp.measure.effect_table import Effects
from patchclamp.measure.effects import effect
from patchclamp.measure.tables import html_table, text_table

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

AS_ASKED = "as asked"
PREFIXES = {"after a greeting": "Hello! ", "after a request": "Please answer this: ", "on a new line": "\n"}
COLUMNS = ("change", "variation", "n", "plain", "changed", "left", "leaked", "refused")


@dataclass(frozen=True, eq=False)
class Leakage:
    """What is left of a skill, asked in several ways.

    rows: per change and variation: change, variation, n (items), plain and changed (the metric without and with the change),
    left (changed / plain, None where plain is 0), leaked (left minus what is left as asked: above 0 where asking differently
    brings the skill back), refused (share of prompts that an abstention refuses, None for other changes), low and high (95%
    interval of changed - plain). effects: the measurement behind them.
    """

    rows: tuple[dict[str, Any], ...]
    effects: Effects

    def row(self, change: str, variation: str) -> dict[str, Any]:
        """The row of one change and variation; InputError if there is none."""
        for row in self.rows:
            if (row["change"], row["variation"]) == (change, variation):
                return row
        raise InputError(f"no leakage of {change!r} when asked {variation!r} was measured")

    def __repr__(self) -> str:
        return text_table("Leakage", self.rows, COLUMNS)

    def _repr_html_(self) -> str:
        return html_table("Leakage", self.rows, COLUMNS)


def variations(
    task: Task, *, prefixes: Mapping[str, str] = PREFIXES, shots: Task | None = None, seed: int = 0
) -> dict[str, Task]:
    """The task as asked, in the items' other wordings where they have some, after every prefix, and after a solved example.

    prefixes: name -> text in front of every prompt. shots: where the example comes from (another skill, say); None leaves that
    variation out. seed: which example an item gets.
    """
    found = {AS_ASKED: task}
    reworded = [replace(item, prompt=wording, alternatives=()) for item in task for wording in item.alternatives]
    if reworded:
        found["in other words"] = Task.of(reworded, name=task.name)
    for name, prefix in prefixes.items():
        if name in found:
            raise InputError(f"{name!r} is the name of a variation already; give the prefix another one")
        found[name] = Task.of([_prefixed(item, prefix) for item in task], name=task.name)
    if shots is not None:
        found["after an example"] = task.with_shots(1, source=shots, seed=seed)
    return found


def leakage(
    model: LanguageModel,
    changes: Change | Interventions | Mapping[str, Change | Interventions],
    asked: Task | Mapping[str, Task],
    *,
    how: str = "generation",
    options: Mapping[str, Any] | None = None,
    batch_tokens: int = 4096,
    seed: int = 0,
    quiet: bool = False,
) -> Leakage:
    """What is left of a skill under changes that take it away, when it is asked for in several ways.

    changes: one, or name -> change. asked: the skill's task, varied by `variations`, or variation -> task (the first is how it is
    usually asked). how, options: the metric, as in `measure.score`. Raises what `effect` raises.
    """
    named = {"change": changes} if isinstance(changes, Change | Interventions) else dict(changes)
    tasks = variations(asked, seed=seed) if isinstance(asked, Task) else dict(asked)
    found = effect(
        model, named, on=tasks, how=how, options=options, controls=0, batch_tokens=batch_tokens, seed=seed, quiet=quiet
    )
    rows = []
    for name, change in named.items():
        usual: float | None = None
        for at, (variation, task) in enumerate(tasks.items()):
            row = found.row(name, variation)
            left = row["clamped"] / row["plain"] if row["plain"] else None
            usual = left if at == 0 else usual
            rows.append(
                {
                    "change": name, "variation": variation, "n": len(task), "plain": row["plain"], "changed": row["clamped"],
                    "left": left, "leaked": None if left is None or usual is None else left - usual,
                    "refused": _refused(model, change, task, dict(options or {})), "low": row["low"], "high": row["high"],
                }
            )  # fmt: skip
    return Leakage(tuple(rows), found)


def _prefixed(item: TaskItem, prefix: str) -> TaskItem:
    return replace(item, prompt=prefix + item.prompt, alternatives=tuple(prefix + other for other in item.alternatives))


def _refused(
    model: LanguageModel, change: Change | Interventions, task: Task, options: Mapping[str, Any]
) -> float | None:
    """Share of a task's prompts that the abstentions in a change refuse, answers that would be cut short among them."""
    refusing = [one for one in Interventions.of(change) if isinstance(one, Abstention)]
    if not refusing:
        return None
    prompts = [item.prompt for item in task]
    refused = np.zeros(len(prompts), dtype=bool)
    for one in refusing:
        length = int(options.get("max_new_tokens", 16)) if one.when == "any" else 0
        refused |= [verdict.refused for verdict in verdicts(model, one, prompts, max_new_tokens=length)]
    return float(refused.mean())
