"""Steering: add a direction to the activations of one place at every position, as strongly as a given change of output.

Different directions are given to the rows of one batch, so that many features and strengths run side by side. Strengths
are matched by effect: alpha such that KL(plain || steered) of the next token after a base prompt reaches a target
(Shafran et al. 2025, arXiv 2506.10920), so that directions of different sites and lengths compare.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from patchclamp.core.errors import InputError
from patchclamp.measure.likelihood import LOGITS
from patchclamp.models.hooks import Seen, Tap, change

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

TARGETS = (0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5)  # nats, of the paper's code
RANGE = (1e-2, 1e4)  # alphas tried
GRID, HALVINGS = 25, 14
WITHIN = 0.01  # of the target, nats: how far a matched strength may miss


@contextlib.contextmanager
def steered(model: LanguageModel, tap: Tap, vectors: Tensor) -> Iterator[None]:
    """Add row b of `vectors` (batch, width) to the activations of sequence b, at every position, prompt and generated."""
    ready: dict[torch.device, Tensor] = {}

    def add(seen: Seen) -> Tensor:
        device = seen.values.device
        if device not in ready:
            ready[device] = vectors.to(device, torch.float32)
        if seen.step.batch != len(vectors):
            raise InputError(f"{len(vectors)} directions given for a batch of {seen.step.batch} sequences")
        rows = torch.arange(len(seen.values), device=device) if seen.rows is None else seen.rows
        part = ready[device][:, seen.offset : seen.offset + seen.values.shape[1]]
        return (seen.values.float() + part[rows // seen.step.seq]).to(seen.values.dtype)

    with change(model, {tap: add}):
        yield


@dataclass(frozen=True, eq=False)
class Strengths:
    """Matched strengths. alphas: (directions, targets) float64, NaN where no strength reaches the target; kl: what they do."""

    targets: tuple[float, ...]
    alphas: Tensor
    kl: Tensor

    @property
    def reached(self) -> Tensor:
        """(directions, targets) bool: whether the strength's effect is within 0.01 nats of the target."""
        goal = torch.tensor(self.targets, dtype=torch.float64)
        return (self.kl - goal).abs() <= WITHIN


def match_kl(
    model: LanguageModel,
    tap: Tap,
    directions: Tensor,
    prompt: str = "I think that",
    *,
    targets: Sequence[float] = TARGETS,
    between: tuple[float, float] = RANGE,
) -> Strengths:
    """For every direction (n, width) and target the least alpha whose effect on the next token reaches the target.

    A log-spaced grid finds the first crossing (the effect need not grow with alpha), then bisection. Raises InputError
    for targets that are not positive and for directions that are zero or not finite.
    """
    wanted = tuple(float(target) for target in targets)
    if not wanted or min(wanted) <= 0:
        raise InputError(f"targets {list(targets)} given; a target is a KL divergence in nats, above 0")
    if not 0 < between[0] < between[1]:
        raise InputError(f"strengths between {between[0]} and {between[1]} asked for; give two rising positive numbers")
    if not bool(torch.isfinite(directions).all()) or not bool((directions != 0).any(1).all()):
        raise InputError("a direction to steer with is zero or not finite")
    effect = _Effect(model, tap, prompt)
    lowest, highest = (math.log10(bound) for bound in between)
    grid = torch.logspace(lowest, highest, GRID, dtype=torch.float64)
    n = len(directions)
    seen = effect.of(directions.repeat_interleave(GRID, 0), grid.repeat(n)).view(n, 1, GRID)
    above = seen >= torch.tensor(wanted, dtype=torch.float64)[None, :, None]
    met = above.any(2)
    first = above.double().argmax(2)
    high = grid[first]
    low = torch.where(first > 0, grid[(first - 1).clamp_min(0)], torch.zeros_like(high))
    which, goal = (~torch.isnan(high) & met).nonzero(as_tuple=True)
    a, b = low[which, goal], high[which, goal]
    goals = torch.tensor(wanted, dtype=torch.float64)[goal]
    for _ in range(HALVINGS):
        middle = torch.where(a > 0, (a * b).sqrt(), b / 2)
        over = effect.of(directions[which], middle) >= goals
        a, b = torch.where(over, a, middle), torch.where(over, middle, b)
    alphas = torch.full((n, len(wanted)), float("nan"), dtype=torch.float64)
    kl = alphas.clone()
    alphas[which, goal] = b
    kl[which, goal] = effect.of(directions[which], b)
    return Strengths(wanted, alphas, kl)


class _Effect:
    """KL(plain || steered) of the token after a prompt."""

    def __init__(self, model: LanguageModel, tap: Tap, prompt: str) -> None:
        self.model, self.tap = model, tap
        self.ids = prompt_ids(model, prompt)
        vocabulary = int(model.hf.config.get_text_config().vocab_size)
        self.rows = max(1, min(256, LOGITS // (4 * vocabulary * self.ids.shape[1])))
        self.plain = F.log_softmax(model.logits(self.ids)[:, -1].float(), dim=-1)

    def of(self, directions: Tensor, alphas: Tensor) -> Tensor:
        """(n,) float64 for directions (n, width) times alphas (n,)."""
        found = []
        for start in range(0, len(directions), self.rows):
            part = slice(start, start + self.rows)
            vectors = directions[part].float() * alphas[part, None].to(directions.device, torch.float32)
            with steered(self.model, self.tap, vectors):
                logits = self.model.logits(self.ids.expand(len(vectors), -1))[:, -1].float()
            new = F.log_softmax(logits, dim=-1)
            found.append((self.plain.exp() * (self.plain - new)).sum(-1).double().clamp_min(0).cpu())
        values = torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
        return torch.nan_to_num(values, nan=float("inf"))  # a strength that breaks the model is above every target


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
    end = model.hf.generation_config.eos_token_id
    ends = set(end) if isinstance(end, list | tuple) else {end}
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


def prompt_ids(model: LanguageModel, prompt: str) -> Tensor:
    """(1, length) ids of a prompt on the model's device, without an end-of-text token; InputError if it has no token."""
    ids = model.tokenize(prompt)
    end = getattr(model.tokenizer, "eos_token_id", None)
    while len(ids) > 1 and ids[-1] == end:
        ids = ids[:-1]
    if not ids:
        raise InputError(f"the prompt {prompt!r} has no tokens; give some text")
    return torch.tensor([ids], device=model.device)
