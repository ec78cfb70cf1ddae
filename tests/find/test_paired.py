"""Paired statistics against plain formulas, and p-values where they underflow."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from patchclamp.core.errors import InputError
from patchclamp.find.paired import Paired, compare_paired, log_benjamini_hochberg, log_two_sided_p


def numeric_log_p(t: float, df: int) -> float:
    """log of 2 * integral of the t density from t, summed in logarithms over ln x."""
    u = np.linspace(math.log(t), math.log(t) + 60 / math.sqrt(df) + 40 / df, 200_001)
    x = np.exp(u)
    log_density = (
        special.gammaln((df + 1) / 2) - special.gammaln(df / 2) - 0.5 * math.log(df * math.pi)
        - (df + 1) / 2 * np.log1p(x * x / df)
    )  # fmt: skip
    return float(math.log(2) + special.logsumexp(log_density + u) + math.log(u[1] - u[0]))


def test_effect_sizes_are_the_formulas_one_unit_at_a_time() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 2, (30, 7)).astype(np.float32), rng.normal(0, 1, (30, 7)).astype(np.float32)
    found = compare_paired(a, b)
    for unit in range(7):
        x, y = a[:, unit].astype(float), b[:, unit].astype(float)
        gap = x - y
        assert found.d[unit] == pytest.approx((x.mean() - y.mean()) / math.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2))
        assert found.d_z[unit] == pytest.approx(gap.mean() / gap.std(ddof=1))
        test = stats.ttest_rel(x, y)
        assert found.t[unit] == pytest.approx(test.statistic)
        assert math.exp(found.log_p[unit]) == pytest.approx(test.pvalue)
        assert found.consistency[unit] == (x > y).mean()
        assert found.reverse[unit] == (x < y).mean()


@pytest.mark.parametrize(("t", "df"), [(3.0, 9), (56.10, 999), (100.0, 999), (400.0, 999), (60.0, 50_000)])
def test_log_p_is_the_tail_of_the_density_even_where_p_underflows(t: float, df: int) -> None:
    assert float(log_two_sided_p(np.array([t]), df)[0]) == pytest.approx(numeric_log_p(t, df), rel=1e-4, abs=2e-3)


def test_p_underflows_beyond_t_56_with_1000_pairs_but_its_logarithm_stays_ordered() -> None:
    assert 2 * stats.t.sf(56.0, 999) > 0
    assert 2 * stats.t.sf(57.5, 999) == 0  # between 56.10 and 56.11, where p reaches the smallest float64
    found = log_two_sided_p(np.array([56.0, 56.2, 100.0, 1e4, 1e8]), 999)
    assert np.isfinite(found).all()
    assert (np.diff(found) < 0).all()


def test_log_p_of_one_and_two_degrees_of_freedom_is_the_closed_form_of_its_tail() -> None:
    t = np.array([1e155, 1e200, 1e290])
    assert log_two_sided_p(t, 1) == pytest.approx(np.log(2 / math.pi) - np.log(t))  # p -> 2 / (pi t)
    assert log_two_sided_p(t, 2) == pytest.approx(-2 * np.log(t))  # p = 1 - t / sqrt(2 + t^2) -> 1 / t^2


@given(st.floats(0, 40), st.integers(2, 2000))
@settings(max_examples=25, deadline=None)
def test_log_p_agrees_with_scipy_where_scipy_can(t: float, df: int) -> None:
    expected = 2 * stats.t.sf(t, df)
    assert math.exp(log_two_sided_p(np.array([t]), df)[0]) == pytest.approx(expected, rel=1e-6, abs=1e-290)


def test_benjamini_hochberg_of_the_papers_example() -> None:
    assert np.exp(log_benjamini_hochberg(np.log([0.01, 0.02, 0.03, 0.04]))) == pytest.approx([0.04] * 4)
    assert np.exp(log_benjamini_hochberg(np.log([0.3]))) == pytest.approx([0.3])
    assert len(log_benjamini_hochberg(np.zeros(0))) == 0


@given(st.lists(st.floats(1e-12, 1), min_size=1, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=25, deadline=None)
def test_benjamini_hochberg_is_scipys_monotone_and_blind_to_order(p: list[float], rng: object) -> None:
    log_p = np.log(np.array(p))
    found = log_benjamini_hochberg(log_p)
    assert np.exp(found) == pytest.approx(stats.false_discovery_control(p))
    order = np.random.default_rng(len(p)).permutation(len(p))
    assert log_benjamini_hochberg(log_p[order]) == pytest.approx(found[order])
    assert (np.diff(found[np.argsort(log_p)]) >= -1e-12).all()


def test_units_are_compared_alike_in_one_block_and_in_parts() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(10, 9)), rng.normal(size=(10, 9))
    whole, parts = (
        compare_paired(a, b),
        Paired.joined([compare_paired(a[:, :4], b[:, :4]), compare_paired(a[:, 4:], b[:, 4:])]),
    )
    for name in Paired.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_constant_units_have_finite_numbers() -> None:
    a, b = np.ones((20, 3)), np.ones((20, 3))
    b[:, 1], a[:, 2], b[:, 2] = 0.0, 0.0, 0.0
    found = compare_paired(a, b)
    assert (found.d[0], found.d_z[0], found.t[0], found.log_p[0]) == (0, 0, 0, 0)
    assert np.isfinite(found.d[1])
    assert found.d[1] > 1e6
    assert found.log_p[1] < -200
    assert found.consistency.tolist() == [0, 1, 0]
    assert found.log_p[2] == 0


def test_unusable_arrays_are_refused() -> None:
    with pytest.raises(InputError, match="same stimuli"):
        compare_paired(np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(InputError, match="at least two"):
        compare_paired(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(InputError, match="not finite"):
        compare_paired(np.full((3, 2), np.nan), np.ones((3, 2)))
    with pytest.raises(InputError, match="df=0"):
        log_two_sided_p(np.ones(2), 0)
