"""Core neurons of labels: planted topics, similarity against chance, stability, permutation, noise, degenerate input."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.find.planted_skill import NOISE, noisy, text

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.find.core import classes_of, core, label_core
from patchclamp.find.core_similarity import jaccard, pairwise, random_jaccard, stability
from patchclamp.models.units import Layout
from patchclamp.record.statistics import Where
from patchclamp.record.statistics.core import Core

TOPICS = ("sea", "sky", "wood", "town")
GROUP = 10
WIDTH = GROUP * len(TOPICS)
KEPT = {"core": {"alpha": 0.4, "beta": 0.25, "prefixes": [2, 4, 8, 16]}}


def gate(seed: int, *, driven: bool = True) -> np.ndarray:
    """Neurons 10t .. 10t + 9 are positive on words of topic t only; which of them are strongest differs from word to word."""
    found = np.zeros((WIDTH, NOISE + len(TOPICS)))
    readers = np.random.default_rng(seed).normal(size=(WIDTH, NOISE))
    found[:, :NOISE] = readers / np.sqrt((readers**2).sum(1, keepdims=True))  # the words' noise moves each by about 1
    if driven:
        for unit in range(WIDTH):
            found[unit, NOISE + unit // GROUP] = 6.0
    return found


@pytest.fixture(scope="module")
def model():
    return noisy(TOPICS, [gate(0), gate(1)])


@pytest.fixture(scope="module")
def recording(model):
    return pc.record(model, pc.corpus(text(TOPICS, documents=30)), statistics=KEPT, quiet=True)


@pytest.fixture(scope="module")
def found(recording):
    return core(recording, beta=0.25, shuffles=60)


def group(topic: str) -> set[str]:
    start = TOPICS.index(topic) * GROUP
    return {f"mlp.{layer}.{unit}" for layer in range(2) for unit in range(start, start + GROUP)}


def test_planted_topics_are_the_cores(found) -> None:
    for topic in TOPICS:
        assert set(found.sets[topic].names()) == group(topic)
    assert found.class_counts() == {"specific": 80, "shared": 0, "general": 0, "rest": 0}
    assert found.details["labels"]["mean"] == 0
    assert found.details["labels"]["random"] == pytest.approx(random_jaccard(10, 10, 40))
    np.testing.assert_allclose(np.diag(found.details["labels"]["matrix"]), 1)


def test_the_topics_differ_more_than_shuffled_labels_do(found) -> None:
    alike = found.null["alike"]
    assert alike["observed"] == 0
    assert alike["lowest"] > 0
    assert alike["p"] == pytest.approx(1 / 61)
    assert all(entry["observed"] == 20 for entry in found.null["only_here"].values())
    assert {label: len(units) for label, units in found.select(fdr=0.01).items()} == dict.fromkeys(TOPICS, 20)
    assert all(set(found.select(fdr=0.01)[topic].names()) == group(topic) for topic in TOPICS)


def test_documents_of_one_topic_share_their_core_in_every_layer(found) -> None:
    entries = found.details["documents"]
    assert [entry["layer"] for entry in entries] == [None, 0, 1]
    for entry in entries:
        assert entry["within"] > 0.99
        assert entry["between"] == 0
        assert entry["p"] == pytest.approx(1 / 61)


def test_cores_of_beginnings_grow_into_the_cores_of_the_texts(found) -> None:
    for topic in TOPICS:
        entries = [entry for entry in found.details["stability"] if entry["label"] == topic]
        assert [entry["prefix"] for entry in entries] == [2, 4, 8, 16]
        own = [entry["own"] for entry in entries]
        assert own == sorted(own)
        assert own[-1] > 0.98
        assert all(entry["low"] <= entry["own"] <= entry["high"] for entry in entries)
        assert all(entry["own"] > entry["random"] for entry in entries)


def test_clustering_document_cores_recovers_the_topics(recording) -> None:
    from sklearn.cluster import KMeans
    from sklearn.metrics import adjusted_rand_score

    sets = np.concatenate([recording.get("core", topic).document_sets() for topic in TOPICS])
    given = np.repeat(np.arange(4), 30)
    groups = KMeans(4, n_init=5, random_state=42).fit_predict(sets.astype(float))
    assert adjusted_rand_score(given, groups) == 1


def test_silencing_another_topics_core_leaves_a_topic_alone_and_its_own_does_not(model, found) -> None:
    """The vectors that leave the MLP: without the core of its topic a text has none left, without another's all of it."""
    from patchclamp.models.hooks import observe, run

    def total(words: str) -> float:
        seen: list[float] = []
        ids = torch.tensor([model.tokenizer(words)["input_ids"]])
        with observe(model, [("mlp", 1)], lambda one: seen.append(float(one.values.sum()))):
            run(model, ids, stop_after=("mlp", 1))
        return seen[0]

    words = text(TOPICS)["sea"][0]
    plain = total(words)
    with pc.clamp(model, found.sets["town"], to=0.0):
        assert total(words) == pytest.approx(plain)
    with pc.clamp(model, found.sets["sea"], to=0.0):
        assert total(words) < 0.01 * plain


