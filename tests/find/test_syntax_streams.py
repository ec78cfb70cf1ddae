"""Streams for frequency tagging: what is read in both conditions, and which tokens make up which unit."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.data.documents import Document
from patchclamp.data.generate.items import Item
from patchclamp.find.syntax_streams import Sentences, control_order, control_orders, streams
from patchclamp.find.syntax_tokens import mapped

ENGLISH = [f"Old{n} men{n} like{n} dogs{n}." for n in range(12)]
CHINESE = ["我们吃饭", "他们喝茶", "老师看书", "孩子唱歌", "农民种地", "医生救人", "司机开车", "学生写字"]


def units_of(stream: Any) -> list[str]:
    return [stream.text[start:stop] for start, stop in stream.spans.tolist()]


def test_units_are_words_where_there_are_spaces_and_characters_elsewhere() -> None:
    english, chinese = Sentences.of(ENGLISH), Sentences.of(CHINESE)
    assert english.units[3] == ("Old3", "men3", "like3", "dogs3")
    assert english.gap == " "
    assert chinese.units[0] == ("我", "们", "吃", "饭")
    assert chinese.gap == ""


def test_marks_stay_with_their_letters_and_punctuation_goes() -> None:
    hindi = Sentences.of(["कि-ता"] * 8, unit="character")
    assert hindi.units[0] == ("कि", "ता")  # two letters with their vowel signs
    french = Sentences.of(["« L'homme » va-t-il, là ?"] * 8)
    assert french.units[0] == ("L'homme", "va-t-il", "là")


def test_units_can_be_written_out_or_come_from_lists_documents_and_items() -> None:
    rows = [("小さい", "鳥が", "米を", "食べる")] * 8
    listed = Sentences.of(rows)
    assert listed.units[0] == rows[0]
    assert listed.gap == ""
    assert Sentences.of(["|".join(row) for row in rows]) == listed
    assert Sentences.of([Document("|".join(row)) for row in rows]) == listed
    items = [Item("x", " y", labels={"units": "|".join(row)}) for row in rows]
    assert Sentences.of(items) == listed
    assert Sentences.of(["the old man|sings"] * 8).units[0] == ("the old man", "sings")
    assert Sentences.of(["the old man|sings"] * 8).gap == " "


def test_word_forms_are_numbered_whatever_their_case() -> None:
    sentences = Sentences.of(["The cat saw the", "A cat saw A"] * 4)
    assert sentences.words[:2].tolist() == [[0, 1, 2, 0], [3, 1, 2, 3]]


def test_the_experiment_reads_every_sentence_once_in_a_random_order() -> None:
    sentences = Sentences.of(ENGLISH)
    made = streams(sentences, "experiment", 3, seed=1)
    for stream in made:
        spoken = list(itertools.batched(units_of(stream), 4)) if hasattr(itertools, "batched") else _fours(stream)
        assert sorted(spoken) == sorted(sentences.units)
    assert made[0].text != made[1].text
    assert [s.text for s in made] == [s.text for s in streams(sentences, "experiment", 3, seed=1)]
    assert [s.text for s in made] != [s.text for s in streams(sentences, "experiment", 3, seed=2)]


def _fours(stream: Any) -> list[tuple[str, ...]]:
    units = units_of(stream)
    return [tuple(units[at : at + 4]) for at in range(0, len(units), 4)]


def test_the_control_breaks_every_neighbourhood_and_keeps_the_words() -> None:
    sentences = Sentences.of(ENGLISH)
    experiment = streams(sentences, "experiment", 5, seed=3)
    fair = streams(sentences, "control", 5, seed=3)
    paper = streams(sentences, "control", 5, seed=3, shuffle_order=False)
    again = streams(sentences, "control", 5, seed=3, replicate=1)
    for one, other in zip(experiment, fair, strict=True):
        assert (one.sentence == other.sentence).all()  # the same sentences in the same order
        assert sorted(units_of(one)) == sorted(units_of(other))
    for stream in (*fair, *paper, *again):
        places = stream.source.reshape(-1, 4)
        assert (np.sort(places, axis=1) == np.arange(4)).all()
        assert not (np.diff(places, axis=1) == 1).any()
    assert (paper[0].sentence == np.repeat(np.arange(12), 4)).all()
    assert again[0].text != fair[0].text


def test_there_are_eleven_control_orders_of_four_units_and_they_are_drawn_alike() -> None:
    known = control_orders(4)
    assert len(known) == 11
    assert len(control_orders(3)) == 3
    assert control_orders(2) == [(1, 0)]
    rng = np.random.default_rng(0)
    drawn = [tuple(control_order(4, rng).tolist()) for _ in range(2200)]
    counts = [drawn.count(order) for order in known]
    assert sum(counts) == 2200
    assert 140 < min(counts) <= max(counts) < 260


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 9), st.integers(0, 1000))
def test_a_control_order_is_a_permutation_without_neighbours(n_units: int, seed: int) -> None:
    order = control_order(n_units, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(n_units))
    assert not (np.diff(order) == 1).any()


def test_a_part_of_the_sentences_is_drawn_anew_for_each_stream() -> None:
    made = streams(Sentences.of(ENGLISH), "experiment", 20, per_stream=8)
    drawn = [set(stream.sentence.tolist()) for stream in made]
    assert all(len(one) == 8 for one in drawn)
    assert set.union(*drawn) == set(range(12))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (ENGLISH[:7], "7 sentences given; at least 8"),
        ([*ENGLISH, "Old men like big dogs"], "sentence 13 .* has 5 units, sentence 1 has 4"),
        (["word"] * 9, "of 4 units|1 unit"),
        (["!?"] * 9, "of 0 unit"),
        ("Old men like dogs", "one string"),
        ([3] * 9, "int given as a sentence"),
    ],
)
def test_unfit_sentences_are_refused(values: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Sentences.of(values, unit="word" if values == ["word"] * 9 else "auto", name="en")


def test_unfit_streams_are_refused() -> None:
    sentences = Sentences.of(ENGLISH)
    for keywords, said in (({"per_stream": 13}, "give 8 to 12"), ({"per_stream": 3}, "give 8 to 12")):
        with pytest.raises(InputError, match=said):
            streams(sentences, "experiment", 1, **keywords)
    with pytest.raises(InputError, match="experiment and control"):
        streams(sentences, "words", 1)
    with pytest.raises(InputError, match="0 streams"):
        streams(sentences, "control", 0)
    with pytest.raises(InputError, match="unit='letter'"):
        Sentences.of(ENGLISH, unit="letter")


def test_every_token_goes_to_the_units_that_share_a_character_with_it(tiny_tokenizer: Any) -> None:
    for sentences in (Sentences.of(["The cat sat on", "Le chat est assis"] * 4), Sentences.of(CHINESE)):
        stream = streams(sentences, "experiment", 1)[0]
        one = mapped(tiny_tokenizer, [stream], max_length=4096)[0]
        offsets = tiny_tokenizer(stream.text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        expected = [
            (token, unit)
            for token, (start, stop) in enumerate(offsets)
            for unit, (left, right) in enumerate(stream.spans.tolist())
            if start < right and stop > left and stop > start
        ]
        assert list(zip(one.token.tolist(), one.unit.tolist(), strict=True)) == expected
        sums = np.bincount(one.unit, weights=one.weight)
        np.testing.assert_allclose(sums, 1, rtol=1e-6)
        assert one.overlapping == sum(n > 1 for n in np.bincount(one.token))


def test_a_token_over_two_units_counts_for_both(tiny_tokenizer: Any) -> None:
    sentences = Sentences.of(["cat sat"] * 8, unit="character")  # "cat" and "sat" are tokens with several letters
    one = mapped(tiny_tokenizer, [streams(sentences, "experiment", 1)[0]], max_length=512)[0]
    assert one.overlapping > 0
    assert len(one.token) > len(set(one.token.tolist()))


def test_special_tokens_belong_to_no_unit(tiny_tokenizer: Any) -> None:
    stream = streams(Sentences.of(["The cat sat on"] * 8), "experiment", 1)[0]
    plain, framed = (mapped(tiny_tokenizer, [stream], max_length=512, special=s)[0] for s in (False, True))
    assert framed.ids[0] == tiny_tokenizer.bos_token_id
    assert (framed.ids[1:] == plain.ids).all()
    assert (framed.token == plain.token + 1).all()


def test_a_stream_that_is_too_long_names_a_size_that_fits(tiny_tokenizer: Any) -> None:
    stream = streams(Sentences.of(["The cat sat on"] * 40), "experiment", 1)[0]
    with pytest.raises(InputError, match=r"has \d+ tokens, but this model reads 64; give per_stream=\d+"):
        mapped(tiny_tokenizer, [stream], max_length=64)
    with pytest.raises(InputError, match="no tokenizer"):
        mapped(None, [stream], max_length=64)
