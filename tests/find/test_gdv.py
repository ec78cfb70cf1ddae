"""The discrimination value against its closed forms, invariances and a brute-force sum; the map against known squares."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest

from patchclamp.core.errors import InputError
from patchclamp.find.gdv import distances, gdv, gdv2, scaled, shuffled
from patchclamp.find.mds import mds


def column(*values: float) -> Any:
    return np.array(values, dtype=float)[:, None]


@pytest.mark.parametrize(
    ("points", "labels", "expected"),
    [
        (column(0, 0, 1, 1), [0, 0, 1, 1], -1.0),
        (np.array([[0, 5], [0, 5], [1, 7], [1, 7]], float), [0, 0, 1, 1], -1.0),
        (column(0, 1, 10, 11), [0, 0, 1, 1], -0.89553),
        (np.repeat(np.eye(3), 4, axis=0), np.repeat(range(3), 4), -0.86603),
        (np.repeat(np.eye(4), 5, axis=0), np.repeat(range(4), 5), -0.81650),
        (column(*[0] * 10, *[1] * 90), [0] * 10 + [1] * 90, -1.6667),
    ],
)
def test_closed_forms(points: Any, labels: Any, expected: float) -> None:
    assert gdv(points, labels).value == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("classes", [2, 3, 5, 9])
def test_collapsed_one_hot_classes_have_the_general_closed_form(classes: int) -> None:
    found = gdv(np.repeat(np.eye(classes), 3, axis=0), np.repeat(range(classes), 3))
    assert found.value == pytest.approx(-0.5 * np.sqrt(2 * classes / (classes - 1)), abs=1e-9)
    assert found.intra == pytest.approx(np.zeros(classes), abs=1e-9)


def test_random_classes_are_near_zero() -> None:
    rng = np.random.default_rng(0)
    assert abs(gdv(rng.standard_normal((2000, 50)), rng.integers(0, 4, 2000)).value) < 2e-3


def brute(points: Any, labels: Any) -> float:
    """The definition, pair by pair."""
    s = (points - points.mean(axis=0)) / points.std(axis=0) / 2
    groups = [s[labels == name] for name in np.unique(labels)]
    intra = [np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(group, 2)]) for group in groups]
    inter = [
        np.mean([np.linalg.norm(a - b) for a in one for b in other]) for one, other in itertools.combinations(groups, 2)
    ]
    return float((np.mean(intra) - np.mean(inter)) / np.sqrt(points.shape[1]))


def labelled(seed: int, n: int = 30, width: int = 5, classes: int = 3) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    mixed = rng.standard_normal((n, width)) @ rng.standard_normal((width, width))
    return mixed + labels[:, None] * rng.standard_normal(width), labels


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_it_equals_the_definition_and_does_not_mind_shift_scale_order_or_names(seed: int) -> None:
    points, labels = labelled(seed)
    rng = np.random.default_rng(seed)
    value = gdv(points, labels).value
    assert value == pytest.approx(brute(points, labels), abs=1e-9)
    same = [
        (points * rng.uniform(0.1, 9, 5) + rng.uniform(-50, 50, 5), labels),
        (points[:, rng.permutation(5)], labels),
        (np.concatenate([points, points], axis=1), labels),
        (points, np.array(["z", "b", "a"])[labels]),
    ]
    for other, names in same:
        assert gdv(other, names).value == pytest.approx(value, abs=1e-9)


def test_rotation_changes_it_and_a_constant_dimension_shrinks_it() -> None:
    points, labels = labelled(3)
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((5, 5)))[0]
    value = gdv(points, labels).value
    assert abs(gdv(points @ turn, labels).value - value) > 1e-3
    with_constant = gdv(np.concatenate([points, np.full((30, 1), 7.0)], axis=1), labels)
    assert with_constant.value == pytest.approx(value * np.sqrt(5 / 6), abs=1e-9)
    assert (with_constant.dimensions, with_constant.constant) == (6, 1)


def test_the_fast_relative_equals_squared_distances_pair_by_pair() -> None:
    points, labels = labelled(5)
    s = scaled(points)[0]
    table = distances(s) ** 2
    groups = [np.flatnonzero(labels == name) for name in range(3)]
    intra = [table[np.ix_(group, group)].sum() / (len(group) * (len(group) - 1)) for group in groups]
    inter = [table[np.ix_(one, other)].mean() for one, other in itertools.combinations(groups, 2)]
    assert gdv2(points, labels) == pytest.approx((np.mean(intra) - np.mean(inter)) / 5, abs=1e-9)


def test_a_flipped_label_moves_it_towards_zero() -> None:
    assert (
        gdv(column(0, 0, 1, 1, 0, 1), [0, 0, 1, 1, 0, 1]).value
        < gdv(column(0, 0, 1, 1, 0, 1), [0, 0, 1, 1, 1, 0]).value
    )


def test_p_is_uniform_for_labels_that_mean_nothing() -> None:
    rng = np.random.default_rng(2)
    found = []
    for seed in range(200):
        points, labels = rng.standard_normal((24, 3)), rng.permutation(np.arange(24) % 3)
        found.append(shuffled(points, labels, permutations=99, seed=seed).p)
    assert kstest(found, "uniform").pvalue > 0.01


def test_separated_classes_lie_far_outside_the_null() -> None:
    points, labels = labelled(1, n=60)
    found = shuffled(points + 3 * labels[:, None], labels, permutations=99)
    assert found.p == 0.01
    assert found.z is not None
    assert found.z < -5
    assert abs(found.mean) < 0.05


def test_shuffling_whole_documents_is_calibrated_where_points_of_a_document_are_alike() -> None:
    """Every document has one label and one place: shuffling single points calls chance significant, documents don't."""
    rng = np.random.default_rng(4)
    plain, blocked = [], []
    for seed in range(60):
        documents = np.repeat(np.arange(12), 6)
        points = np.repeat(rng.standard_normal((12, 2)), 6, axis=0) + 0.01 * rng.standard_normal((72, 2))
        labels = rng.permutation(np.arange(12) % 2)[documents]
        plain.append(shuffled(points, labels, permutations=99, seed=seed).p)
        blocked.append(shuffled(points, labels, permutations=99, seed=seed, blocks=documents).p)
    assert np.mean(np.array(plain) <= 0.05) > 0.3
    assert np.mean(np.array(blocked) <= 0.05) < 0.15


