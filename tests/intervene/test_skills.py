"""Neuron Adjust: closed forms, distributions, planted units, several skills, the same in batches and with a cache, undone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from tests.find.planted_skill import noisy, shifted, text

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError, ModelError
from patchclamp.intervene import Interventions, edit
from patchclamp.intervene.adjustment import Adjust, replacement
from patchclamp.intervene.fits import fit
from patchclamp.intervene.noise import TextKeys, TokenNoise
from patchclamp.intervene.skill_fit import neuron_adjust, neuron_adjust_from_text
from patchclamp.intervene.skills import Component, NeuronAdjust
from patchclamp.intervene.targets import Coordinates
from patchclamp.models import hooks
from patchclamp.models.collect import collect
from patchclamp.models.hooks import Seen, Step, prompt_scope
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.models.units import UnitSet

KINDS = ("skill", "rest", "more")
PLANTED = (4, 9, 33)


@pytest.fixture(scope="module")
def planted() -> Any:
    """Two layers that read noise; three units of layer 1 are higher on the skill by 3 standard deviations, one is lower."""
    width = 150
    gates = [shifted(units, width, 3, kind=0, shift=3.0, seed=at) for at, units in enumerate([(), PLANTED])]
    gates[1] += shifted((77,), width, 3, kind=0, shift=-6.0, seed=1) - shifted((), width, 3, kind=0, shift=0, seed=1)
    return noisy(KINDS, gates, act="silu")


@pytest.fixture(scope="module")
def recording(planted: Any) -> Any:
    return pc.record(planted, pc.corpus(text(KINDS, documents=40)), sites=("pre",), statistics=("shape",), quiet=True)


@pytest.fixture(scope="module")
def tiny(tiny_llama: Any) -> NeuronAdjust:
    """Fitted on the tiny Llama: 20% of its units, so that something happens everywhere."""
    lines = {
        "sums": [f"{n} and {n + 1} make {2 * n + 1}" for n in range(30)],
        "cats": [f"The cat sat on mat {n}." for n in range(30)],
    }
    return neuron_adjust_from_text(tiny_llama, pc.corpus(lines), forget="sums", share=0.2, quiet=True)


def component(model: Any, names: list[str], numbers: Any, name: str = "skill") -> Component:
    units = UnitSet.of(model, names)
    return Component(name, units, np.broadcast_to(np.asarray(numbers, dtype=float)[:, None], (4, len(units))))


# --- what happens to a value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "chance", "new"),
    [(1, 0.0, 3.0), (2, 0.5, 2.0), (3, 0.982014, 1.0), (4, 0.999665, 0.0), (5, 0.999994, -1.0)],
)
def test_the_closed_form(x: float, chance: float, new: float) -> None:
    """mu_r = 0, mu_f = 4, unit spreads: kept below the middle, a fixed point there, mirrored above."""
    one = torch.ones(1, dtype=torch.float64)
    found, value = replacement(one * x, 4 * one, one, 0 * one, one)
    assert found.item() == pytest.approx(chance, abs=1e-6)
    assert value.item() == pytest.approx(new)


@given(
    x=st.floats(-8, 8), gap=st.floats(-5, 5), spread_f=st.floats(0.3, 3), spread_r=st.floats(0.3, 3),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_the_chance_is_that_of_the_densities(x: float, gap: float, spread_f: float, spread_r: float) -> None:
    found, value = replacement(*(torch.tensor([v], dtype=torch.float64) for v in (x, gap, spread_f, 0.0, spread_r)))
    p_f, p_r = norm.pdf(x, gap, spread_f), norm.pdf(x, 0, spread_r)
    if abs(p_f - p_r) > 1e-12:
        assert found.item() == pytest.approx(p_f / (p_f + p_r) if p_f > p_r else 0.0, abs=1e-9)
    assert value.item() == pytest.approx(-spread_r * (x - gap) / spread_f)


def test_densities_that_vanish_far_out_are_still_compared() -> None:
    one = torch.ones(1)
    found, _ = replacement(200 * one, 100 * one, one, 0 * one, one)  # both densities are 0 in float32
    assert found.item() == 1.0
    assert replacement(-200 * one, 100 * one, one, 0 * one, one)[0].item() == 0.0


def adjusted(values: np.ndarray, numbers: Any, *, sampled: bool = True, seed: int = 0) -> np.ndarray:
    """Values (rows, units) through the function that the hooks run; one row per sequence, no tokens are seen."""
    rows, units = values.shape
    inner = np.arange(units)
    part = Coordinates(("pre", 0), inner, inner, 0)
    each = np.broadcast_to(np.asarray(numbers, dtype=float)[:, None], (4, units))
    noise = TokenNoise(TextKeys(seed)) if sampled else None
    run = Adjust(0, [(part, each)], scope="all", seed=seed, noise=noise)
    step = Step(1, rows, 0, None, None, torch.device("cpu"))
    return run(Seen("pre", 0, torch.from_numpy(values), None, 0, step)).numpy()


def test_values_of_the_skill_become_values_of_the_rest() -> None:
    values = np.random.default_rng(0).normal(9, 1, size=(1000, 10))
    found = adjusted(values, (9, 1, 1, 1))
    assert kstest(found.ravel(), norm(1, 1).cdf).pvalue > 0.01


def test_values_of_the_rest_stay_but_for_those_beyond_the_middle() -> None:
    values = np.random.default_rng(1).normal(0, 1, size=(1000, 20))
    found = adjusted(values, (4, 1, 0, 1))
    changed = (found != values).mean()
    assert 0 < changed <= norm.cdf(-2) * 1.1  # 2.3% at a distance of 4
    assert (values[found != values] >= 2).all()


@pytest.mark.parametrize("wrong", [(4, 1.5**2, 0, 0.5**2), (4, 4, 0, 1)])
def test_spreads_are_standard_deviations_each_of_its_own_side(wrong: tuple[float, ...]) -> None:
    """The reference takes variances for spreads, or the mean on the skill for the spread there; the values then miss the rest."""
    values = np.random.default_rng(2).normal(4, 1.5, size=(1000, 10))
    wanted = norm(0, 0.5).cdf
    moved = adjusted(values, (4, 1.5, 0, 0.5), sampled=False)
    others = adjusted(values, wrong, sampled=False)
    assert kstest(moved.ravel()[values.ravel() > 2.5], norm(0, 0.5).cdf).statistic < 0.2
    assert kstest(others.ravel(), wanted).statistic > kstest(moved.ravel(), wanted).statistic


def test_every_unit_of_every_token_has_a_random_number_of_its_own() -> None:
    """The reference draws one number per row of a batch, so that all units of a row move together or not at all."""
    values = np.full((400, 50), 2.5)
    found = adjusted(values, (4, 1, 0, 1)) != values  # chance: sigmoid(2)
    assert found.mean() == pytest.approx(1 / (1 + np.exp(-2)), abs=0.01)
    assert found.mean(1).std() < 0.08  # rows of one number each would be 0 or 1: 0.32
    assert found.mean(0).std() < 0.03
    assert np.abs(np.corrcoef(found[:, :10].T)[np.triu_indices(10, 1)]).max() < 0.25
    assert (adjusted(values, (4, 1, 0, 1), seed=1) != values).mean() == pytest.approx(found.mean(), abs=0.02)
    assert ((adjusted(values, (4, 1, 0, 1), seed=1) != values) != found).mean() > 0.1


def test_the_likelier_skill_decides_where_two_have_a_unit(tiny_llama: Any) -> None:
    first = component(tiny_llama, ["mlp.1.3", "mlp.1.5"], (4, 1, 0, 1), "first")
    second = component(tiny_llama, ["mlp.1.3"], (-6, 1, 10, 1), "second")
    both = NeuronAdjust((first, second), "expected")
    ((tap, run),) = both.compiled(tiny_llama)
    values = torch.zeros(3, 48)
    values[:, 3], values[:, 5] = torch.tensor([3.5, -5.5, 0.5]), torch.tensor([3.5, -5.5, 0.5])
    found = run(Seen(*tap, values, None, 0, Step(1, 3, 0, None, None, torch.device("cpu"))))
    assert found[:, 3].tolist() == [0.5, 9.5, 0.5]  # near the first, near the second (mirrored about 10), near neither
    assert found[:, 5].tolist() == [0.5, -5.5, 0.5]  # only the first has it
    assert both.n_units == 2


# --- what is fitted ----------------------------------------------------------------------------------------------


def test_planted_units_are_chosen_with_the_moments_of_their_values(planted: Any, recording: Any) -> None:
    found = neuron_adjust(recording, forget="skill", share=3 / 300)
    assert found.units.names() == [f"pre.1.{unit}" for unit in PLANTED]
    ids = torch.tensor([planted.tokenize(line) for line in text(KINDS, documents=40)["skill"]])
    values = collect(planted, "pre", ids).reshape(-1, 300)[:, [150 + unit for unit in PLANTED]].double().numpy()
    numbers = found.components[0].numbers
    np.testing.assert_allclose(numbers[0], values.mean(0), rtol=1e-4)
    np.testing.assert_allclose(numbers[1], values.std(0, ddof=1), rtol=1e-4)
    assert found.fitted["skills"]["skill"]["tokens"] == values.shape[0]
    assert found.fitted["retain"] == ["rest", "more"]


def test_the_sign_decides_about_units_that_are_lower_on_the_skill(recording: Any) -> None:
    assert "pre.1.77" not in neuron_adjust(recording, forget="skill", share=0.5).units
    assert "pre.1.77" in neuron_adjust(recording, forget="skill", share=4 / 300, signed=False).units
    assert len(neuron_adjust(recording, forget="skill", share=0.0).units) == 0


def test_a_share_of_nothing_and_a_removed_hook_leave_no_bit_changed(planted: Any, recording: Any) -> None:
    ids = torch.tensor([planted.tokenize("skill1 skill2 rest3 more4")])
    plain = planted.logits(ids)
    with neuron_adjust(recording, forget="skill", share=0.0).applied(planted):
        assert torch.equal(planted.logits(ids), plain)
    change = neuron_adjust(recording, forget="skill", share=0.1)
    with pytest.raises(ZeroDivisionError), change.applied(planted):
        raise ZeroDivisionError
    assert torch.equal(planted.logits(ids), plain)


def test_equal_distributions_never_move_what_lies_nearer_to_the_rest(tiny_llama: Any) -> None:
    values = np.random.default_rng(0).normal(size=(50, 4))
    found = adjusted(values, (1e-9, 1, 0, 1), sampled=False)
    assert (found[values < 0] == values[values < 0]).all()


def test_moments_fit_what_shape_fits_and_units_may_be_given(planted: Any, recording: Any) -> None:
    other = pc.record(
        planted, pc.corpus(text(KINDS, documents=40)), sites=("pre",), statistics=("moments",), quiet=True
    )
    by_shape = neuron_adjust(recording, forget="skill", share=0.02)
    by_moments = neuron_adjust(other, forget="skill", share=0.02)
    assert by_shape.units == by_moments.units
    np.testing.assert_allclose(by_shape.components[0].numbers, by_moments.components[0].numbers, rtol=1e-5, atol=1e-7)
    assert by_moments.fitted["skills"]["skill"]["shape"]["skill"] is None
    assert by_shape.fitted["skills"]["skill"]["shape"]["skill"]["kurtosis"] < 2
    sets = pc.find.skill(recording, share=0.02).sets
    given_sets = neuron_adjust(recording, forget=["skill", "more"], units=sets)
    assert given_sets.components[0].units == sets["skill"]
    assert given_sets.fitted["retain"] == ["rest"]
    with pytest.raises(InputError, match="more"):
        neuron_adjust(recording, forget="more", units={"skill": sets["skill"]})


def test_random_controls_are_other_units_of_the_same_layers_with_their_own_numbers(recording: Any) -> None:
    found = neuron_adjust(recording, forget=["skill", "more"], share=0.02)
    for one, other in zip(found.components, found.matched_random(3).components, strict=True):
        assert (one.units.per_layer("pre") == other.units.per_layer("pre")).all()
        assert not len(one.units & other.units)
        where = np.searchsorted(one.others.units.positions["pre"], other.units.positions["pre"])
        np.testing.assert_array_equal(other.numbers, one.others.numbers[:, where])
    assert found.matched_random(3).units == found.matched_random(3).units
    assert found.matched_random(3).units != found.matched_random(4).units
    everything = neuron_adjust(recording, forget="skill", share=1.0, signed=False)
    drawn = everything.matched_random(0).units
    assert (drawn.per_layer("pre") == everything.units.per_layer("pre")).all()
    bare = NeuronAdjust((Component("skill", found.components[0].units, found.components[0].numbers),))
    assert not len(bare.matched_random(0).units & bare.units)


@pytest.mark.parametrize(
    "arguments",
    [
        {"forget": "nothing"}, {"forget": []}, {"forget": ["skill", "skill"]}, {"forget": "skill", "retain": ["skill"]},
        {"forget": ["skill", "rest", "more"]}, {"forget": "skill", "retain": []}, {"forget": "skill", "share": 1.5},
        {"forget": "skill", "site": "mlp"}, {"forget": "skill", "mode": "mean"}, {"forget": "skill", "scope": "some"},
        {"forget": "skill", "seed": -1}, {"forget": "skill", "min_tokens": 10**6},
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(recording: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        neuron_adjust(recording, **arguments)


def test_a_recording_without_the_numbers_is_refused(planted: Any, tiny_llama: Any, recording: Any) -> None:
    lines = pc.corpus(text(KINDS, documents=8))
    with pytest.raises(InputError, match="shape or moments"):
        neuron_adjust(pc.record(planted, lines, statistics=("firing",), quiet=True), forget="skill")
    part = pc.record(planted, lines, sites=("pre",), statistics=("moments",), layers=[1], quiet=True)
    assert set(neuron_adjust(part, forget="skill", share=0.02).units.per_layer("pre")[:1]) == {0}
    with pytest.raises(InputError, match="not recorded"):
        neuron_adjust(part, forget="skill", units=UnitSet.of(planted, ["pre.0.1"]))
    with pytest.raises(MismatchError):
        neuron_adjust(recording, forget="skill", units=UnitSet.of(tiny_llama, ["pre.0.1"]))
    with pytest.raises(InputError, match="one site"):
        neuron_adjust(recording, forget="skill", units=UnitSet.of(planted, ["pre.0.1", "mlp.0.1"]))


def test_units_at_a_place_that_a_model_lacks_are_an_error_and_no_silence() -> None:
    """The reference prints that a hook could not be added, and unlearns nothing."""
    with pytest.raises(InputError, match="pre"):
        UnitSet.of(load(tiny_model("mixtral")), ["pre.0.1"])


def test_a_constant_unit_gets_the_smallest_spread_and_moves_to_the_rest(planted: Any) -> None:
    """A unit that reads the skill's indicator and no noise: a spread of 0 would divide by nothing."""
    gate = shifted((), 60, 3, kind=0, shift=0, seed=0)
    gate[7] = 0
    gate[7, -3] = 2.0
    model = noisy(KINDS, [gate], act="silu")
    found = neuron_adjust_from_text(model, pc.corpus(text(KINDS)), forget="skill", share=1 / 60, quiet=True)
    assert found.units.names() == ["pre.0.7"]
    assert (found.components[0].numbers[1::2] > 0).all()
    ids = torch.tensor([model.tokenize("skill1 rest2")])
    plain = collect(model, "pre", ids)[0, :, 7]
    with found.applied(model):
        moved = collect(model, "pre", ids)[0, :, 7]
    assert moved[0].item() == pytest.approx(plain[1].item(), abs=1e-3)
    assert moved[1] == plain[1]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["mlp.0.1"], np.array([[0.0], [0.0], [1.0], [1.0]])), (["mlp.0.1"], np.array([[np.nan], [1], [1], [1]])),
        (["mlp.0.1"], np.ones((4, 2))), (["head.0.1"], np.ones((4, 1))), (["mlp.0.1"], np.array([[0], [1], [1], [-1.0]])),
    ],
)  # fmt: skip
def test_numbers_that_describe_no_normal_are_refused(tiny_llama: Any, names: list[str], numbers: np.ndarray) -> None:
    with pytest.raises(InputError):
        Component("skill", UnitSet.of(tiny_llama, names), numbers)


