"""Contrast sets of the culture questions: same options without the question, and passages that only name a country."""

from __future__ import annotations

import pytest

from patchclamp.core.errors import InputError
from patchclamp.data.generate.countries import BY_CODE
from patchclamp.data.generate.culture import ANSWERS, CULTURE_LANGUAGES, culture
from patchclamp.data.generate.culture_controls import (
    PASSAGES,
    PEOPLE,
    QUESTIONS,
    culture_choices,
    culture_control,
    culture_names,
)


def test_questions_keep_their_wording_behind_the_options() -> None:
    for plain, item in zip(culture(), culture_choices(), strict=True):
        assert item.prompt.endswith(plain.prompt)
        assert (item.answer, item.choices, item.tail) == (plain.answer, plain.choices, plain.tail)
        front = item.prompt.removesuffix(plain.prompt).lower()
        assert all(choice.strip().lower() in front for choice in item.choices)


def test_controls_are_the_questions_without_country_and_custom() -> None:
    for asked, control in zip(culture_choices(seed=3), culture_control(seed=3), strict=True):
        assert (control.answer, control.choices) == (asked.answer, asked.choices)
        assert control.labels == {**asked.labels, "form": "control"}
        country = BY_CODE[asked.labels["country"]]
        assert country.names[asked.labels["language"]] not in control.prompt
        options = len(", ".join(choice.strip() for choice in asked.choices))
        assert control.prompt[: options - 2] == asked.prompt[: options - 2]
        assert len(control.prompt) < len(asked.prompt)


def test_passages_name_one_country_and_ask_for_it() -> None:
    train, held = list(culture_names()), list(culture_names(split="heldout"))
    assert len(train) == len(ANSWERS) * len(CULTURE_LANGUAGES) * 6 * 2
    assert len(held) == len(ANSWERS) * len(CULTURE_LANGUAGES) * 3 * 2
    for item in [*train, *held]:
        country, language = BY_CODE[item.labels["country"]], item.labels["language"]
        told = country.names[language], country.of[language]
        assert any(name.lower() in item.prompt.lower() for name in told), item.prompt
        assert item.answer.strip() == country.names[language]
        assert item.answer in item.choices
        assert len(set(item.choices)) == 4
        assert "  " not in item.prompt
        assert not item.prompt.endswith(" ")
    assert not {i.labels["template"] for i in train} & {i.labels["template"] for i in held}


def test_every_language_has_all_tables() -> None:
    for table in (PASSAGES, QUESTIONS, PEOPLE):
        assert tuple(table) == CULTURE_LANGUAGES
    assert {len(passages) for passages in PASSAGES.values()} == {9}


def test_seed_count_and_choices_of_what_to_make() -> None:
    assert list(culture_names(count=5)) == list(culture_names())[:5]
    assert list(culture_names(seed=1, count=50)) != list(culture_names(count=50))
    assert {item.labels["country"] for item in culture_names(countries=["jp", "mx"])} == {"jp", "mx"}
    assert {item.labels["relation"] for item in culture_control(attributes=["drink"])} == {"drink"}
    assert not list(culture_names(count=0))


@pytest.mark.parametrize("bad", [{"split": "paraphrase"}, {"languages": ["fr"]}, {"countries": ["xx"]}, {"count": -1}])
def test_what_does_not_exist_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(InputError):
        list(culture_names(**bad))
