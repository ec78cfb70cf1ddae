"""Module communities end to end: prune for each dataset, join modules through skills, find communities, fine-tune them.

Method: Bhandari, Chen and Gao 2025 (arXiv 2508.18192); all of it lives in the floors below, this file only puts the parts
in order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.task_sources import generated
from patchclamp.data.tasks import Task
from patchclamp.measure import score
from patchclamp.read.communities import communities, datasets_of, network_of
from patchclamp.read.communities_result import Communities
from patchclamp.read.weight_modules import WeightModule, weight_modules
from patchclamp.studies import module_communities_view as view
from patchclamp.studies.study import Report, Run, studies
from patchclamp.train.module_conditions import compared, finetune_conditions

NAME = "module-communities"
TAUGHT = ("facts", "culture", "arithmetic", "dates", "binding", "manners", "code", "sentences")
KINDS = ("relation", "operation", "kind", "tone")  # labels that say which skill an item of these asks for
UNSEEN = ("facts", "arithmetic", "dates", "binding", "manners", "code", "sentences")  # have items kept out of training
FEWEST = 8  # items on either side of the split that fine-tuning needs


@studies.add(NAME)
def module_communities(
    run: Run,
    *,
    tasks: Mapping[str, Task] | None = None,
    learn: Mapping[str, Task] | None = None,
    by: Sequence[str] = KINDS,
    category: str = "skill",
    modules: str = "projection",
    ratio: float = 0.2,
    prompts: int = 10,
    repeats: int = 2,
    items: int = 12,
    count: int = 300,
    runs: int = 50,
    nulls: int = 99,
    tuned: int = 2,
    room: float = 0.1,
    seeds: int = 2,
    steps: int = 15,
    learning_rate: float = 1e-3,
    batch_tokens: int = 192,
) -> Report:
    """Module communities: do weights that serve the same skills form groups, and does a skill live there? (arXiv 2508.18192)

    tasks: datasets whose items carry labels; by default everything that the demo model was taught. learn: items to
    fine-tune on, by default those kept out of its training (with tasks=, the tasks themselves). by: labels that split tasks
    into datasets and name their skills. category: label that is the human category of a skill. modules: `projection` or
    `block`. ratio: of the weights that are pruned. prompts: items for a gradient. repeats: draws of them. items: scored per
    dataset. count: most items of a generated task. runs: of Louvain. nulls: random networks. tuned: communities that are
    fine-tuned, each on the dataset that matches it best and that the model can still learn. room: its answer loss in nats
    at least. seeds: runs of each condition. steps: of AdamW. learning_rate: of it. batch_tokens: of a step.

    Three networks are made: the paper's; one of what each dataset needs more than the average dataset (sharpened); and, as
    a control, that of random pruning. Communities of the sharpened one are fine-tuned against all modules and against
    random modules of equal number.
    """
    if seeds < 1 or tuned < 1:
        raise InputError(f"seeds={seeds}, tuned={tuned}; each is at least 1")
    known = dict(tasks) if tasks is not None else {name: generated(name, count=count) for name in TAUGHT}
    how: dict[str, Any] = {
        "by": tuple(by), "category": category, "modules": modules, "ratio": ratio, "prompts": prompts,
        "repeats": repeats, "items": items, "runs": runs, "nulls": nulls, "seed": run.seed, "quiet": run.quiet,
    }  # fmt: skip
    paper = _kept(run, "paper", lambda: communities(run.model, known, **how))
    same = {key: how[key] for key in ("runs", "nulls", "seed")}
    chance = {**how, "importance": "random", "accuracy": False, "sharpen": True}
    found = {
        "paper": paper,
        "sharpened": _kept(run, "sharpened", lambda: _sharpened(paper, same)),
        "random": _kept(run, "random", lambda: communities(run.model, known, **chance)),
    }
    unseen = _unseen(tasks, learn, count)
    split = [label for label in by if any(label in task.label_keys for task in unseen.values())]
    trained = run.stage(
        "fine-tuning",
        lambda: _fine_tuned(
            run, found["sharpened"], datasets_of(unseen, split), modules, tuned, room,
            {"seeds": tuple(range(run.seed, run.seed + seeds)), "steps": steps, "learning_rate": learning_rate,
             "batch_tokens": batch_tokens, "quiet": run.quiet},
        ),
    )  # fmt: skip
    return view.report(
        view.ModuleCommunities(networks=found, trained=trained, room=room, model=dict(run.model.identity))
    )


def _kept(run: Run, name: str, make: Callable[[], Communities]) -> Communities:
    """A network of the model, made once and kept in the run's folder."""
    path = run.file(f"{name}.communities.json")

    def written() -> dict[str, Any]:
        found = make()
        found.save(path)
        return {"file": path.name, "communities": found.partition.n_communities}

    run.stage(f"network-{name}", written)
    return Communities.load(path)