def test_a_list_without_skills_or_with_one_twice_is_refused(tiny_llama: Any) -> None:
    one = component(tiny_llama, ["mlp.1.3"], (4, 1, 0, 1))
    for parts in ((), (one, one)):
        with pytest.raises(InputError):
            NeuronAdjust(parts)


# --- while the model runs ----------------------------------------------------------------------------------------


def test_the_change_is_the_formula_on_every_unit(tiny_llama: Any, tiny: NeuronAdjust) -> None:
    """Layer 0 sees the same input with and without the change, so its values there are a formula of the plain ones."""
    expected = NeuronAdjust(tiny.components, "expected")
    ids = torch.tensor([[1, 20, 30, 40], [1, 60, 70, 80]])
    plain = collect(tiny_llama, "pre", ids)[..., :48].double().numpy()
    with expected.applied(tiny_llama):
        found = collect(tiny_llama, "pre", ids)[..., :48].double().numpy()
    wanted = plain.copy()
    where = tiny.units.positions["pre"]
    for number, unit in enumerate(where[where < 48]):
        mu_f, s_f, mu_r, s_r = tiny.components[0].numbers[:, number]
        x = plain[..., unit]
        likelier = norm.pdf(x, mu_f, s_f) >= norm.pdf(x, mu_r, s_r)
        wanted[..., unit] = np.where(likelier, mu_r - s_r * (x - mu_f) / s_f, x)
    assert (wanted != plain).any()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("mode", ["sampled", "expected"])
