"""How often does a model write a concept? Sampled continuations of prompts, each judged; the share flagged, and at least once.

Shaik et al. 2025 (arXiv 2509.16660): 25 samples a prompt, nucleus 0.95, temperature 1, 20 new tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from patchclamp.core.errors import InputError
from patchclamp.core.provenance import provenance
from patchclamp.data.tasks import Task
from patchclamp.measure.concepts import Judge, verdicts
from patchclamp.measure.continuations import prompt_ids
from patchclamp.measure.generation import cut_at
from patchclamp.measure.measurement import Measurement, Measurements
from patchclamp.measure.sampling import sampled
from patchclamp.measure.task_scores import item_key, tokenizer_of

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

AVERAGE, ONCE = "average", "at least once"
METRIC, METRIC_ONCE = "concept rate", "concept rate, at least once"
KEPT = 3  # texts of an item that are kept


def concept_rate(
    model: LanguageModel,
    prompts: Task | Sequence[str],
    judge: Judge,
    *,
    samples: int = 25,
    max_new_tokens: int = 20,
    top_p: float = 0.95,
    temperature: float = 1.0,
    threshold: float | None = 0.5,
    stop: Sequence[str] = (),
    seed: int = 0,
    batch_tokens: int = 4096,
    quiet: bool = False,
) -> Measurements:
    """How often sampled continuations show a concept, under whatever interventions are active.

    prompts: a task or texts. judge: function of a continuation (see `measure.concepts`): True or False, a score from 0 to
    1, a verdict; or `Words([...])`, `Classifier(...)`. threshold: a text is flagged if its score exceeds it; None averages
    the scores as they are. stop: texts before the first of which a continuation ends. temperature=0, samples=1: greedy.

    Returns two measurements, one item per prompt: "average", the share of samples flagged, and "at least once", whether
    any of them is. Items keep the first few texts. Seeded, and independent of the batch; the same seed uses the same random
    numbers under every intervention, so that differences of two calls are paired.
    """
    task = task_of(prompts)
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold={threshold}; it lies between 0 and 1, or None for scores as they are")
    rows = prompt_ids(tokenizer_of(model), [item.prompt for item in task])
    new = sampled(
        model, rows, samples=samples, max_new_tokens=max_new_tokens, top_p=top_p, temperature=temperature, seed=seed,
        batch_tokens=batch_tokens, quiet=quiet,
    )  # fmt: skip
    decode = functools.partial(tokenizer_of(model).decode, skip_special_tokens=True)
    texts = [[cut_at(decode(ids), stop) for ids in several] for several in new]
    said = verdicts(judge, [text for several in texts for text in several])
    values = [one.score if threshold is None else float(one.flagged(threshold)) for one in said]
    scores = np.array(values, dtype=np.float64).reshape(len(task), samples)
    arguments = {
        "judge": getattr(judge, "__qualname__", repr(judge)), "samples": samples, "max_new_tokens": max_new_tokens,
        "top_p": top_p, "temperature": temperature, "threshold": threshold, "stop": list(stop),
        "batch_tokens": batch_tokens,
    }  # fmt: skip
    source = provenance(
        "measure.concept_rate",
        arguments=arguments,
        inputs={"model": dict(model.identity), "task": task.identity},
        seed=seed,
    )
    tokens = np.array([sum(map(len, several)) for several in new], dtype=np.int64)
    kinds = {AVERAGE: (METRIC, scores.mean(1)), ONCE: (METRIC_ONCE, scores.max(1))}
    return Measurements(
        {
            name: Measurement(
                metric,
                name,
                totals,
                np.ones(len(task), dtype=np.int64),
                task.fingerprint,
                scored=tokens,
                items=tuple(_kept(task, totals, scores, texts)),
                provenance=source,
            )
            for name, (metric, totals) in kinds.items()
        },
        source,
    )


def task_of(prompts: Task | Sequence[str]) -> Task:
    """Prompts as a task; what a right answer is doesn't matter here."""
    if isinstance(prompts, Task):
        return prompts
    if isinstance(prompts, str) or not all(isinstance(text, str) for text in prompts):
        raise InputError(f"{prompts!r:.60} given; prompts are a Task or a list of texts")
    return Task.of([{"prompt": text, "answer": "-"} for text in prompts], name="prompts")


def _kept(task: Task, totals: Any, scores: Any, texts: list[list[str]]) -> list[dict[str, Any]]:
    """What to keep of each prompt: the value, and the first few texts with their scores."""
    found = []
    for item, value, row, several in zip(task, totals, scores, texts, strict=True):
        written = [
            {"text": text, "score": float(score)} for text, score in zip(several[:KEPT], row[:KEPT], strict=True)
        ]
        found.append({**item_key(item), "value": float(value), "written": written})
    return found
