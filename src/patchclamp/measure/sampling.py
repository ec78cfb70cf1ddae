"""Sampled continuations that do not depend on the batch: nucleus sampling from one number per prompt, sample and step.

Each sample has its own stream of uniform numbers, drawn from the seed, the prompt's ids and the number of the sample; a
number picks the token by the inverse of the cumulated probabilities. So the same prompt gives the same text whatever stands
beside it (up to rounding of the logits), and the samples of a model and of the same model under an intervention use the same
numbers: what differs between them is the intervention.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.core.files import sha256_text
from patchclamp.core.progress import progress
from patchclamp.data.batches import Batch, Budget
from patchclamp.measure.generation import end_ids, left_padded

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel


def sampled(
    model: LanguageModel,
    rows: Sequence[Sequence[int]],
    *,
    samples: int = 25,
    max_new_tokens: int = 20,
    top_p: float = 0.95,
    temperature: float = 1.0,
    seed: int = 0,
    batch_tokens: int = 4096,
    quiet: bool = True,
) -> list[list[list[int]]]:
    """New ids of every sample of every row of prompt ids, up to the first end of sequence (left out).

    top_p: the smallest set of likeliest tokens whose probabilities reach it is kept; 1 keeps all. temperature: logits
    are divided by it; 0 takes the likeliest token. InputError for values out of range and prompts too long for the model.
    """
    if samples < 1 or max_new_tokens < 1:
        raise InputError(f"samples={samples}, max_new_tokens={max_new_tokens}; at least 1 of each is needed")
    if not 0 < top_p <= 1 or temperature < 0:
        raise InputError(
            f"top_p={top_p}, temperature={temperature}; top_p lies above 0 and at most at 1, temperature from 0"
        )
    for number, row in enumerate(rows):
        if not row or len(row) + max_new_tokens > model.max_length:
            raise InputError(
                f"prompt {number} has {len(row)} tokens; with {max_new_tokens} new ones the model takes 1 to {model.max_length}"
            )
    numbers = _numbers(rows, samples, max_new_tokens, seed)  # (rows * samples, steps)
    every = [row for row in rows for _ in range(samples)]
    found: list[list[int]] = [[] for _ in every]
    budget, ends = Budget(max(1, batch_tokens)), end_ids(model)
    with progress("sampling", len(every), unit="samples", quiet=quiet) as advance:
        for batch in left_padded(model, every, max_new_tokens, batch_tokens):
            new = budget.run(lambda part: _continued(model, part, numbers, top_p, temperature), batch)
            for number, ids in zip(batch.document.tolist(), (ids for part in new for ids in part), strict=True):
                found[number] = ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids))]
            advance(len(batch))
    return [found[start : start + samples] for start in range(0, len(found), samples)]


class Nucleus:
    """A logits processor that leaves one token per row: the one that the row's uniform number of this step picks.

    numbers: (batch, steps) float64 in [0, 1). prompt: columns of the prompts.
    """

    def __init__(self, numbers: Tensor, prompt: int, top_p: float, temperature: float) -> None:
        self.numbers, self.prompt, self.top_p, self.temperature = numbers, prompt, top_p, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(batch, vocabulary) scores that are 0 for the chosen token and -inf elsewhere."""
        chosen = picked(scores, self.numbers[:, input_ids.shape[1] - self.prompt], self.top_p, self.temperature)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)


def picked(logits: Tensor, numbers: Tensor, top_p: float, temperature: float) -> Tensor:
    """(batch,) int64: the token that each row's uniform number picks from the nucleus of its distribution.

    logits: (batch, vocabulary). numbers: (batch,) in [0, 1). Equal probabilities stand in the order of their ids.
    """
    wide = logits.float()
    if temperature == 0:
        return wide.argmax(-1)
    values, order = torch.sort(wide / temperature, dim=-1, descending=True, stable=True)
    shares = torch.softmax(values.double(), dim=-1)
    reached = shares.cumsum(-1)
    kept = reached - shares < top_p  # a token is in the nucleus if those before it do not reach top_p
    total = (shares * kept).sum(-1, keepdim=True)
    place = (reached <= numbers.to(reached)[:, None] * total).sum(-1, keepdim=True)
    place = torch.minimum(place, kept.sum(-1, keepdim=True) - 1)
    return order.gather(1, place)[:, 0]


def _numbers(rows: Sequence[Sequence[int]], samples: int, steps: int, seed: int) -> NDArray[np.float64]:
    """Uniform numbers per row and sample, (rows * samples, steps); a prompt given twice has two streams."""
    found, times = [], Counter[str]()
    for row in rows:
        key = sha256_text(",".join(map(str, row)))
        word = int(key[:16], 16)
        found += [np.random.default_rng([seed, word, times[key], sample]).random(steps) for sample in range(samples)]
        times[key] += 1
    return np.stack(found) if found else np.zeros((0, steps))


def _continued(
    model: LanguageModel, part: Batch, numbers: NDArray[np.float64], top_p: float, temperature: float
) -> list[list[int]]:
    mine = torch.from_numpy(numbers[part.document.cpu().numpy()]).to(part.input_ids.device)
    width = part.input_ids.shape[1]
    with torch.no_grad():
        out = model.hf.generate(
            part.input_ids,
            attention_mask=part.attention_mask,
            max_new_tokens=numbers.shape[1],
            do_sample=False,
            num_beams=1,
            pad_token_id=model.pad_id,
            logits_processor=[Nucleus(mine, width, top_p, temperature)],
        )
    new: list[list[int]] = out[:, width:].tolist()
    return new
