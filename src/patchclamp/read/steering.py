"""Steering for readings: text that is written while a direction is added at every position, one direction per sequence.

Directions and strengths come from `patchclamp.intervene.strengths`; here continuations are drawn so that what is drawn
depends on seed and number alone, and strengths are compared on the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.intervene.strengths import prompt_ids, steered
from patchclamp.measure.generation import end_ids
from patchclamp.models.hooks import Tap

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def write(
    model: LanguageModel,
    tap: Tap,
    vectors: Tensor,
    prompt: str,
    numbers: Sequence[int],
    *,
    new_tokens: int = 50,
    top_k: int = 30,
    top_p: float = 0.3,
    temperature: float = 1.0,
    batch_rows: int = 64,
    seed: int = 0,
) -> list[list[int]]:
    """One sampled continuation per row of `vectors` (n, width), added at every position; new ids up to the end of text.

    numbers: of the samples, one per row: what is drawn depends on seed and number alone, not on the batch. Rows of one
    number share their random numbers, so that a strength is compared with another on the same draws.
    """
    if new_tokens < 1 or top_k < 1 or not 0 < top_p <= 1 or temperature <= 0:
        raise InputError(
            f"new_tokens={new_tokens}, top_k={top_k}, top_p={top_p}, temperature={temperature} given; "
            "new_tokens and top_k are at least 1, top_p lies in (0, 1], temperature above 0"
        )
    ids = prompt_ids(model, prompt)
    if ids.shape[1] + new_tokens > model.max_length:
        raise InputError(
            f"the prompt and {new_tokens} new tokens are more than the {model.max_length} this model takes"
        )
    ends = end_ids(model)
    found: list[list[int]] = []
    for start in range(0, len(vectors), batch_rows):
        part = vectors[start : start + batch_rows]
        draw = _Draw(seed, numbers[start : start + batch_rows], new_tokens, top_k, top_p, temperature, ids.shape[1])
        rows = ids.expand(len(part), -1)
        with steered(model, tap, part), torch.no_grad():
            out: Any = model.hf.generate(
                rows, attention_mask=torch.ones_like(rows), max_new_tokens=new_tokens, do_sample=False,
                pad_token_id=model.pad_id, logits_processor=[draw],
            )  # fmt: skip
        for row in out[:, ids.shape[1] :].tolist():
            found.append(row[: next((at for at, token in enumerate(row) if token in ends), len(row))])
    return found


class _Draw:
    """Top-k, top-p sampling as a processor of logits: Gumbel noise that each sample owns, then the largest wins."""

    def __init__(
        self, seed: int, numbers: Sequence[int], steps: int, top_k: int, top_p: float, temperature: float, prompt: int
    ) -> None:
        self.top_p, self.temperature, self.prompt, self.top_k = top_p, temperature, prompt, top_k
        noise = [np.random.default_rng([seed, number]).gumbel(size=(steps, top_k)) for number in numbers]
        self.noise = torch.from_numpy(np.stack(noise)).float()

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        k = min(self.top_k, scores.shape[-1])
        values, where = (scores.float() / self.temperature).topk(k, dim=-1)
        before = values.softmax(-1).cumsum(-1) - values.softmax(-1)
        values = values.masked_fill(before >= self.top_p, float("-inf"))  # the first always stays
        drawn = values + self.noise[:, ids.shape[1] - self.prompt, :k].to(values.device)
        chosen = where.gather(1, drawn.argmax(-1, keepdim=True))
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)