def test_a_row_is_the_same_alone_in_a_batch_and_padded_on_either_side(
    tiny_llama: Any, tiny: NeuronAdjust, mode: str
) -> None:
    change = NeuronAdjust(tiny.components, mode)
    row, other = torch.tensor([[1, 20, 30, 40]]), torch.tensor([[1, 60, 70, 80, 90, 100]])
    pad = torch.zeros(1, 2, dtype=torch.long)
    real, none = torch.ones(1, 4, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long)
    with change.applied(tiny_llama):
        alone = tiny_llama.logits(row)
        left = tiny_llama.logits(
            torch.cat([torch.cat([pad, row], 1), other]),
            torch.cat([torch.cat([none, real], 1), torch.ones(1, 6).long()]),
        )[:1, 2:]
        right = tiny_llama.logits(
            torch.cat([other, torch.cat([row, pad], 1)]),
            torch.cat([torch.ones(1, 6).long(), torch.cat([real, none], 1)]),
        )[1:, :4]
    assert not torch.allclose(alone, tiny_llama.logits(row), atol=1e-3)
    for found in (left, right):
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)


def test_rows_of_other_tokens_get_other_numbers_and_the_same_prompt_the_same(tiny_llama: Any) -> None:
    names = [f"mlp.0.{unit}" for unit in range(48)]
    change = NeuronAdjust((component(tiny_llama, names, (0, 1, 0, 1.0)),))  # always one half
    ids = torch.tensor([[1, 20, 30], [1, 21, 30], [1, 20, 30]])
    plain = collect(tiny_llama, "mlp", ids)[..., :48]
    with change.applied(tiny_llama):
        moved = collect(tiny_llama, "mlp", ids)[..., :48] != plain
    assert (moved[0] == moved[2]).all()
    assert 0.2 < (moved[0, 1] != moved[1, 1]).float().mean() < 0.8
    assert (moved[0, 0] == moved[1, 0]).all()
    assert 0.2 < (moved[0, 0] != moved[0, 1]).float().mean() < 0.8


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("scope", ["all", "prompt", "generated"])
def test_generation_is_the_same_with_and_without_a_cache(
    tiny_llama: Any, tiny: NeuronAdjust, beams: int, scope: str
) -> None:
    prompts = ["The cat", "7 and 8 make", "Two"]
    arguments: dict[str, Any] = {"max_new_tokens": 6, "num_beams": beams}
    with NeuronAdjust(tiny.components, scope=scope).applied(tiny_llama):
        cached = tiny_llama.generate(prompts, **arguments)
        assert cached == tiny_llama.generate(prompts, **arguments, use_cache=False)
        assert cached == [tiny_llama.generate(prompt, **arguments)[0] for prompt in prompts]


