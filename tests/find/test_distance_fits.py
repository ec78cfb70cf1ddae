"""Fits of the laws to planted similarities, against least squares and brute-force resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.find.distance_fits import Dissimilarity, by_distance, contrast, fit_laws, plain_rows
from patchclamp.find.distances import across, log_distance, reference_distance

YEARS = np.arange(1900, 2100)


def noise(n: int, sd: float, seed: int = 0) -> np.ndarray:
    """Symmetric noise."""
    upper = np.triu(np.random.default_rng(seed).normal(0, sd, (n, n)), 1)
    return upper + upper.T


def planted(reference: int = 2012, seed: int = 0) -> np.ndarray:
    """The specification's behaviour: 0.9 - 0.05 d_ref + N(0, 0.02)."""
    return 0.9 - 0.05 * reference_distance(YEARS, reference) + noise(len(YEARS), 0.02, seed)


def plain_r2(y: np.ndarray, *columns: np.ndarray) -> float:
    design = np.stack([np.ones(len(y)), *columns], axis=1)
    left = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    return float(1 - (left**2).sum() / ((y - y.mean()) ** 2).sum())


def test_planted_reference_behaviour_gives_the_specifications_r2() -> None:
    fits = fit_laws(planted(), YEARS, reference=2012, permutations=0, resamples=0)
    assert fits["reference"].r2 == pytest.approx(0.986, abs=0.003)
    assert fits["log"].r2 == pytest.approx(0.713, abs=0.01)
    assert fits["reference"].slope == pytest.approx(0.05, rel=0.01)
    elsewhere = fit_laws(planted(), YEARS, reference=2025, permutations=0, resamples=0)
    assert elsewhere["reference"].r2 == pytest.approx(0.852, abs=0.01)
    assert fits.best == "reference"


def test_r2_unique_and_baselines_are_least_squares_over_pairs() -> None:
    years = YEARS[::8]
    s = planted()[::8, ::8]
    fits = fit_laws(s, years, reference=2012, permutations=0, resamples=0)
    pairs = np.triu_indices(len(years), 1)
    y = 1 - s[pairs]
    x = {"log": log_distance(years)[pairs], "reference": reference_distance(years, 2012)[pairs]}
    edit = np.array(
        [sum(a != b for a, b in zip(str(years[i]), str(years[j]), strict=True)) for i, j in zip(*pairs, strict=True)]
    )
    side = across(years, 2012)[pairs]
    assert fits["log"].r2 == pytest.approx(plain_r2(y, x["log"]))
    assert fits["side"].r2 == pytest.approx(plain_r2(y, side.astype(float)))
    assert fits["reference, same side"].r2 == pytest.approx(plain_r2(y[~side], x["reference"][~side]))
    assert fits["reference, same side"].n_pairs == int((~side).sum())
    # four-digit years within 200: an edit is a substitution, never an insertion with a deletion, in these years
    whole = plain_r2(y, x["log"], x["reference"], edit)
    assert fits["log"].unique == pytest.approx(whole - plain_r2(y, x["reference"], edit), abs=0.02)


def test_the_bootstrap_is_that_over_stimuli() -> None:
    years, s = YEARS[::10], planted()[::10, ::10]
    data, distance = Dissimilarity.of(s, years), log_distance(years)
    found = data.draws(distance, 5, np.random.default_rng(3))
    weights = np.random.default_rng(3).multinomial(20, np.full(20, 1 / 20), size=5)
    for w, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(20), w)
        kept = [(i, j) for i in drawn for j in drawn if i != j]
        y = np.array([1 - s[i, j] for i, j in kept])
        x = np.array([distance[i, j] for i, j in kept])
        assert value == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2)


def test_mantel_p_is_small_for_the_planted_law_and_uniform_in_noise() -> None:
    years = YEARS[::8]
    assert fit_laws(planted()[::8, ::8], years, permutations=199, resamples=0)["log"].p == pytest.approx(1 / 200)
    p = [
        Dissimilarity.of(noise(25, 1, seed), years).mantel(log_distance(years), 99, np.random.default_rng(seed))
        for seed in range(60)
    ]
    assert 0.3 < np.mean(p) < 0.7
    assert np.mean(np.array(p) <= 0.1) < 0.25


