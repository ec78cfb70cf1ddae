"""Skill unlearning end to end: Neuron Adjust, selective pruning and Key Space Detection take taught skills and languages away.

Method: Li, Sun & Weng 2025 (arXiv 2503.21730). Every method is fitted on one part of the items and measured on another; what is
left of the forgotten skill, of the others and of general knowledge stands beside random controls. All of it lives in the floors
below, this file only puts the parts in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data import Corpus, corpus
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find import Finding
from patchclamp.find.skill import skill
from patchclamp.intervene import Interventions, intervention
from patchclamp.intervene.abstention import Abstention
from patchclamp.intervene.key_fit import abstain
from patchclamp.intervene.kinds import Change
from patchclamp.intervene.skill_fit import neuron_adjust
from patchclamp.intervene.verdicts import trips_per_100_tokens, verdicts
from patchclamp.measure import Effects, effect
from patchclamp.measure.leakage import leakage, variations
from patchclamp.record import Recording, record
from patchclamp.studies import skill_unlearning_view as view
from patchclamp.studies.halves import halves
from patchclamp.studies.study import Report, Run, studies

NAME = "skill-unlearning"
TAUGHT = ("arithmetic", "code", "binding", "dates", "facts")  # what the demo model was taught and can be asked
FORGOTTEN = ("arithmetic", "code", "binding")
GENERAL = "facts"  # what stands for general knowledge; it has no held-out half
SHARES = (0.005, 0.015, 0.03, 0.1)  # of all units; the first three are the paper's, a small model needs more
PERMUTATIONS = 9999
FOLDS = 16


@studies.add(NAME)
def skill_unlearning(
    run: Run,
    *,
    tasks: Mapping[str, Task] | None = None,
    forget: Sequence[str] | None = None,
    general: str | None = None,
    languages: Task | None = None,
    shares: Sequence[float] = SHARES,
    share: float = 0.015,
    controls: int = 4,
    found_on: int = 160,
    items: int = 40,
    language_items: int = 24,
    max_new_tokens: int = 12,
) -> Report:
    """Skills and languages taken away by Neuron Adjust, selective pruning and abstention, and what is left (arXiv 2503.21730).

    tasks: one task per skill, at least two; by default what the demo model was taught. One half of the items is fitted on, the
    other measured. forget: the skills to be taken away, each by itself and all at once; by default all but the general one, of
    the demo's arithmetic, code and binding. general: the task that stands for general knowledge; by default the demo's facts,
    else the last task. languages: items with the label "language", each language is forgotten in turn; by default the demo's
    facts. shares: of all units, for Neuron Adjust; the largest also for languages, for all skills at once, and for selective
    pruning beside share: its own. controls: matched-random changes to compare with. found_on: items of a task, at most, to fit
    on. items, language_items: to measure on. max_new_tokens: how much is written to see what enters a region on the way.

    An answer counts if greedy decoding writes it, token by token. The abstention's box lies in the last layer (the paper's) or in
    the one that separates held-out queries best; its size is chosen on queries that it was not fitted to.
    """
    shares = _rising(shares)
    known, held = _split(tasks, found_on, items, run.seed)
    knowledge = general or (GENERAL if tasks is None else list(known)[-1])
    chosen = _forgotten(known, forget, knowledge, bundled=tasks is None)
    solved = _recorded(run, "skills", _corpus(known, solved=True), ("pre", "mlp"), ("shape", "histogram"))
    queries = _recorded(run, "queries", _corpus(known, solved=False), ("mlp",), ("pooled",))
    findings = {
        "units": run.finding("units", lambda: skill(solved, site="pre", forget=chosen, share=share, shuffles=0)),
        "pruned": run.finding("pruned", lambda: _pruned(solved, chosen, share)),
    }
    how: dict[str, Any] = {"how": "completion", "permutations": PERMUTATIONS, "seed": run.seed, "quiet": run.quiet}
    ways = _ways(run, solved, queries, findings["pruned"], chosen, shares, share)
    effects = {
        way: _effects(run, way, changes, held, controls if way.startswith(("adjust", "pruning")) else 0, how)
        for way, changes in ways.items()
    }
    together = _together(solved, queries, chosen, shares[-1], run.seed)
    effects["at-once"] = _effects(run, "at-once", together, held, 0, how)
    leaks = run.stage("leakage", lambda: _leaks(run, ways, known, held, chosen, shares[-1], how))
    trips = run.stage("trips", lambda: _trips(run, ways["abstain-best"], held, max_new_tokens))

    spoken = (
        languages if languages is not None or tasks is not None else generated(GENERAL, split="train", seed=run.seed)
    )
    tongues: dict[str, Effects] = {}
    if spoken is not None:
        tongues = _languages(run, spoken, language_items, shares[-1], controls, how)
    return view.report(
        view.SkillUnlearning(
            forgotten=chosen,
            general=knowledge,
            shares=shares,
            effects=effects,
            abstentions={name: _described(change) for name, change in ways["abstain-best"].items()},
            last={name: _described(change) for name, change in ways["abstain-last"].items()},
            normality=findings["units"].details["normality"],
            leaks=leaks,
            trips=trips,
            languages=tongues,
            findings=findings,
            model=dict(run.model.identity),
            bundled=tasks is None,
        )
    )


def _rising(shares: Sequence[float]) -> tuple[float, ...]:
    found = tuple(sorted(set(map(float, shares))))
    if not found or not 0 < found[0] <= found[-1] <= 1:
        raise InputError(f"shares={list(shares)} given; they lie above 0 and at most at 1, at least one")
    return found


def _split(
    tasks: Mapping[str, Task] | None, found_on: int, items: int, seed: int
) -> tuple[dict[str, Task], dict[str, Task]]:
    """Per skill a task to fit on and one to measure on, without an item in common."""
    if tasks is not None and len(tasks) < 2:
        raise InputError("one task given; a skill is taken away from others, so give at least two")
    known, held = {}, {}
    for name in TAUGHT if tasks is None else tasks:
        if tasks is not None:
            first, second = halves(tasks[name], seed)
        elif name == GENERAL:
            first, second = halves(generated(name, split="train", seed=seed, count=2 * max(found_on, items)), seed)
        else:
            first = generated(name, split="train", seed=seed, count=found_on)
            second = generated(name, split="heldout", seed=seed, count=items)
        known[name], held[name] = first.limited(found_on, seed=seed), second.limited(items, seed=seed)
    return known, held


def _forgotten(
    known: Mapping[str, Task], forget: Sequence[str] | None, general: str, *, bundled: bool
) -> tuple[str, ...]:
    if general not in known:
        raise InputError(f"general={general!r} given; the tasks are {', '.join(known)}")
    if forget is None:
        return FORGOTTEN if bundled and general not in FORGOTTEN else tuple(name for name in known if name != general)
    if unknown := [name for name in forget if name not in known]:
        raise InputError(f"no task is called {unknown[0]!r}; there are {', '.join(known)}")
    if not forget or general in forget or len(set(forget)) < len(forget):
        raise InputError(f"forget={list(forget)} given; name skills once, at least one, and not {general!r} (general=)")
    return tuple(forget)


def _corpus(tasks: Mapping[str, Task], *, solved: bool) -> Corpus:
    """Prompts, with their answers or without, labelled by skill."""
    return corpus(
        {name: list(task.corpus(prompts_only=not solved).documents(task.name)) for name, task in tasks.items()}
    )


def _recorded(run: Run, name: str, text: Corpus, sites: Sequence[str], statistics: Sequence[str]) -> Recording:
    run.say(f"recording {name}")
    if missing := [site for site in sites if site not in run.model.layouts]:
        raise InputError(f"{run.model.name} has no site {missing[0]!r}, at which skills are adjusted")
    folder = run.folder(f"{name}.recording")
    return record(
        run.model, text, sites=sites, statistics=statistics, folds=FOLDS, out=folder, resume=True, quiet=run.quiet
    )


def _pruned(recording: Recording, chosen: Sequence[str], share: float) -> Finding:
    return skill(recording, site="mlp", forget=chosen, distance="importance", share=share, shuffles=0)


def _ways(
    run: Run,
    solved: Recording,
    queries: Recording,
    pruned: Finding,
    chosen: Sequence[str],
    shares: Sequence[float],
    own: float,
) -> dict[str, dict[str, Change]]:
    """Way -> skill -> the change that takes it away."""
    ways: dict[str, dict[str, Change]] = {}
    for share in shares:
        ways[f"adjust-{share:g}"] = {
            name: neuron_adjust(solved, forget=name, share=share, site="pre", seed=run.seed) for name in chosen
        }
    for share in dict.fromkeys((own, shares[-1])):
        sets = pruned.select(share=share)
        ways[f"pruning-{share:g}"] = {name: intervention(run.model, sets[name], to=0.0) for name in chosen}
    for layer in ("last", "best"):
        ways[f"abstain-{layer}"] = {name: abstain(queries, forget=name, layer=layer, seed=run.seed) for name in chosen}
    return ways


def _together(
    solved: Recording, queries: Recording, chosen: Sequence[str], share: float, seed: int
) -> dict[str, Change]:
    """All skills taken away by one change."""
    return {
        "adjust": neuron_adjust(solved, forget=chosen, share=share, site="pre", seed=seed),
        "abstain": abstain(queries, forget=chosen, layer="best", seed=seed),
    }


def _effects(
    run: Run, name: str, changes: Mapping[str, Change], on: Mapping[str, Task], controls: int, how: Mapping[str, Any]
) -> Effects:
    """The effects of some changes on all tasks; the changes themselves are kept as files of the run."""
    path = run.file(f"{name}.interventions.json")
    if not path.exists():
        Interventions(changes.values()).save(path)
    return run.effects(name, lambda: effect(run.model, changes, on=on, controls=controls, **how))


def _leaks(
    run: Run,
    ways: Mapping[str, Mapping[str, Change]],
    known: Mapping[str, Task],
    held: Mapping[str, Task],
    chosen: Sequence[str],
    share: float,
    how: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """What comes back of every skill if it is asked for in other ways; an example in front comes from another skill."""
    rows = []
    for name in chosen:
        other = next(task for label, task in known.items() if label != name)
        asked = variations(held[name], shots=other, seed=run.seed)
        changes = {way: ways[way][name] for way in (f"adjust-{share:g}", "abstain-last", "abstain-best")}
        found = leakage(run.model, changes, asked, how=how["how"], seed=run.seed, quiet=run.quiet)
        rows += [{"skill": name, **row} for row in found.rows]
    return rows


def _trips(
    run: Run, changes: Mapping[str, Change], held: Mapping[str, Task], max_new_tokens: int
) -> list[dict[str, Any]]:
    """How often each skill's region is entered by prompts, and by what is written after them."""
    rows = []
    for name, change in changes.items():
        watched = Abstention(_abstention(change).boxes, when="any")
        for task, asked in held.items():
            found = verdicts(run.model, watched, [item.prompt for item in asked], max_new_tokens=max_new_tokens)
            rows.append(
                {
                    "skill": name, "task": task, "n": len(found),
                    "prompt": sum(one.step == 0 for one in found) / len(found),
                    "any": sum(one.refused for one in found) / len(found),
                    "per_100": trips_per_100_tokens(found),
                }
            )  # fmt: skip
    return rows


