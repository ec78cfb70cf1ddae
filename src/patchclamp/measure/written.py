"""What a model writes after prompts, as it is or under interventions: greedily, or drawn so that a seed repeats it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from patchclamp.core.errors import InputError
from patchclamp.intervene.kinds import Change, Interventions
from patchclamp.measure.continuations import prompt_ids
from patchclamp.measure.generation import generate
from patchclamp.measure.sampling import sampled
from patchclamp.measure.task_scores import tokenizer_of

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

Row = tuple[int, ...]


def written(
    model: LanguageModel,
    prompts: str | Sequence[str],
    changes: Change | Interventions | None = None,
    *,
    max_new_tokens: int = 50,
    sample: bool = False,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_tokens: int = 4096,
) -> list[str]:
    """The new text after each prompt, up to the end of text or max_new_tokens tokens.

    changes: interventions under which the model writes. sample: draw each token instead of taking the likeliest, from
    the distribution at this temperature, cut to the likeliest tokens that together have top_p of it. seed: of the drawing;
    a prompt draws with the same random numbers with and without changes, whatever else is generated.
    Changes that have a row for every prompt (masks, forced attention) are applied prompt by prompt, each with its row.
    Raises InputError for an empty prompt, one that is too long, another number of rows than prompts, and values out of range.
    """
    if max_new_tokens < 1:
        raise InputError(f"max_new_tokens={max_new_tokens}; at least 1 is needed")
    if seed < 0:
        raise InputError(f"seed={seed}; a whole number from 0 is needed")
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not all(texts):
        raise InputError("a prompt is empty; give some text to go on from")
    tokenizer = tokenizer_of(model)
    rows = prompt_ids(tokenizer, texts)
    for text, row in zip(texts, rows, strict=True):
        if len(row) + max_new_tokens > model.max_length:
            raise InputError(
                f"the prompt {text[-40:]!r} has {len(row)} tokens; with {max_new_tokens} new ones that is more than the "
                f"{model.max_length} that this model takes"
            )
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_tokens": batch_tokens}
    if sample:
        how |= {"top_p": top_p, "temperature": temperature, "seed": seed}
    new: list[list[int]] = []
    for part, under in _parts(rows, None if changes is None else Interventions.of(changes)):
        with contextlib.nullcontext() if under is None else under.applied(model):
            if sample:
                new += [one for (one,) in sampled(model, part, samples=1, **how)]
            else:
                new += generate(model, part, **how)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in new]


def _parts(rows: list[Row], changes: Interventions | None) -> Iterator[tuple[list[Row], Interventions | None]]:
    """Prompts and what is applied to them: all together, or one by one where changes have a row for every prompt."""
    if changes is None or all(item.n_rows is None for item in changes):
        yield rows, changes
        return
    for number, row in enumerate(rows):
        yield [row], Interventions(_of_row(item, number, len(rows)) for item in changes)


def _of_row(item: Change, number: int, n: int) -> Change:
    """A change for one prompt of n."""
    if item.n_rows is None:
        return item
    if item.n_rows != n:
        raise InputError(f"{n} prompts given, but this change has rows for {item.n_rows}: {item.describe()}")
    return item.of_rows([number])
