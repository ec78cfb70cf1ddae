"""Participation, z-scores and what communities are about, by hand and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import entropy, kstest
from tests.read.planted_networks import planted_blocks

from patchclamp.core.errors import InputError
from patchclamp.read.node_roles import (
    community_skills,
    divergence,
    matched_datasets,
    participation,
    role_correlations,
    skill_contrast,
    within_z,
)


def test_three_links_inside_and_one_outside_give_three_eighths() -> None:
    a = np.zeros((5, 5))
    a[0, 1:] = a[1:, 0] = 1
    found = participation(a, [0, 0, 0, 0, 1])
    assert found[0] == pytest.approx(1 - (9 + 1) / 16)
    assert found[1] == 0.0
    assert participation(np.zeros((3, 3)), [0, 1, 2]).tolist() == [0, 0, 0]
    assert participation(np.zeros((0, 0)), []).shape == (0,)


def test_equal_nodes_have_z_of_zero_and_a_hub_stands_out() -> None:
    assert within_z(np.ones((4, 4)) - np.eye(4), [0, 0, 1, 1]).tolist() == [0, 0, 0, 0]
    star = np.zeros((4, 4))
    star[0, 1:] = star[1:, 0] = 1
    degree = np.array([3, 1, 1, 1])
    np.testing.assert_allclose(within_z(star, [0] * 4), (degree - 1.5) / degree.std())


def test_links_to_other_communities_do_not_count_in_z() -> None:
    a = np.zeros((5, 5))
    a[0, 1] = a[1, 0] = a[0, 2] = a[2, 0] = a[1, 2] = a[2, 1] = 1
    a[0, 3] = a[3, 0] = 9
    assert within_z(a, [0, 0, 0, 1, 1])[:3].tolist() == [0, 0, 0]


def test_community_skills_equal_the_sum_over_pairs() -> None:
    b, labels = np.random.default_rng(0).random((4, 7)), np.array([0, 0, 0, 1, 1, 0, 2])
    found = community_skills(b, labels)
    for number in (0, 1):
        inside = np.flatnonzero(labels == number)
        counts = sum(np.minimum(b[:, u], b[:, v]) for u, v in itertools.combinations(inside, 2))
        np.testing.assert_allclose(found[number], counts / counts.sum())
    np.testing.assert_allclose(found[2], b[:, 6] / b[:, 6].sum())
    assert community_skills(np.zeros((3, 2)), [0, 0]).tolist() == [[0, 0, 0]]
    with pytest.raises(InputError, match="give one for each"):
        community_skills(b, [0, 1])


def test_divergence_is_the_relative_entropy() -> None:
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.5, 0.25, 0.25])
    assert divergence(p, q) == pytest.approx(entropy(p, q), abs=1e-6)
    assert divergence(p, p) == pytest.approx(0)


def test_datasets_of_a_planted_group_match_its_community_best() -> None:
    b_ds, b_dm, module_group, _ = planted_blocks()
    content = community_skills(b_ds.T @ b_dm, module_group)
    names = [str(number // 10) for number in range(40)]
    ranked = matched_datasets(b_ds, b_dm, content, module_group, names)
    for number, rows in enumerate(ranked):
        assert {row["dataset"] for row in rows[:10]} == {str(number)}
        by_weight = sorted(rows, key=lambda row: -row["weight"])
        assert {row["dataset"] for row in by_weight[:10]} == {str(number)}


def test_planted_communities_differ_in_skills_and_arbitrary_ones_do_not() -> None:
    b_ds, b_dm, module_group, _ = planted_blocks()
    assert skill_contrast(b_ds.T @ b_dm, module_group, permutations=99)["p"] == pytest.approx(0.01)
    rng = np.random.default_rng(0)
    p_values = [
        skill_contrast(rng.random((5, 12)), rng.integers(0, 3, 12), permutations=39, seed=seed)["p"] - 1 / 80
        for seed in range(40)
    ]
    assert kstest(p_values, "uniform").pvalue > 0.01
    assert skill_contrast(np.zeros((2, 3)), [0, 0, 1], permutations=9)["p"] == 1.0


def test_role_correlations_are_none_where_nothing_varies() -> None:
    z, part = np.array([1.0, 2.0, 3.0, 0.0]), np.array([0.1, 0.2, 0.3, 0.0])
    rows = role_correlations(part, z, [0, 0, 0, 1])
    assert rows[0]["pearson"] == pytest.approx(1)
    assert rows[1] == {"community": 1, "nodes": 1, "pearson": None, "spearman": None}
