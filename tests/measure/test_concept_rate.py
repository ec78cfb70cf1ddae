"""Sampled continuations: the nucleus by brute force, independence of the batch, paired random numbers, rates and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.intervene import clamp
from patchclamp.measure.concept_rate import AVERAGE, ONCE, concept_rate
from patchclamp.measure.continuations import prompt_ids
from patchclamp.measure.sampling import picked, sampled

PROMPTS = ["The cat", "Two and two make", "Le chat est assis sur", "The moon and the"]


def nucleus(logits: np.ndarray, top_p: float, temperature: float) -> np.ndarray:
    """Probabilities of the nucleus by definition: the smallest set of likeliest tokens that reaches top_p, rescaled."""
    shares = np.exp(logits / temperature - (logits / temperature).max())
    shares /= shares.sum()
    order = np.argsort(-shares, kind="stable")
    count = next((n for n in range(1, len(order)) if shares[order[:n]].sum() >= top_p), len(order))
    kept = np.zeros_like(shares)
    kept[order[:count]] = shares[order[:count]]
    return kept / kept.sum()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.999), st.floats(0.2, 2))
def test_tokens_come_with_the_probabilities_of_the_nucleus(seed: int, top_p: float, temperature: float) -> None:
    logits = np.random.default_rng(seed).normal(size=6) * 2
    numbers = torch.linspace(0, 1, 4001)[:-1].double()
    wide = torch.from_numpy(logits).float().expand(len(numbers), -1)
    found = np.bincount(picked(wide, numbers, top_p, temperature).numpy(), minlength=6) / len(numbers)
    np.testing.assert_allclose(found, nucleus(logits, top_p, temperature), atol=2e-3)


def test_temperature_zero_is_greedy_and_equal_logits_go_by_id() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0], [1.0, 0.0, 2.0]])
    assert picked(logits, torch.tensor([0.9, 0.1]), 0.95, 0.0).tolist() == [1, 2]
    assert picked(logits[:1], torch.tensor([0.0]), 0.1, 1.0).tolist() == [1]


def test_samples_do_not_depend_on_batch_or_company(tiny_llama: Any) -> None:
    rows = prompt_ids(tiny_llama.tokenizer, PROMPTS)
    how: dict[str, Any] = {"samples": 3, "max_new_tokens": 6, "seed": 5}
    whole = sampled(tiny_llama, rows, **how)
    assert sampled(tiny_llama, rows, batch_tokens=1, **how) == whole
    assert sampled(tiny_llama, rows[::-1], **how) == whole[::-1]
    assert sampled(tiny_llama, rows[2:3], **how) == whole[2:3]
    assert sampled(tiny_llama, rows, **{**how, "seed": 6}) != whole
    twice = sampled(tiny_llama, [rows[0], rows[0]], **how)
    assert twice[0] == whole[0]
    assert twice[1] != twice[0]  # another stream, or the two would count as one
    assert len({tuple(ids) for ids in whole[0]}) > 1


def test_greedy_samples_are_those_of_generate(tiny_gpt2: Any) -> None:
    rows = prompt_ids(tiny_gpt2.tokenizer, PROMPTS)
    found = sampled(tiny_gpt2, rows, samples=1, max_new_tokens=8, temperature=0)
    texts = [tiny_gpt2.tokenizer.decode(ids, skip_special_tokens=True) for (ids,) in found]
    assert texts == tiny_gpt2.generate(PROMPTS, max_new_tokens=8)


def test_the_first_token_has_the_models_distribution(tiny_llama: Any) -> None:
    rows = prompt_ids(tiny_llama.tokenizer, PROMPTS[:1])
    found = sampled(tiny_llama, rows, samples=600, max_new_tokens=1, top_p=1.0)[0]
    counts = np.bincount([ids[0] for ids in found if ids], minlength=320) / 600
    wanted = torch.softmax(tiny_llama.logits(torch.tensor([rows[0]]))[0, -1].double(), -1).numpy()
    wanted[2] = 0  # the end of a text is left out
    top = np.argsort(-wanted)[:5]
    assert np.abs(counts[top] - wanted[top]).max() < 4 * np.sqrt(wanted[top].max() / 600)


def test_rates_are_shares_of_flagged_samples(tiny_llama: Any) -> None:
    task = Task.of([{"prompt": text, "answer": "x", "labels": {"n": str(n)}} for n, text in enumerate(PROMPTS)])
    found = concept_rate(tiny_llama, task, lambda text: "a" in text, samples=8, max_new_tokens=5, quiet=True)
    texts = [
        [tiny_llama.tokenizer.decode(ids, skip_special_tokens=True) for ids in several]
        for several in sampled(
            tiny_llama, prompt_ids(tiny_llama.tokenizer, PROMPTS), samples=8, max_new_tokens=5, seed=0
        )
    ]
    shares = [np.mean(["a" in text for text in several]) for several in texts]
    assert found[AVERAGE].totals.tolist() == pytest.approx(shares)
    assert found[AVERAGE].value == pytest.approx(np.mean(shares))
    assert found[ONCE].totals.tolist() == [float(share > 0) for share in shares]
    assert found[AVERAGE].n == 4
    assert set(found[AVERAGE].by("n")) == {"0", "1", "2", "3"}
    assert found[AVERAGE].items[0]["written"][0]["text"] in texts[0]
    low, high = found[AVERAGE].interval()
    assert low <= found[AVERAGE].value <= high


def test_scores_are_averaged_without_a_threshold_and_texts_end_at_stops(tiny_llama: Any) -> None:
    how: dict[str, Any] = {"samples": 4, "max_new_tokens": 5, "quiet": True}
    found = concept_rate(tiny_llama, PROMPTS, lambda text: 0.25, threshold=None, **how)
    assert found[AVERAGE].value == 0.25
    assert concept_rate(tiny_llama, PROMPTS, lambda text: 0.25, **how)[AVERAGE].value == 0
    long = concept_rate(tiny_llama, PROMPTS, lambda text: bool(text), **how)
    short = concept_rate(tiny_llama, PROMPTS, lambda text: "e" in text, stop=("e",), **how)
    assert long[AVERAGE].value > 0
    assert short[ONCE].value == 0


def test_the_same_numbers_are_used_under_an_intervention(tiny_llama: Any) -> None:
    how: dict[str, Any] = {"samples": 4, "max_new_tokens": 5, "quiet": True}
    plain = concept_rate(tiny_llama, PROMPTS, lambda text: "a" in text, **how)
    with clamp(tiny_llama, "mlp.2.1", scale=1.0):
        same = concept_rate(tiny_llama, PROMPTS, lambda text: "a" in text, **how)
    assert (same[AVERAGE] - plain[AVERAGE]).value == 0
    assert np.array_equal(same[AVERAGE].totals, plain[AVERAGE].totals)


def test_bad_input_is_one_clear_error(tiny_llama: Any) -> None:
    for more, message in (
        ({"samples": 0}, "samples=0"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"threshold": 2.0}, "threshold=2.0"),
        ({"max_new_tokens": 64}, "64 new ones"),
    ):
        with pytest.raises(InputError, match=message):
            concept_rate(tiny_llama, PROMPTS, bool, quiet=True, **more)
    with pytest.raises(InputError, match="a list of texts"):
        concept_rate(tiny_llama, "The cat", bool)