def test_a_scope_leaves_the_other_positions_alone(tiny_llama: Any, tiny: NeuronAdjust) -> None:
    ids = torch.tensor([[1, 20, 30, 40, 50]])
    plain = tiny_llama.logits(ids)
    with NeuronAdjust(tiny.components, scope="generated").applied(tiny_llama), prompt_scope(tiny_llama, 3):
        found = tiny_llama.logits(ids)
    assert torch.equal(found[:, :3], plain[:, :3])
    assert not torch.allclose(found[:, 3:], plain[:, 3:], atol=1e-3)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "gpt_oss"])
def test_every_kind_of_mlp_can_be_adjusted(kind: str) -> None:
    """Expected mode against the formula on the neurons of layer 0, experts among them."""
    model = load(tiny_model(kind))
    layout = model.layouts["mlp"]
    units = UnitSet.at(model, "mlp", range(0, layout.widths[0], 3))
    numbers = np.repeat([[0.02], [0.1], [-0.5], [0.2]], len(units), axis=1)
    change = NeuronAdjust((Component("skill", units, numbers),), "expected")
    ids = torch.randint(3, 199, (2, 7), generator=torch.Generator().manual_seed(0))
    plain = collect(model, "mlp", ids)[..., : layout.widths[0]].double().numpy()
    with change.applied(model):
        found = collect(model, "mlp", ids)[..., : layout.widths[0]].double().numpy()
    likelier = norm.pdf(plain, 0.02, 0.1) >= norm.pdf(plain, -0.5, 0.2)
    wanted = np.where(likelier & (np.arange(layout.widths[0]) % 3 == 0), -0.5 - 2 * (plain - 0.02), plain)
    routed = np.ones_like(plain, dtype=bool)
    if layout.experts[0]:  # neurons of experts that a token was not given to have no value
        routed = np.repeat(
            (plain.reshape(*plain.shape[:2], layout.experts[0], -1) != 0).any(-1),
            plain.shape[-1] // layout.experts[0],
            -1,
        )
    np.testing.assert_allclose(found[routed], wanted[routed], atol=1e-5)
    assert (found != plain).any()


