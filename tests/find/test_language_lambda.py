"""The lambda search: bisection keeps a working value, and the exact first failure agrees with brute force."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.find.language_lambda import first_failure, search_lambda
from patchclamp.find.ranking import discoveries, highest, lowest


def fails(evenness: Any, top: Any, general: Any, r: int, weight: float) -> bool:
    score = evenness - weight * top
    order = sorted(range(len(score)), key=lambda at: (score[at], at))
    return any(general[at] for at in order[:r])


def case(seed: int, total: int = 30) -> tuple[Any, Any, Any, int]:
    rng = np.random.default_rng(seed)
    top, general = rng.random(total), rng.random(total) < 0.3
    evenness = np.where(general, 0.6 + 0.4 * rng.random(total), rng.random(total))
    return evenness, top, general, int(rng.integers(1, total // 2))


@given(st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_first_failure_is_where_brute_force_first_fails(seed: int) -> None:
    evenness, top, general, r = case(seed)
    # the ranking can only change where two lines cross; between crossings one test decides
    weights = sorted(
        {
            (evenness[a] - evenness[b]) / (top[a] - top[b])
            for a in range(len(top))
            for b in range(a)
            if (evenness[a] - evenness[b]) / (top[a] - top[b]) > 0
        }
    )
    edges = [0.0, *weights, weights[-1] + 1]
    expected = None
    if fails(evenness, top, general, r, 0.0):
        expected = 0.0
    else:
        for start, stop in itertools.pairwise(edges):
            if fails(evenness, top, general, r, (start + stop) / 2):
                expected = start
                break
    found = first_failure(evenness, top, general, r)
    assert found == (None if expected is None else pytest.approx(expected))


@given(st.integers(0, 100_000))
@settings(max_examples=25, deadline=None)
def test_bisection_keeps_a_value_that_works_with_a_failure_close_above(seed: int) -> None:
    evenness, top, general, r = case(seed)
    found = search_lambda(evenness, top, general, r, norm=0.5)
    assert found.works == (not fails(evenness, top, general, r, found.lam / 0.5))
    if found.works and found.failure_above:
        above = min(lam for lam, n, _ in found.tried if n and lam > found.lam)
        assert above - found.lam <= found.eps
        if found.monotone:
            assert found.lam <= found.first_failure * (1 + 1e-9)
            assert found.first_failure <= above * (1 + 1e-9)
    if found.works and not found.failure_above:
        assert found.lam == 0.2


def test_the_upper_bound_grows_until_it_fails() -> None:
    evenness, top = np.array([0.0, 0.2, 1.0]), np.array([0.1, 0.2, 1.0])
    found = search_lambda(evenness, top, np.array([False, False, True]), 2, norm=1.0)
    # unit 2 passes unit 1 where 1 - w = 0.2 - 0.2 w
    assert found.first_failure == pytest.approx(1.0)
    assert found.failure_above
    assert found.success_below
    assert 1.0 - 1e-3 <= found.lam <= 1.0


def test_where_nothing_fails_lambda_is_the_smallest_that_idles_no_unit() -> None:
    # the even but active units 2 and 3 pass the uneven, barely alive 0 and 1 where 0.5 - 0.8 w = 0.1 - 0.01 w
    evenness, top = np.array([0.1, 0.1, 0.5, 0.5]), np.array([0.01, 0.01, 0.8, 0.8])
    idle, general = np.array([True, True, False, False]), np.zeros(4, dtype=bool)
    found = search_lambda(evenness, top, general, 2, norm=1.0, idle=idle)
    crossing = 0.4 / 0.79
    assert found.rule == "smallest"
    assert crossing <= found.lam <= crossing + found.eps
    assert found.first_failure is None
    three = search_lambda(evenness, top, general, 3, norm=1.0, idle=idle)  # one of three has to idle
    assert crossing <= three.lam <= crossing + three.eps
    assert search_lambda(evenness, top, general, 2, norm=1.0).lam == 0.2


def test_without_a_general_unit_nothing_fails() -> None:
    found = search_lambda(np.zeros(5), np.ones(5), np.zeros(5, dtype=bool), 2, norm=0.5)
    assert (found.lam, found.works, found.failure_above, found.first_failure) == (0.2, True, False, None)


def test_no_room_for_others_is_reported_not_hidden() -> None:
    found = search_lambda(np.array([0.5, 1.0]), np.ones(2), np.array([False, True]), 2, norm=0.5)
    assert (found.lam, found.works, found.success_below, found.failure_above) == (0.0, False, False, True)
    assert found.first_failure == 0.0


def test_a_failure_that_passes_again_is_found_by_the_exact_check() -> None:
    # the general unit overtakes the first rival at w = 0.08, the second rival overtakes it at w = 0.1
    evenness, top = np.array([0.50, 0.46, 0.55]), np.array([0.5, 0.0, 1.0])
    general = np.array([True, False, False])
    assert first_failure(evenness, top, general, 1) == pytest.approx(0.08)
    found = search_lambda(evenness, top, general, 1, norm=1.0)
    assert found.lam == 0.2
    assert not found.monotone


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(0, 40))
@settings(max_examples=25, deadline=None)
def test_lowest_and_highest_sort_by_value_then_position(values: list[int], k: int) -> None:
    score = np.array(values, dtype=float)
    assert lowest(score, k).tolist() == sorted(sorted(range(len(values)), key=lambda at: (values[at], at))[:k])
    assert highest(score, k).tolist() == sorted(sorted(range(len(values)), key=lambda at: (-values[at], at))[:k])


def test_discoveries_follow_benjamini_and_hochberg() -> None:
    p = np.array([[0.01, 0.04], [0.03, 0.5]])
    # bounds at rate 0.05: 0.0125, 0.025, 0.0375, 0.05; only 0.01 passes its own. At 0.06: 0.015, 0.03, 0.045, 0.06
    assert discoveries(p, 0.05).tolist() == [[True, False], [False, False]]
    assert discoveries(p, 0.06).tolist() == [[True, True], [True, False]]
    assert not discoveries(np.ones((2, 2)), 0.5).any()
