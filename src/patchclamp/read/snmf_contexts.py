"""The words that features of a factorisation are strongest on: strongest tokens with what stands around them, by label."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from patchclamp.core.errors import InputError
from patchclamp.data.batches import Batch, Selection
from patchclamp.data.corpora import Corpus
from patchclamp.models.hooks import Tap
from patchclamp.read.snmf_solver import nonnegative
from patchclamp.read.tapped import tapped

if TYPE_CHECKING:
    from patchclamp.models.load import LanguageModel
    from patchclamp.read.snmf_factors import Factors

WINDOW = 15  # tokens left and right, inside the sentence, as in the paper
SWEEPS = 50


def contexts_of(
    factors: Factors,
    model: LanguageModel,
    text: Corpus,
    tap: Tap,
    *,
    k: int = 25,
    window: int = WINDOW,
    select: Selection | None = None,
    batch_tokens: int = 4096,
) -> list[dict[str, Any]]:
    """Per feature {"label", "labels", "tokens"}: the label it is strongest on, mean strength per label, top k tokens.

    tokens: {"token", "strength", "label", "document", "before", "after"}, strongest first, none of strength 0. One pass
    over the text; nothing is kept but the k best of each feature.
    """
    if k < 0 or window < 0:
        raise InputError(f"contexts={k} and window={window} given; neither can be below 0")
    features = factors.features
    unit_rows = bool(factors.parameters.get("unit_rows"))
    best: list[list[dict[str, Any]]] = [[] for _ in features]
    means: dict[str, list[float]] = {}
    for label in text.labels:
        total, count = torch.zeros(len(features), dtype=torch.float64), 0
        for seen in tapped(model, text, label, tap, select=select, batch_tokens=batch_tokens):
            x = torch.nn.functional.normalize(seen.kept, dim=1) if unit_rows else seen.kept
            features = features.to(x.device)
            target, gram = x @ features.T, features @ features.T
            strengths = nonnegative(target, gram, target.clamp_min(0), SWEEPS, tolerance=1e-4).cpu()
            total, count = total + strengths.double().sum(0), count + len(strengths)
            _keep_best(best, strengths, seen.batch, label, model.tokenizer, k, window)
        means[label] = (total / max(1, count)).tolist()
    found = []
    for j, tokens in enumerate(best):
        by_label = {label: values[j] for label, values in means.items()}
        top = max(by_label, key=lambda name: by_label[name])
        found.append({"label": top if by_label[top] > 0 else "", "labels": by_label, "tokens": tokens})
    return found


def _keep_best(
    best: list[list[dict[str, Any]]], strengths: Tensor, batch: Batch, label: str, tokenizer: Any, k: int, window: int
) -> None:
    """Merge a batch's strongest tokens into the k best of every feature."""
    places = batch.keep.cpu().nonzero().tolist()
    if not k or not places:
        return
    values, rows = strengths.topk(min(k, len(strengths)), dim=0)
    ids, mask = batch.input_ids.cpu(), batch.attention_mask.cpu().bool()
    for j, known in enumerate(best):
        bar = known[-1]["strength"] if len(known) == k else 0.0
        new = [
            {"strength": value, "label": label, **_around(ids, mask, batch, places[row], tokenizer, window)}
            for value, row in zip(values[:, j].tolist(), rows[:, j].tolist(), strict=True)
            if value > bar
        ]
        if new:
            best[j] = sorted([*known, *new], key=lambda one: -one["strength"])[:k]


def _around(ids: Tensor, mask: Tensor, batch: Batch, place: list[int], tokenizer: Any, window: int) -> dict[str, Any]:
    row, column = place
    real = mask[row].nonzero().flatten()
    first, last = int(real[0]), int(real[-1])

    def text(start: int, stop: int) -> str:
        return str(tokenizer.decode(ids[row, start:stop].tolist(), skip_special_tokens=True))

    return {
        "token": text(column, column + 1),
        "document": int(batch.document[row]),
        "before": text(max(first, column - window), column),
        "after": text(column + 1, min(last, column + window) + 1),
    }