def test_stability_rises_with_the_text_and_drops_at_a_change_of_topic() -> None:
    """Tokens drawn at random from one topic: the core of m of them is ever more like that of all; then the topic changes."""
    rng = np.random.default_rng(0)
    width, length, prefixes = 200, 128, (4, 16, 64)
    level = {topic: rng.normal(size=width) for topic in (0, 1)}

    def statistic(topics) -> Core:
        held = Core(Layout("mlp", (width,)), folds=1, alpha=0.4, beta=0.2, prefixes=prefixes)
        for document in range(8):
            values = np.stack([level[topics(at)] + rng.normal(size=width) for at in range(length)])
            where = Where(np.full(length, document), np.arange(length), np.zeros(length, int), np.arange(length))
            held.begin(where)
            held.update(torch.from_numpy(values.astype(np.float32)), 0, 0, where)
            held.end()
        held.close(range(8))
        return held

    steady = [entry.own for entry in stability("steady", statistic(lambda at: 0), max_documents=50, seed=0)]
    turned = [entry.own for entry in stability("turned", statistic(lambda at: int(at >= 64)), max_documents=50, seed=0)]
    assert steady == sorted(steady)
    assert steady[-1] > 0.85
    assert turned[-1] < 0.7


def test_permuting_the_neurons_permutes_the_core(recording) -> None:
    rng = np.random.default_rng(3)
    orders = [rng.permutation(WIDTH) for _ in range(2)]
    moved = noisy(TOPICS, [gate(0)[orders[0]], gate(1)[orders[1]]])
    other = core(
        pc.record(moved, pc.corpus(text(TOPICS, documents=30)), statistics=KEPT, quiet=True), beta=0.25, shuffles=0
    )
    plain = core(recording, beta=0.25, shuffles=0)
    for layer, order in enumerate(orders):
        span = plain.layout.slice(layer)
        np.testing.assert_allclose(other.scores[:, span], plain.scores[:, span][:, order], atol=1e-12)
        np.testing.assert_array_equal(other.chosen[:, span], plain.chosen[:, span][:, order])


@pytest.mark.parametrize("seed", range(3))
def test_labels_without_topics_are_not_told_apart(seed: int) -> None:
    noise = noisy(TOPICS, [gate(seed, driven=False)], seed=seed)
    lines = text(TOPICS, documents=24, seed=seed + 5)
    found = core(pc.record(noise, pc.corpus(lines), statistics=KEPT, quiet=True), shuffles=300, seed=seed)
    assert found.null["alike"]["p"] > 0.005
    assert found.details["documents"][0]["p"] > 0.005
    assert sum(map(len, found.select(fdr=0.05).values())) <= 1
    assert found.details["labels"]["mean"] > 2 * found.details["labels"]["random"]


