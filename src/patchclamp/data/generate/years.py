"""Stimuli of temporal cognition: `Year: 1900` beside `Number: 1900`, judgement prompts for pairs, and dated text.

Source of the wordings in English: Li et al. 2025, arXiv 2507.15851; the other languages are ours.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from patchclamp.core.errors import InputError
from patchclamp.data.generate.items import check_languages, rng_for

CONDITIONS = ("year", "number")
CUES = {
    "en": {"year": "Year: {x}", "number": "Number: {x}"},
    "de": {"year": "Jahr: {x}", "number": "Zahl: {x}"},
    "fr": {"year": "Année : {x}", "number": "Nombre : {x}"},
    "ru": {"year": "Год: {x}", "number": "Число: {x}"},
    "zh": {"year": "年份：{x}", "number": "数字：{x}"},
    "ja": {"year": "年：{x}", "number": "数：{x}"},
}
JUDGEMENT = {
    "en": (
        "How close are the two {things} on a scale from 0 (completely dissimilar) to 1 (completely similar)? "
        "Respond only with the rating.\n{Thing}_1: {a};\n{Thing}_2: {b};\nRating: "
    ),
    "de": (
        "Wie nahe liegen die beiden {things} auf einer Skala von 0 (völlig unähnlich) bis 1 (völlig ähnlich)? "
        "Antworte nur mit der Bewertung.\n{Thing}_1: {a};\n{Thing}_2: {b};\nBewertung: "
    ),
    "fr": (
        "À quel point les deux {things} sont-ils proches, de 0 (tout à fait différents) à 1 (tout à fait semblables) ? "
        "Réponds seulement par la note.\n{Thing}_1 : {a} ;\n{Thing}_2 : {b} ;\nNote : "
    ),
    "ru": (
        "Насколько близки эти {things} по шкале от 0 (совсем не похожи) до 1 (совершенно похожи)? "
        "Ответь только оценкой.\n{Thing}_1: {a};\n{Thing}_2: {b};\nОценка: "
    ),
    "zh": "这两个{things}有多接近？从0（完全不同）到1（完全相同）打分。只回答分数。\n{Thing}_1：{a}；\n{Thing}_2：{b}；\n分数：",
    "ja": (
        "二つの{things}はどれくらい近いですか。0（まったく違う）から1（まったく同じ）で評価し、評価だけを答えてください。"
        "\n{Thing}_1：{a}；\n{Thing}_2：{b}；\n評価："
    ),
}
WORDS = {
    "en": {"year": ("years", "Year"), "number": ("numbers", "Number")},
    "de": {"year": ("Jahre", "Jahr"), "number": ("Zahlen", "Zahl")},
    "fr": {"year": ("ans", "An"), "number": ("nombres", "Nombre")},
    "ru": {"year": ("годы", "Год"), "number": ("числа", "Число")},
    "zh": {"year": ("年份", "年份"), "number": ("数字", "数字")},
    "ja": {"year": ("年", "年"), "number": ("数", "数")},
}
ORDERS = ("both", "upper")
_SPAN = re.compile(r"(-?\d+)-(-?\d+)(?::(\d+))?")
_NAMES = ("mill", "bridge", "harbour", "tower", "school", "garden", "market", "library", "station", "well")


@dataclass(frozen=True)
class PairPrompt:
    """A judgement prompt. first, second: positions of the two values in the list of values that it was made from."""

    first: int
    second: int
    text: str


def parse_values(text: str) -> list[int]:
    """The integers that "1700-2020", "1700-2020:10" (every tenth) or "1700,1750,1800" stand for, without repetition.

    Raises InputError for anything else, an empty span included.
    """
    values: list[int] = []
    for part in text.split(","):
        part = part.strip()
        if match := _SPAN.fullmatch(part):
            first, last, step = int(match[1]), int(match[2]), int(match[3] or 1)
            if step < 1 or last < first:
                raise InputError(
                    f"{part!r} is an empty span; write it as first-last, such as 1700-2020 or 1700-2020:10"
                )
            values.extend(range(first, last + 1, step))
        elif re.fullmatch(r"-?\d+", part):
            values.append(int(part))
        else:
            raise InputError(f"{part!r} given; write values as 1700-2020, 1700-2020:10 or 1700,1750,1800")
    if len(set(values)) < len(values):
        raise InputError(f"{text!r} names a value twice; every stimulus comes once")
    return values


def stimuli(
    values: Sequence[int], *, language: str = "en", conditions: Sequence[str] = CONDITIONS
) -> dict[str, list[str]]:
    """Condition -> one stimulus per value, in the same order: text i of every condition holds the same integer.

    `corpus(stimuli(range(1525, 2525)))` is what `find.temporal` needs a recording of.
    """
    if not len(values):
        raise InputError("no values given; stimuli need at least one")
    return {name: [_cue(language, name).format(x=value) for value in values] for name in _conditions(conditions)}


def pair_prompts(
    values: Sequence[int], *, condition: str = "year", language: str = "en", order: str = "both"
) -> list[PairPrompt]:
    """Prompts that ask how similar two values are, rated from 0 to 1.

    order: "both" asks every ordered pair (i, j), n^2 prompts; "upper" asks i <= j only, which halves the work but hides
    order effects. The prompt ends behind "Rating: ", so that a rating such as 0.7 follows.
    """
    if order not in ORDERS:
        raise InputError(f"order {order!r} given; it is one of {', '.join(ORDERS)}")
    _conditions((condition,))
    check_languages(language, tuple(JUDGEMENT))
    things, thing = WORDS[language][condition]
    found = []
    for i, j in itertools.product(range(len(values)), repeat=2):
        if order == "both" or i <= j:
            text = JUDGEMENT[language].format(things=things, Thing=thing, a=values[i], b=values[j])
            found.append(PairPrompt(i, j, text))
    return found


def dated_text(
    reference: int | None,
    *,
    first: int = 1900,
    last: int = 2099,
    count: int = 1000,
    context: int = 1,
    seed: int = 0,
) -> Iterator[str]:
    """Yield `count` sentences about dated events, whose density over the years is known.

    reference: year R at which events are densest, in proportion to 1 / (1 + |y - R|); None: every year alike. Each year
    has its own event, and with probability a half a sentence tells the event of a year up to `context` years away, as
    sources disagree; so years lie near each other in the text as they do in time.
    """
    if last <= first or count < 0 or context < 0:
        raise InputError(f"years {first}-{last}, count={count}, context={context}; years ascend, and none is negative")
    rng = rng_for("dated text", seed, reference, first, last, context)
    years = range(first, last + 1)
    weights = [1.0 if reference is None else 1 / (1 + abs(year - reference)) for year in years]
    for year in rng.choices(years, weights, k=count):
        told = year if rng.random() < 0.5 else min(max(year + rng.randint(-context, context), first), last)
        yield f"In {year} the {_NAMES[told % len(_NAMES)]} of e{told - first} was built."


def _cue(language: str, condition: str) -> str:
    check_languages(language, tuple(CUES))
    return CUES[language][condition]


def _conditions(names: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in names if name not in CONDITIONS]
    if unknown or not names:
        raise InputError(f"conditions {list(names)} asked for; there are {', '.join(CONDITIONS)}")
    return names
