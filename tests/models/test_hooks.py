"""Observing changes nothing; changing changes what it says, is undone, nests, and means the same with a KV cache."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.models.collect import collect, taps_of
from patchclamp.models.hooks import Seen, change, in_use, observe, prompt_scope, run
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

BOTH = pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama"], indirect=True)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def tokens(batch: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 300, (batch, seq), generator=torch.Generator().manual_seed(seed))


def nothing(one: Seen) -> None:
    """An observer that looks away."""


def zero(one: Seen) -> Tensor:
    return torch.zeros_like(one.values)


def hooks_left(model: Any) -> int:
    """Hooks of ours; transformers keeps some of its own once hidden states were asked for."""
    every = [hook for m in model.hf.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    ours = [hook for hook in every if getattr(hook, "__module__", "") == "patchclamp.models.hooks"]
    return len(ours) + ("generate" in vars(model.hf))


@BOTH
def test_logits_under_observation_are_bit_identical(model: Any) -> None:
    ids, mask = tokens(3, 8), torch.ones(3, 8, dtype=torch.long)
    mask[0, :3] = 0
    plain = model.logits(ids, mask)
    with observe(model, taps_of(model), nothing):
        assert torch.equal(model.logits(ids, mask), plain)
    assert not hooks_left(model)


@BOTH
def test_values_are_what_enters_and_leaves_the_modules(model: Any) -> None:
    ids = tokens(2, 6)
    states = model.hf(ids, output_hidden_states=True).hidden_states
    resid = model.layouts["resid"].split(collect(model, "resid", ids))
    torch.testing.assert_close(resid[0], states[1])
    torch.testing.assert_close(resid[1], states[2])
    mlp, out = (model.layouts[site].split(collect(model, site, ids)) for site in ("mlp", "mlp_out"))
    bias = getattr(model.anatomy.down(1), "bias", None)
    expected = mlp[1] @ model.anatomy.down_weights(1)[0][1].T + (0 if bias is None else bias)
    torch.testing.assert_close(out[1], expected)


def test_gate_times_up_is_the_neuron_of_a_gated_mlp(tiny_llama: Any) -> None:
    gate, up, mlp = (collect(tiny_llama, site, tokens(2, 6)) for site in ("gate", "up", "mlp"))
    torch.testing.assert_close(gate * up, mlp)


def test_gate_times_up_holds_where_both_projections_are_fused() -> None:
    fused = load(tiny_model("phi3"))
    ids = torch.arange(3, 15).view(2, 6)
    gate, up, mlp = (collect(fused, site, ids) for site in ("gate", "up", "mlp"))
    torch.testing.assert_close(gate * up, mlp)


def test_a_change_of_the_up_half_of_a_fused_projection_leaves_the_gate_alone() -> None:
    fused = load(tiny_model("phi3"))
    ids = torch.arange(3, 15).view(2, 6)
    gate = collect(fused, "gate", ids)
    with change(fused, {("up", 0): zero}):
        assert torch.equal(collect(fused, "gate", ids)[..., :48], gate[..., :48])
        assert not fused.layouts["mlp"].split(collect(fused, "mlp", ids))[0].any()


def test_head_values_are_norms_of_the_head_blocks(tiny_llama: Any) -> None:
    ids = tokens(2, 5)
    attn, head = (tiny_llama.layouts[s].split(collect(tiny_llama, s, ids))[1] for s in ("attn", "head"))
    torch.testing.assert_close(head, attn.unflatten(-1, (4, 8)).norm(dim=-1))


def test_changing_one_head_is_changing_its_block(tiny_llama: Any) -> None:
    ids = tokens(2, 5)

    def drop(one: Seen) -> Tensor:
        new = one.values.clone()
        new[:, 2] = 0
        return new

    def drop_block(one: Seen) -> Tensor:
        new = one.values.clone()
        new[:, 16:24] = 0
        return new

    with change(tiny_llama, {("head", 1): drop}):
        by_head = tiny_llama.logits(ids)
    with change(tiny_llama, {("attn", 1): drop_block}):
        assert torch.equal(tiny_llama.logits(ids), by_head)


@BOTH
def test_one_neuron_at_zero_is_its_column_at_zero(model: Any) -> None:
    ids = tokens(2, 7)

    def drop(one: Seen) -> Tensor:
        new = one.values.clone()
        new[:, 5] = 0
        return new

    with change(model, {("mlp", 1): drop}):
        clamped = model.logits(ids)
    weight = model.anatomy.down_weights(1)[0][1]
    kept = weight[:, 5].clone()
    weight[:, 5] = 0
    edited = model.logits(ids)
    weight[:, 5] = kept
    torch.testing.assert_close(clamped, edited, rtol=1e-5, atol=1e-6)
    assert (clamped - model.logits(ids)).abs().max() > 1e-4


@BOTH
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_everything_is_undone_on_any_exception(model: Any, error: type[BaseException]) -> None:
    ids = tokens(2, 5)
    plain = model.logits(ids)

    def fail(one: Seen) -> Tensor:
        raise error

    with pytest.raises(error), observe(model, taps_of(model), nothing), change(model, {("mlp", 1): fail}):
        model.logits(ids)
    assert not hooks_left(model)
    assert torch.equal(model.logits(ids), plain)


def test_a_tap_that_is_missing_leaves_no_hook_behind(tiny_gpt2: Any) -> None:
    for taps, said in (
        ([("mlp", 0), ("mlp", 9)], "layer 9"),
        ([("mlp", 0), ("nose", 0)], "no site"),
        ([("embed", 1)], "layers"),
    ):
        with pytest.raises(InputError, match=said), observe(tiny_gpt2, taps, nothing):
            pass
        assert not hooks_left(tiny_gpt2)


def test_changes_nest_and_observers_see_the_end_of_them(tiny_gpt2: Any) -> None:
    seen: list[Tensor] = []
    ids = tokens(1, 4)
    with (
        observe(tiny_gpt2, [("mlp", 0)], lambda one: seen.append(one.values.clone())),
        change(tiny_gpt2, {("mlp", 0): lambda one: torch.ones_like(one.values)}),
    ):
        with change(tiny_gpt2, {("mlp", 0): lambda one: one.values * 3}):
            tiny_gpt2.logits(ids)
        tiny_gpt2.logits(ids)
    assert [float(values.max()) for values in seen] == [3.0, 1.0]
    assert [float(values.min()) for values in seen] == [3.0, 1.0]


def test_a_change_that_returns_another_shape_is_refused(tiny_gpt2: Any) -> None:
    with (
        pytest.raises(InputError, match=r"returned \(4, 3\)"),
        change(tiny_gpt2, {("mlp", 0): lambda one: one.values[:, :3]}),
    ):
        tiny_gpt2.logits(tokens(1, 4))


@BOTH
def test_run_stops_after_the_tap_and_sees_what_a_full_pass_sees(model: Any) -> None:
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    full = model.layouts["mlp"].split(collect(model, "mlp", ids, mask))
    seen: dict[int, Tensor] = {}
    with observe(model, taps_of(model, "mlp", "resid"), lambda one: seen.setdefault(one.layer, one.values)):
        run(model, ids, mask, stop_after=("mlp", 1))
    assert sorted(seen) == [0, 1]
    with observe(model, [("mlp", 1)], lambda one: seen.update({1: one.values})):
        run(model, ids, mask, stop_after=("mlp", 1))
    assert torch.equal(seen[1].view(2, 6, -1), full[1])
    assert not hooks_left(model)


@BOTH
def test_padding_and_batch_mates_do_not_move_values(model: Any) -> None:
    short, long = tokens(1, 5), tokens(1, 9, seed=1)
    alone = collect(model, "mlp", short)
    pad = torch.zeros(1, 4, dtype=torch.long)
    for padded, where in ((torch.cat([short, pad], 1), slice(0, 5)), (torch.cat([pad, short], 1), slice(4, 9))):
        mask = torch.ones(2, 9, dtype=torch.long)
        mask[0] = 0
        mask[0, where] = 1
        both = collect(model, "mlp", torch.cat([padded, long]), mask)
        torch.testing.assert_close(both[:1, where], alone, rtol=1e-4, atol=1e-5)


def scoped(scope: str) -> Any:
    def function(one: Seen) -> Tensor:
        return torch.where(one.step.scope(scope)[:, None], one.values * 0 + 0.7, one.values)

    return function


@BOTH
@pytest.mark.parametrize("scope", ["prompt", "generated", "all"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generation_under_a_change_is_the_same_with_and_without_a_cache(model: Any, scope: str, beams: int) -> None:
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    settings = {
        "max_new_tokens": 7,
        "num_beams": beams,
        "do_sample": False,
        "attention_mask": mask,
        "eos_token_id": None,
    }
    plain = model.hf.generate(ids, **settings)
    with change(model, {("mlp", 0): scoped(scope), ("mlp", 2): scoped(scope)}):
        cached = model.hf.generate(ids, **settings, use_cache=True)
        again = model.hf.generate(input_ids=ids, **settings, use_cache=False)
    assert torch.equal(cached, again)
    assert not torch.equal(cached, plain)
    assert torch.equal(model.hf.generate(ids, **settings), plain)
    assert not hooks_left(model)


@BOTH
def test_scopes_divide_generation_at_the_end_of_the_prompt(model: Any) -> None:
    counted: list[tuple[int, int, int]] = []

    def count(one: Seen) -> None:
        counted.append((one.step.start, int(one.step.scope("prompt").sum()), int(one.step.scope("generated").sum())))

    with observe(model, [("mlp", 0)], count):
        model.hf.generate(tokens(2, 5), max_new_tokens=3, eos_token_id=None, pad_token_id=0)
    assert counted == [(0, 10, 0), (5, 0, 2), (6, 0, 2)]


def test_a_response_scored_in_one_pass_is_changed_as_it_is_when_generated(tiny_llama: Any) -> None:
    ids = tokens(1, 4)
    with change(tiny_llama, {("mlp", 1): scoped("generated")}):
        whole = tiny_llama.hf.generate(ids, max_new_tokens=6, eos_token_id=None, pad_token_id=0, do_sample=False)
        with prompt_scope(tiny_llama, 4):
            scored = tiny_llama.logits(whole)
    assert torch.equal(scored[0, 3:-1].argmax(-1), whole[0, 4:])


def test_prompt_scope_counts_tokens_not_padding(tiny_gpt2: Any) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found: list[Tensor] = []
    with (
        observe(tiny_gpt2, [("mlp", 0)], lambda one: found.append(one.step.scope("generated").view(2, 5))),
        prompt_scope(tiny_gpt2, torch.tensor([2, 3])),
    ):
        tiny_gpt2.logits(tokens(2, 5), mask)
    assert found[0].tolist() == [[False] * 4 + [True], [False] * 3 + [True] * 2]


def test_an_unknown_scope_is_refused(tiny_gpt2: Any) -> None:
    with (
        pytest.raises(InputError, match="scope"),
        observe(tiny_gpt2, [("mlp", 0)], lambda one: (one.step.scope("end"), None)[1]),
    ):
        tiny_gpt2.logits(tokens(1, 3))


def test_bfloat16_values_are_bfloat16_and_nothing_moves() -> None:
    half = load(tiny_model("llama").to(torch.bfloat16))
    ids = torch.arange(3, 15).view(2, 6)
    plain, kinds = half.logits(ids), set()
    with observe(half, taps_of(half), lambda one: kinds.add(one.values.dtype)):
        assert torch.equal(half.logits(ids), plain)
    assert kinds == {torch.bfloat16}
    with change(half, {("mlp", 0): lambda one: one.values.float() * 0}):
        assert half.logits(ids).dtype == torch.bfloat16


def test_gradients_flow_through_changes(tiny_gpt2: Any) -> None:
    push = torch.zeros(128, requires_grad=True)
    with change(tiny_gpt2, {("mlp", 0): lambda one: one.values + push}):
        tiny_gpt2.logits(tokens(1, 4), grad=True)[0, -1, 3].backward()
    assert push.grad is not None
    assert float(push.grad.abs().sum()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("early", [True, False])
def test_a_compiled_model_is_changed_all_the_same(early: bool) -> None:
    """The compiled code must not run with stale hooks, nor keep them."""
    hf = tiny_model("gpt2")
    model, ids = load(hf), torch.arange(3, 11).view(1, 8)
    with change(model, {("mlp", 0): zero}):
        expected = model.logits(ids)
    plain = model.logits(ids)
    compiled = torch.compile(hf, backend="eager")
    with torch.no_grad():
        if early:
            compiled(input_ids=ids, use_cache=False)
        with change(model, {("mlp", 0): zero}):
            torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, expected)
        torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, plain)


def test_a_block_called_by_itself_can_be_watched(tiny_gpt2: Any) -> None:
    seen: list[Seen] = []
    with contextlib.suppress(StopIteration), observe(tiny_gpt2, [("mlp", 0)], seen.append):
        tiny_gpt2.anatomy.module("transformer.h.0.mlp")(torch.zeros(2, 3, 32))
    assert seen[0].values.shape == (6, 128)


def test_an_offloaded_model_is_watched_and_fingerprinted_like_any_other(tiny_llama: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    import copy

    hf = copy.deepcopy(tiny_llama.hf)
    accelerate.cpu_offload(hf, execution_device=torch.device("cpu"))
    model, ids = load(hf), tokens(2, 5)
    assert model.anatomy.module("model.layers.0.mlp.down_proj").weight.is_meta
    assert model.fingerprint == tiny_llama.fingerprint
    assert torch.equal(collect(model, "mlp", ids), collect(tiny_llama, "mlp", ids))
    with change(model, {("mlp", 1): zero}):
        clamped = model.logits(ids)
    with change(tiny_llama, {("mlp", 1): zero}):
        assert torch.equal(tiny_llama.logits(ids), clamped)


def test_contexts_that_end_in_another_order_than_they_began_leave_the_model_as_it_was(tiny_llama: Any) -> None:
    ids = torch.tensor([[1, 20, 30]])
    plain = tiny_llama.logits(ids)
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        contexts = [change(tiny_llama, {("mlp", layer): lambda seen: seen.values * 2}) for layer in (0, 1, 0)]
        for context in contexts:
            context.__enter__()
        assert not torch.equal(tiny_llama.logits(ids), plain)
        for number in order:
            assert in_use(tiny_llama)
            contexts[number].__exit__(None, None, None)
        assert not in_use(tiny_llama)
        assert torch.equal(tiny_llama.logits(ids), plain)
        assert "generate" not in vars(tiny_llama.hf)
