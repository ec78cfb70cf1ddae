"""Coloured objects as minimal pairs for any tokenizer: "..., a red cup and a blue pen. What color is the pen?" -> blue.

Source: Merullo et al. 2024 (arXiv:2310.08744), after BIG-bench's reasoning about coloured objects. The corrupted prompt asks
for another object of the same scene; the answer to that is the wrong one. English scenes are the paper's form.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from patchclamp.core.errors import InputError
from patchclamp.data.generate.binding import COLORS, HELD_OUT_SHARE, OBJECTS, SCENES
from patchclamp.data.generate.colored_texts import COUNTS, SCENERIES, Group, Scenery
from patchclamp.data.generate.items import check_languages, is_held_out, rng_for, sentence_case
from patchclamp.data.generate.paired_words import Filled, filled, listed, whole
from patchclamp.data.paired import PairedItem, PairedTask

TEMPLATES = ("paper", "demo")
_SCENES = [scene.split(". ", 1) for scene in SCENES]
_GROUP = Group(OBJECTS, COLORS)


@dataclass(frozen=True)
class _Frame:
    """One way to say a scene, with the words that are left for it."""

    template: str
    opening: str
    question: str
    item: str
    group: Group
    comma: str
    last: str
    places: tuple[str, ...]
    space: bool
    capital: bool

    @classmethod
    def of(cls, scenery: Scenery, template: str, opening: str, group: Group) -> _Frame:
        """A frame of a language's scenery."""
        how = (scenery.comma, scenery.last, scenery.places, scenery.space, scenery.capital)
        return cls(template, opening, scenery.question, scenery.item, group, *how)

    def answer(self, color: str) -> str:
        return (" " if self.space else "") + (sentence_case(color) if self.capital else color)

    def scene(self, place: str, objects: Sequence[str], colors: Sequence[str]) -> Filled:
        """The scene without a question; slots c and o."""
        items = [
            filled(self.item, {**self.group.words, "c": c, "o": o, "n": "n" if c[0] in "aeiou" else ""})
            for c, o in zip(colors, objects, strict=True)
        ]
        count = COUNTS.get(len(objects), "")
        whole_scene = listed(items, self.comma, self.last)
        return filled(self.opening, {"place": place, "items": whole_scene, "count": count})

    def asked(self, thing: str) -> Filled:
        """The question; slot x."""
        return filled(self.question, {**self.group.words, "x": thing})


def colored_objects(
    n: int,
    tokenizer: Any,
    *,
    language: str = "en",
    shots: int = 1,
    n_objects: int = 3,
    seed: int = 0,
    templates: str = "paper",
    disjoint_objects: bool = True,
) -> PairedTask:
    """n different pairs; the queried object is uniform over the scene, the one that the corruption asks for over the others.

    shots: 0, or 1 solved example before the query, which shares no colour with it and (disjoint_objects) no object.
    templates: "paper", or "demo": the English frames that the bundled model was taught, where one shot is another
    question about the same scene. language: en, de, fr, ru, zh, ja. Answer: the colour of the object (with a capital in the
    English form of the paper); wrong: that of the object which the corrupted prompt asks for. Only colours and objects that the
    tokenizer takes as one token wherever they stand are used (tokenizer None: all).

    Spots: asked (the object in the question), right and wrong (the two colours in the scene), object (the asked one there);
    lists: colors, objects (of the query's scene) and "wrong colors" (all but the right one).
    Labels: task, language, template, object, color, asked and other (numbers of the two objects in the scene); with demo
    templates also split. InputError for an unknown choice, or (saying how many are left) if too few words are single tokens.
    """
    [language] = check_languages(language, tuple(SCENERIES))
    _check(n, shots, n_objects, templates, language)
    frames = _usable(tokenizer, _frames(language, templates), language, shots, n_objects, templates, disjoint_objects)
    rng = rng_for("colored objects", language, templates, shots, n_objects, seed)
    made: dict[str, PairedItem] = {}
    for _ in range(50 * n + 50):
        if len(made) == n:
            break
        frame = rng.choice(frames)
        example = frame
        if shots and templates == "paper":  # the example is said in a way of its own
            example = rng.choice([other for other in frames if other.group.words == frame.group.words])
        item = _item(frame, example, shots, n_objects, templates, disjoint_objects, rng)
        labels = {"task": "colored_objects", "language": language, **item.labels}
        made.setdefault(
            item.clean, PairedItem(item.clean, item.corrupt, item.answer, item.wrong, item.spots, item.lists, labels)
        )
    if len(made) < n:
        raise InputError(
            f"{n} pairs asked for, but these words make only about {len(made)} different ones; ask for fewer"
        )
    arguments = {
        "n": n, "language": language, "shots": shots, "n_objects": n_objects, "seed": seed, "templates": templates,
        "disjoint_objects": disjoint_objects,
    }  # fmt: skip
    origin = {"kind": "paired", "name": "colored_objects", "arguments": arguments}
    return PairedTask("colored_objects", tuple(made.values()), origin)


