"""Scores, bar, selection and classes against closed forms, brute force and the method's invariants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.find.language_selection import (
    CLASSES,
    activity_bar,
    code_lambda,
    code_score,
    effectiveness_norm,
    label_scores,
    lape,
    n_selected,
    near_bar,
    paper_lambda,
    paper_score,
    probabilities,
    profile,
    ternary,
)

FOUR = np.array([[0.9, 0.9, 0.9, 0.02], [0.01, 0.9, 0.9, 0], [0.01, 0.01, 0.9, 0], [0.01, 0.01, 0.9, 0]])


def random_p(seed: int, labels: int = 5, total: int = 400) -> Any:
    """Probabilities of every sort: dead, faint, specific, related, general."""
    rng = np.random.default_rng(seed)
    base = rng.beta(0.3, 6, size=total) * (rng.random(total) < 0.8)
    boost = np.where(rng.random((labels, total)) < 0.05, rng.random((labels, total)), 0)
    return np.round(np.clip(base + boost + (rng.random(total) < 0.02) * 0.8, 0, 1), 2)


def test_entropy_and_scores_have_their_closed_form() -> None:
    found = profile(FOUR)
    np.testing.assert_allclose(found.entropy, [0.1779, 0.7536, 1.3863, 0], atol=5e-5)
    np.testing.assert_allclose(found.evenness, [0.1284, 0.5436, 1, 0], atol=5e-5)
    np.testing.assert_allclose(code_score(found, 0.1), [-0.0444, 0.3708, 0.8272, -0.0038], atol=5e-5)
    assert effectiveness_norm(4) == pytest.approx(0.520833, abs=1e-6)


def test_effectiveness_puts_the_useful_unit_before_the_barely_alive_one() -> None:
    found = profile(FOUR)
    assert np.argmin(found.entropy) == 3
    assert np.argmin(code_score(found, 0.1)) == 0


def test_lambda_forms_convert_as_published() -> None:
    assert effectiveness_norm(10) == pytest.approx(0.2928968, abs=1e-7)
    assert paper_lambda(0.109375, 10) == pytest.approx(0.85984, abs=5e-6)
    assert code_lambda(paper_lambda(0.109375, 10), 10) == pytest.approx(0.109375)


@given(st.integers(0, 1000), st.floats(0, 2))
@settings(max_examples=25, deadline=None)
def test_paper_and_code_form_rank_alike(seed: int, lam: float | None) -> None:
    found = profile(random_p(seed))
    code, paper = code_score(found, lam), paper_score(found, paper_lambda(lam, 5))
    np.testing.assert_allclose(paper, code * math.log(5), atol=1e-9)


def test_entropy_matches_a_plain_loop() -> None:
    p = random_p(3)
    expected = []
    for unit in p.T:
        total = float(unit.sum())
        shares = [value / total for value in unit.tolist() if value > 0] if total else [1 / 5] * 5
        expected.append(-sum(share * math.log(share) for share in shares))
    np.testing.assert_allclose(profile(p).entropy, expected, atol=1e-12)


def test_one_hot_units_have_exactly_no_entropy_and_silent_ones_are_even() -> None:
    p = np.array([[0.37, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = profile(p)
    assert found.entropy[0] == 0
    assert found.evenness[1] == 1
    assert found.silent.tolist() == [False, True]


@pytest.mark.parametrize("bar", [0.01, 0.5, 0.95, 0.999])
def test_activity_bar_is_an_order_statistic(bar: float) -> None:
    p = random_p(4)
    assert activity_bar(p, bar) == np.sort(p, axis=None)[max(round(bar * p.size), 1) - 1]


def test_classes_follow_their_definition_and_partition_all_units() -> None:
    p, rate = random_p(5, labels=4, total=300), 0.1
    split = ternary(p, rate=rate)
    tau = activity_bar(p, 0.95)
    score = code_score(profile(p), split.search.lam)
    selected = set(sorted(range(300), key=lambda at: (score[at], at))[: round(rate * 300)])
    for at in range(300):
        served = sum(p[k, at] > tau for k in range(4))
        if p[:, at].sum() == 0:
            expected = "dead"
        elif served == 4:
            expected = "general"
        elif at in selected and served == 1:
            expected = "specific"
        elif at in selected and served > 1:
            expected = "related"
        else:
            expected = "unassigned"
        assert CLASSES[split.classes[at]] == expected
        assert split.chosen[:, at].tolist() == [
            bool(expected in ("specific", "related") and p[k, at] > tau) for k in range(4)
        ]
    assert sum(split.counts.values()) == 300
    assert sum(split.appear(selected=False)) == 300
    assert sum(split.appear(selected=True)) == 30


@given(st.integers(0, 10_000), st.permutations(range(5)), st.sampled_from(["ternary", "lape"]))
@settings(max_examples=25, deadline=None)
def test_permuting_labels_permutes_results_to_the_last_bit(seed: int, order: list[int], method: str) -> None:
    p = random_p(seed)
    run = ternary if method == "ternary" else lape
    plain, permuted = run(p, rate=0.05), run(p[list(order)], rate=0.05)
    assert plain.tau == permuted.tau
    np.testing.assert_array_equal(plain.unit_score, permuted.unit_score)
    np.testing.assert_array_equal(plain.classes, permuted.classes)
    np.testing.assert_array_equal(plain.chosen[list(order)], permuted.chosen)
    scores = label_scores(p, profile(p), plain.weight)
    moved = label_scores(p[list(order)], profile(p[list(order)]), permuted.weight)
    np.testing.assert_array_equal(scores[list(order)], moved)


@given(st.integers(0, 10_000), st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_renumbering_units_permutes_the_sets(seed: int, shuffle: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((4, 200)) ** 6  # no ties, whose order follows the numbering by definition
    order = np.random.default_rng(shuffle).permutation(200)
    plain, moved = ternary(p, rate=0.1), ternary(p[:, order], rate=0.1)
    np.testing.assert_array_equal(plain.classes[order], moved.classes)
    np.testing.assert_array_equal(plain.chosen[:, order], moved.chosen)


def test_ties_go_to_the_smaller_unit() -> None:
    p = np.zeros((2, 100))
    p[0, [20, 40, 60, 80]] = 0.5
    split = ternary(p, rate=0.02, lam=0.1)
    assert np.flatnonzero(split.selected).tolist() == [20, 40]


def test_lape_selects_exactly_its_share_and_never_a_silent_unit() -> None:
    p = random_p(6)
    split = lape(p, rate=0.05)
    assert split.selected.sum() == 20
    assert (split.n_served[split.selected] >= 1).all()
    assert split.chosen.any(axis=0).sum() == 20
    few = np.zeros((3, 100))
    few[0, :4] = 0.5
    assert lape(few, rate=0.2).selected.sum() == 4


def test_pure_entropy_finds_fewer_related_units_than_the_searched_lambda() -> None:
    p = random_p(7, total=2000)
    pure, searched = ternary(p, rate=0.05, lam=0.0), ternary(p, rate=0.05)
    assert searched.search.lam > 0
    assert searched.counts["related"] > pure.counts["related"]


def test_label_scores_grow_with_the_share_and_vanish_where_a_label_is_silent() -> None:
    scores = label_scores(FOUR, profile(FOUR), 0.1 / effectiveness_norm(4))
    assert scores[0, 0] > scores[0, 1] > scores[0, 2] > 0
    assert scores[1, 3] == 0
    assert scores[0, 0] == pytest.approx((0.9 / 0.93) * (1 + 0.0444), abs=1e-3)
    assert (label_scores(np.zeros((3, 2)), profile(np.zeros((3, 2))), 0.1) == 0).all()


def test_identical_labels_are_never_specific() -> None:
    p = random_p(8)
    twin = np.concatenate([p[:1], p])
    split = ternary(twin, rate=0.1)
    np.testing.assert_array_equal(split.chosen[0], split.chosen[1])
    specific = split.classes == CLASSES.index("specific")
    assert not (specific & split.chosen[0]).any()


def test_all_dead_is_a_result() -> None:
    for split in (ternary(np.zeros((3, 50)), rate=0.1), lape(np.zeros((3, 50)), rate=0.1)):
        assert split.counts == {"specific": 0, "related": 0, "general": 0, "unassigned": 0, "dead": 50}
        assert not split.chosen.any()


def test_near_bar_uses_the_binomial_error() -> None:
    p = np.array([[0.5, 0.52, 0.6], [0.5, 0.0, 1.0]])
    # n = 100: at p = 0.52 two errors are 0.0999, at p = 0.6 they are 0.098
    assert near_bar(p, [100, 100], 0.5).tolist() == [[True, True, False], [True, False, False]]
    assert near_bar(p, [10_000, 100], 0.5)[0].tolist() == [True, False, False]


def test_probabilities_refuse_impossible_counts() -> None:
    with pytest.raises(InputError, match="one label"):
        probabilities(np.zeros((1, 3), dtype=int), [5])
    with pytest.raises(InputError, match="label number 1 has 0 tokens"):
        probabilities(np.zeros((2, 3), dtype=int), [5, 0])
    with pytest.raises(InputError, match="label number 0, unit 2: fired at 6 of 5"):
        probabilities(np.array([[0, 1, 6], [0, 0, 0]]), [5, 5])
    with pytest.raises(InputError, match="fired at -1 of 5"):
        probabilities(np.array([[0, 1, -1], [0, 0, 0]]), [5, 5])


def test_values_out_of_range_are_refused() -> None:
    p = random_p(9)
    for rate in (0.0, -1, 1.1, math.nan):
        with pytest.raises(InputError, match="rate"):
            n_selected(rate, 400)
    with pytest.raises(InputError, match="selects none"):
        n_selected(0.001, 400)
    for bar in (0.0, 1.0, math.nan):
        with pytest.raises(InputError, match="bar"):
            activity_bar(p, bar)
    for lam in (-0.1, math.nan, math.inf):
        with pytest.raises(InputError, match="lam"):
            ternary(p, lam=lam)


def test_counts_of_shards_add_up() -> None:
    rng = np.random.default_rng(0)
    counts, n = rng.integers(0, 50, size=(3, 4, 200)), np.array([[50] * 4] * 3)
    whole = ternary(probabilities(counts.sum(axis=1), n.sum(axis=1)), rate=0.1)
    parts = counts[:, :2].sum(axis=1) + counts[:, 2:].sum(axis=1)
    merged = ternary(probabilities(parts, n[:, :2].sum(axis=1) + n[:, 2:].sum(axis=1)), rate=0.1)
    np.testing.assert_array_equal(whole.unit_score, merged.unit_score)
    np.testing.assert_array_equal(whole.classes, merged.classes)
