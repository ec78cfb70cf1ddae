"""What clamping units does to perplexity or to tasks, against matched-random controls: `effect(model, sets, on=text)`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus
from patchclamp.data.tasks import Task
from patchclamp.intervene.interventions import SCOPES
from patchclamp.measure.effect_runs import Run, runs_of, score_runs
from patchclamp.measure.effect_sums import EffectSums
from patchclamp.measure.effect_table import Effects
from patchclamp.measure.holm import holm
from patchclamp.measure.likelihood import Reading
from patchclamp.measure.task_measurement import check_task, metric_of
from patchclamp.measure.task_scores import options_of
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording


def effect(
    model: LanguageModel,
    units: UnitSet | Mapping[str, UnitSet],
    *,
    on: Corpus | Task | Mapping[str, Task],
    how: str | None = None,
    options: Mapping[str, Any] | None = None,
    to: float | str | None = None,
    scale: float | None = None,
    add: float | None = None,
    scope: str = "all",
    controls: int = 10,
    permutations: int = 9999,
    resamples: int = 1000,
    seed: int = 0,
    recording: Recording | None = None,
    label: str | None = None,
    batch_tokens: int = 4096,
    max_length: int | None = None,
    select: Selection | None = None,
    reuse: bool = True,
    quiet: bool = False,
) -> Effects:
    """Change of perplexity, or of a task's metric, when each set is clamped; with controls, intervals and p-values.

    units: one set, or name -> set. on: labelled text, a task, or name -> task. how: the metric of tasks ("choice" by
    default, see `measure.score`); options: its keywords, such as {"normalise": "tokens"}. to, scale, add: what is done to
    the units, as in `clamp`; to 0.0 by default; "mean" needs recording= (label: whose mean). controls: random sets with as
    many units in every layer (seed, seed + 1, ...), none of them in the set while others are left. Per set and text:
    effect = clamped - plain value; low, high = 95% bootstrap over documents (items of a task); p = two-sided sign-flip
    permutation over them of the change of log-loss (of the items' values) minus its mean under the controls;
    p_controls = (k + 1) / (controls + 1) with k controls whose effect is at least as large in size; p_holm = p corrected
    over the whole table (Holm). p says that the set differs from the average control on text like this; p_controls
    whether random sets do as much.
    scope: on text, "prompt" and "generated" need select=Selection(inside=...): a row's first selected token begins what
    counts as generated; in tasks the tokens of answers and choices do. reuse: run the blocks below a set's first layer
    once per batch (same numbers, less time; no such thing where text is generated).
    Raises MismatchError for units of another model, InputError for a text without a token to score, for keywords of text
    (select, max_length) on tasks, and of tasks (how, options) on text.
    """
    sets = {"units": units} if isinstance(units, UnitSet) else dict(units)
    given: dict[str, Any] = {"to": to, "scale": scale, "add": add}
    if all(value is None for value in given.values()):
        given["to"] = 0.0
    work = _work(on, how, options, Reading(batch_tokens, max_length, select or Selection()))
    _check(model, sets, given, scope, controls)
    work.check(scope)
    notes: list[str] = []
    keywords = {**given, "scope": scope, "recording": recording, "label": label}
    runs: list[Run] = []
    for name, chosen in sets.items():
        several = _with_controls(name, chosen, controls, seed, notes)
        runs += runs_of(model, name, several, keywords) if len(chosen) else []
    ran = {name: controls if len(units) else 0 for name, units in sets.items()}
    tables = {}
    for text in work.names:
        tables[text] = work.sums(model, text, runs, ran, scope=scope, reuse=reuse, quiet=quiet)
        if tables[text].n < 2:
            notes.append(f"{text!r} has {tables[text].n} {work.unit}: no interval, and p is 1")
    notes += [
        f"the set {name!r} is empty: its effect is 0 and p is 1" for name, units in sets.items() if not len(units)
    ]
    rows = [
        {"set": name, "text": text, **table.row(name, permutations, resamples, seed), "n_units": len(units)}
        for name, units in sets.items()
        for text, table in tables.items()
    ]
    if len(rows) > 0.01 * (permutations + 1):
        notes.append(
            f"{len(rows)} tests with {permutations} permutations: no corrected p can be below "
            f"{min(1.0, len(rows) / (permutations + 1)):.2g}; give permutations={200 * len(rows)} or more to go lower"
        )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    for note in notes:
        warnings.warn(note, stacklevel=2)
    done = {**given, "scope": scope, "controls": controls, "permutations": permutations, "resamples": resamples}
    source = provenance(
        "effect",
        arguments={**done, "seed": seed, "label": label, **work.arguments},
        inputs=_inputs(model, sets, work.inputs, recording),
        seed=seed,
    )
    return Effects(rows, {text: table.to_dict() for text, table in tables.items()}, notes, source)


def _work(on: Any, how: str | None, options: Mapping[str, Any] | None, reading: Reading) -> _Text | _Tasks:
    """What is measured; InputError for keywords that have no meaning there."""
    if isinstance(on, Corpus):
        if how is not None or options:
            raise InputError("how= and options= belong to tasks; the effect on text is that on its perplexity")
        return _Text(on, reading)
    tasks = {on.name: on} if isinstance(on, Task) else on
    if not isinstance(tasks, Mapping) or not tasks:
        raise InputError(f"on={on!r:.60}; give labelled text (corpus(...)), a task (task(...)), or name -> task")
    for found in tasks.values():
        check_task(found)
    if reading.max_length is not None or reading.select != Selection():
        raise InputError("max_length= and select= belong to text; the items of a task are read whole")
    return _Tasks(dict(tasks), how or "choice", dict(options or {}), reading.batch_tokens)


class _Text:
    """Perplexity of every label of a text."""

    unit = "document with scored tokens"

    def __init__(self, on: Corpus, reading: Reading) -> None:
        self.on, self.reading = on, reading
        self.names = on.labels

    def check(self, scope: str) -> None:
        if scope != "all" and self.reading.select.inside is None:
            raise InputError(
                f"scope={scope!r} on text needs to know what is generated: give documents with such a span and "
                "select=Selection(inside='response') (--select response)"
            )

    def sums(self, model: LanguageModel, name: str, runs: list[Run], ran: Mapping[str, int], **how: Any) -> EffectSums:
        return EffectSums.of_text(score_runs(model, self.on, name, self.reading, runs, **how), ran)

    @property
    def arguments(self) -> dict[str, Any]:
        return self.reading.to_dict()

    @property
    def inputs(self) -> dict[str, Any]:
        return {"text": self.on.identity}


class _Tasks:
    """One metric of several tasks."""

    unit = "item"

    def __init__(self, on: dict[str, Task], how: str, options: dict[str, Any], batch_tokens: int) -> None:
        self.on, self.how, self.batch_tokens = on, how, batch_tokens
        self.metric = metric_of(how, options)
        self.names = tuple(on)

    def check(self, scope: str) -> None:
        if self.batch_tokens < 1:
            raise InputError(f"batch_tokens={self.batch_tokens}; at least 1 is needed")

    def sums(
        self, model: LanguageModel, name: str, runs: list[Run], ran: Mapping[str, int], *, scope: str, **how: Any
    ) -> EffectSums:
        scored = self.metric.scores(model, self.on[name], runs, batch_tokens=self.batch_tokens, **how)
        return EffectSums.of_task(self.metric.metric, scored, ran)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"batch_tokens": self.batch_tokens, "how": self.how, "options": options_of(self.metric)}

    @property
    def inputs(self) -> dict[str, Any]:
        return {"tasks": {name: task.identity for name, task in self.on.items()}}


def _check(model: LanguageModel, sets: Mapping[str, Any], given: Mapping[str, Any], scope: str, controls: int) -> None:
    if not sets:
        raise InputError("no unit set was given")
    for name, units in sets.items():
        if not isinstance(units, UnitSet):
            raise InputError(f"{name!r} is a {type(units).__name__}; a UnitSet is needed (UnitSet.of(model, names))")
        units.check_model(model)
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) != 1:
        raise InputError(f"give one of to=, scale=, add=; {', '.join(chosen)} given")
    if not isinstance(given[chosen[0]], int | float | str):
        raise InputError(f"{chosen[0]}= takes one number here, for controls have other units than the set")
    if controls < 0:
        raise InputError(f"controls={controls}; it is a number of random sets, at least 0")
    if scope not in SCOPES:
        raise InputError(f"scope={scope!r}; it is one of {', '.join(SCOPES)}")


def _with_controls(name: str, units: UnitSet, controls: int, seed: int, notes: list[str]) -> list[UnitSet]:
    """The set, then its matched-random controls."""
    others = [units.matched_random(seed + number) for number in range(controls)]
    if any(len(other & units) for other in others):
        notes.append(f"the set {name!r} holds more than half of a layer: its controls share units with it")
    return [units, *others]


def _inputs(
    model: LanguageModel, sets: Mapping[str, UnitSet], on: Mapping[str, Any], recording: Recording | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"model": dict(model.identity), **on}
    found["sets"] = {name: {"units": units.names()} for name, units in sets.items()}
    if recording is not None:
        folder = None if recording.folder is None else str(recording.folder.absolute())
        found["recording"] = {"fingerprint": recording.fingerprint, "path": folder, "labels": list(recording.labels)}
    return found
