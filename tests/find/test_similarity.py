"""Representational similarity: closed forms, chance by permuted conditions and random units, brain data by CSV, bad input."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.find import tagging

from patchclamp.core.errors import InputError
from patchclamp.find.similarity import Channels, Features, itpc, rdm, responses, similarity
from patchclamp.find.syntax_streams import Sentences, joined
from patchclamp.models.units import UnitSet

CONDITIONS = ("sentence 1", "sentence 2", "phrase 1", "phrase 2", "random 1", "random 2")
QUICK: dict[str, Any] = {"permutations": 720, "random_sets": 5}


@pytest.fixture(scope="module")
def features(tiny_gpt2: Any) -> Features:
    values = np.random.default_rng(0).normal(size=(384, 6, 13)) ** 2
    return Features.of(tiny_gpt2, "mlp", values, CONDITIONS)


def test_the_distance_is_one_minus_the_cosine() -> None:
    values = np.random.default_rng(1).normal(size=(4, 6, 13))
    for unit, matrix in zip(values, rdm(values), strict=True):
        for i, j in itertools.product(range(6), repeat=2):
            cosine = unit[i] @ unit[j] / np.linalg.norm(unit[i]) / np.linalg.norm(unit[j])
            assert matrix[i, j] == pytest.approx(1 - cosine, abs=1e-12)


def test_distances_of_empty_and_of_single_features_are_defined() -> None:
    empty = rdm(np.array([[[0, 0], [0, 0], [1, 0]]], dtype=float))[0]
    assert empty.tolist() == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    assert rdm(np.array([[[1.0], [4.0]]]))[0].tolist() == [[0, 3], [3, 0]]
    with pytest.raises(InputError, match="units, conditions, features"):
        rdm(np.zeros((3, 4)))


def test_a_channel_that_is_the_layer_itself_has_rho_one(tiny_gpt2: Any, features: Features) -> None:
    units = UnitSet.of(tiny_gpt2, ["mlp.1.5"])
    twin = Channels.of(features.values[128 + 5][None] * 3, CONDITIONS)  # cosines don't see the scale
    found = similarity(features, twin, units, **QUICK)
    assert [row["layer"] for row in found.rows] == [1]
    assert found.rows[0]["score"] == pytest.approx(1)
    assert found.score("units") == pytest.approx(1)
    assert found.rows[0]["p"] < 0.01
    assert abs(found.rows[0]["chance"]) < 0.02  # over all 720 orders of the labels
    assert abs(found.rows[0]["random"]) < 0.6


def test_the_order_of_conditions_does_not_matter(tiny_gpt2: Any, features: Features) -> None:
    units = UnitSet.of(tiny_gpt2, ["mlp.0.3", "mlp.0.9"])
    values = np.random.default_rng(2).normal(size=(30, 6, 13))
    order = [3, 1, 5, 0, 2, 4]
    first = similarity(features, Channels.of(values, CONDITIONS), units, top=5, **QUICK)
    other = similarity(features, Channels.of(values[:, order], [CONDITIONS[at] for at in order]), units, top=5, **QUICK)
    assert first.rows == other.rows


def test_scores_equal_scipys_over_the_thirty_off_diagonal_entries(tiny_gpt2: Any, features: Features) -> None:
    units = UnitSet.of(tiny_gpt2, ["mlp.2.1", "mlp.2.2", "mlp.2.3"])
    values = np.random.default_rng(3).normal(size=(12, 6, 13))
    off = ~np.eye(6, dtype=bool)
    mine = rdm(features.values[256 + np.array([1, 2, 3])]).mean(axis=0)[off]
    rho = sorted((stats.spearmanr(mine, matrix[off]).statistic for matrix in rdm(values)), reverse=True)
    found = similarity(features, Channels.of(values, CONDITIONS), units, top=4, **QUICK)
    assert found.rows[0]["score"] == pytest.approx(np.mean(rho[:4]))
    assert found.rows[0]["channels"] == 4


def test_the_best_channels_of_noise_look_similar_but_not_beyond_chance(tiny_gpt2: Any, features: Features) -> None:
    noise = Channels.of(np.random.default_rng(4).normal(size=(200, 6, 13)), CONDITIONS)
    units = UnitSet.of(tiny_gpt2, [f"mlp.{layer}.{at}" for layer in range(3) for at in range(10)])
    found = similarity(features, noise, units, top=20, **QUICK)
    assert all(row["score"] > 0.3 for row in found.rows)
    assert all(abs(row["score"] - row["chance"]) < 0.15 for row in found.rows)
    assert all(row["p"] > 0.01 for row in found.rows)


def test_a_constant_channel_has_rho_zero(tiny_gpt2: Any, features: Features) -> None:
    flat = Channels.of(np.ones((3, 6, 13)), CONDITIONS)
    found = similarity(features, flat, UnitSet.of(tiny_gpt2, ["mlp.0.0"]), **QUICK)
    assert found.rows[0]["score"] == 0
    assert found.rows[0]["p"] == 1


def test_regions_are_averaged_and_gated(tiny_gpt2: Any, features: Features) -> None:
    rng = np.random.default_rng(5)
    units = UnitSet.of(tiny_gpt2, ["mlp.0.0", "mlp.0.1", "mlp.0.2"])
    like = np.repeat(features.values[:3].mean(axis=0)[None], 20, axis=0) + rng.normal(scale=0.01, size=(20, 6, 13))
    values = np.concatenate([like, rng.normal(size=(60, 6, 13))])
    regions = ["left"] * 20 + ["right"] * 60
    found = similarity(features, Channels.of(values, CONDITIONS, regions=regions), units, top=20, **QUICK)
    left, right = found.regions
    assert (left["region"], right["region"]) == ("left", "right")
    assert left["among_best"] > 15
    assert left["expected"] == pytest.approx(5)
    assert left["gate"] < 0.001
    assert left["score"] > 0.5


def test_an_empty_set_has_no_rows(tiny_gpt2: Any, features: Features) -> None:
    channels = Channels.of(np.random.default_rng(6).normal(size=(4, 6, 2)), CONDITIONS)
    found = similarity(features, channels, {"none": UnitSet.of(tiny_gpt2, [])}, **QUICK)
    assert found.rows == []
    assert found.score("none") is None
    assert found.notes


def test_random_phases_have_the_computed_coherence_and_equal_ones_have_one() -> None:
    rng = np.random.default_rng(7)
    noise = rng.normal(size=(300, 20, 9 * 64))
    hz, found = itpc(noise, sampling_rate=64)
    assert hz.tolist() == [0.5 + 0.125 * at for at in range(13)]
    assert found.shape == (300, 13)
    assert found.mean() == pytest.approx(np.sqrt(np.pi / 80), rel=0.05)  # 0.198
    one = itpc(np.repeat(noise[0, :1], 20, axis=0), sampling_rate=64)[1]
    np.testing.assert_allclose(one, 1)
    assert itpc(np.zeros((5, 640)), sampling_rate=64)[1].max() == 0


def test_channels_come_from_a_csv(tmp_path: Path) -> None:
    path = tmp_path / "brain.csv"
    values = np.arange(12.0).reshape(2, 3, 2)
    lines = ["channel,condition,feature,value,region"]
    for at, channel in enumerate(("A1", "B7")):
        lines += [f"{channel},c{c},{f},{values[at, c, f]},{'L' if at else 'R'}" for f in range(2) for c in range(3)]
    path.write_text("\n".join(lines), encoding="utf-8")
    found = Channels.read(path)
    assert (found.values == values).all()
    assert found.names == ("A1", "B7")
    assert found.conditions == ("c0", "c1", "c2")
    assert found.regions == ("R", "L")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("channel,value\nA,1", "lacks the column condition"),
        ("channel,condition,value\nA,x,1\nA,x,2", "line 3: channel, condition and feature were there"),
        ("channel,condition,value\nA,x,much", "line 2: 'much' is no number"),
        ("channel,condition,value\nA,x,1\nA,y,1\nB,x,1", "no value for"),
        ("channel,condition,value", "no value for anything"),
        ("channel,condition,value\nA,x,nan\nA,y,1", "1 values are NaN"),
    ],
)
def test_an_unfit_csv_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "brain.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=said):
        Channels.read(path)
    with pytest.raises(InputError, match="no file"):
        Channels.read(tmp_path / "none.csv")


def test_unfit_arrays_and_conditions_are_refused(tiny_gpt2: Any, features: Features) -> None:
    units = UnitSet.of(tiny_gpt2, ["mlp.0.0"])
    with pytest.raises(InputError, match="conditions of the model"):
        similarity(features, Channels.of(np.ones((2, 5, 2)), list("abcde")), units)
    few = Features.of(tiny_gpt2, "mlp", np.ones((384, 3, 2)), list("abc"))
    with pytest.raises(InputError, match="fewer than 4"):
        similarity(few, Channels.of(np.ones((2, 3, 2)), list("abc")), units)
    with pytest.raises(InputError, match="top=0"):
        similarity(features, Channels.of(np.ones((2, 6, 2)), CONDITIONS), units, top=0)
    with pytest.raises(InputError, match="of 3 units given, but mlp has 384"):
        Features.of(tiny_gpt2, "mlp", np.ones((3, 6, 2)), CONDITIONS)
    with pytest.raises(InputError, match="no site 'brain'"):
        Features.of(tiny_gpt2, "brain", np.ones((3, 6, 2)), CONDITIONS)
    with pytest.raises(InputError, match="1 names given for 2"):
        Channels.of(np.ones((2, 6)), CONDITIONS, names=["a"])
    with pytest.raises(InputError, match="every condition once"):
        Channels.of(np.ones((2, 6)), ["a"] * 6)
    with pytest.raises(InputError, match="lies in"):
        itpc(np.ones((2, 300)), sampling_rate=1, skip_seconds=0, band=(5, 6))
    with pytest.raises(InputError, match="less 64 samples"):
        itpc(np.ones((2, 60)), sampling_rate=64)


def test_responses_are_the_spectrum_of_the_mean_trial(tiny_gpt2: Any) -> None:
    trials = {"a": ["the cat sat on the mat and so", "two and two make four or so it"], "b": ["a b c d e f g h"] * 3}
    found = responses(tiny_gpt2, trials, skip_units=2, band=(0.5, 2), quiet=True)
    assert found.conditions == ("a", "b")
    for at, (name, texts) in enumerate(trials.items()):
        sentences = Sentences.of(texts, name=name, fewest=1)
        whole = np.arange(8)[None]
        series = tagging.brute_force(tiny_gpt2, [joined(sentences, np.array([i]), whole) for i in range(len(texts))])
        expected = np.abs(np.fft.rfft(series.mean(axis=0)[2:], axis=0))[1:].T  # bins of 6 units: 0.67, 1.33, 2 Hz
        np.testing.assert_allclose(found.values[:, at], expected, atol=1e-4)
    with pytest.raises(InputError, match="all need the same"):
        responses(tiny_gpt2, {"a": ["a b c d e f g h"], "b": ["a b c d e f g h i"]}, quiet=True)
    with pytest.raises(InputError, match="no condition"):
        responses(tiny_gpt2, {}, quiet=True)
