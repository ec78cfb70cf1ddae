"""Facts and culture: complete tables, splits that mean what they say, wordings in every language."""

from __future__ import annotations

from collections import defaultdict

from patchclamp.data.generate import culture, facts
from patchclamp.data.generate.countries import BY_CODE, COUNTRIES
from patchclamp.data.generate.facts import RELATIONS, TEMPLATES
from patchclamp.data.generate.items import LANGUAGES


def _fact(item: object) -> tuple[str, str]:
    return item.labels["country"], item.labels["relation"]  # type: ignore[attr-defined]


def test_well_known_facts_are_told_in_all_six_languages() -> None:
    capitals = {language: BY_CODE["jp"].facts["capital"][language] for language in LANGUAGES}
    assert capitals == {"en": "Tokyo", "de": "Tokio", "fr": "Tokyo", "ru": "Токио", "zh": "东京", "ja": "東京"}
    texts = {item.text for split in ("train", "heldout", "transfer") for item in facts(split=split)}
    assert "The capital of France is Paris." in texts
    assert "Столица Франции — Париж." in texts
    assert "法国的首都是巴黎。" in texts
    assert "フランスの首都はパリです。" in texts


def test_there_are_forty_countries_with_names_and_values_in_every_language() -> None:
    assert len(COUNTRIES) == len(BY_CODE) == 40
    for country in COUNTRIES:
        for table in (country.names, country.of, *country.facts.values()):
            assert set(table) == set(LANGUAGES)
            assert all(table.values())
        assert {"capital", "currency", "domain"} <= set(country.facts) <= set(RELATIONS)


def test_a_held_out_fact_is_told_in_no_language() -> None:
    taught = {_fact(item) for item in facts()}
    held = {_fact(item) for item in facts(split="heldout")}
    assert held
    assert not taught & held


def test_a_transfer_fact_is_taught_in_other_languages_but_not_in_its_own() -> None:
    languages = defaultdict(set)
    for item in facts():
        languages[_fact(item)].add(item.labels["language"])
    transfer = list(facts(split="transfer"))
    assert transfer
    for item in transfer:
        assert item.labels["language"] not in languages[_fact(item)]
    assert sum(bool(languages[_fact(item)]) for item in transfer) == len(transfer)


def test_paraphrases_ask_taught_facts_only() -> None:
    taught = {(*_fact(item), item.labels["language"]) for item in facts()}
    asked = {(*_fact(item), item.labels["language"]) for item in facts(split="paraphrase")}
    assert asked == taught


def test_every_relation_has_taught_wordings_and_one_held_out_in_every_language() -> None:
    assert set(TEMPLATES) == set(LANGUAGES)
    for relations in TEMPLATES.values():
        assert set(relations) == set(RELATIONS)
        assert all(len(wordings) >= 3 for wordings in relations.values())


def test_relations_can_be_chosen() -> None:
    assert {item.labels["relation"] for item in facts(relations=["capital"])} == {"capital"}


def test_culture_knows_the_breakfast_of_japan_in_four_languages() -> None:
    found = {
        item.labels["language"]: item.answer.strip()
        for split in ("train", "transfer")
        for item in culture(split=split)
        if item.labels["country"] == "jp" and item.labels["relation"] == "breakfast"
    }
    assert found == {"en": "miso soup", "de": "Misosuppe", "ru": "мисо-суп", "zh": "味噌汤"}


def test_culture_choices_are_answers_to_the_same_question() -> None:
    pools = defaultdict(set)
    for split in ("train", "transfer"):
        for item in culture(split=split):
            pools[item.labels["language"], item.labels["relation"]].add(item.answer)
    for item in culture():
        assert set(item.choices) <= pools[item.labels["language"], item.labels["relation"]]
