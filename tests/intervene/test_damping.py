"""AurA, Damp and Det-0: multipliers in closed form, applied to the right units, nothing changed where nothing detects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data.demo import demo_text
from patchclamp.intervene import edit
from patchclamp.intervene.damping import SITES, aura, damp, damping, det0, multipliers
from patchclamp.intervene.interventions import Intervention
from patchclamp.measure.perplexity import perplexity
from patchclamp.models.hooks import observe
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet

IDS = torch.tensor([[1, 20, 30, 40, 50, 60]])


def scored(model: Any, units: list[str], scores: list[float]) -> UnitSet:
    return UnitSet.of(model, units, scores)


@pytest.mark.parametrize(("area", "alpha"), [(0.875, 0.25), (1.0, 0.0), (0.75, 0.5), (0.5, 1.0), (0.2, 1.0)])
def test_aura_is_one_minus_the_gini_coefficient(area: float, alpha: float) -> None:
    assert multipliers(area) == pytest.approx(alpha)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.integers(0, 29), st.floats(0, 1))
def test_multipliers_stay_between_0_and_1_and_hit_at_most_so_many(areas: list[float], n: int, alpha: float) -> None:
    n = min(n, len(areas) - 1)
    for method in ("aura", "damp", "det0"):
        found = multipliers(areas, method=method, alpha=alpha, n_experts=n)
        assert ((found >= 0) & (found <= 1)).all()
    assert (multipliers(areas, method="det0", n_experts=n) == 0).sum() <= n
    kept = multipliers(areas, method="det0")
    assert kept.tolist() == [0.0 if area > 0.5 else 1.0 for area in areas]


def test_units_are_multiplied_site_by_site(tiny_llama: Any) -> None:
    units = scored(tiny_llama, ["up.1.3", "mlp_out.0.5", "pre.2.7", "up.0.1"], [0.875, 1.0, 0.6, 0.4])
    (item,) = damping(units)
    assert isinstance(item, Intervention)
    assert sorted(map(str, item.target)) == ["mlp_out.0.5", "pre.2.7", "up.1.3"]
    seen: dict[str, torch.Tensor] = {}
    taps = [("up", 1), ("mlp_out", 0), ("pre", 2), ("up", 0)]
    with observe(tiny_llama, taps, lambda s: seen.update({f"plain {s.site}.{s.layer}": s.values.clone()})):
        tiny_llama.logits(IDS)
    with (
        item.applied(tiny_llama),
        observe(tiny_llama, taps, lambda s: seen.update({f"damped {s.site}.{s.layer}": s.values.clone()})),
    ):
        tiny_llama.logits(IDS)
    assert (seen["damped mlp_out.0"][:, 5] == 0).all()
    assert torch.equal(seen["damped mlp_out.0"][:, :5], seen["plain mlp_out.0"][:, :5])
    assert torch.equal(seen["damped up.0"], seen["plain up.0"])
    values = dict(zip(map(str, item.target), np.atleast_1d(item.value).tolist(), strict=True))
    assert values == pytest.approx({"mlp_out.0.5": 0.0, "pre.2.7": 0.8, "up.1.3": 0.25})


def test_equal_scores_give_exactly_as_many_experts_as_asked_for(tiny_llama: Any) -> None:
    units = scored(tiny_llama, [f"mlp.0.{n}" for n in range(6)], [1.0, 1.0, 0.4, 1.0, 1.0, 0.7])
    assert (multipliers(units.score_list(), method="det0", n_experts=2) == 0).sum() == 0  # the authors' threshold
    for n, names in ((2, [0, 1]), (4, [0, 1, 3, 4]), (6, [0, 1, 3, 4, 5])):
        (item,) = damping(units, method="det0", n_experts=n)
        assert isinstance(item, Intervention)
        assert sorted(map(str, item.target)) == [f"mlp.0.{index}" for index in names]
    (item,) = damping(units, n_experts=5)
    assert item.n_units == 5


def test_damp_with_alpha_one_and_chance_level_change_nothing(tiny_llama: Any) -> None:
    units = scored(tiny_llama, ["mlp.0.1", "mlp.1.2"], [0.9, 0.7])
    assert len(damping(units, method="damp", alpha=1.0)) == 0
    assert len(damping(scored(tiny_llama, ["mlp.0.1"], [0.5]))) == 0
    assert len(damping(UnitSet.of(tiny_llama, [], []))) == 0
    plain = tiny_llama.logits(IDS)
    with damping(units, method="damp", alpha=1.0).applied(tiny_llama):
        assert torch.equal(tiny_llama.logits(IDS), plain)


def test_shuffled_labels_scatter_around_one_as_the_formula_says() -> None:
    from patchclamp.find.separation import auroc

    rng = np.random.default_rng(0)
    n1, n0 = 40, 60
    truth = np.zeros(n1 + n0, bool)
    truth[:n1] = True
    areas = auroc(rng.normal(size=(n1 + n0, 4000)), rng.permutation(truth))
    found = multipliers(areas)
    assert found.mean() > 0.95
    assert (1 - 2 * (areas - 0.5)).std() == pytest.approx(2 * np.sqrt((n1 + n0 + 1) / (12 * n1 * n0)), rel=0.1)


def test_aura_on_shuffled_labels_leaves_perplexity_where_it_was() -> None:
    model, n1, n0 = load("demo"), 150, 150
    rng = np.random.default_rng(0)
    areas = rng.normal(0.5, np.sqrt((n1 + n0 + 1) / (12 * n1 * n0)), size=model.layouts["mlp"].total)
    units = UnitSet.at(model, "mlp", np.arange(len(areas)), areas)
    text = demo_text(("en",), split="measure").limited(max_documents=10)
    plain = perplexity(model, text, quiet=True)["en"]
    with damping(units).applied(model):
        damped = perplexity(model, text, quiet=True)["en"]
    assert damped.value == pytest.approx(plain.value, rel=0.05)
    with damping(units, method="det0").applied(model):
        assert perplexity(model, text, quiet=True)["en"].value > 2 * plain.value  # half of all units are no experts


def test_the_area_of_the_method_file_and_its_mirror() -> None:
    from patchclamp.find.separation import auroc

    values, truth = np.array([[3.0], [2.0], [1.0], [2.0]]), np.array([True, True, False, False])
    assert auroc(values, truth) == pytest.approx([0.875])
    assert auroc(-values, truth) == pytest.approx([0.125])
    assert auroc(np.ones((4, 1)), truth) == pytest.approx([0.5])
    many = np.random.default_rng(0).normal(size=(20, 7))
    labels = np.arange(20) < 8
    parts = np.concatenate([many[:10], many[10:]])  # ranks of parts don't merge: the whole is ranked
    assert auroc(parts, labels) == pytest.approx(auroc(many, labels))


def test_det0_equals_ablation_in_the_weights(tiny_llama: Any) -> None:
    units = scored(tiny_llama, ["mlp.0.1", "mlp.1.2", "mlp.2.3"], [0.9, 0.8, 0.55])
    (item,) = damping(units, method="det0", n_experts=2)
    assert sorted(map(str, item.target)) == ["mlp.0.1", "mlp.1.2"]
    edited = edit(tiny_llama, item.target, "ablate")
    with item.applied(tiny_llama):
        wanted = tiny_llama.logits(IDS)
    torch.testing.assert_close(edited.model.logits(IDS), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
def test_multipliers_are_written_where_a_linear_map_makes_the_units(name: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(name)
    sites = [site for site in SITES if site in model.layouts]
    names = [f"{site}.{layer}.{index}" for site in sites for layer in (0, 2) for index in (1, 9)]
    (item,) = damping(scored(model, names, np.linspace(0.55, 1, len(names)).tolist()))
    edited = edit(model, item)
    with item.applied(model):
        wanted = model.logits(IDS)
    torch.testing.assert_close(edited.model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)
    assert (wanted - model.logits(IDS)).abs().max() > 1e-3


def test_the_fits_need_scores_experts_and_their_own_model(tiny_llama: Any, tiny_gpt2: Any) -> None:
    units = scored(tiny_llama, ["mlp.0.1", "mlp.1.2"], [0.9, 0.7])
    for fit in (aura, damp, det0):
        assert len(fit(tiny_llama, units)) == 1
        with pytest.raises(InputError, match="no scores"):
            fit(tiny_llama, UnitSet.of(tiny_llama, ["mlp.0.1"]))
        with pytest.raises(InputError, match="none of the 1 units"):
            fit(tiny_llama, scored(tiny_llama, ["mlp.0.1"], [0.3]))
        with pytest.raises(MismatchError):
            fit(tiny_gpt2, units)
    for bad, message in (
        ({"alpha": 2.0}, "alpha=2.0"),
        ({"n_experts": 3}, "n_experts=3"),
        ({"n_experts": 0}, "n_experts=0"),
        ({"scope": "some"}, "scope='some'"),
    ):
        with pytest.raises(InputError, match=message):
            damp(tiny_llama, units, **bad)
    with pytest.raises(InputError, match="between 0 and 1"):
        aura(tiny_llama, scored(tiny_llama, ["mlp.0.1"], [3.0]))
