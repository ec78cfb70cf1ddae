"""Gradient x activation: how much each unit lifts the probability of the right answer, one number per prompt and unit.

For a unit n at position i and the probability P of the answer, a_i = n_i * dP/dn_i: the first-order estimate of
P - P(n_i = 0), from one forward and one backward pass for all units at once (Yamamoto et al. 2025, arXiv 2510.08284,
step 2). `attribute` gives it reduced over positions; `ablated` gives the exact differences for a few units, to check it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from patchclamp.core.errors import InputError, ModelError
from patchclamp.core.progress import progress
from patchclamp.data.batches import Batch, Budget, Tokens, batches
from patchclamp.find.finding import spans
from patchclamp.measure.continuations import Continuation, continuations, prompt_ids
from patchclamp.models.hooks import Change, Seen, Tap, change
from patchclamp.models.units import Layout, UnitSet

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

REDUCTIONS = ("max", "mean", "sum", "last")
SCORES = ("probability", "log-probability")
TINY = 1e-6  # a probability below this says nothing about the units: its gradient is all but 0

Score = Callable[[Tensor, Tensor], Tensor]


class Attributed(NamedTuple):
    """One batch. rows: numbers of the prompts (n,). values: (n, total) float32, sites one after another, on the model's
    device. scores: (n,) float32, what was explained: the probability of each prompt's answer (or log P, or the score).
    """

    rows: NDArray[np.int64]
    values: Tensor
    scores: Tensor


def attribute(
    model: LanguageModel,
    prompts: Any,
    targets: Sequence[int | str | Sequence[int]] | None = None,
    *,
    sites: Sequence[str] = ("pre", "q", "k", "v"),
    layers: Iterable[int] | None = None,
    reduce: str = "max",
    score: str | Score = "probability",
    tokens: int | None = 1,
    pad_zero: bool = False,
    batch_tokens: int = 2048,
    quiet: bool = True,
) -> Iterator[Attributed]:
    """Yield gradient x activation of every unit for every prompt, batch by batch (longest prompts first).

    prompts: a `Task` (its answers are the targets), or texts, or token ids (a sequence of ints each). targets: per prompt
    the answer as text, a token id, or token ids. tokens: how many tokens of an answer count (None: all); P is then the
    product of their probabilities, each after the ones before it. sites: any of the model's. layers: others stay 0.
    reduce: over a prompt's tokens: `max`, `mean`, `sum`, or the value at the `last` one; padding never counts (pad_zero:
    it counts as 0, as in the reference code, so that max >= 0 in every row that was padded). score: `probability` (P),
    `log-probability`, or a function of logits (n, vocabulary) and target ids (n,) that gives (n,), for one-token targets.
    batch_tokens: most positions in a batch; memory is what the graph of these keeps. A unit of an expert that a token was
    not sent to counts as 0 there.

    Only the logits at the scored positions go through the LM head and back, in float32; weights get no gradient. P is
    differentiated as log P and scaled afterwards, n * dP/dn = P * n * dlogP/dn, so that nothing underflows in bfloat16.
    Where a model's normalisation follows q or k (QK-norm), zeroing one unit there rescales the others of its head.
    Raises InputError for prompts without a token or too long, targets that the tokenizer can't say, unknown sites.
    """
    questions = encoded(model, prompts, targets, tokens=tokens)
    chosen = layouts_for(model, sites)
    _check(reduce, score, questions)
    kept = None if layers is None else set(layers)
    taps = [
        (layout.site, layer)
        for layout in chosen
        for layer, width in enumerate(layout.widths)
        if width and (kept is None or layer in kept)
    ]
    work = _Attribution(model, questions, chosen, taps, reduce, score, pad_zero)
    budget = Budget(1 if _alone(model) else batch_tokens)
    with progress("attributing", len(questions), unit="prompts", quiet=quiet) as advance:
        for batch in batches(_pieces(questions), token_budget=budget.tokens, pad_id=model.pad_id):
            for part in budget.run(work.run, batch):
                yield part
                advance(len(part.rows))


def ablated(
    model: LanguageModel,
    prompts: Any,
    targets: Sequence[int | str | Sequence[int]] | None = None,
    *,
    units: UnitSet,
    tokens: int | None = 1,
    batch_tokens: int = 4096,
    quiet: bool = True,
) -> NDArray[np.float64]:
    """What attribution estimates, exactly: P - P with one unit at 0 in every position, (prompts, units) float64.

    units: in the order of `units.names()`; one forward pass over all prompts for each, so give a few.
    """
    units.check_model(model)
    questions = encoded(model, prompts, targets, tokens=tokens)
    plan = list(batches(_pieces(questions), token_budget=1 if _alone(model) else batch_tokens, pad_id=model.pad_id))
    names, plain = list(units), _probabilities(model, questions, plan)
    found = np.zeros((len(questions), len(names)))
    with progress("ablating", len(names), unit="units", quiet=quiet) as advance:
        for at, unit in enumerate(names):
            layout = units.layouts[unit.site]
            column = layout.position(unit) - layout.offsets[unit.layer]
            with change(model, {(unit.site, unit.layer): _zeroed(column)}):
                found[:, at] = plain - _probabilities(model, questions, plan)
            advance(1)
    return found


def encoded(
    model: LanguageModel, prompts: Any, targets: Sequence[Any] | None = None, *, tokens: int | None = 1
) -> list[Continuation]:
    """Prompts and the first `tokens` tokens of their answers as ids, tokenized as `measure` does it.

    InputError for an answer without a token or with an unknown one, and for a prompt that is empty or too long.
    """
    if tokens is not None and tokens < 1:
        raise InputError(
            f"tokens={tokens} given; it is how many tokens of an answer count, at least 1, or None for all"
        )
    if targets is None:
        items = list(prompts)
        if not all(hasattr(item, "answers") for item in items):
            raise InputError("give targets=, one for each prompt, or a Task, whose answers are the targets")
        prompts, targets = [item.prompt for item in items], [item.answers[0] for item in items]
    asked, answers = list(prompts), list(targets)
    if len(asked) != len(answers):
        raise InputError(f"{len(asked)} prompts but {len(answers)} targets")
    if not asked:
        raise InputError("no prompts to attribute")
    found = [one.first(tokens) for one in _read(model, asked, answers)]
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    for number, (one, answer) in enumerate(zip(found, answers, strict=True)):
        size = len(one.context) + len(one.tokens) - 1
        if not one.context or not one.tokens or size > model.max_length:
            raise InputError(
                f"prompt {number} has {len(one.context)} tokens and {len(one.tokens)} of its answer; this model takes "
                f"at least 1 of each and {model.max_length} in all"
            )
        if isinstance(answer, str) and unknown is not None and unknown in one.tokens:
            other = answer.strip() if answer[:1].isspace() else " " + answer
            raise InputError(f"the tokenizer doesn't know the answer {answer!r}; try {other!r}, or give token ids")
    return found


def _read(model: LanguageModel, prompts: list[Any], answers: list[Any]) -> list[Continuation]:
    """Texts as `measure` reads them; what is given as token ids stays as it is."""
    spoken = [isinstance(prompt, str) for prompt in prompts]
    if all(spoken) and all(isinstance(answer, str) for answer in answers):
        return continuations(model.tokenizer, list(zip(prompts, answers, strict=True)), max_length=model.max_length + 1)
    contexts = prompt_ids(model.tokenizer, prompts) if all(spoken) else [_ids(model, prompt) for prompt in prompts]
    return [Continuation(context, _ids(model, answer)) for context, answer in zip(contexts, answers, strict=True)]


def _ids(model: LanguageModel, given: Any) -> tuple[int, ...]:
    if isinstance(given, str):
        return tuple(model.tokenizer(given, add_special_tokens=False)["input_ids"])
    return (int(given),) if isinstance(given, int | np.integer) else tuple(int(token) for token in given)


def _pieces(questions: Sequence[Continuation]) -> list[Tokens]:
    """What is read of each: the prompt, and all but the last token of the answer."""
    return [Tokens([*one.context, *one.tokens[:-1]], None, number, 0) for number, one in enumerate(questions)]


def layouts_for(model: LanguageModel, sites: Sequence[str]) -> tuple[Layout, ...]:
    """The layouts of some sites, in the order asked; InputError names the sites that the model has."""
    wanted = [sites] if isinstance(sites, str) else list(sites)
    missing = [site for site in wanted if site not in model.layouts]
    if missing or not wanted or len(set(wanted)) < len(wanted):
        have = ", ".join(model.layouts)
        raise InputError(
            f"sites {', '.join(wanted) or 'none'} asked for; give each of some of this model's once: {have}"
        )
    return tuple(model.layouts[site] for site in wanted)


def _alone(model: LanguageModel) -> bool:
    """Whether prompts must be run one by one: the check at loading saw values that move with padding or batch mates."""
    return model.report is not None and bool(model.report.warnings)


def _check(reduce: str, score: str | Score, questions: Sequence[Continuation]) -> None:
    if reduce not in REDUCTIONS:
        raise InputError(f"reduce={reduce!r} given; it is one of {', '.join(REDUCTIONS)}")
    if isinstance(score, str) and score not in SCORES:
        raise InputError(f"score={score!r} given; it is a function or one of {', '.join(SCORES)}")
    if callable(score) and any(len(question.tokens) > 1 for question in questions):
        raise InputError("a score of your own takes one token per answer; give tokens=1")


@dataclass
class _Kept:
    """The activations of the taps in one forward pass, as nodes of its graph. at: (site, layer, rows, offset, step)."""

    tensors: list[Tensor] = field(default_factory=list)
    at: list[Seen] = field(default_factory=list)

    def keep(self, seen: Seen) -> Tensor:
        """The change function: the same values, but a tensor of ours that what follows is computed from."""
        values = seen.values
        mine = values.clone() if values.requires_grad else values.detach().clone().requires_grad_()
        self.tensors.append(mine)
        self.at.append(seen)
        return mine


@dataclass
class _Attribution:
    """What stays the same over the batches of one call."""

    model: LanguageModel
    questions: Sequence[Continuation]
    layouts: tuple[Layout, ...]
    taps: Sequence[Tap]
    reduce: str
    score: str | Score
    pad_zero: bool

    def run(self, batch: Batch) -> Attributed:
        """One forward and one backward pass over a batch; nothing of the graph outlives it."""
        batch = batch.to(self.model.device)
        rows = batch.document.cpu().numpy()
        kept = _Kept()
        changes: Mapping[Tap, Change] = dict.fromkeys(self.taps, kept.keep)
        with torch.enable_grad(), change(self.model, changes):
            scored = _scored(self.model, batch, [self.questions[row] for row in rows])
            if callable(self.score):
                explained = self.score(scored.logits, scored.targets)
                scale, scores = torch.ones_like(explained), explained.detach()
            else:
                explained = scored.log_probability()
                probability = explained.detach().exp()
                plain = self.score == "probability"
                scale, scores = (
                    (probability, probability) if plain else (torch.ones_like(probability), explained.detach())
                )
        values = torch.zeros(len(rows), sum(layout.total for layout in self.layouts), device=scores.device)
        if kept.tensors and explained.requires_grad:
            gradients = torch.autograd.grad(explained.sum(), kept.tensors, allow_unused=True)
            self._reduce(values, kept, gradients, batch)
        if not bool(torch.isfinite(scores).all()):
            raise ModelError(f"prompt {rows[~torch.isfinite(scores).cpu().numpy()][0]} gives NaN or infinite logits")
        return Attributed(rows, values * scale[:, None].float(), scores.float())

    def _reduce(self, values: Tensor, kept: _Kept, gradients: Sequence[Tensor | None], batch: Batch) -> None:
        """Write gradient x activation, reduced over positions, into the columns of its site and layer."""
        starts, by_site = spans(self.layouts), {layout.site: layout for layout in self.layouts}
        for mine, seen, gradient in zip(kept.tensors, kept.at, gradients, strict=True):
            if gradient is None:  # nothing scored depends on it
                continue
            wide = torch.promote_types(mine.dtype, torch.float32)
            each = mine.detach().to(wide) * gradient.to(wide)  # (n_rows, width) or, of heads, (n_rows, heads, head_dim)
            each = each.sum(-1) if each.dim() == 3 else each
            if seen.rows is not None:  # experts: the rows that were sent there
                whole = each.new_zeros(batch.input_ids.numel(), each.shape[1])
                each = whole.index_copy(0, seen.rows.to(each.device), each)
            first = starts[seen.site].start + by_site[seen.site].offsets[seen.layer] + seen.offset
            reduced = self._over_positions(each.view(*batch.input_ids.shape, -1), batch)
            values[:, first : first + each.shape[1]] = reduced.to(values)

    def _over_positions(self, each: Tensor, batch: Batch) -> Tensor:
        """(batch, seq, width) -> (batch, width), padding left out."""
        real = batch.attention_mask.bool().to(each.device)[:, :, None]
        if self.reduce == "max":
            return each.masked_fill(~real, 0.0 if self.pad_zero else -torch.inf).amax(1)
        if self.reduce == "last":
            last = real[:, :, 0].sum(1) - 1
            return each[torch.arange(len(each), device=each.device), last]
        summed = (each * real).sum(1)
        return summed if self.reduce == "sum" else summed / real.sum(1)


@dataclass
class _Scored:
    """Logits (n, vocabulary) in float32 at every scored position, its target id (n,) and its row (n,); rows: how many."""

    logits: Tensor
    targets: Tensor
    row: Tensor
    rows: int

    def log_probability(self) -> Tensor:
        """(rows,) log P of each answer."""
        each = self.logits.gather(1, self.targets[:, None])[:, 0] - self.logits.logsumexp(1)
        return torch.zeros(self.rows, dtype=each.dtype, device=each.device).index_add(0, self.row, each)


def _scored(model: LanguageModel, batch: Batch, questions: Sequence[Continuation]) -> _Scored:
    """Logits at the positions that predict the answers' tokens. Batches are padded on the right."""
    places = [
        (row, len(question.context) - 1 + at, token)
        for row, question in enumerate(questions)
        for at, token in enumerate(question.tokens)
    ]
    row, column, target = torch.tensor(places).T
    grad = torch.is_grad_enabled()
    if _head_known(model):
        hidden = model.trunk(batch.input_ids, batch.attention_mask, grad=grad)
        logits = _head(model, hidden[row.to(hidden.device), column.to(hidden.device)])
    else:
        whole = model.logits(batch.input_ids, batch.attention_mask, grad=grad)
        logits = whole[row.to(whole.device), column.to(whole.device)]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return _Scored(logits, target.to(logits.device), row.to(logits.device), len(questions))


