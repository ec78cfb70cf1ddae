"""Queries, keys and values are where the sites say: by plain torch hooks, the formula of attention, and a trial of effects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.intervene import clamp, edit
from patchclamp.models import rows
from patchclamp.models.attention_trial import refuted
from patchclamp.models.collect import collect
from patchclamp.models.coverage import enliven
from patchclamp.models.hooks import Seen, change, observe
from patchclamp.models.load import load
from patchclamp.models.tiny import quiet, tiny_config, tiny_model
from patchclamp.models.units import UnitSet

IDS = torch.randint(5, 190, (2, 7), generator=torch.Generator().manual_seed(3))


def lively(hf: Any, **arguments: Any) -> Any:
    """A loaded model whose weights, biases too, are large enough for effects to show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            if weight.dim() == 1 and name.endswith("bias"):
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    enliven(hf)
    return load(hf, **arguments)


def falcon(**fields: Any) -> Any:
    from transformers import FalconConfig, FalconForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 199, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return FalconForCausalLM(FalconConfig(**sizes, **fields))


def bigcode(multi_query: bool) -> Any:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    torch.manual_seed(0)
    config = GPTBigCodeConfig(vocab_size=199, n_positions=64, n_embd=32, n_layer=2, n_head=4, multi_query=multi_query)
    return GPTBigCodeForCausalLM(config)


# transformers 5.0 has no kimi_linear yet, and fails in dbrx's experts where their width is not the model's
NEWER = () if transformers.__version__.startswith("5.0.") else ("dbrx", "kimi_linear")
FUSED: dict[str, Callable[[], Any]] = {
    **{
        name: partial(tiny_model, name)
        for name in ("gpt2", "phi3", "gpt_neox", "bloom", "codegen", "mpt", "persimmon", "openai-gpt", *NEWER[:1])
    },
    "falcon, one key-value head": lambda: falcon(multi_query=True, new_decoder_architecture=False),
    "falcon, all heads": lambda: falcon(multi_query=False, new_decoder_architecture=False, alibi=True),
    "falcon, groups": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "gpt_bigcode, one key-value head": lambda: bigcode(True),
    "gpt_bigcode, all heads": lambda: bigcode(False),
}


def hooked(model: Any, path: str) -> Tensor:
    """(batch * seq, outputs) of a module, by a hook of torch's own."""
    kept: list[Tensor] = []
    handle = model.hf.get_submodule(path).register_forward_hook(lambda module, args, output: kept.append(output))
    model.logits(IDS)
    handle.remove()
    return kept[0].reshape(IDS.numel(), -1)


