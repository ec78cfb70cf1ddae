"""Models known by their weights alone: compared with the original, and with their difference dealt out at random."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.data import corpus
from patchclamp.intervene import edit, intervention
from patchclamp.measure import perplexity, side_effects
from patchclamp.measure.weight_change import WeightChange
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet

CHEAP: dict[str, Any] = {"controls": 3, "permutations": 999, "resamples": 100, "max_new_tokens": 4, "quiet": True}
pytestmark = pytest.mark.filterwarnings("ignore:.*permutations=.*:UserWarning", "ignore:too few items:UserWarning")


def test_another_model_is_compared_with_its_own_difference_dealt_out_at_random(tiny_llama: Any) -> None:
    hf = copy.deepcopy(tiny_llama.hf)
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[:, :20] *= 3
    other = load(hf, tokenizer=tiny_llama.tokenizer)
    text = corpus(en=["The cat sat on the mat.", "Two and two make four."], fr=["Le chat est assis.", "La lune est"])
    found = side_effects(tiny_llama, edited=other, text=text, **CHEAP)
    plain, changed = perplexity(tiny_llama, text), perplexity(other, text)
    shuffled = WeightChange(tiny_llama, other)
    controls = [perplexity(shuffled.shuffled(seed), text) for seed in range(3)]
    for label in text.labels:
        row = found.row(label)
        assert row["effect"] == pytest.approx(changed[label].value - plain[label].value, rel=1e-5)
        mean = np.mean([one[label].value for one in controls]) - plain[label].value
        assert row["control_mean"] == pytest.approx(mean, rel=1e-4)
        assert row["n_units"] is None
    assert "640 of" in found.what
    assert "1 of" in found.what
    assert (
        found.samples[0]["control"] == shuffled.shuffled(0).generate([found.samples[0]["prompt"]], max_new_tokens=4)[0]
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), sites=st.sets(st.sampled_from(["q_proj", "o_proj", "k_proj"]), min_size=1))
def test_a_shuffled_weight_change_keeps_every_number_and_every_other_tensor(
    tiny_llama: Any, seed: int, sites: set[str]
) -> None:
    hf = copy.deepcopy(tiny_llama.hf)
    with torch.no_grad():
        for site in sites:
            weight = getattr(hf.model.layers[0].self_attn, site).weight
            weight[0] += torch.arange(weight.shape[1])
    other = load(hf, tokenizer=tiny_llama.tokenizer, check=False)
    before, after, dealt = (
        dict(one.hf.named_parameters()) for one in (tiny_llama, other, WeightChange(tiny_llama, other).shuffled(seed))
    )
    for name, weight in before.items():
        aimed, random = (after[name] - weight).reshape(-1), (dealt[name] - weight).reshape(-1)
        assert torch.allclose(aimed.sort().values, random.sort().values, atol=1e-4)
        changed = any(site in name and "layers.0." in name for site in sites)
        assert torch.equal(dealt[name], weight) != changed


def test_bfloat16_gives_about_the_numbers_of_float32(tiny_llama: Any) -> None:
    text = corpus(en=["The cat sat on the mat.", "Two and two make four."], fr=["Le chat est assis.", "La lune est"])
    half = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    tables = []
    for model in (tiny_llama, half):
        change = intervention(model, UnitSet.at(model, "mlp", range(90, 110)), scale=4.0)
        other = load(copy.deepcopy(model.hf), tokenizer=model.tokenizer)
        with torch.no_grad():
            other.hf.model.layers[1].mlp.down_proj.weight[:, :20] *= 3
        vars(other).pop("fingerprint", None)
        for how in ({"change": change}, {"edited": edit(model, change)}, {"edited": other}):
            found = side_effects(model, text=text, prompts=["The"], **how, **CHEAP)
            tables.append([(row["plain"], row["clamped"], row["plain"] + row["control_mean"]) for row in found.rows])
    for one, other in zip(tables[:3], tables[3:], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=0.1)
