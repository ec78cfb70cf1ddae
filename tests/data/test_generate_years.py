"""Stimuli, judgement prompts and dated text."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.data.generate.years import CUES, dated_text, pair_prompts, parse_values, stimuli


@pytest.mark.parametrize("language", CUES)
def test_stimuli_are_paired_and_end_with_their_value(language: str) -> None:
    found = stimuli([1800, 1900, 7], language=language)
    assert list(found) == ["year", "number"]
    for texts in found.values():
        assert [re.findall(r"\d+$", text) for text in texts] == [["1800"], ["1900"], ["7"]]
    assert all(a != b for a, b in zip(found["year"], found["number"], strict=True))


def test_the_english_wording_is_the_papers() -> None:
    assert stimuli([1525])["year"] == ["Year: 1525"]
    assert stimuli([1525])["number"] == ["Number: 1525"]
    prompt = pair_prompts([1525, 2524])[1].text
    assert prompt.endswith("\nYear_1: 1525;\nYear_2: 2524;\nRating: ")
    assert "from 0 (completely dissimilar) to 1 (completely similar)" in prompt


@pytest.mark.parametrize("language", CUES)
@pytest.mark.parametrize("condition", ["year", "number"])
def test_every_pair_is_asked_in_the_order_wanted(language: str, condition: str) -> None:
    values = [1801, 1902, 2003]
    both = pair_prompts(values, condition=condition, language=language)
    upper = pair_prompts(values, condition=condition, language=language, order="upper")
    assert [(p.first, p.second) for p in both] == list(itertools.product(range(3), repeat=2))
    assert [(p.first, p.second) for p in upper] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
    for prompt in both:
        assert re.findall(r"\d{4}", prompt.text) == [str(values[prompt.first]), str(values[prompt.second])]
        assert "{" not in prompt.text


@given(st.integers(0, 3000), st.integers(0, 50), st.integers(1, 9))
@settings(max_examples=25, deadline=None)
def test_spans_are_ranges(first: int, more: int, step: int) -> None:
    assert parse_values(f"{first}-{first + more}:{step}") == list(range(first, first + more + 1, step))


def test_spans_and_lists_mix() -> None:
    assert parse_values("5, 1-3,-7") == [5, 1, 2, 3, -7]


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,1", "1-3,2", "1-9:0", "1.5"])
def test_other_spans_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_values(text)


def test_event_density_falls_with_the_distance_from_the_reference() -> None:
    counts = Counter(int(text.split()[1]) for text in dated_text(1990, first=1900, last=2000, count=20_000))
    weights = {year: 1 / (1 + abs(year - 1990)) for year in range(1900, 2001)}
    for year in (1950, 1980, 1989, 1990, 2000):
        expected = 20_000 * weights[year] / sum(weights.values())
        assert abs(counts[year] - expected) < 5 * np.sqrt(expected)


def test_dated_text_is_seeded_and_uniform_without_a_reference() -> None:
    assert list(dated_text(1950, count=20)) == list(dated_text(1950, count=20))
    assert list(dated_text(1950, count=20)) != list(dated_text(1950, count=20, seed=1))
    counts = Counter(text.split()[1] for text in dated_text(None, first=1900, last=1909, count=5000))
    assert min(counts.values()) > 400


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="no values"):
        stimuli([])
    with pytest.raises(InputError, match="conditions"):
        stimuli([1], conditions=["decade"])
    with pytest.raises(InputError, match="languages"):
        stimuli([1], language="it")
    with pytest.raises(InputError, match="both, upper"):
        pair_prompts([1, 2], order="lower")
    with pytest.raises(InputError, match="conditions"):
        pair_prompts([1, 2], condition="day")
    with pytest.raises(InputError, match="ascend"):
        list(dated_text(1950, first=2000, last=1900))