def values(model: Any, site: str, layer: int, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model.layouts[site].split(collect(model, site, ids))[layer]
    return found


def flat(model: Any, site: str, layer: int) -> Tensor:
    return values(model, site, layer).flatten(0, 1)


def layer_of(model: Any, site: str, layer: int) -> UnitSet:
    span = model.layouts[site].slice(layer)
    return UnitSet.at(model, site, range(span.start, span.stop))


@pytest.mark.parametrize("site", ["q", "k", "v"])
def test_a_projection_of_its_own_is_its_output(tiny_llama: Any, site: str) -> None:
    assert torch.equal(flat(tiny_llama, site, 1), hooked(tiny_llama, f"model.layers.1.self_attn.{site}_proj"))
    assert tiny_llama.layouts[site].widths == (32,) * 3 if site == "q" else (16,) * 3


@pytest.mark.parametrize(("site", "part"), [("q", (0, 32)), ("k", (32, 64)), ("v", (64, 96))])
def test_gpt2_has_its_queries_keys_and_values_side_by_side(tiny_gpt2: Any, site: str, part: tuple[int, int]) -> None:
    assert torch.equal(flat(tiny_gpt2, site, 2), hooked(tiny_gpt2, "transformer.h.2.attn.c_attn")[:, slice(*part)])


@pytest.mark.parametrize(("site", "part"), [("q", (0, 32)), ("k", (32, 48)), ("v", (48, 64))])
def test_a_fused_projection_with_fewer_key_value_heads_is_cut(site: str, part: tuple[int, int]) -> None:
    model = lively(tiny_model("phi3"))
    assert torch.equal(flat(model, site, 1), hooked(model, "model.layers.1.self_attn.qkv_proj")[:, slice(*part)])


@pytest.mark.parametrize(("site", "number"), [("q", 0), ("k", 1), ("v", 2)])
def test_a_projection_interleaved_by_heads_is_taken_apart(site: str, number: int) -> None:
    model = lively(tiny_model("gpt_neox"))
    whole = hooked(model, "gpt_neox.layers.1.attention.query_key_value").view(-1, 4, 3, 8)
    assert torch.equal(flat(model, site, 1), whole[:, :, number].flatten(1))


@pytest.mark.parametrize("kind", ["gpt2", "gpt_bigcode, all heads", "gpt_bigcode, one key-value head", "openai-gpt"])
def test_softmax_of_queries_and_keys_times_values_enters_the_output_projection(kind: str) -> None:
    """The formula of attention; these types have no rotation and no bias of position in it."""
    model = lively(FUSED[kind]())
    q, k, v = (values(model, site, 0).unflatten(-1, (-1, 8)).transpose(1, 2) for site in ("q", "k", "v"))
    k, v = (one.expand(-1, 4, -1, -1) for one in (k, v))
    ahead = torch.ones(7, 7).triu(1).bool()
    scores = (q @ k.transpose(-1, -2) / 8**0.5).masked_fill(ahead, -torch.inf)
    expected = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(values(model, "attn", 0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FUSED)
def test_the_first_position_attends_to_its_own_value_alone(kind: str) -> None:
    model = lively(FUSED[kind]())
    v, attn = (values(model, site, 1)[:, 0].unflatten(-1, (-1, 8)) for site in ("v", "attn"))
    torch.testing.assert_close(attn, v.repeat_interleave(attn.shape[1] // v.shape[1], dim=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", FUSED)
def test_every_fused_layout_stands_the_trial_and_no_other_does(kind: str) -> None:
    model = lively(FUSED[kind]())
    ids, right = IDS[:1], dict(model.anatomy.sites)
    assert refuted(model, ids, 1e-4) == {}
    q, k, v = (right[site][1] for site in ("q", "k", "v"))
    total = q.width + k.width + v.width
    contiguous = [(0, q.width), (q.width, q.width + k.width), (q.width + k.width, total)]
    by_heads = [(0, 8), (8, 16), (16, 24)]
    wrong = [(q, v, k), (v, k, q) if v.width == q.width else (q, v, k)]
    wrong += [tuple(replace(one, part=part, every=0) for one, part in zip((q, k, v), contiguous, strict=True))]
    if q.width == k.width:
        wrong += [(k, q, v)] if "codegen" not in kind and kind != "gpt_neox" else []
        wrong += [tuple(replace(one, part=part, every=24) for one, part in zip((q, k, v), by_heads, strict=True))]
    for guess in wrong:
        if guess == (q, k, v) or [one.part for one in guess] == [one.part for one in (q, k, v)]:
            continue
        for site, place in zip(("q", "k", "v"), guess, strict=True):
            model.anatomy.sites[site] = (right[site][0], place)
        found = refuted(model, ids, 1e-4)
        assert {layer for _, layer in found} == {1}, guess


def test_a_gated_query_projection_gives_the_queries_without_their_gates() -> None:
    model = lively(tiny_model("qwen3_next"))
    whole = hooked(model, "model.layers.3.self_attn.q_proj").view(-1, 4, 2, 8)
    assert torch.equal(flat(model, "q", 3), whole[:, :, 0].flatten(1))
    assert model.layouts["q"].widths == (0, 0, 0, 32)
    assert refuted(model, IDS[:1], 1e-4) == {}


def test_names_that_lie_are_found_out(tiny_llama: Any) -> None:
    sites = tiny_llama.anatomy.sites
    right = {site: sites[site] for site in ("q", "k", "v")}
    try:
        sites["k"], sites["v"] = right["v"], right["k"]
        assert {site for site, _ in refuted(tiny_llama, IDS[:1], 1e-4)} >= {"v"}
        assert {layer for _, layer in refuted(tiny_llama, IDS[:1], 1e-4)} == {0, 1, 2}
    finally:
        sites.update(right)
    assert refuted(tiny_llama, IDS[:1], 1e-4) == {}


def test_keys_behind_a_norm_with_a_bias_stand_the_trial() -> None:
    """Keys at 0 are then not queries at 0; they are told by doing nothing once all values are equal."""
    model = lively(tiny_model("persimmon"))
    assert model.hf.model.layers[0].self_attn.k_layernorm.bias.abs().max() > 0.05
    assert refuted(model, IDS[:1], 1e-4) == {}


def test_a_layout_that_does_not_stand_the_trial_is_left_out_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rows.ROWS, "gpt_neox", {})  # as if the type were unknown: side by side is assumed
    model = lively(tiny_model("gpt_neox"))
    assert not {"q", "k", "v"} <= set(model.layouts)
    said = next(check.said for check in model.report.checks if check.name == "attention")
    assert "v.0 left out, with the values at 0 the attention still gives something" in said
    with (
        pytest.raises(InputError, match=r"no site 'v'.*left out, with the values at 0"),
        observe(model, [("v", 0)], print),
    ):
        pass


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("deepseek_v3", "latent vectors"),
        ("rwkv", "no query projection"),
        *((kind, "convolution") for kind in NEWER[1:]),
        ("xlnet", "no attention output projection"),
    ],
)
def test_attention_without_such_projections_has_none_of_the_sites(kind: str, reason: str) -> None:
    model = load(tiny_model(kind), check=False)
    assert not {"q", "k", "v"} & set(model.layouts)
    assert any(reason in note for note in model.anatomy.notes)
    with pytest.raises(InputError, match=f"no site 'q'.*{reason}"):
        model.anatomy.site("q", 0)


def test_a_layer_that_uses_anothers_keys_and_values_has_queries_only() -> None:
    from transformers import AutoModelForCausalLM, Gemma3nTextConfig

    kinds = {"num_kv_shared_layers": 2, "layer_types": ["full_attention"] * 5}
    with quiet():
        config = Gemma3nTextConfig(**(tiny_config("gemma3n_text").to_dict() | kinds))
        model = lively(AutoModelForCausalLM.from_config(config), check=False)
    assert refuted(model, IDS[:1], 1e-4) == {}
    assert [bool(width) for width in model.layouts["q"].widths] == [True] * 5
    assert [bool(width) for width in model.layouts["k"].widths] == [True, True, True, False, False]


@pytest.mark.parametrize("kind", ["llama", *FUSED])
def test_a_layers_values_at_zero_leave_the_output_projections_bias(kind: str) -> None:
    model = lively(tiny_model("llama") if kind == "llama" else FUSED[kind]())
    module: Any = model.anatomy.module(model.anatomy.site("attn_out", 1).path)
    bias = torch.zeros(32) if getattr(module, "bias", None) is None else module.bias
    with clamp(model, layer_of(model, "v", 1), to=0.0):
        torch.testing.assert_close(flat(model, "attn_out", 1), bias.expand(IDS.numel(), -1))
    assert (flat(model, "attn_out", 1) - bias).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["gpt_neox", "codegen", "falcon, groups", "gpt2", "phi3"])
