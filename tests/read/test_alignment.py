"""Agreement of groupings: known values, and p-values that are uniform where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, spearmanr

from patchclamp.core.errors import InputError
from patchclamp.read.alignment import alignment, categorised, mantel, profile_match


def test_equal_groupings_agree_fully_whatever_they_are_called() -> None:
    found = alignment([0, 0, 0, 1, 1, 1, 2, 2, 2], list("xxxyyyzzz"), permutations=999)
    assert (found["ami"], found["ari"], found["jaccard"]) == (pytest.approx(1), pytest.approx(1), 1.0)
    assert found["p_ari"] < 0.01
    assert found["p_ami"] < 0.01


def test_known_values_of_a_small_table() -> None:
    """Hubert and Arabie's index by pairs: 2 of 6 pairs together on both sides, 3 on either side each, 5 agreements less."""
    found = alignment([0, 0, 0, 1], [0, 0, 1, 1], permutations=0)
    together, first, second, pairs = 1, 3, 2, 6
    expected = first * second / pairs
    assert found["ari"] == pytest.approx((together - expected) / ((first + second) / 2 - expected))
    assert found["jaccard"] == pytest.approx(1 / 4)
    assert found["rand"] == pytest.approx((1 + 2) / 6)
    assert found["p_ari"] is None


def test_p_values_of_unrelated_groupings_are_uniform() -> None:
    rng = np.random.default_rng(0)
    found = [
        alignment(rng.integers(0, 6, 60), rng.integers(0, 6, 60), permutations=49, seed=seed) for seed in range(60)
    ]
    for key in ("p_ami", "p_ari"):
        assert kstest([one[key] - 0.01 for one in found], "uniform").pvalue > 0.01


def test_degenerate_groupings() -> None:
    assert alignment([], [])["ami"] is None
    assert alignment([1], [2])["p_ari"] is None
    assert alignment([0, 0, 0], [0, 1, 2], permutations=19)["p_ari"] == 1.0
    with pytest.raises(InputError, match="must group the same things"):
        alignment([0, 1], [0])


def test_names_without_a_category_stand_alone() -> None:
    assert categorised(["a", "b", "c"], {"a": "x", "c": "x"}) == ["x", "(b)", "x"]


def test_mantel_finds_a_noisy_copy_and_nothing_in_another_network() -> None:
    rng = np.random.default_rng(0)

    def network() -> np.ndarray:
        a = np.triu(rng.random((10, 10)), 1)
        return a + a.T

    one = network()
    copy = one + 0.1 * network()
    found = mantel(one, copy, permutations=199)
    upper = np.triu_indices(10, 1)
    assert found["correlation"] == pytest.approx(spearmanr(one[upper], copy[upper])[0])
    assert found["p"] == pytest.approx(1 / 200)
    p_values = [mantel(network(), network(), permutations=39, seed=s)["p"] - 1 / 80 for s in range(40)]
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert mantel(np.zeros((3, 3)), np.zeros((3, 3)))["p"] is None


def test_profiles_match_only_beyond_what_all_rows_share() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.random((1, 30)) * 10, rng.random((8, 30))
    same = profile_match(shared + own, shared + own + 0.1 * rng.random((8, 30)), permutations=199)
    assert same["p"] == pytest.approx(1 / 200)
    other = profile_match(shared + own, shared + rng.random((8, 30)), permutations=199)
    assert other["correlation"] > 0.9
    assert other["p"] > 0.01
