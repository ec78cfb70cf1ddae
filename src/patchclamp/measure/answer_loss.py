"""How surprised is the model by the right answer? The sensitive metric: it moves before any answer flips."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from patchclamp.data.task_items import TaskItem
from patchclamp.measure.task_measurement import measured
from patchclamp.measure.task_scores import Candidates, Ranking, metrics

if TYPE_CHECKING:
    from patchclamp.data.tasks import Task
    from patchclamp.measure.measurement import Measurement
    from patchclamp.models.load import LanguageModel


def answer_loss(
    model: LanguageModel,
    task: Task,
    *,
    normalise: str = "none",
    alternatives: bool = False,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Measurement:
    """Answer loss: mean over items of -log p(canonical answer | prompt), in nats; 0 is certainty.

    normalise: "none" for the whole answer, or nats per "tokens" or "characters" of it. alternatives: also after the other
    wordings, averaged per item.
    """
    return measured(model, task, AnswerLoss(alternatives, normalise), batch_tokens=batch_tokens, quiet=quiet)


@metrics.add("loss")
@dataclass(frozen=True)
class AnswerLoss(Ranking):
    """Negative log-likelihood of the canonical answer, nats."""

    metric: ClassVar[str] = "answer loss"

    def candidates(self, item: TaskItem) -> tuple[str, ...]:
        return item.answers[:1]

    def value(self, item: TaskItem, scored: Candidates) -> float:
        return -float(scored.normalised(self.normalise)[0])

    def details(self, item: TaskItem, scored: Candidates, tokenizer: Any) -> dict[str, Any]:
        return {"answer": item.answers[0], "answer_tokens": int(scored.lengths[0])}
