"""Projections, effective resistance and network measures against closed forms and brute force."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tests.read.planted_networks import planted_blocks

from patchclamp.core.errors import InputError
from patchclamp.data.tasks import Task
from patchclamp.read.networks import (
    centralities,
    effective_resistance,
    project,
    sharpened,
    skill_matrix,
    sparsify,
    spectrum,
    statistics,
)
from patchclamp.read.partitions import modularity

PATH = np.array([[0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=float)


def test_resistance_of_a_square_is_three_quarters_and_of_a_path_one() -> None:
    np.testing.assert_allclose(effective_resistance(np.ones((2, 2))), 0.75, atol=1e-4)
    path = np.array(
        [[1.0, 0.0], [1.0, 1.0]]
    )  # column 0 - row 1 - column 1 hangs on row 0 - column 0: a path of 3 links
    np.testing.assert_allclose(effective_resistance(path)[path > 0], 1.0, atol=1e-3)


def test_resistance_times_weight_sums_to_nodes_less_one() -> None:
    b = np.random.default_rng(0).random((5, 7)) + 0.1
    assert (effective_resistance(b) * b).sum() == pytest.approx(5 + 7 - 1, abs=1e-3)  # Foster


def test_sparsified_weights_are_unbiased_each_edge_drawn_once() -> None:
    b = np.array([[1.0, 2.0], [0.5, 1.0]])
    draws = 4000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = np.stack([sparsify(b, 0.1, seed=seed, floor=0.0) for seed in range(draws)])
    chance = 0.1 * effective_resistance(b) * (b.sum(1, keepdims=True) + b.sum(0, keepdims=True))
    error = np.sqrt(chance * (1 - chance) / draws)
    assert (np.abs((found > 0).mean(0) - chance) < 4 * error).all()
    assert (np.abs(found.mean(0) - b) < 4 * error * b / chance).all()


def test_the_published_alpha_destroys_planted_communities_and_says_so() -> None:
    b_ds, b_dm, module_group, _ = planted_blocks()
    whole = modularity(project(b_ds, b_dm).modules, module_group)
    assert whole == pytest.approx(0.61, abs=0.03)
    values = []
    for seed in range(5):
        with pytest.warns(UserWarning, match="communities rarely survive"):
            thin = sparsify(b_dm, 0.01, seed=seed)
        made = project(b_ds, thin)
        values.append(modularity(made.modules, module_group))
    assert np.mean(values) < whole - 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mild = [modularity(project(b_ds, sparsify(b_dm, 0.1, seed=s)).modules, module_group) for s in range(5)]
    assert np.mean(mild) > 0.5


def test_projection_equals_sums_over_datasets_and_has_no_self_loops() -> None:
    rng = np.random.default_rng(1)
    b_ds, b_dm = rng.random((4, 3)), rng.random((4, 5))
    made = project(b_ds, b_dm)
    for s in range(3):
        for m in range(5):
            assert made.skills_modules[s, m] == pytest.approx(sum(b_ds[d, s] * b_dm[d, m] for d in range(4)))
    for a in range(5):
        for b in range(5):
            expected = 0 if a == b else sum(made.skills_modules[s, a] * made.skills_modules[s, b] for s in range(3))
            assert made.modules[a, b] == pytest.approx(expected)
    cosines = project(b_ds, b_dm, normalise=True).skills
    x, y = made.skills_modules[0], made.skills_modules[1]
    assert cosines[0, 1] == pytest.approx(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_sharpened_leaves_what_rows_and_columns_do_not_explain() -> None:
    np.testing.assert_allclose(sharpened([[1.0, 0.2], [1.0, 0.6]]), [[0.1, 0.0], [0.0, 0.1]])
    rows, columns = np.random.default_rng(0).random((2, 6))
    assert not sharpened(rows[:, None] + columns[None]).any(), "main effects alone leave nothing"
    assert not sharpened(np.ones((3, 4))).any()
    assert sharpened(np.zeros((0, 3))).shape == (0, 3)


def test_spectrum_of_known_graphs() -> None:
    n = 6
    complete = spectrum(np.ones((n, n)) - np.eye(n))
    assert complete["spectral_radius"] == pytest.approx(n - 1)
    assert complete["spectral_gap"] == pytest.approx(n)
    assert complete["fiedler_value"] == pytest.approx(n)
    path = spectrum(PATH)
    assert path["fiedler_value"] == pytest.approx(2 - 2 * np.cos(np.pi / 4))
    signs = np.sign(path["fiedler"])
    assert signs[0] == signs[1] == -signs[2] == -signs[3]
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 1
    assert spectrum(apart)["fiedler_value"] == pytest.approx(0, abs=1e-12)


def test_statistics_of_a_path_and_of_degenerate_networks() -> None:
    found = statistics(PATH)
    assert (found["nodes"], found["edges"], found["diameter"], found["components"]) == (4, 3, 3, 1)
    assert found["path_length"] == pytest.approx((3 * 1 + 2 * 2 + 1 * 3) / 6)
    assert found["density"] == pytest.approx(0.5)
    assert found["clustering"] == 0
    assert found["assortativity"] == pytest.approx(-0.5)
    assert statistics(np.zeros((0, 0)))["nodes"] == 0
    assert statistics(np.zeros((1, 1)))["path_length"] is None
    apart = np.zeros((5, 5))
    apart[:3, :3] = 1 - np.eye(3)
    found = statistics(apart)
    assert (found["components"], found["largest_component"], found["path_length"]) == (3, 3, 1.0)
    assert found["assortativity"] is None


def test_centralities_name_the_centre_of_a_star() -> None:
    star = np.zeros((5, 5))
    star[0, 1:] = star[1:, 0] = 1
    found = centralities(star, list("abcde"), top=1)
    assert {name: rows[0]["node"] for name, rows in found.items()} == dict.fromkeys(found, "a")
    assert found["betweenness"][0]["value"] == pytest.approx(1.0)


def test_skills_are_counted_per_item_and_scaled_over_datasets() -> None:
    def task(*kinds: str) -> Task:
        return Task.of([{"prompt": f"{n}", "answer": " x", "labels": {"kind": kind}} for n, kind in enumerate(kinds)])

    matrix, skills = skill_matrix({"one": task("a", "a"), "two": task("a", "b"), "three": task("b", "b")}, ("kind",))
    assert skills == ("a", "b")
    np.testing.assert_allclose(matrix, [[1, 0], [0.5, 0.5], [0, 1]])
    alike, _ = skill_matrix({"one": task("a"), "two": task("a")}, ("kind",))
    np.testing.assert_allclose(alike, 1)
    tagged, skills = skill_matrix({"one": task("a"), "two": task("a")}, (), tags={"one": ["memory"], "two": ["logic"]})
    assert skills == ("memory", "logic")
    np.testing.assert_allclose(tagged, np.eye(2))
    with pytest.warns(UserWarning, match="no skill is known of two"):
        skill_matrix({"one": task("a"), "two": task("a")}, (), tags={"one": ["memory"]})
    with pytest.raises(InputError, match="no item has one of the labels"):
        skill_matrix({"one": task("a")}, ("colour",))


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        ([[1.0, np.nan]], "NaN or infinite"),
        ([[1.0, -1.0]], "negative"),
        ([1.0, 2.0], "a matrix is needed"),
    ],
)
def test_impossible_weights_are_refused(matrix: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        project(matrix, matrix)


def test_networks_must_fit_and_be_symmetric() -> None:
    with pytest.raises(InputError, match="the rows must be the same"):
        project(np.ones((2, 2)), np.ones((3, 2)))
    with pytest.raises(InputError, match="symmetric"):
        statistics(np.triu(np.ones((3, 3))))
    with pytest.raises(InputError, match="alpha=0"):
        sparsify(np.ones((2, 2)), 0)
