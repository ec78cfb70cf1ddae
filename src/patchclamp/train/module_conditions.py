"""Is a skill where its module community says? Fine-tune the community, all modules, or as many others, and compare.

Step 12 of Bhandari, Chen and Gao 2025 (arXiv 2508.18192). Conditions: `community`; `all` modules; `random`, as many outside
the community; `overlapping`, as many from all; `nearest`, each module moved to the nearest free layer, same kind; `none`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.data.tasks import Task
from patchclamp.measure import score
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.permutation import sign_flip
from patchclamp.read.weight_modules import WeightModule, weight_change
from patchclamp.train.finetune import finetune

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

CONDITIONS = ("none", "community", "random", "overlapping", "nearest", "all")
DRAWN = ("random", "overlapping", "nearest")


def chosen_modules(
    condition: str, community: Sequence[str], modules: Sequence[WeightModule], *, seed: int = 0
) -> list[str] | None:
    """Names of the modules that a condition trains, in the model's order; None where there are too few modules for it.

    InputError for an unknown condition, an empty community, or a name that is no module.
    """
    names = [module.name for module in modules]
    if unknown := [name for name in community if name not in names]:
        raise InputError(f"{unknown[0]!r} is none of the {len(names)} modules")
    if condition not in CONDITIONS or not community:
        raise InputError(f"condition={condition!r} of {len(community)} modules; it is one of {', '.join(CONDITIONS)}")
    rng = np.random.default_rng([seed, CONDITIONS.index(condition)])
    outside = [name for name in names if name not in set(community)]
    if condition == "nearest":
        return _moved(community, modules, rng)
    if condition == "random" and len(outside) < len(community):
        return None
    drawn: dict[str, Any] = {
        "none": [],
        "all": names,
        "community": list(community),
        "random": lambda: rng.choice(outside, len(community), replace=False).tolist(),
        "overlapping": lambda: rng.choice(names, len(community), replace=False).tolist(),
    }
    found = drawn[condition]
    kept = set(found() if callable(found) else found)
    return [name for name in names if name in kept]


def finetune_conditions(
    model: LanguageModel,
    modules: Sequence[WeightModule],
    community: Sequence[str],
    learn: Task,
    test: Task,
    *,
    conditions: Sequence[str] = CONDITIONS,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 20,
    learning_rate: float = 1e-3,
    batch_tokens: int = 256,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """Fine-tune under every condition and seed, and score the test items: one row each.

    A seed decides the order of the items and which modules are drawn. Rows: condition, seed, modules, weights (numbers
    trained), loss (mean -log p of the right answer, nats), accuracy (by choices; None without), losses (per test item),
    change (L2 norm of the change of all trained weights), cosine (mean over trained modules, before and after). A condition
    for which there are too few modules has no row. Raises InputError where a module shares its matrix with one that isn't
    trained (a fused projection): give modules="block", or train both.
    """
    by_name = {module.name: module for module in modules}
    rows = []
    runs = [(condition, seed) for condition in conditions for seed in (seeds[:1] if condition == "none" else seeds)]
    with progress("fine-tuning", len(runs), unit="runs", quiet=quiet) as advance:
        for condition, seed in runs:
            names = chosen_modules(condition, community, modules, seed=seed)
            advance(1)
            if names is None:
                continue
            tuned, weights = model, 0
            if names:
                only = _paths(names, modules)
                tuned = finetune(
                    model, learn, steps=steps, learning_rate=learning_rate, batch_tokens=batch_tokens, seed=seed,
                    only=only, quiet=True,
                )  # fmt: skip
                weights = tuned.training.weights
            loss = score(tuned, test, "loss", quiet=True)
            right = score(tuned, test, "choice", quiet=True).value if all(item.choices for item in test) else None
            changed = weight_change(model, tuned, [by_name[name] for name in names])
            rows.append(
                {
                    "condition": condition,
                    "seed": seed,
                    "modules": len(names),
                    "names": names,
                    "weights": weights,
                    "loss": float(loss.value),
                    "accuracy": None if right is None else float(right),
                    "losses": [float(item["value"]) for item in loss.items],
                    "change": float(np.sqrt(sum(row["change"] ** 2 for row in changed.values()))),
                    "cosine": float(np.mean([row["cosine"] for row in changed.values()])) if changed else None,
                }
            )
    return rows


def compared(
    rows: Sequence[dict[str, Any]], condition: str, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any] | None:
    """A condition's test loss less the community's, above 0 if the community learns better; None if either has no row.

    difference: mean over seeds and items, nats; low, high: bootstrap over items; p: sign flips over items; spread: standard
    deviation over seeds of the condition's loss; better: share of its runs with a lower loss than the community's mean.
    """
    own = [row for row in rows if row["condition"] == "community"]
    other = [row for row in rows if row["condition"] == condition]
    if not own or not other:
        return None
    items = np.mean([row["losses"] for row in other], 0) - np.mean([row["losses"] for row in own], 0)
    drawn = resampled_sums(items[:, None], resamples=resamples, seed=seed)[:, 0] / len(items)
    low, high = percentile_interval(drawn)
    mean = float(np.mean([row["loss"] for row in own]))
    values = [row["loss"] for row in other]
    return {
        "condition": condition,
        "difference": float(items.mean()),
        "low": low,
        "high": high,
        "p": sign_flip(items, seed=seed),
        "spread": float(np.std(values, ddof=1)) if len(values) > 1 else None,
        "better": float(np.mean([value < mean for value in values])),
    }


def _moved(community: Sequence[str], modules: Sequence[WeightModule], rng: np.random.Generator) -> list[str] | None:
    """Every module of the community moved to the nearest layer with a free module of its kind; None if one has none left."""
    layer = {module.name: module.layer for module in modules}
    free = {module.name for module in modules} - set(community)
    found: set[str] = set()
    for name in rng.permutation(list(community)).tolist():
        kind = name.rpartition(".")[0]
        near = sorted(other for other in free - found if other.rpartition(".")[0] == kind)
        if not near:
            return None
        distance = np.array([abs(layer[other] - layer[name]) for other in near])
        found.add(near[int(rng.choice(np.flatnonzero(distance == distance.min())))])
    return [module.name for module in modules if module.name in found]


def _paths(names: Sequence[str], modules: Sequence[WeightModule]) -> list[str]:
    """Dotted names of the linear maps of the modules; InputError for a map that others share."""
    chosen = {path for module in modules if module.name in set(names) for path in module.paths}
    for module in modules:
        if module.name not in set(names) and (shared := chosen & set(module.paths)):
            raise InputError(
                f"{module.name} shares the matrix {min(shared)} with a module that is to be trained alone; its projections "
                "are fused: make communities of blocks (modules='block')"
            )
    return sorted(chosen)
