"""The statistic `core`: token cores, sentence cores, document sets; the worked example of the method, merging, ties, experts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.models.units import Layout
from patchclamp.record.statistics import Where
from patchclamp.record.statistics.core import Core, core_size, sentence_core, token_core

LAYOUT = Layout(
    "mlp", (4, 0, 6), (0, 0, 2)
)  # a dense layer, an empty one, a layer of two experts with three units each
FOLDS = 3
EXAMPLE = torch.tensor(
    [[5, 4, 3, 2, 1, 0, 0, -1], [0, 5, 4, 3, 0, 2, 0, 1], [1, 0, 6, 5, 0, 0, 4, 0]], dtype=torch.float32
)


@pytest.mark.parametrize(
    ("alpha", "shared_k", "counts"),
    [
        (0.6, False, [1, 2, 3, 2, 0, 0, 0, 0]),
        (0.6, True, [1, 2, 2, 1, 0, 0, 0, 0]),
        (0.4, False, [1, 2, 2, 1, 0, 0, 0, 0]),
        (0.4, True, [1, 1, 1, 0, 0, 0, 0, 0]),
    ],
)
def test_the_worked_example(alpha: float, shared_k: bool, counts: list[int]) -> None:
    assert token_core(EXAMPLE, alpha, shared_k=shared_k).sum(0).tolist() == counts


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([1, 2, 3, 2, 0, 0, 0, 0], {2, 1, 3}),
        ([1, 2, 2, 1, 0, 0, 0, 0], {1, 2, 0}),
        ([1, 1, 1, 0, 0, 0, 0, 0], {0, 1, 2}),
    ],
)
def test_the_worked_sentence_cores_break_ties_by_position(counts: list[int], expected: set[int]) -> None:
    size = core_size(0.375, 8)
    chosen = sentence_core(np.array(counts), np.zeros(8), size)
    assert set(np.flatnonzero(chosen)) == expected


def test_equal_counts_go_to_the_larger_mass_and_a_count_of_0_is_never_core() -> None:
    chosen = sentence_core(np.array([2, 2, 2, 0]), np.array([1.0, 3.0, 2.0, 9.0]), 2)
    assert chosen.tolist() == [False, True, True, False]
    assert sentence_core(np.array([1, 0, 0, 0]), np.zeros(4), 3).sum() == 1


def test_core_size_is_a_floor_that_survives_decimal_shares() -> None:
    assert [core_size(beta, 10) for beta in (0.3, 0.29, 1.0, 0.05)] == [3, 2, 10, 0]
    assert (core_size(0.7, 10), core_size(0.1, 30)) == (7, 3)


@given(seed=st.integers(0, 10**6), alpha=st.floats(0.01, 1.0), coarse=st.booleans())
@settings(max_examples=25, deadline=None)
def test_token_core_equals_sorting_each_token(seed: int, alpha: float, coarse: bool) -> None:
    values = np.random.default_rng(seed).normal(size=(9, 12)).astype(np.float32)
    values = np.round(values) if coarse else values
    found = token_core(torch.from_numpy(values), alpha).numpy()
    for row, chosen in zip(values, found, strict=True):
        positives = int((row > 0).sum())
        size = min(max(round(alpha * positives), 1), positives)
        expected = sorted(range(12), key=lambda at: (-row[at], at))[:size]
        assert sorted(np.flatnonzero(chosen).tolist()) == sorted(expected)


@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.25, 2.0, 1024.0]))
@settings(max_examples=15, deadline=None)
def test_scaling_a_token_and_permuting_units_change_nothing_else(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(size=(5, 20)).astype(np.float32))
    order = torch.from_numpy(rng.permutation(20))
    core = token_core(values, 0.4)
    assert torch.equal(token_core(values * scale, 0.4), core)
    assert torch.equal(token_core(values[:, order], 0.4), core[:, order])


class Text:
    """Whole-number activations, so that sums are exact: 6 documents; the experts see some of the tokens only."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        lengths = rng.integers(0, 6, 6)
        lengths[1] += 2
        self.document = np.repeat(np.arange(6), lengths)
        self.position = np.concatenate([np.arange(length) for length in lengths])
        n = len(self.document)
        self.values = rng.integers(-3, 6, size=(n, 10)).astype(np.float32)
        self.routed = rng.random((n, 2)) < 0.6
        self.full = self.values.copy()
        self.full[:, 4:7][~self.routed[:, 0]] = 0
        self.full[:, 7:10][~self.routed[:, 1]] = 0

    def feed(self, core: Core, rows: np.ndarray, block: int) -> None:
        document = self.document[rows]
        where = Where(document, self.position[rows], document % FOLDS, np.arange(len(rows)))
        core.begin(where)
        for start in range(0, len(rows), block):
            cut = np.arange(start, min(start + block, len(rows)))
            core.update(torch.from_numpy(self.values[rows[cut]][:, :4]), 0, 0, where.take(cut))
        for expert in (0, 1):
            mine = np.flatnonzero(self.routed[rows, expert])
            for start in range(0, len(mine), block):
                cut = mine[start : start + block]
                columns = slice(4 + 3 * expert, 7 + 3 * expert)
                core.update(torch.from_numpy(self.values[rows[cut]][:, columns]), 2, 3 * expert, where.take(cut))
        core.end()