def test_mantel_with_missing_pairs_is_the_correlation_of_what_is_left() -> None:
    years, s = YEARS[::10], planted()[::10, ::10]
    s[3, 7] = s[7, 3] = s[0, 1] = s[1, 0] = np.nan
    distance = log_distance(years)
    found = Dissimilarity.of(s, years)
    rng, reached = np.random.default_rng(0), 0
    known = found.known
    observed = np.corrcoef(distance[known], 1 - s[known])[0, 1]
    for _ in range(99):
        order = rng.permutation(20)
        reached += np.corrcoef(distance[order][:, order][known], 1 - s[known])[0, 1] >= observed
    assert found.mantel(distance, 99, np.random.default_rng(0)) == (1 + reached) / 100
    assert found.missing == 2
    assert "2 pairs" in fit_laws(s, years, permutations=0, resamples=0).notes[0]


def test_judgements_of_both_orders_are_averaged_and_one_is_enough() -> None:
    years = YEARS[::20]
    s = planted()[::20, ::20]
    upper = np.where(np.tril(np.ones_like(s), -1) > 0, np.nan, s)
    one, both = (fit_laws(m, years, permutations=0, resamples=0) for m in (upper, s))
    assert one["log"].r2 == pytest.approx(both["log"].r2)
    tilted = s + np.triu(np.full_like(s, 0.1), 1)
    assert fit_laws(tilted, years, permutations=0, resamples=0).asymmetry == pytest.approx(0.1)


def test_a_contrast_of_equal_conditions_is_zero() -> None:
    s = planted()[::10, ::10]
    for row in contrast(s, s, YEARS[::10], resamples=20):
        assert (row["difference"], row["low"], row["high"]) == (0, 0, 0)
    rows = {row["law"]: row for row in contrast(s, noise(20, 1), YEARS[::10], reference=2012, resamples=50)}
    assert rows["reference"]["low"] > 0.5


def test_constant_similarities_have_no_r2() -> None:
    fits = fit_laws(np.ones((10, 10)), range(1900, 1910))
    assert all(math.isnan(fit.r2) and math.isnan(fit.p) and math.isnan(fit.low) for fit in fits.laws)
    assert any("constant" in note for note in fits.notes)
    assert fits.best is None
    assert plain_rows(fits.rows)[0]["r2"] is None


def test_a_reference_beyond_the_stimuli_leaves_no_side_to_tell() -> None:
    fits = fit_laws(planted()[::10, ::10], YEARS[::10], reference=2500, permutations=9, resamples=9)
    assert math.isnan(fits["side"].r2)
    assert fits.side_share == 0
    assert any("side" in note for note in fits.notes)


def test_density_is_the_mean_similarity_in_a_band() -> None:
    s = planted()
    rows = by_distance(s, YEARS, reference=2012, edges=(0, 10, 50))
    inside = (YEARS < 2012) & (YEARS >= 2002)
    block = s[np.ix_(inside, inside)]
    expected = block[~np.eye(10, dtype=bool)].mean()
    assert rows[0]["n"] == 10
    assert rows[0]["similarity"] == pytest.approx(expected)
    assert by_distance(s, YEARS, reference=2500, edges=(0, 1))[1]["similarity"] is None


@given(st.floats(-3, 3), st.floats(0.01, 5))
@settings(max_examples=15, deadline=None)
def test_r2_does_not_change_with_the_scale_of_ratings(shift: float, scale: float) -> None:
    s, years = planted()[::20, ::20], YEARS[::20]
    one = fit_laws(s, years, permutations=0, resamples=0)
    other = fit_laws(shift + scale * s, years, permutations=0, resamples=0)
    for fit in one.laws:
        assert other[fit.law].r2 == pytest.approx(fit.r2, abs=1e-9)


def test_unusable_matrices_are_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        fit_laws(np.ones((3, 4)), [1, 2, 3])
    with pytest.raises(InputError, match="infinite"):
        fit_laws(np.full((2, 2), np.inf), [1, 2])
    with pytest.raises(InputError, match="no fit"):
        fit_laws(np.eye(3), [1, 2, 3], permutations=0, resamples=0)["cubic"]
