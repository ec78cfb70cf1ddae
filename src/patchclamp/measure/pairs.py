"""Is the good sentence of a minimal pair likelier than the bad one?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from patchclamp.core.errors import InputError
from patchclamp.data.task_items import TaskItem
from patchclamp.measure.task_measurement import measured
from patchclamp.measure.task_scores import Candidates, Ranking, metrics

if TYPE_CHECKING:
    from patchclamp.data.tasks import Task
    from patchclamp.measure.measurement import Measurement
    from patchclamp.models.load import LanguageModel


def pairs(
    model: LanguageModel,
    task: Task,
    *,
    normalise: str = "none",
    alternatives: bool = False,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Measurement:
    """Pair accuracy: the share of minimal pairs whose good text is likelier than the bad one; a tie is not enough.

    Every item has two choices, one of them right; a shared prompt is read before both. normalise, alternatives: as in
    `choice`. Items keep the margin, log p(good) - log p(bad) in nats (normalised likewise).
    Source: Warstadt et al. 2020, BLiMP, arXiv:1912.00582 (the full-sentence method, normalise="none").
    """
    return measured(model, task, Pairs(alternatives, normalise), batch_tokens=batch_tokens, quiet=quiet)


@metrics.add("pairs")
@dataclass(frozen=True)
class Pairs(Ranking):
    """Is the good text of a minimal pair likelier than the bad one? (1 or 0 per item)"""

    metric: ClassVar[str] = "pair accuracy"

    def candidates(self, item: TaskItem) -> tuple[str, ...]:
        if len(item.choices) != 2:
            raise InputError(f"it has {len(item.choices)} choices; a minimal pair has two, a good and a bad one")
        return item.choices

    def value(self, item: TaskItem, scored: Candidates) -> float:
        return float(self._margin(item, scored) > 0)

    def details(self, item: TaskItem, scored: Candidates, tokenizer: Any) -> dict[str, Any]:
        good = item.right.index(True)
        return {"good": item.choices[good], "bad": item.choices[1 - good], "margin": self._margin(item, scored)}

    def _margin(self, item: TaskItem, scored: Candidates) -> float:
        good, values = item.right.index(True), scored.normalised(self.normalise)
        return float(values[good] - values[1 - good])
