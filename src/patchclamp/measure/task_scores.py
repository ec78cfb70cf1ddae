"""From a task to one value per item under every run: what metrics by likelihood and by generation share.

A metric is a frozen dataclass of its options, registered by the name that `how=` takes. `Likelihood` is the base of
those that score given texts; they differ in which texts, and in what they make of the scores.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from patchclamp.core.errors import InputError
from patchclamp.core.registry import Registry
from patchclamp.data.batches import Budget
from patchclamp.data.task_items import TaskItem
from patchclamp.data.tasks import Task
from patchclamp.measure.continuation_rows import Rows, Scores
from patchclamp.measure.continuations import continuations
from patchclamp.measure.effect_runs import PLAIN, Run, over_runs

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

NORMALISE = ("none", "tokens", "characters")


@dataclass
class TaskScores:
    """Values of a metric by run. values: run key -> (n_items,) float64. tokens: (n_items,) int64, scored or generated
    under the plain run. items: what happened to each item under it, as plain data."""

    values: dict[str, NDArray[np.float64]]
    tokens: NDArray[np.int64]
    items: list[dict[str, Any]] = field(default_factory=list)


class TaskMetric(Protocol):
    """What `how=` names: a dataclass of options with the metric's name."""

    metric: ClassVar[str]

    def scores(
        self, model: LanguageModel, task: Task, runs: list[Run], *, batch_tokens: int, reuse: bool, quiet: bool
    ) -> TaskScores:
        """Values plain (key PLAIN: under the caller's own clamps) and under every run."""


metrics: Registry[Any] = Registry("metric", room="patchclamp.measure")


@dataclass(frozen=True)
class Candidates:
    """Scores of the candidates of one wording of an item, in order.

    totals: (n,) float64, log-probabilities in nats. lengths: (n,) tokens. matched: (n,) how many of them greedy decoding
    writes. said: what it writes instead of candidate i, ids up to and with the first that differs.
    """

    texts: tuple[str, ...]
    totals: NDArray[np.float64]
    lengths: NDArray[np.int64]
    matched: NDArray[np.int64]
    said: Callable[[int], list[int]]

    def normalised(self, by: str) -> NDArray[np.float64]:
        """Log-probabilities as they are, per token, or per character (spaces around a candidate don't count)."""
        if by == "tokens":
            return self.totals / self.lengths
        if by == "characters":
            return self.totals / np.array([max(1, len(text.strip())) for text in self.texts])
        return self.totals


@dataclass(frozen=True)
class Likelihood(ABC):
    """Metrics of given texts: teacher-forced, one forward pass over prompt and text.

    alternatives: also ask in the item's other wordings, and average the item's value over all of them.
    """

    alternatives: bool = False
    metric: ClassVar[str]

    @property
    def limit(self) -> int | None:
        """How many tokens of a candidate are scored; None for all."""
        return None

    @abstractmethod
    def candidates(self, item: TaskItem) -> tuple[str, ...]:
        """The texts to score; InputError for an item that can't be asked this way."""

    @abstractmethod
    def value(self, item: TaskItem, scored: Candidates) -> float:
        """The item's value from the scores of one wording."""

    @abstractmethod
    def details(self, item: TaskItem, scored: Candidates, tokenizer: Any) -> dict[str, Any]:
        """What else to keep of an item."""

    def scores(
        self, model: LanguageModel, task: Task, runs: list[Run], *, batch_tokens: int, reuse: bool, quiet: bool
    ) -> TaskScores:
        """Values plain and under every run; all of them from one pass over the batches."""
        texts = [self._texts(item, number) for number, item in enumerate(task)]
        prompts = [item.wordings if self.alternatives else item.wordings[:1] for item in task]
        pairs = [
            (prompt, text) for one, several in zip(prompts, texts, strict=True) for prompt in one for text in several
        ]
        asked = continuations(tokenizer_of(model), pairs, max_length=model.max_length)
        rows = Rows(model, [one.first(self.limit) for one in asked], task.name, batch_tokens)
        over_runs(model, rows, runs, budget=Budget(batch_tokens), scope="generated", reuse=reuse, quiet=quiet)
        wordings = [len(one) for one in prompts]
        plain = list(_by_item(rows.scores(PLAIN), texts, wordings))
        tokens = [sum(int(scored.lengths.sum()) for scored in several) for several in plain]
        items = [self._kept(item, several, model.tokenizer) for item, several in zip(task, plain, strict=True)]
        values = {
            key: np.array(
                [
                    np.mean([self.value(item, scored) for scored in several])
                    for item, several in zip(task, _by_item(rows.scores(key), texts, wordings), strict=True)
                ]
            )
            for key in rows.found
        }
        return TaskScores(values, np.array(tokens, dtype=np.int64), items)

    def _texts(self, item: TaskItem, number: int) -> tuple[str, ...]:
        try:
            return self.candidates(item)
        except InputError as problem:
            raise InputError(f"item {number} ({item.prompt[:40]!r}): {problem}") from problem

    def _kept(self, item: TaskItem, several: list[Candidates], tokenizer: Any) -> dict[str, Any]:
        values = [self.value(item, scored) for scored in several]
        kept = {**item_key(item), "value": float(np.mean(values)), **self.details(item, several[0], tokenizer)}
        return {**kept, "values": values} if len(values) > 1 else kept


@dataclass(frozen=True)
class Ranking(Likelihood):
    """Metrics that compare or report log-probabilities of whole texts.

    normalise: "none", or divided by the text's "tokens" or "characters". InputError for another one.
    """

    normalise: str = "none"

    def __post_init__(self) -> None:
        if self.normalise not in NORMALISE:
            raise InputError(f"normalise={self.normalise!r}; it is one of {', '.join(NORMALISE)}")


def _by_item(scores: Scores, texts: Sequence[tuple[str, ...]], wordings: Sequence[int]) -> Iterator[list[Candidates]]:
    """Per item its Candidates, one for each wording."""
    totals, lengths, matched, start = scores.totals, scores.lengths, scores.matched, 0
    for candidates, number in zip(texts, wordings, strict=True):
        found = []
        for _ in range(number):
            part = slice(start, start + len(candidates))
            said = functools.partial(_said, scores, start)
            found.append(Candidates(candidates, totals[part], lengths[part], matched[part], said))
            start += len(candidates)
        yield found


def _said(scores: Scores, start: int, number: int) -> list[int]:
    return scores.said(start + number)


def item_key(item: TaskItem) -> dict[str, Any]:
    """What says which item a result belongs to."""
    named = {} if item.id is None else {"id": item.id}
    return {**named, "prompt": item.prompt, "labels": dict(item.labels)}


def options_of(metric: Any) -> dict[str, Any]:
    """A metric's options as plain data."""
    return {key: getattr(value, "__qualname__", value) for key, value in asdict(metric).items()}


def tokenizer_of(model: LanguageModel) -> Any:
    """The model's tokenizer; InputError without one."""
    if model.tokenizer is None:
        raise InputError(f"{model.name} came without a tokenizer; give one: load(..., tokenizer=...)")
    return model.tokenizer
