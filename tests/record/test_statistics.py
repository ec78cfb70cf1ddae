"""Statistics: every one equals plain numpy over everything kept, however the rows are cut into passes, blocks and shards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout
from patchclamp.record.statistics import Where, statistics

LAYOUT = Layout("mlp", (3, 0, 4), (0, 0, 2))  # a dense layer, an empty one, a layer of two experts with two units each
FOLDS = 3
ARGUMENTS = {
    "firing": {"threshold": -0.25},
    "moments": {},
    "histogram": {"bits": 2},
    "exemplars": {"k": 3},
    "pooled": {},
    "activations": {"rows": 4, "dtype": "bfloat16"},
    "cofiring": {"units": ["mlp.0.1", "mlp.2.e0.0", "mlp.2.e1.1"], "threshold": -0.25},
}


class Text:
    """Random activations of 6 documents; experts see some of the tokens only, and are 0 on the others."""

    def __init__(self, seed: int, coarse: bool = False) -> None:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(0, 5, 6)
        lengths[0] += 1
        self.document = np.repeat(np.arange(6), lengths)
        self.position = np.concatenate([np.arange(length) for length in lengths])
        n = len(self.document)
        self.values = rng.normal(size=(n, LAYOUT.total)).astype(np.float32)
        if coarse:  # many ties
            self.values = np.round(self.values)
        self.routed = rng.random((n, 2)) < 0.6
        self.full = self.values.copy()
        self.full[:, 3:5][~self.routed[:, 0]] = 0
        self.full[:, 5:7][~self.routed[:, 1]] = 0

    def where(self, rows: np.ndarray) -> Where:
        document = self.document[rows]
        return Where(document, self.position[rows], document % FOLDS, np.arange(len(rows)))

    def feed(self, statistic, rows: np.ndarray, block: int) -> None:
        """One pass over some rows, in blocks."""
        where = self.where(rows)
        statistic.begin(where)
        for start in range(0, len(rows), block):
            cut = np.arange(start, min(start + block, len(rows)))
            statistic.update(torch.from_numpy(self.values[rows[cut]][:, :3]), 0, 0, where.take(cut))
        for expert in (0, 1):
            mine = np.flatnonzero(self.routed[rows, expert])
            for start in range(0, len(mine), block):
                cut = mine[start : start + block]
                columns = slice(3 + 2 * expert, 5 + 2 * expert)
                statistic.update(torch.from_numpy(self.values[rows[cut]][:, columns]), 2, 2 * expert, where.take(cut))
        statistic.end()


def make(name: str, **changes):
    return statistics[name](LAYOUT, folds=FOLDS, **{**ARGUMENTS[name], **changes})


def in_one_pass(text: Text, name: str):
    whole = make(name)
    text.feed(whole, np.arange(len(text.document)), 1000)
    whole.close(range(6))
    return whole


def assert_same(first, second) -> None:
    a, b = first.state(), second.state()
    assert a.keys() == b.keys()
    for key in a:
        if a[key].dtype == np.float64:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-12, atol=1e-12, err_msg=key)
        elif key in ("mean", "max", "last"):
            np.testing.assert_allclose(a[key], b[key], rtol=1e-6, err_msg=key)
        else:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@given(seed=st.integers(0, 10**6), block=st.integers(1, 5), cut=st.integers(0, 6), coarse=st.booleans())
@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_merge_of_shards_in_any_passes_and_blocks_equals_one_pass(name, seed, block, cut, coarse):
    text = Text(seed, coarse)
    rng = np.random.default_rng(seed + 1)
    merged = None
    for documents in (range(cut), range(cut, 6)):
        part = make(name)
        rows = rng.permutation(np.flatnonzero(np.isin(text.document, documents)))
        for some in np.array_split(rows, 3):
            text.feed(part, some, block)
        part.close(documents)
        merged = part if merged is None else merged.merge(part)
    assert_same(in_one_pass(text, name), merged)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_state_round_trip(name):
    text = Text(1)
    whole = in_one_pass(text, name)
    again = statistics[name].from_state(LAYOUT, whole.state(), folds=FOLDS, **ARGUMENTS[name])
    assert_same(whole, again)
    assert_same(whole.merge(whole), again.merge(again))
    assert name in repr(again).lower()


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_each_statistic_equals_numpy_over_everything_kept(seed):
    text = Text(seed)
    x = text.full.astype(np.float64)
    fold = text.document % FOLDS

    firing = in_one_pass(text, "firing")
    np.testing.assert_array_equal(firing.n, np.bincount(fold, minlength=FOLDS))
    for number in range(FOLDS):
        np.testing.assert_array_equal(firing.counts[number], (x[fold == number] > -0.25).sum(0))
    np.testing.assert_allclose(firing.rate, (x > -0.25).mean(0))

    moments = in_one_pass(text, "moments")
    assert moments.n == len(x)
    np.testing.assert_allclose(moments.mean, x.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.m2, ((x - x.mean(0)) ** 2).sum(0), atol=1e-12)
    np.testing.assert_array_equal(moments.min, x.min(0))
    np.testing.assert_array_equal(moments.max, x.max(0))

    histogram = in_one_pass(text, "histogram")
    for q in (0.0, 0.3, 0.5, 0.99, 1.0):
        exact = np.quantile(x, q, axis=0, method="lower")
        np.testing.assert_allclose(histogram.quantiles(q), exact, rtol=histogram.relative_error + 1e-9, atol=2**-14)

    pooled = in_one_pass(text, "pooled")
    for document in range(6):
        mine = x[text.document == document]
        if not len(mine):
            assert np.isnan(pooled.mean[document]).all()
            continue
        np.testing.assert_allclose(pooled.mean[document], mine.mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(pooled.max[document], mine.max(0))
        np.testing.assert_array_equal(pooled.last[document], mine[-1])
    assert np.asarray(pooled.mean).shape == pooled.mean.shape == (6, 7)

    fires = (x[:, [1, 3, 6]] > -0.25).astype(np.int64)
    np.testing.assert_array_equal(in_one_pass(text, "cofiring").counts, fires.T @ fires)


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_exemplars_are_the_highest_with_ties_by_document_and_position(seed):
    text = Text(seed, coarse=True)
    found = in_one_pass(text, "exemplars")
    for unit in range(LAYOUT.total):
        rows = np.arange(len(text.document))
        if unit >= 3:
            rows = np.flatnonzero(text.routed[:, (unit - 3) // 2])
        listed = sorted((-text.values[r, unit], text.document[r], text.position[r]) for r in rows)[:3]
        for place, (value, document, position) in enumerate(listed):
            assert (found.value[place, unit], found.document[place, unit]) == (-value, document)
            assert found.position[place, unit] == position
        assert (found.document[len(listed) :, unit] == -1).all()


def test_moments_stay_right_where_the_mean_dwarfs_the_spread():
    rng = np.random.default_rng(0)
    values = (1e4 + 1e-2 * rng.normal(size=(20000, 2))).astype(np.float32)
    layout = Layout("mlp", (2,))
    merged = None
    for shard in np.array_split(values, 7):
        part = statistics["moments"](layout)
        for block in np.array_split(shard, 11):
            rows = np.zeros(len(block), dtype=np.int64)
            where = Where(rows, rows, rows, np.arange(len(block)))
            part.begin(where)
            part.update(torch.from_numpy(block), 0, 0, where)
            part.end()
        part.close()
        merged = part if merged is None else merged.merge(part)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(merged.mean, exact.mean(0), rtol=1e-14)
    np.testing.assert_allclose(merged.variance, exact.var(0, ddof=1), rtol=1e-9)


def test_layers_that_were_not_recorded_are_nan_not_silent():
    text = Text(3)
    for name in ("firing", "moments"):
        part = make(name, layers=(0,))
        where = text.where(np.arange(len(text.document)))
        part.begin(where)
        part.update(torch.from_numpy(text.values[:, :3]), 0, 0, where)
        part.close()
        shown = part.rate if name == "firing" else part.mean
        assert np.isfinite(shown[:3]).all()
        assert np.isnan(shown[3:]).all()


def test_histogram_edges_cover_both_signs_and_bad_values_are_refused():
    histogram = make("histogram")
    layout_values = np.array([[0.0, 1e-9, -1e-9, 3.0, -3.0, 1e9, -1e9]], dtype=np.float32)
    rows = np.zeros(1, dtype=np.int64)
    wide = statistics["histogram"](Layout("mlp", (7,)), bits=2)
    where = Where(rows, rows, rows, rows)
    wide.begin(where)
    wide.update(torch.from_numpy(layout_values), 0, 0, where)
    wide.close()
    found = wide.quantiles(0.5)
    np.testing.assert_allclose(found[:5], [0, 0, 0, 3, -3], rtol=wide.relative_error)
    assert (found[5], found[6]) == (wide.values[-1], wide.values[0])
    assert np.isnan(histogram.quantiles([0.5])).all()
    with pytest.raises(InputError, match="between 0 and 1"):
        histogram.quantiles(2)
    with pytest.raises(InputError, match="bits=9"):
        make("histogram", bits=9)


def test_arguments_out_of_range_are_refused():
    with pytest.raises(InputError, match="k=0"):
        make("exemplars", k=0)
    with pytest.raises(InputError, match="none of the 1 chosen units belongs to site mlp"):
        make("pooled", units=["attn.0.1"])
    with pytest.raises(InputError, match="choose at most 8192"):
        statistics["cofiring"](Layout("mlp", (9000,)))


def test_chosen_units_are_pooled_alone():
    text = Text(5)
    part, whole = make("pooled", units=["mlp.2.e1.0", "mlp.0.2"]), in_one_pass(text, "pooled")
    text.feed(part, np.arange(len(text.document)), 2)
    part.close(range(6))
    np.testing.assert_array_equal(part.units, [2, 5])
    np.testing.assert_array_equal(np.asarray(part.mean), np.asarray(whole.mean)[:, [2, 5]])
    assert statistics["pooled"].documents_per_shard(LAYOUT, units=["mlp.0.2"]) == (256 << 20) // 16