def test_clamping_one_unit_changes_one_column_of_the_fused_projection(kind: str) -> None:
    model = lively(FUSED[kind]())
    for site in ("q", "k", "v"):
        path = model.anatomy.site(site, 0).path
        plain = hooked(model, path)
        with clamp(model, f"{site}.0.9", to=7.0):
            clamped = hooked(model, path)
        moved = (clamped != plain).any(0).nonzero()[:, 0]
        assert len(moved) == 1
        assert torch.equal(clamped[:, moved], torch.full((IDS.numel(), 1), 7.0))
        assert torch.equal(plain[:, moved[0]], flat(model, site, 0)[:, 9])


def test_an_edit_of_queries_changes_their_projection_alone(tiny_llama: Any) -> None:
    for name in ("q.0.1", "v.1.0", "pre.0.3"):
        with clamp(tiny_llama, name, to=0.0):
            wanted = tiny_llama.logits(IDS)
        torch.testing.assert_close(edit(tiny_llama, name).model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)


def test_gradients_reach_a_slice_of_a_fused_projection() -> None:
    model = lively(tiny_model("gpt_neox"))
    kept: list[Tensor] = []

    def leaf(seen: Seen) -> Tensor:
        kept.append(seen.values.detach().clone().requires_grad_())
        return kept[-1].clone()

    with change(model, {("k", 0): leaf}):
        model.logits(IDS, grad=True).square().sum().backward()
    gradient = kept[0].grad
    assert gradient is not None
    assert gradient.shape == (14, 32)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("kind", ["gpt_neox", "falcon, groups", "phi3"])
@pytest.mark.parametrize("scope", ["prompt", "generated"])
def test_clamped_keys_and_values_mean_the_same_with_and_without_a_cache(kind: str, scope: str) -> None:
    model = lively(FUSED[kind]())
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    units = UnitSet.of(model, [f"{site}.{layer}.{number}" for site in "kv" for layer in (0, 1) for number in range(9)])
    plain = model.hf.generate(IDS, **settings)
    with clamp(model, units, to=3.0, scope=scope):
        cached = model.hf.generate(IDS, **settings, use_cache=True)
        assert torch.equal(cached, model.hf.generate(IDS, **settings, use_cache=False))
    assert not torch.equal(cached, plain)
