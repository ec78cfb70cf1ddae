"""Word classes end to end: which layers separate the class of the word to come, with controls; its neurons, clamped.

Method: Surendra et al. 2023 (arXiv 2302.07588); all of it lives in `find/discrimination*`, this file puts the parts in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import zip_longest
from typing import Any

from patchclamp.data import Corpus, Document, Selection, corpus
from patchclamp.data.generate import LANGUAGES
from patchclamp.data.generate.items import UNSPACED, Item
from patchclamp.data.generate.sentences import SEPARATOR, sentences
from patchclamp.find import Finding
from patchclamp.find.discrimination import discrimination
from patchclamp.intervene import clamp
from patchclamp.measure import Effects, effect
from patchclamp.models import UnitSet
from patchclamp.studies import word_class_emergence_view as view
from patchclamp.studies.study import Report, Run, studies

TOGETHER = 4  # generated sentences in a document: the word after a full stop then has a class, too
HELD_OUT = 4  # of a user's documents every fourth is kept for measuring
TARGET = "target"


@studies.add("word-class-emergence")
def word_class_emergence(
    run: Run,
    *,
    text: Corpus | None = None,
    languages: Sequence[str] = LANGUAGES,
    sentence_count: int = 960,
    labels: str = "upos",
    drop: Sequence[str] = ("SYM", "X", "_"),
    merge: Sequence[str] = (),
    per_class: int = 200,
    min_per_class: int = 50,
    permutations: int = 200,
    resamples: int = 5,
    by_document: bool = True,
    top: int = 40,
    controls: int = 10,
    documents: int = 24,
) -> Report:
    """Word classes: do states before a word cluster by its class, and which neurons tell it? (arXiv 2302.07588)

    text: tagged text such as CoNLL-U treebanks; by default our own generated sentences, whose classes are known. languages:
    of the generated ones. sentence_count: how many of them to find with; half as many measure. labels: which spans
    give the classes. drop: classes that count as no word. merge: classes to count as another, such as AUX=VERB. per_class:
    most samples of a class. min_per_class: a class with fewer is left out. permutations: of the labels. resamples: of the
    samples. by_document: shuffle whole documents, because words of one are not independent. top: neurons of each class
    that are clamped. controls: matched-random sets to compare with. documents: with words of each class to measure
    on, texts in turn.

    The paper (we could read its abstract only) finds that activations for nine words cluster by the class of the tenth in a
    network that was never told of classes. Here the value is measured per layer against shuffled labels, the embedding, the
    same architecture untrained, the class of the last word (copying), and among samples that share the last word's class.
    """
    find_on, measure_on = _texts(text, languages, sentence_count, run.seed)
    classes: dict[str, Any] = {
        "labels": labels, "drop": drop, "merge": merge, "per_class": per_class, "min_per_class": min_per_class,
        "permutations": permutations, "by_document": by_document, "seed": run.seed, "quiet": run.quiet,
    }  # fmt: skip
    found = run.finding("layers", lambda: discrimination(run.model, find_on, resamples=resamples, **classes))
    brief = {**classes, "resamples": 1, "random_weights": False, "points": 0}
    neurons = run.finding("neurons", lambda: discrimination(run.model, find_on, sites=("mlp",), top=top, **brief))
    less = {
        **brief,
        "per_class": max(per_class // 2, 2),
        "min_per_class": max(min_per_class // 4, 2),
        "permutations": 20,
    }
    by_text = run.stage("texts", lambda: _by_text(run, find_on, found, {**less, "permutations": permutations}))
    clamped = run.stage("clamped", lambda: _clamped(run, measure_on, neurons.sets, controls, less))
    targets = _targets(measure_on, labels, neurons.labels, merge, documents)
    effects = run.effects("effects", lambda: _effects(run, neurons, targets, controls))
    return view.report(found, neurons, by_text, clamped, effects, generated=text is None)


def _texts(text: Corpus | None, languages: Sequence[str], count: int, seed: int) -> tuple[Corpus, Corpus]:
    """Text to find with and text to measure on: other sentences, of the generated ones held-out combinations of words."""
    if text is None:
        parts = (("train", count), ("heldout", max(count // 2, TOGETHER)))
        made = [
            {language: list(_generated(language, split, number // len(languages), seed)) for language in languages}
            for split, number in parts
        ]
        return corpus(made[0]), corpus(made[1])
    every: dict[str, list[Document]] = {label: list(text.documents(label)) for label in text.labels}
    held = {label: kept[HELD_OUT - 1 :: HELD_OUT] or kept for label, kept in every.items()}
    rest = {
        label: [one for number, one in enumerate(kept) if number % HELD_OUT != HELD_OUT - 1]
        for label, kept in every.items()
    }
    return corpus(rest), corpus(held)


def _generated(language: str, split: str, count: int, seed: int) -> Iterator[Document]:
    """Generated sentences of one language, some to a document, with spans upos=CLASS; the full stop is PUNCT."""
    stream = sentences(seed, split, (language,), count=max(count, TOGETHER))
    gap = "" if language in UNSPACED else " "
    while group := [item for _, item in zip(range(TOGETHER), stream, strict=False)]:
        yield _document(group, gap)


def _document(items: Sequence[Item], gap: str) -> Document:
    text = ""
    spans: dict[str, list[tuple[int, int]]] = {}
    for item in items:
        text += gap if text else ""
        pairs = zip(item.labels["units"].split(SEPARATOR), item.labels["tags"].split(SEPARATOR), strict=True)
        for at, (unit, tag) in enumerate(pairs):
            text += gap if at else ""
            spans.setdefault(f"upos={tag}", []).append((len(text), len(text) + len(unit)))
            text += unit
        spans.setdefault("upos=PUNCT", []).append((len(text), len(text) + len(item.tail)))
        text += item.tail
    return Document(text, {name: tuple(places) for name, places in spans.items()})


def _by_text(run: Run, text: Corpus, found: Finding, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The best layer's row for each text (language) by itself; where a text has too few words, why."""
    from patchclamp.core.errors import InputError

    best = found.details["best"]
    rows: list[dict[str, Any]] = []
    for label in text.labels:
        try:
            one = discrimination(
                run.model, text.subset([label]), sites=(best["site"],), layers=(best["layer"],), **options
            )
        except InputError as problem:
            rows.append({"text": label, "why": str(problem)})
            continue
        kept = next(row for row in one.details["layers"] if row["layer"] == best["layer"])
        keys = ("gdv", "z", "p", "last", "within_last_class", "p_within", "within_last_word", "p_word", "probe")
        rows.append({"text": label, "classes": len(one.labels), **{key: kept[key] for key in keys}})
    return rows


