"""What an intervention, or an edit of the weights, does to its target and to everything beside it:
`side_effects(model, change, target="fr")`.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import Selection
from patchclamp.data.corpora import Corpus
from patchclamp.data.tasks import Task
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.measure.continuations import prompt_ids
from patchclamp.measure.edited_subject import edited_subject
from patchclamp.measure.effect_runs import run_number
from patchclamp.measure.effect_subjects import VALUES, Changed, Subject, check_subjects, subjects_of
from patchclamp.measure.effects import recording_identity, table_of
from patchclamp.measure.generation import generate
from patchclamp.measure.harm import harm
from patchclamp.measure.holm import holm
from patchclamp.measure.likelihood import Reading
from patchclamp.measure.permutation import sign_flip
from patchclamp.measure.side_effect_report import SideEffects
from patchclamp.measure.side_effect_verdict import ALPHA, said
from patchclamp.measure.side_effect_work import Target, Wanted, wanted
from patchclamp.measure.task_scores import tokenizer_of
from patchclamp.models.units import UnitSet

if TYPE_CHECKING:
    from patchclamp.intervene.edits import Edited
    from patchclamp.models.load import LanguageModel
    from patchclamp.record.recording import Recording

NAME = "change"  # what the rows call the change
HALVES = (
    "the change is for {} positions: the first half of every document counts as a prompt, the second half is measured"
)
SHOWN = 1  # of the controls, samples are written under the first


def side_effects(
    model: LanguageModel,
    change: Changed | None = None,
    *,
    edited: Edited | LanguageModel | str | os.PathLike[str] | None = None,
    target: Target | None = None,
    tasks: Task | Mapping[str, Task] | None = None,
    text: Corpus | None = None,
    prompts: Sequence[str] | None = None,
    how: str | Mapping[str, str] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    to: float | str | None = None,
    scale: float | None = None,
    add: float | None = None,
    scope: str = "all",
    recording: Recording | None = None,
    label: str | None = None,
    controls: int = 10,
    permutations: int = 9999,
    resamples: int = 1000,
    seed: int = 0,
    max_new_tokens: int = 32,
    examples: int = 3,
    batch_tokens: int = 4096,
    max_length: int | None = None,
    select: Selection | None = None,
    quiet: bool = False,
) -> SideEffects:
    """A report on one change of a model: its effect on a target, on tasks and languages beside it, and on what it writes.

    change: a unit set (with to=, scale=, add=, scope=, recording= as in `effect`; clamped to 0 by default), a change of any
    kind, or Interventions. edited: instead of a change, an `Edited`, another model of the same vocabulary, or its folder.
    target: what the change is meant for: names among tasks and labels of text, or a task, name -> task, or text of its own.
    tasks, text: what is measured beside it; the demo model brings its own. how: the metric of all tasks, or task -> metric; by
    default "choice" where every item has choices, else "loss". options: metric -> its keywords. prompts: what samples are
    written after (greedily, max_new_tokens each); by default one of every task and text.
    controls: matched random changes, as in `effect`; of an edit those of the interventions that it was made from, and of
    another model its weight differences dealt out at random within each tensor. examples: items kept per row of those that
    changed most. A change of "prompt" or "generated" positions is measured on the second half of every document, the first
    half counting as the prompt, unless select= says otherwise. Every row has two tests, each corrected over the report (Holm):
    p_change of the change itself, p of the change minus its mean under the controls.
    Raises InputError if there is nothing to measure, MismatchError for a change of another model or another vocabulary.
    """
    _check(change, edited, max_new_tokens, examples)
    asked = wanted(model, target, tasks, text, how, options)
    given: dict[str, Any] = {"to": to, "scale": scale, "add": add}
    if isinstance(change, UnitSet) and all(value is None for value in given.values()):
        given["to"] = 0.0
    keywords = {**given, "scope": scope, "recording": recording, "label": label}
    notes: list[str] = []
    subject, what = _subject(model, change, edited, keywords, controls=controls, seed=seed, notes=notes)
    reading = Reading(batch_tokens, max_length, select or Selection())
    halves = bool(asked.texts) and subject.scope != "all" and reading.select.inside is None
    notes += [HALVES.format(subject.scope)] if halves else []
    rows, tables = table_of(
        model, [subject], asked.works(reading, halves=halves), notes=notes, permutations=permutations, resamples=resamples,
        seed=seed, reuse=True, quiet=quiet,
    )  # fmt: skip
    documents = {name: tables[name].to_dict() for name in asked.names}
    notes += _powerless(rows, permutations)
    ordered = sorted(rows, key=lambda row: asked.names.index(row["text"]))
    begun = asked.prompts(model) if prompts is None else list(prompts)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    arguments = {
        **given, "scope": scope, "label": label, "target": list(asked.targets), "how": asked.how, "options": asked.options,
        "prompts": begun, "controls": controls, "permutations": permutations, "resamples": resamples, "seed": seed,
        "max_new_tokens": max_new_tokens, "examples": examples, **reading.to_dict(),
    }  # fmt: skip
    inputs: dict[str, Any] = {"model": dict(model.identity), "sets": {NAME: subject.data}, **asked.inputs}
    if recording is not None:
        inputs["recording"] = recording_identity(recording)
    return SideEffects(
        _tested(ordered, documents, asked.targets, permutations, seed),
        _samples(model, subject, begun, max_new_tokens, batch_tokens),
        _affected(asked, documents, examples),
        documents,
        what,
        notes,
        provenance("side_effects", arguments=arguments, inputs=inputs, seed=seed),
    )


def _check(change: Any, edited: Any, max_new_tokens: int, examples: int) -> None:
    if (change is None) == (edited is None):
        raise InputError("give either a change (a unit set or interventions) or edited= (a model)")
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}; at least 1 is needed")
    if examples < 0:
        raise InputError(f"examples={examples}; it is a number of items, at least 0")


def _subject(
    model: LanguageModel,
    change: Any,
    edited: Any,
    keywords: Mapping[str, Any],
    *,
    controls: int,
    seed: int,
    notes: list[str],
) -> tuple[Subject, str]:
    """What is measured, and in words. keywords: of unit sets, as they were given."""
    if edited is not None:
        if any(value is not None for name, value in keywords.items() if name != "scope") or keywords["scope"] != "all":
            raise InputError(
                "to=, scale=, add=, scope=, recording= and label= belong to a change, not to an edited model"
            )
        return edited_subject(model, edited, NAME, controls=controls, seed=seed, notes=notes)
    values = {name: keywords[name] for name in VALUES}
    check_subjects(model, {NAME: change}, values, keywords["scope"], controls)
    found = subjects_of(model, {NAME: change}, keywords, controls=controls, seed=seed, notes=notes)
    return found[0], _described(change, values)


def _described(change: Any, given: Mapping[str, Any]) -> str:
    if isinstance(change, Change | Interventions):
        return Interventions.of(change).describe()
    words = {"to": "set to {}", "scale": "scaled by {}", "add": "increased by {}"}
    done = ", ".join(
        words[key].format(value if isinstance(value, str) else f"{value:g}")
        for key, value in given.items()
        if value is not None
    )
    names = change.names()
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} units ({shown}) {done}" if names else "no units changed"


def _enough(row: Mapping[str, Any], n_tests: int, permutations: int) -> bool:
    """Whether the smallest p that the row's items allow, corrected over all tests, is below ALPHA: n items have 2^n signs."""
    least = max(2.0 ** (1 - row["n_documents"]), 1 / (permutations + 1))
    return least * n_tests < ALPHA


