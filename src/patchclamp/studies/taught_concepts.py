"""Concepts that the demo model was taught, as texts that show them beside texts that don't: languages, manners, years, ...

Neutral texts share everything with a concept's texts but the concept, as far as the curricula allow: the same documents in
other languages, the same requests in the other tone, questions of the same form about something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from patchclamp.core.errors import InputError
from patchclamp.data.demo import LANGUAGES, demo_text
from patchclamp.data.generate import arithmetic, binding, code, culture, dates, facts, manners, sentences
from patchclamp.data.generate.items import Item, rng_for
from patchclamp.read.concept import Concept

TAUGHT = (*LANGUAGES, "rude", "polite", "years", "colours", "culture", "code", "arithmetic")
_SAID = {
    "en": "English", "de": "German", "fr": "French", "ru": "Russian", "zh": "Chinese", "ja": "Japanese",
    "rude": "a rude reply", "polite": "a friendly, polite reply", "years": "years and dates", "colours": "colours of things",
    "culture": "typical food, dress, sports and festivals of a country", "code": "Python code",
    "arithmetic": "arithmetic with numbers",
}  # fmt: skip
_MOST = 600  # items drawn from a generator


def taught_concepts(
    names: Iterable[str] | None = None, *, texts: int = 24, seed: int = 0
) -> tuple[list[Concept], list[Concept]]:
    """The concepts twice, with different texts: to choose features with, and to test them on.

    names: some of TAUGHT, all by default. texts: of each kind (positive, neutral) and part, fewer where the curricula have
    fewer. Raises InputError for an unknown name, or fewer than 2 texts.
    """
    chosen = TAUGHT if names is None else tuple(names)
    unknown = [name for name in chosen if name not in TAUGHT]
    if unknown or not chosen or texts < 2:
        raise InputError(
            f"concepts {list(chosen)} with {texts} texts asked for; there are {', '.join(TAUGHT)}, 2 texts or more"
        )
    parts = []
    for part in ("find", "measure"):
        made = []
        for name in chosen:
            pair = _language(name, part) if name in LANGUAGES else _items(name, part)
            positives, neutrals = (_drawn(kind, texts, seed, name, part) for kind in pair)
            made.append(Concept(name, positives, neutrals, _SAID[name]))
        parts.append(made)
    return parts[0], parts[1]


def _language(name: str, part: str) -> tuple[list[str], list[str]]:
    corpus = demo_text(split=part)
    texts = {label: [document.text for document in corpus.documents(label)] for label in corpus.labels}
    others = [label for label in texts if label != name]
    turn = [texts[others[number % len(others)]][number] for number in range(len(texts[name]))]
    return texts[name], turn


def _items(name: str, part: str) -> tuple[list[str], list[str]]:
    """Texts of the concept and neutral ones; every second distinct text belongs to the part."""
    kinds: dict[str, tuple[Iterator[Item], ...]] = {
        "rude": (_manners("rude"), _manners("polite")),
        "polite": (_manners("polite"), _manners("rude")),
        "years": (dates(languages=("en",), count=_MOST), facts(languages=("en",), count=_MOST)),
        "colours": (_binding(colours=True), _binding(colours=False)),
        "culture": (culture(languages=("en",), count=_MOST), facts(languages=("en",), count=_MOST)),
        "code": (code(count=_MOST), sentences(languages=("en",), count=_MOST)),
        "arithmetic": (arithmetic(languages=("en",), count=_MOST), dates(languages=("en",), count=_MOST)),
    }
    at = ("find", "measure").index(part)
    found = [sorted({item.text.strip() for item in items})[at::2] for items in kinds[name]]
    return found[0], found[1]


def _manners(tone: str) -> Iterator[Item]:
    return manners(languages=("en",), tones=(tone,), count=_MOST)


def _binding(*, colours: bool) -> Iterator[Item]:
    kinds = ("colors",) if colours else ("ioi", "pairs")
    return (item for item in binding(languages=("en",), count=4 * _MOST) if item.labels["kind"] in kinds)


def _drawn(texts: Sequence[str], count: int, *key: object) -> tuple[str, ...]:
    """At most `count` texts in an order that depends on the key alone."""
    kept = list(dict.fromkeys(texts))
    rng_for("taught concepts", *key).shuffle(kept)
    return tuple(kept[:count])
