"""How much each weight module matters for each dataset: what structured pruning leaves of it.

Bhandari, Chen and Gao 2025 (arXiv 2508.18192), steps 2 to 4, with the first-order Taylor saliency of LLM-Pruner (Ma et
al. 2023, arXiv 2305.11627): gradients of the language-model loss over a few prompts of a dataset, |weight x gradient|
summed over each group, the lowest groups removed up to a ratio. The share of a module that is kept is its importance;
what the pruned model loses in accuracy weights the dataset. Nothing is physically removed: groups are masked, so that one
gradient pass gives every ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from patchclamp.core.errors import InputError, MismatchError, ModelError
from patchclamp.core.progress import progress
from patchclamp.data.batches import Batch, Budget, Tokens, batches
from patchclamp.data.generate.items import rng_for
from patchclamp.data.tasks import Task
from patchclamp.measure import score
from patchclamp.measure.continuations import continuations
from patchclamp.measure.likelihood import targets
from patchclamp.models.anatomy import weight_of
from patchclamp.read.weight_modules import WeightModule, pruned, weight_modules

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel

IMPORTANCE = ("first", "second", "mix", "magnitude", "random")
LOSSES = ("text", "answer")
EDGES = ("kept", "saliency")
Float = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class PruningResponse:
    """What pruning for each dataset left of each module; rows of different runs can be put together with `merge`.

    modules, datasets: names. kept: (ratios, repeats, datasets, modules) float64, share of the weights that is left.
    saliency: (repeats, datasets, modules), mean score per weight before pruning. plain: (datasets,) accuracy of the whole
    model, pruned: (ratios, repeats, datasets), both NaN where accuracy was not asked for. layers, blocks: of the modules.
    """

    modules: tuple[str, ...]
    layers: tuple[int, ...]
    blocks: tuple[str, ...]
    datasets: tuple[str, ...]
    ratios: tuple[float, ...]
    kept: Float
    saliency: Float
    plain: Float
    pruned: Float
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]

    def matrix(self, *, ratio: float | None = None, edge: str = "kept", weighted: bool = True) -> Float:
        """Edge weights between datasets and modules, (datasets, modules) float64 in [0, 1]; step 4 of the paper.

        r = share kept, mean over repeats, scaled to [0, 1] over the modules of each dataset; times 1 - |accuracy - pruned
        accuracy| if weighted and measured. edge: `kept`, or `saliency` for the mean saliency per weight instead of the
        share. ratio: one of those measured, by default the first. A dataset that prunes all modules alike has no edge: 0.
        """
        if edge not in EDGES:
            raise InputError(f"edge={edge!r}; it is one of {', '.join(EDGES)}")
        at = 0 if ratio is None else self._ratio(ratio)
        found = scaled(self.kept[at].mean(0) if edge == "kept" else self.saliency.mean(0))
        return found * self.kept_accuracy(ratio=ratio)[:, None] if weighted else found

    def kept_accuracy(self, *, ratio: float | None = None) -> Float:
        """1 - |accuracy - pruned accuracy|, mean over repeats, (datasets,) float64; 1 where it was not measured."""
        after = self.pruned[0 if ratio is None else self._ratio(ratio)]
        measured = ~np.isnan(after)
        mean = np.where(measured, after, 0.0).sum(0) / np.maximum(1, measured.sum(0))
        return np.where(measured.any(0) & ~np.isnan(self.plain), 1 - np.abs(self.plain - mean), 1.0)

    def repeated(self, *, ratio: float | None = None, edge: str = "kept") -> Float:
        """The scaled importance of every repeat, (repeats, datasets, modules), without accuracy weights."""
        at = 0 if ratio is None else self._ratio(ratio)
        each = self.kept[at] if edge == "kept" else self.saliency
        return np.stack([scaled(one) for one in each])

    def merge(self, other: PruningResponse) -> PruningResponse:
        """Datasets of both. MismatchError for another model, other modules, ratios or repeats, or a dataset in both."""
        same = (
            self.modules == other.modules
            and self.ratios == other.ratios
            and self.kept.shape[1] == other.kept.shape[1]
            and self.model.get("fingerprint") == other.model.get("fingerprint")
            and self.parameters == other.parameters
        )
        if not same or set(self.datasets) & set(other.datasets):
            raise MismatchError(
                "two pruning responses can be merged if they are of one model with the same modules and arguments, and of "
                "different datasets"
            )
        return PruningResponse(
            self.modules, self.layers, self.blocks, (*self.datasets, *other.datasets), self.ratios,
            np.concatenate([self.kept, other.kept], 2), np.concatenate([self.saliency, other.saliency], 1),
            np.concatenate([self.plain, other.plain]), np.concatenate([self.pruned, other.pruned], 2),
            self.model, self.parameters,
        )  # fmt: skip

    def _ratio(self, ratio: float) -> int:
        for at, known in enumerate(self.ratios):
            if abs(known - ratio) < 1e-9:
                return at
        raise InputError(f"ratio={ratio:g} was not measured; measured are {', '.join(f'{r:g}' for r in self.ratios)}")


def pruning_importance(
    model: LanguageModel,
    tasks: Mapping[str, Task],
    *,
    modules: str | Sequence[WeightModule] = "projection",
    layers: Sequence[int] | None = None,
    importance: str = "first",
    ratios: Sequence[float] = (0.2,),
    prompts: int = 10,
    repeats: int = 5,
    loss: str = "text",
    per_weight: bool = True,
    accuracy: bool = True,
    items: int = 50,
    batch_tokens: int = 2048,
    seed: int = 0,
    quiet: bool = False,
) -> PruningResponse:
    """Prune the model for each dataset and keep what is left of every module.

    tasks: dataset -> task. modules: "projection", "block", or `weight_modules`' own list; layers: only these.
    importance: `first` |w g|, `second` w^2 mean g^2, `mix` |w g - w^2 mean g^2 / 2|; controls `magnitude` |w| (the same for
    every dataset) and `random`. ratios: shares of all weights of the modules that are removed, lowest scores first.
    prompts: items that give gradients, drawn anew in each of the repeats. loss: over the whole `text`, as the paper, or the
    `answer`. per_weight: a group's score is the mean over its weights, not the sum, so that heads and channels compare.
    accuracy: also score the pruned model on `items` items: choices where all items have them, else completion.

    Where no weight has a gradient (the model is certain of every token) nothing is pruned, and the dataset has no edges.
    Memory: one float32 gradient per weight of the modules (two with second or mix). Differs from LLM-Pruner: one ranking
    over all modules (its local mode gives every layer the same share); ranking by the sum is `per_weight=False`.
    Raises InputError for values out of range, ModelError for scores that are not finite.
    """
    _check(tasks, importance, loss, ratios, prompts, repeats, items)
    nodes = weight_modules(model, modules, layers=layers) if isinstance(modules, str) else list(modules)
    if not nodes:
        raise InputError("no modules were given")
    ratios = tuple(float(ratio) for ratio in ratios)
    sizes = [module.group_sizes(model) for module in nodes]
    shape = (repeats, len(tasks), len(nodes))
    kept, saliency = np.zeros((len(ratios), *shape)), np.zeros(shape)
    plain, after = np.full(len(tasks), np.nan), np.full((len(ratios), repeats, len(tasks)), np.nan)
    with progress("pruning", len(tasks) * repeats, unit="runs", quiet=quiet) as advance:
        for at, (name, task) in enumerate(tasks.items()):
            asked = task.limited(items, seed=seed)
            if accuracy:
                plain[at] = _accuracy(model, asked, batch_tokens)
            for repeat in range(repeats):
                drawn = _drawn(task, prompts, seed, repeat)
                scores = _scores(model, nodes, drawn, importance, loss, batch_tokens, [seed, repeat, at])
                _check_finite(nodes, scores, name)
                each = [values / size for values, size in zip(scores, sizes, strict=True)]
                saliency[repeat, at] = [float(v.sum() / s.sum()) for v, s in zip(scores, sizes, strict=True)]
                if not any(values.any() for values in scores):
                    kept[:, repeat, at] = 1 - np.array(ratios)[:, None]
                    advance(1)
                    continue
                for row, ratio in enumerate(ratios):
                    gone = removed_groups(each if per_weight else scores, sizes, ratio, seed=seed + repeat)
                    kept[row, repeat, at] = [1 - s[g].sum() / s.sum() for g, s in zip(gone, sizes, strict=True)]
                    if accuracy:
                        masks = {module.name: mask for module, mask in zip(nodes, gone, strict=True)}
                        with pruned(model, nodes, masks):
                            after[row, repeat, at] = _accuracy(model, asked, batch_tokens)
                advance(1)
    return PruningResponse(
        tuple(module.name for module in nodes), tuple(module.layer for module in nodes),
        tuple(module.block for module in nodes), tuple(tasks), ratios, kept, saliency, plain, after,
        dict(model.identity), {"importance": importance, "prompts": prompts, "loss": loss, "per_weight": per_weight,
                               "accuracy": accuracy, "items": items, "seed": seed},
    )  # fmt: skip


def removed_groups(
    scores: Sequence[NDArray[Any]], sizes: Sequence[NDArray[np.int64]], ratio: float, *, seed: int = 0
) -> list[NDArray[np.bool_]]:
    """Which groups go if `ratio` of all weights may go, lowest scores first; one (n_groups,) bool per module.

    Ties go in an order drawn from the seed, the same for every dataset: in the order of the modules, the first ones would
    always lose.
    """
    flat, size = np.concatenate(scores), np.concatenate(sizes)
    order = np.lexsort((np.random.default_rng(seed).random(len(flat)), flat))
    total = np.cumsum(size[order])
    gone = np.zeros(len(flat), dtype=bool)
    gone[order[total <= ratio * size.sum() + 1e-9]] = True
    return np.split(gone, np.cumsum([len(one) for one in scores])[:-1])


def scaled(values: Float) -> Float:
    """Rows scaled to [0, 1] by their least and largest value; a constant row becomes 0. InputError for NaN."""
    if not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} importances are NaN or infinite; leave those out first")
    low, high = values.min(1, keepdims=True), values.max(1, keepdims=True)
    spread = high - low
    return np.where(spread > 0, (values - low) / np.where(spread > 0, spread, 1), 0.0)


def _check(
    tasks: Mapping[str, Task],
    importance: str,
    loss: str,
    ratios: Sequence[float],
    prompts: int,
    repeats: int,
    items: int,
) -> None:
    if not tasks or not all(isinstance(task, Task) for task in tasks.values()):
        raise InputError("give tasks= as a mapping from a dataset's name to its Task, with at least one")
    if importance not in IMPORTANCE:
        raise InputError(f"importance={importance!r}; it is one of {', '.join(IMPORTANCE)}")
    if loss not in LOSSES:
        raise InputError(f"loss={loss!r}; it is one of {', '.join(LOSSES)}")
    if not len(ratios) or not all(0 < ratio < 1 for ratio in ratios):
        raise InputError(f"ratios={list(ratios)}; give shares of the weights between 0 and 1, such as 0.2")
    if min(prompts, repeats, items) < 1:
        raise InputError(f"prompts={prompts}, repeats={repeats}, items={items}; each is at least 1")


def _drawn(task: Task, prompts: int, seed: int, repeat: int) -> Task:
    """The items that give gradients in a repeat."""
    return task.limited(prompts, seed=rng_for("pruning", seed, repeat).getrandbits(32))


def _accuracy(model: LanguageModel, task: Task, batch_tokens: int) -> float:
    how = "choice" if all(item.choices for item in task) else "completion"
    return float(score(model, task, how, batch_tokens=batch_tokens, quiet=True).value)


def _check_finite(nodes: Sequence[WeightModule], scores: Sequence[Float], dataset: str) -> None:
    for module, values in zip(nodes, scores, strict=True):
        if not np.isfinite(values).all():
            raise ModelError(
                f"the importance of {module.name} for {dataset!r} is not finite; the model's gradients overflow there: try "
                "dtype float32"
            )


def _scores(
    model: LanguageModel,
    nodes: Sequence[WeightModule],
    task: Task,
    importance: str,
    loss: str,
    batch_tokens: int,
    seed: Sequence[int],
) -> list[Float]:
    """Summed score of every group, one (n_groups,) float64 per module."""
    if importance == "random":
        rng = np.random.default_rng(list(seed))
        return [rng.random(module.n_groups) * module.group_sizes(model) for module in nodes]
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    if importance != "magnitude":
        first, second = _gradients(model, nodes, task, loss, batch_tokens, squares=importance in ("second", "mix"))
    found = []
    for module in nodes:
        total = torch.zeros(module.n_groups, dtype=torch.float64)
        for part in module.parts:
            lines = part.lines.to(part.weight(model).device)
            weight = part.weight(model).detach().index_select(part.axis, lines).float()
            slope = first[part.path].index_select(part.axis, lines) if part.path in first else None
            square = second[part.path].index_select(part.axis, lines) if part.path in second else None
            each = _saliency(importance, weight, slope, square).sum(1 - part.axis).cpu().double()
            total.index_add_(0, part.groups, each)
        found.append(total.numpy())
    return found


def _saliency(importance: str, weight: Tensor, slope: Tensor | None, square: Tensor | None) -> Tensor:
    """Score of every weight; slope: mean gradient, square: mean over prompts of the squared gradient."""
    if slope is None:
        return weight.abs()
    if importance == "first" or square is None:
        return (weight * slope).abs()
    if importance == "second":
        return weight.square() * square
    return (weight * slope - 0.5 * weight.square() * square).abs()


def _gradients(
    model: LanguageModel, nodes: Sequence[WeightModule], task: Task, loss: str, batch_tokens: int, *, squares: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Path -> gradient of the mean loss per token, float32 (outputs, inputs), and mean squared gradient over prompts.

    The squared gradient is that of each prompt's own mean loss, so prompts are then run one by one.
    """
    paths = list(dict.fromkeys(path for module in nodes for path in module.paths))
    weights: list[Any] = [model.anatomy.module(path).weight for path in paths]
    unique = list({id(weight): weight for weight in weights}.values())
    pieces = _pieces(model, task, loss)
    scored = sum(_counted(piece) for piece in pieces)
    if not scored:
        raise InputError(f"the prompts of {task.name!r} have no token to predict")
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in unique]
    square = [torch.zeros_like(weight, dtype=torch.float32) for weight in unique] if squares else []
    alone = squares or (model.report is not None and bool(model.report.warnings))
    budget = Budget(1 if alone else batch_tokens)
    asked = [weight.requires_grad for weight in unique]
    try:
        for weight in unique:
            weight.requires_grad_(True)
        for batch in batches(pieces, token_budget=budget.tokens, pad_id=model.pad_id):
            for found in budget.run(lambda part: _summed_gradients(model, part, unique), batch):
                tokens, slopes = found
                for at, slope in enumerate(slopes):
                    if slope is not None:
                        sums[at] += slope.float() / scored
                        if squares:
                            square[at] += (slope.float() / max(1, tokens)).square() / len(pieces)
    finally:
        for weight, before in zip(unique, asked, strict=True):
            weight.requires_grad_(before)
    where = {id(weight): at for at, weight in enumerate(unique)}
    at_path = {path: where[id(weight)] for path, weight in zip(paths, weights, strict=True)}
    oriented = {path: weight_of(model.anatomy.module(path)).shape for path in paths}
    first = {path: _turned(sums[at], oriented[path], model, path) for path, at in at_path.items()}
    return first, {path: _turned(square[at], oriented[path], model, path) for path, at in at_path.items() if squares}


