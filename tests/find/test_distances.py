"""The three distance laws: printed numbers of the specification, brute force, properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.find.distances import (
    PAPER_OFFSET,
    across,
    edit_distance,
    law_distances,
    log_distance,
    reference_distance,
)

lists = st.lists(st.integers(1, 12_000), min_size=2, max_size=12, unique=True)


def levenshtein(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    if a[0] == b[0]:
        return levenshtein(a[1:], b[1:])
    return 1 + min(levenshtein(a[1:], b), levenshtein(a, b[1:]), levenshtein(a[1:], b[1:]))


def script_distance(i: float, j: float, reference: float) -> float:
    """The authors' script, pair by pair."""
    v, w = (math.log(abs(reference - x) + 1e-9) for x in (i, j))
    if i == j:
        return 0.0
    same = (i < reference and j < reference) or (i > reference and j > reference)
    return abs(v - w) if same else v + w


def test_numbers_of_the_specification() -> None:
    assert log_distance([1525, 2524])[0, 1] == pytest.approx(0.503851, abs=1e-6)
    d = reference_distance([2000, 2020, 2030], 2025, offset=PAPER_OFFSET)
    assert d[0, 1] == pytest.approx(1.609438, abs=1e-6)
    assert d[1, 2] == pytest.approx(3.218876, abs=1e-6)
    assert edit_distance([1999, 2000])[0, 1] == 4


def test_the_papers_reference_distance_explodes_at_the_reference_and_ours_does_not() -> None:
    years = np.arange(1525, 2525)
    paper = reference_distance(years, 2025, offset=PAPER_OFFSET)
    assert paper.min() == pytest.approx(-20.72, abs=0.01)
    assert paper.max() == pytest.approx(12.43, abs=0.01)
    at = int(np.flatnonzero(years == 2025)[0])
    assert np.median(paper[at][np.arange(1000) != at]) == pytest.approx(-15.5, abs=0.6)
    ours = reference_distance(years, 2025)
    assert ours.min() == 0
    pairs = np.triu_indices(1000, 1)
    without = (years[pairs[0]] != 2025) & (years[pairs[1]] != 2025)
    side = across(years, 2025)[pairs][without]
    assert np.corrcoef(paper[pairs][without], side)[0, 1] ** 2 == pytest.approx(0.941, abs=0.002)


@given(lists, st.integers(1, 12_000))
@settings(max_examples=25, deadline=None)
def test_all_laws_are_symmetric_zero_on_the_diagonal_and_not_negative(values: list[int], reference: int) -> None:
    for distance in law_distances(values, reference=reference).values():
        np.testing.assert_array_equal(distance, distance.T)
        assert (np.diag(distance) == 0).all()
        assert (distance >= 0).all()


@given(lists, st.integers(1, 12_000))
@settings(max_examples=25, deadline=None)
def test_the_reference_law_is_the_distance_of_signed_logarithms(values: list[int], reference: int) -> None:
    x = np.array(values, dtype=float)
    u = np.sign(x - reference) * np.log(np.abs(x - reference) + 1)
    np.testing.assert_allclose(reference_distance(values, reference), np.abs(u[:, None] - u[None, :]), atol=1e-12)


@given(lists, st.integers(1, 12_000))
@settings(max_examples=25, deadline=None)
def test_the_small_offset_is_the_authors_script(values: list[int], reference: int) -> None:
    expected = [[script_distance(i, j, reference) for j in values] for i in values]
    np.testing.assert_allclose(reference_distance(values, reference, offset=PAPER_OFFSET), expected, atol=1e-9)


@given(st.lists(st.integers(0, 99_999), min_size=2, max_size=6, unique=True))
@settings(max_examples=20, deadline=None)
def test_edit_distance_is_the_recursive_definition(values: list[int]) -> None:
    expected = [[levenshtein(str(a), str(b)) for b in values] for a in values]
    np.testing.assert_array_equal(edit_distance(values), expected)


def test_given_texts_are_compared_instead_of_decimals() -> None:
    assert edit_distance([1.5, 2.5], texts=["1.5", "2.5"])[0, 1] == 1
    assert edit_distance([-3, 3])[0, 1] == 1


def test_unusable_values_are_refused() -> None:
    with pytest.raises(InputError, match="above 0"):
        log_distance([0, 5])
    with pytest.raises(InputError, match="texts="):
        edit_distance([1.5, 2.0])
    with pytest.raises(InputError, match="offset=1"):
        reference_distance([2020, 2025], 2025, offset=0)
    with pytest.raises(InputError, match="twice"):
        log_distance([3, 3])
    with pytest.raises(InputError, match="at least two"):
        log_distance([3])
    with pytest.raises(InputError, match="finite"):
        reference_distance([1, 2], math.nan)
    with pytest.raises(InputError, match="1 texts"):
        edit_distance([1, 2], texts=["1"])
