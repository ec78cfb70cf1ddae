"""`finetune()` gives a new model, trained a little further on a text or task: all of it, some modules, or some units.

The given model is never touched. Weights in half precision are trained through float32 copies of what is trained, so that
small steps are not rounded away. Dropout stays off, and the order of the text depends on the seed alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.core.callable_room import make_callable
from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.progress import progress
from patchclamp.core.provenance import provenance
from patchclamp.data.batches import PIECE, Batch, Budget, Tokens, batches, encode
from patchclamp.data.corpora import Corpus, corpus
from patchclamp.data.tasks import Task
from patchclamp.intervene.copies import copied
from patchclamp.measure.continuations import continuations
from patchclamp.measure.likelihood import targets
from patchclamp.models.load import LanguageModel
from patchclamp.models.units import UnitSet
from patchclamp.train.demo import next_token_loss
from patchclamp.train.trained_weights import Only, Part, trained_weights

if TYPE_CHECKING:
    from torch.optim import Optimizer

SCHEDULES = ("constant", "cosine", "linear")
WINDOW = 2**22  # tokens that are shuffled together
HALF_SCALE = 1024.0  # of the loss in float16, whose smallest gradients would be 0


@dataclass
class Training:
    """What a model was trained on and how it went.

    losses: mean loss of the tokens that count, at every step before its update, nats per token. tokens: that counted.
    epochs: how often the text was begun. weights: numbers trained. provenance: call, arguments, inputs, seed, versions.
    """

    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    epochs: int = 0
    weights: int = 0
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


class Finetuned(LanguageModel):
    """A LanguageModel with the record of its training: `.training.losses` and what else `Training` holds."""

    training: Training


def finetune(
    model: LanguageModel,
    texts: Corpus | Task | Sequence[str],
    *,
    steps: int = 100,
    learning_rate: float = 1e-4,
    batch_tokens: int = 2048,
    seed: int = 0,
    only: Only = None,
    schedule: str = "constant",
    warmup: float = 0.0,
    weight_decay: float = 0.0,
    max_length: int | None = None,
    micro_tokens: int = 4096,
    quiet: bool = False,
) -> Finetuned:
    """A copy of the model after `steps` steps of AdamW on the text; `.training.losses` has the loss of every step.

    texts: a corpus (all labels alike), a task (the loss is that of the canonical answers alone), or a list of texts.
    batch_tokens: tokens read in a step, or the whole text once if it has fewer. only: which weights are trained, see
    `trained_weights`; the others keep every bit.
    schedule: of the learning rate after its linear warm-up: constant, or cosine or linear to 0. warmup: share of the steps.
    max_length: tokens of a piece; longer texts are cut (by default the model's length, at most 2048). micro_tokens: tokens
    in one forward pass; fewer where memory runs out. Betas 0.9 and 0.999, gradients clipped to norm 1.
    The same seed gives the same weights on the same machine. InputError for arguments out of range or text without a token
    to predict, ModelError for weights that can't be trained or a loss that is not finite.
    """
    _check(steps, learning_rate, batch_tokens, schedule, warmup)
    source = _Pieces.of(model, texts, max_length, seed)
    tuned = _copied(model)
    parts = trained_weights(tuned, only)
    for cached in ("fingerprint", "identity"):  # looked up to compare with the units', and about to change
        vars(tuned).pop(cached, None)
    masters = [part.take(part.parameter.detach()).clone().requires_grad_() for part in parts]
    optimizer = torch.optim.AdamW(masters, lr=learning_rate, weight_decay=weight_decay)
    arguments: dict[str, Any] = {
        "steps": steps, "learning_rate": learning_rate, "batch_tokens": batch_tokens, "schedule": schedule,
        "warmup": warmup, "weight_decay": weight_decay, "max_length": max_length, "betas": [0.9, 0.999], "clip": 1.0,
        "only": only.names() if isinstance(only, UnitSet) else only,
    }  # fmt: skip
    inputs = {"model": dict(model.identity), "text": source.identity}
    tuned.training = Training(
        weights=sum(part.size for part in parts),
        provenance=provenance("train.finetune", arguments=arguments, inputs=inputs, seed=seed),
    )
    budget = Budget(micro_tokens)
    for part in parts:
        part.parameter.requires_grad_(True)
    with progress("fine-tuning", steps, unit="steps", quiet=quiet) as advance:
        for step, pieces in zip(range(steps), source.steps(batch_tokens), strict=False):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * _factor(step, steps, schedule, warmup)
            loss, counted = _step(tuned, pieces, parts, masters, optimizer, budget)
            tuned.training.losses.append(loss)
            tuned.training.tokens += counted
            advance(1)
    tuned.training.epochs = source.epochs
    tuned.hf.requires_grad_(False)
    return tuned


def _check(steps: int, learning_rate: float, batch_tokens: int, schedule: str, warmup: float) -> None:
    if steps < 1 or batch_tokens < 2:
        raise InputError(f"steps={steps}, batch_tokens={batch_tokens}; at least 1 step of 2 tokens is needed")
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate={learning_rate}; a number above 0 is needed")
    if schedule not in SCHEDULES or not 0 <= warmup < 1:
        raise InputError(
            f"schedule={schedule!r}, warmup={warmup}; {', '.join(SCHEDULES)} and a share of 0 to 1 are known"
        )


def _factor(step: int, steps: int, schedule: str, warmup: float) -> float:
    """Multiplier of the peak learning rate at `step` (from 0)."""
    first = math.ceil(warmup * steps)
    if step < first:
        return (step + 1) / first
    done = (step - first) / max(1, steps - first)
    return {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[schedule]


def _copied(model: LanguageModel) -> Finetuned:
    """An independent copy, without the hooks' bookkeeping of the original."""
    tuned = Finetuned(copied(model, "fine-tune"), model.tokenizer)
    tuned.name = f"{model.name} (fine-tuned)"
    return tuned


@dataclass
class _Pieces:
    """The text as token pieces in an endless, seeded order, epoch after epoch."""

    read: Any  # () -> iterator of Tokens
    identity: dict[str, Any]
    seed: int
    epochs: int = 0

    @classmethod
    def of(cls, model: LanguageModel, texts: Any, max_length: int | None, seed: int) -> _Pieces:
        length = min(model.max_length, PIECE) if max_length is None else max_length
        if not 2 <= length <= model.max_length:
            raise InputError(f"max_length={length}; this model takes 2 to {model.max_length} tokens at once")
        if isinstance(texts, Task):
            answered = _answers(model, texts, length)
            return cls(lambda: iter(answered), texts.identity, seed)
        if isinstance(texts, str) or not isinstance(texts, Corpus | Sequence):
            raise InputError(f"{type(texts).__name__} given as text; a corpus, a task or a list of texts is needed")
        text = texts if isinstance(texts, Corpus) else corpus({"text": list(texts)})

        def read() -> Iterator[Tokens]:
            for label in text.labels:
                yield from encode(model.tokenizer, text.documents(label), max_length=length, max_tokens=text.max_tokens)

        return cls(read, text.identity, seed)

    def steps(self, batch_tokens: int) -> Iterator[list[Tokens]]:
        """Pieces of about `batch_tokens` tokens a step, without end: at least one piece, at most the whole text once."""
        step: list[Tokens] = []
        size = 0
        while True:
            self.epochs += 1
            some = full = False
            for piece in self._shuffled():
                if len(piece.ids) < 2 or not _predicted(piece):
                    continue
                some = True
                if step and size + len(piece.ids) > batch_tokens:
                    yield step
                    step, size, full = [], 0, True
                step.append(piece)
                size += len(piece.ids)
            if not some:
                raise InputError("no token of this text can be predicted: its documents have fewer than 2 tokens each")
            if not full:
                yield step
                step, size = [], 0

    def _shuffled(self) -> Iterator[Tokens]:
        rng, stream, window, size = random.Random(f"{self.seed}/{self.epochs}"), self.read(), [], 0
        for piece in stream:
            window.append(piece)
            size += len(piece.ids)
            if size >= WINDOW:
                rng.shuffle(window)
                yield from window
                window, size = [], 0
        rng.shuffle(window)
        yield from window


def _predicted(piece: Tokens) -> bool:
    """Whether a token after the first counts."""
    return piece.keep is None or any(piece.keep[1:])


def _answers(model: LanguageModel, task: Task, max_length: int) -> list[Tokens]:
    asked = continuations(model.tokenizer, [(item.prompt, item.answers[0]) for item in task], max_length=max_length)
    return [
        Tokens(
            [*one.context, *one.tokens],
            [False] * len(one.context) + [True] * len(one.tokens),
            number,
            0,
        )
        for number, one in enumerate(asked)
    ]


def _step(
    model: LanguageModel,
    pieces: list[Tokens],
    parts: list[Part],
    masters: list[Tensor],
    optimizer: Optimizer,
    budget: Budget,
) -> tuple[float, int]:
    """One update from the mean loss over all tokens that count in the pieces; gives that loss and their number."""
    whole = list(batches(pieces, token_budget=budget.tokens, pad_id=model.pad_id))
    counted = sum(int(targets(batch).sum()) for batch in whole)
    gradients: list[Tensor | None] = [None] * len(parts)
    loss = 0.0
    for batch in whole:
        for value in budget.run(lambda part: _accumulate(model, part, parts, gradients, counted), batch):
            loss += value
    if not math.isfinite(loss):
        raise ModelError(f"the loss is {loss} after {len(pieces)} texts; give a lower learning_rate, or dtype float32")
    for master, gradient in zip(masters, gradients, strict=True):
        master.grad = gradient
    torch.nn.utils.clip_grad_norm_(masters, 1.0)
    optimizer.step()
    for part, master in zip(parts, masters, strict=True):
        part.write(master.detach())
    return loss, counted


def _accumulate(
    model: LanguageModel, batch: Batch, parts: list[Part], gradients: list[Tensor | None], counted: int
) -> float:
    """Add a batch's gradients of (summed loss / counted), float32; gives that share of the loss."""
    weights = torch.zeros(batch.keep.shape, dtype=torch.float32)
    weights[:, 1:] = targets(batch).float()
    share = float(weights.sum()) / counted
    if not share:
        return 0.0
    placed, weights = batch.to(model.device), weights.to(model.device)
    positions = torch.arange(placed.input_ids.shape[1], device=model.device).expand_as(placed.input_ids)
    logits = model.logits(placed.input_ids, placed.attention_mask, grad=True)
    mean = next_token_loss(logits, placed.input_ids.to(logits.device), positions.to(logits.device), weights)
    scale = HALF_SCALE if model.dtype is torch.float16 else 1.0
    found = torch.autograd.grad(mean * (share * scale), [part.parameter for part in parts], allow_unused=True)
    for number, (part, gradient) in enumerate(zip(parts, found, strict=True)):
        if gradient is not None:
            mine, before = part.take(gradient) / scale, gradients[number]
            gradients[number] = mine if before is None else before + mine
    return float(mean.detach()) * share


make_callable(__name__)
