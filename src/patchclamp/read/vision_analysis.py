"""What kinds of units a network has, layer by layer, and what it loses without them: MILAN's analysis (section 5).

kinds = {"colour": ["red", "green"], "text": ["text"]}
concepts_by_layer(model, descriptions, kinds)                     # how many units of each kind in every layer
ablation_curves(model, pictures, criteria(descriptions, kinds))   # accuracy while ever more of the strongest are 0
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.data.pictures import Pictures
from patchclamp.models.units import UnitSet
from patchclamp.read.descriptions import Descriptions
from patchclamp.read.predicates import INACTIVE, NOTHING
from patchclamp.read.vision_audit import check_described
from patchclamp.read.vision_exemplars import parse_unit
from patchclamp.read.vision_model import VisionModel, predictions

KINDS: dict[str, tuple[str, ...]] = {
    "colour": ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "black", "grey", "white"),
    "texture": ("plain", "edges", "upright edges", "level edges"),
    "place": ("top", "bottom", "left", "right", "middle"),
}  # what `picture_tags` names
FRACTIONS = tuple(step / 50 for step in range(11))  # 0, 2 %, ... 20 %: the paper's
Scores = Mapping[str, Mapping[str, float]]


def concepts_by_layer(
    model: VisionModel, descriptions: Descriptions, kinds: Mapping[str, Sequence[str]] | None = None
) -> list[dict[str, Any]]:
    """One row per layer: units described, and how many of them name something of each kind (a unit may count for several).

    kinds: name -> keywords; colours, textures and places by default. "nothing" counts units without a description that tells
    more than nothing does.
    """
    check_described(model, descriptions)
    patterns = {kind: _pattern(words) for kind, words in (kinds or KINDS).items()}
    rows: list[dict[str, Any]] = []
    for layer, name in enumerate(model.layers):
        mine = [one for one in descriptions.found if parse_unit(one.unit).layer == layer]
        told = [_plain_words(one.text) for one in mine if one.explains]
        counts = {kind: sum(bool(pattern.search(text)) for text in told) for kind, pattern in patterns.items()}
        rows.append({"layer": name, "units": len(mine), **counts, "nothing": len(mine) - len(told)})
    return rows


def criteria(
    descriptions: Descriptions, kinds: Mapping[str, Sequence[str]] | None = None
) -> dict[str, dict[str, float]]:
    """Criterion -> unit -> score: how many words of each kind a description has, and its length in words.

    The paper counts nouns, verbs, adjectives and prepositions and measures length with a parser; kinds of words stand for
    the parts of speech here. Units that are inactive or without description have no score.
    """
    patterns = {kind: _pattern(words) for kind, words in (kinds or KINDS).items()}
    told = {one.unit: _plain_words(one.text) for one in descriptions.found if one.text not in (INACTIVE, NOTHING)}
    scores = {
        kind: {unit: float(len(pattern.findall(text))) for unit, text in told.items()}
        for kind, pattern in patterns.items()
    }
    return {**scores, "length": {unit: float(len(re.findall(r"\w+", text))) for unit, text in told.items()}}


def ablation_curves(
    model: VisionModel,
    pictures: Pictures,
    scores: Scores,
    *,
    fractions: Sequence[float] = FRACTIONS,
    trials: int = 5,
    seed: int = 0,
    batch: int = 256,
) -> list[dict[str, Any]]:
    """Accuracy with the units of highest score set to 0, and with as many random units of the same layers.

    scores: criterion -> unit -> score (`criteria`); units of score 0 or less are never taken, so that a curve may end early;
    equal scores are taken in random order. fractions: of all units. trials: random sets.
    Rows: criterion, fraction, units, accuracy, random (mean accuracy of the random sets), random_low, random_high, classes
    (accuracy of each class). Fraction 0 is the network as it is.
    """
    steps = list(fractions)
    if not steps or any(not 0 <= step <= 1 for step in steps):
        raise InputError(f"fractions {steps} given; at least one is needed, each in 0-1")
    if trials < 1:
        raise InputError(f"trials={trials}; at least one random set is needed to compare with")
    rows: list[dict[str, Any]] = []
    for criterion, of_units in scores.items():
        order = _order(model, of_units, seed)
        for step in steps:
            count = min(round(step * model.layout.total), len(order))
            units = model.units(order[:count])
            right = correct(model, pictures, units, batch=batch)
            random = [
                float(correct(model, pictures, units.matched_random(seed + trial), batch=batch).mean())
                for trial in range(trials if count else 0)
            ] or [float(right.mean())]
            rows.append(
                {
                    "criterion": criterion, "fraction": step, "units": count, "accuracy": float(right.mean()),
                    "random": float(np.mean(random)), "random_low": min(random), "random_high": max(random),
                    "classes": _by_class(right, pictures),
                }
            )  # fmt: skip
    return rows


def correct(model: VisionModel, pictures: Pictures, units: UnitSet, *, batch: int = 256) -> NDArray[np.bool_]:
    """(pictures,) bool: which are told right with the units set to 0."""
    with model.ablated(units):
        return (predictions(model, pictures, batch=batch) == pictures.labels.cpu()).numpy()


def _order(model: VisionModel, scores: Mapping[str, float], seed: int) -> NDArray[np.int64]:
    """Flat positions of units with a score above 0, highest first; equal ones in random order."""
    wanted = [(unit, value) for unit, value in scores.items() if np.isfinite(value) and value > 0]
    positions = np.array([model.layout.position(parse_unit(unit)) for unit, _ in wanted], dtype=np.int64)
    shuffled = np.random.default_rng(seed).permutation(len(wanted))
    values = np.array([value for _, value in wanted])[shuffled]
    return positions[shuffled[np.argsort(-values, kind="stable")]]


def _by_class(right: NDArray[np.bool_], pictures: Pictures) -> dict[str, float | None]:
    labels = pictures.labels.cpu().numpy()
    return {
        name: float(right[labels == number].mean()) if (labels == number).any() else None
        for number, name in enumerate(pictures.classes)
    }


def _pattern(keywords: Sequence[str]) -> re.Pattern[str]:
    """What finds any of the keywords as a whole word, whatever the case; the longest first, so that each place counts once."""
    listed = [keywords] if isinstance(keywords, str) else list(keywords)
    if not listed or not all(word.strip() for word in listed):
        raise InputError(f"keywords {listed} given; at least one is needed, none of them empty")
    every = "|".join(re.escape(word.strip()) for word in sorted(listed, key=len, reverse=True))
    return re.compile(rf"(?<!\w)(?:{every})(?!\w)", re.IGNORECASE)


def _plain_words(text: str) -> str:
    """A description without the words that only join its terms."""
    return re.sub(r'\b(?:tagged|labelled) (?=")', "", text)
