"""Words are found in every spelling, at units that point at them; clamping these makes the words likelier."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.read.word_check import check_words
from patchclamp.read.words import WordUnits, forms_of, spellings, word_units


@pytest.fixture(scope="module")
def planted(tiny_llama: Any) -> Any:
    """A Llama of which mlp.2.9 and mlp.1.30 write the token of ` the`."""
    hf = copy.deepcopy(tiny_llama.hf)
    token = tiny_llama.tokenizer(" the", add_special_tokens=False)["input_ids"]
    assert len(token) == 1
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight[:, 9] = 2 * hf.lm_head.weight[token[0]]
        hf.model.layers[1].mlp.down_proj.weight[:, 30] = hf.lm_head.weight[token[0]]
    return pc.load(hf, tokenizer=tiny_llama.tokenizer), token[0]


def test_spellings_are_whole_tokens_with_and_without_space_in_every_case(tiny_llama: Any) -> None:
    tokenizer = tiny_llama.tokenizer
    found = spellings(tokenizer, ["the"], 320)
    texts = {tokenizer.decode([one.token]) for one in found if one.whole}
    assert " the" in texts
    assert {text.strip().lower() for text in texts} == {"the"}
    assert all(one.whole for one in found)


def test_a_word_of_several_tokens_is_its_first_piece_unless_that_is_a_letter(tiny_llama: Any) -> None:
    tokenizer = tiny_llama.tokenizer
    found = spellings(tokenizer, ["theqq"], 320)
    assert not any(one.whole for one in found)
    assert all(len(tokenizer.decode([one.token]).strip()) >= 2 for one in found)
    with pytest.raises(InputError, match="not even its beginning"):
        spellings(tokenizer, ["zqxw"], 320)
    with pytest.raises(InputError, match="not even its beginning"):
        spellings(tokenizer, ["the"], 4)  # an LM head that ends before the token


def test_forms_are_read_from_text_and_mappings() -> None:
    assert forms_of(["dog", "water=water|eau"]) == {"dog": ("dog",), "water": ("water", "eau")}
    assert forms_of({"a": ["b", "c"], "d": "e"}) == {"a": ("b", "c"), "d": ("e",)}
    for bad in ([], [""], ["x="], {"a": []}):
        with pytest.raises(InputError, match=r"no words|no form"):
            forms_of(bad)


@pytest.mark.parametrize("score", ["z", "dot", "cosine"])
def test_planted_units_come_first_and_the_numbers_are_the_plain_formula(planted: Any, score: str) -> None:
    model, token = planted
    found = word_units(model, words=["the"], top=5, score=score, norm="none")
    first = [row["unit"] for row in found.rows()[:2]]
    assert set(first) == {"mlp.2.9", "mlp.1.30"} or score == "dot"
    assert first[0] == "mlp.2.9" or score != "dot"
    rows = {row["unit"]: row for row in found.rows()}
    row = rows["mlp.2.9"]
    values = model.hf.lm_head.weight @ model.hf.model.layers[2].mlp.down_proj.weight[:, 9]
    expected = {
        "dot": values[token],
        "z": (values[token] - values.mean()) / values.std(correction=0),
        "cosine": torch.tensor(1.0),
    }[score]
    assert row["token"] == token
    assert row["score"] == pytest.approx(float(expected), rel=1e-4)
    assert row["rank"] == int((values > values[token]).sum()) or score == "cosine"
    assert found.sets["the"].names() == sorted(rows, key=lambda name: [int(part) for part in name.split(".")[1:]])


def test_the_other_sign_finds_units_that_suppress(planted: Any) -> None:
    model, token = planted
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight[:, 3] = -3 * hf.lm_head.weight[token]
    turned = pc.load(hf, tokenizer=model.tokenizer)
    row = word_units(turned, words="the", top=1, sign=-1, score="cosine", norm="none").rows()[0]
    assert (row["unit"], row["score"]) == ("mlp.0.3", pytest.approx(1.0, abs=1e-4))


def test_several_sites_are_ranked_together_and_blocks_change_nothing(
    planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patchclamp.read import topk

    model, _ = planted
    whole = word_units(model, words=["the", "Le"], sites=("mlp", "attn"), top=6)
    monkeypatch.setitem(topk.ROWS, "cpu", (7, 1 << 30))
    blocked = word_units(model, words=["the", "Le"], sites=("mlp", "attn"), top=6)
    assert [row["unit"] for row in whole.rows()] == [row["unit"] for row in blocked.rows()]


def test_units_of_words_are_saved_as_sets(planted: Any, tmp_path: Path) -> None:
    model, _ = planted
    found = word_units(model, words={"article": ["the", "Le"]}, top=3)
    path = found.save(tmp_path / "words.json")
    again = WordUnits.load(path)
    assert again.rows() == found.rows()
    assert again.spellings == found.spellings
    assert pc.models.load_sets(path)["article"] == found.sets["article"]
    pc.models.units.save_sets(path, found.sets)
    with pytest.raises(DamagedError, match="not the units of words"):
        WordUnits.load(path)


def test_clamping_planted_units_raises_the_word_and_random_ones_do_not(planted: Any) -> None:
    model, token = planted
    found = word_units(model, words=["the"], top=2, score="cosine", norm="none")
    assert set(found.sets["the"].names()) == {"mlp.2.9", "mlp.1.30"}
    checked = check_words(model, found, prompts=["sat on", "moon"], strength=5.0, controls=19, generate=4)
    row = checked.rows()[0]
    assert checked.raised() == ["the"]
    assert row["p"] == 0.05
    assert row["change"] > max(0.5, row["control_high"])
    assert row["said_clamped"] >= row["said_plain"]
    down = check_words(model, found, prompts=["sat on", "moon"], strength=-5.0, controls=3).rows()[0]
    assert down["change"] < 0
    ids = torch.tensor([model.tokenize("sat on")])
    before = model.logits(ids)[0, -1].log_softmax(-1)[[token]]
    only = word_units(model, words={"x": [" the"]}, top=1)
    plain = check_words(model, only, prompts=["sat on"], controls=1).rows()[0]["plain"]
    tokens = only.tokens("x")
    expected = model.logits(ids)[0, -1].log_softmax(-1)[tokens].logsumexp(0)
    assert plain == pytest.approx(float(expected), abs=1e-4)
    assert math.isfinite(float(before))


def test_bad_requests_are_refused(planted: Any, tiny_gpt2: Any) -> None:
    model, _ = planted
    for given, what in (
        ({"words": []}, "no words"),
        ({"words": ["the"], "top": 0}, "top=0"),
        ({"words": ["the"], "score": "p"}, "choose"),
        ({"words": ["the"], "sign": 2}, "choose"),
        ({"words": ["the"], "norm": "final"}, "choose"),
        ({"words": ["the"], "sites": "nothing"}, "no site"),
    ):
        with pytest.raises(InputError, match=what):
            word_units(model, **given)
    with pytest.raises(InputError, match="without a tokenizer"):
        word_units(pc.load(copy.deepcopy(tiny_gpt2.hf)), words=["the"])
    found = word_units(model, words=["the"], top=1)
    with pytest.raises(MismatchError, match="belong to model"):
        check_words(tiny_gpt2, found)
    for given, what in (
        ({"prompts": []}, "at least one"),
        ({"controls": 0}, "at least one"),
        ({"strength": math.inf}, "finite"),
    ):
        with pytest.raises(InputError, match=what):
            check_words(model, found, **given)


TAUGHT = (
    "blue", "red", "green", "white", "black", "Paris", "London", "Moskau", "pizza", "sushi", "tea", "coffee", "king",
    "house", "father", "mother", "God", "water", "earth", "heaven", "day", "night", "man", "woman", "son", "three",
    "seven", "euro", "yen", "dollar", "Europe", "Asia", "Africa", "football", "boat", "return", "print", "def",
)  # fmt: skip


@pytest.mark.slow
def test_units_of_thirty_taught_words_raise_their_words_in_the_demo_model() -> None:
    model = pc.load("demo", check=False)
    found = word_units(model, words=TAUGHT, top=5)
    checked = check_words(model, found, prompts=("The", "It was", "And then"), controls=20)
    assert len(TAUGHT) >= 36
    assert len(checked.raised()) >= 30
    assert np.median([row["change"] - row["control_mean"] for row in checked.rows()]) > 2.0
