"""What clamping units, or any other intervention, does to perplexity or to tasks, against matched-random controls:
`effect(model, sets, on=text)`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus
from patchclamp.data.tasks import Task
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.measure.effect_subjects import Changed, Subject, check_subjects, subjects_of
from patchclamp.measure.effect_sums import EffectSums
from patchclamp.measure.effect_table import Effects
from patchclamp.measure.effect_work import OnTasks, OnText, by_other_models, work_on
from patchclamp.measure.holm import holm
from patchclamp.measure.likelihood import Reading
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording


def effect(
    model: LanguageModel,
    units: Changed | Mapping[str, Changed],
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
    """Change of perplexity, or of a task's metric, under each intervention; with controls, intervals and p-values.

    units: a unit set, a change of any kind, a list of them (`Interventions`), or name -> one of these. on: labelled text, a
    task, or name -> task. how: the metric of tasks ("choice" by default, see `measure.score`); options: its keywords, such
    as {"normalise": "tokens"}. to, scale, add, scope: what is done to unit sets, as in `clamp`; to 0.0 by default; "mean"
    needs recording= (label: whose mean). Interventions say themselves what they do. controls: random sets with as many
    units in every layer (seed, seed + 1, ...), none of them in the set while others are left; of other interventions their
    own `matched_random`. A kind without such a control is measured without (a note says so): p is then of the change itself.
    Per set and text: effect = clamped - plain value; low, high = 95% bootstrap over documents (items of a task); p =
    two-sided sign-flip permutation over them of the change of log-loss (of the items' values) minus its mean under the
    controls; p_controls = (k + 1) / (controls + 1) with k controls whose effect is at least as large in size; p_holm = p
    corrected over the whole table (Holm). p says that the set differs from the average control on text like this;
    p_controls whether random sets do as much.
    On text, the scopes "prompt" and "generated" need select=Selection(inside=...): a row's first selected token begins what
    counts as generated; in tasks the tokens of answers and choices do. reuse: run the blocks below a set's first layer
    once per batch (same numbers, less time; no such thing where text is generated).
    Raises MismatchError for units of another model, InputError for a text without a token to score, for keywords of text
    (select, max_length) on tasks, and of tasks (how, options) on text. A model edited for good is compared with its original
    by `measure.side_effects`.
    """
    sets = {"units": units} if isinstance(units, UnitSet | Change | Interventions) else dict(units)
    given: dict[str, Any] = {"to": to, "scale": scale, "add": add}
    if all(value is None for value in given.values()) and any(isinstance(one, UnitSet) for one in sets.values()):
        given["to"] = 0.0
    work = work_on(on, how, options, Reading(batch_tokens, max_length, select or Selection()))
    check_subjects(model, sets, given, scope, controls)
    notes: list[str] = []
    keywords = {**given, "scope": scope, "recording": recording, "label": label}
    subjects = subjects_of(model, sets, keywords, controls=controls, seed=seed, notes=notes)
    rows, tables = table_of(
        model, subjects, [work], notes=notes, permutations=permutations, resamples=resamples, seed=seed, reuse=reuse,
        quiet=quiet,
    )  # fmt: skip
    for note in notes:
        warnings.warn(note, stacklevel=2)
    done = {**given, "scope": scope, "controls": controls, "permutations": permutations, "resamples": resamples}
    source = provenance(
        "effect",
        arguments={**done, "seed": seed, "label": label, **work.arguments},
        inputs=_inputs(model, subjects, work.inputs, recording),
        seed=seed,
    )
    return Effects(rows, {text: table.to_dict() for text, table in tables.items()}, notes, source)


def table_of(
    model: LanguageModel,
    subjects: list[Subject],
    works: Sequence[OnText | OnTasks],
    *,
    notes: list[str],
    permutations: int,
    resamples: int,
    seed: int,
    reuse: bool,
    quiet: bool,
) -> tuple[list[dict[str, Any]], dict[str, EffectSums]]:
    """Rows of an effects table (Holm over all of them) and, by text or task, the sums behind them.

    notes: what was odd is added to it.
    """
    tables: dict[str, EffectSums] = {}
    for work in works:
        work.check(subjects)
    others = by_other_models(subjects, works, quiet=quiet)
    for work in works:
        for text in work.names:
            tables[text] = work.sums(model, text, subjects, others[text], reuse=reuse, quiet=quiet)
            if tables[text].n < 2:
                notes.append(f"{text!r} has {tables[text].n} {work.unit}: no interval, and p is 1")
    empty = [subject.name for subject in subjects if not subject.runs and subject.models is None]
    notes += [f"the set {name!r} is empty: its effect is 0 and p is 1" for name in empty]
    rows = [
        {"set": one.name, "text": text, **table.row(one.name, permutations, resamples, seed), "n_units": one.n_units}
        for one in subjects
        for text, table in tables.items()
    ]
    if len(rows) > 0.01 * (permutations + 1):
        notes.append(
            f"{len(rows)} tests with {permutations} permutations: no corrected p can be below "
            f"{min(1.0, len(rows) / (permutations + 1)):.2g}; give permutations={200 * len(rows)} or more to go lower"
        )
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows, tables


def recording_identity(recording: Recording) -> dict[str, Any]:
    """What a result keeps of the recording whose means it used."""
    folder = None if recording.folder is None else str(recording.folder.absolute())
    return {"fingerprint": recording.fingerprint, "path": folder, "labels": list(recording.labels)}


def _inputs(
    model: LanguageModel, subjects: list[Subject], on: Mapping[str, Any], recording: Recording | None
) -> dict[str, Any]:
    found: dict[str, Any] = {"model": dict(model.identity), **on}
    found["sets"] = {subject.name: subject.data for subject in subjects}
    return found if recording is None else {**found, "recording": recording_identity(recording)}
