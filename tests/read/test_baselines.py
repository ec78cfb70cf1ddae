"""Difference of means, components, random directions and neurons as dictionaries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from patchclamp.core.errors import InputError
from patchclamp.read.baselines import difference_of_means, pca, random_directions, single_neurons
from patchclamp.record.activations import Activations


def held(rows: torch.Tensor) -> Activations:
    return Activations.of_tensor(rows, site="mlp", layer=2)


def drawn(seed: int = 0, n: int = 200, width: int = 12) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((n, width)) @ rng.standard_normal((width, width)) + rng.standard_normal(width)
    return torch.from_numpy(mixed).float()


def test_difference_of_means_is_that_of_numpy() -> None:
    a, b, c = drawn(1), drawn(2, n=77), drawn(3, n=50)
    found = difference_of_means({"x": held(a), "y": held(b)}, held(c))
    for row, rows in zip(found.directions, (a, b), strict=True):
        gap = rows.mean(0) - c.mean(0)
        torch.testing.assert_close(row, gap / gap.norm(), atol=1e-5, rtol=1e-4)
    assert found.labels == ("x", "y")
    assert (found.site, found.layer) == ("mlp", 2)
    own = difference_of_means({"x": held(a)}, {"x": held(b)})
    gap = a.mean(0) - b.mean(0)
    torch.testing.assert_close(own.directions[0], gap / gap.norm(), atol=1e-5, rtol=1e-4)


def test_components_are_those_of_scikit_learn_with_both_signs() -> None:
    rows = drawn(4)
    wanted = torch.from_numpy(PCA(5).fit(rows.double().numpy()).components_).float()
    found = pca(held(rows), 5).directions
    assert found.shape == (10, 12)
    torch.testing.assert_close(found[1::2], -found[0::2])
    torch.testing.assert_close((found[0::2] * wanted).sum(1).abs(), torch.ones(5), atol=1e-4, rtol=0)
    assert pca(held(rows), 5, both_signs=False).n_features == 5


def test_random_directions_have_the_support_asked_for_and_depend_on_the_seed() -> None:
    found = random_directions(held(drawn()), 7, keep=3, seed=1)
    assert (found.directions != 0).sum(1).tolist() == [3] * 7
    torch.testing.assert_close(found.directions.norm(dim=1), torch.ones(7))
    assert torch.equal(found.directions, random_directions(found, 7, keep=3, seed=1).directions)
    assert not torch.equal(found.directions, random_directions(found, 7, keep=3, seed=2).directions)
    assert int((random_directions(found, 2).directions == 0).sum()) == 0


def test_a_neuron_is_a_feature_of_its_own() -> None:
    rows = drawn()
    found = single_neurons(held(rows))
    torch.testing.assert_close(found.encode(rows), rows)


def test_what_can_not_be_made_is_refused() -> None:
    rows = held(drawn())
    with pytest.raises(InputError, match="same mean"):
        difference_of_means({"x": rows}, rows)
    with pytest.raises(InputError, match="no concept"):
        difference_of_means({}, rows)
    with pytest.raises(InputError, match="neutral"):
        difference_of_means({"x": rows}, {"y": rows})
    with pytest.raises(InputError, match="0 directions"):
        pca(held(torch.ones(9, 4)), 1)
    with pytest.raises(InputError, match="between 1 and the width"):
        pca(rows, 13)
    with pytest.raises(InputError, match="keep=0"):
        random_directions(rows, 2, keep=0)
    with pytest.raises(InputError, match="k=0"):
        random_directions(rows, 0)
    with pytest.raises(InputError, match="no rows"):
        difference_of_means({"x": held(torch.zeros(0, 12))}, rows)
    with pytest.raises(InputError, match="come from"):
        single_neurons(Activations.of_tensor(torch.ones(2, 3)))
