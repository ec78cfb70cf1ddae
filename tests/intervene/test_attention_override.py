"""Forced attention equals writing the rows of eager attention; rows read by probes equal what eager attention returns."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from patchclamp.core.errors import InputError, ModelError
from patchclamp.intervene.attention_override import ForcedAttention, force_attention
from patchclamp.intervene.attention_rows import attention_rows, block_attention, silence_values
from patchclamp.intervene.kinds import Interventions
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.models.units import UnitSet

N, SEQ = 3, 8
HEADS = ["head.0.1", "head.1.0", "head.1.3", "head.2.2"]
LENGTHS = (8, 6, 7)
SOURCES = torch.tensor([[1, 3], [2, -1], [0, 4]])

EDITS: dict[str, Any] = {}


def edited_eager(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: Any = None, **rest: Any
) -> Any:
    """Eager attention whose weights pass through EDITS["rows"](layer, weights) before they meet the values."""
    times = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    weights = (scores + mask[..., : key.shape[2]]).softmax(-1)
    weights = EDITS["rows"](module.layer_idx, weights)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("edited_eager", edited_eager)
AttentionMaskInterface.register("edited_eager", eager_mask)


@contextlib.contextmanager
def edited(hf: Any, rows: Any) -> Iterator[None]:
    before = hf.config._attn_implementation
    hf.set_attn_implementation("edited_eager")
    EDITS["rows"] = rows
    try:
        yield
    finally:
        hf.set_attn_implementation(before)


@pytest.fixture(params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"tiny_{request.param}")


def prompts(*, left: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(N, SEQ, dtype=torch.int64), torch.zeros(N, SEQ, dtype=torch.int64)
    for row, length in enumerate(LENGTHS):
        where = slice(SEQ - length, SEQ) if left else slice(0, length)
        ids[row, where] = torch.randint(3, 320, (length,), generator=generator)
        mask[row, where] = 1
    return ids, mask


ENDS = torch.tensor(LENGTHS) - 1


def wanted_rows(weights: Tensor, layer: int) -> Tensor:
    new = weights.clone()
    for name in HEADS:
        _, at, head = name.split(".")
        if int(at) == layer:
            for row in range(N):
                sources = [int(s) for s in SOURCES[row] if s >= 0]
                new[row, int(head), ENDS[row]] = 0.0
                new[row, int(head), ENDS[row], sources] = 1 / len(sources)
    return new


def test_forcing_through_the_values_equals_writing_attention_rows(model: Any) -> None:
    ids, mask = prompts()
    with edited(model.hf, lambda layer, weights: wanted_rows(weights, layer)), torch.no_grad():
        expected = model.logits(ids, mask)
    plain = model.logits(ids, mask)
    forced = force_attention(model, HEADS, ENDS, SOURCES)
    with forced.applied(model):
        got = model.logits(ids, mask)
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got[real], plain[real], atol=1e-3)
    torch.testing.assert_close(model.logits(ids, mask), plain, atol=0, rtol=0)  # undone


def test_padding_in_front_moves_nothing(model: Any) -> None:
    (right, right_mask), (left, left_mask) = prompts(), prompts(left=True)
    forced = force_attention(model, HEADS, ENDS, SOURCES)
    with forced.applied(model):
        a, b = model.logits(right, right_mask), model.logits(left, left_mask)
    rows = torch.arange(N)
    torch.testing.assert_close(a[rows, ENDS], b[:, -1], atol=2e-5, rtol=1e-4)


def test_generation_with_and_without_cache_and_with_beams_forces_the_same(model: Any) -> None:
    ids, mask = prompts(left=True)
    forced = force_attention(model, HEADS, ENDS, SOURCES)
    how = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with forced.applied(model), torch.no_grad():
        cached = model.hf.generate(ids, use_cache=True, **how)
        plain = model.hf.generate(ids, use_cache=False, **how)
        model.hf.generate(ids, num_beams=2, **how)
    assert torch.equal(cached, plain)


def test_a_prompt_read_in_two_parts_is_forced_alike(model: Any) -> None:
    ids = prompts()[0][:1]
    forced = force_attention(model, HEADS, torch.tensor([7]), torch.tensor([[1, 6]]))
    with forced.applied(model), torch.no_grad():
        whole = model.hf(ids).logits[:, -1]
        first = model.hf(ids[:, :5], use_cache=True)
        second = model.hf(ids[:, 5:], past_key_values=first.past_key_values).logits[:, -1]
    torch.testing.assert_close(second, whole, atol=1e-5, rtol=1e-4)


def test_attention_read_by_probes_equals_eager_attention(model: Any) -> None:
    ids, mask = prompts()
    seen: dict[int, Tensor] = {}

    def keep(layer: int, weights: Tensor) -> Tensor:
        seen[layer] = weights
        return weights

    with edited(model.hf, keep), torch.no_grad():
        model.logits(ids, mask)
    units = UnitSet.of(model, HEADS)
    got = attention_rows(model, units, ids, mask, ENDS)
    rows = torch.arange(N)
    for unit, found in zip(units, got, strict=True):
        torch.testing.assert_close(found, seen[unit.layer][rows, unit.index, ENDS].float(), atol=1e-5, rtol=1e-4)


def test_more_positions_than_a_head_has_coordinates_are_read_in_parts(tiny_llama: Any) -> None:
    ids = torch.randint(3, 320, (2, 21), generator=torch.Generator().manual_seed(1))
    seen: dict[int, Tensor] = {}

    def keep(layer: int, weights: Tensor) -> Tensor:
        seen[layer] = weights
        return weights

    with edited(tiny_llama.hf, keep), torch.no_grad():
        tiny_llama.logits(ids)
    got = attention_rows(tiny_llama, ["head.1.2"], ids, torch.ones_like(ids), torch.tensor([20, 11]))
    torch.testing.assert_close(got[0, 0], seen[1][0, 2, 20].float(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(got[0, 1], seen[1][1, 2, 11].float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("renormalise", [True, False])
def test_blocking_equals_masking_the_scores(model: Any, renormalise: bool) -> None:
    ids, mask = prompts()
    hidden = torch.zeros(N, SEQ, dtype=torch.bool)
    hidden[:, 1:4] = True

    def blocked(layer: int, weights: Tensor) -> Tensor:
        new = weights.clone()
        for name in HEADS:
            _, at, head = name.split(".")
            if int(at) == layer:
                for row in range(N):
                    left = new[row, int(head), ENDS[row]].masked_fill(hidden[row], 0.0)
                    new[row, int(head), ENDS[row]] = left / left.sum() if renormalise else left
        return new

    with edited(model.hf, blocked), torch.no_grad():
        expected = model.logits(ids, mask)
    item = block_attention(model, HEADS, ids, mask, ENDS, hidden, renormalise=renormalise)
    with item.applied(model):
        got = model.logits(ids, mask)
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=2e-5, rtol=1e-4)


def test_silenced_values_give_nothing_at_any_position(model: Any) -> None:
    ids, mask = prompts()
    hidden = torch.zeros(N, SEQ, dtype=torch.bool)
    hidden[:, 2] = True
    heads = ["head.1.0", "head.1.1"]  # a whole key-value group of the Llama

    def rows(layer: int, weights: Tensor) -> Tensor:
        new = weights.clone()
        if layer == 1:
            new[:, :2, :, 2] = 0.0
        return new

    with edited(model.hf, rows), torch.no_grad():
        expected = model.logits(ids, mask)
    with silence_values(model, heads, hidden).applied(model):
        got = model.logits(ids, mask)
    real = mask.bool()
    torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-4)


def test_values_that_heads_outside_share_are_not_silenced(tiny_llama: Any) -> None:
    with pytest.raises(InputError, match=r"shares its values with head\.1\.1"):
        silence_values(tiny_llama, ["head.1.0"], torch.ones(1, 3, dtype=torch.bool))


def test_it_is_data_that_comes_back_from_a_file(model: Any, tmp_path: Any) -> None:
    forced = force_attention(model, HEADS, ENDS, SOURCES, note="wrong colours")
    Interventions([forced]).save(tmp_path / "forced.json")
    loaded = Interventions.load(tmp_path / "forced.json")
    ids, mask = prompts()
    with forced.applied(model):
        expected = model.logits(ids, mask)
    with loaded.applied(model):
        torch.testing.assert_close(model.logits(ids, mask), expected, atol=0, rtol=0)
    [item] = loaded
    assert isinstance(item, ForcedAttention)
    assert (item.n_units, item.lowest_block()) == (4, 0)
    assert "wrong colours" in item.describe()
    part = item.of_rows([2, 0])
    assert part.to.shape == (2, SEQ)
    assert part.weights.shape == (2, SEQ)


def test_the_random_control_has_as_many_heads_in_every_layer(model: Any) -> None:
    forced = force_attention(model, HEADS, ENDS, SOURCES)
    control = forced.matched_random(3)
    assert np.array_equal(control.heads.per_layer(), forced.heads.per_layer())
    assert not set(control.heads.names()) & set(HEADS)


def test_single_heads_with_their_own_weights(model: Any) -> None:
    ids, mask = prompts()
    to = np.zeros((N, SEQ), dtype=bool)
    to[np.arange(N), ENDS.numpy()] = True
    one = force_attention(model, HEADS[:1], ENDS, SOURCES)
    other = force_attention(model, HEADS[1:2], ENDS, torch.zeros(N, 1, dtype=torch.int64))
    both = ForcedAttention(UnitSet.of(model, HEADS[:2]), to, np.stack([one.weights, np.eye(SEQ)[[0] * N]]))
    with Interventions([one, other]).applied(model):
        expected = model.logits(ids, mask)
    with both.applied(model):
        torch.testing.assert_close(model.logits(ids, mask), expected)


def test_forcing_heads_to_their_own_attention_changes_nothing(model: Any) -> None:
    ids, mask = prompts()
    every = [f"head.{layer}.{head}" for layer in range(3) for head in range(4)]
    rows = attention_rows(model, every, ids, mask, ENDS)
    to = np.zeros((N, SEQ), dtype=bool)
    to[np.arange(N), ENDS.numpy()] = True
    plain = model.logits(ids, mask)
    with ForcedAttention(UnitSet.of(model, every), to, rows.double().numpy()).applied(model):
        torch.testing.assert_close(model.logits(ids, mask)[mask.bool()], plain[mask.bool()], atol=2e-5, rtol=1e-4)


def test_gradients_flow_through_forced_values(model: Any) -> None:
    ids, mask = prompts()
    before = model.hf.get_input_embeddings().weight
    before.requires_grad_(True)
    try:
        with force_attention(model, HEADS, ENDS, SOURCES).applied(model):
            model.logits(ids, mask, grad=True)[0, ENDS[0]].sum().backward()
        assert before.grad is not None
        assert torch.isfinite(before.grad).all()
    finally:
        before.requires_grad_(False)
        before.grad = None


def test_heads_that_are_forced_have_no_attention_of_their_own(model: Any) -> None:
    ids, mask = prompts()
    with force_attention(model, HEADS, ENDS, SOURCES).applied(model):
        with pytest.raises(ModelError, match="does not sum to 1"):
            attention_rows(model, HEADS, ids, mask, ENDS)
        free = attention_rows(model, ["head.2.0"], ids, mask, ENDS)
    torch.testing.assert_close(free.sum(-1), torch.ones(1, N), atol=1e-4, rtol=0)


def test_bad_positions_are_refused_by_item(model: Any) -> None:
    with pytest.raises(InputError, match="item 1 has no sources"):
        force_attention(model, HEADS, ENDS, torch.tensor([[1], [-1], [0]]))
    with pytest.raises(InputError, match=r"item 0: position 2 can't attend to position 5"):
        force_attention(model, HEADS, torch.tensor([2]), torch.tensor([[5]]))
    with pytest.raises(InputError, match="go together"):
        force_attention(model, HEADS, ENDS, SOURCES[:2])
    with pytest.raises(InputError, match="token indices start at 0"):
        force_attention(model, HEADS, ENDS, torch.tensor([[1], [-3], [0]]))
    with pytest.raises(InputError, match="heads are needed"):
        force_attention(model, UnitSet.of(model, ["mlp.0.1"]), ENDS, SOURCES)
    forced = force_attention(model, HEADS, ENDS, SOURCES)
    with pytest.raises(InputError, match="forced for 3 prompts, but the batch has 2"), forced.applied(model):
        model.logits(prompts()[0][:2])
    with pytest.raises(InputError, match="nothing is left"):
        ids, mask = prompts()
        block_attention(model, HEADS, ids, mask, ENDS, torch.ones(N, SEQ, dtype=torch.bool))
    with pytest.raises(InputError, match=r"head\.0\.0"):
        force_attention(load(tiny_model("mamba"), check=False), ["head.0.0"], ENDS, SOURCES)


def test_attention_sinks_are_refused() -> None:
    model = load(tiny_model("gpt_oss"), check=False)
    for layer in range(model.anatomy.n_layers):  # tiny models are made with sinks of any size
        model.hf.model.layers[layer].self_attn.sinks.data.fill_(1.0)
    with pytest.raises(ModelError, match="does not get its own value"):
        force_attention(model, ["head.1.0"], ENDS, SOURCES)


def test_bfloat16_forces_too() -> None:
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = load(LlamaForCausalLM(config).to(torch.bfloat16))
    ids, mask = prompts()
    with force_attention(model, HEADS, ENDS, SOURCES).applied(model):
        assert torch.isfinite(model.logits(ids, mask)).all()


def test_an_exception_undoes_it(model: Any) -> None:
    ids, mask = prompts()
    plain = model.logits(ids, mask)
    with pytest.raises(RuntimeError, match="stop"), force_attention(model, HEADS, ENDS, SOURCES).applied(model):
        raise RuntimeError("stop")
    torch.testing.assert_close(model.logits(ids, mask), plain, atol=0, rtol=0)
