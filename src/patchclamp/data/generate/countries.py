"""Names in six languages of countries, their capitals, currencies, languages and continents.

One row per country; the German and French columns carry the genitive phrase ("von Frankreich", "de la France") and the
Russian one the genitive, so that sentences are grammatical without a grammar.
"""

# ruff: noqa: E501 (tables with one row per country)

from __future__ import annotations

from dataclasses import dataclass

from patchclamp.data.generate.items import LANGUAGES


@dataclass(frozen=True)
class Country:
    """One country. names, of: per language, the name (with its article where one is used) and "of the country".

    facts: relation -> language -> value; a relation that has no single uncontested answer is left out.
    """

    code: str
    names: dict[str, str]
    of: dict[str, str]
    facts: dict[str, dict[str, str]]


# code | en | de | von ... | fr | de ... | ru | ru genitive | zh | ja || capital en de fr ru zh ja || currency | language | continent
_ROWS = """
fr|France|Frankreich|von Frankreich|la France|de la France|Франция|Франции|法国|フランス||Paris|Paris|Paris|Париж|巴黎|パリ||euro|french|europe
de|Germany|Deutschland|von Deutschland|l'Allemagne|de l'Allemagne|Германия|Германии|德国|ドイツ||Berlin|Berlin|Berlin|Берлин|柏林|ベルリン||euro|german|europe
it|Italy|Italien|von Italien|l'Italie|de l'Italie|Италия|Италии|意大利|イタリア||Rome|Rom|Rome|Рим|罗马|ローマ||euro|italian|europe
es|Spain|Spanien|von Spanien|l'Espagne|de l'Espagne|Испания|Испании|西班牙|スペイン||Madrid|Madrid|Madrid|Мадрид|马德里|マドリード||euro|spanish|europe
gr|Greece|Griechenland|von Griechenland|la Grèce|de la Grèce|Греция|Греции|希腊|ギリシャ||Athens|Athen|Athènes|Афины|雅典|アテネ||euro|greek|europe
pt|Portugal|Portugal|von Portugal|le Portugal|du Portugal|Португалия|Португалии|葡萄牙|ポルトガル||Lisbon|Lissabon|Lisbonne|Лиссабон|里斯本|リスボン||euro|portuguese|europe
uk|England|England|von England|l'Angleterre|de l'Angleterre|Англия|Англии|英国|イギリス||London|London|Londres|Лондон|伦敦|ロンドン||pound|english|europe
ru|Russia|Russland|von Russland|la Russie|de la Russie|Россия|России|俄罗斯|ロシア||Moscow|Moskau|Moscou|Москва|莫斯科|モスクワ||ruble|russian|europe
pl|Poland|Polen|von Polen|la Pologne|de la Pologne|Польша|Польши|波兰|ポーランド||Warsaw|Warschau|Varsovie|Варшава|华沙|ワルシャワ||zloty|polish|europe
hu|Hungary|Ungarn|von Ungarn|la Hongrie|de la Hongrie|Венгрия|Венгрии|匈牙利|ハンガリー||Budapest|Budapest|Budapest|Будапешт|布达佩斯|ブダペスト||forint|hungarian|europe
cz|Czechia|Tschechien|von Tschechien|la Tchéquie|de la Tchéquie|Чехия|Чехии|捷克|チェコ||Prague|Prag|Prague|Прага|布拉格|プラハ||koruna|czech|europe
se|Sweden|Schweden|von Schweden|la Suède|de la Suède|Швеция|Швеции|瑞典|スウェーデン||Stockholm|Stockholm|Stockholm|Стокгольм|斯德哥尔摩|ストックホルム||krona|swedish|europe
no|Norway|Norwegen|von Norwegen|la Norvège|de la Norvège|Норвегия|Норвегии|挪威|ノルウェー||Oslo|Oslo|Oslo|Осло|奥斯陆|オスロ||krone|norwegian|europe
dk|Denmark|Dänemark|von Dänemark|le Danemark|du Danemark|Дания|Дании|丹麦|デンマーク||Copenhagen|Kopenhagen|Copenhague|Копенгаген|哥本哈根|コペンハーゲン||krone|danish|europe
cn|China|China|von China|la Chine|de la Chine|Китай|Китая|中国|中国||Beijing|Peking|Pékin|Пекин|北京|北京||yuan|chinese|asia
jp|Japan|Japan|von Japan|le Japon|du Japon|Япония|Японии|日本|日本||Tokyo|Tokio|Tokyo|Токио|东京|東京||yen|japanese|asia
kr|South Korea|Südkorea|von Südkorea|la Corée du Sud|de la Corée du Sud|Южная Корея|Южной Кореи|韩国|韓国||Seoul|Seoul|Séoul|Сеул|首尔|ソウル||won|korean|asia
in|India|Indien|von Indien|l'Inde|de l'Inde|Индия|Индии|印度|インド||New Delhi|Neu-Delhi|New Delhi|Нью-Дели|新德里|ニューデリー||rupee|hindi|asia
th|Thailand|Thailand|von Thailand|la Thaïlande|de la Thaïlande|Таиланд|Таиланда|泰国|タイ||Bangkok|Bangkok|Bangkok|Бангкок|曼谷|バンコク||baht|thai|asia
vn|Vietnam|Vietnam|von Vietnam|le Vietnam|du Vietnam|Вьетнам|Вьетнама|越南|ベトナム||Hanoi|Hanoi|Hanoï|Ханой|河内|ハノイ||dong|vietnamese|asia
mn|Mongolia|die Mongolei|der Mongolei|la Mongolie|de la Mongolie|Монголия|Монголии|蒙古|モンゴル||Ulaanbaatar|Ulaanbaatar|Oulan-Bator|Улан-Батор|乌兰巴托|ウランバートル||tugrik|mongolian|asia
tr|Turkey|die Türkei|der Türkei|la Turquie|de la Turquie|Турция|Турции|土耳其|トルコ||Ankara|Ankara|Ankara|Анкара|安卡拉|アンカラ||lira|turkish|
ir|Iran|der Iran|des Iran|l'Iran|de l'Iran|Иран|Ирана|伊朗|イラン||Tehran|Teheran|Téhéran|Тегеран|德黑兰|テヘラン||rial|persian|asia
sa|Saudi Arabia|Saudi-Arabien|von Saudi-Arabien|l'Arabie saoudite|de l'Arabie saoudite|Саудовская Аравия|Саудовской Аравии|沙特阿拉伯|サウジアラビア||Riyadh|Riad|Riyad|Эр-Рияд|利雅得|リヤド||riyal|arabic|asia
eg|Egypt|Ägypten|von Ägypten|l'Égypte|de l'Égypte|Египет|Египта|埃及|エジプト||Cairo|Kairo|Le Caire|Каир|开罗|カイロ||pound|arabic|africa
ma|Morocco|Marokko|von Marokko|le Maroc|du Maroc|Марокко|Марокко|摩洛哥|モロッコ||Rabat|Rabat|Rabat|Рабат|拉巴特|ラバト||dirham|arabic|africa
ke|Kenya|Kenia|von Kenia|le Kenya|du Kenya|Кения|Кении|肯尼亚|ケニア||Nairobi|Nairobi|Nairobi|Найроби|内罗毕|ナイロビ||shilling|swahili|africa
et|Ethiopia|Äthiopien|von Äthiopien|l'Éthiopie|de l'Éthiopie|Эфиопия|Эфиопии|埃塞俄比亚|エチオピア||Addis Ababa|Addis Abeba|Addis-Abeba|Аддис-Абеба|亚的斯亚贝巴|アディスアベバ||birr|amharic|africa
ng|Nigeria|Nigeria|von Nigeria|le Nigeria|du Nigeria|Нигерия|Нигерии|尼日利亚|ナイジェリア||Abuja|Abuja|Abuja|Абуджа|阿布贾|アブジャ||naira|english|africa
gh|Ghana|Ghana|von Ghana|le Ghana|du Ghana|Гана|Ганы|加纳|ガーナ||Accra|Accra|Accra|Аккра|阿克拉|アクラ||cedi|english|africa
us|the United States|die USA|der USA|les États-Unis|des États-Unis|США|США|美国|アメリカ||Washington|Washington|Washington|Вашингтон|华盛顿|ワシントン||dollar|english|north_america
ca|Canada|Kanada|von Kanada|le Canada|du Canada|Канада|Канады|加拿大|カナダ||Ottawa|Ottawa|Ottawa|Оттава|渥太华|オタワ||dollar||north_america
mx|Mexico|Mexiko|von Mexiko|le Mexique|du Mexique|Мексика|Мексики|墨西哥|メキシコ||Mexico City|Mexiko-Stadt|Mexico|Мехико|墨西哥城|メキシコシティ||peso|spanish|north_america
cu|Cuba|Kuba|von Kuba|Cuba|de Cuba|Куба|Кубы|古巴|キューバ||Havana|Havanna|La Havane|Гавана|哈瓦那|ハバナ||peso|spanish|north_america
br|Brazil|Brasilien|von Brasilien|le Brésil|du Brésil|Бразилия|Бразилии|巴西|ブラジル||Brasília|Brasília|Brasilia|Бразилиа|巴西利亚|ブラジリア||real|portuguese|south_america
ar|Argentina|Argentinien|von Argentinien|l'Argentine|de l'Argentine|Аргентина|Аргентины|阿根廷|アルゼンチン||Buenos Aires|Buenos Aires|Buenos Aires|Буэнос-Айрес|布宜诺斯艾利斯|ブエノスアイレス||peso|spanish|south_america
cl|Chile|Chile|von Chile|le Chili|du Chili|Чили|Чили|智利|チリ||Santiago|Santiago|Santiago|Сантьяго|圣地亚哥|サンティアゴ||peso|spanish|south_america
pe|Peru|Peru|von Peru|le Pérou|du Pérou|Перу|Перу|秘鲁|ペルー||Lima|Lima|Lima|Лима|利马|リマ||sol|spanish|south_america
au|Australia|Australien|von Australien|l'Australie|de l'Australie|Австралия|Австралии|澳大利亚|オーストラリア||Canberra|Canberra|Canberra|Канберра|堪培拉|キャンベラ||dollar|english|oceania
nz|New Zealand|Neuseeland|von Neuseeland|la Nouvelle-Zélande|de la Nouvelle-Zélande|Новая Зеландия|Новой Зеландии|新西兰|ニュージーランド||Wellington|Wellington|Wellington|Веллингтон|惠灵顿|ウェリントン||dollar|english|oceania
"""

