"""Bootstrap, sign-flip test and Holm against formulas, brute force and a textbook example."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.measure.bootstrap import percentile_interval, resampled_sums
from patchclamp.measure.holm import holm
from patchclamp.measure.permutation import rank_p, sign_flip

FEW = settings(max_examples=25, deadline=None)
numbers = st.floats(-100, 100, allow_nan=False, width=32)


@FEW
@given(st.lists(numbers, min_size=2, max_size=9))
def test_sign_flip_is_the_share_of_all_sign_patterns_that_reach_the_sum(values: list[float]) -> None:
    reached = abs(math.fsum(values))
    slack = 1e-9 * math.fsum(map(abs, values))
    patterns = itertools.product((1, -1), repeat=len(values))
    sums = [abs(math.fsum(s * v for s, v in zip(signs, values, strict=True))) for signs in patterns]
    expected = sum(total >= reached - slack for total in sums) / len(sums)
    assert sign_flip(values) == pytest.approx(expected if any(values) else 1.0)


def test_monte_carlo_sign_flip_is_near_the_exact_one() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, 12)
    exact = sign_flip(values, permutations=9999)  # 4096 patterns fit
    drawn = sign_flip(values, permutations=4000)  # they do not
    assert drawn == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def test_a_drawn_p_is_never_zero_and_a_seed_fixes_it() -> None:
    values = np.ones(60)
    assert sign_flip(values, permutations=99) == 1 / 100
    noisy = np.random.default_rng(1).normal(size=40)
    assert sign_flip(noisy, seed=3) == sign_flip(noisy, seed=3)


def test_sign_flip_is_uniform_under_the_null() -> None:
    rng = np.random.default_rng(2)
    found = [sign_flip(rng.normal(size=10)) for _ in range(400)]
    assert np.mean(np.array(found) <= 0.05) == pytest.approx(0.05, abs=0.035)  # 3 standard errors


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0, 0.0]])
def test_differences_that_say_nothing_have_p_one(values: list[float]) -> None:
    assert sign_flip(values) == 1.0


def test_differences_that_are_not_finite_are_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        sign_flip([1.0, float("nan")])


def test_rank_counts_controls_at_least_as_far_from_zero() -> None:
    assert rank_p(2.0, [1.0, -3.0, 2.0, 0.5]) == 3 / 5
    assert rank_p(-9.0, [1.0, 2.0, 3.0]) == 1 / 4
    assert rank_p(1.0, []) is None


def test_holm_equals_the_worked_example() -> None:
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, made non-decreasing.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, None, 0.6]) == [pytest.approx(1.0), None, pytest.approx(1.0)]
    assert holm([]) == []
    with pytest.raises(InputError, match="between 0 and 1"):
        holm([1.5])


@FEW
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_the_step_down_procedure_rejects(values: list[float]) -> None:
    level, m = 0.05, len(values)
    rejected: set[int] = set()
    for rank, number in enumerate(sorted(range(m), key=lambda i: values[i])):
        if values[number] * (m - rank) > level:
            break
        rejected.add(number)
    adjusted = holm(values)
    assert {i for i, p in enumerate(adjusted) if p is not None and p <= level} == rejected


def test_resampled_sums_are_sums_of_documents_drawn_with_replacement() -> None:
    columns = np.stack([2.0 ** np.arange(5), np.ones(5)], axis=1)
    sums = resampled_sums(columns, resamples=200, seed=1)
    assert sums.shape == (200, 2)
    assert (sums[:, 1] == 5).all()  # every resample holds as many documents as there are
    assert (resampled_sums(np.ones((5, 1)), resamples=7) == 5).all()
    np.testing.assert_array_equal(sums, resampled_sums(columns, resamples=200, seed=1))


def test_columns_are_drawn_together_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=(11, 1))
    whole = resampled_sums(np.hstack([values, 3 * values]), resamples=50, seed=4)
    np.testing.assert_allclose(whole[:, 1], 3 * whole[:, 0])
    monkeypatch.setattr("patchclamp.measure.bootstrap.CELLS", 30)
    np.testing.assert_allclose(resampled_sums(values, resamples=50, seed=4), whole[:, :1])


def test_bootstrap_of_a_mean_has_the_standard_error_of_the_formula() -> None:
    values = np.random.default_rng(5).normal(size=200)
    means = resampled_sums(values[:, None], resamples=4000, seed=0)[:, 0] / 200
    assert means.std() == pytest.approx(values.std() / math.sqrt(200), rel=0.05)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    rng, covered = np.random.default_rng(6), 0
    for trial in range(200):
        sample = rng.normal(1.0, 2.0, 40)
        low, high = percentile_interval(resampled_sums(sample[:, None], resamples=300, seed=trial)[:, 0] / 40)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_bad_requests_to_the_bootstrap_are_refused() -> None:
    with pytest.raises(InputError, match="at least one document"):
        resampled_sums(np.zeros((0, 1)))
    with pytest.raises(InputError, match="level"):
        percentile_interval([1.0, 2.0], level=95)
    assert np.isnan(percentile_interval([float("nan")])).all()
