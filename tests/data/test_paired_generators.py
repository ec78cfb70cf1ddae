"""Indirect objects and coloured objects: every property of the published data, in six languages, for tokenizers of each kind."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from patchclamp.core.errors import InputError
from patchclamp.data.generate.colored_objects import colored_objects
from patchclamp.data.generate.colored_texts import SCENERIES
from patchclamp.data.generate.ioi import ioi
from patchclamp.data.generate.ioi_texts import FAMILIES, Family
from patchclamp.data.generate.paired_words import Filled, filled, listed, whole
from patchclamp.data.paired import PairedTask
from patchclamp.models.load import DEMO

LANGUAGES = ("en", "de", "fr", "ru", "zh", "ja")
# how GPT-2 cuts a text into words; a vocabulary of whole words then has GPT-2's positions, where each word is one token there
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def words_of(text: str, pattern: str = GPT2) -> list[str]:
    return [word for word, _ in pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str(text)]


def tokenizer_of(texts: list[str], pattern: str = GPT2, bos: bool = False) -> Any:
    """A tokenizer whose tokens are all the words (or whatever the pattern cuts) of some texts."""
    words = dict.fromkeys(word for text in texts for word in words_of(text, pattern))
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", "<s>", *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>")


def texts_of(task: PairedTask) -> list[str]:
    return [prompt + answer for i in task for prompt in (i.clean, i.corrupt) for answer in (i.answer, i.wrong)]


def tokenizer_for(task: PairedTask, language: str) -> Any:
    """Words for languages with spaces; characters for Chinese, and for Japanese with its two-character names whole."""
    if language not in ("zh", "ja"):
        return tokenizer_of(texts_of(task))
    names = "|".join(name for name in FAMILIES[language].names if len(name) > 1)
    return tokenizer_of(texts_of(task), f"{names}|." if names else ".")


def token_differences(task: PairedTask, tokenizer: Any) -> list[list[int]]:
    pairs = task.encode(tokenizer)
    return [row.nonzero()[:, 0].tolist() for row in pairs.changed]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_last_subject_becomes_the_receiver_and_nothing_else_changes(language: str) -> None:
    tokenizer = tokenizer_for(ioi(300, None, language=language), language)
    task = ioi(60, tokenizer, language=language)
    pairs = task.encode(tokenizer)
    assert token_differences(task, tokenizer) == [[int(place)] for place in pairs.spots["S2"]]
    for number, item in enumerate(task):
        io, subject = item.labels["io"], item.labels["subject"]
        assert item.answer.strip() == io != subject == item.wrong.strip()
        assert item.answer == (io if language in ("zh", "ja") else " " + io)
        for spot, word in (("IO", io), ("S1", subject), ("S2", subject)):
            assert item.clean[slice(*item.spots[spot])] == word
            assert tokenizer.decode(int(pairs.clean[number, pairs.spots[spot][number]])).strip() == word
        a, b = item.spots["S2"]
        assert item.corrupt == item.clean[:a] + io + item.clean[b:]
        assert (item.labels["order"] == "ABBA") == (item.spots["IO"] < item.spots["S1"])
        assert item.clean.count(subject) >= 2
    assert torch.equal(pairs.spots["S1+1"], pairs.spots["S1"] + 1)
    assert torch.equal(pairs.spots["END"], pairs.mask.sum(1) - 1)


@pytest.mark.parametrize("language", LANGUAGES)
def test_half_of_the_prompts_name_the_receiver_first_and_all_differ(language: str) -> None:
    task = ioi(100, None, language=language)
    assert Counter(item.labels["order"] for item in task) == {"ABBA": 50, "BABA": 50}
    assert len({item.clean for item in task}) == len(task) == 100
    assert {item.labels["template"] for item in task} == {str(n) for n in range(len(FAMILIES[language].frames))}


def test_a_third_name_leaves_both_names_and_three_new_names_leave_none() -> None:
    tokenizer = tokenizer_of(texts_of(ioi(600, None)) + texts_of(ioi(600, None, corruption="ABC")))
    third = ioi(60, tokenizer, corruption="S2<-C")
    pairs = third.encode(tokenizer)
    assert token_differences(third, tokenizer) == [[int(place)] for place in pairs.spots["S2"]]
    for item in third:
        a, _ = item.spots["S2"]
        assert not item.corrupt[a:].startswith((item.labels["io"] + " ", item.labels["subject"] + " "))
    fresh = ioi(60, tokenizer, corruption="ABC")
    pairs = fresh.encode(tokenizer)
    for number, places in enumerate(token_differences(fresh, tokenizer)):
        assert places == sorted(int(pairs.spots[spot][number]) for spot in ("IO", "S1", "S2"))
        assert len({int(pairs.corrupt[number, place]) for place in places}) == 3
        assert fresh[number].labels["io"] not in words_of(fresh[number].corrupt)


def test_names_places_and_gifts_are_enough_for_a_thousand_pairs() -> None:
    assert len(FAMILIES["en"].names) == len(set(FAMILIES["en"].names)) >= 90
    assert len(ioi(1000, None)) == 1000
    assert all(len(set(family.names)) == len(family.names) >= 30 for family in FAMILIES.values())


@pytest.mark.parametrize("make", [ioi, colored_objects])
def test_the_seed_decides(make: Any) -> None:
    assert make(20, None, seed=1).items == make(20, None, seed=1).items != make(20, None, seed=2).items


def test_only_names_that_are_one_token_everywhere_are_used() -> None:
    few = {"Mary", "John", "Anna", "Peter", "Tom"}
    texts = [text for item in ioi(900, None) for text in texts_of(PairedTask("t", [item]))]
    known = [
        text for text in texts if not (set(FAMILIES["en"].names) - few) & {word.strip() for word in words_of(text)}
    ]
    frames = [frame.replace("{", " ").replace("}", " ") for frame in FAMILIES["en"].frames]
    tokenizer = tokenizer_of([*known, *frames, *(" " + name for name in few), *FAMILIES["en"].frames])
    task = ioi(40, tokenizer)
    assert {item.labels["io"] for item in task} | {item.labels["subject"] for item in task} <= few
    assert len(task.encode(tokenizer)) == 40


def test_too_few_names_or_colours_say_how_many_are_left() -> None:
    characters = tokenizer_of(["abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ,.?:\n"], ".")
    with pytest.raises(InputError, match=r"only 0 of \d+ names \(en\)"):
        ioi(5, characters)
    with pytest.raises(InputError, match=r"only 0 of 8 colours and 0 of 17 objects \(en\)"):
        colored_objects(5, characters)


# --- coloured objects ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published() -> tuple[PairedTask, Any]:
    """A thousand pairs in the published form, and a tokenizer in which every word is one token."""
    task = colored_objects(1000, None)
    return task, tokenizer_of(texts_of(task))


def test_the_query_stands_where_it_does_in_the_published_data(published: tuple[PairedTask, Any]) -> None:
    task, tokenizer = published
    pairs = task.encode(tokenizer)
    assert (pairs.lists["colors"] == torch.tensor([41, 45, 50])).all()
    assert (pairs.lists["objects"] == torch.tensor([42, 46, 51])).all()
    assert (pairs.end == 61).all()
    assert pairs.mask.all()


def test_only_the_queried_object_changes(published: tuple[PairedTask, Any]) -> None:
    task, tokenizer = published
    pairs = task.encode(tokenizer)
    assert token_differences(task, tokenizer) == [[int(place)] for place in pairs.spots["asked"]]
    for item in task:
        a, b = item.spots["asked"]
        assert item.clean[a:b] == item.labels["object"]
        assert item.clean[slice(*item.spots["object"])] == item.labels["object"]
        assert item.answer == " " + item.clean[slice(*item.spots["right"])].capitalize()
        assert item.wrong == " " + item.clean[slice(*item.spots["wrong"])].capitalize()
        others = {item.clean[slice(*span)] for span in item.lists["wrong colors"]}
        assert len(others) == 2
        assert item.labels["color"] not in others


def test_example_and_query_share_no_colour_and_no_object(published: tuple[PairedTask, Any]) -> None:
    colors, objects = (set(words) for words in (SCENERIES["en"].groups[0].colors, SCENERIES["en"].groups[0].objects))
    assert (len(colors), len(objects)) == (8, 17)
    for item in published[0]:
        example, query = item.clean.split("\nQ: ")
        for words, count in ((colors, 3), (objects, 3)):
            sets = [{word.strip().lower() for word in words_of(part)} & words for part in (example, query)]
            assert [len(found) for found in sets] == [count, count]
            assert not sets[0] & sets[1]
        shown = example.rsplit("A:", 1)[1].strip()
        asked = example.split("What color is the ")[1].split("?")[0]
        assert f"{shown.lower()} {asked}" in example  # the example is solved rightly
        assert item.clean.startswith("Q: On the ")
        assert item.clean.endswith("?\nA:")
        assert ("an orange" in item.clean) == ("orange" in item.clean)
        assert "a orange" not in item.clean


def test_example_and_query_are_said_independently(published: tuple[PairedTask, Any]) -> None:
    said = Counter(
        tuple(part.split(", ")[1].split(" a")[0] for part in item.clean.split("\nQ: ")) for item in published[0]
    )
    assert set(said) == set(itertools.product(("there is", "you see", "I see"), repeat=2))


def test_queried_and_wrong_places_are_balanced(published: tuple[PairedTask, Any]) -> None:
    counts = Counter((item.labels["asked"], item.labels["other"]) for item in published[0])
    assert set(counts) == set(itertools.permutations("012", 2))
    assert all(120 <= count <= 215 for count in counts.values())  # 1000 / 6 = 167, four standard deviations


def test_objects_may_be_shared_where_that_is_asked() -> None:
    task = colored_objects(300, None, disjoint_objects=False)
    objects = set(SCENERIES["en"].groups[0].objects)
    shared = [
        bool(set.intersection(*({w.strip() for w in words_of(part)} & objects for part in item.clean.split("\nQ: "))))
        for item in task
    ]
    assert any(shared)
    assert not all(shared)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("shots", [0, 1])
def test_every_language_has_scenes_of_which_one_word_changes(language: str, shots: int) -> None:
    tokenizer = tokenizer_for(colored_objects(300, None, language=language, shots=shots), language)
    task = colored_objects(40, tokenizer, language=language, shots=shots)
    pairs = task.encode(tokenizer)
    assert token_differences(task, tokenizer) == [[int(place)] for place in pairs.spots["asked"]]
    for item in task:
        colors = [item.clean[slice(*span)] for span in item.lists["colors"]]
        assert len(set(colors)) == 3
        assert colors[int(item.labels["asked"])].lower() == item.answer.strip().lower()
        assert colors[int(item.labels["other"])].lower() == item.wrong.strip().lower()
        if shots:
            first = item.clean[: item.lists["objects"][0][0]]
            assert first.count("\n") == 2
    assert len({item.clean for item in task}) == 40


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 4), st.sampled_from(LANGUAGES), st.integers(0, 100))
def test_scenes_hold_as_many_objects_as_asked(n_objects: int, language: str, seed: int) -> None:
    for item in colored_objects(5, None, language=language, shots=0, n_objects=n_objects, seed=seed):
        assert len(item.lists["colors"]) == len(item.lists["objects"]) == n_objects
        assert len(item.lists["wrong colors"]) == n_objects - 1
        assert item.spots["right"] != item.spots["wrong"]


def test_templates_of_the_bundled_model_fit_its_tokenizer_and_say_what_it_was_taught() -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    for task in (
        ioi(200, tokenizer, templates="demo"), colored_objects(200, tokenizer, templates="demo"),
        colored_objects(200, tokenizer, templates="demo", shots=0),
    ):  # fmt: skip
        changed = task.encode(tokenizer).changed.sum(1)
        assert (changed == 1).all()
        assert {item.labels["split"] for item in task} == {"train", "heldout"}
    for language in ("de", "fr", "ru", "zh", "ja"):
        assert len(ioi(20, tokenizer, language=language).encode(tokenizer)) == 20
    with pytest.raises(InputError, match=r"\d of 12 colours"):
        colored_objects(5, tokenizer, language="de")


@pytest.mark.parametrize(
    ("make", "arguments"),
    [
        (ioi, {"language": "it"}),
        (ioi, {"corruption": "S1<-C"}),
        (ioi, {"templates": "mine"}),
        (ioi, {"templates": "demo", "language": "fr"}),
        (ioi, {"n": 0}),
        (colored_objects, {"n": 0}),
        (colored_objects, {"shots": 2}),
        (colored_objects, {"n_objects": 1}),
        (colored_objects, {"n_objects": 7}),
        (colored_objects, {"n_objects": 2, "templates": "demo", "shots": 1}),
        (colored_objects, {"templates": "demo", "language": "ru"}),
        (colored_objects, {"n_objects": 6}),
    ],
)
def test_what_can_not_be_made_is_refused(make: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        make(**{"n": 5, "tokenizer": None, **arguments})


def test_more_pairs_than_the_words_make_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Family(("{a} {b} {place} {s} {gift}",), ("Ann", "Bob", "Cat", "Dan"), ("park",), ("book",))
    monkeypatch.setitem(FAMILIES, "en", small)
    assert len(ioi(20, None)) == 20  # of the 24 that there are
    with pytest.raises(InputError, match="24 different ones"):
        ioi(25, None)


def test_filling_keeps_track_of_every_slot() -> None:
    inner = listed([filled("{c} {o}", {"c": c, "o": o}) for c, o in (("red", "cup"), ("blue", "pen"))], ", ", " and ")
    text = filled("See {items}; {c}!", {"items": inner, "c": "red"})
    assert text.text == "See red cup and blue pen; red!"
    assert [text.text[a:b] for a, b in text.spans["c"]] == ["red", "blue", "red"]
    assert [text.text[a:b] for a, b in text.spans["o"]] == ["cup", "pen"]
    assert (Filled("x") + text).spans["o"][0] == (9, 12)


def test_whole_words_are_those_of_one_known_token() -> None:
    tokenizer = tokenizer_of(["to Mary Jo", "hn"])
    texts, spans = ["to Mary", "to John", "to Anna"], [[(3, 7)], [(3, 7)], [(3, 7)]]
    assert whole(tokenizer, texts, spans) == [True, False, False]
    assert whole(None, texts, spans) == [True, True, True]

    class Slow:
        is_fast = False

    with pytest.raises(InputError, match="fast tokenizer"):
        whole(Slow(), texts, spans)
