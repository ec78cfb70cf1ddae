"""Neurons of fused experts: clamps, scopes and edits mean the same as in dense layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import ModelError
from patchclamp.intervene import Intervention, clamp, edit
from patchclamp.intervene.weights import write_changes
from patchclamp.models.anatomy import fused_weight
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.models.units import UnitSet

IDS = torch.randint(3, 199, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["mixtral", "gpt_oss"])
def model(request: pytest.FixtureRequest) -> Any:
    return load(tiny_model(request.param))


def half(model: Any) -> UnitSet:
    """Every other neuron of all experts."""
    return UnitSet.at(model, "mlp", range(0, model.layouts["mlp"].total, 2))


def test_clamping_expert_neurons_to_zero_equals_zeroing_their_columns(model: Any) -> None:
    units = half(model)
    with clamp(model, units, to=0.0):
        clamped = model.logits(IDS)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with torch.no_grad():
        for layer in range(model.anatomy.n_layers):
            place = model.anatomy.site("mlp", layer)
            fused_weight(model.anatomy.module(place.path), place)[:, :, ::2] = 0
        zeroed = model.logits(IDS)
        model.hf.load_state_dict(before)
    torch.testing.assert_close(clamped, zeroed, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(clamped, model.logits(IDS), atol=1e-4)


def test_per_unit_values_reach_the_right_expert(model: Any) -> None:
    names = ["mlp.0.e0.1", "mlp.0.e1.1", "mlp.0.e3.5", "mlp.1.e2.0"]
    values = [0.5, -1.0, 2.0, 3.0]
    with clamp(model, names, to=values):
        together = model.logits(IDS)
    with clamp(model, names[0], to=0.5), clamp(model, names[1], to=-1.0), clamp(model, names[2:], to=[2.0, 3.0]):
        one_by_one = model.logits(IDS)
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=0)


def test_a_mask_reaches_the_tokens_of_an_expert(model: Any) -> None:
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[1, 4:] = True
    plain = model.logits(IDS)
    with clamp(model, half(model), to=1.0, mask=mask):
        masked = model.logits(IDS)
    torch.testing.assert_close(masked[[0, 2]], plain[[0, 2]], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masked[1, :4], plain[1, :4], rtol=1e-5, atol=1e-5)
    assert (masked[1, 4:] - plain[1, 4:]).abs().amax(-1).min() > 1e-4


@pytest.mark.parametrize("scope", ["prompt", "generated"])
def test_scopes_mean_the_same_with_and_without_a_cache(model: Any, scope: str) -> None:
    with clamp(model, half(model), to=1.0, scope=scope), torch.no_grad():
        found = [
            model.hf.generate(
                IDS, attention_mask=torch.ones_like(IDS), max_new_tokens=6, do_sample=False, use_cache=cache
            )
            for cache in (True, False)
        ]
    assert torch.equal(*found)


def test_an_ablated_checkpoint_equals_the_clamp(model: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    units = half(model)
    with clamp(model, units, to=0.0):
        wanted = model.logits(IDS)
    folder = edit(model, units, "ablate").save(tmp_path / "out")
    with torch.inference_mode():
        found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_means_fit_experts_with_biases_only(model: Any) -> None:
    units = half(model)
    item = Intervention(units, "mean", np.random.default_rng(0).normal(size=len(units)))
    edited = load(copy.deepcopy(model.hf))
    if model.anatomy.model_type == "mixtral":
        with pytest.raises(ModelError, match="use clamp"):
            write_changes([item], edited)
        return
    assert write_changes([item], edited) == {}
    with item.applied(model):
        wanted = model.logits(IDS)
    torch.testing.assert_close(edited.logits(IDS), wanted, rtol=1e-4, atol=1e-4)
