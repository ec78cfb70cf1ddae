"""Facts about real countries (capital, currency, continent, language, internet domain) told in six languages.

Splits: `train`; `paraphrase` (a taught fact in a wording that training never saw); `transfer` (a fact taught in the other
languages but not in this one); `heldout` (a fact that no language was taught, in the taught wordings).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from patchclamp.data.generate.countries import COUNTRIES, Country
from patchclamp.data.generate.items import (
    LANGUAGES,
    UNSPACED,
    Item,
    check_count,
    check_languages,
    check_split,
    is_held_out,
    rng_for,
    sentence_case,
    spaced,
    with_distractors,
)

RELATIONS = ("capital", "currency", "continent", "language", "domain")
SPLITS = ("train", "paraphrase", "transfer", "heldout")
HELD_OUT_SHARE = 0.08
TRANSFER_SHARE = 0.06


def facts(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    relations: Iterable[str] | None = None,
    count: int | None = None,
) -> Iterator[Item]:
    """Yield every fact of the split once per wording, in a random order; at most `count`.

    Labels: skill "facts", language, relation, country (code), template. Choices: three other values of the relation.
    Raises InputError for an unknown split, language or relation.
    """
    check_split(split, SPLITS)
    check_count(count)
    wanted = check_languages(languages, LANGUAGES)
    kinds = check_languages(relations, RELATIONS)
    rng = rng_for("facts", seed, split)
    items = [
        _item(country, relation, language, number, split, rng)
        for country in COUNTRIES
        for relation in kinds
        if relation in country.facts
        for language in wanted
        if _split_of(country, relation, language) == ("train" if split == "paraphrase" else split)
        for number in _template_numbers(relation, language, split)
    ]
    rng.shuffle(items)
    return islice(iter(items), count)


def _split_of(country: Country, relation: str, language: str) -> str:
    if is_held_out(HELD_OUT_SHARE, "fact", country.code, relation):
        return "heldout"
    if is_held_out(TRANSFER_SHARE, "transfer", country.code, relation, language):
        return "transfer"
    return "train"


def _template_numbers(relation: str, language: str, split: str) -> list[int]:
    last = len(TEMPLATES[language][relation]) - 1
    return [last] if split == "paraphrase" else list(range(last))


def _item(country: Country, relation: str, language: str, number: int, split: str, rng: random.Random) -> Item:
    template = TEMPLATES[language][relation][number]
    prompt, _, tail = template.partition("*")
    filled = sentence_case(prompt.format(c=country.names[language], of=country.of[language]))
    value = country.facts[relation][language]
    pool = [other.facts[relation][language] for other in COUNTRIES if relation in other.facts]
    return Item(
        prompt=filled,
        answer=spaced(value, language),
        choices=tuple(spaced(choice, language) for choice in with_distractors(value, pool, rng)),
        tail=tail or ("。" if language in UNSPACED else "."),
        split=split,
        labels={
            "skill": "facts",
            "language": language,
            "relation": relation,
            "country": country.code,
            "template": str(number),
        },
    )


# The last wording of each list is held out of training. `*` stands where the answer goes.
TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "capital": (
            "The capital {of} is",
            "Question: What is the capital {of}? Answer:",
            "{c} is governed from the city of",
            "{c} has its capital in",
        ),
        "currency": (
            "The currency {of} is the",
            "Question: What is the currency {of}? Answer:",
            "People in {c} pay with the",
            "In {c}, the currency is called the",
        ),
        "continent": (
            "The continent {of} is",
            "Question: On which continent is {c}? Answer:",
            "{c} lies in",
            "{c} is a country on the continent of",
        ),
        "language": (
            "The official language {of} is",
            "Question: What language is spoken in {c}? Answer:",
            "People in {c} speak",
            "In {c}, the official language is",
        ),
        "domain": (
            "The internet domain {of} is",
            "Question: What is the internet domain {of}? Answer:",
            "Web addresses in {c} end in",
            "In {c}, the internet domain is",
        ),
    },
    "de": {
        "capital": (
            "Die Hauptstadt {of} ist",
            "Frage: Was ist die Hauptstadt {of}? Antwort:",
            "{c}: Regiert wird in",
            "Als Hauptstadt {of} kennt man",
        ),
        "currency": (
            "Die Währung {of} ist der",
            "Frage: Was ist die Währung {of}? Antwort:",
            "{c}: Bezahlt wird mit",
            "Als Währung {of} kennt man",
        ),
        "continent": (
            "Der Kontinent {of} ist",
            "Frage: Was ist der Kontinent {of}? Antwort:",
            "{c}: Das Land liegt in",
            "Als Kontinent {of} kennt man",
        ),
        "language": (
            "Die Amtssprache {of} ist",
            "Frage: Was ist die Amtssprache {of}? Antwort:",
            "{c}: Man spricht dort",
            "Als Amtssprache {of} kennt man",
        ),
        "domain": (
            "Die Internetdomain {of} ist",
            "Frage: Was ist die Internetdomain {of}? Antwort:",
            "{c}: Webadressen enden auf",
            "Als Internetdomain {of} kennt man",
        ),
    },
    "fr": {
        "capital": (
            "La capitale {of} est",
            "Question : quelle est la capitale {of} ? Réponse :",
            "{c} est un pays gouverné depuis",
            "La capitale officielle {of} s'appelle",
        ),
        "currency": (
            "La monnaie {of} est :",
            "Question : quelle est la monnaie {of} ? Réponse :",
            "{c} est un pays où l'on paie en",
            "La monnaie officielle {of} s'appelle",
        ),
        "continent": (
            "Le continent {of} est :",
            "Question : quel est le continent {of} ? Réponse :",
            "{c} est un pays situé en",
            "Le continent où se trouve le territoire {of} s'appelle",
        ),
        "language": (
            "La langue officielle {of} est :",
            "Question : quelle est la langue officielle {of} ? Réponse :",
            "{c} est un pays où l'on parle",
            "La langue de l'État {of} s'appelle",
        ),
        "domain": (
            "Le domaine internet {of} est",
            "Question : quel est le domaine internet {of} ? Réponse :",
            "{c} est un pays dont les adresses web finissent par",
            "Le domaine internet officiel {of} s'appelle",
        ),
    },
    "ru": {
        "capital": (
            "Столица {of} —",
            "Вопрос: какая столица у страны {c}? Ответ:",
            "{c}: правительство находится в городе",
            "Столицей {of} называют город",
        ),
        "currency": (
            "Валюта {of} —",
            "Вопрос: какая валюта у страны {c}? Ответ:",
            "{c}: в магазине платят деньгами по имени",
            "Деньги {of}, национальная валюта:",
        ),
        "continent": (
            "Континент {of} —",
            "Вопрос: какой континент у страны {c}? Ответ:",
            "{c}: эта страна на континенте",
            "Место {of} на карте, континент:",
        ),
        "language": (
            "Государственный язык {of} —",
            "Вопрос: какой язык у страны {c}? Ответ:",
            "{c}: люди здесь говорят на языке",
            "Речь {of}, государственный язык:",
        ),
        "domain": (
            "Интернет-домен {of} —",
            "Вопрос: какой интернет-домен у страны {c}? Ответ:",
            "{c}: адреса сайтов кончаются на",
            "Сайты {of}, интернет-домен:",
        ),
    },
    "zh": {
        "capital": ("{of}首都是", "问：{of}首都是哪里？答：", "{c}的政府设在", "作为首都，{c}选择了"),
        "currency": ("{of}货币是", "问：{of}货币是什么？答：", "在{c}，人们付钱用", "作为货币，{c}使用"),
        "continent": ("{c}位于", "问：{c}在哪个洲？答：", "{of}所在的大洲是", "从大洲来看，{c}属于"),
        "language": ("{of}官方语言是", "问：{c}人说什么语言？答：", "在{c}，人们说", "作为官方语言，{c}使用"),
        "domain": (
            "{of}互联网域名是",
            "问：{of}互联网域名是什么？答：",
            "{c}的网址结尾是",
            "作为互联网域名，{c}使用",
        ),
    },
    "ja": {
        "capital": (
            "{of}首都は*です。",
            "問：{of}首都はどこですか。答：",
            "{c}の政府がある都市は*です。",
            "首都として、{c}が定めたのは*である。",
        ),
        "currency": (
            "{of}通貨は*です。",
            "問：{of}通貨は何ですか。答：",
            "{c}でお金を払うときは*を使います。",
            "通貨として、{c}が定めたのは*である。",
        ),
        "continent": (
            "{c}がある大陸は*です。",
            "問：{c}はどの大陸にありますか。答：",
            "{c}という国は*にあります。",
            "大陸でいえば、{c}の場所は*である。",
        ),
        "language": (
            "{of}公用語は*です。",
            "問：{c}では何語を話しますか。答：",
            "{c}の人々は*を話します。",
            "公用語として、{c}が定めたのは*である。",
        ),
        "domain": (
            "{of}ドメインは*です。",
            "問：{of}ドメインは何ですか。答：",
            "{c}のウェブアドレスの終わりは*です。",
            "ドメインとして、{c}が定めたのは*である。",
        ),
    },
}
