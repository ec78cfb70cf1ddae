"""Judges brought to one form: words, functions, classifiers; what none of the forms is, is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from patchclamp.core.errors import InputError
from patchclamp.measure.concepts import Classifier, Verdict, Words, verdicts


def test_words_are_found_as_words_whatever_their_case() -> None:
    judge = Words(["fool", "shut up", "笨蛋", " pig "])
    assert judge("You FOOL. Shut up!") == Verdict(1.0, ((4, 8), (10, 17)))
    assert judge("A foolish piglet.") == Verdict(0.0, ())
    assert judge("滚开，笨蛋。").spans == ((3, 5),)
    with pytest.raises(InputError, match="no words"):
        Words(["", " "])


@pytest.mark.parametrize(
    ("said", "score", "spans"),
    [
        (True, 1.0, ()),
        (np.bool_(False), 0.0, ()),
        (0.25, 0.25, ()),
        (Verdict(0.5, ((0, 1),)), 0.5, ((0, 1),)),
        ({"label": True, "spans": [(2, 4), (0, 1)]}, 1.0, ((0, 1), (2, 4))),
        ({"score": 0.75}, 0.75, ()),
        ([{"label": "toxic", "score": 0.9}], 0.9, ()),
    ],
)
def test_every_form_of_an_answer_is_understood(said: Any, score: float, spans: Any) -> None:
    (found,) = verdicts(lambda text: said, ["text"])
    assert (found.score, found.spans) == (score, spans)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (None, "a judge said None"),
        ("rude", "a judge said 'rude'"),
        (1.5, "score 1.5"),
        (float("nan"), "score nan"),
        ({"label": "rude"}, "must be true or false"),
        ({"score": 1, "spans": [(3, 9)]}, "characters 3 to 9"),
        ([{"label": "a", "score": 0.1}, {"label": "b", "score": 0.9}], "say which is the concept"),
    ],
)
def test_other_answers_are_refused(said: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        verdicts(lambda text: said, ["text"])


def test_a_text_is_judged_once() -> None:
    asked: list[str] = []

    def judge(text: str) -> bool:
        asked.append(text)
        return "x" in text

    assert [one.score for one in verdicts(judge, ["x", "y", "x", "y"])] == [1, 0, 1, 0]
    assert asked == ["x", "y"]


def test_a_score_must_exceed_the_threshold() -> None:
    assert [Verdict(score).flagged(0.5) for score in (0.4, 0.5, 0.6)] == [False, False, True]
    assert Verdict(1.0).flagged(1.0)
    assert not Verdict(0.0).flagged(0.0)


def test_pipelines_of_transformers_and_scikit_learn_serve() -> None:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["bad bad", "good", "bad", "good good"]
    fitted = make_pipeline(CountVectorizer(), LogisticRegression(C=100)).fit(texts, ["no", "yes", "no", "yes"])
    assert [one.flagged() for one in verdicts(Classifier(fitted, "no"), texts)] == [True, False, True, False]
    with pytest.raises(InputError, match="knows no, yes"):
        Classifier(fitted, "toxic")("bad")

    def best_label(texts: list[str]) -> list[dict[str, Any]]:
        return [{"label": "toxic" if "bad" in text else "neutral", "score": 0.9} for text in texts]

    assert [one.score for one in verdicts(Classifier(best_label, "toxic"), texts)] == pytest.approx(
        [0.9, 0.1, 0.9, 0.1]
    )

    def all_labels(texts: list[str]) -> list[list[dict[str, Any]]]:
        return [[{"label": "toxic", "score": 0.2}, {"label": "obscene", "score": 0.7}] for _ in texts]

    assert Classifier(all_labels, "obscene")("text").score == 0.7
    with pytest.raises(InputError, match="1 answers for 2"):
        Classifier(lambda texts: [True]).many(["a", "b"])
