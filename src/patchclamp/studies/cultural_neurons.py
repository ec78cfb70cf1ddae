"""Cultural neurons end to end: find them, clamp them on questions that the finder did not see, and ask whose questions suffer.

Method: Yamamoto et al. 2025 (arXiv 2510.08284); all of it lives in the floors below, this file only puts the parts in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.culture_files import FINDING_TOPICS, blend, country_rc
from patchclamp.data.generate.countries import BY_CODE
from patchclamp.data.generate.culture_controls import culture_choices, culture_control, culture_names
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.find import Finding
from patchclamp.find.culture import culture, general
from patchclamp.find.culture_selection import ATTENTION_SITES, MLP_SITES
from patchclamp.measure import Effects, effect
from patchclamp.models import UnitSet
from patchclamp.studies import cultural_neurons_view as view
from patchclamp.studies.study import Report, Run, studies

NAME = "cultural-neurons"
FIND_ON = ("breakfast", "dish", "sport")  # of the demo's curriculum; the other attributes are measured
MEASURE_ON = ("drink", "dress", "festival")
SWEEP = (0.005, 0.01, 0.02, 0.03)  # share of MLP units; a fifth of it of attention units, as in the paper
HELD_OUT = "culture, held out"
FOUND_ON = "culture, found on"
NAMES = "country names"


@dataclass(frozen=True)
class Tasks:
    """What the neurons are found on, and what clamping them is measured on."""

    task: Task
    control: Task | None
    names: Task | None
    held_out: Task
    others: dict[str, Task]


@studies.add(NAME)
def cultural_neurons(
    run: Run,
    *,
    task: Task | None = None,
    held_out: Task | None = None,
    control: Task | None = None,
    names: Task | None = None,
    other: Task | None = None,
    blend_folder: str | None = None,
    country_rc_file: str | None = None,
    form: str = "letters",
    group: str = "country",
    items: int = 100,
    per_group: int = 10,
    found_on_per_group: int | None = None,
    controls: int = 5,
    shuffles: int = 100,
    tokens: int | None = 1,
) -> Report:
    """Which units carry knowledge of cultures, in general and of single countries, and is it theirs alone? (arXiv 2510.08284).

    task: questions to find on, with a label for the group; by default the demo's curriculum with options in front, three
    kinds of custom. held_out: questions to measure on, by default the other three kinds. control: the questions' options without
    the question. names: passages that only mention the groups. other: questions about something else, by default taught
    facts, sums and name binding. blend_folder: a folder with BLEnD's files instead of all these (topics Food, Sport and
    Work life to find, the others to measure). country_rc_file: CountryRC's passages to go with it. form: how BLEnD's
    options are asked, "letters" or "answers". group: the label that names the group. items: most items of each task that are
    measured. per_group: most held-out items of each group for the rank of groups. found_on_per_group: most questions of each
    place to find on (BLEnD; then no more passages than questions either, but four of each place). controls: matched-random
    sets to compare with. shuffles: for the null. tokens: how many tokens of an answer are attributed.
    """
    given = (task, held_out, control, names)
    if blend_folder is not None:
        if any(one is not None for one in given):
            raise InputError("blend_folder= brings its own tasks; leave task, held_out, control and names out")
        tasks = _of_blend(blend_folder, country_rc_file, form, found_on_per_group, run.seed)
    elif country_rc_file is not None:
        raise InputError("country_rc_file= goes with blend_folder=")
    elif task is not None:
        if held_out is None:
            raise InputError(
                "give held_out= beside task=: effects are measured on questions that the finder did not see"
            )
        tasks = Tasks(task, control, names, held_out, {})
    else:
        tasks = _of_demo()
    others = {"other": other} if other is not None else _other_tasks()
    finding = run.finding(
        "culture",
        lambda: culture(
            run.model, tasks.task, control=tasks.control, names=tasks.names, group=group,
            tokens=tokens, shuffles=shuffles, seed=run.seed, quiet=run.quiet,
        ),
    )  # fmt: skip
    measured = {HELD_OUT: tasks.held_out, FOUND_ON: tasks.task, **tasks.others, **others}
    measured = {name: one.limited(items, seed=run.seed) for name, one in measured.items()}
    whole = {"general": finding.sets["general"]}
    measure = partial(_effects, run, controls)
    accuracy = measure("accuracy", whole, measured, "choice")
    loss = measure("loss", whole, measured, "loss")
    halves = parts_of(finding.sets["general"])
    parts = measure("parts", halves, {HELD_OUT: measured[HELD_OUT]}, "loss") if halves else None
    by_group = {
        name: one.limited(per_group, seed=run.seed)
        for name, one in tasks.held_out.by(group).items()
        if name in finding.labels
    }
    specific = {name: finding.sets[name] for name in by_group if len(finding.sets[name])}
    groups = measure("groups", specific, by_group, "loss", controls=min(controls, 1)) if specific else None
    small = {name: measured[name].limited((items + 1) // 2, seed=run.seed) for name in (HELD_OUT, *list(others)[:1])}
    sweep = measure("sweep", swept(finding), small, "loss", controls=min(controls, 2))
    return view.report(
        view.CulturalNeurons(
            finding=finding,
            tasks={name: len(one) for name, one in measured.items()},
            accuracy=accuracy,
            loss=loss,
            parts=parts,
            groups=groups,
            sweep=sweep,
            kin=kin_of(finding.labels[1:]),
            own_items=task is None and blend_folder is None,
        ),
        run.model,
    )


def parts_of(units: UnitSet) -> dict[str, UnitSet]:
    """The MLP units and the attention units of a set by themselves; empty unless it has both."""
    kinds: dict[str, Sequence[str]] = {"general, MLP": MLP_SITES, "general, attention": ATTENTION_SITES}
    parts = {
        name: UnitSet.of(units.model, [unit for unit in units if unit.site in sites]) for name, sites in kinds.items()
    }
    return parts if all(map(len, parts.values())) else {}


def swept(finding: Finding, shares: Iterable[float] = SWEEP) -> dict[str, UnitSet]:
    """General sets of several sizes, called by the share of MLP units."""
    return {f"{share:.1%}": general(finding, share_mlp=share, share_attention=share / 5) for share in shares}


def kin_of(groups: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Country code -> the others of its continent; empty for groups that are no country codes of ours."""
    regions = {name: BY_CODE[name].facts.get("continent", {}).get("en") if name in BY_CODE else None for name in groups}
    return {
        name: tuple(other for other, there in regions.items() if other != name and region and there == region)
        for name, region in regions.items()
    }