def _abstention(change: Change) -> Abstention:
    if not isinstance(change, Abstention):
        raise InputError(f"an abstention is needed, not a {type(change).__name__}")
    return change


def _described(change: Change) -> dict[str, Any]:
    """What is known of an abstention's only box."""
    box = _abstention(change).boxes[0]
    return {**box.fitted, "bound": box.region.bound, "n": box.region.n}


def _languages(
    run: Run, spoken: Task, items: int, share: float, controls: int, how: Mapping[str, Any]
) -> dict[str, Effects]:
    """Every language taken away in turn, measured in all of them."""
    first, second = halves(spoken, run.seed)
    known = first.by("language")
    held = {name: task.limited(items, seed=run.seed) for name, task in second.by("language").items() if name in known}
    if len(held) < 2:
        raise InputError("the items of languages= are of one language; give at least two (label 'language')")
    known = {name: known[name] for name in held}
    solved = _recorded(run, "languages", _corpus(known, solved=True), ("pre", "mlp"), ("shape",))
    queries = _recorded(run, "language-queries", _corpus(known, solved=False), ("mlp",), ("pooled",))
    names = tuple(held)
    pruned = run.finding("languages-pruned", lambda: _pruned(solved, names, share))
    ways: dict[str, dict[str, Change]] = {
        "adjust": {name: neuron_adjust(solved, forget=name, share=share, site="pre", seed=run.seed) for name in names},
        "pruning": {name: intervention(run.model, pruned.sets[name], to=0.0) for name in names},
        "abstain": {name: abstain(queries, forget=name, layer="best", seed=run.seed) for name in names},
    }
    return {
        way: _effects(run, f"languages-{way}", changes, held, 0 if way == "abstain" else controls, how)
        for way, changes in ways.items()
    }
