"""Concept detection and steering scores: closed forms, another route through the model, and judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from patchclamp.core.errors import Error, InputError, MismatchError
from patchclamp.intervene import Direction, intervention
from patchclamp.intervene.strengths import match_kl, prompt_ids, steered
from patchclamp.models.collect import collect
from patchclamp.models.features import LinearDictionary
from patchclamp.models.load import load
from patchclamp.models.tiny import tiny_model
from patchclamp.read.baselines import random_directions
from patchclamp.read.concept import Concept
from patchclamp.read.concepts import (
    concept_detection,
    concept_scores,
    detection_of,
    sentence_scores,
    steering_score,
    steering_scores,
)
from patchclamp.read.judges import AskingJudge, OfflineJudge, checked, harmonic
from patchclamp.read.steering import write
from patchclamp.read.tapped import tap_width, values_at

CATS = ["The cat sat on the mat.", "the cat looked at the moon", "A cat is on the mat and looked."]
KATZEN = ["Die Katze sitzt auf der Matte.", "die Katze schaut zum Mond", "Katze auf Matte und Mond."]
CONCEPT = Concept("German", tuple(KATZEN), tuple(CATS))
OTHER = Concept(
    "German", ("Die Matte und der Mond.", "zum Mond auf Matte"), ("The mat and the moon.", "on the moon it sat")
)
IDS = torch.tensor([[1, 20, 30, 40, 50], [1, 60, 70, 80, 90]])


def dictionary(model: Any, k: int = 6, layer: int = 1, site: str = "mlp", seed: int = 0) -> LinearDictionary:
    width = model.layouts[site].widths[layer]
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((k, width))).float()
    return LinearDictionary.of_directions("raw", site, layer, rows, model=model)


def test_a_sentence_scores_its_largest_cosine(tiny_gpt2: Any) -> None:
    features = dictionary(tiny_gpt2)
    found = sentence_scores(tiny_gpt2, features, [*CATS, *KATZEN], batch_tokens=32)
    layout = tiny_gpt2.layouts["mlp"]
    for row, text in zip(found, [*CATS, *KATZEN], strict=True):
        ids = torch.tensor([tiny_gpt2.tokenize(text)])
        values = collect(tiny_gpt2, "mlp", ids)[0, 1:, layout.slice(1)].double()  # the first token is <s>
        cosines = torch.nn.functional.cosine_similarity(values[:, None], features.directions.double()[None], dim=-1)
        np.testing.assert_allclose(row, cosines.amax(0).numpy(), atol=1e-5)


def test_detection_is_the_log_ratio_of_means_and_auroc() -> None:
    positive, neutral = np.array([[0.8, 0.1, -0.2], [0.4, 0.3, 0.1]]), np.array([[0.3, 0.3, 0.1], [0.1, 0.1, 0.1]])
    found = detection_of(positive, neutral, concept="x", dictionary="raw")
    np.testing.assert_allclose(found.scores[:2], [np.log(0.6 / 0.2), 0.0], atol=1e-12)
    assert np.isnan(found.scores[2])
    assert found.undefined == 1
    for feature in range(3):
        values = np.concatenate([positive[:, feature], neutral[:, feature]])
        assert found.auroc[feature] == pytest.approx(roc_auc_score([1, 1, 0, 0], values))
    assert found.best() == 0
    assert found.best("score") == 0
    assert found.rows()[2]["score"] is None
    with pytest.raises(InputError, match="by='mse'"):
        found.best("mse")


def test_the_planted_direction_detects_its_texts(tiny_gpt2: Any) -> None:
    layout = tiny_gpt2.layouts["mlp"]

    def mean(texts: list[str]) -> torch.Tensor:
        rows = [collect(tiny_gpt2, "mlp", torch.tensor([tiny_gpt2.tokenize(t)]))[0, 1:, layout.slice(1)] for t in texts]
        return torch.cat(rows).mean(0)

    gap = mean(KATZEN) - mean(CATS)
    noise = dictionary(tiny_gpt2, 5).directions
    features = LinearDictionary.of_directions("raw", "mlp", 1, torch.cat([noise, gap[None]]), model=tiny_gpt2)
    found = concept_detection(tiny_gpt2, features, KATZEN, CATS, concept="German")
    assert found.auroc[5] == 1.0
    assert found.positive[5] - found.neutral[5] == (found.positive - found.neutral).max()


def test_steering_adds_the_direction_and_nothing_else(tiny_gpt2: Any, tiny_llama: Any) -> None:
    for model in (tiny_gpt2, tiny_llama):
        features = dictionary(model, 2, layer=2)
        vectors = features.directions * torch.tensor([[3.0], [-1.5]])
        plain = model.logits(IDS)
        with steered(model, ("mlp", 2), vectors):
            both = model.logits(IDS)
            changed = collect(model, "resid", IDS)
        assert torch.equal(model.logits(IDS), plain)
        for row in range(2):  # another route: an intervention on a direction
            with intervention(model, Direction.of(model, "mlp", 2, vectors[row].numpy()), add=1.0).applied(model):
                wanted = model.logits(IDS[row : row + 1])
            torch.testing.assert_close(both[row : row + 1], wanted, atol=1e-4, rtol=1e-4)
        step = (changed - collect(model, "resid", IDS))[..., model.layouts["resid"].slice(2)]
        weight = model.anatomy.down(2).weight.detach()
        written = vectors @ (weight if weight.shape[0] == vectors.shape[1] else weight.T)
        torch.testing.assert_close(step, written[:, None].expand_as(step), atol=1e-4, rtol=1e-4)


def test_experts_are_read_and_steered_where_tokens_are_routed(tiny_tokenizer: Any) -> None:
    model = load(tiny_model("mixtral"), tokenizer=tiny_tokenizer, check=False)
    tap, layout = ("mlp", 0), model.layouts["mlp"]
    width = tap_width(model, tap)
    assert layout.experts[0] > 1
    plain = values_at(model, tap, width, IDS, None)
    wanted = collect(model, "mlp", IDS)[..., layout.slice(0)]
    torch.testing.assert_close(plain, wanted)
    vectors = torch.ones(2, width) * torch.tensor([[1.0], [2.0]])
    with steered(model, tap, vectors):
        moved = values_at(model, tap, width, IDS, None) - plain
    routed = (
        (plain.view(2, 5, layout.experts[0], -1) != 0)
        .any(-1, keepdim=True)
        .expand(2, 5, layout.experts[0], width // layout.experts[0])
    )
    expected = (routed * vectors[:, None].view(2, 1, layout.experts[0], -1)).reshape(2, 5, width)
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-5)


def test_a_wrong_number_of_directions_is_refused_and_the_model_stays_as_it_is(tiny_gpt2: Any) -> None:
    plain = tiny_gpt2.logits(IDS)
    with pytest.raises(InputError, match="3 directions"), steered(tiny_gpt2, ("mlp", 1), torch.ones(3, 128)):
        tiny_gpt2.logits(IDS)
    assert torch.equal(tiny_gpt2.logits(IDS), plain)


def test_matched_strengths_reach_their_target_and_grow_with_it(tiny_gpt2: Any) -> None:
    features, targets = dictionary(tiny_gpt2, 3).directions, (0.05, 0.1, 0.3)
    found = match_kl(tiny_gpt2, ("mlp", 1), features, "The cat", targets=targets)
    assert found.reached.all()
    ids = prompt_ids(tiny_gpt2, "The cat")
    plain = tiny_gpt2.logits(ids)[0, -1].double().log_softmax(-1)
    for row in range(3):
        assert (found.alphas[row].diff() > 0).all()
        for alpha, target in zip(found.alphas[row], targets, strict=True):
            with steered(tiny_gpt2, ("mlp", 1), alpha.float() * features[row : row + 1]):
                new = tiny_gpt2.logits(ids)[0, -1].double().log_softmax(-1)
            assert float((plain.exp() * (plain - new)).sum()) == pytest.approx(target, abs=0.01)


def test_a_target_out_of_reach_is_said(tiny_gpt2: Any) -> None:
    found = match_kl(
        tiny_gpt2, ("mlp", 1), dictionary(tiny_gpt2, 1).directions, targets=(0.1, 1e9), between=(0.01, 100)
    )
    assert not found.reached[0, 1]
    assert torch.isnan(found.alphas[0, 1])
    with pytest.raises(InputError, match="above 0"):
        match_kl(tiny_gpt2, ("mlp", 1), dictionary(tiny_gpt2, 1).directions, targets=(0.0,))
    with pytest.raises(InputError, match="zero or not finite"):
        match_kl(tiny_gpt2, ("mlp", 1), torch.zeros(1, 128))
    with pytest.raises(InputError, match="rising"):
        match_kl(tiny_gpt2, ("mlp", 1), dictionary(tiny_gpt2, 1).directions, between=(1.0, 1.0))


def test_what_is_written_does_not_depend_on_the_batch(tiny_gpt2: Any) -> None:
    vectors = dictionary(tiny_gpt2, 3).directions.repeat_interleave(2, 0) * 2
    numbers = [0, 1] * 3
    how: dict[str, Any] = {"new_tokens": 6, "top_p": 1.0, "seed": 4}
    together = write(tiny_gpt2, ("mlp", 1), vectors, "The cat", numbers, **how)
    assert together == write(tiny_gpt2, ("mlp", 1), vectors, "The cat", numbers, batch_rows=1, **how)
    alone = write(tiny_gpt2, ("mlp", 1), vectors[3:4], "The cat", [1], **how)
    assert alone == together[3:4]
    assert together[0] != together[1]


def test_narrow_sampling_is_greedy_decoding_of_the_steered_model(tiny_gpt2: Any) -> None:
    """Without a cache the steered model sees every token at once; with one, `write` must go the same way."""
    vectors = torch.cat([torch.zeros(1, 128), 30 * dictionary(tiny_gpt2).directions[:2]])
    found = write(tiny_gpt2, ("mlp", 1), vectors, "The cat", [0, 1, 2], new_tokens=5, top_k=1)
    for row, written in zip(vectors, found, strict=True):
        ids = prompt_ids(tiny_gpt2, "The cat")
        for token in written:
            with steered(tiny_gpt2, ("mlp", 1), row[None]):
                assert int(tiny_gpt2.logits(ids)[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    assert len({tuple(row) for row in found}) > 1


@pytest.mark.parametrize(
    "wrong", [{"new_tokens": 0}, {"top_k": 0}, {"top_p": 0.0}, {"temperature": 0.0}, {"new_tokens": 100}]
)
def test_bad_ways_to_write_are_refused(tiny_gpt2: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        write(tiny_gpt2, ("mlp", 1), torch.zeros(1, 128), "The cat", [0], **wrong)


def test_the_offline_judge_knows_the_concept_and_the_models_own_text(tiny_gpt2: Any) -> None:
    judge = OfflineJudge(tiny_gpt2)
    assert judge.shows(CONCEPT, "die Katze und der Mond") > 1
    assert judge.shows(CONCEPT, "the cat and the moon") == 0
    assert judge.shows(CONCEPT, "猫") == 0  # tokens of neither text say nothing
    assert judge.shows(CONCEPT, "") == 0
    ids = prompt_ids(tiny_gpt2, "The cat")
    with torch.no_grad():
        own = tiny_gpt2.hf.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    texts = [tiny_gpt2.tokenizer.decode(own), "zzzz qqqq"]
    losses = judge.nll("The cat", texts)
    assert losses[0] < losses[1]
    baseline = np.mean(judge.nll("", [*CONCEPT.positives, *CONCEPT.neutrals]))
    wanted_scores = [2 * min(1.0, np.exp(baseline - loss)) for loss in losses]
    assert judge.fluency(CONCEPT, "The cat", texts) == pytest.approx(wanted_scores)
    nll = judge.nll("The cat", ["sat on", ""])
    wanted = tiny_gpt2.tokenizer(" sat on".strip(), add_special_tokens=False)["input_ids"]
    whole = torch.cat([ids, torch.tensor([wanted])], dim=1)
    logits = tiny_gpt2.logits(whole)[0, ids.shape[1] - 1 : -1].log_softmax(-1)
    assert nll[0] == pytest.approx(-float(logits.gather(1, torch.tensor(wanted)[:, None]).mean()), abs=1e-4)
    assert nll[1] == float("inf")


def test_a_judge_that_asks_reads_ratings_and_refuses_chatter() -> None:
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return "Rating: 2." if "Concept" in question else "1"

    assert AskingJudge(answer)(CONCEPT, "A", [" b"]) == [(2.0, 1.0)]
    assert "Text: A b" in asked[0]
    with pytest.raises(Error, match="a rating"):
        AskingJudge(lambda question: "10 out of 10")(CONCEPT, "A", ["b"])
    with pytest.raises(InputError, match="function"):
        AskingJudge("gpt")  # type: ignore[arg-type]


def test_verdicts_are_checked_and_joined_by_the_harmonic_mean() -> None:
    assert (harmonic(2, 2), harmonic(0, 2), harmonic(1, 2)) == (2, 0, pytest.approx(4 / 3))
    with pytest.raises(InputError, match="1 verdicts for 2 texts"):
        checked(lambda concept, prompt, texts: [(1, 1)], CONCEPT, "", ["a", "b"])
    with pytest.raises(InputError, match="the scores"):
        checked(lambda concept, prompt, texts: [(3, 1)], CONCEPT, "", ["a"])


def test_steering_scores_use_the_judge_and_choose_on_the_other_half(tiny_gpt2: Any) -> None:
    seen: list[str] = []

    def judge(concept: Concept, prompt: str, texts: Sequence[str]) -> list[tuple[float, float]]:
        seen.extend(texts)
        return [(2.0, 2.0) if number >= 2 else (0.0, 2.0) for number in range(len(texts))]

    found = steering_score(
        tiny_gpt2,
        dictionary(tiny_gpt2),
        3,
        CONCEPT,
        judge=judge,
        targets=(0.1, 0.2),
        samples=2,
        new_tokens=4,
        prompt="The cat",
    )
    assert (found.plain, found.score, found.best) == (0.0, 2.0, 2.0)
    assert len(seen) == 2 * 3
    assert [row["reached"] for row in found.strengths] == [True, True]
    assert set(found.texts) == {(0.1, 0), (0.1, 1), (0.2, 0), (0.2, 1)}
    assert found.to_dict()["feature"] == 3


def test_all_concepts_of_all_dictionaries_give_one_row_each(tiny_gpt2: Any) -> None:
    first = dictionary(tiny_gpt2)
    named = LinearDictionary.of_directions(
        "named", "mlp", 1, first.directions[:2], labels=["x", "German"], model=tiny_gpt2
    )
    found = concept_scores(
        tiny_gpt2, [first, named, random_directions(first, 4, seed=1)], [CONCEPT], [OTHER],
        targets=(0.2,), samples=2, new_tokens=3, prompt="The cat",
    )  # fmt: skip
    assert found.dictionaries == ["raw", "named", "random"]
    assert [row["concept"] for row in found.rows] == ["German"] * 3
    assert found.rows[1]["feature"] == 1  # the feature that bears the concept's name
    direct = concept_detection(tiny_gpt2, first, OTHER.positives, OTHER.neutrals)
    assert found.rows[0]["auroc"] == pytest.approx(direct.auroc[found.rows[0]["feature"]])
    assert 0 <= found.of("raw", "score")[0] <= 2
    assert found.provenance["seed"] == 0


def test_bad_concepts_features_and_models_are_refused(tiny_gpt2: Any, tiny_llama: Any) -> None:
    features = dictionary(tiny_gpt2)
    with pytest.raises(InputError, match="list of texts"):
        Concept("x", (), ("a",))
    with pytest.raises(InputError, match="list of texts"):
        Concept("x", "a text", ("a",))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="feature 6"):
        steering_score(tiny_gpt2, features, 6, CONCEPT)
    with pytest.raises(InputError, match="samples=1"):
        steering_scores(tiny_gpt2, features, [(0, CONCEPT)], samples=1)
    with pytest.raises(MismatchError):
        sentence_scores(tiny_llama, features, CATS)
    free = LinearDictionary.of_directions("raw", "mlp", 1, features.directions)
    with pytest.raises(InputError, match="takes 128 numbers"):
        sentence_scores(tiny_llama, free, CATS)
    with pytest.raises(InputError, match="lacks"):
        sentence_scores(tiny_gpt2, LinearDictionary.of_directions("raw", "mlp", 9, features.directions), CATS)
    with pytest.raises(InputError, match="list of at least one"):
        sentence_scores(tiny_gpt2, features, [])
    with pytest.raises(InputError, match="same concepts"):
        concept_scores(tiny_gpt2, [features], [CONCEPT], [])
    with pytest.raises(InputError, match="both parts"):
        concept_scores(tiny_gpt2, [features], [CONCEPT], [CONCEPT])