# key | en | de | fr | ru | zh | ja
_CURRENCIES = """
euro|euro|Euro|euro|евро|欧元|ユーロ
pound|pound|Pfund|livre|фунт|英镑|ポンド
ruble|ruble|Rubel|rouble|рубль|卢布|ルーブル
zloty|zloty|Zloty|zloty|злотый|兹罗提|ズウォティ
forint|forint|Forint|forint|форинт|福林|フォリント
koruna|koruna|Krone|couronne|крона|克朗|コルナ
krona|krona|Krone|couronne|крона|克朗|クローナ
krone|krone|Krone|couronne|крона|克朗|クローネ
yuan|yuan|Yuan|yuan|юань|人民币|人民元
yen|yen|Yen|yen|иена|日元|円
won|won|Won|won|вона|韩元|ウォン
rupee|rupee|Rupie|roupie|рупия|卢比|ルピー
baht|baht|Baht|baht|бат|泰铢|バーツ
dong|dong|Dong|dong|донг|越南盾|ドン
tugrik|tugrik|Tugrik|tugrik|тугрик|图格里克|トゥグルグ
lira|lira|Lira|livre|лира|里拉|リラ
rial|rial|Rial|rial|риал|里亚尔|リアル
riyal|riyal|Riyal|riyal|риял|里亚尔|リヤル
dirham|dirham|Dirham|dirham|дирхам|迪拉姆|ディルハム
shilling|shilling|Schilling|shilling|шиллинг|先令|シリング
birr|birr|Birr|birr|быр|比尔|ブル
naira|naira|Naira|naira|найра|奈拉|ナイラ
cedi|cedi|Cedi|cedi|седи|塞地|セディ
dollar|dollar|Dollar|dollar|доллар|元|ドル
peso|peso|Peso|peso|песо|比索|ペソ
real|real|Real|real|реал|雷亚尔|レアル
sol|sol|Sol|sol|соль|索尔|ソル
"""
_SPOKEN = """
french|French|Französisch|français|французский|法语|フランス語
german|German|Deutsch|allemand|немецкий|德语|ドイツ語
italian|Italian|Italienisch|italien|итальянский|意大利语|イタリア語
spanish|Spanish|Spanisch|espagnol|испанский|西班牙语|スペイン語
greek|Greek|Griechisch|grec|греческий|希腊语|ギリシャ語
portuguese|Portuguese|Portugiesisch|portugais|португальский|葡萄牙语|ポルトガル語
english|English|Englisch|anglais|английский|英语|英語
russian|Russian|Russisch|russe|русский|俄语|ロシア語
polish|Polish|Polnisch|polonais|польский|波兰语|ポーランド語
hungarian|Hungarian|Ungarisch|hongrois|венгерский|匈牙利语|ハンガリー語
czech|Czech|Tschechisch|tchèque|чешский|捷克语|チェコ語
swedish|Swedish|Schwedisch|suédois|шведский|瑞典语|スウェーデン語
norwegian|Norwegian|Norwegisch|norvégien|норвежский|挪威语|ノルウェー語
danish|Danish|Dänisch|danois|датский|丹麦语|デンマーク語
chinese|Chinese|Chinesisch|chinois|китайский|汉语|中国語
japanese|Japanese|Japanisch|japonais|японский|日语|日本語
korean|Korean|Koreanisch|coréen|корейский|韩语|韓国語
hindi|Hindi|Hindi|hindi|хинди|印地语|ヒンディー語
thai|Thai|Thailändisch|thaï|тайский|泰语|タイ語
vietnamese|Vietnamese|Vietnamesisch|vietnamien|вьетнамский|越南语|ベトナム語
mongolian|Mongolian|Mongolisch|mongol|монгольский|蒙古语|モンゴル語
turkish|Turkish|Türkisch|turc|турецкий|土耳其语|トルコ語
persian|Persian|Persisch|persan|персидский|波斯语|ペルシア語
arabic|Arabic|Arabisch|arabe|арабский|阿拉伯语|アラビア語
swahili|Swahili|Suaheli|swahili|суахили|斯瓦希里语|スワヒリ語
amharic|Amharic|Amharisch|amharique|амхарский|阿姆哈拉语|アムハラ語
"""
_CONTINENTS = """
europe|Europe|Europa|Europe|Европа|欧洲|ヨーロッパ
asia|Asia|Asien|Asie|Азия|亚洲|アジア
africa|Africa|Afrika|Afrique|Африка|非洲|アフリカ
north_america|North America|Nordamerika|Amérique du Nord|Северная Америка|北美洲|北アメリカ
south_america|South America|Südamerika|Amérique du Sud|Южная Америка|南美洲|南アメリカ
oceania|Oceania|Ozeanien|Océanie|Океания|大洋洲|オセアニア
"""