def _sharpened(paper: Communities, how: Mapping[str, Any]) -> Communities:
    """The network of what each dataset needs more than the average one, from the same pruning."""
    return network_of(
        paper.response, paper.datasets_skills, paper.skills, categories=paper.categories, sharpen=True,
        tasks=paper.provenance["inputs"]["tasks"], call=paper.provenance["arguments"], **how,
    )  # fmt: skip


def _unseen(tasks: Mapping[str, Task] | None, learn: Mapping[str, Task] | None, count: int) -> dict[str, Task]:
    """What is fine-tuned on."""
    if learn is not None:
        return dict(learn)
    if tasks is not None:
        return dict(tasks)
    return {name: generated(name, split="heldout", count=count) for name in UNSEEN}


def _fine_tuned(
    run: Run, found: Communities, unseen: Mapping[str, Task], modules: str, tuned: int, room: float, how: dict[str, Any]
) -> list[dict[str, Any]]:
    """The conditions for the largest communities of at least two modules, each on its best-matched learnable dataset."""
    nodes = weight_modules(run.model, modules)
    made: list[dict[str, Any]] = []
    for number, members in enumerate(found.members):
        if len(members) < 2 or len(members) == len(found.modules) or len(made) == tuned:
            continue
        taken = {entry["dataset"] for entry in made}
        for rank, row in enumerate(found.matched[number], 1):
            name = row["dataset"]
            if name not in unseen or name in taken or len(unseen[name]) < 2 * FEWEST:
                continue
            first, second = _halves(unseen[name], run.seed)
            plain = score(run.model, second, "loss", quiet=True).value
            if plain < room:
                continue
            rows = _learned(run, nodes, members, first, second, how)
            if rows is None:
                continue
            kinds = dict.fromkeys(line["condition"] for line in rows)
            comparisons = [compared(rows, kind, seed=run.seed) for kind in kinds if kind != "community"]
            made.append(
                {"community": number, "modules": len(members), "dataset": name, "rank": rank, "kl": row["kl"],
                 "learn": len(first), "test": len(second), "rows": rows, "compared": comparisons}
            )  # fmt: skip
            break
    return made


def _learned(
    run: Run, nodes: Sequence[WeightModule], members: Sequence[str], learn: Task, test: Task, how: dict[str, Any]
) -> list[dict[str, Any]] | None:
    """Rows of all conditions; None if not even training all modules lowers the test loss: nothing is learned there."""
    begin = {**how, "seeds": how["seeds"][:1], "conditions": ("none", "all")}
    rows = finetune_conditions(run.model, nodes, members, learn, test, **begin)
    if rows[1]["loss"] >= rows[0]["loss"]:
        return None
    rows += finetune_conditions(
        run.model, nodes, members, learn, test, conditions=("community", "random", "overlapping", "nearest"), **how
    )
    if how["seeds"][1:]:
        more = {**how, "seeds": how["seeds"][1:]}
        rows += finetune_conditions(run.model, nodes, members, learn, test, conditions=("all",), **more)
    return rows


def _halves(task: Task, seed: int) -> tuple[Task, Task]:
    """Items to learn and items to test, drawn at random; the same fact may be asked in other words on the other side."""
    order = list(range(len(task)))
    random.Random(f"halves/{seed}").shuffle(order)
    middle = len(order) // 2
    first, second = sorted(order[:middle]), sorted(order[middle : middle + 60])
    return (
        Task.of([task[at] for at in first], name=f"{task.name} (to learn)"),
        Task.of([task[at] for at in second], name=f"{task.name} (to test)"),
    )
