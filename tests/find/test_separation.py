"""AUROC, average precision, DeLong errors and p-values against closed forms, plain formulas and scikit-learn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score

from patchclamp.core.errors import InputError
from patchclamp.find import separation
from patchclamp.find.separation import auroc, average_precision, separate
from patchclamp.record.statistics.pooled import Rows

few = settings(max_examples=25, deadline=None)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)[:, None]


def labels(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


@pytest.mark.parametrize(
    ("scores", "truth", "expected"),
    [
        ((0.9, 0.8, 0.7, 0.6, 0.5), (1, 0, 1, 0, 0), 5 / 6),
        ((5, 4, 3, 2, 1), (1, 1, 0, 0, 0), 1.0),
        ((1, 1, 1, 1, 1), (0, 0, 1, 0, 0), 0.2),
        ((0.5, 0.5, 0.5, 0.1, 0.1), (1, 1, 0, 0, 0), 2 / 3),
    ],
)
def test_average_precision_has_its_closed_forms(scores: tuple, truth: tuple, expected: float) -> None:
    assert average_precision(column(*scores), labels(*truth)) == pytest.approx([expected], abs=1e-12)


def test_ten_positives_ranked_last_of_fifty() -> None:
    truth = np.arange(50) < 10
    found = average_precision(np.arange(50, dtype=np.float32)[:, None], truth)
    assert found[0] == pytest.approx(np.mean([i / (40 + i) for i in range(1, 11)]), abs=1e-12)
    assert found[0] == pytest.approx(0.117351, abs=1e-6)


def test_the_vectors_of_the_first_paper_come_out() -> None:
    values = np.random.RandomState(1234).uniform(size=(10, 6))
    found = average_precision(values.T, labels(1, 1, 0, 1, 0, 0))
    assert found[:6] == pytest.approx([0.7222, 0.5556, 1, 1, 1, 0.6333], abs=1e-4)


def test_auroc_counts_ties_as_half() -> None:
    assert auroc(column(3, 2, 1, 2), labels(1, 1, 0, 0)) == pytest.approx([0.875])
    assert auroc(column(1, 1, 1, 1), labels(1, 1, 0, 0)) == pytest.approx([0.5])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_every_unit_and_label_agrees_with_scikit_learn(dtype: type, tied: bool) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(61, 33)).astype(dtype)
    if tied:
        values = np.maximum(np.round(values), 0) * rng.choice([-1, 1], size=values.shape).astype(dtype)  # -0.0 too
    truth = rng.random((3, 61)) < 0.3
    found = separate(values, truth)
    for label, unit in itertools.product(range(3), range(33)):
        scores, ones = values[:, unit].astype(np.float64), truth[label]
        assert found.auroc[label, unit] == pytest.approx(roc_auc_score(ones, scores), abs=1e-12)
        assert found.ap[label, unit] == pytest.approx(average_precision_score(ones, scores), abs=1e-12)
        assert found.ap_low[label, unit] == pytest.approx(average_precision_score(ones, -scores), abs=1e-12)
    for way in ("two-sided", "greater", "less"):
        p = found.p(way)
        for label, unit in itertools.product(range(3), range(8)):
            scores, ones = values[:, unit].astype(np.float64), truth[label]
            exact = "asymptotic" if len(set(scores)) < len(scores) else "exact"
            expected = mannwhitneyu(scores[ones], scores[~ones], alternative=way, method=exact).pvalue
            assert p[label, unit] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("tied", [False, True])
def test_the_delong_error_is_that_of_the_plain_formula(tied: bool) -> None:
    rng = np.random.default_rng(4)
    values = rng.normal(size=(40, 7))
    values = np.round(values) if tied else values
    truth = np.arange(40) < 13
    found = separate(values, truth)
    for unit in range(7):
        one, zero = values[truth, unit], values[~truth, unit]
        wins = (one[:, None] > zero) + 0.5 * (one[:, None] == zero)
        variance = wins.mean(1).var(ddof=1) / len(one) + wins.mean(0).var(ddof=1) / len(zero)
        assert found.auroc[0, unit] == pytest.approx(wins.mean())
        assert found.se[0, unit] == pytest.approx(np.sqrt(variance))


def test_delong_intervals_cover_the_true_area() -> None:
    rng = np.random.default_rng(5)
    truth = np.arange(120) < 50
    values = rng.normal(size=(120, 2000)) + 1.0 * truth[:, None]
    low, high = separate(values, truth, what=("auroc", "se")).interval()
    true = 0.7602499  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    assert 0.93 < ((low[0] <= true) & (true <= high[0])).mean() < 0.97


def test_documents_left_out_change_nothing() -> None:
    rng = np.random.default_rng(6)
    values, truth = np.round(rng.normal(size=(50, 9)), 1), rng.random((2, 50)) < 0.4
    among = rng.random((2, 50)) < 0.7
    found = separate(values, truth, among=among)
    for label in range(2):
        alone = separate(values[among[label]], truth[label, among[label]])
        for name in separation.FIELDS:
            np.testing.assert_allclose(getattr(found, name)[label], getattr(alone, name)[0], atol=1e-12)


def test_blocks_and_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(7)
    values, truth = np.round(rng.normal(size=(40, 57)), 1).astype(np.float32), rng.random((2, 40)) < 0.4
    whole = separate(values, truth)
    monkeypatch.setattr(separation, "_CELLS", 40 * 5)
    monkeypatch.setattr(separation, "_READ", 40 * 16)
    pieces = separate(Rows([values[:11], values[11:12], values[12:]]), truth)
    for name in separation.FIELDS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(pieces, name))


responses = st.lists(st.integers(-20, 20), min_size=4, max_size=40)


@few
@given(responses, st.integers(0, 2**31))
def test_what_matters_is_the_order_alone(raw: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, truth = np.array(raw, dtype=np.float64)[:, None], rng.permutation(len(raw)) < len(raw) // 2
    plain = separate(values, truth)
    bent = separate(np.exp(values / 10) * 7 - 3, truth)
    mixed = rng.permutation(len(raw))
    moved = separate(values[mixed], truth[mixed])
    for name in separation.FIELDS:
        np.testing.assert_allclose(getattr(bent, name), getattr(plain, name), atol=1e-12)
        np.testing.assert_allclose(getattr(moved, name), getattr(plain, name), atol=1e-12)
    turned = separate(-values, truth)
    np.testing.assert_allclose(turned.auroc, 1 - plain.auroc, atol=1e-12)
    np.testing.assert_allclose(turned.ap, plain.ap_low, atol=1e-12)
    np.testing.assert_allclose(separate(values, ~truth).auroc, 1 - plain.auroc, atol=1e-12)


def test_subnormal_and_huge_values_keep_their_order() -> None:
    raw = np.array([-3e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3e38], dtype=np.float32)
    order, ends = separation.ranked(raw[None])
    assert raw[order[0]].tolist() == sorted(raw.tolist(), reverse=True)
    assert ends is not None
    assert ends[0].sum() == 7  # the two zeros are one value


@pytest.mark.parametrize(
    ("values", "truth", "message"),
    [
        (np.zeros((4, 2)), labels(1, 1, 1, 1), "0 negative"),
        (np.zeros((4, 2)), labels(0, 0, 0, 0), "0 positive"),
        (np.zeros((4, 2)), labels(0, 1, 1), "labels are bool"),
        (np.zeros((4, 2)), np.array([0, 1, 1, 0]), "labels are bool"),
        (np.zeros(4), labels(0, 1, 1, 0), r"\(documents, units\)"),
        (np.array([[0, 1], [1, np.nan], [0, 0], [1, 1]]), labels(0, 1, 1, 0), "unit number 1"),
        (np.array([[np.inf, 1], [1, 1], [0, 0], [1, 1]]), labels(0, 1, 1, 0), "unit number 0"),
    ],
)
def test_bad_input_is_one_clear_error(values: np.ndarray, truth: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        separate(values, truth)


def test_what_was_not_asked_for_is_refused() -> None:
    found = separate(np.eye(4), labels(1, 0, 1, 0), what=("ap",))
    with pytest.raises(InputError, match="auroc was not computed"):
        found.interval()
    with pytest.raises(InputError, match="choose among"):
        separate(np.eye(4), labels(1, 0, 1, 0), what=("f1",))
    with pytest.raises(InputError, match="between 0 and 1"):
        separate(np.eye(4), labels(1, 0, 1, 0)).interval(1.5)