def _of_demo() -> Tasks:
    """The demo's culture questions: options in front, three kinds of custom to find on and three to measure."""
    made: dict[str, Callable[..., Any]] = {
        "culture questions": culture_choices,
        "options without questions": culture_control,
    }
    task, control = (Task.of(make(attributes=FIND_ON), name=name) for name, make in made.items())
    names = Task.of(culture_names(), name=NAMES).limited(400)
    held_out = Task.of(culture_choices(attributes=MEASURE_ON), name=HELD_OUT)
    return Tasks(task, control, names, held_out, {NAMES: Task.of(culture_names(split="heldout"), name=NAMES)})


def _of_blend(folder: str, passages: str | None, form: str, per_group: int | None, seed: int) -> Tasks:
    """BLEnD's questions, by topic, with CountryRC's passages where they are given."""
    read = partial(blend, folder, form=form, seed=seed)
    task = read(topics=FINDING_TOPICS, per_country=per_group)
    topics = [topic for topic in read().values("topic") if topic not in FINDING_TOPICS]
    control = read(topics=FINDING_TOPICS, per_country=per_group, question=False)
    names, others = None, {}
    if passages is not None:
        countries = task.values("country")
        names = country_rc(passages, countries=countries, form=form, seed=seed)
        names = names if per_group is None else names.limited(max(len(task), 4 * len(countries)), seed=seed)
        others[NAMES] = country_rc(passages, countries=countries, form=form, split="heldout", seed=seed)
    return Tasks(task, control, names, read(topics=topics), others)


def _other_tasks() -> dict[str, Task]:
    """What the demo knows beside culture."""
    return {
        "facts": generated("facts", count=300, relations=("capital", "currency", "language")),
        "sums": generated("arithmetic", split="heldout", count=300),
        "name binding": generated("binding", split="heldout", count=300, kinds=("ioi",)),
    }


def _effects(
    run: Run,
    default: int,
    name: str,
    sets: Mapping[str, UnitSet],
    on: Mapping[str, Task],
    how: str,
    *,
    controls: int | None = None,
) -> Effects:
    n = default if controls is None else controls
    return run.effects(
        name, lambda: effect(run.model, sets, on=dict(on), how=how, controls=n, seed=run.seed, quiet=run.quiet)
    )
