"""Four-unit sentences with word classes: two units of subject phrase, two of verb phrase, in six languages.

The rhythm is what frequency tagging needs (Ding et al. 2016; An et al. 2025, arXiv:2510.13255): a sentence every four units,
a phrase every two. A unit is a word where words are written apart, a character in Chinese, a word with its particle in
Japanese. Splits: `train`; `heldout`: combinations of the first three units
that training never saw, though it saw every unit.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

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
)

SPLITS = ("train", "heldout")
HELD_OUT_SHARE = 0.15
UNITS = 4
SEPARATOR = "|"  # between units and between tags in an item's labels


@dataclass(frozen=True)
class Grammar:
    """Words of one language. first, second: units of the subject; phrases: last two units, as verb -> what goes with it.

    tags: universal parts of speech of the four units. object_first: the fourth unit is the verb.
    """

    tags: tuple[str, str, str, str]
    first: tuple[str, ...]
    second: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]
    object_first: bool = False


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


GRAMMARS = {
    "en": Grammar(
        ("ADJ", "NOUN", "VERB", "NOUN"),
        _words("small old young black white hungry clever quiet strong tired"),
        _words("birds dogs cats horses children farmers women men friends teachers"),
        {
            "eat": _words("bread seeds fruit cheese apples"),
            "drink": _words("water milk tea juice"),
            "see": _words("mountains rivers ships clouds stars"),
            "build": _words("houses bridges walls boats nests"),
            "carry": _words("stones baskets letters wood bags"),
            "love": _words("music flowers stories summer games"),
        },
    ),
    "de": Grammar(
        ("ADJ", "NOUN", "VERB", "NOUN"),
        _words("kleine alte junge schwarze weiße hungrige kluge stille starke müde"),
        _words("Vögel Hunde Katzen Pferde Kinder Bauern Frauen Männer Freunde Lehrer"),
        {
            "essen": _words("Brot Körner Obst Käse Äpfel"),
            "trinken": _words("Wasser Milch Tee Saft"),
            "sehen": _words("Berge Flüsse Schiffe Wolken Sterne"),
            "bauen": _words("Häuser Brücken Mauern Boote Nester"),
            "tragen": _words("Steine Körbe Briefe Holz Taschen"),
            "lieben": _words("Musik Blumen Geschichten Spiele Feste"),
        },
    ),
    "fr": Grammar(
        ("DET", "NOUN", "VERB", "ADV"),
        _words("les mes tes ses nos vos leurs ces deux trois"),
        _words("oiseaux chiens chats chevaux enfants paysans femmes hommes amis maîtres"),
        {
            "mangent": _words("peu beaucoup vite lentement ensemble"),
            "boivent": _words("peu beaucoup rarement souvent"),
            "chantent": _words("bien fort doucement souvent ensemble"),
            "marchent": _words("vite lentement longtemps ensemble loin"),
            "travaillent": _words("bien dur tard longtemps ici"),
            "dorment": _words("bien mal longtemps ici dehors"),
        },
    ),
    "ru": Grammar(
        ("ADJ", "NOUN", "VERB", "NOUN"),
        _words("маленькие старые молодые чёрные белые голодные умные тихие сильные усталые"),
        _words("птицы собаки кошки лошади дети крестьяне женщины мужчины друзья учителя"),
        {
            "едят": _words("хлеб зёрна фрукты сыр яблоки"),
            "пьют": _words("воду молоко чай сок"),
            "видят": _words("горы реки корабли облака звёзды"),
            "строят": _words("дома мосты стены лодки гнёзда"),
            "несут": _words("камни корзины письма дрова сумки"),
            "любят": _words("музыку цветы сказки лето игры"),
        },
    ),
    "zh": Grammar(
        ("ADJ", "NOUN", "VERB", "NOUN"),
        _words("小 老 大 白 黑 好 新 男"),
        _words("鸟 狗 猫 马 人 孩 师 王"),
        {
            "吃": _words("米 肉 鱼 果 草"),
            "喝": _words("水 茶 奶 酒"),
            "看": _words("山 书 天 花 月"),
            "建": _words("房 桥 墙 船 城"),
            "爱": _words("歌 家 国 诗 春"),
            "拿": _words("石 木 刀 笔 衣"),
        },
    ),
    "ja": Grammar(
        ("ADJ", "NOUN", "NOUN", "VERB"),
        _words("小さい 若い 黒い 白い 強い 静かな 大きい 賢い"),
        _words("鳥が 犬が 猫が 馬が 子が 女が 男が 友が"),
        {
            "食べる": _words("パンを 米を 魚を 肉を 果物を"),
            "飲む": _words("水を お茶を 牛乳を 酒を"),
            "見る": _words("山を 川を 船を 星を 花を"),
            "作る": _words("家を 橋を 壁を 服を 箱を"),
            "運ぶ": _words("石を 木を 手紙を 袋を 荷物を"),
            "愛する": _words("歌を 国を 話を 夏を 人を"),
        },
        object_first=True,
    ),
}


def sentences(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    count: int | None = 1000,
) -> Iterator[Item]:
    """Yield `count` sentences (None: without end), drawn with replacement; the answer is the last unit.

    Labels: skill "sentences", language, units and tags (four each, joined by "|"). Choices: four last units, the right one
    included; the wrong ones never follow the third unit in any sentence.
    """
    check_split(split, SPLITS)
    check_count(count)
    wanted = check_languages(languages, LANGUAGES)
    rng = rng_for("sentences", seed, split)
    made = 0
    while count is None or made < count:
        language = rng.choice(wanted)
        units, wrong = _draw(GRAMMARS[language], rng)
        if is_held_out(HELD_OUT_SHARE, "sentences", language, *units[:-1]) == (split == "heldout"):
            made += 1
            yield _item(language, units, wrong, split, rng)


def _draw(grammar: Grammar, rng: random.Random) -> tuple[tuple[str, ...], list[str]]:
    """Four units and what the fourth could be mistaken for."""
    verb = rng.choice(list(grammar.phrases))
    partner = rng.choice(grammar.phrases[verb])
    start = (rng.choice(grammar.first), rng.choice(grammar.second))
    if grammar.object_first:
        others = [other for other, partners in grammar.phrases.items() if partner not in partners]
        return (*start, partner, verb), others
    others = sorted({word for words in grammar.phrases.values() for word in words} - set(grammar.phrases[verb]))
    return (*start, verb, partner), others


def _item(language: str, units: tuple[str, ...], wrong: list[str], split: str, rng: random.Random) -> Item:
    gap = "" if language in UNSPACED else " "
    written = (sentence_case(units[0]), *units[1:])
    choices = [gap + word for word in (units[-1], *rng.sample(wrong, 3))]
    rng.shuffle(choices)
    labels = {
        "skill": "sentences",
        "language": language,
        "units": SEPARATOR.join(written),
        "tags": SEPARATOR.join(GRAMMARS[language].tags),
    }
    tail = "。" if language in UNSPACED else "."
    return Item(gap.join(written[:-1]), gap + units[-1], tuple(choices), tail, split, labels)