def test_bfloat16_keeps_what_is_not_moved_bit_for_bit(tiny_llama: Any, tiny: NeuronAdjust) -> None:
    import copy

    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer, check=False)
    ids = torch.tensor([[1, 20, 30, 40]])
    plain = collect(model, "pre", ids)[..., :48]
    with tiny.applied(model):
        moved = collect(model, "pre", ids)[..., :48]
        assert torch.isfinite(model.logits(ids)).all()
    share = (moved != plain).float().mean().item()
    assert 0 < share < 0.5


@given(seed=st.integers(0, 1000), raised=st.booleans())
@settings(max_examples=10, deadline=None)
def test_nothing_is_left_behind(tiny_llama: Any, tiny: NeuronAdjust, seed: int, raised: bool) -> None:
    ids = torch.tensor([[1, 20, 30, 40]])
    plain = tiny_llama.logits(ids)
    change = NeuronAdjust(tiny.components, seed=seed)
    try:
        with change.applied(tiny_llama), change.matched_random(seed).applied(tiny_llama):
            tiny_llama.logits(ids)
            if raised:
                raise KeyError
    except KeyError:
        pass
    assert torch.equal(tiny_llama.logits(ids), plain)


def test_gradients_flow_through_it_after_passes_without_them(tiny_llama: Any, tiny: NeuronAdjust) -> None:
    ids = torch.tensor([[1, 20, 30, 40]])
    shift = torch.zeros(32, requires_grad=True)
    with tiny.applied(tiny_llama):
        plain = tiny_llama.logits(ids)
        with hooks.change(tiny_llama, {("embed", 0): lambda seen: seen.values + shift}):
            found = tiny_llama.logits(ids, grad=True)
    torch.testing.assert_close(found.detach(), plain)
    found.sum().backward()
    assert shift.grad is not None
    assert torch.isfinite(shift.grad).all()
    assert shift.grad.abs().sum() > 0


