"""Does greedy decoding write the answer? All of it, or its first k tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from patchclamp.core.errors import InputError
from patchclamp.data.task_items import TaskItem
from patchclamp.measure.task_measurement import measured
from patchclamp.measure.task_scores import Candidates, Likelihood, metrics

if TYPE_CHECKING:
    from patchclamp.data.tasks import Task
    from patchclamp.measure.measurement import Measurement
    from patchclamp.models.load import LanguageModel


def completion(
    model: LanguageModel,
    task: Task,
    *,
    tokens: int | None = None,
    alternatives: bool = False,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Measurement:
    """Completion accuracy: the share of items that the model completes with a right answer, token by token, greedily.

    tokens: 1 asks whether the first token of an answer is the likeliest of the vocabulary, k for the first k tokens (all
    of an answer that has no more), None for the whole answer. Any of the right answers counts. No answer is fed to the
    model that it would not have written itself: token t is right only if the ones before it were, so one forward pass
    over prompt and answer says what decoding step by step would. Items keep what was written up to the first other token.
    Raises InputError for fewer than 1 tokens and items longer than the model takes.
    """
    return measured(model, task, Completion(alternatives, tokens), batch_tokens=batch_tokens, quiet=quiet)


@metrics.add("completion")
@dataclass(frozen=True)
class Completion(Likelihood):
    """Does greedy decoding write a right answer, or its first k tokens? (1 or 0 per item)"""

    tokens: int | None = None
    metric: ClassVar[str] = "completion accuracy"

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise InputError(f"tokens={self.tokens}; at least 1 token is compared, or None for the whole answer")

    @property
    def limit(self) -> int | None:
        return self.tokens

    def candidates(self, item: TaskItem) -> tuple[str, ...]:
        return item.answers

    def value(self, item: TaskItem, scored: Candidates) -> float:
        return float((scored.matched == scored.lengths).any())

    def details(self, item: TaskItem, scored: Candidates, tokenizer: Any) -> dict[str, Any]:
        nearest = int((scored.matched - scored.lengths).argmax())
        return {
            "answer": item.answers[nearest],
            "written": tokenizer.decode(scored.said(nearest)),
            "matched_tokens": int(scored.matched[nearest]),
            "answer_tokens": int(scored.lengths[nearest]),
        }
