"""Contrast sets for culture questions: options with and without the question, and passages that only mention a country.

After Yamamoto et al. 2025 (arXiv:2510.08284): a unit that serves the form of a multiple-choice question is also active where the
question is left out ("same options, no question"), and one that recognises a country's name where a passage mentions the
country and the answer is just its name. The passages are ours, in the languages of the culture questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from patchclamp.data.generate.countries import BY_CODE
from patchclamp.data.generate.culture import ANSWERS, CULTURE_LANGUAGES, culture
from patchclamp.data.generate.items import (
    Item,
    check_count,
    check_languages,
    check_split,
    rng_for,
    sentence_case,
    spaced,
    with_distractors,
)

NAME_SPLITS = ("train", "heldout")
HELD_OUT_PASSAGES = 3  # the last ones of each language

# What stands before the answer in each wording of a question, when the question itself is taken away.
_CUES = {
    "en": ("Answer:", "The typical one is", "Typical:", "The best known one is"),
    "de": ("Antwort:", "Typisch ist", "Typisch:", "Am bekanntesten ist"),
    "ru": ("Ответ:", "Обычно это —", "Типичное:", "Самое известное —"),
    "zh": ("答：", "典型的是", "典型：", "人们会想到"),
}
# {n}: a person; {c}: the country; {of}: "of the country". The last three are held out.
PASSAGES = {
    "en": (
        "{n} drew a map {of} for the school.",
        "The letter that {n} got had a stamp {of} on it.",
        "On the door of the room there was one word: {c}.",
        "{n} dreamed every night about the rivers {of}.",
        "The box came by ship, and on it was written: {c}.",
        "{n} read a long book about the history {of}.",
        "Over the house {n} saw the flag {of}.",
        "The teacher wrote {c} on the board, and {n} read it.",
        "{n} bought a picture {of} and hung it on the wall.",
    ),
    "de": (
        "{n} zeichnete für die Schule eine Karte {of}.",
        "Auf dem Brief, den {n} bekam, war eine Marke {of}.",
        "An der Tür des Zimmers stand ein Wort: {c}.",
        "{n} träumte jede Nacht von den Flüssen {of}.",
        "Die Kiste kam mit dem Schiff, und darauf stand: {c}.",
        "{n} las ein langes Buch über die Geschichte {of}.",
        "Über dem Haus sah {n} die Fahne {of}.",
        "Der Lehrer schrieb an die Tafel: {c}, und {n} las es.",
        "{n} kaufte ein Bild {of} und hängte es an die Wand.",
    ),
    "ru": (
        "{n} рисует для школы карту {of}.",
        "На письме, которое получает {n}, марка {of}.",
        "На двери комнаты было одно слово: {c}.",
        "{n} каждую ночь видит во сне реки {of}.",
        "Ящик привёз корабль, и на нём было написано: {c}.",
        "{n} читает длинную книгу об истории {of}.",
        "Над домом {n} видит флаг {of}.",
        "Учитель пишет на доске: {c}, а {n} читает.",
        "{n} покупает картину {of} и вешает её на стену.",
    ),
    "zh": (
        "{n}为学校画了{of}地图。",
        "{n}收到的信上有{of}邮票。",
        "房间的门上写着一个词：{c}。",
        "{n}每天夜里都梦见{of}河流。",
        "箱子是坐船来的，上面写着：{c}。",
        "{n}读了一本讲{of}历史的书。",
        "{n}看见房子上有{of}旗子。",
        "老师在黑板上写了：{c}，{n}读了出来。",
        "{n}买了一张{of}画，挂在墙上。",
    ),
}
QUESTIONS = {
    "en": ("Question: Which country is it? Answer:", "The name of the country is"),
    "de": ("Frage: Welches Land ist es? Antwort:", "Der Name des Landes ist"),
    "ru": ("Вопрос: какая это страна? Ответ:", "Название страны —"),
    "zh": ("问：是哪个国家？答：", "国家的名字是"),
}
PEOPLE = {
    "en": ("Anna", "Paul", "Emma", "Tom", "Clara", "Max"),
    "de": ("Anna", "Paul", "Emma", "Karl", "Klara", "Max"),
    "ru": ("Анна", "Иван", "Мария", "Пётр", "Вера", "Павел"),
    "zh": ("安娜", "小明", "小红", "王老师", "李华", "张伟"),
}


def culture_choices(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    attributes: Iterable[str] | None = None,
    count: int | None = None,
) -> Iterator[Item]:
    """Yield the questions of `culture` with their four options in front: "Dosa, sushi, pizza, kimchi. Question: ...".

    Splits, labels, choices and errors are those of `culture`; the label form is "choices".
    """
    for item in culture(seed, split, languages, attributes=attributes, count=count):
        yield replace(item, prompt=_options(item) + item.prompt, labels={**item.labels, "form": "choices"})


def culture_control(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    attributes: Iterable[str] | None = None,
    count: int | None = None,
) -> Iterator[Item]:
    """Yield the items of `culture_choices` with the question left out: "Dosa, sushi, pizza, kimchi. Answer:".

    Item k answers item k of `culture_choices` of the same arguments: same options, same right answer, which can't be known
    here. The label form is "control".
    """
    for item in culture(seed, split, languages, attributes=attributes, count=count):
        cue = _CUES[item.labels["language"]][int(item.labels["template"])]
        yield replace(item, prompt=_options(item) + cue, labels={**item.labels, "form": "control"})


def culture_names(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    countries: Iterable[str] | None = None,
    count: int | None = None,
) -> Iterator[Item]:
    """Yield passages that mention a country of the culture questions and ask for its name; at most `count`.

    Splits: `train` and `heldout` passages. Labels: skill "culture", form "names", language, country (code), template
    (passage), wording (question). Choices: the country and three others, each as its language names it.
    """
    check_split(split, NAME_SPLITS)
    check_count(count)
    wanted = check_languages(languages, CULTURE_LANGUAGES)
    known = check_languages(countries, tuple(ANSWERS))
    rng = rng_for("culture names", seed, split)
    items = [
        _named(code, language, passage, wording, split, rng)
        for code in known
        for language in wanted
        for passage in _passages(language, split)
        for wording in range(len(QUESTIONS[language]))
    ]
    rng.shuffle(items)
    return islice(iter(items), count)


def _options(item: Item) -> str:
    """The choices as a sentence, with the space that the script needs behind it."""
    unspaced = item.labels["language"] == "zh"
    listed = ("、" if unspaced else ", ").join(choice.strip() for choice in item.choices)
    return sentence_case(listed) + ("。" if unspaced else ". ")


def _passages(language: str, split: str) -> range:
    known = len(PASSAGES[language])
    first = known - HELD_OUT_PASSAGES
    return range(first) if split == "train" else range(first, known)


def _named(code: str, language: str, passage: int, wording: int, split: str, rng: random.Random) -> Item:
    country = BY_CODE[code]
    told = PASSAGES[language][passage].format(
        n=rng.choice(PEOPLE[language]), c=country.names[language], of=country.of[language]
    )
    asked = QUESTIONS[language][wording]
    pool = [BY_CODE[other].names[language] for other in ANSWERS]
    answer = country.names[language]
    labels = {
        "skill": "culture",
        "form": "names",
        "language": language,
        "country": code,
        "template": str(passage),
        "wording": str(wording),
    }
    return Item(
        sentence_case(told) + ("" if language == "zh" else " ") + asked,
        spaced(answer, language),
        tuple(spaced(choice, language) for choice in with_distractors(answer, pool, rng)),
        "。" if language == "zh" else ".",
        split,
        labels,
    )