def test_it_survives_saving_and_belongs_to_its_model(
    tiny_llama: Any, tiny_gpt2: Any, tiny: NeuronAdjust, tmp_path: Path
) -> None:
    path = Interventions([tiny, NeuronAdjust(tiny.components, "expected", "generated", 4)]).save(tmp_path / "na.json")
    again = Interventions.load(path)
    ids = torch.tensor([[1, 20, 30, 40]])
    with tiny.applied(tiny_llama):
        wanted = tiny_llama.logits(ids)
    with again[0].applied(tiny_llama):
        assert torch.equal(tiny_llama.logits(ids), wanted)
    assert again[1].mode == "expected"
    assert again[1].scope == "generated"
    assert again[0].matched_random(1).units == tiny.matched_random(1).units
    assert again[0].fitted == tiny.fitted
    with pytest.raises(MismatchError), again.applied(tiny_gpt2):
        pass
    body = tiny.to_dict() | {"mode": "median"}
    with pytest.raises(DamagedError):
        NeuronAdjust.from_dict(body, tiny_llama)


def test_the_fit_is_found_by_name_and_replaces_no_weights(planted: Any, recording: Any) -> None:
    found = fit("neuron-adjust", recording, forget="skill", share=0.02)
    assert found.provenance["call"] == "fit.neuron-adjust"
    assert isinstance(found[0], NeuronAdjust)
    with pytest.raises(ModelError, match="while"):
        found[0].write(planted)
    with pytest.raises(ModelError, match="while"):
        edit(planted, found[0])
