"""Activation functions in blocks of rows give the same bits, and only where they may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import activations

from patchclamp.models import blockwise
from patchclamp.models.blockwise import SEVERAL_STEPS, blockwise_activations
from patchclamp.models.hooks import observe


class Holder:
    """As much of a LanguageModel as is looked at."""

    def __init__(self, *modules: nn.Module) -> None:
        self.hf = nn.ModuleList(modules)


def made(name: str) -> nn.Module:
    arguments: tuple[Any, ...] = (-10, 10) if name == "ClippedGELUActivation" else ()
    module: nn.Module = getattr(activations, name)(*arguments)
    return module


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", SEVERAL_STEPS)
def test_every_number_is_the_same(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", 1000)
    module = made(name)
    values = 5 * torch.randn(7, 31, 67, generator=torch.Generator().manual_seed(0)).to(dtype)
    wanted = module(values)
    with blockwise_activations(Holder(module)), torch.inference_mode():
        first, second = module(values), module(values)
    assert torch.equal(first, wanted)
    assert torch.equal(second, wanted)
    assert "forward" not in vars(module)


class NewGELUActivation(nn.Module):
    """A module of a known name that mixes rows."""

    calls = 0

    def forward(self, values: Tensor) -> Tensor:
        type(self).calls += 1
        return values - values.mean(dim=(0, 1))


def test_a_module_whose_numbers_differ_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", 100)
    module = NewGELUActivation()
    values = torch.randn(3, 10, 20)
    wanted = module(values)
    with blockwise_activations(Holder(module)), torch.inference_mode():
        assert torch.equal(module(values), wanted)
        before = NewGELUActivation.calls
        assert torch.equal(module(values), wanted)
    assert NewGELUActivation.calls == before + 1


def test_what_needs_a_gradient_or_is_small_runs_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    module = NewGELUActivation()
    with blockwise_activations(Holder(module)):
        before = NewGELUActivation.calls
        module(torch.randn(2, 3, 4))
        assert NewGELUActivation.calls == before + 1
        monkeypatch.setattr(blockwise, "BLOCK", 1)
        module(torch.randn(2, 3, 4, requires_grad=True)).sum().backward()
        assert NewGELUActivation.calls == before + 2


def test_a_model_s_taps_and_logits_do_not_change_by_a_bit(tiny_gpt2: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "BLOCK", 64)
    ids = torch.randint(0, 90, (4, 9), generator=torch.Generator().manual_seed(1))
    taps = [("mlp", 0), ("gate", 1), ("pre", 1)]

    def passed() -> dict[tuple[str, int], Tensor]:
        seen: dict[tuple[str, int], Tensor] = {}
        with observe(tiny_gpt2, taps, lambda one: seen.update({(one.site, one.layer): one.values.clone()})):
            seen["logits", 0] = tiny_gpt2.logits(ids)
        return seen

    wanted = passed()
    with blockwise_activations(tiny_gpt2):
        for _ in range(2):
            for tap, values in passed().items():
                assert torch.equal(values, wanted[tap]), tap
