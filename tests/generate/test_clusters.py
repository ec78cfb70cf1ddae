"""Clusters fitted offline: planted topics found again, prompts sent to the right one, files, refusals; and the predictor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.generate.planted_topics import TOPICS, WORDS, group, planted_model, text_of

import patchclamp as pc
from patchclamp.core.errors import DamagedError, InputError, MismatchError
from patchclamp.generate import Clusters, Predictor, core_sparse, fit_clusters, fit_predictor, hot_neurons
from patchclamp.generate.clusters import elbow
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model

ASKED: dict[str, Any] = {"token_share": 1.0, "vector_share": 0.25, "quiet": True}
SPARSE: dict[str, Any] = {"share": 0.25, "token_share": 1.0, "layers": [1], "min_tokens": 0}


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model()


@pytest.fixture(scope="module")
def text() -> Any:
    return pc.corpus({TOPICS[topic]: text_of(topic, 8) for topic in range(len(TOPICS))})


@pytest.fixture(scope="module")
def mixed() -> Any:
    """The same texts in turn, under one label."""
    rows = zip(*(text_of(topic, 8) for topic in range(len(TOPICS))), strict=True)
    return pc.corpus(all=[one for row in rows for one in row])


@pytest.fixture(scope="module")
def labelled(planted: Any, text: Any) -> Clusters:
    return fit_clusters(planted, text, **ASKED)


def test_groups_by_label_hold_the_planted_neurons(planted: Any, labelled: Clusters) -> None:
    assert labelled.names == TOPICS
    assert labelled.layer == 1
    assert labelled.documents == (8, 8, 8, 8)
    for topic in range(len(TOPICS)):
        assert labelled.core(topic, 1, 8).tolist() == group(topic)
        assert [unit.index for unit in labelled.units(TOPICS[topic], 0.25).layers([1])] == group(topic)
        assert labelled.core(topic, 1, 32).tolist() == group(topic)  # a neuron of no token's core is never among them


@pytest.mark.parametrize("clusters", [None, 4])
def test_k_means_recovers_the_topics_without_labels(planted: Any, mixed: Any, clusters: int | None) -> None:
    found = fit_clusters(planted, mixed, by_label=False, clusters=clusters, **ASKED)
    assert len(found.names) == 4
    assert sorted(found.core(number, 1, 8).tolist() for number in range(4)) == [group(topic) for topic in range(4)]
    assert found.documents == (8, 8, 8, 8)
    assert found.tokens == (96, 96, 96, 96)  # no group holds another group's text


def test_one_word_prompts_go_to_their_topic(planted: Any, labelled: Clusters) -> None:
    prompts = [f"{TOPICS[topic]}1" for topic in (2, 0, 3, 1)]
    with core_sparse(planted, guide=labelled, **SPARSE) as sparse:
        written = planted.generate(prompts, max_new_tokens=3)
        assert [unit.index for unit in sparse.cores()[0]] == group(2)
        beams = planted.generate(prompts, max_new_tokens=3, num_beams=2)
    assert written == [" ".join([f"{TOPICS[topic]}{WORDS - 1}"] * 3) for topic in (2, 0, 3, 1)]
    assert beams == written
    with core_sparse(planted, guide=labelled, **SPARSE), pytest.raises(InputError, match="KV cache"):
        planted.generate(prompts, max_new_tokens=3, use_cache=False)


def test_the_grouping_layer_need_not_be_cut(planted: Any, labelled: Clusters) -> None:
    with core_sparse(planted, guide=labelled, **(SPARSE | {"layers": [0]})) as sparse:
        planted.generate(["a1 a2"], max_new_tokens=3)
        assert sparse.layers == (0,)
        assert sparse.cores()[0].names() == []  # no neuron of layer 0 is ever active there


def test_hot_neurons_are_one_group_of_all_text(planted: Any, text: Any) -> None:
    hot = hot_neurons(planted, text, token_share=1.0, quiet=True)
    assert hot.names == ("all text",)
    frequencies = hot.counts[0][32:]
    assert frequencies.tolist() == [96] * 32
    louder = hot.core(0, 1, 8).tolist()  # equal frequencies: the two strongest of every group
    assert louder == [number for topic in range(4) for number in group(topic)[-2:]]
    with core_sparse(planted, guide=hot, **(SPARSE | {"token_share": 0.3})) as sparse:
        planted.generate(["a1 a2", "b2"], max_new_tokens=2)
        assert [[unit.index for unit in core] for core in sparse.cores()] == [louder, louder]


def test_clusters_are_saved_and_read_back_and_damage_is_seen(planted: Any, labelled: Clusters, tmp_path: Path) -> None:
    path = labelled.save(tmp_path / "topics.json")
    again = Clusters.load(path)
    assert again.names == labelled.names
    assert repr(again) == repr(labelled)
    for name in ("counts", "mass", "centres"):
        assert np.array_equal(getattr(again, name), getattr(labelled, name))
    with core_sparse(planted, guide=again, **SPARSE):
        assert planted.generate("b1", max_new_tokens=1) == [f"b{WORDS - 1}"]
    body = json.loads(path.read_text(encoding="utf-8"))
    (tmp_path / "short.json").write_text(json.dumps({**body, "layer": 9}), encoding="utf-8")
    with pytest.raises(DamagedError, match="not a complete"):
        Clusters.load(tmp_path / "short.json")
    body["model"]["sites"]["mlp"]["widths"] = [32, 40]
    (tmp_path / "wider.json").write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(DamagedError, match="has shape"):
        Clusters.load(tmp_path / "wider.json")
    arrays = tmp_path / "topics.safetensors"
    arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedError, match="is missing or is not the file"):
        Clusters.load(path)


def test_clusters_of_another_model_or_counted_otherwise_are_refused(planted: Any, labelled: Clusters) -> None:
    other = load(tiny_model("llama"))
    with pytest.raises(MismatchError), core_sparse(other, guide=labelled, token_share=1.0):
        pass
    with pytest.raises(InputError, match="fitted with token_share"), core_sparse(planted, guide=labelled):
        pass
    with pytest.raises(InputError, match="no group is called 'e'"):
        labelled.units("e", 0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clusters": 0}, "clusters=0"),
        ({"clusters": 90}, "clusters=90"),
        ({"depth": 2.0}, "depth=2.0"),
        ({"by": "size"}, "ranked by"),
    ],
)
def test_clusters_that_cannot_be_fitted_are_refused(planted: Any, mixed: Any, arguments: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_clusters(planted, mixed, **{"by_label": False, **ASKED, **arguments})


def test_too_few_documents_for_a_number_of_clusters_are_refused(planted: Any) -> None:
    with pytest.raises(InputError, match="k-means needs at least 4"):
        fit_clusters(planted, pc.corpus(x=["a1 a2 a3", "b1 b2"]), by_label=False, **ASKED)


def test_the_elbow_is_the_largest_second_difference() -> None:
    assert elbow([100, 60, 20, 18, 17, 16]) == 3
    assert elbow([100, 20, 18, 17]) == 2
    assert elbow([5]) == 1


def test_the_predictor_learns_which_neurons_a_planted_token_uses(planted: Any, text: Any, tmp_path: Path) -> None:
    found = fit_predictor(planted, text, share=0.25, layers=[1], epochs=60, batch_tokens=64, quiet=True)
    assert found.recall[1] > 0.95
    again = Predictor.load(found.save(tmp_path / "predictor.json"))
    assert again.bytes == found.bytes
    for guide in (found, again):
        with core_sparse(planted, guide=guide, **SPARSE) as sparse:
            written = planted.generate([f"{topic}1 {topic}2" for topic in TOPICS], max_new_tokens=3)
            assert sparse.cores() == []
    assert written == [" ".join([f"{topic}{WORDS - 1}"] * 3) for topic in TOPICS]
    with (
        pytest.raises(InputError, match="not layer 0"),
        core_sparse(planted, guide=found, **(SPARSE | {"layers": [0]})),
    ):
        pass
    with pytest.raises(MismatchError), core_sparse(load(tiny_model("llama")), guide=found, **SPARSE):
        pass
    same = fit_predictor(planted, text, share=0.25, layers=[1], epochs=60, batch_tokens=64, quiet=True)
    assert torch.equal(same.parts[1]["second"], found.parts[1]["second"])


@pytest.mark.parametrize("arguments", [{"epochs": 0}, {"hidden": 0}, {"share": 0.0}, {"layers": [4]}])
def test_a_predictor_that_cannot_be_trained_is_refused(planted: Any, text: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        fit_predictor(planted, text, quiet=True, **arguments)
