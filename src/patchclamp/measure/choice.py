"""Is the right choice the likeliest? Accuracy over multiple-choice items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.data.task_items import TaskItem
from patchclamp.measure.task_measurement import measured
from patchclamp.measure.task_scores import Candidates, Ranking, metrics

if TYPE_CHECKING:
    from patchclamp.data.tasks import Task
    from patchclamp.measure.measurement import Measurement
    from patchclamp.models.load import LanguageModel


def choice(
    model: LanguageModel,
    task: Task,
    *,
    normalise: str = "none",
    alternatives: bool = False,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Measurement:
    """Choice accuracy: the share of items whose likeliest choice is right, under whatever interventions are active.

    A choice's likelihood is the sum of the log-probabilities of its tokens after the prompt; normalise: "none", or
    divided by its "tokens" or "characters". Of equally likely choices the first counts. alternatives: ask in the other
    wordings too and average per item. Items keep the choices' scores and the chance level.
    Raises InputError for items without choices and items longer than the model takes.
    """
    return measured(model, task, Choice(alternatives, normalise), batch_tokens=batch_tokens, quiet=quiet)


@metrics.add("choice")
@dataclass(frozen=True)
class Choice(Ranking):
    """Is the likeliest of the choices a right one? (1 or 0 per item)"""

    metric: ClassVar[str] = "choice accuracy"

    def candidates(self, item: TaskItem) -> tuple[str, ...]:
        if not item.choices:
            raise InputError("it has no choices; give choices, or measure completion, generation or answer loss")
        return item.choices

    def value(self, item: TaskItem, scored: Candidates) -> float:
        return float(item.right[self._best(scored)])

    def details(self, item: TaskItem, scored: Candidates, tokenizer: Any) -> dict[str, Any]:
        return {
            "chosen": item.choices[self._best(scored)],
            "answer": item.answers[0],
            "choices": list(item.choices),
            "scores": scored.normalised(self.normalise).tolist(),
            "chance": sum(item.right) / len(item.choices),
        }

    def _best(self, scored: Candidates) -> int:
        return int(np.argmax(scored.normalised(self.normalise)))
