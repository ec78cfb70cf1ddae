"""Fast kernels inside a model: the same numbers to rounding, nothing left behind, others' layers untouched."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.small import small

from patchclamp.core import products
from patchclamp.data.corpora import corpus
from patchclamp.models.fast_passes import fast_passes
from patchclamp.models.hooks import forward_replaced
from patchclamp.models.load import load
from patchclamp.record import record

pytestmark = pytest.mark.skipif(not products.has_onednn(), reason="this build of torch has no oneDNN")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """oneDNN for products of any size; gives a list that grows with every product."""
    calls: list[int] = []
    plain = products.product

    def counted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return plain(*args)

    monkeypatch.setenv(products.VARIABLE, "fast")
    monkeypatch.setattr(products, "LEAST", 1)
    monkeypatch.setattr("patchclamp.models.fast_passes.product", counted)
    return calls


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "gpt_neox", "mixtral", "phi", "gemma2"])
def test_logits_agree_to_rounding(model_type: str, onednn: list[int]) -> None:
    hf = small(model_type).float().eval()
    ids = torch.randint(1, hf.config.vocab_size, (3, 11))
    linear = sum(isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D" for module in hf.modules())
    with torch.inference_mode():
        plain = hf(ids).logits
        with fast_passes(load(hf, check=False)):
            fast = hf(ids).logits
        after = hf(ids).logits
    assert len(onednn) == linear
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    assert torch.equal(after, plain)
    assert not any("forward" in vars(module) for module in hf.modules())


def test_contexts_nest_and_end_on_exceptions(onednn: list[int]) -> None:
    model = load(small("llama"), check=False)
    ids = torch.arange(1, 9)[None]
    with pytest.raises(KeyError), fast_passes(model):
        with fast_passes(model):
            model.logits(ids)
        inner = len(onednn)
        model.logits(ids)
        assert len(onednn) == 2 * inner > 0
        raise KeyError
    model.logits(ids)
    assert len(onednn) == 2 * inner
    assert not any("forward" in vars(module) for module in model.hf.modules())


def test_layers_that_somebody_else_runs_are_left_alone(onednn: list[int]) -> None:
    model = load(small("llama"), check=False)
    own = next(module for module in model.hf.modules() if type(module) is torch.nn.Linear)
    kept = own.forward
    with forward_replaced(own, kept):
        with fast_passes(model):
            assert own.forward is kept
        assert own.forward is kept

    class Adapted(torch.nn.Linear):
        """A layer of another library."""

    other = Adapted(4, 4)
    model.hf.add_module("other", other)
    with fast_passes(model):
        assert "forward" not in vars(other)


def test_compiled_models_stay_as_they_are(onednn: list[int]) -> None:
    model = load(small("llama"), check=False)
    block = model.anatomy.module(model.anatomy.blocks[0])
    block.compile()
    with fast_passes(model):
        assert not any("forward" in vars(module) for module in model.hf.modules())
    block._compiled_call_impl = None
    with fast_passes(model):
        assert any("forward" in vars(module) for module in model.hf.modules())


def test_gradients_and_other_types_go_the_usual_way(onednn: list[int]) -> None:
    model = load(small("gpt2"), check=False)
    model.hf.requires_grad_(True)
    ids = torch.arange(1, 9)[None]
    with fast_passes(model):
        model.logits(ids, grad=True).sum().backward()
        assert not onednn
    assert all(one.grad is not None for one in model.hf.parameters())
    half = load(small("gpt2").bfloat16(), check=False)
    plain = half.logits(ids)
    with fast_passes(half):
        assert torch.equal(half.logits(ids), plain)
    assert not onednn


def test_a_recording_agrees_with_a_plain_one(onednn: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(small("gpt2"), tokenizer=_Numbers(), check=False)
    generator = np.random.default_rng(0)
    text = corpus(x=[" ".join(map(str, generator.integers(1, 90, 20))) for _ in range(12)])
    fast = record(model, text, batch_tokens=64, quiet=True)
    assert onednn
    assert fast.provenance["versions"]["kernels"] == "fused+onednn"
    count = len(onednn)
    monkeypatch.setenv(products.VARIABLE, "plain")
    plain = record(model, text, batch_tokens=64, quiet=True)
    assert len(onednn) == count
    np.testing.assert_allclose(fast.get("moments", "x").mean, plain.get("moments", "x").mean, atol=1e-6)
    np.testing.assert_allclose(fast.get("moments", "x").std, plain.get("moments", "x").std, atol=1e-6)
    assert abs(fast.get("firing", "x").counts - plain.get("firing", "x").counts).max() <= 1


def test_resuming_with_another_library_is_said(
    onednn: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    model = load(small("gpt2"), tokenizer=_Numbers(), check=False)
    text = corpus(x=["1 2 3 4 5", "6 7 8"])
    record(model, text, out=tmp_path / "r", quiet=True)
    monkeypatch.setenv(products.VARIABLE, "plain")
    with pytest.warns(UserWarning, match="kernels fused\\+onednn -> plain: last digits may differ"):
        record(model, text, out=tmp_path / "r", resume=True, quiet=True)


@pytest.mark.parametrize("model_type", ["gpt2", "bloom"])
def test_tanh_gelu_is_one_operation_and_the_same_function(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.VARIABLE, "fused")
    hf = small(model_type).float().eval()
    name = {"gpt2": "NewGELUActivation", "bloom": "BloomGelu"}[model_type]
    activation = next(module for module in hf.modules() if type(module).__name__ == name)
    values = torch.linspace(-12, 12, 4001)
    with torch.inference_mode():
        plain = activation(values)
        with fast_passes(load(hf, check=False)):
            fast = activation(values)
        assert torch.equal(activation(values), plain)
    x = values.double()
    exact = 0.5 * x * (1 + torch.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    for found in (plain, fast):  # 1 + tanh loses digits where it is close to 0, in either way
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=2e-6)
    assert not torch.equal(fast, plain)


class _Numbers:
    """Reads "17 4" as the tokens 17 and 4."""

    all_special_ids: tuple[int, ...] = ()
    pad_token_id = 0

    def __call__(self, text: str | list[str], **ignored: Any) -> dict[str, Any]:
        if isinstance(text, str):
            return {"input_ids": [int(word) if word.isdigit() else 1 for word in text.split()]}
        return {"input_ids": [self(each)["input_ids"] for each in text]}