def _check(n: int, shots: int, n_objects: int, templates: str, language: str) -> None:
    if n < 1:
        raise InputError(f"n={n} pairs asked for; at least 1 is needed")
    if shots not in (0, 1):
        raise InputError(f"shots={shots}; it is 0 or 1")
    if templates not in TEMPLATES:
        raise InputError(f"templates={templates!r}; it is one of {', '.join(TEMPLATES)}")
    if templates == "demo" and language != "en":
        raise InputError(f"language={language!r}, but the bundled model was taught these frames in English only")
    fewest = 3 if templates == "demo" and shots else 2
    if not fewest <= n_objects <= 6:
        raise InputError(
            f"n_objects={n_objects}; a scene has {fewest} to 6: one is asked for, the corruption asks for another"
            + (", the example for a third" if fewest == 3 else "")
        )


def _frames(language: str, templates: str) -> list[_Frame]:
    if templates == "demo":
        return [
            _Frame(str(number), f"{scene}. ", question, "a{n} {c} {o}", _GROUP, ", ", " and ", ("",), True, False)
            for number, (scene, question) in enumerate(_SCENES)
        ]
    scenery = SCENERIES[language]
    return [
        _Frame.of(scenery, f"{number}.{which}" if len(scenery.groups) > 1 else str(number), opening, group)
        for number, opening in enumerate(scenery.openings)
        for which, group in enumerate(scenery.groups)
    ]


def _usable(
    tokenizer: Any, frames: Sequence[_Frame], language: str, shots: int, n_objects: int, templates: str, disjoint: bool
) -> list[_Frame]:
    """The frames with the words that are single tokens there; those with enough of them."""
    scenes = 1 + (shots if templates == "paper" else 0)
    colors_needed, objects_needed = n_objects * scenes, n_objects * (scenes if disjoint else 1)
    found, most = [], (0, 0)
    for frame in frames:
        group = frame.group
        probes: list[str] = []
        spans: list[list[tuple[int, int]]] = []
        for color, thing in [(c, group.objects[0]) for c in group.colors] + [
            (group.colors[0], o) for o in group.objects
        ]:
            text = frame.scene(frame.places[0], [thing, thing], [color, color]) + frame.asked(thing)
            answer = frame.answer(color)
            start = len(text.text) + len(answer) - len(answer.lstrip())
            slots = ("c",) if len(probes) < len(group.colors) else ("o", "x")
            wanted = [span for slot in slots for span in text.spans[slot]]
            probes.append(text.text + answer)
            spans.append(wanted + ([(start, len(text.text) + len(answer))] if slots == ("c",) else []))
        kept = whole(tokenizer, probes, spans)
        colors = tuple(c for c, fits in zip(group.colors, kept, strict=False) if fits)
        objects = tuple(o for o, fits in zip(group.objects, kept[len(group.colors) :], strict=True) if fits)
        most = max(most, (len(colors), len(objects)))
        if len(colors) >= colors_needed and len(objects) >= objects_needed:
            found.append(_Frame(**{**vars(frame), "group": Group(objects, colors, group.words)}))
    if not found:
        sizes = (len(frames[0].group.colors), len(frames[0].group.objects))
        raise InputError(
            f"only {most[0]} of {sizes[0]} colours and {most[1]} of {sizes[1]} objects ({language}) are single tokens of this "
            f"tokenizer wherever they stand; {colors_needed} colours and {objects_needed} objects are needed: try fewer objects, "
            "no shot, another language or tokenizer"
        )
    return found


def _item(
    frame: _Frame, example: _Frame, shots: int, n_objects: int, templates: str, disjoint: bool, rng: random.Random
) -> PairedItem:
    """One pair; example: how the solved example before it is said."""
    group = frame.group
    objects, colors = rng.sample(group.objects, n_objects), rng.sample(group.colors, n_objects)
    asked, other, *rest = rng.sample(range(n_objects), n_objects)
    before = Filled("")
    between = Filled("")
    if shots and templates == "paper":
        others = [o for o in example.group.objects if not disjoint or o not in objects]
        things = rng.sample(others, n_objects)
        shades = rng.sample([c for c in example.group.colors if c not in colors], n_objects)
        shown = rng.randrange(n_objects)
        before = example.scene(rng.choice(example.places), things, shades) + example.asked(things[shown])
        before = Filled(before.text + example.answer(shades[shown]) + "\n")
    elif shots:
        between = Filled(frame.asked(objects[rest[0]]).text + frame.answer(colors[rest[0]]) + ". ")
    scene = before + frame.scene(rng.choice(frame.places), objects, colors) + between
    clean, corrupt = scene + frame.asked(objects[asked]), scene + frame.asked(objects[other])
    c, o = clean.spans["c"], clean.spans["o"]
    spots = {"asked": clean.spans["x"][0], "right": c[asked], "wrong": c[other], "object": o[asked]}
    lists = {"colors": c, "objects": o, "wrong colors": tuple(span for at, span in enumerate(c) if at != asked)}
    labels = _labels(frame, templates, objects, colors, asked, other)
    return PairedItem(
        clean.text, corrupt.text, frame.answer(colors[asked]), frame.answer(colors[other]), spots, lists, labels
    )


def _labels(
    frame: _Frame, templates: str, objects: Sequence[str], colors: Sequence[str], asked: int, other: int
) -> Mapping[str, str]:
    labels = {
        "template": frame.template,
        "object": objects[asked],
        "color": colors[asked],
        "asked": str(asked),
        "other": str(other),
    }
    if templates == "demo":
        held = is_held_out(HELD_OUT_SHARE, "colors", *objects, *colors, asked)
        labels["split"] = "heldout" if held else "train"
    return labels
