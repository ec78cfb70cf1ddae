"""The reference point: planted ones are found, a log scale and noise have none."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.data.generate.years import dated_text
from patchclamp.find.distances import log_distance, reference_distance
from patchclamp.find.reference import reference_point
from patchclamp.measure.judgements import cosine_judgements

YEARS = np.arange(1900, 2100)


def noise(n: int, sd: float, seed: int = 0) -> np.ndarray:
    upper = np.triu(np.random.default_rng(seed).normal(0, sd, (n, n)), 1)
    return upper + upper.T


def test_the_planted_reference_is_found_by_both_estimators() -> None:
    s = 0.9 - 0.05 * reference_distance(YEARS, 2012) + noise(200, 0.02)
    found = reference_point(s, YEARS, resamples=40, permutations=19)
    assert found.found
    assert found.estimate == 2012
    assert found.r2 == pytest.approx(0.986, abs=0.003)
    assert abs(found.neighbours - 2012) <= 5
    assert found.neighbours_peak
    assert found.grid_low <= 2012 <= found.grid_high
    assert found.cv > 0.97 > found.cv_log
    assert not found.grid_border
    assert dict(found.curve)[2025.0] == pytest.approx(0.852, abs=0.01)


def test_a_log_scale_has_no_reference_point() -> None:
    distance = log_distance(YEARS)
    s = 0.9 - distance + noise(200, 0.0063)  # the noise that leaves the log law an R^2 of 0.926
    found = reference_point(s, YEARS, resamples=0, permutations=19)
    assert found.log_r2 == pytest.approx(0.926, abs=0.01)
    assert found.r2 == pytest.approx(0.693, abs=0.03)
    assert not found.found
    assert found.estimate is None
    assert "log law" in found.why


@pytest.mark.slow
def test_noise_has_a_reference_point_no_more_often_than_one_time_in_twenty() -> None:
    years = YEARS[::6]
    hits = [reference_point(noise(34, 1, seed), years, resamples=0, permutations=39).found for seed in range(60)]
    assert np.mean(hits) <= 0.05


def test_similarity_that_grows_with_distance_has_none() -> None:
    years = YEARS[::5]
    found = reference_point(0.05 * reference_distance(years, 2012), years, resamples=0)
    assert not found.found
    assert "grows" in found.why


def test_a_reference_beyond_the_stimuli_is_flagged_not_estimated() -> None:
    years = np.arange(1900, 1980)
    s = 0.9 - 0.05 * reference_distance(years, 1990) + noise(80, 0.002)
    found = reference_point(s, years, resamples=0)
    assert found.grid_border
    assert found.grid == 1979
    assert not found.found
    assert "border" in found.why


def test_the_order_of_the_stimuli_does_not_matter() -> None:
    years = YEARS[::5]
    s = 0.9 - 0.05 * reference_distance(years, 2010) + noise(40, 0.02)
    order = np.random.default_rng(0).permutation(40)
    one = reference_point(s, years, resamples=0)
    other = reference_point(s[np.ix_(order, order)], years[order], resamples=0)
    assert (one.grid, one.neighbours, one.r2) == (other.grid, other.neighbours, pytest.approx(other.r2))


def test_missing_judgements_are_left_out() -> None:
    years = YEARS[::5]
    s = 0.9 - 0.05 * reference_distance(years, 2010) + noise(40, 0.005)
    s[np.random.default_rng(0).random((40, 40)) < 0.2] = np.nan
    found = reference_point(s, years, resamples=0)
    assert found.found
    assert abs(found.grid - 2010) <= 2


def test_constant_similarities_have_no_reference_point() -> None:
    found = reference_point(np.ones((30, 30)), range(1900, 1930))
    assert not found.found
    assert "constant" in found.why
    assert math.isnan(found.grid)


def test_too_few_stimuli_and_odd_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="20 or more"):
        reference_point(np.eye(19), range(1, 20))
    with pytest.raises(InputError, match="grid"):
        reference_point(np.eye(30), range(1, 31), grid=[5.0])
    with pytest.raises(InputError, match="smooth"):
        reference_point(np.eye(30), range(1, 31), smooth=4)


def trained_embedding(reference: int | None, seed: int) -> np.ndarray:
    """Year vectors of a small model that learned, from dated text, which event belongs to a year; all start alike."""
    texts = dated_text(reference, first=1940, last=2059, count=20_000, context=2, seed=seed)
    counts = torch.zeros(120, 120)
    for text in texts:
        year, event = re.match(r"In (\d+) .* e(\d+) was", text).groups()  # type: ignore[union-attr]
        counts[int(year) - 1940, int(event)] += 1
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(24, generator=generator) + 0.05 * torch.randn(120, 24, generator=generator)
    readout = 0.3 * torch.randn(24, 120, generator=generator)
    parameters = [vectors.requires_grad_(), readout.requires_grad_()]
    optimizer = torch.optim.SGD(parameters, lr=3.0)
    for _ in range(150):
        loss = -(counts / counts.sum() * torch.log_softmax(vectors @ readout, -1)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return vectors.detach().double().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("reference", [1965, 2035, None])
def test_the_geometry_of_a_trained_model_peaks_where_its_text_was_densest(reference: int | None, seed: int) -> None:
    years = range(1940, 2060)
    similarity = cosine_judgements(trained_embedding(reference, seed), years).similarity
    found = reference_point(similarity, years, resamples=50, permutations=19)
    assert found.neighbours_peak == (reference is not None)
    if reference is not None:
        assert abs(found.neighbours - reference) <= 5
        assert abs(found.grid - reference) <= 15
        assert found.r2 > 5 * found.log_r2
