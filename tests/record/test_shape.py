"""The statistic `shape`: moments up to the fourth and mean size per fold, whatever the passes, blocks and shards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kurtosis, skew

import patchclamp as pc
from patchclamp.models.units import Layout
from patchclamp.record.statistics import Where
from patchclamp.record.statistics.shape import Distribution, Shape

LAYOUT = Layout("mlp", (3, 0, 4), (0, 0, 2))
FOLDS = 3
KEYS = ("n", "mean", "m2", "m3", "m4", "size")


class Text:
    """Random skewed activations of 6 documents; each of the two experts of the last layer sees some of the tokens only."""

    def __init__(self, seed: int, scale: float = 1.0, offset: float = 0.0) -> None:
        rng = np.random.default_rng(seed)
        self.document = np.repeat(np.arange(6), rng.integers(1, 6, 6))
        n = len(self.document)
        self.values = (offset + scale * rng.exponential(size=(n, 7))).astype(np.float32)
        self.routed = rng.random((n, 2)) < 0.6
        self.full = self.values.astype(np.float64)
        self.full[:, 3:5][~self.routed[:, 0]] = 0
        self.full[:, 5:7][~self.routed[:, 1]] = 0

    def feed(self, shape: Shape, rows: np.ndarray, block: int) -> None:
        document = self.document[rows]
        where = Where(document, np.arange(len(rows)), document % FOLDS, np.arange(len(rows)))
        shape.begin(where)
        for start in range(0, len(rows), block):
            cut = np.arange(start, min(start + block, len(rows)))
            shape.update(torch.from_numpy(self.values[rows[cut]][:, :3]), 0, 0, where.take(cut))
        for expert in (0, 1):
            mine = np.flatnonzero(self.routed[rows, expert])
            for start in range(0, len(mine), block):
                cut = mine[start : start + block]
                columns = slice(3 + 2 * expert, 5 + 2 * expert)
                shape.update(torch.from_numpy(self.values[rows[cut]][:, columns]), 2, 2 * expert, where.take(cut))
        shape.end()


def in_one_pass(text: Text) -> Shape:
    whole = Shape(LAYOUT, folds=FOLDS)
    text.feed(whole, np.arange(len(text.document)), 1000)
    whole.close(range(6))
    return whole


@given(seed=st.integers(0, 10**6), block=st.integers(1, 4), cut=st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_merge_of_shards_in_any_passes_and_blocks_equals_one_pass(seed: int, block: int, cut: int) -> None:
    text, rng = Text(seed), np.random.default_rng(seed)
    merged = None
    for documents in (range(cut), range(cut, 6)):
        part = Shape(LAYOUT, folds=FOLDS)
        rows = rng.permutation(np.flatnonzero(np.isin(text.document, documents)))
        for some in np.array_split(rows, 2):
            text.feed(part, some, block)
        part.close(documents)
        merged = part if merged is None else merged.merge(part)
    assert merged is not None
    whole = in_one_pass(text)
    again = Shape.from_state(LAYOUT, merged.state(), folds=FOLDS)
    for key in KEYS:
        np.testing.assert_allclose(getattr(again, key), getattr(whole, key), rtol=1e-9, atol=1e-9, err_msg=key)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_it_equals_scipy_over_everything_kept(seed: int) -> None:
    text = Text(seed)
    found, x = in_one_pass(text), text.full
    whole = found.whole
    assert int(whole.n) == len(x)
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-9)
    np.testing.assert_allclose(whole.std, x.std(0, ddof=1), rtol=1e-9)
    np.testing.assert_allclose(whole.size, np.abs(x).mean(0), rtol=1e-9)
    spread = x.std(0) > 0
    np.testing.assert_allclose(whole.skew[spread], skew(x, axis=0)[spread], atol=1e-7)
    np.testing.assert_allclose(whole.kurtosis[spread], kurtosis(x, axis=0)[spread], atol=1e-6)
    for fold in range(FOLDS):
        mine = x[text.document % FOLDS == fold]
        np.testing.assert_allclose(found.by_fold.mean[fold], mine.mean(0) if len(mine) else 0, atol=1e-9)


def test_a_small_spread_far_from_0_does_not_cancel() -> None:
    found = in_one_pass(Text(3, scale=1e-2, offset=1000.0))
    x = Text(3, scale=1e-2, offset=1000.0).full[:, :3]
    np.testing.assert_allclose(found.whole.variance[:3], x.var(0, ddof=1), rtol=1e-6)
    np.testing.assert_allclose(found.whole.skew[:3], skew(x, axis=0), rtol=1e-3)


def test_a_constant_unit_has_no_spread_no_skew_and_no_kurtosis() -> None:
    shape = Shape(Layout("mlp", (2,)), folds=1)
    where = Where(np.zeros(50, int), np.arange(50), np.zeros(50, int), np.arange(50))
    shape.begin(where)
    shape.update(torch.full((50, 2), 0.1), 0, 0, where)
    shape.end()
    shape.close(range(1))
    whole = shape.whole
    assert whole.constant.all()
    assert not whole.skew.any()
    assert not whole.kurtosis.any()
    np.testing.assert_allclose(whole.mean, np.float32(0.1))


def test_std_is_the_root_of_the_variance_and_not_the_variance() -> None:
    """The paper's reference code keeps E[x^2] - E[x]^2 under the name std."""
    found = Distribution(np.array(4.0), np.array([0.0]), np.array([12.0]))
    assert found.variance == pytest.approx([4.0])
    assert found.std == pytest.approx([2.0])


def test_recorded_shape_agrees_with_recorded_moments(tiny_gpt2) -> None:
    text = pc.corpus(a=["The cat sat.", "Two and two make four."] * 3, b=["Die Katze sitzt.", "猫は座って。"])
    found = pc.record(tiny_gpt2, text, statistics=("shape", "moments"), layers=[0, 2], quiet=True)
    for label in ("a", "b"):
        shape, moments = found.get("shape", label), found.get("moments", label)
        assert int(shape.whole.n) == int(moments.n)
        recorded = shape.recorded
        assert not recorded.all()
        assert np.isnan(shape.whole.mean[~recorded]).all()
        np.testing.assert_allclose(shape.whole.mean[recorded], moments.mean[recorded], atol=1e-9)
        np.testing.assert_allclose(shape.whole.std[recorded], moments.std[recorded], rtol=1e-6)
