"""The nulls beside AUROC and average precision: exact tails, simulated rankings, shuffled labels."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from patchclamp.core.errors import InputError
from patchclamp.find.experts_null import shuffled_scores
from patchclamp.find.separation import separate
from patchclamp.find.separation_null import (
    ShuffledScores,
    ap_null,
    expected_max_auroc,
    mann_whitney_p,
    shuffled_truth,
)


def test_the_exact_tail_is_that_of_all_rankings() -> None:
    n1, n0 = 3, 4
    ranks = [
        sum(r > s for r in chosen for s in range(7) if s not in chosen)
        for chosen in itertools.combinations(range(7), 3)
    ]
    for u in range(n1 * n0 + 1):
        expected = np.mean([value >= u for value in ranks])
        assert mann_whitney_p(u / 12, n1, n0, alternative="greater") == pytest.approx(expected)
        assert mann_whitney_p(u / 12, n0, n1, alternative="less") == pytest.approx(np.mean([v <= u for v in ranks]))


def test_a_constant_unit_has_p_one() -> None:
    found = separate(np.ones((30, 2)), np.arange(30) < 10)
    assert found.p().tolist() == [[1.0, 1.0]]
    assert mann_whitney_p(1.0, 3, 3, alternative="greater") == pytest.approx(1 / math.comb(6, 3))


def test_p_values_of_noise_are_uniform() -> None:
    rng = np.random.default_rng(0)
    for n1, n in ((12, 60), (60, 300)):  # exact, normal
        p = separate(rng.normal(size=(n, 4000)), np.arange(n) < n1).p()
        for level in (0.01, 0.05, 0.5):
            assert (p <= level).mean() == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 4000) + 0.002)


@pytest.mark.parametrize(("positives", "mean", "high"), [(20, 0.234, 0.382), (100, 0.209, 0.263), (300, 0.204, 0.233)])
def test_average_precision_of_noise_is_what_was_simulated(positives: int, mean: float, high: float) -> None:
    null = ap_null(5 * positives, positives, draws=4000)
    assert null.mean == pytest.approx(mean, abs=0.003)
    assert null.quantile(0.99) == pytest.approx(high, abs=0.015)


def test_the_best_of_many_is_what_many_reach() -> None:
    rng = np.random.default_rng(1)
    null = ap_null(100, 20, draws=8000)
    best = [separate(rng.normal(size=(100, 400)), np.arange(100) < 20, what=("ap",)).ap.max() for _ in range(20)]
    assert null.kth(1, 400) == pytest.approx(np.median(best), abs=0.05)
    assert null.kth(1, 400) > null.kth(20, 400) > null.mean
    with pytest.raises(InputError, match="draws="):
        null.kth(1, 100_000)
    with pytest.raises(InputError, match="best of"):
        null.kth(5, 4)


def test_the_best_auroc_of_noise_is_as_expected() -> None:
    rng = np.random.default_rng(2)
    best = [separate(rng.normal(size=(200, 500)), np.arange(200) < 50, what=("auroc",)).auroc.max() for _ in range(15)]
    assert expected_max_auroc(50, 150, 500) == pytest.approx(np.median(best), abs=0.02)


def test_shuffles_keep_the_number_of_positives_and_who_counts() -> None:
    truth = np.array([[1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=bool)
    counted = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=bool)
    dealt = shuffled_truth(truth, counted, 50, 0)
    assert dealt.shape == (2, 50, 6)
    assert (dealt.sum(2) == truth.sum(1)[:, None]).all()
    assert not dealt[0, :, 4:].any()
    assert (dealt[0].mean(0)[:4] > 0.2).all()


def test_pooled_p_values_count_what_reaches_the_score() -> None:
    tally = ShuffledScores(1, 2)
    tally.add(np.array([[[0.1, 0.5, 0.9], [0.2, 0.5, 0.7]]]))
    assert tally.p_values(np.array([[0.95, 0.8, 0.5, 0.0]]))[0].tolist() == pytest.approx([1 / 7, 2 / 7, 5 / 7, 1.0])
    assert tally.kth(0, 1) == pytest.approx([0.9, 0.7], abs=1e-4)
    assert tally.kth(0, 3) == pytest.approx([0.1, 0.2], abs=1e-4)
    assert tally.reaching(0, 0.5) == pytest.approx(2.0)


def test_shuffled_scores_of_noise_look_like_noise() -> None:
    rng = np.random.default_rng(3)
    values, truth = rng.normal(size=(60, 300)), np.arange(60)[None] < 12
    counted = np.ones_like(truth)
    found = separate(values, truth)
    for score, side in (("auroc", "top"), ("auroc", "both"), ("ap", "top"), ("ap", "bottom")):
        tally = shuffled_scores(values, truth, counted, score, side, 5, 0)
        high = found.auroc if score == "auroc" else found.ap if side == "top" else found.ap_low
        own = np.maximum(high, 1 - high) if side == "both" else high
        assert tally.p_values(own).mean() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("call", [lambda: ap_null(5, 0), lambda: ap_null(5, 5), lambda: ap_null(5, 2, draws=0)])
def test_a_null_needs_both_classes(call: object) -> None:
    with pytest.raises(InputError):
        call()  # type: ignore[operator]


def test_unknown_alternatives_and_empty_classes_are_refused() -> None:
    with pytest.raises(InputError, match="alternative"):
        mann_whitney_p(0.5, 3, 3, alternative="both")
    with pytest.raises(InputError, match="both are needed"):
        mann_whitney_p(0.5, 0, 3)
