"""Features of features: levels, token strengths, trees, and neurons that families share."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from patchclamp.core.errors import InputError
from patchclamp.read.snmf import Factors, factorise
from patchclamp.read.snmf_factors import Convergence
from patchclamp.read.snmf_hierarchy import family, hierarchy
from patchclamp.record.activations import Activations


def families(seed: int = 0) -> tuple[Activations, torch.Tensor]:
    """Two families of three features: neurons 0-1 (or 10-11) are shared, 2, 3, 4 (or 12, 13, 14) one feature's own."""
    rng = np.random.default_rng(seed)
    groups = torch.zeros(6, 20)
    for number in range(6):
        base = 10 * (number // 3)
        groups[number, [base, base + 1, base + 2 + number % 3]] = 1.0
    which = torch.from_numpy(rng.integers(0, 6, 600))
    rows = groups[which] * torch.from_numpy(rng.uniform(0.5, 1.5, (600, 1))).float()
    return Activations.of_tensor(rows, site="mlp", layer=0), which


def base_of(seed: int = 0) -> tuple[Factors, torch.Tensor]:
    rows, which = families(seed)
    return factorise(rows, 6, sparsity=3 / 20, restarts=4), which


def test_two_families_become_the_two_features_of_the_level_above() -> None:
    base, which = base_of()
    found = hierarchy(base, [2], sparsity=5 / 20)
    strengths = found.strengths(1)
    assert strengths.shape == (600, 2)
    torch.testing.assert_close(strengths, base.strengths @ found.levels[1].strengths)
    top = strengths.argmax(1)
    same = (top == top[0]) == (which // 3 == which[0] // 3)
    assert same.float().mean() > 0.99
    tree = found.tree(0)
    assert len(tree.children) == 3
    assert {child.level for child in tree.children} == {0}
    members = {child.feature for child in tree.children} | {child.feature for child in found.tree(1).children}
    assert members == set(range(6))
    assert [row["features"] for row in found.rows()] == [6, 2]
    assert tree.to_dict()["children"][0]["level"] == 0


def test_a_family_shares_its_core_and_keeps_its_own() -> None:
    base, _ = base_of(1)
    first = [j for j in range(6) if base.features[j, 0] != 0]
    found = family(base, first)
    assert found.core == (0, 1)
    assert sorted(found.exclusive.values()) == [(2,), (3,), (4,)]


def test_bad_ranks_levels_and_families_are_refused() -> None:
    features = torch.eye(4)
    base = Factors(features, torch.ones(3, 4), Convergence((0.0,), 1.0, 3), {"sparsity": 0.25, "keep": 1})
    for ranks in ([], [4], [3, 3], [0]):
        with pytest.raises(InputError, match="fewer features"):
            hierarchy(base, ranks)
    found = hierarchy(base, [2], sparsity=0.5)
    with pytest.raises(InputError, match="level 2"):
        found.strengths(2)
    with pytest.raises(InputError, match="feature 9"):
        found.tree(9)
    with pytest.raises(InputError, match="share"):
        found.tree(0, share=0.0)
    with pytest.raises(InputError, match="two or more"):
        family(base, [1])
    with pytest.raises(InputError, match="common"):
        family(base, [1, 2], common=0.0)
