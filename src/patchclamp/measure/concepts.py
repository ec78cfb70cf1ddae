"""Does a text show a concept? Judges: any function of a text, a list of words, or a classifier, brought to one form.

A judge is called with a text and says True or False, a number from 0 to 1, a `Verdict`, {"label" or "score", "spans"}, or
what a transformers text-classification pipeline says ([{"label", "score"}, ...]; name the label with `Classifier`).
No classifier is bundled.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchclamp.core.errors import InputError

Judge = Callable[[str], Any]
UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]")  # scripts that write no spaces between words


@dataclass(frozen=True)
class Verdict:
    """score: from 0 (no trace of the concept) to 1. spans: (start, stop) characters that show it, where they are known."""

    score: float
    spans: tuple[tuple[int, int], ...] = ()

    def flagged(self, threshold: float = 0.5) -> bool:
        """Whether the text counts as showing the concept: its score exceeds the threshold, or is 1."""
        return self.score > threshold or self.score >= 1


class Words:
    """A judge that looks for words, whatever their case; a word of a script with spaces must stand by itself."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(dict.fromkeys(word.strip() for word in words if word.strip()))
        if not self.words:
            raise InputError("no words to look for were given")
        bound = [re.escape(w) if UNSPACED.search(w) else rf"(?<!\w){re.escape(w)}(?!\w)" for w in self.words]
        self._pattern = re.compile("|".join(sorted(bound, key=len, reverse=True)), re.IGNORECASE)

    def __call__(self, text: str) -> Verdict:
        spans = tuple(match.span() for match in self._pattern.finditer(text))
        return Verdict(float(bool(spans)), spans)

    def __repr__(self) -> str:
        return f"Words({', '.join(self.words[:5])}{', ...' if len(self.words) > 5 else ''})"


class Classifier:
    """A judge from a classifier of many texts at once: the score of one of its labels.

    classifier: called with a list of texts, gives for each a number, or {"label", "score"}, or a list of these; or an
    object with `predict_proba(texts)` and `classes_`, such as a scikit-learn pipeline. label: which label's score.
    """

    def __init__(self, classifier: Any, label: str | None = None) -> None:
        self.classifier, self.label = classifier, label

    def __call__(self, text: str) -> Verdict:
        return self.many([text])[0]

    def many(self, texts: Sequence[str]) -> list[Verdict]:
        """A verdict per text."""
        if hasattr(self.classifier, "predict_proba"):
            shares = np.asarray(self.classifier.predict_proba(list(texts)))
            return [Verdict(float(row)) for row in shares[:, self._column()]]
        said = list(self.classifier(list(texts)))
        if len(said) != len(texts):
            raise InputError(f"the classifier gave {len(said)} answers for {len(texts)} texts")
        return [verdict_of(one, self.label, text) for one, text in zip(said, texts, strict=True)]

    def _column(self) -> int:
        names = [str(name) for name in self.classifier.classes_]
        wanted = names[-1] if self.label is None and len(names) == 2 else self.label
        if wanted not in names:
            raise InputError(f"label={self.label!r}; the classifier knows {', '.join(names)}")
        return names.index(wanted)


def verdicts(judge: Judge, texts: Sequence[str]) -> list[Verdict]:
    """A verdict per text; every different text is judged once."""
    distinct = list(dict.fromkeys(texts))
    many = getattr(judge, "many", None)
    said = many(distinct) if many is not None else [judge(text) for text in distinct]
    found = {text: verdict_of(one, None, text) for text, one in zip(distinct, said, strict=True)}
    return [found[text] for text in texts]


def verdict_of(said: Any, label: str | None, text: str) -> Verdict:
    """What a judge said of a text as a Verdict; InputError for what none of the forms is."""
    if isinstance(said, Verdict):
        found = said
    elif isinstance(said, bool | int | float | np.bool_ | np.integer | np.floating):
        found = Verdict(float(said))
    elif isinstance(said, Mapping):
        found = Verdict(_score(said, label), _spans(said.get("spans", ()), text))
    elif isinstance(said, list | tuple) and said and all(isinstance(one, Mapping) for one in said):
        found = _of_labels(said, label)
    else:
        raise InputError(
            f"a judge said {said!r:.80} of {text[:40]!r}; it returns True, False, a number from 0 to 1, or "
            '{"score": ..., "spans": [(start, stop), ...]}'
        )
    if not 0 <= found.score <= 1:  # NaN too
        raise InputError(f"a judge gave {text[:40]!r} the score {found.score}; scores lie between 0 and 1")
    return found


def _score(said: Mapping[str, Any], label: str | None) -> float:
    score = said.get("score")
    if label is not None and "label" in said:
        if said["label"] == label:
            return 1.0 if score is None else float(score)
        return 0.0 if score is None else 1 - float(score)  # a pipeline names only its best label: right for two of them
    if score is not None:
        return float(score)
    if isinstance(said.get("label"), bool | int | float | np.bool_):
        return float(said["label"])
    raise InputError(f"a judge said {dict(said)!r:.80}; without a score its label must be true or false")


def _of_labels(said: Sequence[Mapping[str, Any]], label: str | None) -> Verdict:
    """The score of one label of a pipeline's list."""
    scores = {str(one.get("label")): float(one.get("score", 0)) for one in said}
    if len(said) == 1:
        return Verdict(_score(said[0], label))
    if label is None or label not in scores:
        raise InputError(
            f"the classifier has the labels {', '.join(scores)}; say which is the concept: Classifier(..., label=)"
        )
    return Verdict(scores[label])


def _spans(given: Any, text: str) -> tuple[tuple[int, int], ...]:
    spans = tuple((int(start), int(stop)) for start, stop in given)
    for start, stop in spans:
        if not 0 <= start < stop <= len(text):
            raise InputError(f"a judge marked characters {start} to {stop} of a text of {len(text)}")
    return tuple(sorted(spans))
