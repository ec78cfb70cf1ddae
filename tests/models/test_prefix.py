"""A prefix gives the very logits of the full pass, under changes above it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.models.hooks import change, observe
from patchclamp.models.load import load
from patchclamp.models.prefix import Prefix
from patchclamp.models.tiny import tiny_model

IDS = torch.randint(3, 190, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["gpt2", "llama", "opt", "mixtral", "gemma2", "cohere"])
def test_logits_from_a_prefix_are_bit_identical(kind: str) -> None:
    model = load(tiny_model(kind))
    mask = torch.ones_like(IDS)
    mask[0, :2] = 0
    prefix = Prefix(model, 1, IDS, mask)
    assert prefix.exact
    assert torch.equal(prefix.logits(), model.logits(IDS, mask))
    with change(model, {("mlp", 1): lambda one: one.values * 0}):
        assert torch.equal(prefix.logits(), model.logits(IDS, mask))
    assert torch.equal(prefix.logits(), model.logits(IDS, mask))
    assert "forward" not in vars(model.anatomy.module(model.anatomy.blocks[0]))


def test_blocks_below_are_not_computed(tiny_llama: Any) -> None:
    prefix, seen = Prefix(tiny_llama, 2, IDS), []
    with observe(tiny_llama, [("mlp", 0), ("mlp", 1), ("mlp", 2)], lambda one: seen.append(one.layer)):
        prefix.logits()
    assert seen == [2]


def test_gradients_flow_above_a_prefix(tiny_gpt2: Any) -> None:
    prefix, push = Prefix(tiny_gpt2, 1, IDS), torch.zeros(128, requires_grad=True)
    with change(tiny_gpt2, {("mlp", 2): lambda one: one.values + push}):
        prefix.logits(grad=True).sum().backward()
    assert push.grad is not None


def test_a_change_below_the_prefix_is_refused(tiny_gpt2: Any) -> None:
    prefix = Prefix(tiny_gpt2, 2, IDS)
    with change(tiny_gpt2, {("mlp", 0): lambda one: one.values}):
        with pytest.raises(InputError, match="layer 0 is being changed"):
            prefix.logits()
        with pytest.raises(InputError, match="layer 0 is being changed"):
            Prefix(tiny_gpt2, 1, IDS)
    with pytest.raises(InputError, match="the model has 3"):
        Prefix(tiny_gpt2, 3, IDS)


def test_layer_zero_has_nothing_below_and_still_works(tiny_gpt2: Any) -> None:
    assert torch.equal(Prefix(tiny_gpt2, 0, IDS).logits(), tiny_gpt2.logits(IDS))
