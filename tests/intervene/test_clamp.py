"""Clamping against the same change by another route; scopes, masks, caches, beams, padding; nothing left behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.intervene import Direction, Intervention, clamp, intervention
from patchclamp.models.anatomy import weight_of
from patchclamp.models.hooks import observe, prompt_scope
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet

IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 70, 80, 90, 100, 110]])
FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def neurons(model: Any) -> UnitSet:
    return UnitSet.of(model, ["mlp.0.3", "mlp.0.40", "mlp.2.7", "mlp.2.8"])


def seen_at(model: Any, tap: tuple[str, int], ids: Tensor = IDS, mask: Tensor | None = None) -> Tensor:
    """Values of a tap, (batch, seq, width)."""
    kept: list[Tensor] = []
    with observe(model, [tap], lambda seen: kept.append(seen.values.clone())):
        model.logits(ids, mask)
    return kept[0].reshape(*ids.shape, -1)


def state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


@pytest.mark.parametrize("operation", ["set", "scale", "add", "per unit"])
def test_the_tap_holds_what_the_operation_says_and_nothing_else_changes(model: Any, operation: str) -> None:
    units = neurons(model).layers([2])
    before = seen_at(model, ("mlp", 2))
    wanted = before.clone()
    column = before[..., 7:9]
    arguments: dict[str, Any]
    arguments, wanted[..., 7:9] = {
        "set": ({"to": 1.5}, torch.full_like(column, 1.5)),
        "scale": ({"scale": -2.0}, column * -2),
        "add": ({"add": 0.25}, column + 0.25),
        "per unit": ({"to": [3.0, 4.0]}, torch.tensor([3.0, 4.0]).expand_as(column)),
    }[operation]
    with clamp(model, units, **arguments):
        torch.testing.assert_close(seen_at(model, ("mlp", 2)), wanted, rtol=0, atol=0)
    torch.testing.assert_close(seen_at(model, ("mlp", 2)), before, rtol=0, atol=0)


def test_clamping_to_zero_equals_zeroing_the_columns(model: Any) -> None:
    units = neurons(model)
    with clamp(model, units, to=0.0):
        clamped = model.logits(IDS)
    before = state(model)
    with torch.no_grad():
        for unit in units:
            weight_of(model.anatomy.down(unit.layer))[:, unit.index] = 0
        edited = model.logits(IDS)
        model.hf.load_state_dict(before)
    torch.testing.assert_close(clamped, edited)
    assert not torch.equal(clamped, model.logits(IDS))


def test_a_head_is_its_block_of_attention_coordinates(model: Any) -> None:
    with clamp(model, "head.1.2", to=0.0):
        by_head = model.logits(IDS)
    with clamp(model, [f"attn.1.{i}" for i in range(16, 24)], to=0.0):
        by_coordinate = model.logits(IDS)
    torch.testing.assert_close(by_head, by_coordinate, rtol=0, atol=0)
    per_head = intervention(model, ["head.1.0", "head.1.2"], to=[1.0, 2.0])
    with per_head.applied(model):
        inside = seen_at(model, ("attn", 1))
    assert (inside[..., :8] == 1).all()
    assert (inside[..., 16:24] == 2).all()


def test_heads_and_single_coordinates_of_one_layer_go_together(model: Any) -> None:
    with clamp(model, ["head.1.2", "attn.1.3"], to=5.0):
        inside = seen_at(model, ("attn", 1))
    assert (inside[..., [3, *range(16, 24)]] == 5).all()
    assert (inside[..., [0, 15, 24]] != 5).all()


@pytest.mark.parametrize("site", ["resid", "embed", "attn_out", "mlp_out"])
def test_directions_are_added_removed_set_and_scaled(model: Any, site: str) -> None:
    layer = 0 if site == "embed" else 1
    vector = np.random.default_rng(0).normal(size=32)
    v = torch.tensor(vector, dtype=torch.float32)
    direction = Direction.of(model, site, layer, vector)
    before = seen_at(model, (site, layer))
    coefficient = (before @ v / (v @ v))[..., None]
    for arguments, wanted in (
        ({"add": 2.0}, before + 2 * v),
        ({"to": 0.0}, before - coefficient * v),
        ({"to": 1.0}, before + (1 - coefficient) * v),
        ({"scale": 3.0}, before + 2 * coefficient * v),
    ):
        with clamp(model, direction, **arguments) as item:
            torch.testing.assert_close(seen_at(model, (site, layer)), wanted, rtol=1e-4, atol=1e-4)
        assert item.operation == (
            "project" if arguments.get("to") == 0.0 else next(iter(arguments)).replace("to", "set")
        )


def test_each_layer_can_have_its_own_direction(model: Any) -> None:
    vectors = np.eye(32)[:2]
    before = [seen_at(model, ("attn_out", layer)) for layer in (0, 1)]
    with clamp(model, Direction.of(model, "attn_out", [0, 1], vectors), to=0.0):
        inside = [seen_at(model, ("attn_out", layer)) for layer in (0, 1)]
    for number in (0, 1):
        assert inside[number][..., number].abs().max() < 1e-6
    torch.testing.assert_close(inside[0][..., 1:], before[0][..., 1:])


def test_shuffle_permutes_the_kept_positions_and_never_padding(model: Any) -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    units = UnitSet.of(model, ["mlp.0.3", "mlp.0.40"])
    before = seen_at(model, ("mlp", 0), IDS, mask)
    with clamp(model, units, shuffle=1):
        inside = seen_at(model, ("mlp", 0), IDS, mask)
        again = seen_at(model, ("mlp", 0), IDS, mask)
    torch.testing.assert_close(inside, again, rtol=0, atol=0)
    real = mask.bool()
    torch.testing.assert_close(inside[~real], before[~real], rtol=0, atol=0)
    old, new = before[real][:, [3, 40]], inside[real][:, [3, 40]]
    assert not torch.equal(old, new)
    assert sorted(map(tuple, old.tolist())) == sorted(map(tuple, new.tolist()))  # both units move together
    others = [i for i in range(48) if i not in (3, 40)]
    torch.testing.assert_close(inside[..., others], before[..., others], rtol=0, atol=0)


def test_a_mask_chooses_positions(model: Any) -> None:
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, 2] = mask[1, 5] = True
    before = seen_at(model, ("mlp", 0))
    wanted = before.clone()
    wanted[mask, 3] = 9.0
    for form in (mask, mask.numpy(), lambda step: mask[:, step.start : step.start + step.seq]):
        with clamp(model, "mlp.0.3", to=9.0, mask=form):
            torch.testing.assert_close(seen_at(model, ("mlp", 0)), wanted, rtol=0, atol=0)
    short = mask[:, :4]  # positions after the end of a mask are left alone
    with clamp(model, "mlp.0.3", to=9.0, mask=short):
        inside = seen_at(model, ("mlp", 0))
    wanted[1, 5, 3] = before[1, 5, 3]
    torch.testing.assert_close(inside, wanted, rtol=0, atol=0)


def test_prompt_and_generated_scopes_split_a_scored_response(model: Any) -> None:
    lengths = torch.tensor([2, 4])
    before = seen_at(model, ("mlp", 0))
    late = torch.arange(6)[None, :] >= lengths[:, None]
    for scope, chosen in (("generated", late), ("prompt", ~late)):
        wanted = before.clone()
        wanted[chosen, 3] = 9.0
        with clamp(model, "mlp.0.3", to=9.0, scope=scope), prompt_scope(model, lengths):
            torch.testing.assert_close(seen_at(model, ("mlp", 0)), wanted, rtol=0, atol=0)


def strong(model: Any) -> UnitSet:
    """A third of all neurons: held far away, they visibly change what is generated."""
    return UnitSet.at(model, "mlp", range(0, model.layouts["mlp"].total, 3))


@pytest.mark.parametrize("scope", ["prompt", "generated", "all"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_same_with_and_without_a_cache_in_every_scope(model: Any, scope: str, beams: int) -> None:
    prompts = ["The cat", "Le chat est assis sur", "Two"]  # batched: left padding
    arguments = {"max_new_tokens": 8, "num_beams": beams}
    with clamp(model, strong(model), to=0.7, scope=scope):
        cached = model.generate(prompts, **arguments)
        uncached = model.generate(prompts, use_cache=False, **arguments)
        alone = [model.generate(prompt, **arguments)[0] for prompt in prompts]
    assert cached == uncached == alone
    assert cached != model.generate(prompts, **arguments)


def test_masks_follow_beams_and_the_cache(model: Any) -> None:
    prompts = ["The cat sat", "The mat sat"]
    width = len(model.tokenize(prompts[0]))
    if len(model.tokenize(prompts[1])) != width:
        pytest.fail("the prompts must have equal lengths for this test")
    mask = np.zeros((2, width + 2), dtype=bool)
    mask[0] = True
    mask[1, width:] = True
    with clamp(model, strong(model), to=0.7, mask=mask):
        cached = model.generate(prompts, max_new_tokens=6, num_beams=2)
        uncached = model.generate(prompts, max_new_tokens=6, num_beams=2, use_cache=False)
        alone = None
    with clamp(model, strong(model), to=0.7, mask=mask[1:]):
        alone = model.generate(prompts[1], max_new_tokens=6, num_beams=2)[0]
    assert cached == uncached
    assert cached[1] == alone


def test_padding_side_does_not_change_a_clamped_result(model: Any) -> None:
    pad = torch.zeros(1, 2, dtype=torch.long)
    row = IDS[:1, :4]
    left, right = torch.cat([pad, row], 1), torch.cat([row, pad], 1)
    with clamp(model, neurons(model), to=2.0):
        alone = model.logits(row)
        on_left = model.logits(left, torch.tensor([[0, 0, 1, 1, 1, 1]]))[:, 2:]
        on_right = model.logits(right, torch.tensor([[1, 1, 1, 1, 0, 0]]))[:, :4]
    torch.testing.assert_close(on_left, alone, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(on_right, alone, rtol=1e-4, atol=1e-4)


def test_clamps_nest_and_the_inner_one_has_the_last_word(model: Any) -> None:
    with clamp(model, ["mlp.0.3", "mlp.0.4"], to=1.0):
        with clamp(model, "mlp.0.3", add=1.0):
            inside = seen_at(model, ("mlp", 0))
        outside = seen_at(model, ("mlp", 0))
    assert (inside[..., 3] == 2).all()
    assert (inside[..., 4] == 1).all()
    assert (outside[..., 3] == 1).all()


def test_bfloat16_is_clamped_in_bfloat16(tiny_llama: Any) -> None:
    import copy

    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    units = UnitSet.of(model, ["mlp.1.3"])
    with clamp(model, units, to=0.3):
        inside = seen_at(model, ("mlp", 1))
        assert inside.dtype == torch.bfloat16
        assert (inside[..., 3] == torch.tensor(0.3, dtype=torch.bfloat16)).all()
    with clamp(model, Direction.of(model, "resid", 1, np.ones(32)), to=0.0):
        assert seen_at(model, ("resid", 1)).float().mean(-1).abs().max() < 0.02
    with clamp(tiny_llama, UnitSet.of(tiny_llama, units.names()), to=0.0):  # the fingerprint is that of float32
        pass


@FEW
@given(data=st.data())
def test_the_model_is_the_same_bit_for_bit_after_any_nest_of_clamps_even_on_exceptions(
    tiny_llama: Any, data: Any
) -> None:
    model = tiny_llama
    weights, plain, held = state(model), model.logits(IDS), hooks_on(model)
    sites = st.sampled_from(["mlp", "attn", "head", "resid", "embed", "attn_out"])
    changes = st.sampled_from([{"to": 0.0}, {"to": -3.0}, {"scale": 0.5}, {"add": 1e6}, {"shuffle": 2}])
    scopes = st.sampled_from(["all", "prompt", "generated"])
    chosen = data.draw(st.lists(st.tuples(sites, changes, scopes, st.integers(0, 10**6)), min_size=1, max_size=3))
    fails = data.draw(st.booleans())

    def enter(rest: list[Any]) -> None:
        if not rest:
            model.logits(IDS)
            if fails:
                raise KeyError("inside")
            return
        site, change, scope, seed = rest[0]
        total = model.layouts[site].total
        units = UnitSet.at(model, site, np.random.default_rng(seed).integers(0, total, 5))
        with clamp(model, units, scope=scope, **change):
            enter(rest[1:])

    if fails:
        with pytest.raises(KeyError):
            enter(chosen)
    else:
        enter(chosen)
    assert torch.equal(model.logits(IDS), plain)
    for name, value in model.hf.state_dict().items():
        assert torch.equal(value, weights[name])
    assert hooks_on(model) == held  # transformers may leave some of its own


def hooks_on(model: Any) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.hf.modules())


def test_an_error_inside_a_hook_undoes_everything(model: Any) -> None:
    plain = model.logits(IDS)
    with pytest.raises(InputError, match="rows"), clamp(model, "mlp.0.3", to=0.0, mask=np.ones((3, 6))):
        model.logits(IDS)
    assert torch.equal(model.logits(IDS), plain)


def test_an_empty_set_changes_nothing(model: Any) -> None:
    plain = model.logits(IDS)
    with clamp(model, UnitSet.of(model, []), to=0.0):
        assert torch.equal(model.logits(IDS), plain)


def test_units_of_another_model_are_refused(tiny_gpt2: Any, tiny_llama: Any) -> None:
    with (
        pytest.raises(MismatchError, match="belong to model"),
        clamp(tiny_gpt2, UnitSet.of(tiny_llama, ["mlp.0.1"]), to=0.0),
    ):
        pass
    direction = Direction.of(tiny_llama, "resid", 1, np.ones(32))
    with pytest.raises(MismatchError, match="belongs to model"), clamp(tiny_gpt2, direction, to=0.0):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"to": 0.0, "scale": 2.0}, "exactly one"),
        ({"to": float("nan")}, "finite"),
        ({"to": [1.0, 2.0]}, "1 of them"),
        ({"to": "median"}, "'mean'"),
        ({"to": "mean"}, "recording"),
        ({"to": 0.0, "scope": "answer"}, "scope"),
        ({"to": 0.0, "mask": [1, 0]}, "mask"),
        ({"shuffle": -1}, "seed"),
    ],
)
def test_bad_requests_say_what_to_do(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), clamp(model, "mlp.0.3", **arguments):
        pass


@pytest.mark.parametrize(
    ("site", "layers", "vector", "message"),
    [
        ("head", 0, np.ones(32), "no direction"),
        ("resid", 0, np.ones(31), "31 numbers"),
        ("resid", 0, np.zeros(32), "zero"),
        ("resid", [0, 1], np.ones((3, 32)), "3 vectors"),
        ("resid", 7, np.ones(32), "layer 7"),
    ],
)
def test_bad_directions_are_refused(model: Any, site: str, layers: Any, vector: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Direction.of(model, site, layers, vector)


def test_a_shuffle_over_generated_tokens_is_refused_with_and_without_a_cache(model: Any) -> None:
    for use_cache in (True, False):
        with pytest.raises(InputError, match="scope='prompt'"), clamp(model, "mlp.0.3", shuffle=0):
            model.generate("The cat", max_new_tokens=3, use_cache=use_cache)
    with clamp(model, strong(model), shuffle=0, scope="prompt"):
        cached = model.generate("The cat sat on the mat", max_new_tokens=5)
        assert cached == model.generate("The cat sat on the mat", max_new_tokens=5, use_cache=False)


def test_projection_needs_a_direction_and_mean_needs_units(model: Any) -> None:
    with pytest.raises(InputError, match="Direction"):
        Intervention(UnitSet.of(model, ["mlp.0.1"]), "project")
    with pytest.raises(InputError, match="no recorded mean"):
        intervention(model, Direction.of(model, "resid", 0, np.ones(32)), to="mean")
