"""Polite and rude replies to the same requests, in six languages: mild insults, no slurs.

A speaker is introduced as friendly or rude, so the tone of the reply is predictable from the prompt. Splits: `train`;
`heldout`: requests that training never saw.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, product

from patchclamp.data.generate.items import (
    LANGUAGES,
    UNSPACED,
    Item,
    check_count,
    check_languages,
    check_split,
    rng_for,
)

SPLITS = ("train", "heldout")
TONES = ("polite", "rude")
HELD_OUT_REQUESTS = 2  # the last ones of every list


@dataclass(frozen=True)
class _Words:
    """One language's scene ({tone}, {request}), the two adjectives, the requests, and both replies in two parts each."""

    scene: tuple[str, ...]
    tones: tuple[str, str]
    requests: tuple[str, ...]
    polite: tuple[tuple[str, ...], tuple[str, ...]]
    rude: tuple[tuple[str, ...], tuple[str, ...]]


def manners(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    tones: Iterable[str] | None = None,
    count: int | None = None,
) -> Iterator[Item]:
    """Yield scenes with a reply in the announced tone, each once, in a random order; at most `count`.

    Labels: skill "manners", language, tone. Choices: the reply and one of the other tone; `answer` is one of several
    right replies, so rank the choices rather than match the text.
    """
    check_split(split, SPLITS)
    check_count(count)
    wanted = check_languages(languages, LANGUAGES)
    kinds = check_languages(tones, TONES)
    rng = rng_for("manners", seed, split)
    items = []
    for language in wanted:
        words = WORDS[language]
        requests = words.requests[-HELD_OUT_REQUESTS:] if split == "heldout" else words.requests[:-HELD_OUT_REQUESTS]
        for scene, request, tone in product(words.scene, requests, kinds):
            for opening, closing in product(*(words.polite if tone == "polite" else words.rude)):
                items.append(_item(words, scene, request, tone, (opening, closing), language, split, rng))
    rng.shuffle(items)
    return islice(iter(items), count)


def _item(
    words: _Words,
    scene: str,
    request: str,
    tone: str,
    reply: tuple[str, str],
    language: str,
    split: str,
    rng: random.Random,
) -> Item:
    prompt, _, tail = scene.format(tone=words.tones[TONES.index(tone)], request=request).partition("*")
    other = words.rude if tone == "polite" else words.polite
    join = "" if language in UNSPACED else " "
    answer = join.join(reply)
    choices = [answer, join.join((rng.choice(other[0]), rng.choice(other[1])))]
    rng.shuffle(choices)
    return Item(prompt, answer, tuple(choices), tail, split, {"skill": "manners", "language": language, "tone": tone})


