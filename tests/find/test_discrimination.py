"""Classes of words in layers: planted automata, planted units, controls, sampling, and what is refused."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.find.automaton import tagged, tokenizer, trained

import patchclamp as pc
from patchclamp.core.errors import InputError
from patchclamp.data import Document, corpus
from patchclamp.find.discrimination import discrimination
from patchclamp.find.discrimination_samples import Plan, Reservoir, Sample, planned
from patchclamp.find.discrimination_states import BAG, states
from patchclamp.find.discrimination_units import explained, probe
from patchclamp.find.gdv import gdv
from patchclamp.models.collect import collect

FEW: dict[str, Any] = {
    "per_class": 100, "min_per_class": 20, "resamples": 2, "permutations": 99, "points": 40, "top": 5,
}  # fmt: skip


@functools.cache
def found(rule: str, target: str = "next") -> pc.Finding:
    return discrimination(trained(rule), tagged(rule), target=target, **FEW)


def row(finding: pc.Finding, site: str, layer: int) -> dict[str, Any]:
    return next(one for one in finding.details["layers"] if (one["site"], one["layer"]) == (site, layer))


def test_the_next_class_emerges_where_it_follows_from_the_last() -> None:
    last = row(found("one back"), "resid", 0)
    assert last["gdv"] < -0.1
    assert last["gdv"] < last["untrained"] - 0.1
    assert last["p_holm"] <= 0.05
    assert last["z"] < -5
    assert abs(last["null_mean"]) < 0.02
    assert last["probe"] > 0.7
    assert last["last"] < -0.1, "the last class decides the next: copying looks just the same here"


def test_words_that_follow_nothing_have_no_next_class() -> None:
    layers = found("none").details["layers"]
    assert all(abs(one["gdv"]) < 0.03 for one in layers)
    assert all(one["p_holm"] > 0.05 for one in layers)


def test_it_is_not_copying_where_the_class_two_back_decides() -> None:
    finding = found("two back")
    hidden, embedded = row(finding, "resid", 0), row(finding, "embed", 0)
    assert hidden["gdv"] < -0.1
    assert abs(hidden["last"]) < 0.05
    assert abs(embedded["gdv"]) < 0.03
    assert embedded["last"] < -0.3
    assert hidden["gdv"] < hidden["untrained"] - 0.1
    assert hidden["within_last_class"] < -0.1
    assert hidden["p_within"] <= 0.05
    assert finding.details["best"]["site"] == "resid"
    assert len(finding.details["map"]["points"]) == 40


def test_clamping_the_units_of_the_classes_moves_it_towards_zero() -> None:
    model, text = trained("two back"), tagged("two back")
    finding = found("two back")
    hidden = [
        units & pc.UnitSet.of(model, [f"resid.0.{unit}" for unit in range(32)])
        for units in finding.select(top=3).values()
    ]
    units = functools.reduce(lambda a, b: a | b, hidden)
    assert 4 <= len(units) <= 16
    clamped = []
    for chosen in (units, *(units.matched_random(seed, exclude=units) for seed in range(3))):
        with pc.clamp(model, chosen, to=0.0):
            again = discrimination(model, text, random_weights=False, sites=("resid",), **FEW)
        clamped.append(row(again, "resid", 0)["gdv"])
    assert row(finding, "resid", 0)["gdv"] < clamped[0] < 0
    assert clamped[0] > max(clamped[1:])


def test_a_finding_is_whole_seeded_saved_and_says_how_it_was_made(tmp_path: Path) -> None:
    finding, again = found("one back"), discrimination(trained("one back"), tagged("one back"), **FEW)
    assert finding.labels == ("C0", "C1", "C2", "C3")
    assert finding.scores is not None
    np.testing.assert_array_equal(finding.scores, again.scores)
    assert finding.details["layers"] == again.details["layers"]
    assert ((finding.scores >= 0) & (finding.scores <= 1)).all()
    assert finding.scores.shape == (4, 32 + 32)
    assert {len(units) for units in finding.sets.values()} == {5}
    assert finding.provenance["call"] == "find.discrimination"
    assert 0 < finding.null["largest_eta_squared"]["mean"] < 0.2
    assert finding.scores.max() > finding.null["largest_eta_squared"]["max"]
    loaded = pc.Finding.load(finding.save(tmp_path / "classes.json"))
    assert loaded.sets == finding.sets
    assert loaded.details["best"] == finding.details["best"]


def test_planted_units_rank_first_and_carry_the_value() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 50)
    points = rng.standard_normal((150, 40))
    points[np.arange(150), 10 + labels] += 6
    found = explained(points, labels)
    assert found.of_class.argmax(axis=1).tolist() == [10, 11, 12]
    assert set(np.argsort(found.overall)[-3:]) == {10, 11, 12}
    assert (found.p_of_class[np.arange(3), 10 + np.arange(3)] < 1e-20).all()
    assert (np.delete(found.p_overall, [10, 11, 12]) > 1e-4).all()
    without = points.copy()
    without[:, 10:13] = 0
    assert gdv(points, labels).value < -0.03
    assert abs(gdv(without, labels).value) < 0.01


def test_eta_squared_equals_scipys_anova() -> None:
    from scipy.stats import f_oneway

    rng = np.random.default_rng(1)
    labels = rng.permutation(np.arange(60) % 3)
    points = np.concatenate([rng.standard_normal((60, 3)) + labels[:, None] * [0, 0.3, 1], np.ones((60, 1))], axis=1)
    found = explained(points, labels)
    for unit in range(3):
        test = f_oneway(*(points[labels == name, unit] for name in range(3)))
        one = f_oneway(points[labels == 1, unit], points[labels != 1, unit])
        assert found.p_overall[unit] == pytest.approx(test.pvalue, rel=1e-8)
        assert found.p_of_class[1, unit] == pytest.approx(one.pvalue, rel=1e-8)
    assert (found.overall[3], found.p_overall[3]) == (0, 1)


def test_a_probe_reads_what_is_there_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    labels, documents = rng.permutation(np.arange(300) % 3), np.repeat(np.arange(30), 10)
    noise = rng.standard_normal((300, 8))
    assert probe(noise + 4 * np.eye(8)[labels], labels, documents) == pytest.approx(1.0, abs=0.05)
    assert probe(noise, labels, documents) == pytest.approx(1 / 3, abs=0.12)
    assert probe(noise, labels, np.zeros(300)) is None


def samples(count: int, text: str = "t") -> list[Sample]:
    return [Sample(text, number // 7, number % 7, "w", "A", "BC"[number % 2]) for number in range(count)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 60), st.integers(1, 12), st.integers(0, 5))
def test_merged_reservoirs_keep_what_one_pass_keeps(cut: int, room: int, seed: int) -> None:
    every = samples(60)
    whole, first, second = (Reservoir(room, seed) for _ in range(3))
    for number, sample in enumerate(every):
        whole.offer(sample.next, sample)
        (first if number < cut else second).offer(sample.next, sample)
    second.merge(first)
    assert second.kept() == whole.kept()
    assert second.seen == whole.seen == {"B": 30, "C": 30}


def test_every_sample_is_kept_equally_often() -> None:
    counts = np.zeros(40)
    for seed in range(400):
        one = Reservoir(10, seed)
        for sample in samples(40):
            one.offer("all", sample)
        for sample in one.kept()["all"]:
            counts[sample.document * 7 + sample.token] += 1
    assert counts.sum() == 4000
    assert (np.abs(counts - 100) < 45).all()
    with pytest.raises(InputError, match="don't merge"):
        Reservoir(3, 0).merge(Reservoir(3, 1))


def test_places_are_the_last_tokens_of_words(tiny_tokenizer: Any) -> None:
    text = "The caterpillar sat, 犬鳥に。"
    spans = {"upos=DET": ((0, 3),), "upos=NOUN": ((4, 15), (21, 22)), "upos=VERB": ((16, 19),), "upos=ADP": ((22, 23),)}
    plan = planned(tiny_tokenizer, corpus(en=[Document(text, spans)]), labels="upos")
    ids = tiny_tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = {one.word: ids["offset_mapping"][one.token] for one in plan.samples()}
    assert {word: stop for word, (_, stop) in places.items()} == {"the": 3, "caterpillar": 15, "sat": 19, "犬": 22}
    assert [(one.last, one.next) for one in plan.samples()] == [
        ("DET", "NOUN"), ("NOUN", "VERB"), ("VERB", "NOUN"), ("NOUN", "ADP"),
    ]  # fmt: skip


def test_a_token_over_two_words_and_a_word_of_two_classes_are_skipped() -> None:
    text = corpus(en=[Document("w00 w11 w20 w31", {"upos=A": ((0, 2), (4, 7)), "upos=B": ((2, 3), (8, 11), (12, 15)),
                                                   "upos=C": ((8, 11),)})])  # fmt: skip
    plan = planned(tokenizer(), text, labels="upos")
    assert plan.skipped == {"token spans two words": 1, "two classes at one place": 1}
    assert [(one.word, one.next) for one in plan.samples()] == [("0", "A")]


def test_states_equal_those_of_one_plain_pass_also_in_cut_documents(tiny_gpt2: Any) -> None:
    words = " ".join(f"cat{number}" for number in range(60))
    places = tuple((at, at + len(word)) for at, word in _placed(words))
    text = corpus(en=[Document("The cat sat.", {"upos=A": ((0, 3), (4, 7))}), Document(words, {"upos=A": places})])
    plan = planned(tiny_gpt2.tokenizer, text, labels="upos", per_class=500)
    chosen = plan.samples()
    taps = [("embed", 0), ("resid", 0), ("mlp", 2)]
    found = states(tiny_gpt2, text, chosen, taps, batch_tokens=200, max_length=40)
    ids = tiny_gpt2.tokenizer(words, add_special_tokens=False)["input_ids"]
    assert len(ids) > 100
    import torch

    for at, sample in enumerate(chosen):
        if sample.document == 0:
            continue
        start = sample.token // 39 * 39
        piece = torch.tensor([[1, *ids[start : start + 39]]])
        column = sample.token - start + 1
        for site, layer in taps:
            expected = collect(tiny_gpt2, site, piece)[0, column, tiny_gpt2.layouts[site].slice(layer)]
            np.testing.assert_allclose(found[site, layer][at], expected, atol=1e-5)
        embedded = collect(tiny_gpt2, "embed", piece)[0, max(1, column - 8) : column + 1].mean(0)
        np.testing.assert_allclose(found[BAG][at], embedded, atol=1e-5)


def _placed(words: str) -> list[tuple[int, str]]:
    found, at = [], 0
    for word in words.split():
        found.append((at, word))
        at += len(word) + 1
    return found


def test_empty_plans_are_empty() -> None:
    assert Plan.empty(3, 0).samples() == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "previous"}, "next or last"),
        ({"sites": ()}, "sites"),
        ({"sites": ("nothing",)}, "no site 'nothing'"),
        ({"sites": ("resid",), "layers": (9,)}, "none of these"),
        ({"per_class": 1}, "per_class=1"),
        ({"merge": ("AUX",)}, "CLASS=CLASS"),
        ({"labels": "deprel"}, "deprel=CLASS spans"),
        ({"min_per_class": 10_000}, "0 of the classes have 10000 samples"),
    ],
)
def test_what_cannot_be_used_is_refused(tiny_gpt2: Any, options: dict[str, Any], said: str) -> None:
    text = corpus(en=[Document("the cat sat", {"upos=A": ((0, 3), (8, 11)), "upos=B": ((4, 7),)})] * 3)
    with pytest.raises(InputError, match=said):
        discrimination(tiny_gpt2, text, **{**FEW, **options})


def test_merged_classes_and_a_text_where_the_last_class_decides(tiny_gpt2: Any) -> None:
    """The random model runs; with strictly alternating classes nothing can be said within a last class."""
    text = corpus(
        en=[Document("the cat sat on it", {"upos=A": ((0, 3),), "upos=X": ((8, 11),), "upos=A2": ((15, 17),),
                                           "upos=B": ((4, 7), (12, 14))}, id=str(n)) for n in range(30)]
    )  # fmt: skip
    few = {**FEW, "per_class": 20, "min_per_class": 10, "random_weights": False}
    finding = discrimination(tiny_gpt2, text, drop=(), merge=("A2=A", "X=A"), **few)
    assert finding.labels == ("A", "B")
    assert all(one["within_last_class"] is None for one in finding.details["layers"])
    assert any("copying" in note for note in finding.notes)
    assert all(one["untrained"] is None for one in finding.details["layers"])
