"""What enters the activation function: `pre` is found, decides the gate, and silences the MLP at 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from patchclamp.intervene import clamp
from patchclamp.models.collect import collect
from patchclamp.models.coverage import enliven, zeroed
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.models.units import UnitSet

IDS = torch.randint(5, 190, (2, 7), generator=torch.Generator().manual_seed(3))


def lively(kind: str) -> Any:
    hf = tiny_model(kind)
    enliven(hf)
    return load(hf)


def layer(model: Any, site: str, number: int) -> Tensor:
    found: Tensor = model.layouts[site].split(collect(model, site, IDS))[number]
    return found


def whole(model: Any, site: str, number: int) -> UnitSet:
    span = model.layouts[site].slice(number)
    return UnitSet.at(model, site, range(span.start, span.stop))


@pytest.mark.parametrize(
    ("kind", "activation"),
    [
        ("llama", functional.silu),
        ("phi3", functional.silu),  # gate and up in one projection
        ("gemma", lambda x: functional.gelu(x, approximate="tanh")),
        ("gpt2", lambda x: functional.gelu(x, approximate="tanh")),
        ("gpt_neox", functional.gelu),
        ("opt", functional.relu),
        ("nemotron", lambda x: functional.relu(x).square()),
    ],
)
def test_the_activation_of_pre_is_the_gate(kind: str, activation: Any) -> None:
    model = lively(kind)
    torch.testing.assert_close(activation(layer(model, "pre", 1)), layer(model, "gate", 1), rtol=1e-5, atol=1e-6)


def test_pre_is_the_gate_projections_output(tiny_llama: Any) -> None:
    kept: list[Tensor] = []
    projection = tiny_llama.hf.model.layers[1].mlp.gate_proj
    handle = projection.register_forward_hook(lambda module, args, output: kept.append(output))
    tiny_llama.logits(IDS)
    handle.remove()
    assert torch.equal(layer(tiny_llama, "pre", 1), kept[0])


def test_pre_is_told_where_the_activation_is_no_module() -> None:
    """LFM2 writes silu(w1 x) * w3 x: a projection far below 0 shuts the neurons, the other one does not."""
    model = lively("lfm2")
    assert [path.path.rpartition(".")[2] for path in model.anatomy.sites["pre"]] == ["w1", "w1"]
    assert "gate" not in model.layouts
    pre, up, mlp = (layer(model, site, 1) for site in ("pre", "up", "mlp"))
    torch.testing.assert_close(functional.silu(pre) * up, mlp, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3", "lfm2"])
def test_clamping_pre_of_a_layer_to_zero_silences_a_gated_mlp(kind: str) -> None:
    model = lively(kind)
    plain = model.logits(IDS)
    with clamp(model, whole(model, "pre", 0), to=0.0):
        assert not layer(model, "mlp", 0).any()
        silent = model.logits(IDS)
    with zeroed(model, 0):
        torch.testing.assert_close(silent, model.logits(IDS), rtol=1e-5, atol=1e-6)
    assert (silent - plain).abs().max() > 1e-4


def test_clamping_one_unit_of_pre_moves_its_neuron_alone() -> None:
    model = lively("phi3")
    plain, up = layer(model, "mlp", 0), layer(model, "up", 0)
    with clamp(model, "pre.0.5", to=2.0):
        moved = layer(model, "mlp", 0)
    assert (moved != plain).flatten(0, 1).any(0).nonzero().tolist() == [[5]]
    torch.testing.assert_close(moved[..., 5], functional.silu(torch.tensor(2.0)) * up[..., 5])


def test_layers_with_experts_have_no_pre() -> None:
    model = load(tiny_model("deepseek_v3"), check=False)
    assert model.layouts["pre"].widths == (48, 0)
