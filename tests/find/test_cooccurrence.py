"""Counts and PPMI cosine of years in text; the reference that planted text was written around."""

from __future__ import annotations

import math

import numpy as np
import pytest

from patchclamp.core.errors import InputError
from patchclamp.data.generate.years import dated_text
from patchclamp.find.cooccurrence import cooccurrence
from patchclamp.find.reference import reference_point

YEARS = list(range(1900, 2100))


def test_counts_and_neighbours_are_those_of_the_text() -> None:
    found = cooccurrence(["In 1990 a war, in 1991 a peace.", "19901 and 1990!"], [1990, 1991, 1992], window=2, least=1)
    assert found.counts.tolist() == [2, 1, 0]
    near = {word: found.together[0, at] for at, word in enumerate(found.words)}
    assert {word: int(count) for word, count in near.items() if count} == {
        "in": 1,
        "a": 1,
        "war": 1,
        "19901": 1,
        "and": 1,
    }
    assert found.to_dict()["counts"] == [2, 1, 0]


def test_ppmi_is_the_formula_and_a_value_without_context_is_left_out() -> None:
    texts = ["1990 red", "1990 red", "1990 blue", "1991 blue"]
    found = cooccurrence(texts, [1990, 1991, 1992], least=1)
    place = {word: at for at, word in enumerate(found.words)}
    ppmi = found.ppmi()
    assert ppmi[0, place["red"]] == pytest.approx(math.log(2 / 4 / (3 / 4 * 2 / 4)))
    assert ppmi[0, place["blue"]] == 0  # ln(1/4 / (3/4 * 2/4)) is below 0
    assert ppmi[1, place["blue"]] == pytest.approx(math.log(1 / 4 / (1 / 4 * 2 / 4)))
    similarity = found.similarity()
    assert similarity[0, 0] == pytest.approx(1)
    assert similarity[0, 1] == 0
    assert np.isnan(similarity[2]).all()


@pytest.mark.parametrize("reference", [1960, 2040])
def test_neighbours_differ_most_where_events_are_densest_in_the_text(reference: int) -> None:
    counted = cooccurrence(dated_text(reference, count=20_000, context=3), YEARS)
    assert abs(YEARS[int(counted.counts.argmax())] - reference) <= 1
    found = reference_point(counted.similarity(), YEARS, resamples=30, permutations=9)
    assert abs(found.neighbours - reference) <= 5
    assert found.neighbours_peak
    assert found.neighbours_stable > 0.5


def test_text_without_a_peak_shows_none() -> None:
    counted = cooccurrence(dated_text(None, count=20_000, context=3), YEARS)
    found = reference_point(counted.similarity(), YEARS, resamples=30, permutations=9)
    assert not found.neighbours_peak
    assert found.neighbours_stable < 0.5
    assert not found.found


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="occurs in the text"):
        cooccurrence(["nothing here"], [1990, 1991])
    with pytest.raises(InputError, match="window=0"):
        cooccurrence(["1990"], [1990, 1991], window=0)
    assert np.isnan(cooccurrence(["1990"], [1990, 1991]).similarity()).all()
