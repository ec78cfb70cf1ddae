"""Which modules each condition trains, and that a hand-wired module learns its own skill where others can't."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.read.planted_modules import planted_model, planted_tasks

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.read.weight_modules import weight_modules
from patchclamp.train.module_conditions import chosen_modules, compared, finetune_conditions

COMMUNITY = ["gate.0", "up.0", "down.0"]


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model(strength=0.01)


def test_conditions_train_as_many_modules_as_they_say(planted: Any) -> None:
    modules = weight_modules(planted)
    names = [module.name for module in modules]
    assert chosen_modules("all", COMMUNITY, modules) == names
    assert chosen_modules("none", COMMUNITY, modules) == []
    assert chosen_modules("community", COMMUNITY, modules) == COMMUNITY
    for seed in range(20):
        random = chosen_modules("random", COMMUNITY, modules, seed=seed)
        assert random is not None
        assert len(random) == 3
        assert not set(random) & set(COMMUNITY)
        assert len(chosen_modules("overlapping", COMMUNITY, modules, seed=seed) or []) == 3
        assert random == chosen_modules("random", COMMUNITY, modules, seed=seed)
    assert chosen_modules("nearest", COMMUNITY, modules) == ["gate.1", "up.1", "down.1"]


def test_a_condition_without_enough_modules_is_none(planted: Any) -> None:
    modules = weight_modules(planted)
    assert chosen_modules("random", [module.name for module in modules[:8]], modules) is None
    assert chosen_modules("nearest", ["q.0", "q.1"], modules) is None
    with pytest.raises(InputError, match=r"'q\.7' is none of the 14 modules"):
        chosen_modules("all", ["q.7"], modules)
    with pytest.raises(InputError, match="is one of none, community"):
        chosen_modules("some", COMMUNITY, modules)
    with pytest.raises(InputError, match="of 0 modules"):
        chosen_modules("all", [], modules)


def test_in_a_modular_model_the_skills_own_modules_learn_it_best(planted: Any) -> None:
    before = {name: weight.clone() for name, weight in planted.hf.named_parameters()}
    task = planted_tasks()["first"]
    rows = finetune_conditions(
        planted, weight_modules(planted), COMMUNITY, task, task, seeds=(0, 1), steps=8, learning_rate=0.02, quiet=True,
        conditions=("none", "community", "nearest", "all"),
    )  # fmt: skip
    mean = {row["condition"]: row["loss"] for row in rows}
    assert mean["community"] < 0.7 * mean["none"]
    assert mean["nearest"] == pytest.approx(mean["none"]), "the other layer's neurons get no gradient"
    other = compared(rows, "nearest")
    assert other is not None
    assert other["low"] > 0
    assert other["better"] == 0
    assert other["p"] == pytest.approx(2 / 64), "all signs alike over six items"
    own = next(row for row in rows if row["condition"] == "community")
    assert (own["modules"], own["weights"]) == (3, 3 * 12 * 24)
    assert own["change"] > 0
    assert compared(rows, "random") is None
    for name, weight in planted.hf.named_parameters():
        assert torch.equal(weight, before[name])


def test_a_comparison_is_the_mean_over_items_and_seeds() -> None:
    def row(condition: str, *losses: float) -> dict[str, Any]:
        return {"condition": condition, "losses": list(losses), "loss": float(np.mean(losses))}

    rows = [row("community", 1, 2, 3), row("community", 1, 2, 5), row("random", 2, 2, 4), row("random", 1, 2, 2)]
    found = compared(rows, "random")
    assert found is not None
    assert found["difference"] == pytest.approx((1.5 + 2 + 3) / 3 - (1 + 2 + 4) / 3)
    assert found["better"] == 0.5
    assert found["spread"] == pytest.approx(np.std([8 / 3, 5 / 3], ddof=1))


def test_fused_projections_are_not_trained_apart(tiny_gpt2: Any) -> None:
    task = Task.of([{"prompt": "The cat sat on", "answer": " the mat"}])
    modules = weight_modules(tiny_gpt2)
    with pytest.raises(InputError, match="projections are fused"):
        finetune_conditions(tiny_gpt2, modules, ["q.0"], task, task, conditions=("community",), quiet=True)
    together = finetune_conditions(
        tiny_gpt2, modules, ["q.0", "k.0", "v.0"], task, task, conditions=("community",), seeds=(0,), steps=1, quiet=True
    )  # fmt: skip
    assert together[0]["modules"] == 3
