"""Prompts that can only be completed by binding: indirect objects (IOI), coloured objects, pairs and repeated lists.

Sources: Wang et al. 2022 (arXiv:2211.00593) for indirect object identification; Merullo et al. 2023 (arXiv:2310.08744) for
coloured objects; Olsson et al. 2022 (arXiv:2209.11895) for repetition, which teaches the induction that the others build on.
Splits: `train`; `heldout`: pairs of names, scenes, or lists of words that training never saw.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from patchclamp.data.generate.items import (
    Item,
    check_count,
    check_languages,
    check_split,
    is_held_out,
    rng_for,
)
from patchclamp.data.generate.sentences import GRAMMARS

SPLITS = ("train", "heldout")
KINDS = {"ioi": 2, "colors": 8, "pairs": 4, "repeat": 4}  # how often each is drawn: colours are hardest
HELD_OUT_SHARE = 0.12
NAMES = (
    "Mary",
    "John",
    "Anna",
    "Peter",
    "Tom",
    "Lisa",
    "Paul",
    "Emma",
    "Max",
    "Sarah",
    "James",
    "Kate",
    "Mark",
    "Laura",
    "David",
    "Alice",
    "Simon",
    "Jane",
    "Adam",
    "Martha",
    "Jack",
    "Rose",
    "Luke",
    "Clara",
)
PLACES = ("shop", "park", "school", "house", "river", "market", "station", "garden", "church", "beach")
GIFTS = ("book", "ring", "ball", "letter", "drink", "cake", "key", "basket", "flower", "coat")
IOI = (
    "When {a} and {b} went to the {place}, {s} gave a {gift} to",
    "Then, {a} and {b} went to the {place}. {s} gave a {gift} to",
    "After {a} and {b} came to the {place}, {s} decided to give a {gift} to",
    "{a} and {b} were working at the {place}. {s} handed a {gift} to",
    "While {a} and {b} were at the {place}, {s} passed a {gift} to",
)
COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "pink")
OBJECTS = ("cup", "book", "pen", "ball", "plate", "hat", "box", "key", "bag", "lamp", "shoe", "coin")
SCENES = (
    "On the table there is {items}. What color is the {x}? Answer:",
    "Question: On the table, I see {items}. What color is the {x}? Answer:",
    "In the room there is {items}. The color of the {x} is",
    "There is {items}. The {x} is",
    "There is {items}. Colors: {x}",
)
WORDS = tuple(
    dict.fromkeys((*NAMES, *PLACES, *GIFTS, *COLORS, *OBJECTS, *GRAMMARS["en"].first, *GRAMMARS["en"].second))
)


def binding(
    seed: int = 0,
    split: str = "train",
    languages: Iterable[str] | None = None,
    *,
    kinds: Iterable[str] | None = None,
    count: int | None = 1000,
) -> Iterator[Item]:
    """Yield `count` sentences (None: without end), drawn with replacement; English only.

    Labels: skill "binding", kind ("ioi", "colors", "pairs", "repeat"), language "en", template and, for IOI, io, subject
    and order ("ABBA" or "BABA"); for colours, object. Choices: the two names; the colours in the scene; the second words of
    the pairs; orders of the list.
    """
    check_split(split, SPLITS)
    check_count(count)
    check_languages(languages, ("en",))
    chosen = check_languages(kinds, tuple(KINDS))
    rng = rng_for("binding", seed, split)
    made = 0
    while count is None or made < count:
        [kind] = rng.choices(chosen, [KINDS[kind] for kind in chosen])
        item = {"ioi": _ioi, "colors": _colors, "pairs": _pairs, "repeat": _repeat}[kind](split, rng)
        if item is not None:
            made += 1
            yield item


def _ioi(split: str, rng: random.Random) -> Item | None:
    receiver, subject = rng.sample(NAMES, 2)
    if is_held_out(HELD_OUT_SHARE, "ioi", *sorted((receiver, subject))) != (split == "heldout"):
        return None
    number = rng.randrange(len(IOI))
    order = rng.choice(("ABBA", "BABA"))
    first, second = (receiver, subject) if order == "ABBA" else (subject, receiver)
    prompt = IOI[number].format(a=first, b=second, s=subject, place=rng.choice(PLACES), gift=rng.choice(GIFTS))
    labels = {
        "skill": "binding",
        "kind": "ioi",
        "language": "en",
        "template": str(number),
        "io": receiver,
        "subject": subject,
        "order": order,
    }
    return Item(prompt, " " + receiver, (" " + first, " " + second), ".", split, labels)


def _colors(split: str, rng: random.Random) -> Item | None:
    n = rng.choice((2, 3))
    objects, colors = rng.sample(OBJECTS, n), rng.sample(COLORS, n)
    asked = rng.randrange(n)
    # whole scenes are held out: a held-out pair of object and colour would teach that it is never the answer
    if is_held_out(HELD_OUT_SHARE, "colors", *objects, *colors, asked) != (split == "heldout"):
        return None
    number = rng.randrange(len(SCENES))
    parts = [f"{_article(color)} {color} {thing}" for color, thing in zip(colors, objects, strict=True)]
    scene, question = SCENES[number].format(items=", ".join(parts[:-1]) + " and " + parts[-1], x="{x}").split(". ", 1)
    prompt = scene + ". "
    taught = [p for p in range(n) if p != asked and not is_held_out(HELD_OUT_SHARE, "colors", *objects, *colors, p)]
    if split == "train" and taught and rng.random() < 0.5:  # a scene asked about twice teaches more than two scenes
        other = rng.choice(taught)
        prompt += question.format(x=objects[other]) + f" {colors[other]}. "
    prompt += question.format(x=objects[asked])
    labels = {
        "skill": "binding",
        "kind": "colors",
        "language": "en",
        "template": str(number),
        "object": objects[asked],
    }
    return Item(prompt, " " + colors[asked], tuple(" " + color for color in colors), ".", split, labels)


def _pairs(split: str, rng: random.Random) -> Item | None:
    """Word pairs, then the first or (labels template "1") the second word of one: which word went with it?"""
    n, backward = rng.randint(2, 6), rng.random() < 0.5
    words = rng.sample(WORDS, 2 * n)
    if is_held_out(HELD_OUT_SHARE, "pairs", *words[:2]) != (split == "heldout"):
        return None
    keys, values = words[:n], words[n:]
    shown = [f"{value} {key}" if backward else f"{key} {value}" for key, value in zip(keys, values, strict=True)]
    asked = rng.sample(range(n), rng.randint(1, n))
    before = [f" {keys[place]} {values[place]}," for place in asked[:-1]]
    prompt = ", ".join(shown) + ":" + "".join(before) + f" {keys[asked[-1]]}"
    labels = {"skill": "binding", "kind": "pairs", "language": "en", "template": str(int(backward))}
    return Item(prompt, " " + values[asked[-1]], tuple(" " + value for value in values), ".", split, labels)


def _repeat(split: str, rng: random.Random) -> Item | None:
    """A list of words that is said again."""
    words = rng.sample(WORDS, rng.randint(4, 16))
    if is_held_out(HELD_OUT_SHARE, "repeat", *words[:2]) != (split == "heldout"):
        return None
    choices = [words, *(rng.sample(words, len(words)) for _ in range(3))]
    answer, *others = [" " + " ".join(choice) for choice in choices]
    labels = {"skill": "binding", "kind": "repeat", "language": "en", "template": "0"}
    return Item(" ".join(words) + ":", answer, tuple(dict.fromkeys((answer, *others))), ".", split, labels)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