def _clamped(
    run: Run, text: Corpus, sets: Mapping[str, UnitSet], controls: int, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The value of every layer with the neurons of all classes clamped to 0, and with matched-random sets clamped."""

    def values() -> dict[int, float]:
        one = discrimination(run.model, text, sites=("resid",), **options)
        return {row["layer"]: row["gdv"] for row in one.details["layers"]}

    units = reduce(lambda one, other: one | other, sets.values())
    plain = values()
    with clamp(run.model, units, to=0.0):
        own = values()
    random: list[dict[int, float]] = []
    for number in range(controls):
        with clamp(run.model, units.matched_random(run.seed + number, exclude=units), to=0.0):
            random.append(values())
    return [
        {"layer": layer, "plain": plain[layer], "clamped": own[layer], "random": [one[layer] for one in random],
         "n_units": len(units)}
        for layer in plain
    ]  # fmt: skip


def _targets(text: Corpus, labels: str, classes: Sequence[str], merge: Sequence[str], most: int) -> Corpus:
    """Class -> documents whose words of that class are to be predicted (a span named "target")."""
    counts_as = dict(entry.split("=", 1) for entry in merge)
    found: dict[str, list[Document]] = {name: [] for name in classes}
    in_turn = (one for several in zip_longest(*map(text.documents, text.labels)) for one in several if one is not None)
    for document in in_turn:
        places: dict[str, list[tuple[int, int]]] = {}
        for name, spans in document.spans.items():
            prefix, _, kind = name.partition("=")
            if prefix == labels:
                places.setdefault(counts_as.get(kind, kind), []).extend(spans)
        for name in set(places) & set(classes):
            if len(found[name]) < most:
                found[name].append(Document(document.text, {TARGET: tuple(sorted(places[name]))}))
    return corpus({name: kept for name, kept in found.items() if kept})


def _effects(run: Run, neurons: Finding, targets: Corpus, controls: int) -> Effects:
    return effect(
        run.model,
        neurons.sets,
        on=targets,
        to=0.0,
        controls=controls,
        permutations=19_999,
        seed=run.seed,
        select=Selection(inside=TARGET),
        quiet=run.quiet,
    )