def _probabilities(
    model: LanguageModel, questions: Sequence[Continuation], plan: Sequence[Batch]
) -> NDArray[np.float64]:
    found = np.zeros(len(questions))
    with torch.no_grad():
        for batch in plan:
            rows = batch.document.numpy()
            scored = _scored(model, batch.to(model.device), [questions[row] for row in rows])
            found[rows] = scored.log_probability().double().exp().cpu().numpy()
    return found


def _zeroed(column: int) -> Change:
    def zero(seen: Seen) -> Tensor:
        inside = column - seen.offset
        if not 0 <= inside < seen.values.shape[1]:
            return seen.values
        values = seen.values.clone()
        values[:, inside] = 0
        return values

    return zero


# --- the LM head on some positions -------------------------------------------------------------------------------

# model -> whether trunk and head by themselves give the logits of the whole model
_HEADS: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _head(model: LanguageModel, hidden: Tensor) -> Tensor:
    anatomy = model.anatomy
    logits: Tensor = anatomy.module(anatomy.lm_head or "")(hidden) * anatomy.logit_scale
    return logits if anatomy.soft_cap is None else anatomy.soft_cap * torch.tanh(logits / anatomy.soft_cap)


def _head_known(model: LanguageModel) -> bool:
    """Whether `_head` of the trunk's output is what the model computes, tried once; else whole logits are computed."""
    if model.hf not in _HEADS:
        _HEADS[model.hf] = False
        if model.anatomy.lm_head is not None:
            words = int(model.hf.config.get_text_config().vocab_size)
            ids = (torch.arange(4, device=model.device)[None] + model.pad_id + 1) % words
            with contextlib.suppress(RuntimeError, TypeError, ValueError, AttributeError), torch.no_grad():
                whole, mine = model.logits(ids), _head(model, model.trunk(ids))
                size = float(whole.abs().max())
                near = {torch.bfloat16: 3e-2, torch.float16: 4e-3}.get(whole.dtype, 1e-4)
                _HEADS[model.hf] = bool((whole - mine).abs().max() <= near * max(size, 1e-6))
    return _HEADS[model.hf]
