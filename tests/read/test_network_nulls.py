"""Networks at random keep what they must and are otherwise uniform."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from patchclamp.core.errors import InputError
from patchclamp.read.network_nulls import bipartite_null, configuration, curveball, strengths


def bipartite(seed: int, rows: int, columns: int, share: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.random((rows, columns)) < share) * (rng.random((rows, columns)) + 0.1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 7), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_nulls_keep_their_margins(seed: int, rows: int, columns: int, share: float) -> None:
    b, rng = bipartite(seed, rows, columns, share), np.random.default_rng(seed)
    found = curveball(b, rng)
    np.testing.assert_array_equal((found > 0).sum(0), (b > 0).sum(0))
    np.testing.assert_array_equal((found > 0).sum(1), (b > 0).sum(1))
    np.testing.assert_allclose(np.sort(found, 1), np.sort(b, 1))
    moved = strengths(b, rng)
    np.testing.assert_allclose(moved.sum(0), b.sum(0), atol=1e-9)
    np.testing.assert_allclose(moved.sum(1), b.sum(1), atol=1e-9)
    assert (moved >= 0).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 9), st.sampled_from([0.2, 0.6]))
def test_configuration_keeps_degrees_and_weights_without_loops(seed: int, n: int, share: float) -> None:
    a = np.triu(bipartite(seed, n, n, share), 1)
    a = a + a.T
    found = configuration(a, np.random.default_rng(seed))
    np.testing.assert_array_equal((found > 0).sum(0), (a > 0).sum(0))
    np.testing.assert_allclose(np.sort(found, axis=None), np.sort(a, axis=None))
    np.testing.assert_array_equal(found, found.T)
    assert not np.diag(found).any()


def test_curveball_reaches_all_networks_equally_often() -> None:
    """Three rows and columns with one link each: six networks."""
    rng = np.random.default_rng(0)
    seen = Counter(tuple(curveball(np.eye(3), rng).argmax(1)) for _ in range(1200))
    assert len(seen) == 6
    assert chisquare(list(seen.values())).pvalue > 0.001


def test_strengths_mixes_two_by_two_uniformly() -> None:
    """Margins of 1: the first cell is uniform on [0, 1]."""
    rng = np.random.default_rng(0)
    cells = np.array([strengths(np.eye(2), rng)[0, 0] for _ in range(400)])
    assert np.sort(cells) == pytest.approx(np.linspace(0, 1, 400), abs=0.1)


def test_swaps_leave_the_given_network_alone() -> None:
    b = bipartite(0, 5, 6, 0.5)
    before = b.copy()
    for make in (curveball, strengths):
        make(b, np.random.default_rng(0))
    np.testing.assert_array_equal(b, before)
    assert not np.array_equal(curveball(b, np.random.default_rng(0)) > 0, b > 0)


def test_an_unknown_null_is_refused() -> None:
    with pytest.raises(InputError, match="curveball, strengths"):
        bipartite_null("erdos")
