"""Ridge probes: planted maps are read, leakage shows under the pair split only, noise gives nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.data.generate.years import pair_prompts
from patchclamp.find.distances import log_distance, reference_distance
from patchclamp.find.probes import Moments, probe_features, probe_laws

YEARS = np.arange(1985, 2065)
PAIRS = np.array([(i, j) for i in range(80) for j in range(i, 80)])


def of_pairs(matrix: np.ndarray) -> np.ndarray:
    return matrix[PAIRS[:, 0], PAIRS[:, 1]]


def test_a_linear_map_of_the_log_distance_is_read_perfectly() -> None:
    rng = np.random.default_rng(0)
    hidden = np.c_[of_pairs(log_distance(YEARS)), rng.normal(size=(len(PAIRS), 6))] @ rng.normal(size=(7, 32))
    fits = {fit.target: fit for fit in probe_features(hidden, PAIRS, YEARS, reference=2025)}
    assert fits["log"].r2 > 0.99999
    assert fits["log"].p == pytest.approx(1 / 20)
    assert fits["log"].null < 0.05
    assert fits["reference"].r2 < 0.95
    assert math.isnan(fits["log"].r2_same_side)


def test_shuffled_targets_are_not_read_on_held_out_years() -> None:
    rng = np.random.default_rng(0)
    hidden = np.c_[of_pairs(log_distance(YEARS)), rng.normal(size=(len(PAIRS), 6))]
    order = rng.permutation(80)
    target = {"shuffled": log_distance(YEARS)[np.ix_(order, order)]}
    assert probe_features(hidden, PAIRS, YEARS, targets=target, shuffles=0)[0].r2 <= 0.02


def test_one_hot_years_score_nothing_by_years_and_high_by_pairs() -> None:
    one_hot = np.zeros((len(PAIRS), 160))
    rows = np.arange(len(PAIRS))
    one_hot[rows, PAIRS[:, 0]] = 1
    one_hot[rows, 80 + PAIRS[:, 1]] = 1
    years = {fit.target: fit for fit in probe_features(one_hot, PAIRS, YEARS, split="years")}
    pairs = {fit.target: fit for fit in probe_features(one_hot, PAIRS, YEARS, split="pairs")}
    assert abs(years["log"].r2) < 0.15
    assert abs(years["reference"].r2) < 0.15
    assert pairs["log"].r2 > 0.99
    assert pairs["reference"].r2 > 0.99


def test_a_representation_of_the_side_alone_reads_the_reference_law_but_not_within_a_side() -> None:
    side = (YEARS > 2025).astype(float)
    hidden = np.stack([side[PAIRS[:, 0]], side[PAIRS[:, 1]], side[PAIRS[:, 0]] * side[PAIRS[:, 1]]], axis=1)
    fits = {fit.target: fit for fit in probe_features(hidden, PAIRS, YEARS, reference=2025)}
    assert fits["reference"].r2 > 0.7
    assert fits["side"].r2 > 0.85
    assert fits["reference"].r2_same_side < 0.05


def test_the_closed_form_is_ridge_regression() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 5)), rng.normal(size=(300, 1))
    matrix = rng.normal(size=(80, 80))
    at = PAIRS[:300]
    y = matrix[at[:, 0], at[:, 1]][:, None] + x[:, :1]
    target = np.zeros((80, 80))
    target[at[:, 0], at[:, 1]] = y[:, 0]
    fit = probe_features(
        x, at, YEARS, targets={"any": target}, split="pairs", repeats=1, shuffles=0, penalties=(0.5,), seed=3
    )[0]
    dealt = np.random.default_rng(3).permutation((np.arange(300) >= 240).astype(int) + (np.arange(300) >= 270))
    train, test = dealt == 0, dealt == 2
    centred = x[train] - x[train].mean(0)
    penalty = 0.5 * np.linalg.eigvalsh(centred.T @ centred).mean()
    assert fit.r2 == pytest.approx(Ridge(alpha=penalty).fit(x[train], y[train]).score(x[test], y[test]))
    assert (fit.n_train, fit.n_test) == (240, 30)


def test_moments_of_parts_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(size=(50, 2))
    first = np.arange(50) < 20
    whole, parts = Moments.of(x, y, np.ones(50, bool)), Moments.of(x, y, first) + Moments.of(x, y, ~first)
    for name in Moments.__dataclass_fields__:
        np.testing.assert_allclose(getattr(whole, name), getattr(parts, name))
    about = whole.about(x.mean(0), y.mean(0))
    np.testing.assert_allclose(about.xx, (x - x.mean(0)).T @ (x - x.mean(0)))
    np.testing.assert_allclose(about.xy, (x - x.mean(0)).T @ (y - y.mean(0)))
    np.testing.assert_allclose(about.yy, ((y - y.mean(0)) ** 2).sum(0))


def test_every_layer_of_a_recording_is_probed(tiny_llama: Any) -> None:
    values = list(range(10, 40))
    prompts = pair_prompts(values, order="upper")
    text = pc.corpus(year=[f"{values[p.first]} {values[p.second]}" for p in prompts])
    recording = pc.record(tiny_llama, text, sites=("resid",), statistics=("pooled",), quiet=True)
    pairs = [(p.first, p.second) for p in prompts]
    fits = probe_laws(recording, "year", pairs, values, reference=25, repeats=2, shuffles=2)
    assert [(fit.layer, fit.target) for fit in fits][:5] == [
        (0, "log"), (0, "levenshtein"), (0, "reference"), (0, "side"), (1, "log"),
    ]  # fmt: skip
    assert len(fits) == 12
    vectors = np.asarray(recording.get("pooled", "year", "resid").last)[:, 32:64]
    again = probe_features(vectors, pairs, values, reference=25, repeats=2, shuffles=2)
    assert fits[4].r2 == pytest.approx(again[0].r2)
    assert all(
        value is None or math.isfinite(value) for value in map(fits[0].to_dict().get, ("r2", "null", "r2_same_side"))
    )


def test_constant_targets_and_features_have_a_stated_outcome() -> None:
    flat = {"flat": np.ones((80, 80))}
    fit = probe_features(np.ones((len(PAIRS), 3)), PAIRS, YEARS, targets=flat, shuffles=1)[0]
    assert math.isnan(fit.r2)
    assert math.isnan(fit.p)
    nothing = probe_features(np.zeros((len(PAIRS), 3)), PAIRS, YEARS, shuffles=0)[0]
    assert nothing.r2 <= 0.001


def test_unusable_arguments_are_refused() -> None:
    x = np.ones((len(PAIRS), 2))
    for wrong, said in [
        ({"split": "files"}, "years, pairs"), ({"shares": (0.5, 0.5, 0.5)}, "add up"), ({"penalties": ()}, "penalties"),
        ({"repeats": 0}, "repeats=0"), ({"targets": {"t": np.ones((2, 2))}}, "\\(80, 80\\)"), ({"targets": {}}, "no targets"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=said):
            probe_features(x, PAIRS, YEARS, **wrong)
    with pytest.raises(InputError, match="one row per pair"):
        probe_features(x[:5], PAIRS, YEARS)
    with pytest.raises(InputError, match="not finite"):
        probe_features(np.full_like(x, np.nan), PAIRS, YEARS)
    with pytest.raises(InputError, match="stimuli 0 to 79"):
        probe_features(x, PAIRS, YEARS[:50])
    with pytest.raises(InputError, match="part has"):
        probe_features(np.ones((3, 2)), [(0, 1), (0, 2), (1, 2)], [1, 2, 3])


def test_the_reference_law_around_a_year_is_read_from_its_signed_logarithm() -> None:
    u = np.sign(YEARS - 2025) * np.log(np.abs(YEARS - 2025) + 1)
    hidden = np.abs(u[PAIRS[:, 0]] - u[PAIRS[:, 1]])[:, None]
    fits = {fit.target: fit for fit in probe_features(hidden, PAIRS, YEARS, reference=2025)}
    assert fits["reference"].r2 > 0.999
    assert fits["reference"].r2_same_side > 0.99
    np.testing.assert_allclose(hidden[:, 0], of_pairs(reference_distance(YEARS, 2025)), atol=1e-12)
