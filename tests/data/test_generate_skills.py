"""Arithmetic, dates, code, binding and manners: the answers are right by another route."""

from __future__ import annotations

import datetime
import re
from itertools import islice

import pytest

from patchclamp.core.errors import InputError
from patchclamp.data.generate import arithmetic, binding, code, dates, manners, sentences
from patchclamp.data.generate.dates import MONTHS, WEEKDAYS
from patchclamp.data.generate.manners import WORDS

NUMBER = re.compile(r"\d+")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_sums_and_differences_are_right(split: str) -> None:
    for item in arithmetic(split=split, count=2000):
        a, b = map(int, NUMBER.findall(item.prompt))
        right = a + b if item.labels["operation"] == "addition" else a - b
        assert int(item.answer) == right >= 0
        assert (str(a), str(b)) == (item.labels["a"], item.labels["b"])


def test_held_out_pairs_have_two_digits_and_are_a_tenth() -> None:
    held = {(i.labels["operation"], i.labels["a"], i.labels["b"]) for i in arithmetic(split="heldout", count=20_000)}
    assert all(int(a) >= 10 and int(b) >= 10 for _, a, b in held)
    share = len({pair for pair in held if pair[0] == "addition"}) / 90**2
    assert 0.08 < share < 0.12


def test_arithmetic_without_count_does_not_end() -> None:
    assert len(list(islice(arithmetic(count=None), 1500))) == 1500


def test_year_questions_are_right() -> None:
    for item in dates(count=3000):
        kind, years = item.labels["kind"], [int(n) for n in NUMBER.findall(item.prompt)]
        answer = [int(n) for n in NUMBER.findall(item.answer)]
        if kind == "next_year":
            assert answer == [years[0] + 1]
        elif kind == "decade":
            assert answer == [years[0] - years[0] % 10]
        elif kind == "century":
            assert 0 < years[0] - (answer[0] - 1) * 100 <= 100
        elif kind == "first":
            assert answer == [min(years)]
        elif kind == "age":
            assert years[0] + answer[0] == years[1]


def test_days_and_months_follow_the_calendar() -> None:
    monday = datetime.date(2024, 1, 1)
    days = [(monday + datetime.timedelta(days=k)).strftime("%A") for k in range(7)]
    assert WEEKDAYS["en"].split() == days
    assert MONTHS["en"].split() == [datetime.date(2024, m, 1).strftime("%B") for m in range(1, 13)]
    for item in dates(languages=["en"], kinds=["weekday"], count=100):
        word, day = item.prompt.split()[:2]
        step = 1 if word == "After" else -1
        assert item.answer.strip() == days[(days.index(day) + step) % 7]


def test_days_have_no_held_out_split() -> None:
    with pytest.raises(InputError, match="weekday"):
        next(dates(split="heldout", kinds=["weekday"]))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_functions_run_and_return_what_they_say(split: str) -> None:
    seen = set()
    for item in code(split=split, count=1500):
        space: dict[str, object] = {}
        exec(item.text + f"\nfound = {item.labels['call']}\nright = {item.labels['result']}", space)
        assert space["found"] == space["right"], item.text
        seen.add(item.labels["template"])
    assert len(seen) == 18


def test_wrong_bodies_mostly_fail_the_check() -> None:
    passed = total = 0
    for item in code(count=200):
        for choice in item.choices:
            if choice != item.answer:
                space: dict[str, object] = {}
                total += 1
                try:
                    exec(item.prompt + choice + f"\nok = {item.labels['call']} == {item.labels['result']}", space)
                    passed += bool(space["ok"])
                except (TypeError, AttributeError):
                    continue
    assert passed / total < 0.15


def test_the_indirect_object_is_the_name_said_once() -> None:
    for item in binding(kinds=["ioi"], count=500):
        names = {name.strip() for name in item.choices}
        counts = {name: len(re.findall(rf"\b{name}\b", item.prompt)) for name in names}
        assert counts[item.answer.strip()] == 1
        assert sorted(counts.values()) == [1, 2]
        first = min(names, key=item.prompt.index)
        assert item.labels["order"] == ("ABBA" if first == item.answer.strip() else "BABA")


def test_the_colour_asked_for_stands_before_its_object() -> None:
    for item in binding(kinds=["colors"], count=500):
        assert f"{item.answer.strip()} {item.labels['object']}" in item.prompt
        assert all(color.strip() in item.prompt for color in item.choices)


def test_a_scene_asked_about_twice_never_tells_a_held_out_answer() -> None:
    asked = {item.prompt: item.answer for item in binding(9, "heldout", kinds=["colors"], count=3000)}
    for item in binding(kinds=["colors"], count=20_000):
        assert not any(item.prompt[:end] in asked for end in range(1, len(item.prompt) + 1))


def test_the_partner_asked_for_stood_beside_its_word() -> None:
    for item in binding(kinds=["pairs"], count=500):
        shown, _, asked = item.prompt.partition(":")
        key, value = asked.split(" ")[-1], item.answer.strip()
        pair = f"{value} {key}" if item.labels["template"] == "1" else f"{key} {value}"
        assert pair in shown.split(", ")


def test_a_repeated_list_is_the_list() -> None:
    for item in binding(kinds=["repeat"], count=200):
        assert item.answer == " " + item.prompt.removesuffix(":")


def test_sentences_are_four_tagged_units_and_the_wrong_endings_never_occur() -> None:
    endings: dict[tuple[str, str], set[str]] = {}
    items = list(sentences(count=4000))
    for item in items:
        units, tags = item.labels["units"].split("|"), item.labels["tags"].split("|")
        assert len(units) == len(tags) == 4
        assert item.prompt + item.answer == ("" if item.labels["language"] in ("zh", "ja") else " ").join(units)
        endings.setdefault((item.labels["language"], units[2]), set()).add(item.answer)
    for item in items:
        key = (item.labels["language"], item.labels["units"].split("|")[2])
        assert not endings[key] & (set(item.choices) - {item.answer})


def test_replies_have_the_announced_tone() -> None:
    for item in manners():
        words = WORDS[item.labels["language"]]
        polite = any(item.answer.startswith(opening) for opening in words.polite[0])
        assert polite == (item.labels["tone"] == "polite")
        assert words.tones[0 if polite else 1] in item.prompt
    assert {i.labels["tone"] for i in manners(tones=["rude"])} == {"rude"}
