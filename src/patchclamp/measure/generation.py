"""Does the model write a right answer when it is left to go on? Greedy generation, judged by a checker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.progress import progress
from patchclamp.data.batches import Batch, Budget, Tokens, padded
from patchclamp.data.tasks import Task
from patchclamp.measure.checkers import Checker, checked, checker_of
from patchclamp.measure.continuations import prompt_ids
from patchclamp.measure.effect_runs import PLAIN, Run
from patchclamp.measure.task_measurement import measured
from patchclamp.measure.task_scores import TaskScores, item_key, metrics, tokenizer_of

if TYPE_CHECKING:
    from patchclamp.measure.measurement import Measurement
    from patchclamp.models.load import LanguageModel


def generation(
    model: LanguageModel,
    task: Task,
    *,
    checker: str | Checker = "exact",
    max_new_tokens: int = 16,
    stop: Sequence[str] = ("\n",),
    alternatives: bool = False,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Measurement:
    """Checked accuracy: the share of items whose greedy continuation a checker finds right (or its mean verdict).

    checker: "exact" (a right answer, punctuation around it aside), "contains", "number" (the first one), or a function
    (text, item) -> bool or number. stop: a text ends before the first of these, spaces and line breaks at its beginning
    aside. alternatives: also after the other wordings, averaged per item. Items keep what was written.
    """
    metric = Generation(checker, max_new_tokens, tuple(stop), alternatives)
    return measured(model, task, metric, batch_tokens=batch_tokens, quiet=quiet)


@metrics.add("generation")
@dataclass(frozen=True)
class Generation:
    """Does a checker find the greedy continuation right? (exact, contains, number, or a function)"""

    checker: str | Checker = "exact"
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ("\n",)
    alternatives: bool = False
    metric: ClassVar[str] = "checked accuracy"

    def __post_init__(self) -> None:
        checker_of(self.checker)
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens={self.max_new_tokens}; at least 1 is needed")
        if isinstance(self.stop, str) or not all(self.stop):
            raise InputError(f"stop={self.stop!r}; give a list of texts that aren't empty")

    def scores(
        self, model: LanguageModel, task: Task, runs: list[Run], *, batch_tokens: int, reuse: bool, quiet: bool
    ) -> TaskScores:
        """Values plain and under every run; generation shares nothing between runs, so `reuse` has no meaning."""
        check = checker_of(self.checker)
        prompts = [prompt for item in task for prompt in (item.wordings if self.alternatives else item.wordings[:1])]
        first = np.cumsum([0] + [len(item.wordings) if self.alternatives else 1 for item in task])
        rows = self._rows(model, prompts)
        found: dict[str, NDArray[np.float64]] = {}
        with progress(
            f"generating for {task.name}", len(rows) * (len(runs) + 1), unit="prompts", quiet=quiet
        ) as advance:
            for key, run in ((PLAIN, None), *((run.key, run) for run in runs)):
                with contextlib.nullcontext() if run is None else run.prepared.applied():
                    new = generate(
                        model, rows, max_new_tokens=self.max_new_tokens, batch_tokens=batch_tokens, done=self._done
                    )
                texts = [self._cut(tokenizer_of(model).decode(ids, skip_special_tokens=True)) for ids in new]
                said = [
                    [checked(check, text, item) for text in texts[start:stop]]
                    for item, start, stop in zip(task, first[:-1], first[1:], strict=True)
                ]
                found[key] = np.array([np.mean(values) for values in said])
                if run is None:
                    tokens = np.add.reduceat([len(ids) for ids in new], first[:-1]).astype(np.int64)
                    kept = zip(task, said, first[:-1], strict=True)
                    items = [self._kept(item, values, texts[start]) for item, values, start in kept]
                advance(len(rows))
        return TaskScores(found, tokens, items)

    def _rows(self, model: LanguageModel, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        rows = prompt_ids(tokenizer_of(model), prompts)
        for prompt, row in zip(prompts, rows, strict=True):
            if len(row) + self.max_new_tokens > model.max_length:
                raise InputError(
                    f"the prompt {prompt[-40:]!r} has {len(row)} tokens; with {self.max_new_tokens} new ones that is more "
                    f"than the {model.max_length} that this model takes"
                )
        return rows

    def _cut(self, text: str) -> str:
        """The text up to the first stop; spaces and line breaks at its beginning are no stop, and are left out."""
        return cut_at(text.lstrip(), self.stop)

    def _done(self, text: str) -> bool:
        return self._cut(text) != text.lstrip()

    def _kept(self, item: Any, values: list[float], text: str) -> dict[str, Any]:
        kept = {**item_key(item), "value": float(np.mean(values)), "answer": item.answers[0], "written": text}
        return {**kept, "values": values} if len(values) > 1 else kept


def cut_at(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def generate(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_tokens: int = 4096,
    done: Callable[[str], bool] | None = None,
    **arguments: Any,
) -> list[list[int]]:
    """New ids after each row of ids, greedily, up to the first end of sequence (left out).

    done: whether a text written so far is enough; a row ends with the token that makes it so.

    Prompts of like length make a batch of at most batch_tokens positions, new ones included. Where a model can't be
    padded on the left (its check on load says so), only prompts of the same length share one, so that nothing is padded.
    arguments: those of transformers' `generate`.
    """
    found: list[list[int]] = [[] for _ in rows]
    budget = Budget(max(1, batch_tokens))
    ends, stopped = end_ids(model), Stopped(model.tokenizer, done)
    for batch in left_padded(model, rows, max_new_tokens, batch_tokens):
        new = budget.run(lambda part: _continued(model, part, max_new_tokens, stopped, arguments), batch)
        for number, ids in zip(batch.document.tolist(), (ids for part in new for ids in part), strict=True):
            ids = ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
            found[number] = stopped.shortened(ids)
    return found


class Stopped:
    """Which rows have written enough; called after every step of a generation."""

    def __init__(self, tokenizer: Any, done: Callable[[str], bool] | None) -> None:
        self.tokenizer, self.done, self.prompt = tokenizer, done, 0

    def __call__(self, ids: Tensor, scores: Any, **more: Any) -> Tensor:
        """(batch,) bool for ids (batch, length so far)."""
        done = [self.holds(row) for row in ids[:, self.prompt :].tolist()]
        return torch.tensor(done, dtype=torch.bool, device=ids.device)

    def holds(self, ids: list[int]) -> bool:
        """Whether the text of these ids is enough."""
        return self.done is not None and self.done(self.tokenizer.decode(ids, skip_special_tokens=True))

    def shortened(self, ids: list[int]) -> list[int]:
        """The ids up to the one that makes it enough: how far a row was carried on depends on its batch."""
        if not self.holds(ids):
            return ids
        return ids[: next(length for length in range(1, len(ids) + 1) if self.holds(ids[:length]))]


def left_padded(
    model: LanguageModel, rows: Sequence[Sequence[int]], max_new_tokens: int, batch_tokens: int
) -> Iterator[Batch]:
    """Batches of rows of ids to continue, longest first, padded on the left; `document` is the number of the row."""
    paddable = not any(check.name == "left padding" for check in getattr(model.report, "warnings", ()))
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), number))
    start = 0
    while start < len(order):
        longest = len(rows[order[start]])
        size = max(1, batch_tokens // (longest + max_new_tokens))
        chosen = order[start : start + size]
        if not paddable:
            chosen = [number for number in chosen if len(rows[number]) == longest]
        pieces = [Tokens(list(rows[number]), None, number, 0) for number in chosen]
        yield padded(pieces, pad_id=model.pad_id, side="left").to(model.device)
        start += len(chosen)


def _continued(
    model: LanguageModel, part: Batch, max_new_tokens: int, stopped: Stopped, arguments: dict[str, Any]
) -> list[list[int]]:
    settings = {"do_sample": False, "pad_token_id": model.pad_id, **arguments}
    stopped.prompt = part.input_ids.shape[1]
    if stopped.done is not None:
        settings["stopping_criteria"] = [stopped]
    with torch.no_grad():
        out = model.hf.generate(
            part.input_ids, attention_mask=part.attention_mask, max_new_tokens=max_new_tokens, **settings
        )
    new: list[list[int]] = out[:, part.input_ids.shape[1] :].tolist()
    return new


def end_ids(model: LanguageModel) -> set[int]:
    """The tokens that end a text."""
    ids = getattr(model.hf.generation_config, "eos_token_id", None)
    return set(ids) if isinstance(ids, list | tuple) else set() if ids is None else {int(ids)}
