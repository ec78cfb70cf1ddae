"""Interventions of every site and operation equal their weight form, alone and in lists; what has none says why."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small import small

from patchclamp.core.errors import ModelError
from patchclamp.intervene import Direction, Intervention, Interventions, edit, intervention
from patchclamp.intervene.affine import OfDirection, OfUnits
from patchclamp.intervene.kinds import Change
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet

IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 70, 80, 90, 100, 110]])
LINEAR = ("mlp", "attn", "pre", "up", "q", "k", "v", "mlp_out", "attn_out", "embed")
RNG = np.random.default_rng(0)
CLOSE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def layer_of(site: str) -> int:
    return 0 if site == "embed" else 1


def direction(model: Any, site: str, seed: int = 0, layer: int | None = None) -> Direction:
    here = layer_of(site) if layer is None else layer
    vector = np.random.default_rng(seed).standard_normal(model.layouts[site].widths[here])
    return Direction.of(model, site, here, vector)


def differs(model: Any, what: Any, *, moves: bool = True) -> float:
    """Largest difference of the edited model's logits from the applied intervention's, as a share of the largest logit.

    moves: whether the change must show (a constant added to all keys cancels in a softmax without rotations).
    """
    items = Interventions.of(what)
    before = {name: value.clone() for name, value in model.hf.state_dict().items()}
    with items.applied(model):
        wanted = model.logits(IDS).double()
    assert not moves or (wanted - model.logits(IDS).double()).abs().max() > 1e-3 * wanted.abs().max()
    edited = edit(model, items)
    for name, value in model.hf.state_dict().items():  # the original is not touched
        assert torch.equal(value, before[name])
    return float((edited.model.logits(IDS).double() - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("site", LINEAR)
@pytest.mark.parametrize(("operation", "value"), [("project", None), ("scale", -0.5), ("add", 3.0), ("set", 2.0)])
def test_a_direction_in_the_weights_equals_the_direction_clamped(
    model: Any, site: str, operation: str, value: float | None
) -> None:
    item = Intervention(direction(model, site), operation, value)
    assert differs(model, item, moves=(site, operation) != ("k", "add")) < 1e-5


@pytest.mark.parametrize("site", [*LINEAR, "head"])
@pytest.mark.parametrize("operation", ["scale", "add", "set"])
def test_units_in_the_weights_equal_the_units_clamped(model: Any, site: str, operation: str) -> None:
    units = UnitSet.of(model, [f"{site}.{layer_of(site)}.{index}" for index in (0, 2, 3)])
    item = Intervention(units, operation, np.array([3.0, -2.0, 5.0]))
    assert differs(model, item, moves=(site, operation) != ("k", "add")) < 1e-5


def test_a_gate_scaled_is_the_neuron_scaled(model: Any) -> None:
    units = UnitSet.of(model, ["gate.1.3", "gate.1.7"])
    assert differs(model, Intervention(units, "scale", np.array([-4.0, 6.0]))) < 1e-5
    assert differs(model, Intervention(units, "set", 0.0)) < 1e-5


def test_adding_to_the_stream_is_adding_to_what_the_mlp_gives(model: Any) -> None:
    stream, written = Intervention(direction(model, "resid"), "add", 5.0), edit(model, direction(model, "mlp_out"))
    assert differs(model, stream) < 1e-5
    assert differs(model, Intervention(UnitSet.of(model, ["resid.1.4"]), "add", 7.0)) < 1e-5
    assert written.config_changes == {}


@pytest.mark.parametrize("seed", range(4))
def test_a_list_is_written_in_its_order(model: Any, seed: int) -> None:
    """Operations that don't commute, at one tap, at both ends of one matrix, and at a gate before its neurons."""
    items = [
        Intervention(direction(model, "mlp", 1), "scale", 3.0),
        Intervention(UnitSet.of(model, ["mlp.1.0", "mlp.1.1", "mlp.1.2"]), "set", np.array([1.0, -2.0, 4.0])),
        Intervention(direction(model, "mlp", 2), "set", 2.0),
        Intervention(direction(model, "mlp_out", 3), "add", 4.0),
        Intervention(direction(model, "mlp_out", 4), "project"),
        Intervention(UnitSet.of(model, ["mlp_out.1.5"]), "scale", 9.0),
        Intervention(direction(model, "resid", 5), "add", 2.0),
        Intervention(UnitSet.of(model, ["gate.1.0", "gate.1.6"]), "scale", 5.0),
        Intervention(UnitSet.of(model, ["head.1.2"]), "scale", -1.0),
        Intervention(direction(model, "attn", 6), "add", 3.0),
    ]
    order = np.random.default_rng(seed).permutation(len(items))
    assert differs(model, Interventions(items[number] for number in order)) < 1e-5


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_list_of_changes_is_written_exactly(tiny_llama: Any, data: st.DataObject) -> None:
    items = []
    for _ in range(data.draw(st.integers(1, 4))):
        site = data.draw(st.sampled_from(LINEAR))
        operation = data.draw(st.sampled_from(["scale", "add", "set"]))
        value = data.draw(st.sampled_from([-2.0, 0.0, 0.5, 4.0]))
        if data.draw(st.booleans()):
            items.append(Intervention(direction(tiny_llama, site, data.draw(st.integers(0, 9))), operation, value))
        else:
            index = data.draw(st.integers(0, 7))
            items.append(Intervention(UnitSet.of(tiny_llama, [f"{site}.{layer_of(site)}.{index}"]), operation, value))
    what = Interventions(items)
    with what.applied(tiny_llama):
        wanted = tiny_llama.logits(IDS)
    torch.testing.assert_close(edit(tiny_llama, what).model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operation", ["project", "add"])
def test_bfloat16_weights_are_rounded_once(tiny_llama: Any, operation: str) -> None:
    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    value = None if operation == "project" else 2.0
    items = Interventions(
        Intervention(direction(model, site, 7), operation, value) for site in ("embed", "mlp_out", "attn_out", "mlp")
    )
    assert differs(model, items) < CLOSE[torch.bfloat16]
    edited, wide = (
        edit(model, items).model,
        edit(load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16).float()), retold(items)),
    )
    for name, value_ in edited.hf.state_dict().items():
        assert torch.equal(value_, wide.model.hf.state_dict()[name].to(torch.bfloat16)), name


