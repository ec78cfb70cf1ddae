"""Years and calendars: the next year, decades, centuries, which came first, ages, and the order of days and months.

Splits: `train`; `heldout`: years (for the questions about a year) or pairs of years that training never saw in that
question. Days and months are few and all taught, so they exist in `train` only.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from patchclamp.data.generate.items import (
    LANGUAGES,
    Item,
    check_count,
    check_languages,
    check_split,
    is_held_out,
    rng_for,
    spaced,
    with_distractors,
)

SPLITS = ("train", "heldout")
# how often each is drawn: what must be computed comes more often than what is a glance or a short list
KINDS = {"next_year": 2, "decade": 1, "century": 1, "first": 2, "age": 10, "weekday": 1, "month": 1}
CYCLES = ("weekday", "month")
FIRST_YEAR, LAST_YEAR = 1700, 2020
HELD_OUT_SHARE = 0.15

NEXT = {
    "en": "The year after {y} was",
    "de": "Das Jahr nach {y} war",
    "fr": "L'année après {y} fut",
    "ru": "После {y} года наступил год",
    "zh": "{y}年的下一年是",
    "ja": "{y}年の次の年は",
}
DECADE = {
    "en": "The year {y} belongs to the decade of the",
    "de": "Das Jahr {y} gehört zum Jahrzehnt der",
    "fr": "L'année {y} appartient à la décennie",
    "ru": "Год {y} — десятилетие:",
    "zh": "{y}年属于年代：",
    "ja": "{y}年の年代は",
}
CENTURY = {
    "en": "The year {y} belongs to century number",
    "de": "Das Jahr {y} gehört zum Jahrhundert Nummer",
    "fr": "L'année {y} appartient au siècle numéro",
    "ru": "Год {y} — век номер",
    "zh": "{y}年属于世纪：",
    "ja": "{y}年の世紀は",
}
FIRST = {
    "en": "Which year came first, {y} or {z}? Answer:",
    "de": "Welches Jahr war früher, {y} oder {z}? Antwort:",
    "fr": "Quelle année vint d'abord, {y} ou {z} ? Réponse :",
    "ru": "Какой год был раньше, {y} или {z}? Ответ:",
    "zh": "{y}年和{z}年哪个更早？答：",
    "ja": "{y}年と{z}年ではどちらが先ですか。答：",
}
AGE = {
    "en": "{n} was born in {y}. In {z}, {n} turned",
    "de": "{n} wurde {y} geboren. Im Jahr {z} wurde {n}",
    "fr": "{n} est né en {y}. En {z}, {n} a eu",
    "ru": "Год рождения: {y}. В {z} году исполнилось",
    "zh": "他生于{y}年。到{z}年他的岁数是",
    "ja": "彼は{y}年に生まれた。{z}年の年齢は",
}
AFTER = {
    "en": "After {d} comes",
    "de": "Nach {d} kommt",
    "fr": "Après {d} vient",
    "ru": "{d}, а потом",
    "zh": "{d}之后是",
    "ja": "{d}の次は",
}
BEFORE = {
    "en": "Before {d} comes",
    "de": "Vor {d} kommt",
    "fr": "Avant {d} vient",
    "ru": "{d}, а перед этим",
    "zh": "{d}之前是",
    "ja": "{d}の前は",
}
WEEKDAYS = {
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "de": "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    "fr": "lundi mardi mercredi jeudi vendredi samedi dimanche",
    "ru": "Понедельник Вторник Среда Четверг Пятница Суббота Воскресенье",
    "zh": "星期一 星期二 星期三 星期四 星期五 星期六 星期日",
    "ja": "月曜日 火曜日 水曜日 木曜日 金曜日 土曜日 日曜日",
}
MONTHS = {
    "en": "January February March April May June July August September October November December",
    "de": "Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
    "fr": "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "ru": "Январь Февраль Март Апрель Май Июнь Июль Август Сентябрь Октябрь Ноябрь Декабрь",
    "zh": "一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月",
    "ja": "一月 二月 三月 四月 五月 六月 七月 八月 九月 十月 十一月 十二月",
}
PEOPLE = ("Anna", "Peter", "Maria", "Tom", "Lisa", "Paul", "Emma", "Max")


def dates(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    kinds: Iterable[str] | None = None,
    count: int | None = 1000,
) -> Iterator[Item]:
    """Yield `count` questions (None: without end), drawn with replacement over the kinds.

    Labels: skill "dates", kind, language and, where there is one, year. Choices: four answers, the right one included
    (two for `first`). Raises InputError if the held-out split is asked of days or months alone.
    """
    check_split(split, SPLITS)
    check_count(count)
    wanted = check_languages(languages, LANGUAGES)
    chosen = check_languages(kinds, [kind for kind in KINDS if split == "train" or kind not in CYCLES])
    rng = rng_for("dates", seed, split)
    made = 0
    while count is None or made < count:
        kind, language = rng.choices(chosen, [KINDS[name] for name in chosen])[0], rng.choice(wanted)
        item = _cycle(kind, language, rng) if kind in CYCLES else _year(kind, language, split, rng)
        if item is not None:
            made += 1
            yield item


def _year(kind: str, language: str, split: str, rng: random.Random) -> Item | None:
    """A question about one or two years, or None if the draw belongs to the other split."""
    year = rng.randint(FIRST_YEAR, LAST_YEAR)
    other = min(year + rng.randint(1, 90), LAST_YEAR + 30) if kind == "age" else rng.randint(FIRST_YEAR, LAST_YEAR)
    key = (kind, year, other) if kind in ("first", "age") else (kind, year)
    if year == other or is_held_out(HELD_OUT_SHARE, *key) != (split == "heldout"):
        return None
    templates = {"next_year": NEXT, "decade": DECADE, "century": CENTURY, "first": FIRST, "age": AGE}[kind]
    answer, pool = _answer(kind, year, other, language)
    prompt = templates[language].format(y=year, z=other, n=rng.choice(PEOPLE))
    return _item(prompt, answer, pool, kind, language, split, rng, year=str(year))


def _answer(kind: str, year: int, other: int, language: str) -> tuple[str, list[str]]:
    if kind == "next_year":
        return str(year + 1), [str(year + step) for step in (-1, 2, 11, 10)]
    if kind == "decade":
        mark = {"en": "s", "de": "er", "zh": "年代", "ja": "年代"}.get(language, "")
        start = year // 10 * 10
        return f"{start}{mark}", [f"{start + step}{mark}" for step in (-10, 10, 100)]
    if kind == "century":
        number = (year - 1) // 100 + 1
        return str(number), [str(number + step) for step in (-1, 1, 2)]
    if kind == "first":
        return str(min(year, other)), [str(max(year, other))]
    age = other - year
    return str(age), [str(age + step) for step in (1, 10, 2)]


def _cycle(kind: str, language: str, rng: random.Random) -> Item:
    names = (WEEKDAYS if kind == "weekday" else MONTHS)[language].split()
    place = rng.randrange(len(names))
    forward = rng.random() < 0.6
    answer = names[(place + (1 if forward else -1)) % len(names)]
    prompt = (AFTER if forward else BEFORE)[language].format(d=names[place])
    return _item(prompt, answer, names, kind, language, "train", rng)


def _item(
    prompt: str,
    answer: str,
    pool: list[str],
    kind: str,
    language: str,
    split: str,
    rng: random.Random,
    **labels: str,
) -> Item:
    choices = tuple(spaced(choice, language) for choice in with_distractors(answer, pool, rng))
    tail = {"zh": "。", "ja": "。"}.get(language, ".")
    return Item(
        prompt,
        spaced(answer, language),
        choices,
        tail,
        split,
        {"skill": "dates", "kind": kind, "language": language, **labels},
    )