@pytest.mark.parametrize(
    ("points", "labels", "said"),
    [
        (np.ones((4, 2)), [0, 0, 0, 0], "1 class"),
        (np.ones((3, 2)), [0, 0, 1], "single point"),
        (np.array([[0.0], [np.nan], [1.0], [2.0]]), [0, 0, 1, 1], "NaN"),
        (np.ones((4, 0)), [0, 0, 1, 1], "shape"),
        (np.ones((4, 2)), [0, 1], "shape"),
        (np.zeros((7000, 1)), np.arange(7000) % 2, "allow_large"),
    ],
)
def test_what_cannot_be_measured_is_refused(points: Any, labels: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        gdv(points, labels)


def test_identical_points_give_zero_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="identical"):
        assert gdv(np.full((6, 2), 3.0), [0, 0, 0, 1, 1, 1]).value == 0


def test_the_map_recovers_a_square_and_stress_never_rises() -> None:
    rng = np.random.default_rng(0)
    square = rng.uniform(size=(30, 2))
    table = np.linalg.norm(square[:, None] - square[None], axis=2)
    found = mds(table)
    assert found.stress < 1e-6
    again = np.linalg.norm(found.points[:, None] - found.points[None], axis=2)
    np.testing.assert_allclose(again, table, atol=1e-5)
    deep = rng.standard_normal((40, 6))
    hard = mds(np.linalg.norm(deep[:, None] - deep[None], axis=2), iterations=60)
    assert (np.diff(hard.path) <= 1e-12).all()
    assert 0 < hard.stress < 1
    assert mds(np.zeros((3, 3))).stress == 0
