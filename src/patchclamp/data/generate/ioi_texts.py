"""Sentences for indirect objects in six languages: frames in which the name comes directly next, names, places, gifts.

In a frame {a} and {b} are the two names in the order in which they come, {s} is the subject again, {place} and {gift} are
filled from the lists. Names stay as they are in every position (no case endings, no agreement with a person's gender), so
that either name can stand in either place: Russian frames are in the present tense and end in a nominative.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Frames that share their lists of words. space: whether words, and so the answer, stand apart."""

    frames: tuple[str, ...]
    names: tuple[str, ...]
    places: tuple[str, ...]
    gifts: tuple[str, ...]
    space: bool = True


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_EN = Family(
    (
        "When {a} and {b} went to the {place}, {s} gave a {gift} to",
        "Then {a} and {b} met at the {place}, and {s} offered a {gift} to",
        "After {a} and {b} arrived at the {place}, {s} handed a {gift} to",
        "While {a} and {b} were waiting at the {place}, {s} showed a {gift} to",
        "Yesterday {a} and {b} walked to the {place}. {s} bought a {gift} for",
        "This morning {a} and {b} talked at the {place}. {s} sold a {gift} to",
        "Last week {a} and {b} had lunch at the {place}. Later {s} brought a {gift} to",
        "Since {a} and {b} were friends from the {place}, {s} lent a {gift} to",
        "Once {a} and {b} had left the {place}, {s} returned a {gift} to",
        "One day {a} and {b} stayed at the {place} and {s} passed a {gift} to",
    ),
    _words(
        "Mary John Anna Peter Tom Lisa Paul Emma Max Sarah James Kate Mark Laura David Alice Simon Jane Adam Martha Jack "
        "Rose Luke Clara Robert Michael William Richard Thomas Daniel Matthew Anthony Steven Andrew Kevin Brian George Jason "
        "Ryan Eric Jacob Scott Henry Philip Carl Arthur Roger Joe Albert Jesse Billy Joseph Susan Jessica Karen Nancy Betty "
        "Helen Sandra Donna Carol Ruth Sharon Michelle Emily Amanda Rebecca Julia Grace Amy Angela Anne Diana Lucy Ellen "
        "Fred Frank Howard Walter Oliver Oscar Victor Martin Leon Ivan Hugo Eva Maria Linda Barbara Elizabeth Jennifer"
    ),
    ("shop", "park", "school", "house", "river", "market", "station", "garden", "church", "beach"),
    ("book", "ring", "ball", "letter", "drink", "cake", "key", "basket", "flower", "coat"),
)
_DE = Family(
    (
        "Als {a} und {b} {place} waren, schickte {s} {gift} an",
        "Gestern trafen sich {a} und {b} {place}. Dann übergab {s} {gift} an",
        "Weil {a} und {b} sich {place} trafen, verkaufte {s} {gift} an",
        "Nachdem {a} und {b} {place} angekommen waren, reichte {s} {gift} weiter an",
        "Während {a} und {b} {place} warteten, verlieh {s} {gift} an",
    ),
    _words(
        "Maria Anna Peter Hans Paul Max Thomas Martin Karl Georg Eva Johannes Simon David Laura Emma Julia Michael Andreas "
        "Johann Jakob Adam Tom Lisa Sarah Jan Daniel Robert Alexander Otto Franz Klaus Frank Jonas Lukas Felix Leon"
    ),
    ("im Park", "in der Schule", "am Bahnhof", "auf dem Markt", "im Garten", "im Laden", "am Fluss", "in der Kirche"),
    ("ein Buch", "einen Ring", "einen Ball", "einen Brief", "eine Lampe", "einen Korb", "eine Blume", "ein Bild"),
)
_FR = Family(
    (
        "Quand {a} et {b} étaient {place}, {s} a donné {gift} à",
        "Hier, {a} et {b} parlaient {place}. Ensuite, {s} a offert {gift} à",
        "Pendant que {a} et {b} attendaient {place}, {s} a montré {gift} à",
        "Comme {a} et {b} se trouvaient {place}, {s} a vendu {gift} à",
        "Ce matin, {a} et {b} jouaient {place} et {s} a prêté {gift} à",
    ),
    _words(
        "Marie Paul Pierre Jean Anne Luc Louis Jacques Thomas Simon Marc Julie Claire Michel Charles Henri Martin David "
        "Emma Adam Alice Robert Daniel Nicolas François Philippe Antoine Louise Sophie Camille Hugo Laura Lucas"
    ),
    ("au parc", "à l'école", "à la gare", "au marché", "au jardin", "à la plage", "au magasin", "à l'église"),
    ("un livre", "une bague", "une balle", "une lettre", "une lampe", "un panier", "une fleur", "un gâteau"),
)
_RU = Family(
    (
        "Сейчас {a} и {b} сидят {place}. Потом {s} отдаёт {gift}, а берёт её",
        "Вот {a} и {b} встречаются {place}. Там {s} дарит {gift}, и получает её",
        "Когда {a} и {b} гуляют {place}, {s} продаёт {gift}, а покупает её",
        "Пока {a} и {b} ждут {place}, {s} приносит {gift}, и забирает её",
        "Сегодня {a} и {b} разговаривают {place}, и {s} предлагает {gift}, а принимает её",
    ),
    _words(
        "Анна Иван Мария Пётр Павел Марк Лука Ольга Олег Игорь Андрей Михаил Николай Александр Наташа Саша Миша Маша Катя "
        "Вера Елена Лев Том Яков Давид Адам Ирина Юрий Сергей Дмитрий Алексей Антон Максим Виктор Борис Нина Лена Иаков "
        "Иосиф Моисей Авраам"
    ),
    ("в парке", "в школе", "на вокзале", "на рынке", "в саду", "в магазине", "на пляже", "в церкви"),
    ("книгу", "лампу", "сумку", "карту", "вазу", "корзину", "шляпу", "куртку"),
)
_ZH = Family(
    (
        "小{a}和小{b}在{place}见面，小{s}把{gift}送给了小",
        "昨天小{a}和小{b}一起去{place}，后来小{s}把{gift}交给了小",
        "当小{a}和小{b}到{place}的时候，小{s}把{gift}借给了小",
        "因为小{a}和小{b}都在{place}，所以小{s}把{gift}递给了小",
        "小{a}和小{b}在{place}等车，小{s}把{gift}卖给了小",
    ),
    tuple("王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕丁石方江田金钱叶汪"),
    ("公园", "学校", "车站", "市场", "花园", "商店", "海边", "图书馆"),
    ("一本书", "一个球", "一盏灯", "一把伞", "一束花", "一顶帽子", "一封信", "一个包"),
    space=False,
)
_JA = Family(
    (
        "{a}さんと{b}さんは{place}に行きました。{s}さんが{gift}をあげた相手は",
        "昨日、{a}さんと{b}さんが{place}で会いました。{s}さんが{gift}を渡した相手は",
        "{a}さんと{b}さんが{place}で話していたとき、{s}さんが{gift}を見せた相手は",
        "今日、{a}さんと{b}さんは{place}で待っていました。{s}さんが{gift}を貸した相手は",
        "先週、{a}さんと{b}さんは{place}にいました。{s}さんが{gift}を送った相手は",
    ),
    _words(
        "田中 鈴木 佐藤 高橋 伊藤 渡辺 山本 中村 小林 加藤 森 林 原 関 東 南 西 星 島 岡 谷 堀 辻 平 泉 牧 沢 浜 北 堤 "
        "秋 春 金 石 山 川 町 岸 辺"
    ),
    ("公園", "学校", "駅", "市場", "庭", "店", "海", "図書館"),
    ("本", "花", "傘", "帽子", "手紙", "かばん", "時計", "絵"),
    space=False,
)

FAMILIES: dict[str, Family] = {"en": _EN, "de": _DE, "fr": _FR, "ru": _RU, "zh": _ZH, "ja": _JA}
