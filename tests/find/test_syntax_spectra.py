"""Amplitudes and chance: closed forms, white noise, and agreement of the exact shortcut with the plain FFT."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from patchclamp.core.errors import InputError
from patchclamp.find.syntax_select import absolute, disjoint, relative, standardised, two_periodic
from patchclamp.find.syntax_spectra import (
    Rate,
    amplitudes,
    asymptotic_null,
    basis,
    paired_test,
    permutation_null,
    profile_amplitudes,
    sign_flip_test,
    spectrum,
)
from patchclamp.find.syntax_streams import control_orders

T = 200
RATES = (Rate(4, 4), Rate(2, 4))
WAVES = np.stack([basis(rate, T) for rate in RATES])


@pytest.mark.parametrize(
    ("profile", "si", "pi"),
    [
        ((0, 0, 0, 1), 50, 50),  # sentence-final unit: a burst has a harmonic
        ((0, 1, 0, 1), 0, 100),  # phrase-final unit
        ((1, 1, 0, 0), 70.7107, 0),  # first half
        ((1, 0, -1, 0), 100, 0),  # cos(2 pi t / 4)
        ((1, -1, 1, -1), 0, 200),  # cos(pi t): the highest bin counts double
        ((3, 3, 3, 3), 0, 0),
    ],
)
def test_closed_forms(profile: tuple[float, ...], si: float, pi: float) -> None:
    series = np.tile(np.array(profile, dtype=float), T // 4)[:, None]
    np.testing.assert_allclose(amplitudes(series, RATES)[:, 0], [si, pi], atol=1e-3)
    shortcut = profile_amplitudes(np.array(profile, dtype=float)[:, None], [1, 2], T)
    np.testing.assert_allclose(shortcut[:, 0], [si, pi], atol=1e-3)
    hz, amplitude = spectrum(series)
    at = [int(np.argmin(np.abs(hz - rate.hz))) for rate in RATES]
    np.testing.assert_allclose(amplitude[at, 0], [si, pi], atol=1e-3)
    assert amplitude[0, 0] == 0


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([2, 3, 4, 5, 6, 8, 9]), st.integers(8, 20), st.integers(0, 10**6))
def test_the_shortcut_equals_the_fft_at_every_multiple_of_the_sentence_rate(n_units: int, n: int, seed: int) -> None:
    series = np.random.default_rng(seed).normal(size=(n * n_units, 3))
    profile = series.reshape(n, n_units, 3).mean(axis=0)
    harmonics = list(range(1, n_units // 2 + 1))
    expected = np.abs(np.fft.rfft(series, axis=0))[[n * m for m in harmonics]]
    np.testing.assert_allclose(profile_amplitudes(profile, harmonics, len(series)), expected, rtol=1e-9, atol=1e-9)


def test_rates_between_bins_are_evaluated_where_they_are() -> None:
    length = 400  # 50 sentences of 8 units: 4/3 Hz is no bin, nor are 4/6 and 4/7
    assert [Rate(k, 8).harmonic for k in range(2, 9)] == [4, None, 2, None, None, None, 1]
    on_a_bin = [k for k in range(2, 9) if abs(length / k - round(length / k)) < 1e-9]
    assert on_a_bin == [2, 4, 5, 8]
    assert [k for k in range(2, 10) if abs(450 / k - round(450 / k)) > 1e-9] == [4, 7, 8]
    rate, time = Rate(3, 8), np.arange(length)
    wave = np.cos(2 * np.pi * time / 3)[:, None]
    exact, near = amplitudes(wave, [rate])[0, 0], amplitudes(wave, [rate], nearest=True)[0, 0]
    assert abs(exact - length / 2) < 1.5
    hz, amplitude = spectrum(wave)
    np.testing.assert_allclose(near, amplitude[np.argmin(np.abs(hz - rate.hz)), 0], rtol=1e-9)
    assert near < 0.9 * exact
    np.testing.assert_allclose(amplitudes(np.full((length, 1), 7.0), [rate]), 0, atol=1e-9)  # a constant doesn't leak


def test_rates_above_half_the_unit_rate_are_refused() -> None:
    with pytest.raises(InputError, match="above half the unit rate"):
        Rate(1, 4)


def test_white_noise_has_the_computed_amplitudes_and_thresholds() -> None:
    noise = np.random.default_rng(0).normal(size=(T, 3000))
    found = amplitudes(noise, RATES)
    np.testing.assert_allclose(found[0].mean(), np.sqrt(np.pi * T / 4), rtol=0.03)  # 12.53
    np.testing.assert_allclose(found[1].mean(), np.sqrt(2 * T / np.pi), rtol=0.03)  # 11.28
    np.testing.assert_allclose(np.quantile(found[0], 0.95), 24.48, rtol=0.04)  # sqrt(-T ln 0.05)
    np.testing.assert_allclose(np.quantile(found[1], 0.95), 27.72, rtol=0.05)  # 1.96 sqrt T
    permuted = permutation_null(noise[:, :400], WAVES, permutations=1000, seed=1)
    assumed = asymptotic_null(noise[:, :400], WAVES)
    np.testing.assert_allclose(permuted.threshold.mean(axis=1), [24.48, 27.72], rtol=0.03)
    np.testing.assert_allclose(assumed.threshold.mean(axis=1), [24.48, 27.72], rtol=0.01)
    assert 0.03 < permuted.passed.mean() < 0.08
    np.testing.assert_allclose(permuted.p, assumed.p, atol=0.08)


def test_the_asymptotic_null_is_its_closed_form() -> None:
    noise = np.random.default_rng(2).normal(size=(T, 50))
    noise = (noise - noise.mean(axis=0)) / noise.std(axis=0, ddof=1)
    found = asymptotic_null(noise, WAVES)
    # the basis has power T/2 in its real and its imaginary part; all T in the real part at the highest rate
    np.testing.assert_allclose(found.p[0], np.exp(-(found.observed[0] ** 2) / T), rtol=0.01)
    np.testing.assert_allclose(found.p[1], 2 * stats.norm.sf(found.observed[1] / np.sqrt(T)), rtol=0.02)


def test_permutations_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(24, 5))
    waves = np.stack([basis(rate, 24) for rate in RATES])
    found = permutation_null(values, waves, permutations=99, seed=7)
    orders = np.random.default_rng(7)
    drawn = [orders.permutation(24) for _ in range(99)]
    for at, rate in enumerate(RATES):
        own = np.abs(np.fft.rfft(values, axis=0))[24 // int(rate.period)]
        # shuffling what the series is multiplied with is shuffling the series the other way round
        chance = np.array([np.abs(np.exp(-2j * np.pi * o / rate.period) @ values) for o in drawn])
        np.testing.assert_allclose(found.observed[at], own, rtol=1e-4)
        np.testing.assert_allclose(found.p[at], (1 + (chance >= own).sum(axis=0)) / 100, atol=1e-6)
        np.testing.assert_allclose(found.threshold[at], np.percentile(chance, 95, axis=0), rtol=1e-4)


def test_adding_and_scaling_leave_the_permutation_test_alone() -> None:
    noise = np.random.default_rng(4).normal(size=(T, 60))
    first = permutation_null(noise, WAVES, permutations=200, seed=0)
    other = permutation_null(noise * 5 + 30, WAVES, permutations=200, seed=0)
    assert (np.abs(first.p - other.p) <= 0.011).all()
    assert (first.passed == other.passed).mean() > 0.99
    np.testing.assert_allclose(other.observed, 5 * first.observed, rtol=1e-3)


def test_a_constant_unit_passes_nothing() -> None:
    for null in (permutation_null(np.full((T, 2), 0.1), WAVES), asymptotic_null(np.full((T, 2), 0.1), WAVES)):
        assert (null.observed == 0).all()
        assert (null.p == 1).all()
        assert not null.passed.any()
    with pytest.raises(InputError, match="permutations=5"):
        permutation_null(np.zeros((T, 1)), WAVES, permutations=5)


def test_the_control_keeps_one_eleventh_of_a_word_locked_unit_and_all_of_a_place_locked_one() -> None:
    orders = np.array(control_orders(4))
    for place in range(4):
        word = (orders == place).mean(axis=0)[:, None]  # how often the unit fires at each place in the control
        own = np.eye(4)[place][:, None]
        kept = profile_amplitudes(word, [1, 2], T) / profile_amplitudes(own, [1, 2], T)
        np.testing.assert_allclose(kept, 1 / 11, rtol=1e-9)


def test_the_paired_test_is_scipys_and_ignores_what_does_not_differ() -> None:
    rng = np.random.default_rng(5)
    experiment, control = rng.normal(1, 1, size=(10, 40)), rng.normal(0.5, 1, size=(10, 40))
    expected = stats.ttest_rel(experiment, control, alternative="greater").pvalue
    rising = (experiment - control).mean(axis=0) > 1e-5
    np.testing.assert_allclose(paired_test(experiment, control)[rising], expected[rising], rtol=1e-9)
    assert (paired_test(experiment, control)[~rising] == 1).all()
    assert (paired_test(np.ones((10, 3)), np.ones((10, 3))) == 1).all()
    assert (paired_test(np.full((10, 3), 2.0), np.ones((10, 3))) == 0).all()


def test_sign_flips_are_exact() -> None:
    gap = np.array([[1.0], [2.0], [3.0]])
    assert sign_flip_test(gap, np.zeros((3, 1))).tolist() == [1 / 8]
    assert sign_flip_test(np.zeros((3, 1)), np.zeros((3, 1))).tolist() == [1.0]
    with pytest.raises(InputError, match="at most 16"):
        sign_flip_test(np.zeros((17, 1)), np.zeros((17, 1)))


def test_choosing() -> None:
    effect = np.zeros((2, 100))
    effect[0, :3], effect[1, 2:5] = 10, 10
    passed = np.ones((2, 100), dtype=bool)
    sets = disjoint(relative(effect, passed))
    assert [np.flatnonzero(one).tolist() for one in sets] == [[0, 1], [3, 4], [2]]
    passed[0, 0] = False  # what fails step A counts as 0
    assert np.flatnonzero(relative(effect, passed)[0]).tolist() == [1, 2]
    p = np.where(effect > 0, 1e-6, 0.5)
    assert [np.flatnonzero(one).tolist() for one in disjoint(absolute(effect, p))] == [[0, 1], [3, 4], [2]]
    assert not absolute(-effect, p).any()
    assert not relative(np.zeros((2, 100)), passed).any()  # nothing varies: empty, not NaN
    assert (standardised(np.full((1, 5), 3.0)) == 0).all()
    with pytest.raises(InputError, match="q=2"):
        absolute(effect, p, 2)


def test_how_much_of_a_profile_repeats_every_two_units() -> None:
    profiles = np.array([[0, 0, 0, 1], [0, 1, 0, 1], [1, 0, -1, 0], [2, 2, 2, 2]], dtype=float).T
    found = two_periodic(profiles)
    np.testing.assert_allclose(found[:3], [1 / 3, 1, 0], atol=1e-12)
    assert np.isnan(found[3])
    assert np.isnan(two_periodic(np.eye(3))).all()