def _turned(gradient: Tensor, shape: torch.Size, model: LanguageModel, path: str) -> Tensor:
    """The gradient as (outputs, inputs), the way `weight_of` shows the weight."""
    return gradient.T if type(model.anatomy.module(path)).__name__ == "Conv1D" else gradient.view(shape)


def _summed_gradients(model: LanguageModel, batch: Batch, weights: Sequence[Tensor]) -> tuple[int, Sequence[Any]]:
    """Scored tokens of a batch, and the gradients of their summed negative log-likelihood."""
    batch = batch.to(model.device)
    chosen = targets(batch)
    with torch.enable_grad():
        logits = model.logits(batch.input_ids, batch.attention_mask, grad=True)
        row, column = chosen.to(logits.device).nonzero(as_tuple=True)
        wanted = batch.input_ids.to(logits.device)[row, column + 1]
        loss = F.cross_entropy(logits[row, column].float(), wanted, reduction="sum")
        slopes = torch.autograd.grad(loss, list(weights), allow_unused=True)
    return len(wanted), slopes


def _pieces(model: LanguageModel, task: Task, loss: str) -> list[Tokens]:
    if model.tokenizer is None:
        raise InputError(f"{model.name} came without a tokenizer; give one: load(..., tokenizer=...)")
    asked = continuations(
        model.tokenizer, [(item.prompt, item.answers[0]) for item in task], max_length=model.max_length
    )
    return [
        Tokens(
            [*one.context, *one.tokens],
            None if loss == "text" else [False] * len(one.context) + [True] * len(one.tokens),
            number,
            0,
        )
        for number, one in enumerate(asked)
    ]


def _counted(piece: Tokens) -> int:
    """Tokens of a piece that are predicted: those that count and have one before them."""
    return len(piece.ids) - 1 if piece.keep is None else int(sum(map(bool, piece.keep[1:])))
