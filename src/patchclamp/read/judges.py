"""Judges of steered text: does it show the concept, is it still fluent? Both from 0 to 2, as in the paper's rubric.

A judge is any function (concept, prompt, texts) -> one (concept score, fluency score) per text. `OfflineJudge` needs no
other model: token statistics of the concept's own texts, and the plain model's likelihood. `AskingJudge` puts the
paper's two questions to whatever answers text (`endpoint_judge`: an OpenAI-compatible endpoint through litellm).
Shafran, Geiger, Geva 2025 (arXiv 2506.10920) ask gpt-4o-mini.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional as F

from patchclamp.core.errors import Error, InputError
from patchclamp.data.batches import Batch, Tokens, padded
from patchclamp.intervene.strengths import prompt_ids

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.read.concept import Concept

BEST = 2.0
QUESTIONS = {
    "concept": (
        "Rate how strongly the text shows the concept.\n"
        "0: not at all. 1: somewhat, or in part. 2: clearly.\n"
        "Concept: {concept}\nText: {text}\n"
        "Answer with one number, 0, 1 or 2.\nRating:"
    ),
    "fluency": (
        "Rate how fluent the text is, whatever it is about.\n"
        "0: broken or endlessly repeated. 1: readable with clear faults. 2: fluent.\n"
        "Text: {text}\n"
        "Answer with one number, 0, 1 or 2.\nRating:"
    ),
}
_BATCH_TOKENS = 4096
_RATING = re.compile(r"(?<!\d)(?<!\d\.)[012](?!\d|\.\d)")


class Judge(Protocol):
    """(concept, prompt, continuations of the prompt) -> (concept score, fluency score) of each, both from 0 to 2."""

    def __call__(self, concept: Concept, prompt: str, texts: Sequence[str]) -> list[tuple[float, float]]: ...


class OfflineJudge:
    """Concept by the tokens of its texts, fluency by the plain model's likelihood; no other model is asked.

    concept score: 2 * max(0, 2 p - 1), p the probability of the concept by a naive Bayes classifier of tokens between the
    concept's texts and its neutral ones (Laplace 1, equal priors, tempered to `evidence` tokens so that long texts don't
    saturate). So a text that speaks for neither, or is of tokens that neither has, scores 0.
    fluency score: 2 * min(1, exp(baseline - nll)), nll the mean negative log-likelihood per token of the continuation
    under the model without steering, baseline that of the texts that the concept was given with. An empty text scores 0.
    """

    def __init__(self, model: LanguageModel, *, evidence: int = 4) -> None:
        if evidence < 1:
            raise InputError(f"evidence={evidence} given; at least 1 token counts")
        self.model, self.evidence = model, evidence
        self._known: dict[str, dict[int, float]] = {}
        self._unseen: dict[str, float] = {}
        self._baseline: dict[str, float] = {}

    def __call__(self, concept: Concept, prompt: str, texts: Sequence[str]) -> list[tuple[float, float]]:
        fluent = self.fluency(concept, prompt, texts)
        return [(self.shows(concept, text), value) for text, value in zip(texts, fluent, strict=True)]

    def shows(self, concept: Concept, text: str) -> float:
        """The concept score of one text, 0 to 2."""
        ids = self._ids(text)
        if not ids:
            return 0.0
        weights = self._weights(concept)
        mean = sum(weights.get(token, self._unseen[concept.name]) for token in ids) / len(ids)
        odds = max(-50.0, min(50.0, mean * min(len(ids), self.evidence)))
        return BEST * max(0.0, 2 / (1 + math.exp(-odds)) - 1)

    def fluency(self, concept: Concept, prompt: str, texts: Sequence[str]) -> list[float]:
        """The fluency score of each continuation, 0 to 2."""
        if concept.name not in self._baseline:
            own = [value for value in self.nll("", [*concept.positives, *concept.neutrals]) if math.isfinite(value)]
            if not own:
                raise InputError(f"the texts of the concept {concept.name!r} have no token that the model predicts")
            self._baseline[concept.name] = sum(own) / len(own)
        baseline = self._baseline[concept.name]
        return [BEST * min(1.0, math.exp(min(0.0, baseline - value))) for value in self.nll(prompt, texts)]

    def nll(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """Mean negative log-likelihood (nats) per token of each text after the prompt; infinite for an empty text."""
        first = prompt_ids(self.model, prompt)[0].tolist() if prompt else []
        rows = [[*first, *(self._ids(text) if first else self.model.tokenize(text))] for text in texts]
        found = [math.inf] * len(rows)
        skip = len(first) if first else 1
        order = [number for number in sorted(range(len(rows)), key=lambda i: -len(rows[i])) if len(rows[number]) > skip]
        while order:
            count = max(1, _BATCH_TOKENS // len(rows[order[0]]))
            part, order = order[:count], order[count:]
            pieces = [Tokens(rows[number][: self.model.max_length], None, number, 0) for number in part]
            batch = padded(pieces, pad_id=self.model.pad_id).to(self.model.device)
            for number, value in zip(part, self._losses(batch, skip), strict=True):
                found[number] = value
        return found

    def _losses(self, batch: Batch, skip: int) -> list[float]:
        logits = self.model.logits(batch.input_ids, batch.attention_mask)[:, skip - 1 : -1].float()
        wanted, real = batch.input_ids[:, skip:], batch.attention_mask[:, skip:].bool()
        with torch.inference_mode():
            losses = F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").double()
        sums, counts = (losses * real).sum(1), real.sum(1).clamp_min(1)
        return [float(value) for value in (sums / counts).cpu()]

    def _weights(self, concept: Concept) -> dict[int, float]:
        """token -> log-odds of the concept; of tokens in neither text: `_unseen`."""
        if concept.name not in self._known:
            counts = [
                Counter(token for text in texts for token in self._ids(text))
                for texts in (concept.positives, concept.neutrals)
            ]
            vocabulary = {*counts[0], *counts[1]}
            totals = [sum(count.values()) + len(vocabulary) + 1 for count in counts]
            self._unseen[concept.name] = 0.0  # a token that neither kind of text has says nothing
            self._known[concept.name] = {
                token: math.log((counts[0][token] + 1) / totals[0]) - math.log((counts[1][token] + 1) / totals[1])
                for token in vocabulary
            }
        return self._known[concept.name]

    def _ids(self, text: str) -> list[int]:
        if self.model.tokenizer is None:
            raise InputError("this model has no tokenizer, so its texts can't be judged; load it with tokenizer=...")
        return list(self.model.tokenizer(text, add_special_tokens=False)["input_ids"])


class AskingJudge:
    """Puts the paper's two rating questions to a function text -> text; the first of 0, 1, 2 in the answer counts.

    Raises Error for an answer without a rating.
    """

    def __init__(self, answer: Callable[[str], str], questions: dict[str, str] | None = None) -> None:
        if not callable(answer):
            raise InputError(f"a judge needs a function that answers a text with a text, not {type(answer).__name__}")
        self.answer, self.questions = answer, {**QUESTIONS, **(questions or {})}

    def __call__(self, concept: Concept, prompt: str, texts: Sequence[str]) -> list[tuple[float, float]]:
        said = concept.description or concept.name
        return [
            (self._rated("concept", concept=said, text=prompt + text), self._rated("fluency", concept=said, text=prompt + text))
            for text in texts
        ]  # fmt: skip

    def _rated(self, question: str, **values: str) -> float:
        answer = str(self.answer(self.questions[question].format(**values)))
        found = _RATING.search(answer)
        if found is None:
            raise Error(f"the judge answered {answer[:80]!r} to the {question} question; a rating 0, 1 or 2 is needed")
        return float(found[0])


def endpoint_judge(model: str, **arguments: Any) -> AskingJudge:
    """A judge behind an OpenAI-compatible endpoint, at temperature 0.

    model: as litellm names it; arguments: of `litellm.completion` (api_base, ...). Raises InputError without litellm.
    """
    try:
        import litellm
    except ImportError as problem:
        raise InputError("an endpoint as judge needs the package litellm; install it, or use OfflineJudge") from problem

    def answer(text: str) -> str:
        said = litellm.completion(model=model, messages=[{"role": "user", "content": text}], temperature=0, **arguments)
        return str(said.choices[0].message.content)

    return AskingJudge(answer)


def checked(judge: Judge, concept: Concept, prompt: str, texts: Sequence[str]) -> list[tuple[float, float]]:
    """A judge's verdicts, made sure of: one pair per text, each from 0 to 2."""
    given = judge(concept, prompt, texts)
    verdicts = [(float(shown), float(fluent)) for shown, fluent in given]
    wrong = [pair for pair in verdicts if not all(0 <= value <= BEST for value in pair)]
    if len(verdicts) != len(texts) or wrong:
        what = f"{len(verdicts)} verdicts for {len(texts)} texts" if not wrong else f"the scores {wrong[0]}"
        raise InputError(f"the judge gave {what}; one pair of numbers from 0 to 2 per text is needed")
    return verdicts


def harmonic(shown: float, fluent: float) -> float:
    """The final score of a text: harmonic mean of both, 0 if either is 0."""
    return 0.0 if shown <= 0 or fluent <= 0 else 2 * shown * fluent / (shown + fluent)
