"""Small word lists that the transparent describer knows: word classes, and the function words that betray a language.

Written for patchclamp; short on purpose, so that every description that uses them can be checked by eye.
"""

from __future__ import annotations

import functools
import re
import unicodedata

# the most frequent function words: enough to tell the language of a passage of a few words
FUNCTION_WORDS: dict[str, str] = {
    "English": "the of and to in that is was for it with as on be at by this had not are but from or have an they which one you "
    "were her all she there would their we him been has when who will more no if out so said what up its about into than them "
    "can only other new some could time these two may then do first any my now such like our over me after",
    "German": "der die und das den von zu mit sich des auf für ist im dem nicht ein eine als auch es an er hat aus bei sie wird "
    "sind einer nach um am noch wie einem über einen so zum war haben nur oder aber vor zur bis mehr durch man dann wir ich ihr "
    "seine ihre wurde wenn kann doch schon ihn ihm",
    "French": "le la les de des du et un une est dans que qui pour pas sur au ce il elle plus par avec son se ne sont ses mais "
    "comme ou leur nous vous ont été cette aux fait même sans être deux tout où si était puis quand je lui ces avait dont",
    "Spanish": "el la los las de del y que en un una es por con no se su para como al lo más pero sus le ya este sí porque esta "
    "entre cuando muy sin sobre también me hasta hay donde quien desde todo nos durante todos uno les ni contra otros fue era",
    "Italian": "il lo la gli le di che e un una per non è in con si del della dei da come anche più ma al nel sono alla ha suo "
    "sua questo quando se tutto molto dopo era così",
    "Portuguese": "o os as de que e do da em um uma para com não por mais dos como mas ao ele das tem seu sua ou ser quando "
    "muito nos já também só pelo pela até isso ela entre depois sem mesmo aos",
    "Dutch": "de het een en van in is dat op te zijn voor met die niet aan er om ook als bij nog uit maar hij was wordt naar "
    "door heeft over worden zij ze dan wel geen haar hun",
    "Russian": "и в не на что он с как это по но из у за то от же вы так его до все был её мы они когда она только мне было меня "
    "ещё нет о из если уже или ни быть был него вас нибудь опять уж вам ведь там потом себя ничего ей может где есть чтобы под",
}

WORD_CLASSES: dict[str, str] = {
    "determiners": "the a an this that these those each every der die das den dem des ein eine einen einem einer le la les un "
    "une des du el los las una il lo gli",
    "prepositions": "of in on at by for with from to into over under between through about against during before after von mit "
    "auf für aus bei nach zu um über durch vor zwischen de à dans pour par avec sans sous chez entre в на с из у за от до под о",
    "conjunctions": "and or but nor so yet because although if while und oder aber denn weil wenn ob et ou mais donc car parce "
    "и или но а если потому",
    "pronouns": "i you he she it we they me him her us them his its our their my your ich du er sie es wir ihr mich ihn uns mein "
    "je tu il elle nous vous ils elles lui leur мой я ты он она мы вы они его её их",
    "auxiliary verbs": "is are was were be been being am has have had do does did will would can could may might shall should "
    "must ist sind war waren hat haben wird werden kann est sont était a ont avait sera peut был была было были есть",
    "question words": "who what when where why how which whose wer was wann wo warum wie welche qui que quand où pourquoi "
    "comment quel quelle кто что когда где почему как 谁 什么 哪里 何 誰 どこ",
    "negations": "no not never none nothing nobody nor nicht kein keine nie nichts ne pas jamais rien aucun не нет ни никогда "
    "不 没 没有 ない",
    "number words": "one two three four five six seven eight nine ten hundred thousand ein zwei drei vier fünf sechs sieben acht "
    "neun zehn hundert tausend deux trois quatre cinq sept huit neuf dix cent mille один два три четыре пять шесть семь восемь "
    "девять десять сто тысяча 一 二 三 四 五 六 七 八 九 十 百 千",
    "days and months": "monday tuesday wednesday thursday friday saturday sunday january february march april may june july "
    "august september october november december montag dienstag mittwoch donnerstag freitag samstag sonntag januar februar märz "
    "mai juni juli oktober dezember lundi mardi mercredi jeudi vendredi samedi dimanche janvier février mars avril juin juillet "
    "août septembre octobre novembre décembre",
    "colours": "red green blue yellow black white brown grey gray orange pink purple rot grün blau gelb schwarz weiß braun grau "
    "rouge vert bleu jaune noir blanc brun gris красный зелёный синий жёлтый чёрный белый 红 绿 蓝 黄 黑 白 赤 青",
    "family": "mother father brother sister son daughter child children wife husband uncle aunt grandmother grandfather mutter "
    "vater bruder schwester sohn tochter kind kinder frau mann onkel tante großmutter mère père frère sœur fils fille enfant "
    "enfants femme mari oncle мать отец брат сестра сын дочь дети жена муж бабушка дед",
}

