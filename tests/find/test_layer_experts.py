"""Expert layers: blobs along the label separate perfectly, blobs across it not at all, and chance is exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score
from tests.find.pooled import ArrayRecording

from patchclamp.core.errors import InputError
from patchclamp.find.layer_experts import layer_experts, matched


def blobs(seed: int = 0) -> ArrayRecording:
    """Layer 0: two blobs that follow the label; layer 1: two blobs across it; layer 2: noise."""
    rng = np.random.default_rng(seed)
    values = {}
    for label, side in (("a", -4.0), ("b", 4.0)):
        hidden = rng.normal(size=(40, 3, 6))
        hidden[:, 0, 0] += side
        hidden[:, 1, 0] += np.tile([-4.0, 4.0], 20)
        values[label] = {"resid": hidden.reshape(40, 18)}
    return ArrayRecording(values, width=6)


def test_blobs_along_the_label_are_experts_and_blobs_across_it_are_not() -> None:
    along, across, noise = layer_experts(blobs(), positive="a")
    assert (along["auroc"], along["ap"], along["f1"]) == (1.0, 1.0, 1.0)
    assert along["sizes"] == [40, 40]
    assert along["p_holm"] < 1e-9
    assert across["auroc"] == 0.5
    assert across["p"] == pytest.approx(1.0)
    assert noise["auroc"] < 0.65
    assert noise["p_holm"] > 0.05
    assert along["silhouette"] > 0.5 > noise["silhouette"]


def test_the_label_that_is_called_positive_does_not_matter() -> None:
    for first, second in zip(layer_experts(blobs(), positive="a"), layer_experts(blobs(), positive="b"), strict=True):
        assert first["auroc"] == pytest.approx(second["auroc"])
        assert first["p"] == pytest.approx(second["p"])


def test_numbers_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        cluster, truth = rng.random((2, 30)) < rng.uniform(0.2, 0.8, size=(2, 1))
        if not 0 < truth.sum() < 30:
            continue
        found = matched(cluster, truth)
        guess = cluster if balanced_accuracy_score(truth, cluster) >= 0.5 else ~cluster
        assert found["auroc"] == pytest.approx(balanced_accuracy_score(truth, guess))
        assert found["auroc"] == pytest.approx(roc_auc_score(truth, guess))
        assert found["ap"] == pytest.approx(average_precision_score(truth, guess))
        assert found["f1"] == pytest.approx(f1_score(truth, guess))


def test_chance_is_that_of_all_ways_to_deal_the_labels() -> None:
    cluster = np.array([1, 1, 1, 0, 0, 0, 0], dtype=bool)
    truth = np.array([1, 1, 0, 1, 0, 0, 0], dtype=bool)
    areas = []
    for chosen in itertools.combinations(range(7), 3):
        dealt = np.isin(np.arange(7), chosen)
        areas.append(matched(cluster, dealt)["auroc"])
    found = matched(cluster, truth)
    assert found["p"] == pytest.approx(np.mean([area >= found["auroc"] - 1e-12 for area in areas]))


def test_one_cluster_says_nothing() -> None:
    found = matched(np.ones(6, dtype=bool), np.array([1, 1, 0, 0, 0, 0], dtype=bool))
    assert (found["auroc"], found["p"]) == (0.5, 1.0)


def test_one_class_and_a_site_that_was_not_recorded_are_refused() -> None:
    with pytest.raises(InputError, match="both classes"):
        layer_experts(blobs(), positive=["a", "b"])
    with pytest.raises(InputError, match="was not recorded"):
        layer_experts(blobs(), positive="a", site="mlp")
