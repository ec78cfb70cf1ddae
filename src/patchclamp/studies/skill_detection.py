"""Skill detection end to end: units of each skill, what clamping them does, regions of key space, languages as skills.

Method: Li, Sun & Weng 2025 (arXiv 2503.21730), its detection half; all of it lives in the floors below, this file only puts the
parts in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, corpus, demo_text
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find import Finding
from patchclamp.find.skill import skill
from patchclamp.find.skill_regions import skill_regions
from patchclamp.measure import effect
from patchclamp.measure.holm import holm
from patchclamp.models import UnitSet
from patchclamp.record import Recording, record
from patchclamp.studies import skill_detection_view as view
from patchclamp.studies.halves import halves
from patchclamp.studies.study import Report, Run, studies

NAME = "skill-detection"
TAUGHT = (
    "arithmetic",
    "code",
    "dates",
    "manners",
    "facts",
)  # what the demo model was taught; facts have no held-out half
SHARES = (0.005, 0.015, 0.03)  # of all units, in the paper
PERMUTATIONS = 9999
FOLDS = 16


@studies.add(NAME)
def skill_detection(
    run: Run,
    *,
    tasks: Mapping[str, Task] | None = None,
    text: Corpus | None = None,
    measure: Corpus | None = None,
    share: float = 0.015,
    controls: int = 10,
    found_on: int = 100,
    items: int = 24,
    documents: int = 16,
) -> Report:
    """Skills of a model: the units and regions of key space that belong to each, clamped and held out (arXiv 2503.21730).

    tasks: one task per skill, at least two; by default what the demo model was taught. Half of the items are found on, the other
    half measured; items of one group stay together. text: labelled text whose labels are skills too, by default the languages of
    the demo's text. measure: text of the same labels that the finder does not see; needed with text. share: share of units in a
    skill's set. controls: matched-random sets to compare with. found_on: items of a task, at most, to find units and regions
    with. items: of a task, at most, to clamp on. documents: of a label of text, at most, to clamp on.

    Units are found by the difference of mean pre-activations, as the paper does, and by selective pruning's importance, which it
    compares with. Sets are held at their mean over the other labels (what the paper's Neuron Adjust moves them towards) and at 0.
    """
    if (text is None) != (measure is None):
        raise InputError("give both text= and measure= (--text and --measure), or neither for the demo's text")
    known, held = _split(tasks, found_on, run.seed)
    asked = {name: task.limited(items, seed=run.seed) for name, task in held.items()}
    recorded = _recorded(run, "skills", _solved(known), ("pre", "mlp"), ("shape", "moments"))
    findings = {
        "difference": run.finding("skills-difference", partial(_found, recorded, "mean difference", "pre", share, run)),
        "importance": run.finding("skills-importance", partial(_found, recorded, "importance", "mlp", share, run)),
    }
    how: dict[str, Any] = {"on": asked, "how": "loss", "options": {"normalise": "tokens"}}
    how |= {"controls": controls, "permutations": PERMUTATIONS, "seed": run.seed, "quiet": run.quiet}
    difference = findings["difference"].sets
    to_mean = run.stage("skills-to-mean", lambda: _to_mean(run, difference, recorded, how))
    to_zero = run.effects("skills-to-zero", lambda: effect(run.model, difference, to=0.0, **how))
    pruned = run.effects("skills-pruned", lambda: effect(run.model, findings["importance"].sets, to=0.0, **how))
    accuracy = run.stage("accuracy", lambda: _accuracy(run, findings, recorded, asked, share))
    regions = run.stage("regions", lambda: _regions(run, known, held))

    spoken = _recorded(run, "languages", text or demo_text(split="find"), ("pre",), ("shape", "moments"))
    findings["languages"] = run.finding(
        "languages-difference", partial(_found, spoken, "mean difference", "pre", share, run)
    )
    read = (measure or demo_text(split="measure")).limited(max_documents=documents)
    on_text = {key: how[key] for key in ("controls", "permutations", "seed", "quiet")} | {"on": read}
    sets = findings["languages"].sets
    languages_to_mean = run.stage("languages-to-mean", lambda: _to_mean(run, sets, spoken, on_text))
    languages_to_zero = run.effects("languages-to-zero", lambda: effect(run.model, sets, to=0.0, **on_text))
    return view.report(
        view.SkillDetection(
            skills=tuple(known),
            languages=spoken.labels,
            share=share,
            findings=findings,
            to_mean=to_mean,
            to_zero=to_zero,
            pruned=pruned,
            languages_to_mean=languages_to_mean,
            languages_to_zero=languages_to_zero,
            accuracy=accuracy,
            regions=regions,
            n_layers=run.model.anatomy.n_layers,
            model=dict(run.model.identity),
            bundled=tasks is None,
        )
    )


def _split(tasks: Mapping[str, Task] | None, most: int, seed: int) -> tuple[dict[str, Task], dict[str, Task]]:
    """Per skill a task to find on and one to measure on, without an item in common, of at most so many items each."""
    if tasks is not None and len(tasks) < 2:
        raise InputError("one task given; a skill is found by comparison with others, so give at least two")
    known, held = {}, {}
    for name in TAUGHT if tasks is None else tasks:
        if tasks is not None:
            first, second = halves(tasks[name], seed)
        elif name == "facts":
            first, second = halves(generated(name, split="train", seed=seed, count=2 * most), seed)
        else:
            first, second = (generated(name, split=split, seed=seed, count=most) for split in ("train", "heldout"))
        known[name], held[name] = first.limited(most, seed=seed), second.limited(most, seed=seed)
    return known, held


def _solved(tasks: Mapping[str, Task]) -> Corpus:
    """Prompts with their answers, labelled by skill: the paper finds on solutions, too."""
    return corpus({name: list(task.corpus(prompts_only=False).documents(task.name)) for name, task in tasks.items()})


def _recorded(run: Run, name: str, text: Corpus, sites: Sequence[str], statistics: Sequence[str]) -> Recording:
    run.say(f"recording {name}")
    missing = [site for site in sites if site not in run.model.layouts]
    if missing:
        raise InputError(f"{run.model.name} has no site {missing[0]!r}, at which skills are found")
    folder = run.folder(f"{name}.recording")
    return record(
        run.model, text, sites=sites, statistics=statistics, folds=FOLDS, out=folder, resume=True, quiet=run.quiet
    )


def _without(recording: Recording, label: str) -> Recording:
    """The recording of all other labels: their mean is where a skill's units are held."""
    read = recording.corpus
    others = {name: entry for name, entry in read["labels"].items() if name != label}
    return Recording({**recording.manifest, "corpus": {**read, "labels": others}}, folder=recording.folder)


def _found(recording: Recording, distance: str, site: str, share: float, run: Run) -> Finding:
    return skill(recording, site=site, distance=distance, share=share, seed=run.seed)


def _to_mean(
    run: Run, sets: Mapping[str, UnitSet], recording: Recording, how: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Effects of every set held at its units' mean over the other labels; p is corrected over the whole table."""
    rows: list[dict[str, Any]] = []
    for name, units in sets.items():
        found = effect(run.model, {name: units}, to="mean", recording=_without(recording, name), **how)
        rows += found.rows
    for row, corrected in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = corrected
    return rows


def _accuracy(
    run: Run, findings: Mapping[str, Finding], recording: Recording, asked: Mapping[str, Task], share: float
) -> list[dict[str, Any]]:
    """Choice accuracy of every task, plain and clamped, at the paper's shares; tasks without choices are left out."""
    tasks = {name: task for name, task in asked.items() if all(item.choices for item in task)}
    if not tasks:
        return []
    how: dict[str, Any] = {
        "on": tasks,
        "how": "choice",
        "controls": 0,
        "permutations": PERMUTATIONS,
        "quiet": run.quiet,
    }
    rows = []
    for each in sorted({*SHARES, share}):
        for name, units in findings["difference"].select(share=each).items():
            held = effect(run.model, {name: units}, to="mean", recording=_without(recording, name), **how)
            rows += [{"way": "to mean", "share": each, **row} for row in held.rows]
    pruned = effect(run.model, findings["importance"].sets, to=0.0, **how)
    return rows + [{"way": "pruned", "share": share, **row} for row in pruned.rows]


def _regions(run: Run, known: Mapping[str, Task], held: Mapping[str, Task]) -> dict[str, Any]:
    """Regions of every skill, fitted to the last token of the prompts found on, measured on the others' prompts."""
    parts = []
    for tasks in (known, held):
        prompts = corpus({name: list(task.corpus().documents(task.name)) for name, task in tasks.items()})
        parts.append(record(run.model, prompts, statistics=("pooled",), quiet=run.quiet))
    return {name: skill_regions(parts[0], forget=name, held_out=parts[1], seed=run.seed).to_dict() for name in known}