def make(**changes) -> Core:
    return Core(LAYOUT, folds=FOLDS, **{"alpha": 0.5, "beta": 0.5, "prefixes": [1, 3], **changes})


def in_one_pass(text: Text, **changes) -> Core:
    whole = make(**changes)
    text.feed(whole, np.arange(len(text.document)), 1000)
    whole.close(range(6))
    return whole


@given(seed=st.integers(0, 10**6), block=st.integers(1, 5), cut=st.integers(0, 6))
@settings(max_examples=25, deadline=None)
def test_merge_of_shards_in_any_passes_and_blocks_equals_one_pass(seed: int, block: int, cut: int) -> None:
    text, rng = Text(seed), np.random.default_rng(seed)
    merged = None
    for documents in (range(cut), range(cut, 6)):
        part = make()
        rows = rng.permutation(np.flatnonzero(np.isin(text.document, documents)))
        for some in np.array_split(rows, 3):
            text.feed(part, some, block)
        part.close(documents)
        merged = part if merged is None else merged.merge(part)
    assert merged is not None
    again = Core.from_state(LAYOUT, merged.state(), folds=FOLDS, alpha=0.5, beta=0.5, prefixes=[1, 3])
    whole = in_one_pass(text)
    for key, array in whole.state().items():
        np.testing.assert_array_equal(again.state()[key], array, err_msg=key)


@given(seed=st.integers(0, 10**6), by=st.sampled_from(["positive", "abs"]))
@settings(max_examples=20, deadline=None)
def test_counts_and_document_sets_equal_brute_force(seed: int, by: str) -> None:
    text = Text(seed)
    found = in_one_pass(text, by=by)
    values = np.abs(text.full) if by == "abs" else text.full
    in_core = np.zeros(values.shape, dtype=bool)
    for span in (slice(0, 4), slice(4, 10)):
        in_core[:, span] = token_core(torch.from_numpy(values[:, span]), 0.5).numpy()
    fold = text.document % FOLDS
    for number in range(FOLDS):
        np.testing.assert_array_equal(found.counts[number], in_core[fold == number].sum(0))
    np.testing.assert_array_equal(found.n, np.bincount(fold, minlength=FOLDS))
    np.testing.assert_array_equal(found.document_n, np.bincount(text.document, minlength=6))
    np.testing.assert_allclose(found.mass, np.where(in_core, values, 0).sum(0))
    for part, length in enumerate((10**6, 1, 3)):
        sets = found.document_sets(prefix=part)
        for document in range(6):
            mine = (text.document == document) & (text.position < length)
            counts, mass = in_core[mine].sum(0), np.where(in_core, values, 0)[mine].sum(0)
            expected = np.zeros(10, dtype=bool)
            for span in (slice(0, 4), slice(4, 10)):
                expected[span] = sentence_core(counts[span], mass[span], core_size(0.5, span.stop - span.start))
            np.testing.assert_array_equal(sets[document], expected)


def test_negative_products_count_only_by_size() -> None:
    values = torch.tensor([[-5.0, 1.0, -4.0, 0.5]])
    assert token_core(values, 0.5).tolist() == [[False, True, False, False]]
    assert token_core(values.abs(), 0.5).tolist() == [[True, False, True, False]]


def test_counts_add_up_over_texts_and_do_not_depend_on_batches(tiny_llama) -> None:
    lines = ["The cat sat on the mat.", "Le chat est assis.", "Two and two make four, three and three make six."]
    kept = {"core": {"alpha": 0.4, "beta": 0.25, "prefixes": [4]}}
    both = pc.record(tiny_llama, pc.corpus(a=lines * 2), statistics=kept, quiet=True)
    one = pc.record(tiny_llama, pc.corpus(a=lines), statistics=kept, quiet=True, batch_tokens=40)
    small, large = one.get("core", "a"), both.get("core", "a")
    np.testing.assert_array_equal(2 * small.counts.sum(0), large.counts.sum(0))
    np.testing.assert_array_equal(np.concatenate([small.sets] * 2), large.sets)
    twice = one.merge(one).get("core", "a")
    np.testing.assert_array_equal(twice.counts.sum(0), large.counts.sum(0))
    np.testing.assert_array_equal(twice.sets, large.sets)
    assert 0 < large.frequency.max() <= 1
    per_layer = large.document_sets()[0].reshape(3, 48).sum(1)
    assert 0 < per_layer.max() <= 12


def test_nothing_positive_gives_no_core() -> None:
    core = Core(Layout("mlp", (3,)), folds=1)
    where = Where(np.zeros(2, int), np.arange(2), np.zeros(2, int), np.arange(2))
    core.begin(where)
    core.update(torch.tensor([[-1.0, 0.0, -2.0]] * 2), 0, 0, where)
    core.end()
    core.close(range(2))
    assert not core.counts.any()
    assert not core.document_sets().any()
    assert core.document_n.tolist() == [2, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"alpha": 0.0},
        {"alpha": 1.5},
        {"beta": 0},
        {"beta": -1},
        {"by": "size"},
        {"prefixes": [0]},
        {"prefixes": [8, 4]},
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(InputError):
        Core(LAYOUT, **arguments)
