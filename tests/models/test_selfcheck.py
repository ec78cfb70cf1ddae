"""The check on load tells models that padding moves from those that it doesn't."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from patchclamp.core.errors import CheckError
from patchclamp.models.load import load
from patchclamp.models.selfcheck import check_model
from patchclamp.models.tiny import tiny_model


@pytest.mark.parametrize("kind", ["llama", "opt", "bloom", "roberta"])
def test_padding_does_not_move_values(kind: str) -> None:
    report = check_model(load(tiny_model(kind), check=False))
    assert [check.name for check in report.checks] == [
        "observing",
        "sites",
        "finite",
        "attention",
        "batch",
        "right padding",
        "left padding",
    ]
    assert not report.warnings


def test_a_model_that_padding_moves_is_warned_about_with_the_number() -> None:
    hf = tiny_model("llama")
    inner = hf.model.forward
    hf.model.forward = lambda *args, **kwargs: inner(*args, **{**kwargs, "attention_mask": None, "position_ids": None})
    model = load(hf, check=False)
    model._wants_positions = False
    report = check_model(model)
    left = next(check for check in report.checks if check.name == "left padding")
    assert left.status == "warning"
    assert left.value is not None
    assert left.value > 0.01
    assert "left padding" in str(report)


def test_a_model_that_is_not_deterministic_is_an_error() -> None:
    hf = tiny_model("gpt2")
    hf.transformer.ln_f.register_forward_hook(lambda module, args, output: output + torch.randn(()) * 1e-3)
    with pytest.raises(CheckError, match="observing changes logits"):
        load(hf)


def test_a_good_model_carries_its_report(tiny_gpt2: Any) -> None:
    assert tiny_gpt2.report is not None
    assert not tiny_gpt2.report.warnings
    assert tiny_gpt2.report.to_dict()["checks"][0]["name"] == "observing"


@pytest.mark.parametrize("positions", [1, 2, 8])
def test_a_model_of_very_short_texts_is_checked_too(positions: int) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=positions, n_embd=16, n_layer=1, n_head=2))
    report = check_model(load(hf, check=False))
    assert not report.warnings
    assert {"batch", "right padding", "left padding"} <= {check.name for check in report.checks}
