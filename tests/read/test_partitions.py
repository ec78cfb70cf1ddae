"""Communities of networks whose communities are known, modularity by hand, and nulls that give uniform p-values."""

from __future__ import annotations

import importlib.util
import sys

import networkx as nx
import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.metrics import adjusted_rand_score
from tests.read.planted_networks import planted_blocks

from patchclamp.core.errors import InputError
from patchclamp.read.network_nulls import curveball, strengths
from patchclamp.read.networks import project
from patchclamp.read.partitions import communities_of, detect, modularity, modularity_test, ordered, sweep

METHODS = ["louvain"] + ["leiden"] * (importlib.util.find_spec("graspologic_native") is not None)


def cliques(*sizes: int, bridge: float = 0.0) -> np.ndarray:
    """Complete graphs side by side, each joined to the next by one link."""
    n = sum(sizes)
    a, start = np.zeros((n, n)), 0
    for size in sizes:
        a[start : start + size, start : start + size] = 1 - np.eye(size)
        if bridge and start:
            a[start, start - 1] = a[start - 1, start] = bridge
        start += size
    return a


def test_modularity_of_cliques_by_hand() -> None:
    labels = [0, 0, 0, 1, 1, 1]
    assert modularity(cliques(3, 3), labels) == pytest.approx(0.5)
    assert modularity(cliques(3, 3), labels, resolution=2.0) == pytest.approx(0.0)
    # 7 links, 6 of them inside; each side has degree 7 of 14
    assert modularity(cliques(3, 3, bridge=1.0), labels) == pytest.approx(6 / 7 - 0.5)
    assert modularity(cliques(3, 3), [0] * 6) == pytest.approx(0.0)
    assert modularity(cliques(3, 3), range(6)) == pytest.approx(-6 / 36)


def test_modularity_equals_networkx_on_random_weights() -> None:
    rng = np.random.default_rng(0)
    a = np.triu(rng.random((9, 9)), 1)
    a += a.T
    labels = rng.integers(0, 3, 9)
    parts = [set(np.flatnonzero(labels == number).tolist()) for number in range(3)]
    for resolution in (0.5, 1.0, 1.7):
        expected = nx.community.modularity(nx.from_numpy_array(a), parts, resolution=resolution)
        assert modularity(a, labels, resolution=resolution) == pytest.approx(expected)


@pytest.mark.parametrize("method", METHODS)
def test_communities_are_the_cliques(method: str) -> None:
    found = communities_of(cliques(4, 6, 5, bridge=0.5), method=method, runs=10)
    assert found.members("abcdefghijklmno") == [list("efghij"), list("klmno"), list("abcd")]
    assert found.stability == 1.0
    assert set(np.unique(found.agreement)) == {0.0, 1.0}
    np.testing.assert_allclose(found.runs, found.modularity)


@pytest.mark.parametrize("method", METHODS)
def test_planted_groups_of_modules_and_skills_are_found(method: str) -> None:
    b_ds, b_dm, module_group, skill_group = planted_blocks()
    made = project(b_ds, b_dm)
    modules, skills = (communities_of(a, method=method, runs=20) for a in (made.modules, made.skills))
    assert adjusted_rand_score(modules.labels, module_group) == 1.0
    assert adjusted_rand_score(skills.labels, skill_group) == 1.0
    assert modules.modularity == pytest.approx(0.61, abs=0.03)


def test_consensus_does_not_depend_on_the_order_of_nodes_and_repeats_with_its_seed() -> None:
    a = project(*planted_blocks()[:2]).modules
    order = np.random.default_rng(3).permutation(len(a))
    whole, shuffled = communities_of(a, runs=10), communities_of(a[np.ix_(order, order)], runs=10)
    assert adjusted_rand_score(whole.labels[order], shuffled.labels) == 1.0
    np.testing.assert_array_equal(communities_of(a, runs=10).labels, whole.labels)
    np.testing.assert_array_equal(communities_of(3.7 * a, runs=10).labels, whole.labels)


def test_disconnected_empty_and_single_networks() -> None:
    assert communities_of(np.zeros((0, 0)), runs=3).n_communities == 0
    assert communities_of(np.zeros((1, 1)), runs=3).labels.tolist() == [0]
    lonely = communities_of(np.zeros((3, 3)), runs=3)
    assert (lonely.labels.tolist(), lonely.modularity) == ([0, 1, 2], 0.0)
    apart = np.zeros((5, 5))
    apart[:4, :4] = cliques(2, 2)
    assert communities_of(apart, runs=3).labels.tolist() == [0, 0, 1, 1, 2]


def test_labels_are_numbered_by_size() -> None:
    assert ordered([7, 7, 2, 2, 2, 5]).tolist() == [1, 1, 0, 0, 0, 2]
    assert ordered([3, 1, 3, 1]).tolist() == [0, 1, 0, 1]


def test_a_higher_resolution_gives_more_communities() -> None:
    rows = sweep(cliques(3, 3, 3, bridge=1.0), (0.1, 1.0, 8.0), runs=5)
    assert [row["communities"] for row in rows] == [1, 3, 9]


@pytest.mark.parametrize("null", [curveball, strengths])
def test_planted_groups_are_more_modular_than_random_networks(null: object) -> None:
    b_ds, b_dm, _, _ = planted_blocks(groups=3, each=6)
    found = modularity_test(
        project(b_ds, b_dm).modules, lambda rng: project(b_ds, null(b_dm, rng)).modules, nulls=19, best_of=1  # type: ignore[operator]
    )  # fmt: skip
    assert found["p"] == pytest.approx(1 / 20)
    assert found["z"] > 5


def test_p_values_of_networks_at_random_are_uniform() -> None:
    rng, b_ds = np.random.default_rng(0), np.eye(8)
    p_values = []
    for seed in range(40):
        b = (rng.random((8, 12)) < 0.4).astype(float)
        found = modularity_test(
            project(b_ds, b).modules, lambda g, b=b: project(b_ds, curveball(b, g)).modules, nulls=19, best_of=1, seed=seed
        )  # fmt: skip
        p_values.append(found["p"] - 1 / 40)  # the middle of the step
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_without_nulls_there_is_no_p() -> None:
    found = modularity_test(cliques(3, 3), lambda rng: cliques(3, 3), nulls=0)
    assert (found["p"], found["z"], found["modularity"]) == (None, None, pytest.approx(0.5))
    same = modularity_test(cliques(3, 3), lambda rng: cliques(3, 3), nulls=4)
    assert (same["p"], same["z"]) == (1.0, None)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="louvain, leiden"):
        detect(cliques(3), method="infomap")
    with pytest.raises(InputError, match="resolution=0"):
        detect(cliques(3), resolution=0)
    with pytest.raises(InputError, match="runs=0"):
        communities_of(cliques(3), runs=0)
    with pytest.raises(InputError, match="NaN"):
        communities_of(np.full((2, 2), np.nan))
    with pytest.raises(InputError, match="give one for each"):
        modularity(cliques(3), [0, 1])


def test_leiden_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graspologic_native", None)
    with pytest.raises(InputError, match=r"patchclamp\[leiden\]"):
        detect(cliques(3), method="leiden")
