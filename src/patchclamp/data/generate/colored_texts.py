"""Scenes of coloured objects in six languages: the published English form, and our own that say the same.

A scene is `opening` with {items}, then `question` with {x}; an item is `item` with {c} (colour) and {o} (object). Within a
group all objects take the same articles and endings, so that another object asked about changes one word and no other.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Group:
    """Objects of one gender, colours in the form that goes with it, and the words that agree."""

    objects: tuple[str, ...]
    colors: tuple[str, ...]
    words: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scenery:
    """How scenes are said. capital: the answer starts with a capital. comma: joins items, last: joins the last one."""

    openings: tuple[str, ...]
    item: str
    question: str
    groups: tuple[Group, ...]
    comma: str = ", "
    last: str = " and "
    places: tuple[str, ...] = ("",)
    capital: bool = False
    space: bool = True


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Merullo et al. 2024: the objects, colours, surfaces and openers of their data; {n} is the n of "an" before a vowel
_EN = Scenery(
    openings=tuple(f"Q: On the {{place}}, {opener} {{items}}. " for opener in ("there is", "you see", "I see")),
    item="a{n} {c} {o}",
    question="What color is the {x}?\nA:",
    groups=(
        Group(
            _words(
                "pencil notebook pen cup plate jug mug puzzle textbook leash necklace bracelet bottle ball envelope lighter bowl"
            ),
            _words("red orange yellow green blue purple brown black"),
        ),
    ),
    last=", and ",
    places=("table", "desk", "floor"),
    capital=True,
)
_DE_COLORS = _words("rot blau grün gelb schwarz weiß braun grau rosa lila orange violett")
_DE = Scenery(
    openings=("F: Auf dem {place} sind {count} Dinge: {items}. ", "F: Man sieht auf dem {place}: {items}. "),
    item="{the} {o} ist {c}",
    question="Welche Farbe hat {the} {x}?\nA:",
    groups=(
        Group(
            _words("Stift Ball Hut Ring Korb Teller Becher Schlüssel Stuhl Schuh Brief Mantel"),
            _DE_COLORS,
            {"the": "der"},
        ),
        Group(_words("Tasse Lampe Tasche Flasche Kiste Vase Karte Blume Kette Schale"), _DE_COLORS, {"the": "die"}),
        Group(_words("Buch Glas Messer Bild Kleid Boot Kissen Heft"), _DE_COLORS, {"the": "das"}),
    ),
    last=" und ",
    places=("Tisch", "Boden", "Regal"),
)
_FR_COLORS = _words("rouge bleue verte jaune noire blanche brune grise rose violette orange")  # agree with "couleur"
_FR = Scenery(
    openings=("Q : Sur {place}, il y a {items}. ", "Q : Sur {place}, on voit {items}. "),
    item="{a} {o} de couleur {c}",
    question="De quelle couleur est {the} {x} ?\nR : de couleur",
    groups=(
        Group(
            _words("tasse balle plume lettre lampe fleur table carte robe bague bouteille chaise"),
            _FR_COLORS,
            {"a": "une", "the": "la"},
        ),
        Group(
            _words("livre stylo sac chapeau vase verre crayon cahier bouton panier bol manteau"),
            _FR_COLORS,
            {"a": "un", "the": "le"},
        ),
    ),
    last=" et ",
    places=("la table", "le bureau", "le sol"),
)
_RU = Scenery(
    openings=("Вопрос: на {place} {items}. ", "Вопрос: вот что видно на {place}: {items}. "),
    item="{c} {o}",
    question="{which} там {x}?\nОтвет:",
    groups=(
        Group(
            _words("карандаш мяч стакан ключ нож зонт шар камень платок шарф пояс блокнот"),
            _words("красный синий зелёный белый чёрный жёлтый серый розовый"),
            {"which": "Какой"},
        ),
        Group(
            _words("книга чашка ручка лампа сумка коробка тарелка шляпа ваза карта"),
            _words("красная синяя зелёная белая чёрная жёлтая серая розовая"),
            {"which": "Какая"},
        ),
    ),
    last=" и ",
    places=("столе", "полу", "полке"),
)
_ZH = Scenery(
    openings=("问：{place}有{items}。", "问：{place}放着{items}。"),
    item="{c}色的{o}",
    question="{x}是什么颜色？\n答：",
    groups=(Group(tuple("书笔球灯包碗盘刀伞花盒杯布瓶旗"), tuple("红蓝绿黑白紫黄灰粉橙金银")),),
    comma="、",
    last="和",
    places=("桌子上", "地板上", "架子上"),
    space=False,
)
_JA = Scenery(
    openings=("問：{place}の上に{items}があります。", "問：{place}の上に{items}が見えます。"),
    item="{c}の{o}",
    question="{x}の色は？\n答：",
    groups=(
        Group(
            ("本", "箱", "皿", "傘", "靴", "花", "紙", "車", "鍵", "玉", "袋", "服", "布", "旗", "筆", "鏡", "糸"),
            tuple("赤青緑黒白紫金銀茶"),
        ),
    ),
    comma="、",
    last="と",
    places=("机", "床", "棚"),
    space=False,
)

SCENERIES: dict[str, Scenery] = {"en": _EN, "de": _DE, "fr": _FR, "ru": _RU, "zh": _ZH, "ja": _JA}
COUNTS = {2: "zwei", 3: "drei", 4: "vier", 5: "fünf", 6: "sechs"}
