"""Directions are what they are said to be: differences of means by hand, decoder rows, rows of the LM head, what neurons add."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError, MismatchError
from patchclamp.data import corpus
from patchclamp.intervene import (
    Direction,
    Intervention,
    clamp,
    feature_direction,
    mean_difference,
    token_direction,
    unit_directions,
)
from patchclamp.models import LinearDictionary, UnitSet
from patchclamp.models.hooks import observe
from patchclamp.record import record

IDS = torch.tensor([[1, 20, 30, 40, 50, 60], [1, 70, 80, 90, 100, 110]])
TEXT = {
    "en": ["The cat sat on the mat.", "The moon"],
    "fr": ["Le chat est assis.", "Il regarde la lune sur le tapis."],
    "de": ["Der Mond."],
}


@pytest.fixture(params=["tiny_gpt2", "tiny_llama"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def mean_at(model: Any, texts: list[str], tap: tuple[str, int]) -> np.ndarray[Any, Any]:
    """Mean vector over all tokens but BOS, text by text."""
    kept: list[torch.Tensor] = []
    with observe(model, [tap], lambda seen: kept.append(seen.values[1:].double())):
        for text in texts:
            model.logits(torch.tensor([model.tokenize(text)]))
    return torch.cat(kept).mean(0).numpy()


@pytest.mark.parametrize("site", ["resid", "mlp_out", "attn_out", "mlp"])
def test_a_difference_of_means_is_the_difference_by_hand(model: Any, site: str) -> None:
    found = mean_difference(model, "fr", "en", text=corpus(TEXT), site=site)
    assert found.layers == (0, 1, 2)
    for layer, vector in zip(found.layers, found.vectors, strict=True):
        wanted = mean_at(model, TEXT["fr"], (site, layer)) - mean_at(model, TEXT["en"], (site, layer))
        np.testing.assert_allclose(vector, wanted, atol=1e-5)


def test_a_recording_a_text_and_lists_give_the_same_direction(tiny_llama: Any) -> None:
    kept = record(tiny_llama, corpus(TEXT), sites=("resid",), statistics=("moments",), quiet=True)
    ways = [
        mean_difference(kept, "fr", "en", layers=[1]),
        mean_difference(tiny_llama, "fr", "en", text=corpus(TEXT), layers=1),
        mean_difference(tiny_llama, TEXT["fr"], TEXT["en"], layers=[1]),
    ]
    for one in ways:
        assert one.layers == (1,)
        np.testing.assert_allclose(one.vectors, ways[0].vectors, atol=1e-6)
    rest = mean_difference(kept, "fr", layers=[1])
    pooled = mean_at(tiny_llama, TEXT["en"] + TEXT["de"], ("resid", 1))
    np.testing.assert_allclose(rest.vectors[0], mean_at(tiny_llama, TEXT["fr"], ("resid", 1)) - pooled, atol=1e-5)


def test_a_feature_is_its_decoder_row_by_number_or_label(tiny_llama: Any) -> None:
    rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    dictionary = LinearDictionary("sae", "mlp_out", 2, rows, labels=["a", "b", "c"], model=tiny_llama)
    for feature in (1, "b"):
        found = feature_direction(tiny_llama, dictionary, feature)
        assert (found.site, found.layers) == ("mlp_out", (2,))
        np.testing.assert_allclose(found.vectors[0], rows[1].numpy(), rtol=1e-6)
    (same,) = unit_directions(
        tiny_llama.with_features(dictionary), UnitSet.of(tiny_llama.with_features(dictionary), ["sae.2.1"])
    )
    np.testing.assert_allclose(same.vectors[0], rows[1].numpy(), rtol=1e-6)


def test_a_token_direction_is_the_gradient_of_its_logit_up_to_the_size_of_the_state(model: Any) -> None:
    """Behind the last layer the gap of two logits grows along the direction, more than along random ones of the same length."""
    found = token_direction(model, [40, 41], [50])
    layer = model.anatomy.n_layers - 1
    assert (found.site, found.layers) == ("resid", (layer,))
    direction = torch.from_numpy(found.vectors[0]).float()

    def gap(vector: torch.Tensor) -> float:
        def add(seen: Any) -> torch.Tensor:
            return seen.values + vector

        from patchclamp.models.hooks import change

        with change(model, {("resid", layer): add}):
            logits = model.logits(IDS)[0, -1]
        return float(logits[[40, 41]].mean() - logits[50])

    plain, unit = gap(0 * direction), direction / direction.norm()
    assert gap(20 * unit) > plain > gap(-20 * unit)
    rng = torch.Generator().manual_seed(0)
    others = [gap(20 * torch.nn.functional.normalize(torch.randn(32, generator=rng), dim=0)) for _ in range(20)]
    assert gap(20 * unit) > max(others)
    assert np.array_equal(
        token_direction(model, ["e"]).vectors,
        token_direction(model, model.tokenizer("e", add_special_tokens=False)["input_ids"]).vectors,
    )


@pytest.mark.parametrize("names", [["mlp.1.3", "mlp.1.9", "mlp.2.0"], ["attn.0.3", "attn.2.30"]])
def test_adding_what_units_write_is_adding_to_the_units(model: Any, names: list[str]) -> None:
    (direction,) = unit_directions(model, UnitSet.of(model, names))
    with clamp(model, names, add=2.5):
        wanted = model.logits(IDS)
    with Intervention(direction, "add", 2.5).applied(model):
        torch.testing.assert_close(model.logits(IDS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", ["mlp", "attn", "resid"])
def test_adding_what_a_feature_writes_is_adding_its_decoder_row(model: Any, site: str) -> None:
    rows = torch.randn(3, model.layouts[site].widths[1], generator=torch.Generator().manual_seed(0))
    dictionary = LinearDictionary("sae", site, 1, rows)
    featured = model.with_features(dictionary)
    (direction,) = unit_directions(featured, UnitSet.of(featured, ["sae.1.0", "sae.1.2"]))
    with Intervention(direction, "add", 1.5).applied(featured):
        found = featured.logits(IDS)
    summed = feature_direction(model, dictionary, 0).vectors + feature_direction(model, dictionary, 2).vectors
    with Intervention(Direction.of(model, site, 1, summed), "add", 1.5).applied(model):
        torch.testing.assert_close(found, model.logits(IDS), rtol=1e-4, atol=1e-4)


def test_units_of_several_places_give_a_direction_each_weighted_by_score(tiny_llama: Any) -> None:
    names = ["mlp.1.3", "mlp_out.1.4", "resid.2.7", "head.0.1"]
    by_place = {one.site: one for one in unit_directions(tiny_llama, UnitSet.of(tiny_llama, names))}
    assert set(by_place) == {"mlp_out", "resid", "attn_out"}
    down = tiny_llama.anatomy.down(1).weight.detach().double().numpy()
    np.testing.assert_allclose(by_place["mlp_out"].vectors[0], down[:, 3] + np.eye(32)[4], atol=1e-6)
    np.testing.assert_array_equal(by_place["resid"].vectors[0], np.eye(32)[7])
    positions = {"mlp": np.array([48 + 3, 48 + 9])}
    scored = UnitSet.at(tiny_llama, "mlp", positions["mlp"], np.array([2.0, -1.0]))
    (weighted,) = unit_directions(tiny_llama, scored, weighted=True)
    np.testing.assert_allclose(weighted.vectors[0], 2 * down[:, 3] - down[:, 9], atol=1e-6)


@pytest.mark.filterwarnings("ignore:labels")
def test_what_gives_no_direction_is_said(tiny_llama: Any, tiny_gpt2: Any) -> None:
    text = corpus(TEXT)
    dictionary = LinearDictionary("sae", "resid", 1, torch.randn(2, 32), model=tiny_gpt2)
    for wrong, message in (
        (lambda: mean_difference(tiny_llama, "fr", "xx", text=text), "no label 'xx'; it has en, fr, de"),
        (lambda: mean_difference(tiny_llama, "fr", "fr", text=text), "two different"),
        (lambda: mean_difference(tiny_llama, "fr"), "text=.*or two lists"),
        (lambda: mean_difference(tiny_llama, ["same"], ["same"]), "same mean"),
        (lambda: mean_difference(tiny_llama, "fr", "en", text=text, site="embed", layers=2), "layer"),
        (lambda: token_direction(tiny_llama, "The cat and the moon"), "tokens .*give one token"),
        (lambda: token_direction(tiny_llama, [40], [40]), "same as those against"),
        (lambda: token_direction(tiny_llama, [99999]), "between 0 and"),
        (lambda: unit_directions(tiny_llama, UnitSet.of(tiny_llama, [])), "empty"),
        (lambda: unit_directions(tiny_llama, UnitSet.of(tiny_llama, ["gate.1.2"])), "write nothing by themselves"),
        (lambda: unit_directions(tiny_llama, UnitSet.of(tiny_llama, ["mlp.1.2"]), weighted=True), "no scores"),
        (lambda: feature_direction(tiny_gpt2, dictionary, 5), "has 0 to 1"),
        (lambda: feature_direction(tiny_gpt2, dictionary, "x"), "no feature labelled"),
    ):
        with pytest.raises(InputError, match=message):
            wrong()
    with pytest.raises(MismatchError):
        feature_direction(tiny_llama, dictionary, 0)
    moments = record(tiny_llama, text, sites=("mlp",), statistics=("firing",), quiet=True)
    with pytest.raises(InputError, match="needs its moments"):
        mean_difference(moments, "fr", "en", site="resid")
