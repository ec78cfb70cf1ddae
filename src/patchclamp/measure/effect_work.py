"""What effects are measured on: the perplexity of labelled text, or one metric of several tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus
from patchclamp.data.tasks import Task
from patchclamp.measure.effect_runs import PLAIN, Run, run_key, score_runs
from patchclamp.measure.effect_subjects import Subject
from patchclamp.measure.effect_sums import EffectSums
from patchclamp.measure.likelihood import Reading
from patchclamp.measure.task_measurement import check_task, metric_of
from patchclamp.measure.task_scores import options_of

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def work_on(on: Any, how: str | None, options: Mapping[str, Any] | None, reading: Reading) -> OnText | OnTasks:
    """What is measured; InputError for keywords that have no meaning there."""
    if isinstance(on, Corpus):
        if how is not None or options:
            raise InputError("how= and options= belong to tasks; the effect on text is that on its perplexity")
        return OnText(on, reading)
    tasks = {on.name: on} if isinstance(on, Task) else on
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(f"on={on!r:.60}; give labelled text (corpus(...)), a task (task(...)), or name -> task")
    for found in tasks.values():
        check_task(found)
    if reading.max_length is not None or reading.select != Selection():
        raise InputError("max_length= and select= belong to text; the items of a task are read whole")
    return OnTasks(dict(tasks), how or "choice", dict(options or {}), reading.batch_tokens)


Totals = Mapping[str, NDArray[np.float64]]


def by_other_models(
    subjects: list[Subject], works: Sequence[OnText | OnTasks], *, quiet: bool
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Text or task -> key -> totals of what is run in other models: each model is made once, and measured on everything."""
    found: dict[str, dict[str, NDArray[np.float64]]] = {name: {} for work in works for name in work.names}
    for subject in subjects:
        for number, model in subject.models() if subject.models is not None else ():
            for work in works:
                for name in work.names:
                    found[name][run_key(subject.name, number)] = work.totals(model, name, quiet=quiet)
    return found


class OnText:
    """Perplexity of every label of a text."""

    unit = "document with scored tokens"

    def __init__(self, on: Corpus, reading: Reading) -> None:
        self.on, self.reading = on, reading
        self.names = on.labels

    def check(self, subjects: list[Subject]) -> None:
        """InputError where it isn't known which tokens count as generated."""
        scope = _scope(subjects)
        if scope != "all" and self.reading.select.inside is None:
            raise InputError(
                f"scope={scope!r} on text needs to know what is generated: give documents with such a span and "
                "select=Selection(inside='response') (--select response)"
            )

    def sums(
        self, model: LanguageModel, name: str, subjects: list[Subject], others: Totals, *, reuse: bool, quiet: bool
    ) -> EffectSums:
        """Per-document sums of one label, plain and under every run. others: key -> sums of other models."""
        how: dict[str, Any] = {"scope": _scope(subjects), "reuse": reuse, "quiet": quiet}
        scored = score_runs(model, self.on, name, self.reading, _runs(subjects), **how)
        scored.totals.update(others)
        return EffectSums.of_text(scored, _ran(subjects))

    def totals(self, other: LanguageModel, name: str, *, quiet: bool) -> NDArray[np.float64]:
        """Per-document sums of one label by another model."""
        scored = score_runs(other, self.on, name, self.reading, [], scope="all", reuse=False, quiet=quiet)
        return scored.totals[PLAIN]

    @property
    def arguments(self) -> dict[str, Any]:
        return self.reading.to_dict()

    @property
    def inputs(self) -> dict[str, Any]:
        return {"text": self.on.identity}


class OnTasks:
    """One metric of several tasks."""

    unit = "item"

    def __init__(self, on: dict[str, Task], how: str, options: dict[str, Any], batch_tokens: int) -> None:
        self.on, self.how, self.batch_tokens = on, how, batch_tokens
        self.metric = metric_of(how, options)
        self.names = tuple(on)

    def check(self, subjects: list[Subject]) -> None:
        """InputError for a batch without a token; tasks know which of their tokens count as generated."""
        if self.batch_tokens < 1:
            raise InputError(f"batch_tokens={self.batch_tokens}; at least 1 is needed")

    def sums(
        self, model: LanguageModel, name: str, subjects: list[Subject], others: Totals, *, reuse: bool, quiet: bool
    ) -> EffectSums:
        """Per-item values of one task, plain and under every run. others: key -> values by other models."""
        how: dict[str, Any] = {"batch_tokens": self.batch_tokens, "reuse": reuse, "quiet": quiet}
        scored = self.metric.scores(model, self.on[name], _runs(subjects), **how)
        scored.values.update(others)
        return EffectSums.of_task(self.metric.metric, scored, _ran(subjects))

    def totals(self, other: LanguageModel, name: str, *, quiet: bool) -> NDArray[np.float64]:
        """Per-item values of one task by another model."""
        how: dict[str, Any] = {"batch_tokens": self.batch_tokens, "reuse": False, "quiet": quiet}
        values: NDArray[np.float64] = self.metric.scores(other, self.on[name], [], **how).values[PLAIN]
        return values

    @property
    def arguments(self) -> dict[str, Any]:
        return {"batch_tokens": self.batch_tokens, "how": self.how, "options": options_of(self.metric)}

    @property
    def inputs(self) -> dict[str, Any]:
        return {"tasks": {name: task.identity for name, task in self.on.items()}}


def _scope(subjects: list[Subject]) -> str:
    """The scope of what is not for all positions: hooks must know then where what is generated begins."""
    return next((subject.scope for subject in subjects if subject.scope != "all"), "all")


def _runs(subjects: list[Subject]) -> list[Run]:
    return [run for subject in subjects for run in subject.runs]


def _ran(subjects: list[Subject]) -> dict[str, int]:
    """Subject -> how many controls were run."""
    return {subject.name: subject.n_controls for subject in subjects}
