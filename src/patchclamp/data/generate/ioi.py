"""Indirect object identification as minimal pairs for any tokenizer: "When Mary and John ..., John gave a book to" -> Mary.

Sources: Wang et al. 2022 (arXiv:2211.00593), ABC corruption; Merullo et al. 2024 (arXiv:2310.08744), which corrupts the last
subject to the indirect object, so that the answer flips. The frames are our own.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.generate.binding import GIFTS, HELD_OUT_SHARE, IOI, NAMES, PLACES
from patchclamp.data.generate.ioi_texts import FAMILIES, Family
from patchclamp.data.generate.items import check_languages, is_held_out, rng_for
from patchclamp.data.generate.paired_words import Filled, filled, whole
from patchclamp.data.paired import PairedItem, PairedTask

CORRUPTIONS = {"S2<-IO": 2, "S2<-C": 3, "ABC": 5}  # and how many names each pair needs
FEWEST = 4  # names; with fewer every pair would be about the same people
TEMPLATES = ("paper", "demo")
DEMO = Family(IOI, NAMES, PLACES, GIFTS)


def ioi(
    n: int,
    tokenizer: Any,
    *,
    language: str = "en",
    corruption: str = "S2<-IO",
    seed: int = 0,
    templates: str = "paper",
) -> PairedTask:
    """n different pairs, half of them in the order IO, S ("ABBA"), half S, IO ("BABA").

    corruption: "S2<-IO" (the last S becomes IO: the answer flips), "S2<-C" (it becomes a third name: both names are left),
    "ABC" (IO, S1 and S2 become three other names: nothing repeats). language: en, de, fr, ru, zh, ja; Russian, Chinese and
    Japanese frames are built so that a bare name comes next. templates: "paper", or "demo": the English frames and names
    that the bundled model was taught. Answer: the IO; wrong: the S of the clean prompt. Only names that the tokenizer takes as
    one token at every place of a frame are used (tokenizer None: all names).

    Spots: IO, S1, S2 and "S1+1" (one token after S1); list: names. Labels: task, language, corruption, template, order, io,
    subject; with demo templates also split: whether that pair of names was held out of the model's training.
    InputError for an unknown choice, or (saying how many are left) if too few names are single tokens.
    """
    [language] = check_languages(language, tuple(FAMILIES))
    _check(n, corruption, templates, language)
    family = DEMO if templates == "demo" else FAMILIES[language]
    names = _names(tokenizer, family, language, max(FEWEST, CORRUPTIONS[corruption]))
    rng = rng_for("ioi", language, corruption, templates, seed)
    made: dict[str, PairedItem] = {}
    for number in range(50 * n + 50):
        if len(made) == n:
            break
        order = ("ABBA", "BABA")[len(made) % 2]
        item = _item(family, names, corruption, order, rng, number)
        labels = {"task": "ioi", "language": language, "corruption": corruption, **item.labels}
        if templates == "demo":
            held = is_held_out(HELD_OUT_SHARE, "ioi", *sorted((labels["io"], labels["subject"])))
            labels["split"] = "heldout" if held else "train"
        made.setdefault(
            item.clean, PairedItem(item.clean, item.corrupt, item.answer, item.wrong, item.spots, item.lists, labels)
        )
    if len(made) < n:
        raise InputError(
            f"{n} pairs asked for, but these words make only about {len(made)} different ones; ask for fewer"
        )
    arguments = {"n": n, "language": language, "corruption": corruption, "seed": seed, "templates": templates}
    return PairedTask("ioi", tuple(made.values()), {"kind": "paired", "name": "ioi", "arguments": arguments})


def _check(n: int, corruption: str, templates: str, language: str) -> None:
    if n < 1:
        raise InputError(f"n={n} pairs asked for; at least 1 is needed")
    if corruption not in CORRUPTIONS:
        raise InputError(f"corruption={corruption!r}; it is one of {', '.join(CORRUPTIONS)}")
    if templates not in TEMPLATES:
        raise InputError(f"templates={templates!r}; it is one of {', '.join(TEMPLATES)}")
    if templates == "demo" and language != "en":
        raise InputError(f"language={language!r}, but the bundled model was taught these frames in English only")


def _names(tokenizer: Any, family: Family, language: str, fewest: int) -> dict[int, Sequence[str]]:
    """Frame number -> the names that are one token at each of its places and as the answer; frames with too few left out."""
    pool = tuple(dict.fromkeys(family.names))
    left: dict[int, Sequence[str]] = {}
    most = 0
    for number, frame in enumerate(family.frames):
        probes = []
        for name in pool:
            text = filled(frame, {**_fixed(family), "a": name, "b": name, "s": name})
            text += Filled(
                (" " if family.space else "") + name, {"answer": ((int(family.space), int(family.space) + len(name)),)}
            )
            probes.append(text)
        spans = [[span for slot in ("a", "b", "s", "answer") for span in probe.spans[slot]] for probe in probes]
        kept = whole(tokenizer, [probe.text for probe in probes], spans)
        usable = [name for name, fits in zip(pool, kept, strict=True) if fits]
        most = max(most, len(usable))
        if len(usable) >= fewest:
            left[number] = usable
    if not left:
        raise InputError(
            f"only {most} of {len(pool)} names ({language}) are single tokens of this tokenizer in any one frame; {fewest} are "
            "needed: try another language or tokenizer"
        )
    return left


def _fixed(family: Family) -> dict[str, str]:
    return {"place": family.places[0], "gift": family.gifts[0]}


def _item(
    family: Family, names: dict[int, Sequence[str]], corruption: str, order: str, rng: random.Random, number: int
) -> PairedItem:
    template = rng.choice(list(names))
    receiver, subject, *others = rng.sample(list(names[template]), CORRUPTIONS[corruption])
    values = {"place": rng.choice(family.places), "gift": rng.choice(family.gifts)}

    def said(io: str, first: str, second: str) -> Filled:
        a, b = (io, first) if order == "ABBA" else (first, io)
        return filled(family.frames[template], {**values, "a": a, "b": b, "s": second})

    clean = said(receiver, subject, subject)
    if corruption == "S2<-IO":
        corrupt = said(receiver, subject, receiver)
    elif corruption == "S2<-C":
        corrupt = said(receiver, subject, others[0])
    else:
        corrupt = said(*others)
    [a], [b], [s2] = clean.spans["a"], clean.spans["b"], clean.spans["s"]
    io, s1 = (a, b) if order == "ABBA" else (b, a)
    space = " " if family.space else ""
    return PairedItem(
        clean.text,
        corrupt.text,
        space + receiver,
        space + subject,
        {"IO": io, "S1": s1, "S2": s2, "S1+1": s1},
        {"names": (a, b, s2)},
        {"template": str(template), "order": order, "io": receiver, "subject": subject},
    )