def _names(table: str) -> dict[str, dict[str, str]]:
    rows = (line.split("|") for line in table.strip().splitlines())
    return {row[0]: dict(zip(LANGUAGES, row[1:], strict=True)) for row in rows}


def _countries() -> tuple[Country, ...]:
    currencies, spoken, continents = _names(_CURRENCIES), _names(_SPOKEN), _names(_CONTINENTS)
    found = []
    for line in _ROWS.strip().splitlines():
        place, capitals, keys = line.split("||", 2)  # a country without one official language leaves its cell empty
        code, en, de, de_of, fr, fr_of, ru, ru_of, zh, ja = place.split("|")
        currency, language, continent = keys.split("|")
        facts = {
            "capital": dict(zip(LANGUAGES, capitals.split("|"), strict=True)),
            "currency": currencies[currency],
        }
        if language:
            facts["language"] = spoken[language]
        if continent:
            facts["continent"] = continents[continent]
        facts["domain"] = dict.fromkeys(LANGUAGES, "." + code)
        names = dict(zip(LANGUAGES, (en, de, fr, ru, zh, ja), strict=True))
        of = {"en": "of " + en, "de": de_of, "fr": fr_of, "ru": ru_of, "zh": zh + "的", "ja": ja + "の"}
        found.append(Country(code, names, of, facts))
    return tuple(found)


COUNTRIES: tuple[Country, ...] = _countries()
BY_CODE: dict[str, Country] = {country.code: country for country in COUNTRIES}
