"""Similarity judgements: expected ratings against brute force, parsing, cosines, failures."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.data.generate.years import pair_prompts
from patchclamp.measure.judgements import (
    RATINGS,
    cosine_judgements,
    cosines,
    expected_ratings,
    judge,
    parse_rating,
)

PROMPTS = ["1 and 2: ", "the moon and the cat: ", "x"]


def brute_force(model: Any, prompt: str, ratings: tuple[str, ...]) -> tuple[float, float]:
    """Expected rating and mass, one forward pass per rating, one token at a time."""
    log_p = []
    for rating in ratings:
        head, whole = model.tokenize(prompt), model.tokenize(prompt + rating)
        assert whole[: len(head)] == head
        logits = torch.log_softmax(model.logits(torch.tensor([whole])).double(), -1)[0]
        log_p.append(sum(float(logits[at - 1, whole[at]]) for at in range(len(head), len(whole))))
    p = np.exp(log_p)
    return float(p @ [float(rating) for rating in ratings] / p.sum()), float(p.sum())


@pytest.mark.parametrize("ratings", [RATINGS, ("0", "1"), ("0.0", "0.55", "1.0", "17")])
def test_expected_ratings_are_those_of_one_pass_per_rating(tiny_llama: Any, ratings: tuple[str, ...]) -> None:
    found, mass = expected_ratings(tiny_llama, PROMPTS, ratings=ratings)
    for at, prompt in enumerate(PROMPTS):
        assert (found[at], mass[at]) == pytest.approx(brute_force(tiny_llama, prompt, ratings), rel=1e-4)


def test_batch_size_does_not_change_ratings(tiny_gpt2: Any) -> None:
    one, _ = expected_ratings(tiny_gpt2, PROMPTS, batch_tokens=8)
    other, _ = expected_ratings(tiny_gpt2, PROMPTS, batch_tokens=4096)
    np.testing.assert_allclose(one, other, rtol=1e-5)


class _Short:
    """A tiny model that can take long prompts."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return 4096 if name == "max_length" else getattr(self._model, name)


def test_the_matrix_holds_every_ordered_pair(tiny_llama: Any) -> None:
    model = _Short(tiny_llama)
    found = judge(model, [3, 4, 5], quiet=True)
    prompts = pair_prompts([3, 4, 5])
    expected, _ = expected_ratings(model, [prompt.text for prompt in prompts])
    np.testing.assert_allclose(found.similarity.ravel(), expected)
    assert found.how == "rating"
    assert "expected rating" in found.source
    assert 0 < found.rating_mass < 1
    assert found.order_effect == pytest.approx(
        np.abs(found.similarity - found.similarity.T)[np.triu_indices(3, 1)].mean()
    )
    upper = judge(model, [3, 4, 5], order="upper", quiet=True)
    assert np.isnan(upper.similarity[2, 0])
    np.testing.assert_allclose(upper.similarity[0], found.similarity[0], rtol=1e-5)
    assert upper.to_dict()["similarity"][2][0] is None
    assert math.isnan(upper.order_effect)


def test_generated_ratings_are_parsed_and_failures_counted(tiny_llama: Any) -> None:
    answers = iter(["0.8", "Rating 0.25.", "none", "2", "1", ".5"] + ["0.1"] * 3)
    model = SimpleNamespace(
        name="fake", identity={"name": "fake"}, generate=lambda prompts, **how: [next(answers) for _ in prompts]
    )
    found = judge(model, [1, 2, 3], how="generated", max_failures=0.5, quiet=True)
    np.testing.assert_array_equal(found.similarity[0], [0.8, 0.25, np.nan])
    np.testing.assert_array_equal(found.similarity[1], [1.0, 1.0, 0.5])
    assert found.failures == pytest.approx(1 / 9)
    silent = SimpleNamespace(name="fake", identity={}, generate=lambda prompts, **how: ["hm"] * len(prompts))
    with pytest.raises(InputError, match="how='rating'"):
        judge(silent, [1, 2], how="generated", quiet=True)


@pytest.mark.parametrize(
    ("text", "rating"), [("0.7", 0.7), ("7 of 10: 0.7", 0.7), ("1", 1), ("12", 1), ("I say .3", 0.3), ("2.5", 1.0)]
)
def test_ratings_are_parsed_decimals_first(text: str, rating: float) -> None:
    assert parse_rating(text) == rating


def test_no_number_is_no_rating() -> None:
    assert math.isnan(parse_rating("very similar"))


def test_cosines_of_hidden_states_are_those_of_the_recorded_vectors(tiny_llama: Any) -> None:
    texts = ["the cat", "the moon", "two and two"]
    recording = pc.record(tiny_llama, pc.corpus(year=texts), sites=("resid",), statistics=("pooled",), quiet=True)
    vectors = np.asarray(recording.get("pooled", "year", "resid").last, dtype=float)
    for layer, span in ((0, slice(0, 32)), (-1, slice(64, 96))):
        found = cosines(recording, "year", [1, 2, 3], layer=layer)
        v = vectors[:, span]
        expected = v @ v.T / np.outer(np.linalg.norm(v, axis=1), np.linalg.norm(v, axis=1))
        np.testing.assert_allclose(found.similarity, expected, atol=1e-9)
    assert found.source == "cosine of resid.2 (last token)"
    centred = cosines(recording, "year", [1, 2, 3], centred=True)
    v = vectors[:, 64:] - vectors[:, 64:].mean(0)
    assert centred.similarity[0, 1] == pytest.approx(v[0] @ v[1] / np.linalg.norm(v[0]) / np.linalg.norm(v[1]))
    with pytest.raises(InputError, match="3 documents"):
        cosines(recording, "year", [1, 2])
    with pytest.raises(InputError, match="last, mean, max"):
        cosines(recording, "year", [1, 2, 3], pool="first")


def test_a_zero_vector_is_similar_to_nothing() -> None:
    found = cosine_judgements([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]], [1, 2, 3])
    assert found.similarity[0, 2] == 1
    assert np.isnan(found.similarity[1]).all()
    assert found.failures == pytest.approx(5 / 9)
    with pytest.raises(InputError, match="one finite vector"):
        cosine_judgements([[1.0]], [1, 2])


def test_unusable_ratings_and_prompts_are_refused(tiny_llama: Any) -> None:
    for ratings, said in [(("a", "1"), "a number"), (("0", "0.5"), "begins another"), (("1",), "two different"),
                          (("1", "1"), "two different")]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            expected_ratings(tiny_llama, PROMPTS, ratings=ratings)
    with pytest.raises(InputError, match="takes 64"):
        judge(tiny_llama, [1, 2], quiet=True)
    with pytest.raises(InputError, match="rating, generated"):
        judge(tiny_llama, [1, 2], how="guess")
    found, mass = expected_ratings(tiny_llama, [])
    assert (len(found), len(mass)) == (0, 0)