def retold(items: Interventions) -> Interventions:
    """The same changes for a model that differs in its dtype alone."""
    return Interventions(copy.copy(item) for item in items)


def test_an_ablated_direction_is_gone_from_the_stream(model: Any) -> None:
    from patchclamp.models.collect import collect

    vector = np.random.default_rng(3).standard_normal(model.anatomy.d_model)
    vector /= np.linalg.norm(vector)
    layers = range(model.anatomy.n_layers)
    items = Interventions(
        Intervention(Direction.of(model, site, [0] if site == "embed" else layers, vector), "project")
        for site in ("embed", "attn_out", "mlp_out")
    )
    edited = edit(model, items).model
    if model.anatomy.tied:
        assert edited.hf.config.tie_word_embeddings is False
        assert torch.equal(edited.hf.lm_head.weight, model.hf.lm_head.weight)  # the output layer keeps the direction
    positions = (
        model.hf.transformer.wpe.weight[:6].double()
        if hasattr(model.hf, "transformer")
        else torch.zeros(6, len(vector))
    )
    for layer in layers:
        values = model.layouts["resid"].split(collect(edited, "resid", IDS)[0])[layer].double() - positions.double()
        assert (values @ torch.from_numpy(vector)).abs().max() < 1e-5 * values.abs().max()


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "granitemoeshared"])
def test_a_direction_of_what_experts_give_is_removed_from_each(family: str) -> None:
    model = load(small(family))
    items = Interventions(
        [
            Intervention(direction(model, "mlp_out", layer=1), "project"),
            Intervention(direction(model, "mlp_out", 5, 0), "scale", 3.0),
        ]
    )
    assert differs(model, items) < 1e-4
    with pytest.raises(ModelError, match="weighted by its router"):
        edit(model, Intervention(direction(model, "mlp_out", layer=1), "add", 1.0))


