"""Discrimination of classes, layer by layer: does the state before a word cluster by the class of the word to come?

Surendra, Schilling, Stoewer, Maier & Krauss 2023, "Word class representations spontaneously emerge in a deep neural network
trained on next word prediction" (arXiv 2302.07588); the value is Schilling et al.'s (2018) GDV, see gdv.py. Classes can be
anything that spans of the text say: universal parts of speech of a treebank, dependency relations, tags of your own.

The steps lie in files of their own: discrimination_samples (which words), discrimination_states (what the model holds there),
discrimination_layers (value and controls of a layer), discrimination_units (eta squared of units), gdv, mds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.corpora import Corpus
from patchclamp.find.discrimination_layers import Settings, Words, corrected, mapped, measured
from patchclamp.find.discrimination_samples import Plan, planned
from patchclamp.find.discrimination_states import BAG, States, states
from patchclamp.find.discrimination_units import explained, shuffled_largest
from patchclamp.find.finding import Finding, finders
from patchclamp.find.gdv import LARGEST
from patchclamp.find.ranking import highest
from patchclamp.find.untrained import untrained
from patchclamp.models.hooks import Tap
from patchclamp.models.units import Layout

if TYPE_CHECKING:
    from patchclamp.models import LanguageModel

TARGETS = ("next", "last")
DROPPED = ("PUNCT", "SYM", "X", "_")


@finders.add("discrimination")
def discrimination(
    model: LanguageModel,
    text: Corpus,
    *,
    labels: str = "upos",
    target: str = "next",
    sites: Sequence[str] = ("embed", "resid"),
    layers: Sequence[int] | None = None,
    drop: Sequence[str] = DROPPED,
    merge: Sequence[str] = (),
    per_class: int = 500,
    min_per_class: int = 100,
    resamples: int = 10,
    permutations: int = 200,
    by_document: bool = False,
    random_weights: bool = True,
    top: int = 20,
    points: int = 300,
    batch_tokens: int = 4096,
    max_length: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Finding:
    """Find the layers that separate classes of words, and the units that tell a class from the others.

    text: tagged text, such as a CoNLL-U treebank. labels: which spans give the classes, "upos" for upos=NOUN and so on.
    target: what is separated: `next`, the class of the word to come (the paper), or `last`, that of the word just read.
    sites: whose layers are measured; `embed` is also the control for what the word alone says. layers: only these (the
    embedding is layer 0). drop: classes that are no words. merge: classes to count as another, such as AUX=VERB.
    per_class: most samples of a class; all classes get as many as the smallest. min_per_class: a class with fewer samples
    is left out. resamples: draws of the balanced sample, for the spread. permutations: of the labels, for p.
    by_document: shuffle whole documents' label sequences instead of single labels, because words of a document are not
    independent. random_weights: also measure the same architecture with random weights. top: units in each class's set.
    points: words on the 2-D map of the best layer (0: none). batch_tokens: tokens in a batch. max_length: longest passage.
    seed: of samples, permutations and random weights. quiet: no progress bar.

    A sample is the state at the last token of word t; its class is that of word t+1. `details["layers"]` has a row per site
    and layer: gdv (0: not separated, about -1: perfectly; mean of the resamples, sd), null_mean, null_sd, z, p, p_holm; the
    controls `last` (class of the other word: copying), `untrained`, and `within_last_class` and `within_last_word`: gdv
    among samples that share the last word's class, or the last word, with p_within and p_word; `probe`, balanced accuracy
    of a linear probe. `details["best"]`: the hidden layer that separates most, `details["map"]` its words on a plane,
    `details["bag"]` the row of the mean embedding of the last nine tokens. Scores of a class: eta squared
    of every unit between the class and all others, with F-test p-values; unit_score: over all classes.

    The paper's text was not available: sampling, defaults and controls 'within', probe and bag are ours. Its network read
    nine words; a causal model reads all before. Clamp units around this call to measure a changed model.
    Raises InputError for text without such spans, fewer than two classes that are frequent enough, values out of range.
    Example: `patchclamp find discrimination demo --text en=en_ewt.conllu --out classes.json`.
    """
    arguments = {
        "labels": labels, "target": target, "sites": list(sites), "layers": None if layers is None else list(layers),
        "drop": list(drop), "merge": list(merge), "per_class": per_class, "min_per_class": min_per_class,
        "resamples": resamples, "permutations": permutations, "by_document": by_document,
        "random_weights": random_weights, "top": top, "points": points, "batch_tokens": batch_tokens,
        "max_length": max_length, "seed": seed,
    }  # fmt: skip
    _check(arguments)
    layouts, taps = _taps(model, sites, layers)
    plan = planned(
        model.tokenizer, text, labels=labels, drop=drop, merge=_merged(merge), per_class=per_class, seed=seed
    )
    settings = Settings(target, resamples, permutations, by_document, seed)
    words = Words.of(plan, target, per_class=per_class, min_per_class=min_per_class, largest=LARGEST)
    read: dict[str, Any] = {"batch_tokens": batch_tokens, "max_length": max_length, "quiet": quiet}
    held = states(model, text, words.samples, taps, **read)
    blank: States = {}
    if random_weights:
        blank = states(untrained(model, seed=seed), text, words.samples, taps, **read)
    rows = [
        {"site": site, "layer": layer, **measured(held[site, layer], blank.get((site, layer)), words, settings)}
        for site, layer in taps
    ]
    corrected(rows)
    hidden = [row for row in rows if row["site"] != "embed"]
    best = min(hidden or rows, key=lambda row: float(row["gdv"]))
    shown = words.draw(0)
    scores, overall, p_values = _scores(held, words, layouts, shown)
    chosen = np.zeros(scores.shape, dtype=bool)
    for row, score in zip(chosen, scores, strict=True):
        row[highest(score, top)] = True
    chosen &= scores > 0
    details = {
        "classes": {name: len(rows_of) for name, rows_of in words.classes.items()},
        "samples_per_class": words.size,
        "left_out": words.left_out,
        "skipped": plan.skipped,
        "layers": rows,
        "best": {"site": best["site"], "layer": best["layer"]},
        "bag": None if BAG not in held else measured(held[BAG], None, words, settings),
        "map": mapped(held[best["site"], best["layer"]], words, points, seed) if points else None,
    }
    return Finding(
        method="discrimination",
        labels=tuple(words.classes),
        layouts=layouts,
        model=dict(model.identity),
        chosen=chosen,
        scores=scores,
        unit_score=overall,
        p_values=p_values,
        null=_null(held, words, taps, shown, best, seed),
        parameters={key: value for key, value in arguments.items() if key != "batch_tokens"},
        details=details,
        notes=_notes(plan, words, rows, best),
        provenance=provenance(
            "find.discrimination",
            arguments=arguments,
            inputs={"model": _origin(model), "text": text.identity},
            seed=seed,
        ),
    )


def _check(given: Mapping[str, Any]) -> None:
    if given["target"] not in TARGETS:
        raise InputError(f"target={given['target']!r} given; it is next or last")
    for name, least in (
        ("per_class", 2), ("min_per_class", 2), ("resamples", 1), ("permutations", 1), ("top", 0), ("points", 0)
    ):  # fmt: skip
        if given[name] < least:
            raise InputError(f"{name}={given[name]} given; it is at least {least}")


def _merged(given: Sequence[str]) -> dict[str, str]:
    found = {}
    for entry in given:
        name, separator, kind = entry.partition("=")
        if not separator or not name or not kind:
            raise InputError(f"merge={entry!r} given; write CLASS=CLASS, such as AUX=VERB")
        found[name] = kind
    return found


def _taps(
    model: LanguageModel, sites: Sequence[str], layers: Sequence[int] | None
) -> tuple[tuple[Layout, ...], list[Tap]]:
    """Layouts of the sites and the taps to measure; a layer that is not asked for keeps its place with score 0."""
    if isinstance(sites, str) or not sites or len(set(sites)) < len(sites):
        raise InputError(f"sites={sites!r} given; give a list of sites, each once")
    if unknown := [site for site in sites if site not in model.layouts]:
        raise InputError(f"{model.name} has no site {unknown[0]!r}; it has {', '.join(model.layouts)}")
    found = [
        (site, layer)
        for site in sites
        for layer, width in enumerate(model.layouts[site].widths)
        if width and (layers is None or layer in layers or site == "embed")
    ]
    if not found:
        raise InputError(f"layers={list(layers or ())} given, but {', '.join(sites)} has none of these")
    return tuple(model.layouts[site] for site in sites), found


def _scores(held: States, words: Words, layouts: Sequence[Layout], rows: Any) -> tuple[Any, Any, Any]:
    """Eta squared of each class (L, total), over all classes (total,), p-values (L, total)."""
    total = sum(layout.total for layout in layouts)
    scores, overall = np.zeros((len(words.classes), total)), np.zeros(total)
    p_values = np.ones((len(words.classes), total), dtype=np.float32)
    start = 0
    for layout in layouts:
        for layer in range(layout.n_layers):
            if (layout.site, layer) in held:
                place = layout.slice(layer)
                where = slice(start + place.start, start + place.stop)
                found = explained(held[layout.site, layer][rows], words.labels[rows])
                scores[:, where], overall[where] = found.of_class, found.overall
                p_values[:, where] = found.p_of_class
        start += layout.total
    return scores, overall, p_values


def _null(
    held: States, words: Words, taps: Sequence[Tap], rows: Any, best: Mapping[str, Any], seed: int, shuffles: int = 20
) -> dict[str, Any]:
    """What shuffled labels give: GDV at the best layer, and the largest eta squared of any unit."""
    largest = np.max(
        [shuffled_largest(held[tap][rows], words.labels[rows], shuffles=shuffles, seed=seed) for tap in taps], axis=0
    )
    return {
        "what": "labels shuffled over the samples",
        "gdv": {key: best[key] for key in ("null_mean", "null_sd")},
        "largest_eta_squared": {"mean": float(largest.mean()), "max": float(largest.max())},
        "shuffles": shuffles,
    }


def _notes(plan: Plan, words: Words, rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> tuple[str, ...]:
    notes = [f"{name}: {count} skipped" for name, count in plan.skipped.items() if count]
    if words.left_out:
        left = ", ".join(f"{name} ({count})" for name, count in words.left_out.items())
        notes.append(f"classes with too few samples were left out: {left}")
    if best["within_last_class"] is None:
        notes.append("the last word's class decides the next one in this text: copying can't be told from predicting")
    constant = sum(int(row["constant"]) for row in rows)
    if constant:
        notes.append(f"{constant} units do not vary; they stay in D and pull the value towards 0")
    if far := [f"{row['site']}.{row['layer']}" for row in rows if row["far"]]:
        notes.append(f"units with |z| > 20 in {', '.join(far)}")
    return tuple(notes)


def _origin(model: LanguageModel) -> dict[str, Any]:
    kept = ("name", "fingerprint", "source", "dtype", "features")
    return {key: model.identity[key] for key in kept if key in model.identity}


make_callable(__name__)
