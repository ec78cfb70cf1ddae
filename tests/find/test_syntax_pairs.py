"""Word-order pairs and untrained models, the two comparisons of the frequency-tagging study."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.find import tagging

from patchclamp.core.errors import InputError
from patchclamp.find.syntax_pairs import order_pairs
from patchclamp.find.syntax_select import dice_by_chance
from patchclamp.find.syntax_streams import Sentences
from patchclamp.find.untrained import untrained
from patchclamp.measure import pairs
from patchclamp.models.units import UnitSet


def test_a_pair_has_the_same_units_and_no_neighbours_in_order() -> None:
    sentences = Sentences.of(tagging.sentences(20))
    task = order_pairs(sentences, name="x", seed=3)
    assert len(task) == 20
    for item, units in zip(task, sentences.units, strict=True):
        good, bad = item.choices
        assert item.answers == (good,)
        assert good == " ".join(units)
        assert sorted(bad.split()) == sorted(units)
        order = [units.index(word) for word in bad.split()]
        assert not (np.diff(order) == 1).any()
    assert order_pairs(sentences, name="x", seed=3).fingerprint == task.fingerprint
    assert order_pairs(sentences, name="x", seed=4).fingerprint != task.fingerprint


def test_case_and_spaces_tell_nothing() -> None:
    task = order_pairs(Sentences.of(["Alte Hunde sehen Berge"] * 8))
    for item in task:
        good, bad = item.choices
        assert good == "Alte Hunde sehen Berge"
        assert bad[0].isupper()
        assert "Alte" not in bad or bad.startswith("Alte")
        assert sum(letter.isupper() for letter in bad) in (2, 3)  # nouns keep theirs
    chinese = order_pairs(Sentences.of(["小狗看山"] * 8))
    assert all(len(item.choices[1]) == 4 and " " not in item.choices[1] for item in chinese)


def test_sentences_that_read_the_same_backwards_are_left_out() -> None:
    with pytest.raises(InputError, match="no sentence reads differently"):
        order_pairs(Sentences.of(["a a a a"] * 8))


@pytest.mark.slow
def test_a_trained_model_prefers_the_order_that_it_was_taught() -> None:
    task = order_pairs(Sentences.of(tagging.sentences(30, seed=9)))
    assert pairs(tagging.trained_model(), task, quiet=True).value > 0.9


def test_an_untrained_model_has_the_same_shape_other_weights_and_no_side_effect(tiny_llama: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = (untrained(tiny_llama, seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected)
    assert first.layouts == tiny_llama.layouts
    assert first.fingerprint == again.fingerprint
    assert len({first.fingerprint, other.fingerprint, tiny_llama.fingerprint}) == 3
    assert "untrained" in first.name
    assert not any(weight.requires_grad for weight in first.hf.parameters())


def test_expected_overlap_is_that_of_random_sets(tiny_gpt2: Any) -> None:
    rng = np.random.default_rng(0)
    left = UnitSet.at(tiny_gpt2, "mlp", np.arange(40))
    right = UnitSet.at(tiny_gpt2, "mlp", np.arange(10, 40))
    expected = dice_by_chance(left, right)
    assert expected[0] == pytest.approx(2 * 40 * 30 / (128 * 70))
    assert expected[1:].tolist() == [0, 0]
    drawn = []
    for _ in range(300):
        a, b = (set(rng.permutation(128)[:n].tolist()) for n in (40, 30))
        drawn.append(2 * len(a & b) / 70)
    assert np.mean(drawn) == pytest.approx(expected[0], abs=0.02)
