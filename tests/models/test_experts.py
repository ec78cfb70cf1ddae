"""Neurons of experts: found in every way that transformers computes them, with the right expert and token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from patchclamp.models.collect import collect, taps_of
from patchclamp.models.coverage import agrees, enliven, without, zeroed
from patchclamp.models.hooks import Seen, change, observe
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

IMPLEMENTATIONS = ["eager", "batched_mm", "grouped_mm"]
IDS = torch.randint(3, 190, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def mixtral() -> Any:
    hf = tiny_model("mixtral")
    enliven(hf)
    return load(hf)


def by_hand(model: Any, ids: Tensor) -> Tensor:
    """(tokens, experts, width) neurons of layer 0, from weights and the router alone."""
    taken: list[Tensor] = []
    handle = model.hf.model.layers[0].mlp.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    model.logits(ids)
    handle.remove()
    hidden, moe = taken[0].reshape(-1, 32), model.hf.model.layers[0].mlp
    chosen = moe.gate(hidden)[2]
    found = torch.zeros(hidden.shape[0], 4, 48)
    for token in range(hidden.shape[0]):
        for expert in chosen[token].tolist():
            gate, up = (moe.experts.gate_up_proj[expert] @ hidden[token]).chunk(2)
            found[token, expert] = torch.nn.functional.silu(gate) * up
    return found


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_computed_by_hand(mixtral: Any, implementation: str) -> None:
    mixtral.hf.set_experts_implementation(implementation)
    plain = mixtral.logits(IDS)
    values = mixtral.layouts["mlp"].split(collect(mixtral, "mlp", IDS))[0]
    torch.testing.assert_close(values.view(18, 4, 48), by_hand(mixtral, IDS), rtol=1e-4, atol=1e-6)
    with observe(mixtral, taps_of(mixtral), lambda one: None):
        assert torch.equal(mixtral.logits(IDS), plain)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_neuron_of_one_expert_at_zero_is_its_column_at_zero(mixtral: Any, implementation: str) -> None:
    mixtral.hf.set_experts_implementation(implementation)
    plain = mixtral.logits(IDS)
    values = mixtral.layouts["mlp"].split(collect(mixtral, "mlp", IDS))[1]
    unit = int(values.abs().sum((0, 1)).argmax())
    with change(mixtral, {("mlp", 1): lambda one: without(one, unit)}):
        clamped = mixtral.logits(IDS)
    with zeroed(mixtral, 1, unit):
        assert agrees(clamped, mixtral.logits(IDS), plain)
    assert torch.equal(mixtral.logits(IDS), plain)


def test_slabs_name_their_expert_and_tokens(mixtral: Any) -> None:
    slabs: list[Seen] = []
    with observe(mixtral, [("mlp", 0)], slabs.append):
        mixtral.logits(IDS)
    assert {slab.offset % 48 for slab in slabs} == {0}
    assert all(slab.rows is not None and slab.values.shape == (len(slab.rows), 48) for slab in slabs)
    assert sum(len(slab.values) for slab in slabs) == 18 * 2


def test_shared_experts_come_after_the_routed_ones() -> None:
    hf = tiny_model("qwen2_moe")
    enliven(hf)
    model = load(hf)
    layout = model.layouts["mlp"]
    assert layout.experts[0] == 5
    shared = layout.split(collect(model, "mlp", IDS))[0][..., 4 * 24 :]
    assert (shared != 0).float().mean() > 0.9  # every token passes it


def test_generation_with_experts_is_the_same_with_and_without_a_cache(mixtral: Any) -> None:
    mixtral.hf.set_experts_implementation("eager")
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def half(one: Seen) -> Tensor:
        inside = one.step.scope("generated")
        rows = inside if one.rows is None else inside[one.rows]
        return torch.where(rows[:, None], one.values * 0.3, one.values)

    with change(mixtral, {("mlp", 0): half}):
        cached = mixtral.hf.generate(IDS, use_cache=True, **settings)
        assert torch.equal(cached, mixtral.hf.generate(IDS, use_cache=False, **settings))