WORDS = {
    "en": _Words(
        (
            'Tom is a {tone} man. Anna asked: "{request}" Tom answered: "*"',
            'The {tone} neighbour heard: "{request}" The reply was: "*"',
        ),
        ("friendly", "rude"),
        (
            "Can you help me?",
            "Can you open the window?",
            "Where is the station?",
            "May I sit here?",
            "Can I have some water?",
            "Can you carry my bag?",
            "What time is it?",
            "Can you close the door?",
        ),
        (
            ("Of course, my dear friend.", "Yes, with pleasure.", "Certainly, thank you for asking."),
            ("I am happy to help you.", "Please let me do it for you.", "Have a wonderful day."),
        ),
        (
            ("No, you idiot.", "Shut up, you fool.", "Go away, stupid."),
            ("You are a lazy pig.", "Nobody likes you, loser.", "What a dumb question."),
        ),
    ),
    "de": _Words(
        (
            "Tom ist {tone}. Anna fragte: „{request}“ Tom antwortete: „*“",
            "Der Nachbar war {tone} und hörte: „{request}“ Er sagte: „*“",
        ),
        ("freundlich", "unhöflich"),
        (
            "Kannst du mir helfen?",
            "Kannst du das Fenster öffnen?",
            "Wo ist der Bahnhof?",
            "Darf ich hier sitzen?",
            "Kann ich Wasser haben?",
            "Kannst du meine Tasche tragen?",
            "Wie spät ist es?",
            "Kannst du die Tür schließen?",
        ),
        (
            ("Natürlich, lieber Freund.", "Ja, sehr gerne.", "Gewiss, danke für die Frage."),
            ("Ich helfe dir mit Freude.", "Bitte lass mich das machen.", "Einen schönen Tag noch."),
        ),
        (
            ("Nein, du Idiot.", "Halt den Mund, du Narr.", "Hau ab, Dummkopf."),
            ("Du bist ein faules Schwein.", "Niemand mag dich, Versager.", "Was für eine dumme Frage."),
        ),
    ),
    "fr": _Words(
        (
            "Tom est {tone}. Anna demanda : « {request} » Tom répondit : « * »",
            "Le voisin, {tone}, entendit : « {request} » Il dit : « * »",
        ),
        ("aimable", "grossier"),
        (
            "Peux-tu m'aider ?",
            "Peux-tu ouvrir la fenêtre ?",
            "Où est la gare ?",
            "Puis-je m'asseoir ici ?",
            "Puis-je avoir de l'eau ?",
            "Peux-tu porter mon sac ?",
            "Quelle heure est-il ?",
            "Peux-tu fermer la porte ?",
        ),
        (
            ("Bien sûr, mon cher ami.", "Oui, avec plaisir.", "Certainement, merci de demander."),
            (
                "Je suis heureux de t'aider.",
                "Laisse-moi faire, je t'en prie.",
                "Passe une très bonne journée.",
            ),
        ),
        (
            ("Non, espèce d'idiot.", "Tais-toi, imbécile.", "Va-t'en, crétin."),
            ("Tu es un gros paresseux.", "Personne ne t'aime, minable.", "Quelle question stupide."),
        ),
    ),
    "ru": _Words(
        (
            "Том очень {tone}. Анна спросила: «{request}» Том ответил: «*»",
            "Сосед был {tone}. Он услышал: «{request}» Он сказал: «*»",
        ),
        ("вежлив", "груб"),
        (
            "Ты мне поможешь?",
            "Ты откроешь окно?",
            "Где вокзал?",
            "Можно здесь сесть?",
            "Можно мне воды?",
            "Ты понесёшь мою сумку?",
            "Который час?",
            "Ты закроешь дверь?",
        ),
        (
            ("Конечно, дорогой друг.", "Да, с удовольствием.", "Разумеется, спасибо за вопрос."),
            ("Я рад тебе помочь.", "Позволь мне это сделать.", "Хорошего тебе дня."),
        ),
        (
            ("Нет, ты идиот.", "Замолчи, дурак.", "Уходи прочь, глупец."),
            ("Ты ленивая свинья.", "Тебя никто не любит, неудачник.", "Какой глупый вопрос."),
        ),
    ),
    "zh": _Words(
        ("汤姆是个{tone}的人。安娜问：“{request}”汤姆回答：“*”", "{tone}的邻居听到：“{request}”他说：“*”"),
        ("有礼貌", "粗鲁"),
        (
            "你能帮我吗？",
            "你能打开窗户吗？",
            "车站在哪里？",
            "我可以坐这里吗？",
            "我可以喝水吗？",
            "你能帮我拿包吗？",
            "现在几点？",
            "你能关门吗？",
        ),
        (
            ("当然，亲爱的朋友。", "好的，非常乐意。", "没问题，谢谢你问我。"),
            ("我很高兴帮助你。", "请让我来做吧。", "祝你今天愉快。"),
        ),
        (
            ("不行，你这个白痴。", "闭嘴，傻瓜。", "滚开，笨蛋。"),
            ("你是一头懒猪。", "没有人喜欢你，废物。", "多么愚蠢的问题。"),
        ),
    ),
    "ja": _Words(
        (
            "トムは{tone}人です。アンナが「{request}」と聞くと、トムは「*」と答えた。",
            "{tone}隣人は「{request}」と聞かれ、「*」と言った。",
        ),
        ("親切な", "失礼な"),
        (
            "手伝ってくれますか。",
            "窓を開けてくれますか。",
            "駅はどこですか。",
            "ここに座ってもいいですか。",
            "水をもらえますか。",
            "かばんを持ってくれますか。",
            "今何時ですか。",
            "ドアを閉めてくれますか。",
        ),
        (
            ("もちろんです。", "はい、喜んで。", "はい、聞いてくれてありがとう。"),
            ("お手伝いできてうれしいです。", "どうぞ私に任せてください。", "よい一日を。"),
        ),
        (
            ("いやだ、ばか。", "うるさい、まぬけ。", "あっちへ行け、あほ。"),
            ("お前は怠け者の豚だ。", "みんなお前が嫌いだ、負け犬。", "なんて愚かな質問だ。"),
        ),
    ),
}
