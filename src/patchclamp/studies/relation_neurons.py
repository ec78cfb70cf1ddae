"""Relation neurons end to end: find them by average precision, mask them, see which relations suffer, alone or together.

Method: Liu, Chen, Hirlimann et al. 2025 (arXiv 2502.17355); all of it lives in the floors below, this file only puts the
parts in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.relations import relations as read_relations
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find import Finding
from patchclamp.find.relation import PAPER_SHARE, relation
from patchclamp.find.relation_experiments import cumulativity, drops, ranking
from patchclamp.find.relation_prompts import (
    check_leakage,
    label_of,
    split_subjects,
    subject_overlap,
    validated,
    with_items,
)
from patchclamp.measure import Effects, completion, effect
from patchclamp.record import record
from patchclamp.studies import relation_neurons_view as view
from patchclamp.studies.study import Report, Run, studies

NAME = "relation-neurons"
SITES = ("gate", "up", "mlp_out")  # outputs of the three FFN matrices, the paper's neurons
PLAIN_SITES = ("pre", "mlp_out")  # where the MLP has no gate
SUBJECTS = ("subject", "country")


@studies.add(NAME)
def relation_neurons(
    run: Run,
    *,
    task: Task | None = None,
    relations: str | None = None,
    language: str = "en",
    elsewhere: Sequence[str] = ("de",),
    subject: str | None = None,
    sites: Sequence[str] | None = None,
    pool: str = "mean",
    negatives: int = 4,
    shares: Sequence[float] = (PAPER_SHARE, 0.02, 0.1),
    evaluation: int = 10,
    limit: int = 100,
    tokens: int = 2,
    controls: int = 5,
) -> Report:
    """Relation neurons: find the units that tell a relation's prompts, mask them, ask all relations (arXiv 2502.17355).

    task: facts with the labels relation and subject; by default the facts of real countries that the demo model was
    taught. relations: instead, a file or folder of LRE relation files (evandez/relations). language: of the taught facts.
    elsewhere: other languages in which the same taught facts are asked under the same masks; "paraphrase" is always
    added. subject: label that says who a fact is about (subject or country). sites: whose units are ranked; by default
    gate, up and mlp_out, the outputs of the three matrices of a gated MLP, as in the paper. pool: a unit's response to a
    prompt is its mean, max or last activation. negatives: prompts of other relations per prompt of one. shares: of all
    units that are masked; the first is the paper's 3,000 of 835,584. evaluation: subjects of each relation that are kept
    out of detection. limit: at most so many subjects of a relation file. tokens: of the answer that the model must write.
    controls: matched-random sets to compare with.

    Prompts to detect with are those that the model completes; if it completes too few, all are used and the report says
    so. Accuracy is the paper's measure; the change of the right answer's log-probability (answer loss, nats) beside it
    still moves where accuracy stays at its ceiling or floor.
    """
    facts, about = _facts(task, relations, language, subject, limit)
    detection, tested = split_subjects(facts, subject=about, evaluation=evaluation, seed=run.seed)
    check_leakage(detection, tested, subject=about)
    asked = run.stage("prompts", lambda: _asked(run, facts, detection, tested, about, tokens))
    detection = with_items(detection, [detection[number] for number in asked["kept"]])
    tested = with_items(tested, [item for item in tested if item.labels["relation"] in asked["relations"]])
    chosen = tuple(sites) if sites else _sites(run)
    recording = record(
        run.model, detection.corpus(by="relation"), sites=chosen, statistics=("pooled",),
        out=run.folder("prompts.recording"), resume=True, quiet=run.quiet,
    )  # fmt: skip
    found = run.finding("relation", partial(relation, recording, pool=pool, negatives=negatives, seed=run.seed))
    sizes = sorted(set(shares))
    counts = {share: max(1, round(share * found.total)) for share in sizes}
    on = tested.by("relation")
    how: dict[str, Any] = {"controls": controls, "seed": run.seed, "quiet": run.quiet}
    accuracy: dict[float, Effects] = {}
    loss: dict[float, Effects] = {}
    for number, share in enumerate(sizes):
        sets = found.select(top=counts[share])
        right: dict[str, Any] = {"how": "completion", "options": {"tokens": tokens}}
        accuracy[share] = run.effects(f"accuracy-{number}", partial(effect, run.model, sets, on=on, **right, **how))
        loss[share] = run.effects(f"loss-{number}", partial(effect, run.model, sets, on=on, how="loss", **how))
    largest = found.select(top=counts[sizes[-1]])
    others = _elsewhere(run, task, relations, elsewhere, tested, about)
    far = None
    if others:
        far = run.effects("elsewhere", partial(effect, run.model, largest, on=others, how="loss", **how))
    return view.report(
        view.RelationNeurons(
            finding=found,
            asked=asked,
            shares=sizes,
            accuracy=accuracy,
            loss=loss,
            drops=run.stage("drops", lambda: {str(share): drops(accuracy[share], seed=run.seed) for share in sizes}),
            cumulated=run.stage("cumulativity", lambda: _cumulated(run, found, tested, list(counts.values()), tokens)),
            elsewhere=far,
            last_overlap=run.stage("last-token", lambda: _last_overlap(recording, found, counts[sizes[0]], negatives)),
            pool=pool,
            model=dict(run.model.identity),
        )
    )


def _facts(
    task: Task | None, relations: str | None, language: str, subject: str | None, limit: int
) -> tuple[Task, str]:
    """The facts, and the label that says who they are about."""
    if task is not None and relations is not None:
        raise InputError("give task= or relations=, not both")
    if relations is not None:
        facts = read_relations(relations, limit=limit)
    else:
        facts = task if task is not None else generated("facts", languages=(language,))
    about = subject or next((key for key in SUBJECTS if key in facts.label_keys), SUBJECTS[0])
    if len(facts.values("relation")) < 2:
        raise InputError("the facts are of one relation; at least two are needed to tell apart")
    for item in facts:
        label_of(item, about)
    return facts, about


def _asked(run: Run, facts: Task, detection: Task, tested: Task, about: str, tokens: int) -> dict[str, Any]:
    """Which prompts to detect with, relation by relation, and how many the model completes."""
    plain = completion(run.model, tested, tokens=tokens, quiet=run.quiet).by("relation")
    try:
        found = validated(run.model, detection, tokens=tokens, quiet=run.quiet)
    except InputError as problem:
        kept, why = list(range(len(detection))), str(problem)
        used = list(facts.values("relation"))
        skipped: dict[str, str] = {}
        known: dict[str, tuple[int, int]] = {}
    else:
        left = {id(item) for item in found.task}
        kept = [number for number, item in enumerate(detection) if id(item) in left]
        used, skipped, known, why = list(found.task.values("relation")), found.skipped, found.kept, ""
    both = sorted(set(used) & set(tested.values("relation")))
    kept = [number for number in kept if detection[number].labels["relation"] in both]
    if len(both) < 2:
        raise InputError("fewer than two relations have prompts to detect with and to evaluate on")
    return {
        "kept": kept,
        "relations": both,
        "known": known,
        "skipped": skipped,
        "why_all": why,
        "plain": {name: {"accuracy": result.value, "n": result.n} for name, result in plain.items()},
        "detection": {name: sum(detection[i].labels["relation"] == name for i in kept) for name in both},
        "subjects": subject_overlap(facts, subject=about),
    }


def _sites(run: Run) -> tuple[str, ...]:
    have = run.model.layouts
    return tuple(site for site in (SITES if "gate" in have else PLAIN_SITES) if site in have)


def _cumulated(run: Run, found: Finding, tested: Task, ks: list[int], tokens: int) -> dict[str, Any]:
    """The cumulativity curve and index over the masked numbers of units."""
    rankings = {name: ranking(found, name, ks[-1]) for name in found.labels}
    ascending = sorted(set(ks))
    made = cumulativity(
        run.model, rankings, tested, ks=ascending, tokens=tokens, controls=1, seed=run.seed, quiet=run.quiet
    )
    macro, micro = made.macro(), made.micro()
    pairs = [{"k1": a, "k2": b, "macro": macro[a, b], "micro": micro[a, b]} for a, b in macro]
    return {"curve": made.curve, "steps": made.steps, "pairs": pairs}


def _last_overlap(recording: Any, found: Finding, k: int, negatives: int) -> dict[str, float]:
    """Share of each relation's k best units that are also among the k best by the last token: a check on the pooling."""
    seed = found.parameters["seed"]
    other = relation(recording, pool="last", negatives=negatives, shuffles=1, seed=seed).select(top=k)
    return {name: len(units & other[name]) / k for name, units in found.select(top=k).items()}


def _elsewhere(
    run: Run, task: Task | None, relations: str | None, languages: Sequence[str], tested: Task, about: str
) -> dict[str, Task]:
    """The same taught facts in a wording that training never saw, and in other languages; by relation."""
    if task is not None or relations is not None:
        return {}
    subjects = {item.labels[about] for item in tested}
    own = tested[0].labels["language"]
    found = {}
    for where, split in [("paraphrase", "paraphrase"), *[(name, "train") for name in languages if name != own]]:
        asked = generated("facts", languages=(own if where == "paraphrase" else where,), split=split)
        items = [item for item in asked if item.labels[about] in subjects]
        for name in tested.values("relation"):
            some = [item for item in items if item.labels["relation"] == name]
            if some:
                found[f"{name} ({where})"] = with_items(asked, some)
    return found
