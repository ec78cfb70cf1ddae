"""What all generators promise: seeds, splits that never meet, choices that hold the answer, clear refusals."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchclamp.core.errors import InputError
from patchclamp.data.generate import GENERATORS, Item
from patchclamp.data.generate.items import UNSPACED, is_held_out, with_distractors

TEST_SPLITS = {
    "facts": ("paraphrase", "transfer", "heldout"),
    "culture": ("paraphrase", "transfer"),
    "arithmetic": ("heldout",),
    "code": ("heldout",),
    "dates": ("heldout",),
    "manners": ("heldout",),
    "binding": ("heldout",),
    "sentences": ("heldout",),
}
EVERY = sorted(GENERATORS)


def _items(name: str, n: int = 400, **arguments: object) -> list[Item]:
    return list(islice(GENERATORS[name](**arguments), n))


@pytest.mark.parametrize("name", EVERY)
def test_the_same_seed_gives_the_same_items_and_another_seed_others(name: str) -> None:
    assert _items(name, seed=3) == _items(name, seed=3)
    assert _items(name, seed=3) != _items(name, seed=4)


@pytest.mark.parametrize("name", EVERY)
def test_no_test_prompt_is_ever_a_training_prompt(name: str) -> None:
    taught = {item.prompt for seed in range(3) for item in _items(name, 3000, seed=seed)}
    for split in TEST_SPLITS[name]:
        asked = _items(name, 1000, seed=9, split=split)
        assert asked
        assert not taught & {item.prompt for item in asked}
        assert {item.split for item in asked} == {split}


@pytest.mark.parametrize("name", EVERY)
def test_the_answer_is_one_of_its_distinct_choices(name: str) -> None:
    for item in _items(name):
        assert item.choices.count(item.answer) == 1
        assert len(set(item.choices)) == len(item.choices) >= 2


@pytest.mark.parametrize("name", EVERY)
def test_prompts_leave_the_space_to_the_answer(name: str) -> None:
    for item in _items(name, 2000):
        assert item.prompt == item.prompt.rstrip(" ") or item.prompt.endswith("« ")
        assert item.text == item.prompt + item.answer + item.tail == "".join(item.segments)
        assert "{" not in item.text
        assert "*" not in item.text.replace("**", "") or item.labels["skill"] == "code"
        assert item.labels["skill"] == name
        if item.labels["language"] in UNSPACED:
            assert not item.answer.startswith(" ")


@pytest.mark.parametrize("name", EVERY)
def test_languages_can_be_chosen(name: str) -> None:
    language = "en" if name in ("binding", "code") else "zh"
    found = {item.labels["language"] for item in _items(name, languages=[language])}
    assert found <= {language, "none", "python"}
    assert found


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize(
    "arguments", [{"split": "exam"}, {"languages": ["xx"]}, {"languages": []}, {"count": -1}], ids=str
)
def test_bad_arguments_are_refused_with_what_exists(name: str, arguments: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"this generator has|number of items"):
        next(GENERATORS[name](**arguments))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_count_limits_the_items(name: str, count: int) -> None:
    assert len(list(GENERATORS[name](count=count))) == count


@given(share=st.floats(0, 1), key=st.integers())
@settings(max_examples=25, deadline=None)
def test_a_key_held_out_at_one_share_is_held_out_at_every_larger_share(share: float, key: int) -> None:
    assert not is_held_out(share, key) or is_held_out(min(1.0, share + 0.1), key)


@given(pool=st.lists(st.text(min_size=1, max_size=3), max_size=8), n=st.integers(1, 6), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_distractors_are_distinct_and_no_more_than_asked(pool: list[str], n: int, seed: int) -> None:
    import random

    choices = with_distractors("answer", pool, random.Random(seed), n)
    assert choices.count("answer") == 1
    assert len(set(choices)) == len(choices) <= n