def _powerless(rows: Sequence[Mapping[str, Any]], permutations: int) -> list[str]:
    """A note on what has so few items that no test of it can come out."""
    few = [row for row in rows if not _enough(row, len(rows), permutations)]
    if not few:
        return []
    named = ", ".join(f"{row['text']} ({row['n_documents']})" for row in few)
    return [
        f"too few items, or permutations, for any p corrected over {len(rows)} measures to be below {ALPHA}: {named}"
    ]


def _tested(
    rows: Sequence[Mapping[str, Any]],
    documents: Mapping[str, Mapping[str, Any]],
    targets: Sequence[str],
    permutations: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Rows with role, harm, the test of the change itself, and what all of it says."""
    found = []
    for row in rows:
        kept = documents[row["text"]]
        gaps = np.asarray(kept["clamped"][NAME]) - np.asarray(kept["plain"])
        own = {
            "role": "target" if row["text"] in targets else "beside",
            **_harms(row),
            "p_change": sign_flip(gaps, permutations=permutations, seed=seed),
        }
        found.append({**row, **own})
    for row, corrected in zip(found, holm([row["p_change"] for row in found]), strict=True):
        row["p_change_holm"] = corrected
        row["said"] = said(row, enough=_enough(row, len(rows), permutations))
    return found


def _harms(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Harm and its interval; for accuracies the ends change places."""
    metric, plain = row["metric"], row["plain"]
    found = {"harm": harm(metric, plain, row["clamped"]), "harm_low": None, "harm_high": None}
    if row["low"] is not None:
        ends = sorted(harm(metric, plain, plain + row[end]) for end in ("low", "high"))
        found |= {"harm_low": ends[0], "harm_high": ends[1]}
    return found


def _affected(asked: Wanted, documents: Mapping[str, Mapping[str, Any]], examples: int) -> list[dict[str, Any]]:
    """The items of every row that changed most: per scored token on text, in the metric's own value in tasks."""
    found = []
    for name in asked.names:
        kept = documents[name]
        weights = np.asarray(kept["tokens"]) if name not in asked.tasks else np.ones(len(kept["tokens"]))
        plain, changed = (np.asarray(sums) / weights for sums in (kept["plain"], kept["clamped"][NAME]))
        order = np.argsort(-np.abs(changed - plain), kind="stable")[:examples]
        order = order[changed[order] != plain[order]]
        numbers = [kept["documents"][place] for place in order]
        for place, number, item in zip(order, numbers, asked.items(name, numbers), strict=True):
            values = {"plain": float(plain[place]), "changed": float(changed[place])}
            found.append({"text": name, "number": int(number), "item": item, **values})
    return found


def _samples(
    model: LanguageModel, subject: Subject, prompts: Sequence[str], max_new_tokens: int, batch_tokens: int
) -> list[dict[str, Any]]:
    """How the plain, the changed and a randomly changed model go on; None where there is no control."""
    if not prompts:
        return []
    rows = prompt_ids(tokenizer_of(model), prompts)
    room = model.max_length - max_new_tokens
    if any(len(row) > room for row in rows):
        raise InputError(f"a prompt has more than {room} tokens, the room that {max_new_tokens} new ones leave")

    def written(by: LanguageModel) -> list[str]:
        new = generate(by, rows, max_new_tokens=max_new_tokens, batch_tokens=batch_tokens)
        return [str(tokenizer_of(model).decode(ids, skip_special_tokens=True)) for ids in new]

    plain = written(model)
    texts: dict[int, list[str]] = {}
    for run in subject.runs:
        number = run_number(run.key)
        if number <= SHOWN:
            with run.prepared.applied():
                texts[number] = written(model)
    for number, other in itertools.islice(subject.models() if subject.models is not None else (), SHOWN + 1):
        texts[number] = written(other)
    changed, control = texts.get(0, plain), texts.get(1)
    return [
        {"prompt": prompt, "plain": plain[n], "changed": changed[n], "control": None if control is None else control[n]}
        for n, prompt in enumerate(prompts)
    ]
