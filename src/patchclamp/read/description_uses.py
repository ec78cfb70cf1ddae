"""What descriptions are good for: find the units that answer to a concept (audit), clamp them and measure (edit).

Hernandez et al. 2022 (arXiv 2201.11114), sections 6 and 7, for language models; `vision_audit` and `vision_editing` serve image
models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.measure.effects import effect
from patchclamp.models.units import UnitSet
from patchclamp.read.description_scores import auroc, texts_of
from patchclamp.read.descriptions import Describer, Descriptions
from patchclamp.read.exemplar_store import ExemplarStore
from patchclamp.read.predicates import parse

if TYPE_CHECKING:
    from patchclamp.data.corpora import Corpus
    from patchclamp.measure.effect_table import Effects
    from patchclamp.models.load import LanguageModel


def audit(
    descriptions: Descriptions | Mapping[str, str],
    keywords: Sequence[str] | Mapping[str, Sequence[str]],
    *,
    whole_words: bool = True,
    only_explained: bool = False,
) -> dict[str, list[str]]:
    """Concept -> the units whose description contains one of its keywords, upper or lower case.

    In a description that can be checked by machine only what stands in quotes is looked at: "word" is not found in
    `the word "river"`. keywords: words, each a concept of its own; or concept -> words. whole_words: "car" is not found in
    "scarf"; a keyword of a script without spaces is found anywhere. only_explained: leave out descriptions that
    tell no more than nothing does.
    """
    named = keywords if isinstance(keywords, Mapping) else {word: (word,) for word in _listed(keywords)}
    patterns = {concept: [_pattern(word, whole_words) for word in _listed(words)] for concept, words in named.items()}
    if not patterns or not all(patterns.values()):
        raise InputError("an audit needs keywords; give some for every concept")
    texts = texts_of(descriptions, only_explained=only_explained)
    return {
        concept: [unit for unit, text in texts.items() if any(pattern.search(_said(text)) for pattern in each)]
        for concept, each in patterns.items()
    }


def answering(
    store: ExemplarStore, describer: Describer, concept: str, *, permutations: int = 999, seed: int = 0
) -> list[dict[str, Any]]:
    """How well every unit's values tell the parts that fit a concept, whatever its own description: best first.

    concept: any text that the describer can predict with. Rows: unit, auroc (of the unit's values for the parts of the probe
    that fit; 0.5 is chance), p (two-sided around 0.5, against random rotations), n parts that fit. The null rotates the parts
    that fit along the probe, so that neighbouring parts stay together.
    """
    predicted = [np.asarray(describer.predict(concept, one), dtype=np.float64) > 0.5 for one in store.probe]
    fits = np.concatenate([np.zeros(0, dtype=bool), *predicted])
    if fits.all() or not fits.any():
        raise InputError(
            f"{concept!r} fits {int(fits.sum())} of the probe's {len(fits)} parts; it must fit some, not all"
        )
    rng = np.random.default_rng(seed)
    shifts = rng.integers(1, len(fits), permutations)
    rows = []
    for unit in store:
        values = store[unit].probe.astype(np.float64)
        own = auroc(values, fits) or 0.0
        drawn = np.array([auroc(values, np.roll(fits, shift)) for shift in shifts.tolist()], dtype=np.float64)
        p = (1 + int((np.abs(drawn - 0.5) >= abs(own - 0.5) - 1e-12).sum())) / (1 + permutations)
        rows.append({"unit": unit, "auroc": own, "p": p, "n": int(fits.sum())})
    return sorted(rows, key=lambda row: -float(row["auroc"]))


def edit_effect(
    model: LanguageModel,
    descriptions: Descriptions,
    keywords: Mapping[str, Sequence[str]] | Sequence[str],
    *,
    on: Corpus,
    to: float = 0.0,
    controls: int = 10,
    seed: int = 0,
    **options: Any,
) -> Effects:
    """What clamping the units that answer to each concept does to each label's text, against matched random units.

    keywords: as in `audit`. A concept that no description contains is an InputError. options: further ones of `effect`.
    """
    found = audit(descriptions, keywords)
    if missing := [concept for concept, units in found.items() if not units]:
        raise InputError(f"no description contains {missing[0]!r}; it names no units to clamp")
    sets = {concept: UnitSet.of(model, units) for concept, units in found.items()}
    return effect(model, sets, on=on, to=to, controls=controls, seed=seed, **options)


def _said(text: str) -> str:
    """What a description is about, without the words that only frame its terms."""
    predicate = parse(text)
    return text if predicate is None else "\n".join(argument for every in predicate for _, argument in every)


def _listed(words: Sequence[str] | str) -> list[str]:
    return [words] if isinstance(words, str) else list(words)


def _pattern(word: str, whole: bool) -> re.Pattern[str]:
    if not word.strip():
        raise InputError("an empty keyword was given")
    spaceless = any(ord(character) >= 0x2E80 for character in word)
    inner = re.escape(word)
    return re.compile(rf"(?<!\w){inner}(?!\w)" if whole and not spaceless else inner, re.IGNORECASE)