@pytest.mark.parametrize(
    "family", ["granite", "cohere", "phi", "falcon", "gpt_neox", "opt", "bloom", "gemma2", "olmo2"]
)
def test_other_families_hold_what_they_can_and_refuse_the_rest(family: str) -> None:
    model = load(small(family))
    sites = [site for site in ("mlp", "attn", "q", "mlp_out", "attn_out", "embed") if site in model.layouts]
    items = Interventions(Intervention(direction(model, site), "scale", 3.0) for site in sites)
    assert differs(model, items) < 1e-4
    stream = Intervention(direction(model, "resid"), "add", 5.0)
    if family in ("gemma2", "olmo2"):
        with pytest.raises(ModelError, match="passes a norm on its way there"):
            edit(model, stream)
    elif family == "cohere":
        with pytest.raises(ModelError, match="no switch of its config"):
            edit(model, stream)
    else:
        assert differs(model, stream) < 1e-4


class Odd(Change):
    """A change that depends on what the model computes."""

    model: Any = None

    def __init__(self, model: Any) -> None:
        self.model = model.identity

    def check_model(self, model: Any) -> None: ...
    def compiled(self, model: Any) -> Any:
        return []

    def lowest_block(self) -> None: ...
    @property
    def n_units(self) -> int:
        return 0

    def describe(self) -> str:
        return "something odd"

    def to_dict(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_dict(cls, data: Any, model: Any) -> Odd:
        return cls(model)


def test_what_weights_cannot_hold_says_why_and_which_of_a_list_it_is(tiny_llama: Any) -> None:
    units, ahead = UnitSet.of(tiny_llama, ["mlp.0.3"]), direction(tiny_llama, "mlp_out")
    for item, reason in (
        (Intervention(units, "set", 0.0, scope="prompt"), "scope 'prompt'.*scope='all'"),
        (Intervention(units, "set", 0.0, mask=np.ones((1, 4))), "mask of positions"),
        (Intervention(units, "shuffle"), "permute values.*to='mean'"),
        (Intervention(direction(tiny_llama, "resid"), "project"), "embed, attn_out and mlp_out of all layers"),
        (Intervention(UnitSet.of(tiny_llama, ["resid.0.3"]), "set", 0.0), "use clamp"),
        (Intervention(direction(tiny_llama, "gate"), "scale", 2.0), "pre or mlp"),
        (Intervention(UnitSet.of(tiny_llama, ["gate.0.3"]), "add", 2.0), "pre or mlp"),
        (Odd(tiny_llama), "depends on what the model computes"),
    ):
        with pytest.raises(ModelError, match=reason):
            edit(tiny_llama, item)
        with pytest.raises(ModelError, match=r"change 2 of 2.*can't be written: "):
            edit(tiny_llama, Interventions([Intervention(ahead, "project"), item]))


def test_the_maps_agree_with_their_formula() -> None:
    rng = np.random.default_rng(1)
    vector, x, z = rng.standard_normal(5), rng.standard_normal(5), rng.standard_normal(4)
    matrix, bias = rng.standard_normal((5, 4)), rng.standard_normal(5)
    reader, offset = rng.standard_normal((3, 5)), rng.standard_normal(3)
    dual = vector / (vector @ vector)
    index = np.array([0, 3])
    cases = [
        (OfDirection(vector, 0.5, 2.0), lambda y: y + (-0.5 * (dual @ y) + 2.0) * vector),
        (
            OfUnits(index, np.array([0.0, 3.0]), np.array([4.0, 5.0])),
            lambda y: np.where([1, 0, 0, 0, 0], 4.0, np.where([0, 0, 0, 1, 0], 3 * y + 5.0, y)),
        ),
    ]
    for affine, formula in cases:
        weight, own = torch.from_numpy(matrix.copy()), torch.from_numpy(bias.copy())
        affine.before(weight, own)
        np.testing.assert_allclose(weight.numpy() @ z + own.numpy(), formula(matrix @ z + bias), atol=1e-12)
        weight, own = torch.from_numpy(reader.copy()), torch.from_numpy(offset.copy())
        affine.behind(weight, own)
        np.testing.assert_allclose(weight.numpy() @ x + own.numpy(), reader @ formula(x) + offset, atol=1e-12)


def test_weights_that_would_overflow_are_refused(tiny_llama: Any) -> None:
    model = load(copy.deepcopy(tiny_llama.hf).to(torch.float16), tokenizer=tiny_llama.tokenizer)
    with pytest.raises(ModelError, match=r"infinite numbers in torch\.float16"):
        edit(model, intervention(model, ["mlp.0.3"], scale=1e7))
