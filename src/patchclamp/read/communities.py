"""Module communities: which weight modules serve the same skills, from what pruning leaves of them for each dataset.

Bhandari, Chen and Gao 2025, "Unraveling the cognitive patterns of large language models through module communities"
(arXiv 2508.18192). Pruning is in pruning_importance.py, matrices in networks.py, communities in partitions.py, roles in
node_roles.py, agreement with categories in alignment.py; this file puts the parts in order.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.tasks import Task
from patchclamp.read.alignment import alignment, categorised, mantel, profile_match
from patchclamp.read.communities_result import Communities
from patchclamp.read.network_nulls import bipartite_null
from patchclamp.read.networks import Float, checked, project, sharpened, skill_matrix, sparsify, statistics
from patchclamp.read.node_roles import community_skills, matched_datasets, participation, skill_contrast, within_z
from patchclamp.read.partitions import Labels, communities_of, detect, modularity_test, sweep
from patchclamp.read.pruning_importance import PruningResponse, pruning_importance
from patchclamp.read.registry import readings

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

__all__ = ["Communities", "communities", "compare", "datasets_of", "network_of"]

ALPHA = 0.05
NEAR_CHANCE = 0.1  # accuracy less than this above chance: what pruning costs can't be seen


@readings.add("communities")
def communities(
    model: LanguageModel,
    tasks: Mapping[str, Task],
    *,
    by: Sequence[str] = (),
    labels: Sequence[str] = (),
    category: str = "skill",
    modules: str = "projection",
    layers: Sequence[int] | None = None,
    importance: str = "first",
    ratio: float = 0.2,
    prompts: int = 10,
    repeats: int = 5,
    loss: str = "text",
    accuracy: bool = True,
    items: int = 50,
    edge: str = "kept",
    sharpen: bool = False,
    sparse: float | None = None,
    method: str = "louvain",
    resolution: float = 1.0,
    runs: int = 100,
    null: str = "curveball",
    nulls: int = 199,
    permutations: int = 9999,
    batch_tokens: int = 2048,
    seed: int = 0,
    quiet: bool = False,
) -> Communities:
    """Communities of weight modules that serve the same skills: prune for each dataset, join modules through skills.

    tasks: datasets with a right answer for each item. by: labels that split every task into one dataset per value.
    labels: of items, whose values are the skills; by default those of `by`, or the category alone; a dataset with
    none of them has its category as its skill. category: the label whose value is the human category of a skill, to
    which communities of skills are compared. modules: `projection` (q, k, v, o, gate, up, down of each layer, pruned
    line by line) or `block` (attn and mlp, pruned by heads and channels). layers: only these. importance: `first`,
    `second` or `mix` (Taylor), or the controls `magnitude` and `random`. ratio: of the weights that are pruned.
    prompts: items for each gradient. repeats: how often they are drawn. loss: of the whole `text` or the `answer`.
    accuracy: weight a dataset's edges by 1 - |accuracy lost|. items: of each dataset that are scored. edge: `kept`
    share of a module, or its mean `saliency`. sharpen: only what a dataset needs beyond the averages of dataset and
    module. sparse: alpha of sparsifying by effective resistance (the paper: 0.01; none by default, for that destroys
    the communities). method: `louvain`, or `leiden` (extra). resolution: above 1 gives smaller communities. runs: of
    which the consensus is taken. null: `curveball` (numbers of links kept) or `strengths` (sums of weights kept).
    nulls: how many. permutations: of labels, for the alignment. batch_tokens: most positions in a batch. quiet: no
    progress bar.

    Differs from the paper: projections are pruned line by line, since coupled heads and channels leave q, k, v and o of a
    layer equal by construction (modules="block" is the paper's grouping); no sparsifying; modularity is compared with
    projections of randomised bipartite networks; corrected where the reference code isn't what the paper says
    (partitions.py, node_roles.py, networks.py name each).
    Example: `patchclamp read communities demo --tasks generate:dates --tasks generate:binding --by kind --out modules.json`.
    """
    datasets = datasets_of(tasks, by)
    skills_from = tuple(labels) or tuple(by) or (category,)
    b_ds, skills = skill_matrix(datasets, skills_from, tags=_without_labels(datasets, skills_from, category))
    bipartite_null(null)
    response = pruning_importance(
        model, datasets, modules=modules, layers=layers, importance=importance, ratios=(ratio,), prompts=prompts,
        repeats=repeats, loss=loss, accuracy=accuracy, items=items, batch_tokens=batch_tokens, seed=seed, quiet=quiet,
    )  # fmt: skip
    return network_of(
        response, b_ds, skills, categories=_categories(datasets, skills_from, category), edge=edge, sharpen=sharpen,
        sparse=sparse, method=method, resolution=resolution, runs=runs, null=null, nulls=nulls,
        permutations=permutations, seed=seed, notes=_chance_notes(datasets, response),
        tasks={name: task.identity for name, task in datasets.items()},
        call={"by": list(by), "labels": list(skills_from), "category": category, "modules": modules,
              "layers": None if layers is None else list(layers), "repeats": repeats, "ratio": ratio,
              **response.parameters},
    )  # fmt: skip


def network_of(
    response: PruningResponse,
    datasets_skills: ArrayLike,
    skills: Sequence[str],
    *,
    categories: Mapping[str, str] | None = None,
    ratio: float | None = None,
    edge: str = "kept",
    sharpen: bool = False,
    sparse: float | None = None,
    method: str = "louvain",
    resolution: float = 1.0,
    runs: int = 100,
    null: str = "curveball",
    nulls: int = 199,
    permutations: int = 9999,
    seed: int = 0,
    notes: Sequence[str] = (),
    tasks: Mapping[str, Any] | None = None,
    call: Mapping[str, Any] | None = None,
) -> Communities:
    """The network of a pruning response, its communities, roles and tests; arguments as those of `communities`.

    datasets_skills: (datasets, skills), rows in the order of the response. categories: skill -> category; skills without
    one are each their own. call, tasks: what made the response, for the provenance.
    """
    b_ds = checked(datasets_skills, "datasets x skills")
    if b_ds.shape != (len(response.datasets), len(skills)):
        raise InputError(
            f"datasets x skills has shape {b_ds.shape}, but {len(response.datasets)} datasets and {len(skills)} skills"
        )
    randomise = bipartite_null(null)
    b_dm = response.matrix(ratio=ratio, edge=edge, weighted=False)
    unlinked = [name for name, row in zip(response.datasets, b_dm, strict=True) if not row.any()]
    said = list(notes) + [f"pruning treats all modules alike for {name}: no edges" for name in unlinked]
    b_dm = (sharpened(b_dm) if sharpen else b_dm) * response.kept_accuracy(ratio=ratio)[:, None]
    if sparse is not None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            b_dm = sparsify(b_dm, sparse, seed=seed)
        said += [str(one.message) for one in caught]
    made = project(b_ds, b_dm)
    how: dict[str, Any] = {"method": method, "resolution": resolution, "seed": seed}
    modules = communities_of(made.modules, runs=runs, **how)
    of_skills = communities_of(made.skills, runs=runs, **how)

    def at_random(rng: np.random.Generator) -> tuple[Float, Labels]:
        other = project(b_ds, randomise(b_dm, rng))
        return other.skills_modules, detect(other.modules, **how)

    tests = {
        "modules": modularity_test(
            made.modules, lambda rng: project(b_ds, randomise(b_dm, rng)).modules, nulls=nulls, **how
        ),
        "skills": modularity_test(
            made.skills, lambda rng: project(b_ds, randomise(b_dm, rng)).skills, nulls=nulls, **how
        ),
    }
    about = community_skills(made.skills_modules, modules.labels)
    groups = categorised(list(skills), categories or {})
    agree = partial(alignment, permutations=permutations, seed=seed)
    arguments = {
        **(call or {}), "edge": edge, "sharpen": sharpen, "sparse": sparse, "method": method, "resolution": resolution,
        "runs": runs, "null": null, "nulls": nulls, "permutations": permutations, "seed": seed,
    }  # fmt: skip
    return Communities(
        response=response,
        skills=tuple(skills),
        categories=dict(zip(skills, groups, strict=True)),
        datasets_skills=b_ds,
        datasets_modules=b_dm,
        projections=made,
        partition=modules,
        skill_partition=of_skills,
        participation=participation(made.modules, modules.labels),
        z=within_z(made.modules, modules.labels),
        content=about,
        matched=matched_datasets(b_ds, b_dm, about, modules.labels, response.datasets),
        tests=tests,
        alignment={
            "skills": agree(of_skills.labels.tolist(), groups),
            "layers": agree(modules.labels.tolist(), list(response.layers)),
            "kinds": agree(modules.labels.tolist(), [name.rpartition(".")[0] for name in response.modules]),
        },
        contrast=skill_contrast(
            made.skills_modules, detect(made.modules, **how), randomised=at_random, permutations=nulls, seed=seed
        ),
        statistics=statistics(made.modules),
        resolutions=sweep(made.modules, runs=min(runs, 20), method=method, seed=seed),
        notes=tuple(said + _outcome_notes(tests, modules.n_communities, sharpen)),
        provenance=provenance(
            "read.communities",
            arguments=arguments,
            inputs={"model": dict(response.model), "tasks": tasks or {}},
            seed=seed,
        ),
    )


def datasets_of(tasks: Mapping[str, Task], by: Sequence[str] = ()) -> dict[str, Task]:
    """One dataset per task, or per task and value of the first of the `by` labels that the task's items have.

    A task whose items all have the same value keeps its name, the others are called "task/value".
    """
    found: dict[str, Task] = {}
    for name, task in tasks.items():
        key = next((label for label in by if label in task.label_keys), None)
        whole = key is None or (len(task.values(key)) == 1 and all(key in item.labels for item in task))
        parts = {name: task} if whole else {f"{name}/{value}": part for value, part in task.by(str(key)).items()}
        found |= parts
    if by and len(found) == len(tasks) and not any(label in task.label_keys for task in tasks.values() for label in by):
        raise InputError(f"no task has one of the labels {', '.join(by)} to be split by")
    return found


def compare(one: Communities, other: Communities, *, permutations: int = 9999, seed: int = 0) -> dict[str, Any]:
    """How alike two models' networks are, over the datasets and skills that both have, with permutation p-values.

    skills, modules: alignment of their communities. skill_network, module_network: rank correlation of the edges (Mantel).
    importance: correlation of each dataset's importances between the models beyond that of different datasets. What is
    about modules is None unless both models have modules of the same names. InputError without 2 common datasets.
    """
    datasets = [name for name in one.response.datasets if name in other.response.datasets]
    skills = [name for name in one.skills if name in other.skills]
    if len(datasets) < 2 or len(skills) < 2:
        raise InputError(
            f"the two have {len(datasets)} datasets and {len(skills)} skills in common; at least 2 of each are needed"
        )
    how: dict[str, Any] = {"permutations": permutations, "seed": seed}
    mine, theirs = [[x.skills.index(name) for name in skills] for x in (one, other)]
    found: dict[str, Any] = {
        "datasets": len(datasets),
        "skills": alignment(one.skill_partition.labels[mine].tolist(), other.skill_partition.labels[theirs].tolist(), **how),
        "skill_network": mantel(
            one.projections.skills[np.ix_(mine, mine)], other.projections.skills[np.ix_(theirs, theirs)], **how
        ),
        "modules": None, "module_network": None, "importance": None,
    }  # fmt: skip
    if one.response.modules == other.response.modules:
        rows = [[x.response.datasets.index(name) for name in datasets] for x in (one, other)]
        found |= {
            "modules": alignment(one.partition.labels.tolist(), other.partition.labels.tolist(), **how),
            "module_network": mantel(one.projections.modules, other.projections.modules, **how),
            "importance": profile_match(_plain(one)[rows[0]], _plain(other)[rows[1]], **how),
        }
    return found


def _plain(found: Communities) -> Float:
    """Importances before sharpening and sparsifying."""
    return found.response.matrix(weighted=False)


def _without_labels(datasets: Mapping[str, Task], labels: Sequence[str], category: str) -> dict[str, list[str]]:
    """Skills of the datasets whose items have none of the labels: their categories."""
    return {
        name: sorted({item.labels[category] for item in task if category in item.labels})
        for name, task in datasets.items()
        if not set(labels) & set(task.label_keys)
    }


def _categories(datasets: Mapping[str, Task], labels: Sequence[str], category: str) -> dict[str, str]:
    """The category that most items of a skill have."""
    counts: dict[str, Counter[str]] = {}
    for task in datasets.values():
        for item in task:
            if category not in item.labels:
                continue
            for key in labels:
                if key in item.labels:
                    counts.setdefault(item.labels[key], Counter())[item.labels[category]] += 1
    alone = {name: name for names in _without_labels(datasets, labels, category).values() for name in names}
    return alone | {skill: found.most_common(1)[0][0] for skill, found in counts.items()}


def _chance_notes(datasets: Mapping[str, Task], response: PruningResponse) -> list[str]:
    near = []
    for (name, task), plain in zip(datasets.items(), response.plain, strict=True):
        if all(item.choices for item in task) and not np.isnan(plain):
            chance = float(np.mean([sum(item.right) / len(item.choices) for item in task]))
            if plain < chance + NEAR_CHANCE:
                near.append(f"{name} ({plain:.2f})")
    if not near:
        return []
    return [f"the model is near chance on {', '.join(near)}: that pruning costs no accuracy there means nothing"]


def _outcome_notes(tests: Mapping[str, Mapping[str, Any]], communities: int, sharpen: bool) -> list[str]:
    p = tests["modules"]["p"]
    found = []
    if p is not None and p > ALPHA:
        found.append(
            f"the modules are no more modular than at random (p = {p:.2g}): read nothing into their communities"
        )
    if communities < 2 and not sharpen:
        found.append("all modules form one community: every dataset needs the same ones; sharpen compares what differs")
    return found


make_callable(__name__)