def test_negative_products_of_a_gated_mlp_are_left_out_unless_ranked_by_size() -> None:
    """SiLU gates are positive on the topic, half of the up projections are negative: their products are never core."""
    gates = [gate(0)]
    ups = np.zeros((WIDTH, NOISE + len(TOPICS) + 1))
    ups[:, -1] = np.where(np.arange(WIDTH) % 2, 1.0, -1.0)
    gated = noisy(TOPICS, gates, ups=ups, act="silu")
    lines = pc.corpus(text(TOPICS, documents=10))
    positive = core(pc.record(gated, lines, statistics={"core": {"alpha": 1.0}}, quiet=True), beta=0.125, shuffles=0)
    by_size = core(
        pc.record(gated, lines, statistics={"core": {"alpha": 0.25, "by": "abs"}}, quiet=True), beta=0.25, shuffles=0
    )
    for at, topic in enumerate(TOPICS):
        units = range(at * GROUP, (at + 1) * GROUP)
        assert set(positive.sets[topic].names()) == {f"mlp.0.{unit}" for unit in units if unit % 2}
        assert set(by_size.sets[topic].names()) == {f"mlp.0.{unit}" for unit in units}


def test_a_finding_survives_saving(found, tmp_path) -> None:
    read = pc.Finding.load(found.save(tmp_path / "core.sets.json"))
    assert {k: v.names() for k, v in read.sets.items()} == {k: v.names() for k, v in found.sets.items()}
    assert read.class_counts() == found.class_counts()
    assert read.details["stability"] == found.details["stability"]
    assert "core" in repr(found)


def test_one_label_has_a_core_but_nothing_to_compare(model) -> None:
    alone = core(pc.record(model, pc.corpus(sea=text(TOPICS)["sea"]), statistics=("core",), quiet=True), beta=0.25)
    assert set(alone.sets["sea"].names()) == group("sea")
    assert not alone.null["available"]
    assert alone.p_values is None
    assert alone.details["documents"] == []


@given(st.integers(0, 12), st.integers(0, 12))
@settings(max_examples=20, deadline=None)
def test_the_random_expectation_equals_drawing_all_pairs(first: int, second: int) -> None:
    width = 12
    if first + second == 0:
        assert random_jaccard(first, second, width) == 1
        return
    fixed = set(range(first))
    drawn = itertools.islice(itertools.combinations(range(width), second), 1000)
    values = [len(fixed & set(other)) / len(fixed | set(other)) for other in drawn]
    assert random_jaccard(first, second, width) == pytest.approx(np.mean(values))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_jaccard_of_all_pairs_equals_sets(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((4, 9)) < 0.3, rng.random((3, 9)) < 0.3
    expected = [
        [1.0 if not (x | y).any() else len({*np.flatnonzero(x)} & {*np.flatnonzero(y)}) / (x | y).sum() for y in b]
        for x in a
    ]
    np.testing.assert_allclose(pairwise(a, b), expected)
    np.testing.assert_allclose(jaccard(a[:3], b), np.diagonal(expected))


def test_classes_partition_the_units() -> None:
    chosen = np.array([[1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 0, 1]], dtype=bool)
    assert classes_of(chosen).tolist() == [0, 1, 2, 3, 0]
    assert classes_of(chosen[:1]).tolist() == [0, 0, 0, 3, 3]


def test_layers_have_cores_of_their_own_size() -> None:
    layout = Layout("mlp", (4, 0, 10))
    counts = np.arange(14)[None].repeat(2, 0)
    chosen = label_core(counts, np.zeros((2, 14)), layout, 0.25)
    assert np.flatnonzero(chosen[0]).tolist() == [3, 12, 13]
    assert label_core(counts, np.zeros((2, 14)), layout, 1.0)[0].sum() == 13  # the unit with a count of 0 is never core


@pytest.mark.parametrize(
    "arguments", [{"beta": 0.0}, {"beta": 1.1}, {"site": "gate"}, {"min_tokens": 10**6}, {"shuffles": -1}]
)
def test_bad_arguments_are_refused(recording, arguments: dict) -> None:
    with pytest.raises(InputError):
        core(recording, **arguments)


def test_a_recording_without_core_says_what_to_record(model) -> None:
    plain = pc.record(model, pc.corpus(text(TOPICS, documents=4)), quiet=True)
    with pytest.raises(InputError, match="statistics="):
        core(plain)
