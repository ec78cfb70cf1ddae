"""A selection finds the samples that share features with the target, whatever their words, their order and their length."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.train.planted_topics import VARIANTS, latents, planted_model, texts

from patchclamp.core.errors import DamagedError, InputError, ModelError
from patchclamp.data import Task, corpus
from patchclamp.models.features import LinearDictionary
from patchclamp.train.profiles import Profiler
from patchclamp.train.samples import Samples
from patchclamp.train.select import select
from patchclamp.train.selected import Selected
from patchclamp.train.selection_bm25 import words
from patchclamp.train.selection_features import compared, overlaps
from patchclamp.train.selections import selections
from patchclamp.train.similarity import cosine, euclidean, jaccard, jaccard_shares

POOL = corpus({topic: texts(topic, 60, range(12, VARIANTS), 0) for topic in "abc"})
TARGET = texts("a", 10, range(12), 1)  # other words of the same latents
vectors = st.lists(st.floats(0, 4, width=32), min_size=6, max_size=6)


@pytest.fixture(scope="module")
def planted() -> Any:
    return planted_model()


def right(found: Selected) -> float:
    """Share of the chosen samples that are of topic a."""
    return found.counts.get("a", 0) / len(found)


def test_features_find_all_samples_of_the_targets_topic_where_words_and_mixed_neurons_fail(planted: Any) -> None:
    by = {
        "features": select(POOL, TARGET, budget=60, model=planted, dictionary=latents(), quiet=True),
        "neurons": select(POOL, TARGET, "neurons", budget=60, model=planted, layer=0, quiet=True),
        "bm25": select(POOL, TARGET, "bm25", budget=60),
        "random": select(POOL, how="random", budget=60),
    }
    assert right(by["features"]) == 1.0
    assert 0.3 < right(by["neurons"]) < 0.9  # neurons of a fire for b alike
    assert by["neurons"].counts.get("c", 0) == 0
    assert right(by["bm25"]) < 0.6
    assert right(by["random"]) < 0.6
    farthest = select(POOL, TARGET, budget=120, reverse=True, model=planted, dictionary=latents(), quiet=True)
    assert farthest.counts == {"b": 60, "c": 60}


def test_jaccard_has_the_values_of_its_formula() -> None:
    z = torch.tensor([[1.0, 0, 2]])
    assert float(jaccard(z, torch.tensor([2.0, 1, 0]))) == pytest.approx(0.2)
    assert float(jaccard(z, z[0])) == 1.0
    assert float(jaccard(2 * z, z[0])) == pytest.approx(0.5)
    assert float(jaccard(z, torch.tensor([0.0, 3, 0]))) == 0.0
    assert float(jaccard(torch.zeros(1, 3), torch.zeros(3))) == 0.0
    prototype = torch.tensor([1.0, 1, 0, 0, 1])
    samples = torch.tensor([[0.8, 0, 0, 0, 1], [0, 0, 1, 1, 1]])
    torch.testing.assert_close(jaccard(samples, prototype), torch.tensor([0.6, 0.2], dtype=torch.float64))
    mixed = torch.stack([samples[:, 0] + samples[:, 2], samples[:, 1] + samples[:, 3]], 1)
    turned = jaccard(mixed, torch.ones(2))  # polysemantic neurons turn the order round
    torch.testing.assert_close(turned, torch.tensor([0.4, 1.0], dtype=torch.float64))


@given(a=vectors, b=vectors, scale=st.floats(0.25, 4))
@settings(max_examples=25, deadline=None)
def test_jaccard_is_symmetric_bounded_and_blind_to_a_common_scale(a: list[float], b: list[float], scale: float) -> None:
    x, y = torch.tensor(a), torch.tensor(b)
    value = float(jaccard(x[None], y))
    top = sum(max(p, q) for p, q in zip(a, b, strict=True))
    wanted = sum(min(p, q) for p, q in zip(a, b, strict=True)) / top if top else 0.0
    assert value == pytest.approx(wanted, abs=1e-6)
    assert 0 <= value <= 1
    assert float(jaccard(y[None], x)) == pytest.approx(value, abs=1e-6)
    assert float(jaccard(scale * x[None], scale * y)) == pytest.approx(value, abs=1e-5)
    assert float(jaccard(torch.cat([x, torch.zeros(2)])[None], torch.cat([y, torch.zeros(2)]))) == pytest.approx(value)
    assert float(jaccard_shares(x[None], y).sum()) == pytest.approx(value, abs=1e-6)


def test_jaccard_of_sets_is_set_jaccard_and_negative_features_are_refused() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.random((2, 12)) < 0.4
        wanted = (a & b).sum() / max(1, (a | b).sum())
        assert float(jaccard(torch.tensor(a[None] * 1.0), torch.tensor(b * 1.0))) == pytest.approx(wanted)
    with pytest.raises(InputError, match="below 0"):
        jaccard(torch.tensor([[-1.0, 1]]), torch.ones(2))


def test_cosine_and_distance() -> None:
    z = torch.tensor([[3.0, 4], [0, 0]])
    torch.testing.assert_close(cosine(z, torch.tensor([1.0, 0])), torch.tensor([0.6, 0.0], dtype=torch.float64))
    torch.testing.assert_close(euclidean(z, torch.tensor([0.0, 0])), torch.tensor([-5.0, 0.0], dtype=torch.float64))


@pytest.mark.filterwarnings("ignore:.*repeat target samples")
@pytest.mark.parametrize("times", [2, 4])
def test_the_mean_ignores_length_and_the_sum_selects_by_it(planted: Any, times: int) -> None:
    base = texts("a", 1, range(4), 3)[0]
    longer = " ".join([base] * times)
    shared: dict[str, Any] = {"model": planted, "dictionary": latents(), "budget": 1.0, "quiet": True}
    assert select([longer], [base], **shared).scores[0] == pytest.approx(1.0, abs=1e-6)
    assert select([longer], [base], pooling="sum", **shared).scores[0] == pytest.approx(1 / times, abs=1e-6)
    assert select([base], [longer], pooling="sum", **shared).scores[0] == pytest.approx(1 / times, abs=1e-6)


def test_scores_are_those_of_a_plain_loop(tiny_llama: Any) -> None:
    torch.manual_seed(1)
    dictionary = LinearDictionary("d", "resid", 1, torch.randn(40, 32), activation="relu")
    pool, target = ["The cat sat on the mat.", "Two and two", "le chat"], ["The cat", "regarde la lune"]

    def profile(text: str) -> torch.Tensor:
        ids = torch.tensor([tiny_llama.tokenize(text)])
        x = tiny_llama.hf(ids, output_hidden_states=True).hidden_states[2][0, 1:]  # without BOS
        f = dictionary.encode(x)
        return torch.where(f >= f.topk(8, dim=1).values[:, -1:], f, 0.0).mean(0)

    prototype = torch.stack([profile(text) for text in target]).mean(0)
    wanted = [
        float(torch.minimum(profile(text), prototype).sum() / torch.maximum(profile(text), prototype).sum())
        for text in pool
    ]
    found = select(pool, target, budget=3, model=tiny_llama, dictionary=dictionary, top=8, quiet=True)
    np.testing.assert_allclose(found.scores, wanted, atol=1e-5)
    assert found.indices.tolist() == np.argsort(-np.array(wanted)).tolist()


@given(order=st.permutations(range(12)), batch_tokens=st.integers(4, 200))
@settings(max_examples=10, deadline=None)
def test_order_of_the_pool_and_size_of_batches_dont_matter(order: list[int], batch_tokens: int) -> None:
    model = planted_model()
    pool = [*texts("a", 6, range(12), 0), *(" ".join(text.split()[:5]) for text in texts("b", 6, range(12), 0))]
    plain = select(pool, TARGET, budget=12, model=model, dictionary=latents(), quiet=True)
    moved = select(
        [pool[k] for k in order], TARGET, budget=12, model=model, dictionary=latents(LATENT_MORE),
        batch_tokens=batch_tokens, quiet=True,
    )  # fmt: skip
    np.testing.assert_allclose(moved.scores, plain.scores[order], atol=1e-5)


LATENT_MORE = 40  # eight further latents that never fire


def test_copies_of_one_target_sample_are_that_sample_and_the_nearest_counts_alone(planted: Any) -> None:
    shared: dict[str, Any] = {"model": planted, "dictionary": latents(), "budget": 1.0, "quiet": True}
    one = select(POOL, TARGET[:1], **shared)
    np.testing.assert_allclose(select(POOL, TARGET[:1] * 3, **shared).scores, one.scores, atol=1e-6)
    two = select(POOL, TARGET[1:2], **shared)
    nearest = select(POOL, TARGET[:2], against="nearest", **shared)
    np.testing.assert_allclose(nearest.scores, np.maximum(one.scores, two.scores), atol=1e-6)


def test_features_of_most_samples_can_be_left_out(planted: Any) -> None:
    shared: dict[str, Any] = {"model": planted, "dictionary": latents(), "budget": 60, "quiet": True}
    found = select(POOL, TARGET, common=0.5, **shared)
    assert found.details["left_out"] == 5  # the function words
    assert max(found.scores[60:]) == 0.0
    with pytest.raises(InputError, match="every feature fires"):
        select(["f0x1 f1x1"], ["f0x1"], model=planted, dictionary=LinearDictionary(
            "one", "resid", 0, torch.ones(1, 32), activation="relu"), common=0.5, budget=1, quiet=True)  # fmt: skip


def test_shares_of_features_add_up_to_the_mean_similarity(planted: Any) -> None:
    found = select(POOL, TARGET, budget=0.1, model=planted, dictionary=latents(), quiet=True)
    profiler = Profiler(planted, "resid", 0, latents(), quiet=True)
    rows = overlaps(profiler, Samples.of(found.corpus()), Samples.of(TARGET, "target"), k=32)
    assert sum(row["share"] for row in rows) == pytest.approx(found.scores[found.indices].mean(), abs=1e-6)
    assert {row["unit"] for row in rows[:10]} == {f"planted.0.{k}" for k in [*range(5), *range(20, 25)]}


def test_all_metrics_in_one_pass_are_those_of_a_selection_each(planted: Any) -> None:
    targets = {"a": Samples.of(TARGET), "b": Samples.of(texts("b", 4, range(12), 1))}
    pool = Samples.of([*texts("a", 5, range(12), 0), "b0x1 b1x1 f0x1"])
    found = compared(Profiler(planted, "resid", 0, latents(), quiet=True), pool, targets)
    assert len(found) == 2 * 3 * 2
    shared: dict[str, Any] = {"model": planted, "dictionary": latents(), "budget": 1.0, "quiet": True}
    for (name, metric, pooling), scores in found.items():
        one = select(pool, targets[name], metric=metric, pooling=pooling, **shared)
        np.testing.assert_allclose(scores, one.scores, atol=1e-5)


def test_bm25_is_its_formula() -> None:
    pool = ["the cat sat", "the dog and the dog", "cat cat", "a fish", ""]
    target = ["The cat!", "dog dog cat"]
    k1, b, n = 1.2, 0.6, len(pool)
    documents = [words(text) for text in pool]
    mean = sum(map(len, documents)) / n
    wanted = []
    for document in documents:
        total = 0.0
        for query in target:
            for word in words(query):
                df = sum(word in other for other in documents)
                idf = math.log(1 + (n - df + 0.5) / (df + 0.5))
                tf = Counter(document)[word]
                total += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(document) / mean))
        wanted.append(total / len(target))
    pool = [*pool[:4], "..."]  # a text must not be empty; this one has no words
    found = select(pool, target, "bm25", budget=1.0, k1=k1, b=b)
    np.testing.assert_allclose(found.scores, wanted, atol=1e-12)
    assert words("Été 猫が好き don't") == ["été", "猫", "が", "好", "き", "don", "t"]


def test_a_budget_is_a_number_a_share_or_tokens(planted: Any) -> None:
    shared: dict[str, Any] = {"model": planted, "dictionary": latents(), "quiet": True}
    assert len(select(POOL, TARGET, budget=0.051, **shared)) == 10  # 9.18, rounded up
    assert len(select(POOL, TARGET, budget=1.0, **shared)) == 180
    assert len(select(POOL, TARGET, budget=1, **shared)) == 1
    found = select(POOL, TARGET, budget=40, counting="tokens", **shared)
    assert len(found) == 3  # of twelve tokens each
    assert found.indices.tolist() == select(POOL, TARGET, budget=3, **shared).indices.tolist()
    assert len(select(POOL, TARGET, "bm25", budget=0.5, counting="tokens", model=planted)) == 90
    for budget in (181, 0, -3, 0.0, 1.5, True, "5"):
        with pytest.raises(InputError, match="budget"):
            select(POOL, TARGET, budget=budget, **shared)
    with pytest.raises(InputError, match="more than the budget of 5"):
        select(POOL, TARGET, budget=5, counting="tokens", **shared)
    with pytest.raises(InputError, match="give model="):
        select(POOL, TARGET, "bm25", budget=50, counting="tokens")


@pytest.mark.filterwarnings("ignore:.*repeat earlier pool samples")
def test_ties_go_to_the_earlier_sample_and_copies_can_be_left_out(planted: Any) -> None:
    one, other = texts("a", 2, range(12), 5)
    pool = [other, one, one, TARGET[0]]
    shared: dict[str, Any] = {"model": planted, "dictionary": latents(), "quiet": True}
    with pytest.warns(UserWarning, match="1 pool samples repeat target samples; they can be left out"):
        found = select(pool, TARGET[:1], budget=4, **shared)
    assert found.indices[0] == 3
    rank = found.indices.tolist()
    assert rank.index(1) + 1 == rank.index(2)
    with pytest.warns(UserWarning, match="were left out"):
        clean = select(pool, TARGET[:1], budget=2, copies="drop", **shared)
    assert sorted(clean.indices.tolist()) == [0, 1]
    with pytest.raises(InputError, match="a budget of 3 samples asked for, but the pool has 2"):
        select(pool, TARGET[:1], budget=3, copies="drop", **shared)


@pytest.mark.filterwarnings("ignore:.*repeat target samples")
def test_tasks_are_pools_and_give_tasks_back(planted: Any) -> None:
    items = [{"prompt": " ".join(t.split()[:-1]), "answer": " " + t.split()[-1]} for t in texts("a", 3, range(12), 7)]
    items += [{"prompt": " ".join(t.split()[:-1]), "answer": " " + t.split()[-1]} for t in texts("c", 3, range(12), 7)]
    found = select(
        Task.of(items, name="mine"), Task.of(items[:2]), budget=3, model=planted, dictionary=latents(), quiet=True
    )
    assert sorted(found.indices.tolist()) == [0, 1, 2]
    assert sorted(item.prompt for item in found.task()) == sorted(item["prompt"] for item in items[:3])
    assert all("response" in document.spans for _, document in found.samples)
    with pytest.raises(InputError, match="not from a task"):
        select(POOL, TARGET, "bm25", budget=3).task()


def test_a_saved_selection_is_read_back(planted: Any, tmp_path: Path) -> None:
    found = select(POOL, TARGET, budget=5, model=planted, dictionary=latents(), quiet=True)
    again = Selected.load(found.save(tmp_path / "found.json"))
    assert again.rows == found.rows
    np.testing.assert_array_equal(again.scores, found.scores)
    assert again.provenance["arguments"]["dictionary"]["fingerprint"] == latents().fingerprint
    assert [d.text for d in again.corpus().documents("a")] == [row["text"] for row in found.rows]
    found.save(tmp_path / "found.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["sample"] for line in lines] == found.indices.tolist()
    (tmp_path / "bad.json").write_text('{"format": "patchclamp.selection/1"}', encoding="utf-8")
    with pytest.raises(DamagedError, match="not a complete"):
        Selected.load(tmp_path / "bad.json")
    assert "selected by features" in repr(found)
    assert "<table>" in found._repr_html_()


def test_every_way_is_registered_with_an_example() -> None:
    ways = {entry.name: entry.target.__doc__ for entry in selections}
    assert set(ways) >= {"features", "neurons", "embedding", "bm25", "random"}
    assert all(f"Example: `patchclamp select {name}" in (text or "") for name, text in ways.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pool": []}, "the pool is empty"),
        ({"target": []}, "the target is empty"),
        ({"pool": "a text"}, "the pool is a str"),
        ({"target": None}, "needs target samples"),
        ({"how": "guess"}, "no selection is called 'guess'"),
        ({"model": None}, "needs a model"),
        ({"dictionary": None}, "features of what"),
        ({"top": 33}, "the 33 largest of 32 features"),
        ({"metric": "edit"}, "metric 'edit'"),
        ({"pooling": "max"}, "pooling 'max'"),
        ({"against": "all"}, "against='all'"),
        ({"common": 1.5}, "common=1.5"),
        ({"k1": 2}, "has no option 'k1'; it has dictionary"),
        ({"counting": "words"}, "counting=.words."),
        ({"max_length": 1000}, "takes up to 256"),
        ({"pool": POOL.limited(max_tokens=10)}, "limit it with max_documents"),
        ({"dictionary": LinearDictionary("d", "resid", 0, torch.eye(8))}, "takes vectors of 8 numbers, but resid.0 has 32"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(planted: Any, arguments: dict[str, Any], message: str) -> None:
    given = {"pool": POOL, "target": TARGET, "budget": 5, "model": planted, "dictionary": latents(), "quiet": True}
    with pytest.raises(InputError, match=message):
        select(**{**given, **arguments})


def test_negative_features_need_clip(planted: Any) -> None:
    signed = LinearDictionary("d", "resid", 0, -torch.eye(32))
    shared: dict[str, Any] = {"budget": 5, "model": planted, "dictionary": signed, "quiet": True}
    with pytest.raises(InputError, match="below 0"):
        select(POOL, TARGET, **shared)
    assert select(POOL, TARGET, clip=True, **shared).scores.max() == 0.0


def test_samples_without_tokens_score_nothing_and_a_target_without_tokens_is_refused(tiny_gpt2: Any) -> None:
    torch.manual_seed(0)
    dictionary = LinearDictionary("d", "resid", 1, torch.randn(16, 32), activation="relu")
    shared: dict[str, Any] = {"model": tiny_gpt2, "dictionary": dictionary, "quiet": True}
    with pytest.warns(UserWarning, match="1 pool samples have no token"):
        found = select(["</s>", "the cat"], ["a cat"], budget=2, **shared)
    assert found.scores[0] == 0.0
    assert found.indices.tolist() == [1, 0]
    with pytest.raises(InputError, match="no target sample has a token"):
        select(["the cat"], ["</s>"], budget=1, **shared)
    with pytest.raises(InputError, match="no target sample has a token"):
        select(["the cat"], ["</s>"], budget=1, against="nearest", **shared)
    with pytest.raises(InputError, match="the target has no words"):
        select(["the cat"], ["..."], "bm25", budget=1)


def test_activations_that_are_not_finite_name_the_sample(planted: Any) -> None:
    broken = planted_model()
    with torch.no_grad():
        broken.hf.model.embed_tokens.weight[broken.tokenizer("b0x1")["input_ids"][0]] = float("nan")
    with pytest.raises(ModelError, match="sample 1 are NaN"):
        select(["a0x1", "b0x1 a0x1"], ["a0x1"], budget=1, model=broken, dictionary=latents(), quiet=True)


def test_a_dictionary_of_another_model_is_said(planted: Any) -> None:
    other = latents()
    other.model = {"name": "other", "fingerprint": "0" * 64}
    with pytest.warns(UserWarning, match="made for another model"):
        select(POOL, TARGET, budget=5, model=planted, dictionary=other, quiet=True)


def test_half_precision_and_experts_can_be_read() -> None:
    from patchclamp.models.load import load
    from patchclamp.models.tiny import tiny_model

    half = load(planted_model().hf, tokenizer=planted_model().tokenizer, dtype="bfloat16", check=False)
    found = select(POOL, TARGET, budget=60, model=half, dictionary=latents(), quiet=True)
    assert right(found) == 1.0
    mixture = load(tiny_model("mixtral"), tokenizer=planted_model().tokenizer, check=False)
    if mixture.hf.config.vocab_size >= len(planted_model().tokenizer):
        assert np.isfinite(
            select(POOL, TARGET, "neurons", budget=5, model=mixture, site="mlp", quiet=True).scores
        ).all()