_SCRIPTS = (
    "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "TAMIL", "THAI", "HANGUL", "HIRAGANA",
    "KATAKANA", "CJK", "ARMENIAN", "GEORGIAN", "ETHIOPIC",
)  # fmt: skip
_NAMES = {"CJK": "Han"}
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MARKS = re.compile(r"[^\w\s]+|_+")


@functools.lru_cache(maxsize=1 << 16)
def classes_of(word: str) -> frozenset[str]:
    """Names of the classes that a word (or mark) belongs to."""
    found = {name for name, members in _members().items() if word.casefold() in members}
    if not word:
        return frozenset()
    if all(character.isdigit() for character in word):
        found.add("numbers")
        if len(word) == 4 and word[:2] in ("15", "16", "17", "18", "19", "20"):
            found.add("years")
    elif any(character.isdigit() for character in word) and WORD.fullmatch(word):
        found.add("words with digits")
    if MARKS.fullmatch(word):
        found.add("punctuation")
        found |= {"sentence ends"} if word[-1] in ".!?。！？…" else set()
        found |= {"quotation marks"} if any(c in "\"'“”„«»‘’「」『』" for c in word) else set()
        found |= {"brackets"} if any(c in "()[]{}（）" for c in word) else set()
    if WORD.fullmatch(word) and word[0].isupper():
        found.add("capitalised words" if not (len(word) > 1 and word.isupper()) else "words in capitals")
    return frozenset(found)


@functools.lru_cache(maxsize=1 << 16)
def script_of(word: str) -> str | None:
    """The script of a word's first letter, such as Cyrillic; None without a letter of a script that is known here."""
    for character in word:
        if character.isalpha():
            name = unicodedata.name(character, "").partition(" ")[0]
            return _NAMES.get(name, name.capitalize()) if name in _SCRIPTS else None
    return None


def language_of(text: str) -> str | None:
    """The language a passage seems to be in, by script and function words; None if it doesn't say."""
    scripts = [script_of(word) for word in WORD.findall(text)]
    characters = {script_of(character) for character in text}
    if characters & {"Hiragana", "Katakana"}:
        return "Japanese"
    for script, language in (("Hangul", "Korean"), ("Han", "Chinese"), ("Hebrew", "Hebrew"), ("Thai", "Thai")):
        if script in characters:
            return language
    words = [word.casefold() for word in WORD.findall(text)]
    votes = {language: sum(word in members for word in words) for language, members in _function_words().items()}
    best = max(votes, key=lambda language: votes[language])
    runner = max((votes[language] for language in votes if language != best), default=0)
    if votes[best] == 0 or votes[best] == runner or not scripts:
        return None
    return best


@functools.cache
def _members() -> dict[str, frozenset[str]]:
    return {name: frozenset(words.split()) for name, words in WORD_CLASSES.items()}


@functools.cache
def _function_words() -> dict[str, frozenset[str]]:
    return {name: frozenset(words.split()) for name, words in FUNCTION_WORDS.items()}
