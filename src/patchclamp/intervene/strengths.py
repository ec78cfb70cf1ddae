"""How strongly to steer: strengths that change the next token as much as asked for, for directions side by side.

alpha is chosen such that KL(plain || steered) of the next token after a base prompt reaches a target (Shafran et al. 2025,
arXiv 2506.10920), so that directions of different sites, layers and lengths compare. Different directions are given to the
rows of one batch, so that many of them, and many strengths, run in one pass.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from patchclamp.core.errors import InputError
from patchclamp.models.hooks import Seen, Tap, change

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

PROMPT = "I think that"  # of the paper
TARGETS = (0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5)  # nats, of the paper's code
RANGE = (1e-2, 1e4)  # alphas tried
GRID, HALVINGS = 25, 14
WITHIN = 0.01  # of the target, nats: how far a matched strength may miss
ROWS, LOGITS = 256, 2**26  # sequences and logits of one batch at most


@contextlib.contextmanager
def steered(model: LanguageModel, tap: Tap, vectors: Tensor) -> Iterator[None]:
    """Add row b of `vectors` (batch, width) to the activations of sequence b, at every position, prompt and generated."""
    with change(model, {tap: _adding(vectors)}):
        yield


def _adding(vectors: Tensor) -> Callable[[Seen], Tensor]:
    """A change that adds row b of `vectors` (batch, width) to sequence b."""
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

    return add


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
    prompt: str = PROMPT,
    *,
    targets: Sequence[float] = TARGETS,
    between: tuple[float, float] = RANGE,
) -> Strengths:
    """For every direction (n, width) and target the least alpha whose effect on the next token reaches the target.

    A log-spaced grid finds the first crossing (the effect need not grow with alpha), then bisection. Raises InputError
    for targets that are not positive and for directions that are zero or not finite.
    """
    return match_kl_at(model, {tap: directions}, prompt, targets=targets, between=between)


def match_kl_at(
    model: LanguageModel,
    directions: Mapping[Tap, Tensor],
    prompt: str = PROMPT,
    *,
    targets: Sequence[float] = TARGETS,
    between: tuple[float, float] = RANGE,
) -> Strengths:
    """The same for directions that are added at several places at once, (n, width) for each, with one alpha for all."""
    wanted = tuple(float(target) for target in targets)
    if not wanted or min(wanted) <= 0:
        raise InputError(f"targets {list(targets)} given; a target is a KL divergence in nats, above 0")
    if not 0 < between[0] < between[1]:
        raise InputError(f"strengths between {between[0]} and {between[1]} asked for; give two rising positive numbers")
    for rows in directions.values():
        if not bool(torch.isfinite(rows).all()) or not bool((rows != 0).any(1).all()):
            raise InputError("a direction to steer with is zero or not finite")
    effect = _Effect(model, prompt)
    lowest, highest = (math.log10(bound) for bound in between)
    grid = torch.logspace(lowest, highest, GRID, dtype=torch.float64)
    n = min(map(len, directions.values()), default=0)
    seen = effect.of(directions, torch.arange(n).repeat_interleave(GRID), grid.repeat(n)).view(n, 1, GRID)
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
        over = effect.of(directions, which, middle) >= goals
        a, b = torch.where(over, a, middle), torch.where(over, middle, b)
    alphas = torch.full((n, len(wanted)), float("nan"), dtype=torch.float64)
    kl = alphas.clone()
    alphas[which, goal] = b
    kl[which, goal] = effect.of(directions, which, b)
    return Strengths(wanted, alphas, kl)


class _Effect:
    """KL(plain || steered) of the token after a prompt."""

    def __init__(self, model: LanguageModel, prompt: str) -> None:
        self.model = model
        self.ids = prompt_ids(model, prompt)
        vocabulary = int(model.hf.config.get_text_config().vocab_size)
        self.rows = max(1, min(ROWS, LOGITS // (vocabulary * self.ids.shape[1])))
        self.plain = F.log_softmax(model.logits(self.ids)[:, -1].float(), dim=-1)

    def of(self, directions: Mapping[Tap, Tensor], which: Tensor, alphas: Tensor) -> Tensor:
        """(n,) float64: the effect of direction which[i] times alphas[i]."""
        found = []
        for start in range(0, len(which), self.rows):
            chosen, times = which[start : start + self.rows], alphas[start : start + self.rows, None]
            added = {
                tap: _adding(rows[chosen.to(rows.device)].float() * times.to(rows.device, torch.float32))
                for tap, rows in directions.items()
            }
            with change(self.model, added):
                logits = self.model.logits(self.ids.expand(len(chosen), -1))[:, -1].float()
            new = F.log_softmax(logits, dim=-1)
            found.append((self.plain.exp() * (self.plain - new)).sum(-1).double().clamp_min(0).cpu())
        values = torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)
        return torch.nan_to_num(values, nan=float("inf"))  # a strength that breaks the model is above every target


def prompt_ids(model: LanguageModel, prompt: str) -> Tensor:
    """(1, length) ids of a prompt on the model's device, without an end-of-text token; InputError if it has no token."""
    ids = model.tokenize(prompt)
    end = getattr(model.tokenizer, "eos_token_id", None)
    while len(ids) > 1 and ids[-1] == end:
        ids = ids[:-1]
    if not ids:
        raise InputError(f"the prompt {prompt!r} has no tokens; give some text")
    return torch.tensor([ids], device=model.device)
