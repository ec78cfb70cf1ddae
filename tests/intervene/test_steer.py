"""Steering adds exactly what it says, where it says, in the units it says, and is undone; on the demo model it beats chance."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data import corpus, demo_text
from patchclamp.intervene import Direction, Interventions, mean_difference, steer, steering, typical_lengths
from patchclamp.intervene.fits import fits
from patchclamp.intervene.positions import At
from patchclamp.intervene.steer import strengthened
from patchclamp.intervene.strengths import match_kl_at
from patchclamp.models.collect import collect
from patchclamp.models.hooks import observe, prompt_scope
from patchclamp.models.load import load
from patchclamp.models.units import UnitSet

IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 70, 80, 90, 100, 110]])
TEXT = {"en": ["The cat sat on the mat.", "The moon"], "fr": ["Le chat est assis.", "Il regarde la lune sur le tapis."]}


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def direction(model: Any, site: str = "resid", layers: Any = (1,), seed: int = 0) -> Direction:
    vectors = np.random.default_rng(seed).standard_normal((len(layers), model.layouts[site].widths[layers[0]]))
    return Direction.of(model, site, layers, vectors)


def resid(model: Any, layer: int, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None) -> torch.Tensor:
    return model.layouts["resid"].split(collect(model, "resid", ids, mask))[layer]


def lengths_by_hand(model: Any, layer: int) -> np.ndarray[Any, Any]:
    kept: list[torch.Tensor] = []
    with observe(model, [("resid", layer)], lambda seen: kept.append(seen.values[1:].norm(dim=1))):
        for text in [*TEXT["en"], *TEXT["fr"]]:
            model.logits(torch.tensor([model.tokenize(text)]))
    return torch.cat(kept).numpy()


def test_one_typical_length_is_the_median_over_the_texts_tokens(model: Any) -> None:
    found = typical_lengths(model, [("resid", 0), ("resid", 2)], corpus(TEXT))
    for layer in (0, 2):
        wanted = float(torch.from_numpy(lengths_by_hand(model, layer)).median())
        assert found["resid", layer] == pytest.approx(wanted, rel=1e-5)


def test_strength_counts_typical_lengths_or_the_directions_own(model: Any) -> None:
    one, plain = direction(model), resid(model, 1)
    length = typical_lengths(model, [("resid", 1)], corpus(TEXT))["resid", 1]
    with steer(model, one, -0.5, text=corpus(TEXT)) as items:
        moved = resid(model, 1) - plain
    wanted = torch.from_numpy(-0.5 * length * one.vectors[0] / np.linalg.norm(one.vectors[0])).float()
    torch.testing.assert_close(moved, wanted.expand_as(moved), rtol=1e-4, atol=1e-4)
    assert isinstance(items, Interventions)
    with steer(model, one, 2.0, strength_in="own"):
        moved = resid(model, 1) - plain
    torch.testing.assert_close(
        moved, torch.from_numpy(2 * one.vectors[0]).float().expand_as(moved), rtol=1e-4, atol=1e-4
    )


def test_each_layer_of_a_direction_gets_its_own_typical_length(tiny_llama: Any) -> None:
    one = direction(tiny_llama, layers=(0, 2))
    items = steering(tiny_llama, one, 1.0, text=corpus(TEXT))
    typical = typical_lengths(tiny_llama, [("resid", 0), ("resid", 2)], corpus(TEXT))
    lengths = np.linalg.norm(items[0].target.vectors, axis=1)  # type: ignore[attr-defined]
    np.testing.assert_allclose(lengths, [typical["resid", 0], typical["resid", 2]], rtol=1e-6)


@pytest.mark.parametrize("nats", [0.05, 0.3, -0.3])
def test_an_effect_asked_for_in_nats_is_reached(model: Any, nats: float) -> None:
    prompt = "The cat sat"
    ids = torch.tensor([model.tokenize(prompt)])
    plain = model.logits(ids)[0, -1].log_softmax(-1)
    for one in (direction(model), direction(model, layers=(0, 1, 2)), direction(model, "mlp_out", (1,))):
        with steer(model, one, nats, strength_in="kl", prompt=prompt, text=corpus(TEXT)) as items:
            new = model.logits(ids)[0, -1].log_softmax(-1)
        kl = float((plain.exp() * (plain - new)).sum())
        assert kl == pytest.approx(abs(nats), abs=0.01)
        assert np.sign(items[0].value) == np.sign(nats)  # type: ignore[attr-defined]


def test_matching_several_places_with_one_is_matching_one(tiny_gpt2: Any) -> None:
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    from patchclamp.intervene.strengths import match_kl

    one = match_kl(tiny_gpt2, ("resid", 1), rows, "The cat", targets=(0.1, 0.2))
    several = match_kl_at(tiny_gpt2, {("resid", 1): rows}, "The cat", targets=(0.1, 0.2))
    torch.testing.assert_close(one.alphas, several.alphas)


def test_units_steer_along_what_they_write(tiny_llama: Any) -> None:
    text = corpus(TEXT)
    ways = [["mlp.1.3", "mlp.1.5"], UnitSet.of(tiny_llama, ["mlp.1.3", "mlp.1.5"])]
    first, second = (steering(tiny_llama, way, 0.5, text=text).to_dict() for way in ways)
    assert first == second
    assert steering(tiny_llama, "mlp.1.3", 1.0, strength_in="own")[0].target.site == "mlp_out"  # type: ignore[attr-defined]


@pytest.mark.parametrize("side", ["left", "right"])
def test_positions_count_tokens_of_the_prompt_whatever_the_padding(model: Any, side: str) -> None:
    rows = [[1, 20, 30, 40], [1, 70]]
    ids, mask = torch.zeros(2, 4, dtype=torch.long), torch.zeros(2, 4, dtype=torch.long)
    for number, row in enumerate(rows):
        where = slice(4 - len(row), 4) if side == "left" else slice(0, len(row))
        ids[number, where], mask[number, where] = torch.tensor(row), 1
    plain = resid(model, 1, ids, mask)
    for positions, wanted in ((-1, [[3], [1]]), ([0, 2], [[0, 2], [0]]), ([-2], [[2], [0]]), ([-4], [[0], []])):
        with steer(model, direction(model), 5.0, positions=positions, text=corpus(TEXT)):
            moved = ((resid(model, 1, ids, mask) - plain).abs().amax(-1) > 1e-3).long()
        for number, row in enumerate(rows):
            start = 4 - len(row) if side == "left" else 0
            assert moved[number, start : start + len(row)].nonzero()[:, 0].tolist() == wanted[number]


@pytest.mark.parametrize("cache", [True, False])
def test_positions_mean_the_same_under_generation(tiny_llama: Any, cache: bool) -> None:
    """The last prompt token of left-padded rows is steered, generated tokens never are: as if the prompt were scored so."""
    model, ids = tiny_llama, torch.tensor([[0, 0, 1, 20, 30], [1, 70, 80, 90, 100]])
    mask = (ids > 0).long()
    how: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "use_cache": cache}
    with steer(model, direction(model), 4.0, positions=-1, text=corpus(TEXT)), torch.no_grad():
        new = model.hf.generate(ids, **how)
    table = np.zeros((2, 5), dtype=bool)
    table[:, -1] = True
    with steer(model, direction(model), 4.0, mask=table, text=corpus(TEXT)), torch.no_grad():
        by_table = model.hf.generate(ids, **how)
    with steer(model, direction(model), 4.0, positions=-1, text=corpus(TEXT)), torch.no_grad():
        beams = model.hf.generate(ids, **{**how, "num_beams": 2})
    with steer(model, direction(model), 4.0, mask=table, text=corpus(TEXT)), torch.no_grad():
        beams_by_table = model.hf.generate(ids, **{**how, "num_beams": 2})
    assert torch.equal(new, by_table)
    assert torch.equal(beams, beams_by_table)
    assert not torch.equal(new, model.hf.generate(ids, **how))


def test_the_end_of_a_prompt_that_is_scored_with_its_answer(tiny_llama: Any) -> None:
    plain = resid(tiny_llama, 1)
    with (
        steer(tiny_llama, direction(tiny_llama), 5.0, positions=-1, text=corpus(TEXT)),
        prompt_scope(tiny_llama, torch.tensor([2, 4])),
    ):
        moved = ((resid(tiny_llama, 1) - plain).abs().amax(-1) > 1e-3).nonzero().tolist()
    # what follows a steered token differs too, but only through attention: the stream at the token itself moved by 5 lengths
    assert [0, 1] in moved
    assert [1, 3] in moved
    assert [0, 0] not in moved
    assert [1, 2] not in moved


@settings(max_examples=15, deadline=None)
@given(
    st.floats(-3, 3),
    st.sampled_from(["resid", "mlp_out", "attn_out", "embed", "mlp"]),
    st.integers(0, 5),
    st.booleans(),
)
def test_steering_is_undone_bit_for_bit_also_by_an_exception(
    tiny_llama: Any, strength: float, site: str, seed: int, fails: bool
) -> None:
    before = tiny_llama.logits(IDS)
    one = direction(tiny_llama, site, (0,) if site == "embed" else (0, 2), seed)
    try:
        with steer(tiny_llama, one, strength, strength_in="own"), steer(tiny_llama, one, -1.0, strength_in="own"):
            tiny_llama.logits(IDS)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert torch.equal(tiny_llama.logits(IDS), before)


def test_opposite_steering_cancels_and_strengths_add(tiny_llama: Any) -> None:
    one, text = direction(tiny_llama), corpus(TEXT)
    with steer(tiny_llama, one, 0.7, text=text), steer(tiny_llama, one, -0.7, text=text):
        torch.testing.assert_close(tiny_llama.logits(IDS), tiny_llama.logits(IDS), rtol=0, atol=0)
        both = tiny_llama.logits(IDS)
    torch.testing.assert_close(both, tiny_llama.logits(IDS), rtol=1e-3, atol=1e-3)
    items = steering(tiny_llama, one, 0.2, text=text)
    with strengthened(items, 0.6).applied(tiny_llama):
        wanted = tiny_llama.logits(IDS)
    with steer(tiny_llama, one, 0.2, text=text), steer(tiny_llama, one, 0.4, text=text):
        torch.testing.assert_close(tiny_llama.logits(IDS), wanted, rtol=1e-3, atol=1e-3)


def test_typical_lengths_are_those_of_the_model_without_what_is_active(tiny_llama: Any) -> None:
    text, taps = corpus(TEXT), [("resid", 1), ("resid", 2)]
    plain = typical_lengths(tiny_llama, taps, text)
    with steer(tiny_llama, direction(tiny_llama), 9.0, text=text):
        assert typical_lengths(tiny_llama, taps, text) == plain
        moved = resid(tiny_llama, 2)
    assert not torch.equal(moved, resid(tiny_llama, 2))  # and what is active goes on afterwards


def test_strength_0_changes_nothing(model: Any) -> None:
    before = model.logits(IDS)
    with steer(model, direction(model), 0.0, text=corpus(TEXT)):
        assert torch.equal(model.logits(IDS), before)
    with steer(model, direction(model), 0.0, strength_in="kl", text=corpus(TEXT)):
        assert torch.equal(model.logits(IDS), before)


def test_bfloat16_models_are_steered_by_the_same_vector(tiny_llama: Any) -> None:
    model = load(copy.deepcopy(tiny_llama.hf).to(torch.bfloat16), tokenizer=tiny_llama.tokenizer)
    one, plain = direction(model), resid(model, 1)
    with steer(model, one, 3.0, strength_in="own"):
        moved = resid(model, 1) - plain
    torch.testing.assert_close(
        moved, torch.from_numpy(3 * one.vectors[0]).float().expand_as(moved), rtol=0.05, atol=0.15
    )
    assert typical_lengths(model, [("resid", 1)], corpus(TEXT))["resid", 1] > 0


def test_what_it_did_is_data(tiny_llama: Any, tmp_path: Path) -> None:
    items = steering(tiny_llama, direction(tiny_llama), 0.5, scope="generated", text=corpus(TEXT), note="louder")
    again = Interventions.load(items.save(tmp_path / "steer.json"))
    assert again.to_dict() == items.to_dict()
    assert "louder" in again.describe()
    placed = steering(tiny_llama, direction(tiny_llama), 0.5, positions=[0, -1], text=corpus(TEXT))
    read = Interventions.load(placed.save(tmp_path / "placed.json"))
    assert read.to_dict()["interventions"][0]["mask"] == {"positions": [0, -1]}
    with placed.applied(tiny_llama):
        wanted = tiny_llama.logits(IDS)
    with read.applied(tiny_llama):
        assert torch.equal(tiny_llama.logits(IDS), wanted)
    control = items.matched_random(3)
    lengths = [np.linalg.norm(one[0].target.vectors) for one in (items, control)]  # type: ignore[attr-defined]
    assert lengths[0] == pytest.approx(lengths[1])


def test_bad_requests_say_what_to_do(tiny_llama: Any, tiny_gpt2: Any) -> None:
    one, text = direction(tiny_llama), corpus(TEXT)
    far: dict[str, Any]
    for far, message in (
        ({"strength": float("nan")}, "finite"),
        ({"strength_in": "metres"}, "norm, own or kl"),
        ({"positions": 0, "mask": np.ones((1, 2))}, "not both"),
        ({"positions": []}, "whole numbers"),
        ({"positions": 1.5}, "whole numbers"),
        ({"strength": 50.0, "strength_in": "kl"}, "ask for less"),
        ({"scope": "everywhere"}, "scope"),
    ):
        with pytest.raises((InputError, TypeError), match=message):
            steering(tiny_llama, one, **{"text": text, **far})
    with pytest.raises(InputError, match="no direction was given"):
        steering(tiny_llama, [])
    with pytest.raises(MismatchError):
        steering(tiny_gpt2, one)
    with pytest.raises(InputError, match="strength_in='own'"):
        steering(load(copy.deepcopy(tiny_llama.hf)), one)
    assert repr(At([0, -1])) == "At([0, -1])"


def test_the_fit_takes_one_source(tiny_llama: Any) -> None:
    fit, text = fits["steer"], corpus(TEXT)
    by_text = fit(tiny_llama, text=text, towards="fr", away=["en"], strength=0.5)
    wanted = mean_difference(tiny_llama, "fr", "en", text=text, layers=1)
    got = by_text[0].target.vectors[0]
    np.testing.assert_allclose(got / np.linalg.norm(got), wanted.vectors[0] / np.linalg.norm(wanted.vectors), atol=1e-6)
    assert fit(tiny_llama, units=UnitSet.of(tiny_llama, ["mlp.2.3"]), text=text)[0].target.layers == (2,)
    assert fit(tiny_llama, tokens=["e"], text=text)[0].target.layers == (2,)
    for wrong in ({}, {"towards": "fr", "tokens": ["e"]}, {"towards": "fr"}):
        with pytest.raises(InputError, match="give"):
            fit(tiny_llama, **wrong)
    with pytest.raises(InputError, match="leave layers out"):
        fit(tiny_llama, units=UnitSet.of(tiny_llama, ["mlp.2.3"]), layers=[1])


@pytest.mark.slow
def test_the_german_direction_makes_the_demo_model_write_german_and_random_ones_do_not() -> None:
    model = load("demo", check=False)
    found, measured = demo_text(["en", "de"], split="find"), demo_text(["en", "de"], split="measure")
    items = steering(model, mean_difference(model, "de", "en", text=found, layers=3), 0.5, text=found)

    def gap() -> float:
        """How much less likely English text is than German text, nats a token."""
        from patchclamp.measure import perplexity

        values = perplexity(model, measured, quiet=True)
        return float(np.log(values["en"].value) - np.log(values["de"].value))

    plain = gap()
    with items.applied(model):
        steered = gap()
    others = []
    for seed in range(5):
        with items.matched_random(seed).applied(model):
            others.append(gap())
    assert steered - plain > 0.5
    assert steered - plain > 3 * max(abs(other - plain) for other in others)


@pytest.fixture(scope="module")
def wired(tiny_tokenizer: Any) -> Any:
    """A Llama by hand: nothing but embedding and head. Tokens below 160 lie at -1 on axis 0, the others at +1, with noise on the
    other axes; the head reads axis 0 for token 300 and its opposite for token 301, and nothing else."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    hf = LlamaForCausalLM(config)
    noise = torch.randn(320, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        hf.model.embed_tokens.weight.copy_(0.3 * noise)
        hf.model.embed_tokens.weight[:, 0] = torch.where(torch.arange(320) < 160, -1.0, 1.0)
        hf.lm_head.weight[300, 0], hf.lm_head.weight[301, 0] = 1.0, -1.0
    return load(hf, tokenizer=tiny_tokenizer)


def test_a_wired_axis_is_found_steered_along_and_taken_away(wired: Any) -> None:
    from patchclamp.intervene import ablation, edit, token_direction

    low, high = (
        [wired.tokenizer.decode(list(range(start, start + 12))) for start in starts]
        for starts in (range(40, 120, 12), range(170, 250, 12))
    )
    found = mean_difference(wired, high, low, layers=1)
    axis = np.eye(16)[0]
    assert found.vectors[0] @ axis / np.linalg.norm(found.vectors[0]) > 0.9
    by_head = token_direction(wired, [300], [301]).vectors[0]
    np.testing.assert_allclose(by_head / np.linalg.norm(by_head), axis, atol=1e-6)
    ids = torch.tensor([[45, 200, 77, 230]])
    assert wired.logits(ids)[0].argmax(-1).tolist() == [301, 300, 301, 300]
    for strength, token in ((3.0, 300), (-3.0, 301)):
        with steer(wired, found, strength, text=corpus(low=low, high=high)):
            assert wired.logits(ids)[0].argmax(-1).tolist() == [token] * 4
        with steer(wired, found, strength, text=corpus(low=low, high=high), positions=[1]):
            answers = wired.logits(ids)[0].argmax(-1).tolist()
        assert answers == [301, token, 301, 300]
    items = ablation(wired, axis)
    assert edit(wired, items).model.logits(ids).abs().max() < 1e-6  # the head read nothing else
    with items.applied(wired):
        assert wired.logits(ids).abs().max() < 1e-6
