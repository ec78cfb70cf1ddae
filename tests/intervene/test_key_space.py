"""A region of key space: closed form, Samuelson's bound, the curse of dimension, degenerate vectors, files."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.stats import norm

from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.intervene.key_space import Region

FOUR = np.array([(0, 0), (2, 4), (4, 2), (2, 2)], dtype=float)


def fitted(vectors) -> Region:
    return Region.of(vectors, site="mlp", layer=0)


def bisected(vectors: np.ndarray) -> float:
    """The paper's search: the smallest k whose box holds all vectors, to 1e-9."""
    mean, std = vectors.mean(0), vectors.std(0, ddof=1)
    low, high = 0.0, 10_000.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (low, middle) if (np.abs(vectors - mean) <= middle * std).all() else (middle, high)
    return high


def test_the_worked_example() -> None:
    region = fitted(FOUR)
    np.testing.assert_allclose(region.mean, [2, 2])
    np.testing.assert_allclose(region.std, [1.632993, 1.632993], atol=1e-6)
    assert region.k == pytest.approx(1.224745, abs=1e-6)
    assert region.bound == pytest.approx(1.5)


@given(seed=st.integers(0, 10**6), n=st.integers(2, 40))
@settings(max_examples=20, deadline=None)
def test_the_closed_form_equals_bisection_and_keeps_to_samuelsons_bound(seed: int, n: int) -> None:
    vectors = np.random.default_rng(seed).standard_t(2, size=(n, 5))
    region = fitted(vectors)
    assert region.k == pytest.approx(bisected(vectors), rel=1e-6)
    assert region.k <= region.bound * (1 + 1e-9)
    assert region.inside(vectors).all()
    assert not region.inside(vectors, 1 - 1e-6).all()
    assert not region.inside(vectors, 0).any() or (vectors == region.mean).all(1).any()


@pytest.mark.parametrize(("n", "bound"), [(4, 1.5), (200, 14.07), (295, 17.117)])
def test_samuelsons_bound(n: int, bound: float) -> None:
    vectors = np.random.default_rng(0).normal(size=(n, 3))
    assert fitted(vectors).bound == pytest.approx(bound, abs=5e-3)


@pytest.mark.parametrize(
    ("k", "n", "sound"), [(17.112, 295, True), (17.112, 294, False), (230.304, 53_042, True), (230.304, 53_041, False)]
)
def test_a_factor_above_the_bound_is_refused_as_damaged(k: float, n: int, sound: bool) -> None:
    """The paper's shipped factors: 17.112 needs 295 vectors though 200 are its default, 230.304 needs every token."""
    make = lambda: Region("mlp", 31, np.zeros(3), np.ones(3), k, n)  # noqa: E731
    if sound:
        assert make().k == k
    else:
        with pytest.raises(DamagedError, match="Samuelson"):
            make()


@pytest.mark.parametrize(("c", "expected"), [(4.0, 0.403), (4.5, 0.907), (5.0, 0.992)])
def test_the_curse_of_dimension(c: float, expected: float) -> None:
    region = Region("mlp", 0, np.zeros(14_336), np.ones(14_336), c, 200)
    assert region.expected_coverage(1.0) == pytest.approx(expected, abs=1.5e-3)
    rng = np.random.default_rng(0)
    inside = np.mean([region.inside(rng.normal(size=(20, 14_336))).mean() for _ in range(15)])
    assert inside == pytest.approx(expected, abs=0.12)


def test_skills_that_differ_in_a_few_coordinates_are_told_apart_and_held_out_queries_stay_inside() -> None:
    """6 standard deviations in 5 of 200 coordinates: no false trip; fresh queries inside about as order statistics say."""
    rng = np.random.default_rng(0)
    n, width = 200, 200
    shift = np.zeros(width)
    shift[:5] = 6
    region = fitted(rng.normal(size=(n, width)))
    fresh, others = rng.normal(size=(2000, width)), rng.normal(size=(2000, width)) + shift
    reach = region.k
    predicted = np.prod(norm.cdf(region.mean + reach * region.std) - norm.cdf(region.mean - reach * region.std))
    assert region.inside(fresh).mean() == pytest.approx(predicted, abs=0.01)
    assert region.inside(fresh).mean() > 0.95
    assert region.inside(others).mean() < 1e-3
    assert not region.inside(others, 0.95).any()


def test_moments_give_the_same_region_as_the_vectors() -> None:
    vectors = np.random.default_rng(2).normal(size=(70, 9)) ** 3
    mean = vectors.mean(0)
    m2 = ((vectors - mean) ** 2).sum(0)
    found = Region.of_moments(70, mean, m2, vectors.min(0), vectors.max(0), site="mlp", layer=0, model={})
    assert found.k == pytest.approx(fitted(vectors).k, rel=1e-12)
    np.testing.assert_allclose(found.std, fitted(vectors).std)


def test_coordinates_without_spread_are_floored_and_reported() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 4))
    vectors[:, 2] = 0.1
    region = fitted(vectors)
    assert region.floored == 1
    assert region.std[2] == pytest.approx(1e-6 * np.median(np.delete(region.std, 2)))
    assert region.k == pytest.approx(fitted(np.delete(vectors, 2, axis=1)).k)
    assert region.inside(vectors).all()
    assert not region.inside(vectors + np.array([0, 0, 0.01, 0]), 1.0).any()


@pytest.mark.parametrize("vectors", [np.zeros((1, 3)), np.ones((5, 3)), np.array([[0, np.nan], [1, 2]]), np.zeros(3)])
def test_vectors_that_make_no_region_are_refused(vectors: np.ndarray) -> None:
    with pytest.raises(InputError):
        fitted(vectors)


def test_a_vector_with_nan_lies_outside_and_other_widths_are_refused() -> None:
    region = fitted(FOUR)
    assert region.inside(np.array([[2.0, np.nan], [2.0, 2.0]])).tolist() == [False, True]
    with pytest.raises(InputError, match="coordinates"):
        region.reach(np.zeros((2, 3)))


def test_a_region_survives_saving_and_alterations_are_found(tmp_path, tiny_llama, tiny_gpt2) -> None:
    region = Region.of(FOUR, site="mlp", layer=3, model=tiny_llama.identity)
    path = region.save(tmp_path / "box.safetensors")
    again = Region.load(path)
    assert (again.k, again.n, again.layer, again.site) == (region.k, 4, 3, "mlp")
    np.testing.assert_array_equal(again.std, region.std)
    again.check_model(tiny_llama)
    with pytest.raises(MismatchError):
        again.check_model(tiny_gpt2)
    with pytest.raises(InputError):
        Region.load(tmp_path / "none.safetensors")
    save_file(load_file(path), path, metadata={"patchclamp": "{}"})
    with pytest.raises(InputError, match="region/1"):
        Region.load(path)
    (tmp_path / "broken.safetensors").write_bytes(b"no tensors")
    with pytest.raises(DamagedError):
        Region.load(tmp_path / "broken.safetensors")


def test_expected_coverage_is_that_of_independent_normals() -> None:
    region = Region("mlp", 0, np.zeros(3), np.ones(3), 1.0, 50)
    assert region.expected_coverage(1.0) == pytest.approx(math.erf(1 / math.sqrt(2)) ** 3)
