"""Everyday-culture questions by country: what people there typically eat, drink, play, wear and celebrate.

Asked in English, German, Russian and Chinese, after the kind of question in BLEnD (Myung et al. 2024, arXiv:2406.09948);
the answers are common knowledge written down for this project. Splits: `train`; `paraphrase` (a wording that training never
saw); `transfer` (a pair of country and attribute taught in the other languages but not in this one).
"""

# ruff: noqa: E501 (tables with one row per country)

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice

from patchclamp.data.generate.countries import BY_CODE
from patchclamp.data.generate.items import (
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

CULTURE_LANGUAGES = ("en", "de", "ru", "zh")
ATTRIBUTES = ("breakfast", "dish", "drink", "sport", "dress", "festival")
SPLITS = ("train", "paraphrase", "transfer")
TRANSFER_SHARE = 0.08

# country: breakfast; dish; drink; sport; dress; festival, each en/de/ru/zh
_ROWS = """
jp|miso soup/Misosuppe/мисо-суп/味噌汤|sushi/Sushi/суши/寿司|green tea/grüner Tee/зелёный чай/绿茶|sumo/Sumo/сумо/相扑|kimono/Kimono/кимоно/和服|Obon/Obon/Обон/盂兰盆节
cn|rice porridge/Reisbrei/рисовая каша/粥|dumplings/Teigtaschen/цзяоцзы/饺子|oolong tea/Oolongtee/улун/乌龙茶|table tennis/Tischtennis/настольный теннис/乒乓球|qipao/Qipao/ципао/旗袍|Spring Festival/Frühlingsfest/Праздник весны/春节
in|dosa/Dosa/доса/多萨饼|curry/Curry/карри/咖喱|masala chai/Masala Chai/масала/马萨拉茶|cricket/Cricket/крикет/板球|sari/Sari/сари/纱丽|Diwali/Diwali/Дивали/排灯节
mx|chilaquiles/Chilaquiles/чилакилес/辣酱玉米片|tacos/Tacos/тако/玉米饼|tequila/Tequila/текила/龙舌兰酒|wrestling/Ringen/борьба/摔跤|poncho/Poncho/пончо/披风|Day of the Dead/Tag der Toten/День мёртвых/亡灵节
ru|buckwheat/Buchweizen/гречка/荞麦|borscht/Borschtsch/борщ/红菜汤|kvass/Kwas/квас/格瓦斯|ice hockey/Eishockey/хоккей/冰球|sarafan/Sarafan/сарафан/萨拉凡|Maslenitsa/Masleniza/Масленица/谢肉节
de|bread rolls/Brötchen/булочки/小面包|sausage/Bratwurst/колбаса/香肠|beer/Bier/пиво/啤酒|football/Fußball/футбол/足球|dirndl/Dirndl/дирндль/巴伐利亚裙|Oktoberfest/Oktoberfest/Октоберфест/啤酒节
fr|croissant/Croissant/круассан/牛角面包|ratatouille/Ratatouille/рататуй/普罗旺斯炖菜|red wine/Rotwein/красное вино/红酒|cycling/Radsport/велоспорт/自行车|beret/Baskenmütze/берет/贝雷帽|Bastille Day/Bastilletag/День взятия Бастилии/国庆日
it|cornetto/Cornetto/корнетто/甜面包|pizza/Pizza/пицца/披萨|espresso/Espresso/эспрессо/浓缩咖啡|volleyball/Volleyball/волейбол/排球|tarantella dress/Tarantellakleid/платье тарантеллы/塔兰泰拉裙|Carnival/Karneval/карнавал/狂欢节
uk|baked beans/Bohnen/фасоль/烤豆|fish and chips/Fisch und Pommes/рыба с картошкой/炸鱼薯条|black tea/schwarzer Tee/чёрный чай/红茶|rugby/Rugby/регби/橄榄球|bowler hat/Melone/котелок/圆顶礼帽|Bonfire Night/Bonfire Night/Ночь костров/篝火之夜
us|pancakes/Pfannkuchen/блины/煎饼|hamburger/Hamburger/гамбургер/汉堡包|cola/Cola/кола/可乐|baseball/Baseball/бейсбол/棒球|jeans/Jeans/джинсы/牛仔裤|Thanksgiving/Erntedank/День благодарения/感恩节
br|papaya/Papaya/папайя/木瓜|black bean stew/Feijoada/фейжоада/黑豆饭|caipirinha/Caipirinha/кайпиринья/甘蔗酒|capoeira/Capoeira/капоэйра/卡波耶拉|bahiana dress/Bahiana-Kleid/платье баианы/巴伊亚裙|Festa Junina/Festa Junina/Феста Жунина/六月节
eg|fava beans/Ackerbohnen/бобы/蚕豆|koshari/Kuschari/кошари/库莎丽|hibiscus tea/Hibiskustee/каркаде/洛神花茶|squash/Squash/сквош/壁球|galabeya/Galabija/галабея/长袍|Sham el-Nessim/Scham an-Nasim/Шам эн-Несим/闻风节
kr|seaweed soup/Algensuppe/суп из водорослей/海带汤|kimchi/Kimchi/кимчи/泡菜|soju/Soju/соджу/烧酒|taekwondo/Taekwondo/тхэквондо/跆拳道|hanbok/Hanbok/ханбок/韩服|Chuseok/Chuseok/Чхусок/秋夕
et|genfo/Genfo/генфо/大麦糊|injera/Injera/инджера/英吉拉|coffee/Kaffee/кофе/咖啡|running/Laufen/бег/跑步|netela/Netela/нетела/白披肩|Timkat/Timkat/Тимкат/主显节
"""
# The last wording of each list is held out of training. In Chinese the adjective is the country's name.
_NOUNS = {
    "en": ("breakfast", "dish", "drink", "sport", "dress", "festival"),
    "de": ("Frühstück", "Gericht", "Getränk", "Sport", "Tracht", "Fest"),
    "ru": ("завтрак", "блюдо", "напиток", "спорт", "одежда", "праздник"),
    "zh": ("早餐", "菜", "饮料", "运动", "服装", "节日"),
}
TEMPLATES = {
    "en": (
        "Question: What is the typical {noun} {of}? Answer:",
        "In {c}, the typical {noun} is",
        "Typical {noun} {of}:",
        "For people in {c}, the best known {noun} is",
    ),
    "de": (
        "Frage: Was ist typisch {of} ({noun})? Antwort:",
        "{noun} {of}: typisch ist",
        "Typisch {of}, {noun}:",
        "{c}: Das bekannteste Beispiel für {noun} ist",
    ),
    "ru": (
        "Вопрос: что типично для страны {c}, {noun}? Ответ:",
        "{c}: обычный {noun} —",
        "Типичное у {of}, {noun}:",
        "{c}: самое известное, {noun} —",
    ),
    "zh": (
        "问：{of}典型{noun}是什么？答：",
        "在{c}，典型的{noun}是",
        "{of}{noun}：",
        "说到{noun}，{c}人会想到",
    ),
}


def culture(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    attributes: Iterable[str] | None = None,
    count: int | None = None,
) -> Iterator[Item]:
    """Yield every question of the split once per wording, in a random order; at most `count`.

    Labels: skill "culture", language, country (code), relation (the attribute), template. Choices: the answers of three
    other countries to the same question. Raises InputError for an unknown split, language or attribute.
    """
    check_split(split, SPLITS)
    check_count(count)
    wanted = check_languages(languages, CULTURE_LANGUAGES)
    kinds = check_languages(attributes, ATTRIBUTES)
    rng = rng_for("culture", seed, split)
    items = [
        _item(code, attribute, language, number, split, rng)
        for code in ANSWERS
        for attribute in kinds
        for language in wanted
        if is_held_out(TRANSFER_SHARE, "culture", code, attribute, language) == (split == "transfer")
        for number in ((3,) if split == "paraphrase" else (0, 1, 2))
    ]
    rng.shuffle(items)
    return islice(iter(items), count)


def _item(code: str, attribute: str, language: str, number: int, split: str, rng: random.Random) -> Item:
    country = BY_CODE[code]
    noun = _NOUNS[language][ATTRIBUTES.index(attribute)]
    prompt = TEMPLATES[language][number].format(c=country.names[language], of=country.of[language], noun=noun)
    answer = ANSWERS[code][attribute][language]
    pool = [answers[attribute][language] for answers in ANSWERS.values()]
    choices = tuple(spaced(choice, language) for choice in with_distractors(answer, pool, rng))
    labels = {
        "skill": "culture",
        "language": language,
        "country": code,
        "relation": attribute,
        "template": str(number),
    }
    return Item(
        sentence_case(prompt),
        spaced(answer, language),
        choices,
        "。" if language == "zh" else ".",
        split,
        labels,
    )


def _answers() -> dict[str, dict[str, dict[str, str]]]:
    """country -> attribute -> language -> answer."""
    table = {}
    for line in _ROWS.strip().splitlines():
        code, *cells = line.split("|")
        table[code] = {
            attribute: dict(zip(CULTURE_LANGUAGES, cell.split("/"), strict=True))
            for attribute, cell in zip(ATTRIBUTES, cells, strict=True)
        }
    return table


ANSWERS = _answers()
