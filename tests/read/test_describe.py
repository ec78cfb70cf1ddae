"""Descriptions: the formula, planted meanings, scores against shuffled descriptions, audits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from tests.read.planted_exemplars import MEANINGS, planted_store

from patchclamp.core.errors import DamagedError, InputError
from patchclamp.read.describe import describe, describer_of, ranked, wpmi
from patchclamp.read.describer_dissect import Dissect
from patchclamp.read.describer_words import Words
from patchclamp.read.description_scores import METRICS, metrics_of, score_descriptions, sign_flip
from patchclamp.read.description_uses import answering, audit
from patchclamp.read.descriptions import Describer, Descriptions, describers
from patchclamp.read.exemplar import Exemplar
from patchclamp.read.exemplar_store import Exemplars, ExemplarStore
from patchclamp.read.lexicon import classes_of, language_of, script_of
from patchclamp.read.predicates import HEADS, INACTIVE, NOTHING, PredicateIndex, holds, parse, worded, words_of

TRUTHS = {
    "mlp.0.0": 'the class "numbers"',
    "mlp.0.1": 'what follows "the"',
    "mlp.0.2": 'tagged "animal"',
    "mlp.0.3": 'tagged "bird"',
}


@pytest.fixture(scope="module")
def store() -> ExemplarStore:
    return planted_store()


@pytest.fixture(scope="module")
def described(store: ExemplarStore) -> Descriptions:
    return describe(store, options={"terms": 2}, quiet=True)


def test_wpmi_chooses_as_the_closed_form_says() -> None:
    texts = ("text on screens", "text", "the")
    likely, prior = np.log([0.2, 0.5, 0.3]), np.log([0.01, 0.3, 0.69])
    assert [texts[ranked(likely, prior, lam)[0]] for lam in (0, 0.2, 1)] == ["text", "text", "text on screens"]
    np.testing.assert_allclose(wpmi(likely, prior, 0)[1], -0.693, atol=5e-4)
    np.testing.assert_allclose(wpmi(likely, prior, 0.2)[:2], [-0.688, -0.452], atol=5e-4)
    np.testing.assert_allclose(wpmi(likely, prior, 1)[0], 2.996, atol=5e-4)
    flip = np.log(2.5) / np.log(30)
    assert flip == pytest.approx(0.26940, abs=5e-6)
    assert texts[ranked(likely, prior, flip - 1e-9)[0]] == "text"
    assert texts[ranked(likely, prior, flip + 1e-9)[0]] == "text on screens"


def test_planted_meanings_are_named(described: Descriptions) -> None:
    for unit, truth in TRUTHS.items():
        assert described[unit].text == truth
        assert described[unit].explains


def test_a_constant_unit_is_inactive_and_noise_explains_nothing(described: Descriptions) -> None:
    assert described["mlp.0.4"].text == INACTIVE
    assert not described["mlp.0.4"].explains
    assert not described["mlp.0.5"].explains


@pytest.mark.parametrize("lam", [0.01, 0.2, 1.0])
def test_equally_likely_descriptions_are_told_apart_by_the_prior(store: ExemplarStore, lam: float) -> None:
    words = Words(store)
    texts = ['tagged "animal"', 'tagged "bird"']
    likely = words.log_probability(texts, store["mlp.0.3"])
    assert likely[0] == likely[1]  # its exemplars hold birds as their only animals
    assert texts[ranked(likely, words.log_prior(texts), lam)[0]] == 'tagged "bird"'
    assert describe(store, units=["mlp.0.3"], lam=lam, options={"terms": 1}, quiet=True)["mlp.0.3"].text == texts[1]


def test_probabilities_are_those_of_the_formula(store: ExemplarStore) -> None:
    words, shown, noise = Words(store, noise=0.05, terms=1), store["mlp.0.2"], 0.05
    marks = np.concatenate([one.values > shown.bar for one in shown.top])

    def plain(text: str) -> float:
        fits = np.concatenate([words.predict(text, one) > 0 for one in shown.top])
        return float(np.where(fits == marks, np.log(1 - noise), np.log(noise)).sum())

    every = [worded(((atom,),)) for atom in PredicateIndex(shown.top).atoms]
    active = [text for text in every if any((words.predict(text, one) * (one.values > 0.5)).any() for one in shown.top)]
    total = np.logaddexp.reduce([plain(text) for text in [*active, NOTHING]])
    texts = ['tagged "animal"', 'the word "dog"', NOTHING]
    np.testing.assert_allclose(words.log_probability(texts, shown), [plain(t) - total for t in texts], rtol=1e-9)
    hits = sum(words.predict('the word "dog"', one).sum() for one in store.probe)
    n_parts = sum(len(one.parts) for one in store.probe)
    assert words.log_prior(['the word "dog"'])[0] == pytest.approx(np.log((hits + 0.5) / (n_parts + 1)))
    assert words.log_prior(['the word "dog" or the word "cat"'])[0] < words.log_prior(['the word "dog"'])[0] + np.log(2)


def test_terms_join_where_one_is_not_enough() -> None:
    store = planted_store()
    top = tuple(
        one.with_values(np.array([text.strip() in ("dog", "river") for text in one.parts], dtype=float))
        for one in store["mlp.0.2"].top
    )
    either = Exemplars("mlp.0.9", 0.5, top, (), (), store["mlp.0.2"].probe)
    found = describe(ExemplarStore([either], probe=store.probe), quiet=True)["mlp.0.9"]
    assert parse(found.text) is not None
    for one in top:
        np.testing.assert_array_equal(holds(parse(found.text) or (), one), one.values > 0.5)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(10)))
def test_the_order_of_exemplars_does_not_matter(order: list[int]) -> None:
    store = planted_store()
    for unit in ("mlp.0.0", "mlp.0.2"):
        shown = store[unit]
        mixed = Exemplars(unit, shown.bar, tuple(shown.top[at] for at in order), (), (), shown.probe)
        again = describe(ExemplarStore([mixed], probe=store.probe), quiet=True)[unit]
        assert again.text == describe(store, units=[unit], quiet=True)[unit].text


_atoms = st.tuples(st.sampled_from(sorted(HEADS)), st.text(max_size=12))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(_atoms, min_size=1, max_size=2).map(tuple), min_size=1, max_size=3).map(tuple))
def test_predicates_read_back_from_their_text(predicate: Any) -> None:
    assert parse(worded(predicate)) == predicate


def test_free_text_is_no_predicate() -> None:
    for text in ("words about rivers", 'the word "a', 'the word "a" xor the word "b"', ""):
        assert parse(text) is None
    assert parse(NOTHING) == parse(INACTIVE) == ()


def test_an_index_agrees_with_asking_part_by_part(store: ExemplarStore) -> None:
    index = PredicateIndex(store.probe)
    for text in ('tagged "bird" or the word "dog"', 'what follows "the" and tagged "animal"', 'labelled "en"', NOTHING):
        predicate = parse(text)
        assert predicate is not None
        plain = np.concatenate([holds(predicate, one) for one in store.probe])
        np.testing.assert_array_equal(index.fits([predicate])[0], plain)


def test_words_are_put_together_from_tokens() -> None:
    assert words_of(["un", "happ", "y", " dog", ".", " "]) == [
        ("unhappy", 0, 2), ("unhappy", 0, 2), ("unhappy", 0, 2), ("dog", 3, 3), (".", 4, 4), ("", 5, 5),
    ]  # fmt: skip
    assert [word for word, _, _ in words_of(["日本", "の", "首都"])] == ["日本", "の", "首都"]
    one = Exemplar(("un", "happ", "y"), np.zeros(3, dtype=np.float32))
    np.testing.assert_array_equal(holds((((("end", "unhappy")),),), one), [False, False, True])
    np.testing.assert_array_equal(holds(((("suffix", "ppy"),),), one), [True, True, True])


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("the cat and the dog were in the house", "English"), ("die Katze und der Hund sind nicht im Haus", "German"),
        ("le chat est dans la maison avec des amis", "French"), ("кошка и собака не были в доме", "Russian"),
        ("猫はマットの上に座っている", "Japanese"),
        ("我们的房子坐落在尽头", "Chinese"), ("שלום עולם", "Hebrew"), ("42 + 1", None),
        ("", None),
    ],
)  # fmt: skip
def test_languages_show_in_script_and_function_words(text: str, language: str | None) -> None:
    assert language_of(text) == language


def test_word_classes_and_scripts() -> None:
    assert "numbers" in classes_of("405")
    assert {"numbers", "years"} <= classes_of("1984")
    assert "sentence ends" in classes_of("。")
    assert "capitalised words" in classes_of("Paris")
    assert classes_of("") == frozenset()
    assert [script_of(word) for word in ("а1", "漢字", "かな", "x", "42")] == [
        "Cyrillic",
        "Han",
        "Hiragana",
        "Latin",
        None,
    ]


def test_dissect_names_the_planted_concepts(store: ExemplarStore) -> None:
    found = describe(store, describer="dissect", options={"parts": 40}, quiet=True)
    assert found["mlp.0.2"].text == 'tagged "animal"'
    assert found["mlp.0.3"].text == 'tagged "bird"'
    assert found["mlp.0.0"].text == 'the class "numbers"'
    assert not found["mlp.0.5"].explains


def test_soft_wpmi_is_the_formula(store: ExemplarStore) -> None:
    made, shown = Dissect(store, parts=5, noise=0.1, random=0), store["mlp.0.3"]
    fits = np.concatenate([one.tags["bird"] for one in store.probe])
    highest = np.argsort(-shown.probe, kind="stable")[:5]
    weights = np.linspace(0.998, 0.97, 5)
    expected = sum(np.log(1 + p * ((0.9 if fits[at] else 0.1) - 1)) for p, at in zip(weights, highest, strict=True))
    assert made.log_probability(['tagged "bird"'], shown)[0] == pytest.approx(expected)
    every = [made.log_probability(['tagged "bird"'], store[unit])[0] for unit in store]
    assert made.log_prior(['tagged "bird"'])[0] == pytest.approx(np.log(np.mean(np.exp(every))))


def test_descriptions_beat_shuffled_ones_on_held_out_passages(store: ExemplarStore, described: Descriptions) -> None:
    scores = score_descriptions(store, described, Words(store), controls=10)
    by_unit = {row["unit"]: row for row in scores.rows}
    for unit in TRUTHS:
        row = by_unit[unit]
        assert row["part_balanced_accuracy"] == row["part_auroc"] == 1.0
        assert row["pearson"] == pytest.approx(1.0)
        assert row["balanced_accuracy"] == 1.0
        assert row["part_auroc"] > row["control_part_auroc"]
    assert by_unit["mlp.0.4"]["pearson"] is None  # constant: nothing to predict
    assert scores.overall["part_auroc"]["gain"] > 0.2  # type: ignore[operator]
    assert "shuffled" in repr(scores)


def test_shuffled_texts_score_no_better_than_shuffled_texts(store: ExemplarStore) -> None:
    units = list(TRUTHS)
    wrong = {unit: TRUTHS[units[(at + 1) % len(units)]] for at, unit in enumerate(units)}
    scores = score_descriptions(store, wrong, Words(store))
    assert scores.overall["part_auroc"]["mean"] < 0.75  # type: ignore[operator]
    assert scores.overall["part_auroc"]["p"] > 0.05  # type: ignore[operator]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_metrics_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    passages = [Exemplar(tuple("abcd"), rng.random(4).astype(np.float32) * rng.integers(0, 2)) for _ in range(12)] + [
        Exemplar(tuple("abcd"), np.full(4, value, dtype=np.float32)) for value in (0.0, 1.0)
    ]
    predicted = [rng.integers(0, 3, 4) / 2 for _ in passages]
    found = metrics_of(predicted, passages, 0.3)
    marks, guess = np.concatenate([one.mask(0.3) for one in passages]), np.concatenate(predicted)
    fires = np.array([one.mask(0.3).any() for one in passages])
    assert found["part_auroc"] == pytest.approx(roc_auc_score(marks, guess))
    assert found["part_balanced_accuracy"] == pytest.approx(balanced_accuracy_score(marks, guess > 0.5))
    assert found["auroc"] == pytest.approx(roc_auc_score(fires, [one.mean() for one in predicted]))
    assert found["pearson"] == pytest.approx(np.corrcoef(guess, np.concatenate([p.values for p in passages]))[0, 1])


def test_scores_without_passages_or_with_one_kind_are_undefined() -> None:
    assert metrics_of([], [], 0.5) == dict.fromkeys(METRICS)
    one = Exemplar(("a", "b"), np.array([1, 2], dtype=np.float32))
    found = metrics_of([np.array([0.0, 1.0])], [one], 0.5)
    assert found["auroc"] is None
    assert found["part_auroc"] is None
    assert found["pearson"] == pytest.approx(1.0)
    with pytest.raises(InputError, match="finite"):
        metrics_of([np.array([np.nan, 1.0])], [one], 0.5)


def test_sign_flips_are_exact_for_few_units() -> None:
    gains = np.array([1.0, 2.0, 4.0])
    p = sign_flip(gains, 20_000, np.random.default_rng(0))
    assert p == pytest.approx(1 / 8, abs=0.01)  # only all signs positive reach the mean


def test_audits_look_at_what_is_said_not_at_how_it_is_framed() -> None:
    texts = {
        "a": 'the word "River" or tagged "car"',
        "b": "words about scarfs",
        "c": 'the word "word"',
        "d": "猫はthe word",
    }
    found = audit(texts, ["river", "car", "word", "猫"])
    assert found == {"river": ["a"], "car": ["a"], "word": ["c", "d"], "猫": ["d"]} or found == {
        "river": ["a"], "car": ["a"], "word": ["c", "d"], "猫": ["d"]
    }  # fmt: skip
    assert audit(texts, {"either": ["river", "scarf"]}, whole_words=False) == {"either": ["a", "b"]}
    for bad in ([], [" "], {"x": []}):
        with pytest.raises(InputError, match="keyword"):
            audit(texts, bad)  # type: ignore[arg-type]


def test_units_that_answer_to_a_concept_come_first(store: ExemplarStore) -> None:
    rows = answering(store, Words(store), 'tagged "animal"', permutations=99)
    assert rows[0]["unit"] == "mlp.0.2"
    assert rows[0]["auroc"] == 1.0
    assert rows[0]["p"] == pytest.approx(0.01)
    assert {row["unit"]: row["auroc"] for row in rows}["mlp.0.4"] == 0.5
    with pytest.raises(InputError, match="some, not all"):
        answering(store, Words(store), 'tagged "unicorn"')


def test_descriptions_come_back_from_their_file(described: Descriptions, tmp_path: Any) -> None:
    path = described.save(tmp_path / "descriptions.json")
    again = Descriptions.load(path)
    assert again.rows() == described.rows()
    assert again["mlp.0.2"].runners_up == described["mlp.0.2"].runners_up
    path.write_text(path.read_text().replace('"description"', '"descriptoin"'))
    with pytest.raises(DamagedError):
        Descriptions.load(path)


def test_given_candidates_are_weighed_too(store: ExemplarStore) -> None:
    found = describe(store, units=["mlp.0.2"], candidates=['tagged "animal" or tagged "bird"'], lam=-1.0, quiet=True)
    listed = [found["mlp.0.2"].text, *(text for text, _ in found["mlp.0.2"].runners_up)]
    assert 'tagged "animal"' in listed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"describer": "oracle"}, "no describer is called"),
        ({"options": {"nose": 0.1}}, "no option 'nose'"),
        ({"options": {"noise": 0.7}}, "noise=0.7"),
        ({"lam": float("nan")}, "lam=nan"),
        ({"units": ["mlp.9.9"]}, "no exemplars of mlp.9.9"),
        ({"candidates": ["free text"]}, "can't be checked by machine"),
        ({"describer": "dissect", "options": {"kinds": ["smell"]}}, "smell"),
        ({"describer": "dissect", "options": {"least": 100_000}}, "no concept"),
    ],
)
def test_bad_wishes_are_refused(store: ExemplarStore, options: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        describe(store, quiet=True, **options)


def test_units_must_be_named_for_a_recording() -> None:
    with pytest.raises(InputError, match="no units"):
        describe(object(), quiet=True)  # type: ignore[arg-type]


def test_every_describer_without_a_model_keeps_the_protocol(store: ExemplarStore) -> None:
    assert {"words", "dissect", "local", "endpoint"} <= {entry.name for entry in describers}
    for name in ("words", "dissect"):
        made = describer_of(name, store)
        assert isinstance(made, Describer)
        shown = store["mlp.0.2"]
        texts = made.candidates(shown)
        assert made.log_probability(texts, shown).shape == made.log_prior(texts).shape == (len(texts),)
        assert made.predict(texts[0], shown.top[0]).shape == (len(shown.top[0].parts),)


def test_images_are_described_by_their_tags(tmp_path: Any) -> None:
    rng = np.random.default_rng(1)

    def image(number: int, red: np.ndarray) -> Exemplar:
        pixels = np.zeros((6, 6, 3), dtype=np.uint8)
        return Exemplar(
            ("patch",) * 9, red.astype(np.float32), "a", number,
            tags={"red": red, "edge": rng.random(9) < 0.3}, picture=pixels, grid=(3, 3),
        )  # fmt: skip

    made = [image(number, rng.random(9) < 0.3) for number in range(30)]
    values = np.concatenate([one.values for one in made[20:]])
    shown = Exemplars("channel 3", 0.5, tuple(made[:10]), (), tuple(made[10:20]), values)
    store = ExemplarStore([shown], probe=made[20:], medium="image")
    found = describe(store, quiet=True)["channel 3"]
    assert found.text == 'tagged "red"'
    assert score_descriptions(store, {"channel 3": found.text}, Words(store)).rows[0]["part_auroc"] == 1.0
    assert "data:image/png" in shown._repr_html_()
    again = ExemplarStore.load(store.save(tmp_path / "images.json"))  # without pictures, and still no text
    assert describe(again, quiet=True)["channel 3"] == found
    assert set(MEANINGS) == set(planted_store().units)
