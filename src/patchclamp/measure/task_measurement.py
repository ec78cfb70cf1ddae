"""One metric on one task as a Measurement: `score(model, task, how="choice")`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.tasks import Task
from patchclamp.measure.effect_runs import PLAIN
from patchclamp.measure.measurement import Measurement, Measurements
from patchclamp.measure.task_scores import TaskMetric, metrics, options_of

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def score(
    model: LanguageModel,
    task: Task,
    how: str = "choice",
    *,
    batch_tokens: int = 4096,
    quiet: bool = False,
    **options: Any,
) -> Measurement:
    """Score a task by the metric that `how` names, under whatever interventions are active.

    how: "choice", "completion", "pairs", "generation", "loss", or a metric of an installed package; options: its keywords
    (`measure.choice` and the others document them). InputError for what the metric doesn't know.
    """
    return measured(model, task, metric_of(how, options), batch_tokens=batch_tokens, quiet=quiet)


def score_all(
    model: LanguageModel,
    tasks: Mapping[str, Task],
    how: str = "choice",
    *,
    batch_tokens: int = 4096,
    quiet: bool = False,
    **options: Any,
) -> Measurements:
    """Score several tasks by the same metric; name -> Measurement, with intervals, chance levels and provenance."""
    if not tasks:
        raise InputError("no task was given")
    metric = metric_of(how, options)
    found = {}
    for name, task in tasks.items():
        found[name] = replace(measured(model, task, metric, batch_tokens=batch_tokens, quiet=quiet), label=name)
    source = provenance(
        "measure.score_all",
        arguments={"how": how, **options_of(metric), "batch_tokens": batch_tokens},
        inputs={"model": dict(model.identity), "tasks": {name: task.identity for name, task in tasks.items()}},
    )
    return Measurements(found, source)


def metric_of(how: str, options: dict[str, Any]) -> TaskMetric:
    """The metric of a name with its options."""
    kind = metrics[how]
    known = list(next(entry for entry in metrics if entry.name == how).parameters)
    if unknown := [name for name in options if name not in known]:
        raise InputError(f"the metric {how!r} has no option {unknown[0]!r}; it has {', '.join(known)}")
    metric: TaskMetric = kind(**options)
    return metric


def measured(model: LanguageModel, task: Task, metric: TaskMetric, *, batch_tokens: int, quiet: bool) -> Measurement:
    """The Measurement of a metric: one value per item, each item of weight 1."""
    check_task(task)
    if batch_tokens < 1:
        raise InputError(f"batch_tokens={batch_tokens}; at least 1 is needed")
    found = metric.scores(model, task, [], batch_tokens=batch_tokens, reuse=False, quiet=quiet)
    source = provenance(
        f"measure.{type(metric).__name__.lower()}",
        arguments={**options_of(metric), "batch_tokens": batch_tokens},
        inputs={"model": dict(model.identity), "task": task.identity},
    )
    return Measurement(
        metric.metric,
        task.name,
        found.values[PLAIN],
        np.ones(len(task), dtype=np.int64),
        task.fingerprint,
        scored=found.tokens,
        items=tuple(found.items),
        provenance=source,
    )


def check_task(task: Any) -> None:
    """InputError for anything but a Task."""
    if not isinstance(task, Task):
        raise InputError(
            f"{task!r:.80} is a {type(task).__name__}; a Task is needed: task('generate:facts') or task(path)"
        )
